"""What the conformance kit does to a bucket: histories, the same in every run, and their outcomes by the rules.

Numbers are small and times coarse, so that balances, ends and instants often meet exactly. A storage only calls
`transition`: histories need not test the rules, only that nothing is lost between `transition` and the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from ..quota import Quota
from ..rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from ..rules.decision import Snapshot
from ..rules.reading import Reading
from ..rules.state import BucketState
from ..rules.transition import lifetime_us, transition
from ..units import CLAIM_US, LIMIT, MICROSECONDS, UNLIMITED

SECOND: Final = MICROSECONDS
HOUR: Final = 3600 * SECOND
EPOCH: Final = 1_780_000_000 * SECOND
"""An instant of the wall clock."""

BEGINS: Final = (EPOCH, 1, EPOCH, LIMIT // 2 + 1)
"""When histories begin. The latest time is a little after the last of them."""

STEPS: Final = 25
_TEXTS: Final = (None, "NaN", "", "-1", "0", "1", "1e3", "1 2 3 4 5", str(EPOCH), str(EPOCH + 400 * 24 * HOUR))
"""Texts that replace a damaged field; None: the field is removed."""


@dataclass(frozen=True)
class Act:
    """One step of a history: `damage`, if any, hits a stored field, then a command comes.

    damage: which field, from 0 (the first by name) to 1, and the text that replaces it; None removes the field.
    """

    now: int
    quota: Quota
    command: Command
    damage: tuple[float, str | None] | None = None

    def damaged(self, fields: dict[str, str]) -> dict[str, str]:
        """Return the fields after the damage."""
        if self.damage is None or not fields:
            return fields
        share, text = self.damage
        hit = sorted(fields)[int(share * len(fields))]
        return {name: kept for name, kept in fields.items() if name != hit} | ({} if text is None else {hit: text})


def histories(count: int, *, damage: bool = False) -> Iterator[list[Act]]:
    """Yield a history of places that are given up, then `count` others, of plain and synced buckets in turn."""
    yield _places()
    for number in range(count):
        begin = BEGINS[number // 2 % len(BEGINS)]
        yield _history(Random(number), begin, synced=number % 2 == 1, damage=damage and number % 3 == 0)  # noqa: S311 - no secret


def _places() -> list[Act]:
    """Return a history in which tokens come back before the last place, and then that place is given up."""
    quota = Quota(20, 1, 1.0, initial=0)
    commands: list[Command] = [
        *(Acquire(15, wait_us=HOUR), Acquire(5, wait_us=HOUR), Refund("a", 15, EPOCH + 15 * SECOND)),
        *(Acquire(10, wait_us=HOUR), Acquire(10, wait_us=HOUR), Refund("b", 10, EPOCH + 30 * SECOND)),
        *(Acquire(3, wait_us=HOUR), Refund("c", 3, EPOCH + 23 * SECOND), Acquire(1, wait_us=HOUR), Peek(1)),
    ]
    return [Act(EPOCH, quota, command) for command in commands]


def _history(draw: Random, now: int, *, synced: bool, damage: bool) -> list[Act]:
    """Return a history, in which commands are sent again, as after a lost answer, and clocks step back."""
    quotas = [_quota(draw, synced=synced) for _ in range(draw.choice((1, 1, 2)))]
    acts = list[Act]()
    for _ in range(STEPS):
        passed = draw.choice((0, 0, 0, 0.4, 1, 1, 2, 2, 3, 5, 5, 20, 21, 60, 130, 3700, -1))
        now = max(0, now + round(passed * SECOND))
        spoilt = (draw.random(), draw.choice(_TEXTS)) if damage and draw.random() < 0.2 else None
        acts += [Act(now, draw.choice(quotas), _command(draw, now, synced=synced), spoilt)]
        acts += [replace(acts[-1], damage=None)] * (draw.random() < 0.1)
    return acts


def _quota(draw: Random, *, synced: bool) -> Quota:
    capacity = draw.choice((3, 10, 30, 300))
    return Quota(
        capacity,
        draw.choice((0, 1, 3, 5)),
        draw.choice((1.0, 7.0, 60.0)),
        stepped=draw.random() < 0.5,
        overdraft=draw.choice((0, 0, 3, UNLIMITED)),
        recharge_to=draw.choice((None, None, None, capacity - 1)),
        initial=draw.choice((None, None, 0, 2)),
        synced=synced,
    )


def _command(draw: Random, now: int, *, synced: bool) -> Command:
    hold, tokens, keep = draw.choice("ab"), draw.choice((0, 1, 1, 2, 3, 6, 12, 40)), draw.choice((0, 0, 0, 2))
    wait = None if synced else draw.choice((None, 3 * SECOND, 600 * SECOND))
    after = draw.choice((None, 0, SECOND, 600 * SECOND))
    lives = draw.choice((2, 5, 60, 600)) * SECOND
    usual: list[Command] = [
        *(
            Acquire(tokens, keep, wait, after),
            Peek(tokens, keep, after),
            Refund(hold, tokens, draw.choice((None, now + SECOND, now + lives))),
        ),
        *[Reserve(hold, tokens, lives, keep, after, scout=synced and draw.random() < 0.3)] * 2,
        *(Settle(hold, draw.choice((None, 0, tokens))), Cancel(hold)),
    ]
    if not synced:
        return draw.choice(usual)
    reading = Reading(
        draw.choice((-5, 0, 3, 20, 100)),
        next_refill_in=draw.choice((None, None, 0.5, 90.0)),
        refill=draw.choice((None, None, 0.25, 1, 5)),
        capacity=draw.choice((None, None, 30, 300)),
        server_time=draw.choice((None, *(max(0, now // SECOND - ago) for ago in (0, 1, 5)))),
    )
    told: list[Command] = [
        *(Reconcile(reading), ClaimProbe(), Unclaim(now + CLAIM_US), Pause(draw.choice((0, SECOND)))),
        *[Settle(hold, tokens, draw.choice((reading, reading, None)), draw.random() < 0.2)] * 2,
    ]
    return draw.choice(usual + told)


class Rules:
    """A bucket by the rules alone: plain texts in, `transition`, plain texts out.

    due: the instant from which the bucket may be forgotten; None: never.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.due: int | None = None

    def apply(self, act: Act) -> Outcome:
        """Carry out the command."""
        stored = self.stored()
        state, outcome = transition(act.quota, stored, act.now, act.command)
        if state is not None and state is not stored:
            self.texts = state.to_fields()
            lifetime = lifetime_us(state, act.now)
            self.due = None if lifetime is None else act.now + lifetime
        return in_order(outcome)

    def inspect(self, now: int) -> Snapshot | None:
        """Return what `inspect` should show."""
        stored = self.stored()
        if stored is None or stored.quota is None:
            return None
        return look(transition(stored.quota, stored, now, Peek())[1].snapshot)

    def stored(self) -> BucketState | None:
        """Return the bucket, or None if there is none."""
        return BucketState.from_fields(self.texts) if self.texts else None


def in_order(outcome: Outcome) -> Outcome:
    """Return the outcome with the names of mended fields sorted: a storage may keep fields in any order."""
    return replace(outcome, repaired=tuple(sorted(outcome.repaired)), snapshot=look(outcome.snapshot))


def look(shown: Snapshot | None) -> Snapshot | None:
    """Return a snapshot, likewise sorted."""
    return None if shown is None else replace(shown, repaired=tuple(sorted(shown.repaired)))
