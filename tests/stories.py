"""Stories of a bucket, told in text: what is asked of it, when, and what that comes to.

    small calls don't pass a big one: PLAIN balance=0
        0    stand big 50 -> EMPTY in=50s
        10s  stand small 5 -> EMPTY in=45s; 50s-1 stand big 50 -> EMPTY
        50s  stand small 5 -> EMPTY, stand big 50 -> GRANTED

The first line has what it shows, and the bucket: a quota by its name, what is changed in that, and what is stored. Then
come the steps: the time since the beginning (`50s-1` is a microsecond before 50 s), and one command or several. After
`->` stands what comes of it: a reason or a verdict; `name=value`, of the outcome, of a look, or of what is stored;
`name` or `!name`, where it is or isn't so. `-` is None, `@5s` an instant of the story. `(a|b)` tells the story with
either; all choices of a story go together. A step may also `put` something else into what is stored, `restart`, or go
`on` with other terms.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol
from urllib.parse import unquote

import pytest

from checks.models.strategies import EPOCH, SECOND, summed
from keepa_tokens.quota import Quota
from keepa_tokens.rules import commands
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import lifetime_us
from keepa_tokens.units import PROBE_AFTER_US
from tests.strategies import Bucket, Make


def reading(balance: int, at: float | None = None, **more: Any) -> Reading:
    return Reading(balance, server_time=None if at is None else float(at), **more)


def settle(
    name: str, actual: int | None = None, says: int | None = None, refused: int = 0, **more: Any
) -> commands.Settle:
    return commands.Settle(name, actual, None if says is None else reading(says, **more), bool(refused))


VERBS: Final[dict[str, Callable[..., commands.Command]]] = {
    "take": lambda tokens, keep=0, wait=None, probe=PROBE_AFTER_US, ticket=None: commands.Acquire(
        tokens, keep, wait, probe, ticket
    ),
    "hold": lambda name, tokens, life=SECOND, keep=0, probe=PROBE_AFTER_US, scout=0, **more: commands.Reserve(
        name, tokens, life, keep, probe, bool(scout), **more
    ),
    "stand": lambda name, tokens, life=120 * SECOND, keep=0, arrived=None: commands.Reserve(
        name, tokens, life, keep, ticket=f"ticket-{name}", arrived=arrived
    ),
    "settle": settle,
    "cancel": commands.Cancel,
    "back": commands.Refund,
    "read": lambda balance, at=None, **more: commands.Reconcile(reading(balance, at, **more)),
    "claim": commands.ClaimProbe,
    "unclaim": commands.Unclaim,
    "pause": commands.Pause,
    "peek": lambda tokens=1, keep=0, probe=PROBE_AFTER_US: commands.Peek(tokens, keep, probe),
}
SINCE_THE_START: Final = {"back": 2, "unclaim": 0}
"""Which argument of a verb is an instant of the story."""

SHOWN: Final = {"in": "retry_after_us", "place": "place_us", "mended": "repaired"}
"""What is named otherwise where it is shown."""

FLAGS: Final = {field.name for field in dataclasses.fields(commands.Outcome) if field.type == "bool"}
"""What an outcome says by True or False, nothing else; of the rest `!name` is what is empty or None, too."""

OF_TERMS: Final = [field.name for field in dataclasses.fields(Quota)]


def number(text: str) -> Any:
    """Return microseconds, tokens, a fraction, None for `-`, or the text itself if it is no number."""
    if text == "-":
        return None
    seconds, _, rest = text.rpartition("s")
    for read in (lambda: round(float(seconds or 0) * SECOND) + int(rest or 0), lambda: float(text)):
        try:
            return read()
        except ValueError:
            continue
    return unquote(text)


def value(name: str, text: str, start: int) -> Any:
    """Return the same, or after `@` an instant of the story; of who stands in line, what is stored."""
    if name == "line":
        ticket, *numbers = text.split(":")
        return (Ticket(ticket, *(value("", each, start) for each in numbers)),)
    if name == "holds" and text.partition(":")[2]:
        named = (each.split(":") for each in text.split("+"))
        return {hold: Hold(*(value("", number, start) for number in numbers)) for hold, *numbers in named}
    return start + number(text[1:]) if text.startswith("@") else number(text)


def command(text: str, start: int = EPOCH) -> commands.Command:
    """Return the command that is told as a verb and its arguments."""
    verb, *words = text.split()
    arguments = [number(word) for word in words if "=" not in word]
    if verb in SINCE_THE_START and len(arguments) > SINCE_THE_START[verb]:
        arguments[SINCE_THE_START[verb]] += start
    named = (word.split("=") for word in words if "=" in word)
    return VERBS[verb](*arguments, **{name: number(word) for name, word in named})


def steps(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield what is told step by step: the time since the start, what is done, and what comes of it."""
    for step in re.split(r"[;\n]", text.strip()):
        at, rest = step.split(maxsplit=1)
        for what in rest.split(","):
            done, _, comes = what.partition("->")
            yield number(at), done.strip(), comes


def fields(words: str, start: int = EPOCH) -> dict[str, Any]:
    """Return `name=value`, `name` and `!name` as names and their values."""
    told: dict[str, Any] = {}
    for word in words.split():
        name, is_given, text = word.partition("=")
        told[name.removeprefix("!")] = value(name, text, start) if is_given else not word.startswith("!")
    return told


@dataclass(frozen=True)
class Story:
    """A story, and the terms that it may name."""

    bucket: str
    text: str
    terms: Mapping[str, Any]

    def goes(self, make: Make) -> None:
        """Let it happen to a bucket, and assert that each step comes to what stands beside it."""
        name, _, changes = self.bucket.partition(" ")
        start = fields(changes).get("start", EPOCH)
        given = {each: value for each, value in fields(changes, start).items() if each != "start"}
        quota = replace(self.terms[name], **{each: given.pop(each) for each in [*given] if each in OF_TERMS})
        bucket = make(quota, begun(quota, start, given) if given else None)
        for after, what, comes in steps(self.text):
            now = start + after
            outcome = self.done(bucket, what, now, start)
            for each, wanted in fields(comes, start).items():
                found = seen(each, outcome, bucket, now)
                found = bool(found) if isinstance(wanted, bool) and each not in FLAGS else found
                assert found == wanted, f"{what}, after {after} us: {each} is {found}, not {wanted}"

    def done(self, bucket: Bucket, what: str, now: int, start: int) -> commands.Outcome:
        """Carry out a step: a command, or one that changes the terms or what is stored."""
        verb, _, words = what.partition(" ")
        if verb == "on":
            bucket.quota = self.terms[words]
        elif verb == "put":
            bucket.lose(**fields(words, start))
        elif verb == "restart":
            bucket.restart()
        else:
            return bucket.apply(command(what, start), now)
        return commands.Outcome()


def begun(quota: Quota, start: int, stored: Mapping[str, Any]) -> BucketState:
    """Return a bucket of which this was stored at the start; a synced one was told its balance then."""
    known: dict[str, Any] = {"refilled_at": start, "quota": quota, "sequence": 1}
    if quota.synced:
        known |= {"reading_at": start, "reading_sequence": 1, "server_time_at": start}
    return summed(quota, BucketState(**known | dict(stored)))


def seen(name: str, outcome: commands.Outcome, bucket: Bucket, now: int) -> Any:
    """Return what is so named in the outcome, in a look, or in what is stored, durations in microseconds.

    Of a reason or a verdict: whether it is that. What both an outcome and its look have is the same in both.
    """
    if name.isupper():
        return outcome.granted if name == "GRANTED" else name in {outcome.reason, outcome.reading}
    if name == "place" and not outcome.granted:
        return None
    if name == "lifetime":
        return lifetime_us(bucket.stored, now)
    field = SHOWN.get(name, name)
    for place in (lambda: outcome, lambda: outcome.snapshot or bucket.look(now), lambda: bucket.stored):
        if hasattr(thing := place(), field):
            found = getattr(thing, field)
            assert getattr(outcome.snapshot, field, found) == found
            if name == "mended":
                return "+".join(found)
            if name == "ran_out":
                return sum(hold.tokens for hold in found)
            return round(found * SECOND) if isinstance(found, float) and math.isfinite(found) else found
    raise AssertionError(f"nothing is called {name}")


def each_story(text: str, terms: Mapping[str, Any] = MappingProxyType({})) -> pytest.MarkDecorator:
    """Return what gives a test each story of a text, by its title; its terms are among the names `terms`, if any."""
    return pytest.mark.parametrize("story", [pytest.param(each, id=title) for title, each in stories(text, terms)])


_STORY: Final = re.compile(r"^(\S.*): (.*)\n((?: .*\n)+)", re.MULTILINE)
_CHOICE: Final = re.compile(r"\(([^()]*)\)")


def stories(text: str, terms: Mapping[str, Any]) -> Iterator[tuple[str, Story]]:
    """Yield each story with its title, and each way to tell it. A line that begins with # is a comment."""
    text = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)
    assert not _STORY.sub("", text).strip(), f"no story: {_STORY.sub('', text)}"
    for title, bucket, lines in _STORY.findall(text):
        choices = [[way.strip() for way in each.split("|")] for each in _CHOICE.findall(bucket + lines)]
        for ways in zip(*choices, strict=True) if choices else [("",)]:
            left = iter(ways)
            story = Story(_chosen(bucket, left), _chosen(lines, left), terms)
            yield f"{title}, {ways[0]}".removesuffix(", "), story


def _chosen(text: str, ways: Iterator[str]) -> str:
    return _CHOICE.sub(lambda _: next(ways), text)


# --- stories of doors and clients
#
# Their steps have no time of their own; they are parted by `;`. A step is a verb and what that is given. After `->`
# stands the error that it raises, by its name, and what is so then: `name`, `!name`, or compared, `slept<=3`. Each kind
# has its own verbs, and its own names for what is seen.

CHECK: Final = re.compile(r"(!?)([\w:.]+)(?:(<=|>=|<|>|=)(\S+))?")
COMPARED: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def whole(text: str) -> Any:
    value = number(text)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def told_steps(text: str) -> Iterator[tuple[str, str, list[Any], dict[str, Any]]]:
    """Yield each step of a story: its text, its verb, and what stands beside that, unnamed and named."""
    for step in re.split(r"[;\n]", text.strip()):
        verb, *words = step.partition("->")[0].split()
        named = options(" ".join(word for word in words if "=" in word))
        yield step, verb, [whole(word) for word in words if "=" not in word], named


class Teller(Protocol):
    """To whom a story happens."""

    def done(self, verb: str, words: list[Any], named: dict[str, Any]) -> Any:
        """Return what a step comes to, an error too."""
        ...

    def seen(self, came: Any, name: str) -> Any:
        """Return what is so named after a step that came to this."""
        ...


def goes(text: str, teller: Teller) -> None:
    """Let a story happen, and assert that each step comes to what stands beside it."""
    for step, verb, words, named in told_steps(text):
        came = teller.done(verb, words, named)
        holds(step, came, partial(teller.seen, came))


def options(text: str) -> dict[str, Any]:
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
