"""Stories of Keepa's server, of workers with a bucket on it, and of what they are told, in text.

    a timeout shorter than the wait is raised at once: initial=-12
        refresh; request a 1 timeout=30 -> AcquireTimeout slept=0 holds=0

After the title stand the options of `World`. `by=` names another worker; `pass` lets seconds pass, `pass retry` those
that the last refusal told; `told` is the last event of a kind. After `->` stands what is raised, and what is so in the
result, in the bucket, on the server (`left` is its balance), of the clock (`slept`) or measured; `in_step`: the bucket
knows the server's balance and holds nothing. A name in capitals counts events of a kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keepa_tokens import Call, EventKind, KeepaSync, KeepaTokensError
from keepa_tokens.testing.fake_keepa import Response
from tests.keepa_world import PRODUCT, World, asins
from tests.stories import Story, goes, options


class Told:
    def __init__(self, story: Story, of: Callable[..., World] = World) -> None:
        self.text = story.text
        self.world = of(**options(story.bucket))
        self.workers: dict[Any, KeepaSync] = {}
        self.calls: dict[Any, Call] = {}
        self.answers: dict[Any, Response] = {}
        self.retry_after = 0.0

    def goes(self) -> None:
        goes(self.text, self)

    def done(self, verb: str, words: list[Any], named: dict[str, Any]) -> Any:
        world, fake = self.world, self.world.fake
        sync = self.worker(named.pop("by", None))
        verbs: dict[str, Callable[..., Any]] = {
            "call": lambda tokens, **more: world.call(tokens, by=sync, **more),
            "refresh": sync.refresh,
            "request": lambda name, *tokens, **more: self.begun(name, sync.request(*tokens, **more)),
            "try": lambda name, *tokens, **more: self.begun(name, sync.try_request(*tokens, **more)),
            "answer": lambda name, tokens: world.answer(self.calls[name], tokens),
            "settle": lambda name: self.calls[name].settle(),
            "ask": lambda name, tokens: self.answers.update({name: fake.request(PRODUCT, asins(tokens))}),
            "tell": lambda name: self.calls[name].settle(self.answers[name].content, status=self.answers[name].status),
            "hear": lambda name: sync.observe(self.answers[name].content),
            "garbage": lambda status: sync.observe(b"<html>", status=status),
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
            self.retry_after = getattr(error, "retry_after", self.retry_after)
            return error

    def worker(self, name: Any) -> KeepaSync:
        """Return the worker of a name, made when it is first named; None: the world's own."""
        if name is None:
            return self.world.sync
        if name not in self.workers:
            self.workers[name] = self.world.worker()
        return self.workers[name]

    def begun(self, name: Any, call: Call) -> Call:
        self.calls[name] = call
        return call

    def seen(self, came: Any, name: str) -> Any:
        """Return what is so named in what a step came to, else in the bucket, on the server or of the clock."""
        bucket, fake = self.world.bucket.peek(), self.world.fake
        if name.isupper():
            return len(self.world.kinds(EventKind[name]))
        own = {"status": came, "left": fake.balance, "in_step": (bucket.balance, bucket.held) == (fake.balance, 0)}
        if name in own:
            return own[name]
        for place in (came, getattr(came, "decision", None), bucket, fake, self.world.clock):
            if hasattr(place, name):
                return getattr(place, name)
        return self.world.value(name.removeprefix("metric:"))
