"""Stories of Keepa's server, of workers with a bucket on it, and of what they are told, in text.

    a timeout shorter than the wait is raised at once: initial=-12
        refresh; request a 1 timeout=30 -> AcquireTimeout slept=0 holds=0

After the title stand the options of `World`. `by=` names another worker; `pass` lets seconds pass, `pass retry` those
that the last refusal told; `told` is the last event of a kind. After `->` stands what is raised, and what is so in the
result, in the bucket, on the server (`left` is its balance), of the clock (`slept`) or measured; `in_step`: the bucket
knows the server's balance and holds nothing. A name in capitals counts events of a kind.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import pytest

from keepa_tokens import Call, Event, EventKind, KeepaSync, KeepaTokensError, NotEnoughTokens, Snapshot
from tests.keepa_world import PRODUCT, World
from tests.stories import Story, number, stories

CHECK: Final = re.compile(r"(!?)([\w:.]+)(?:(<=|>=|<|>|=)(\S+))?")
COMPARED: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def whole(text: str) -> Any:
    """Return what is written, a whole number as an int."""
    value = number(text)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def told_steps(text: str) -> Iterator[tuple[str, str, list[Any], dict[str, Any]]]:
    """Yield each step of a story: its text, its verb, and what stands beside that, unnamed and named."""
    for step in re.split(r"[;\n]", text.strip()):
        verb, *words = step.partition("->")[0].split()
        named = options(" ".join(word for word in words if "=" in word))
        yield step, verb, [whole(word) for word in words if "=" not in word], named


def options(text: str) -> dict[str, Any]:
    """Return what is named in a text."""
    return {name: whole(value) for name, value in (each.split("=") for each in text.split())}


def holds(step: str, came: Any, seen: Callable[[str], Any]) -> None:
    """Assert that a step came to what stands beside it: raised what is named there, and nothing else."""
    checks = CHECK.findall(step.partition("->")[2])
    raised = [name for _, name, compared, _ in checks if name[0].isupper() and not compared]
    assert raised == ([type(came).__name__] if isinstance(came, Exception) else []), f"{step}: {came!r}"
    for negated, name, compared, text in checks:
        if name not in raised:
            found = seen(name)
            is_so = COMPARED[compared](found, whole(text)) if compared else bool(found) != bool(negated)
            assert is_so, f"{step}: {name} is {found}"


class Told:
    """A world to which a story happens."""

    def __init__(self, story: Story, of: Callable[..., World] = World) -> None:
        self.text = story.text
        self.world = of(**options(story.bucket))
        self.workers: dict[Any, KeepaSync] = {}
        self.calls: dict[Any, Call] = {}
        self.retry_after = 0.0

    def goes(self) -> None:
        """Let it happen, and assert that each step comes to what stands beside it."""
        for step, verb, words, named in told_steps(self.text):
            came = self.done(verb, words, named)
            if isinstance(came, NotEnoughTokens):
                self.retry_after = came.retry_after
            holds(step, came, partial(self.seen, came))

    def done(self, verb: str, words: list[Any], named: dict[str, Any]) -> Any:
        """Return what a step comes to, an error too."""
        world, fake = self.world, self.world.fake
        sync = self.workers.setdefault(named["by"], world.worker()) if "by" in named else world.sync
        named.pop("by", None)
        verbs: dict[str, Callable[..., Any]] = {
            "call": lambda tokens, **more: world.call(tokens, by=sync, **more),
            "refresh": sync.refresh,
            "request": lambda name, *tokens, **more: self.calls.setdefault(name, sync.request(*tokens, **more)),
            "try": lambda name, *tokens, **more: self.calls.setdefault(name, sync.try_request(*tokens, **more)),
            "answer": lambda name, tokens: world.answer(self.calls[name], tokens),
            "settle": lambda name: self.calls[name].settle(),
            "cancel": lambda name: self.calls[name].cancel(),
            "fail": lambda name: self.calls[name].__exit__(OSError, OSError(), None),
            "peek": sync.bucket.peek,
            "pause": sync.bucket.pause,
            "observe": lambda **body: sync.observe(body),
            "cost": lambda tokens: setattr(fake, "cost", lambda path, _: tokens if path == PRODUCT else 0),
            "damage": world.damage,
            "pass": lambda seconds: world.clock.advance(self.retry_after if seconds == "retry" else seconds),
            "outside": fake.spend_outside,
            "plan": fake.set_plan,
            "flow": fake.set_flow_reduction,
            "down": lambda is_down: setattr(fake, "token_down", bool(is_down)),
            "fault": lambda kind: fake.fail_next(1, kind),
            "offset": lambda seconds: setattr(fake, "server_clock_offset", float(seconds)),
            "told": lambda kind: world.last(EventKind[kind]),
        }
        try:
            return verbs[verb](*words, **named)
        except KeepaTokensError as error:
            return error

    def seen(self, came: Any, name: str) -> Any:
        """Return what is so named in what a step came to, else in the bucket, on the server or of the clock."""
        bucket, fake = self.world.bucket.peek(), self.world.fake
        if name.isupper():
            return len(self.world.kinds(EventKind[name]))
        own = {"status": came, "left": fake.balance, "in_step": (bucket.balance, bucket.held) == (fake.balance, 0)}
        if name in own:
            return own[name]
        told = (
            (came, getattr(came, "decision", None))
            if isinstance(came, KeepaTokensError | Event | Call | Snapshot)
            else ()
        )
        for place in (*told, bucket, fake, self.world.clock):
            if hasattr(place, name):
                return getattr(place, name)
        return self.world.value(name.removeprefix("metric:"))


def each_story(text: str) -> pytest.MarkDecorator:
    """Return what gives a test each story of a text, by its title."""
    return pytest.mark.parametrize("story", [pytest.param(each, id=title) for title, each in stories(text, {})])
