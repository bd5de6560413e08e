"""Buckets that have come to something, and every single fault of what is stored of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from checks.models.programs import BOUNDS, GARBAGE, Act, Program
from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND, TERMS
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Command, Peek, Reconcile, Reserve
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import NUMBERS, BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, UNLIMITED
from tests.redis.strategies import RAW


@dataclass(frozen=True)
class Bucket:
    """What happened to a bucket, at microseconds since EPOCH; the last moment is the one of the fault."""

    quota: Quota
    steps: tuple[tuple[int, Command], ...]
    lost: str = ""  # a field that is missing besides: two faults are named in an order

    @property
    def now(self) -> int:
        """When the fault is met."""
        return EPOCH + self.steps[-1][0]

    def texts(self) -> dict[str, str]:
        """What is stored by then."""
        state: BucketState | None = None
        for at, command in self.steps:
            state, _ = transition(self.quota, state, EPOCH + at, command)
        assert state is not None
        return {name: text for name, text in state.to_fields().items() if name != self.lost}


_BETWEEN: Final = 4_317_762_970_155_974
"""A period in microseconds that is half of one more when it has been through seconds and back."""

_SAID: Final = Reading(15, next_refill_in=30.0, refill=5, period=60.5, capacity=22, server_time=1_780_000_000.0)
_SAID_LATER: Final = Reading(14, server_time=1_780_000_001.0)
_DRIED_UP: Final = Reading(2, refill=0, server_time=1_780_000_000.0)

BUCKETS: Final = {
    "plain, one hold in flight, one run out": Bucket(
        Quota(10, 3, 7.0),
        ((0, Reserve("a", 3, MINUTE)), (0, Reserve("b", 2, 3 * SECOND)), (4 * SECOND, Acquire(2))),
    ),
    "plain, places ahead": Bucket(
        Quota(4, 1, 10.0, initial=4),
        (
            (0, Acquire(4)),
            (0, Reserve("a", 3, MINUTE, wait_us=HOUR)),
            (0, Reserve("b", 1, SECOND, wait_us=HOUR)),
            (SECOND, Peek()),
        ),
    ),
    "plain, recharging": Bucket(
        Quota(10, 3, 7.0, stepped=True, recharge_to=8),
        ((0, Reserve("a", 6, MINUTE)), (0, Reserve("b", 3, 3 * SECOND)), (4 * SECOND, Acquire(5))),
    ),
    "synced, told by the server": Bucket(
        Quota(20, 5, 60.5, stepped=True, synced=True, overdraft=UNLIMITED),
        (
            (0, Reconcile(_SAID)),
            (0, Reserve("a", 3, MINUTE)),
            (0, Reserve("b", 2, 3 * SECOND)),
            (4 * SECOND, Reconcile(_SAID_LATER)),
        ),
    ),
    "synced, told that nothing refills, probed": Bucket(
        Quota(20, 5, 60.5, synced=True, recharge_to=8),
        (
            (0, Reconcile(_DRIED_UP)),
            (0, Reserve("a", 1, MINUTE)),
            (0, Reserve("b", 1, 3 * SECOND)),
            (4 * SECOND, Acquire(5, probe_after_us=SECOND)),
        ),
    ),
    "plain, its timestamp lost": Bucket(Quota(10, 3, 7.0), ((0, Reserve("a", 3, MINUTE)),), lost="refilled_at"),
    "plain, as slow as can be": Bucket(
        Quota(20, 2, _BETWEEN / 10**6),
        ((0, Reserve("a", 3, MINUTE)), (0, Reserve("b", 3, MINUTE)), (SECOND, Peek())),
    ),
    "synced, beside somebody else who spends": Bucket(
        Quota(300, 5, 60.5, stepped=True, synced=True, overdraft=UNLIMITED),
        (
            (0, Reconcile(Reading(100, server_time=1_780_000_000.0))),
            (SECOND, Reconcile(Reading(60, server_time=1_780_000_001.0))),
            (2 * SECOND, Reserve("a", 20, MINUTE)),
            (4 * SECOND, Reconcile(Reading(55, server_time=1_780_000_002.0))),
        ),
    ),
    "synced, nothing known, scouting": Bucket(
        Quota(20, 5, 60.5, synced=True),
        (
            (0, Reserve("a", 3, 10 * SECOND, scout=True)),
            (0, Acquire(1)),
            (4 * SECOND, Acquire(1)),
        ),
    ),
}
"""Between them they have every field."""

_EDGES: Final = (1 - LIMIT, -1, 0, 1, LIMIT // 2, LIMIT // 2 + 1, LIMIT - 1, LIMIT)
_TIMES: Final = frozenset({"refilled_at", "closed_until", "reading_at", "kept_back_at", "probe_until"})
_IN_A_HOLD: Final = ("tokens", "opened", "expires_at", "hold_for", "charged")


def programs_of(bucket: Bucket) -> Iterator[Program]:
    """Yield a program for each field: again and again another fault, a look that mends it, a later request."""
    texts, now = bucket.texts(), bucket.now
    fields = (*NUMBERS, *TERMS, "hold:a", "hold:b")
    for name in fields:
        acts: list[Act] = []
        for fault in dict.fromkeys(_faults(name, texts, now)):
            damage = tuple((field, fault if field == name else texts.get(field)) for field in fields)
            acts += [Act(now, bucket.quota, damage, Peek(3)), Act(now + 2 * MINUTE, bucket.quota, (), Acquire(1))]
        yield Program(tuple(acts))


def _faults(name: str, texts: Mapping[str, str], now: int) -> Iterator[str | None]:
    text = texts.get(name)
    yield None
    # One function reads all numbers, another all holds.
    yield from (*GARBAGE, *RAW, "1 2 3 4") if name in {"balance", "hold:a"} else ("",)
    if name == "period_us":
        yield str(_BETWEEN)
    if name == "carry":
        yield from (texts["carry_period_us"], str(int(texts["carry_period_us"]) - 1))
    if not name.startswith("hold:"):
        yield from map(str, _numbers(name, None if text is None else int(text), now))
        return
    numbers = [3, 1, now + MINUTE, MINUTE, 0] if text is None else [int(part) for part in text.split(" ")]
    for place, inner in enumerate(_IN_A_HOLD):
        for number in _numbers(inner, numbers[place], now):
            yield " ".join(map(str, [*numbers[:place], number, *numbers[place + 1 :]]))


def _numbers(name: str, value: int | None, now: int) -> Iterator[int]:
    yield from _EDGES
    near = [] if value is None else [value]
    if name in _TIMES or name == "expires_at":
        near += [now + bound for bound in BOUNDS]
    elif name == "hold_for":
        near += BOUNDS
    for number in near:
        yield from (number - 1, number, number + 1)
