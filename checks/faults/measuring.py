"""What is measured of a bucket after a fault: how long until it goes on, and how much more it gives than its twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from checks.faults.runs import SECOND, Bucket, Kind, Moment, twin
from keepa_tokens import Snapshot
from keepa_tokens.rules.commands import Acquire, Peek, Settle
from keepa_tokens.rules.line import LATE_US
from keepa_tokens.rules.state import LINE
from keepa_tokens.units import CLAIM_US, MAX_BACKOFF_US, MICROSECONDS, PROBE_AFTER_US, TOLERANCE_US

COST: Final = 5
"""What is asked for after a fault, until it is granted or somebody is sent to the server."""

LOOKS: Final = tuple(after * SECOND for after in (0, 1, 5, 30, 61, 90, 122, 200))
"""When, after a fault, all that there is is taken."""


def micro(duration: float) -> int:
    return round(duration * MICROSECONDS)


def look(bucket: Bucket, at: int, tokens: int = COST) -> Snapshot:
    snapshot = bucket.apply(Peek(tokens), at).snapshot
    assert snapshot is not None
    return snapshot


@dataclass(frozen=True)
class Life:
    """How a bucket goes on: what it says it mended, and how long until a grant or a probe, by which bound."""

    repaired: tuple[str, ...]
    shown: Snapshot
    waited: int
    bound: int
    ends: str


def life(bucket: Bucket, kind: Kind, at: int) -> Life:
    """Ask until there is a grant or a probe. AssertionError: not by the bound that was stated, or it is too far."""
    shown = look(bucket, at)
    again = set(look(bucket, at).repaired)
    # A balance that is unknown stays named until a reading, or the end of a claim, brings one.
    assert again <= ({"balance"} if kind.quota.synced else set()), f"repairs that were not written back: {again}"
    bound = micro(shown.bound)
    assert bound <= longest(kind, shown), f"the stated bound of {shown.bound} s is too far"
    now, end = at, at + bound
    while True:
        outcome = bucket.apply(Acquire(COST), now)
        if outcome.granted or outcome.probe:
            return Life(shown.repaired, shown, now - at, bound, "grant" if outcome.granted else "probe")
        assert now < end, f"neither a grant nor a probe within the stated {shown.bound} s"
        now = min(end, now + max(1, outcome.retry_after_us))


def longest(kind: Kind, shown: Snapshot) -> int:
    """Return the most that a bound may be, by what is left of the bucket: the refill time and a period; or a probe."""
    paused = micro(shown.paused_for)
    if kind.quota.synced:
        return max(PROBE_AFTER_US, CLAIM_US + MAX_BACKOFF_US, paused) + 2 * TOLERANCE_US
    missing = max(0, max(COST, kind.quota.recharge_to or 0) + shown.wanted - (shown.available or 0))
    brought = -(-missing * kind.quota.period_us // kind.quota.refill)
    if shown.waiting:
        # The last of those in line may come only when it was told to, and then take its tokens; all of them may come
        # after a pause, in which the bucket runs over.
        return paused + 2 * (brought + LATE_US) + kind.quota.period_us + TOLERANCE_US
    return max(paused, brought) + kind.quota.period_us + TOLERANCE_US


def greed(bucket: Bucket, moment: Moment, at: int) -> Iterator[tuple[int, int]]:
    """Take all that there is at every look, settling a call now and then; yield the total, and what is left then."""
    taken = 0
    calls = list(moment.calls)
    for after in LOOKS:
        now = at + after
        if after and calls:
            name, tokens = calls.pop()
            bucket.apply(Settle(name, tokens // 2), now)
        left = look(bucket, now, 0).available or 0
        wanted = max(1, left)
        if bucket.apply(Acquire(wanted), now).granted:
            taken += wanted
            left -= wanted
        yield taken, left


@dataclass(frozen=True)
class Due:
    """What may be had of a bucket to which nothing happens, at each look; and how it stands at the first.

    Had by one whom nobody is before: what others in line wait for is no more than that, and may run over meanwhile.
    """

    by_look: tuple[int, ...]
    since: int
    shown: Snapshot
    balance: int
    available: int

    @classmethod
    def at(cls, kind: Kind, moment: Moment) -> Due:
        shown = look(twin(kind, moment), moment.at)
        assert shown.balance is not None
        assert shown.available is not None
        alone = replace(moment, fields={name: text for name, text in moment.fields.items() if name != LINE})
        by_look = tuple(taken + left for taken, left in greed(twin(kind, alone), moment, moment.at))
        since = moment.at - int(moment.fields["refilled_at"])
        return cls(by_look, since, shown, shown.balance, shown.available)

    def beyond(self, bucket: Bucket, moment: Moment, at: int) -> int:
        """Return how much more than that a bucket gives to those who take all they can."""
        before, most = 0, 0
        for (taken, _), due in zip(greed(bucket, moment, at), self.by_look, strict=True):
            if taken > before:  # who is in debt grants nothing, and so nothing beyond
                most = max(most, taken - due)
            before = taken
        return most


@dataclass(frozen=True)
class Limit:
    """The bound of what may be granted beyond: how much, and what that is."""

    tokens: int
    says: str


NOTHING: Final = Limit(0, "nothing")


@dataclass(frozen=True)
class Cell:
    """One fault at one moment, measured. life: None where the storage says by an error what is wrong."""

    field: str
    fault: str
    life: Life | None
    beyond: int
    limit: Limit


def measured(
    kind: Kind, at: tuple[str, str], moment: Moment, alive: Bucket, greedy: Bucket, due: Due, limit: Limit | LimitOf
) -> Cell:
    """Measure two buckets to which the same happened: one is asked until it grants, from the other all is taken."""
    try:
        lives = life(alive, kind, moment.at)
        most = limit if isinstance(limit, Limit) else limit(lives.shown)
        beyond = due.beyond(greedy, moment, moment.at)
        assert beyond <= most.tokens, f"{beyond} granted beyond, more than {most.says} ({most.tokens})"
    except AssertionError as error:
        msg = f"{kind.name}, {' '.join(at)}: {error}; at {moment.at} there was {dict(moment.fields)}"
        raise AssertionError(msg) from error
    return Cell(*at, lives, beyond, most)


LimitOf: TypeAlias = Callable[[Snapshot], Limit]
"""A limit that depends on what the bucket shows after the fault."""


def refilled(duration: int, shown: Snapshot) -> int:
    """Return what a stepped bucket gets in `duration` from its last step on."""
    return duration // micro(shown.period) * shown.refill
