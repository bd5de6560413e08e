"""Rule 1: any stored thing becomes a sound state, and is said to have been mended.

This is the only place that knows garbage. In what it returns every number is a whole number in its range and no
instant lies further ahead than it rightly could. None is left only where it means something: `balance` (a
synced bucket that awaits a reading), `closed_until`, `probe_until`, `reading_at`, and what no server has
reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from ..errors import ConfigError
from ..quota import Quota
from ..units import CLAIM_US, LIMIT, MAX_HOLD_US, NEVER, TOLERANCE_US
from .arithmetic import anchored, saturated
from .flow import flow_in_effect
from .state import FORMAT, NEWEST_FORMAT, BucketState, Hold

__all__ = ["new_state", "repair"]

_MAX_SEQUENCE = LIMIT // 2
_MAX_FAILURES = 30


def new_state(quota: Quota, now: int) -> BucketState:
    """Return the state of a bucket never seen before."""
    return BucketState(balance=quota.starts_at, refilled_at=now)


def repair(quota: Quota, stored: BucketState | None, now: int) -> tuple[BucketState, tuple[str, ...]]:
    """Return a sound state for whatever was stored, and the names of the fields that were mended.

    Raises ConfigError for the format of a newer release: its state is left to those who know it.
    """
    if stored is None:
        return new_state(quota, now), ()
    mender = _Mender(stored, now, list(stored.unreadable))
    mender.check_format()
    reading_at = mender.past("reading_at")
    balance = mender.balance(quota, reading_at)
    if balance is None:
        # What the last reading said is lost: a balance that begins at 0 must not be taken for it.
        reading_at = None
    lost = balance is None and not quota.synced
    refill, period_us = mender.reported_rate(quota, reading_at)
    sequence = mender.sequence()
    sound = BucketState(
        balance=0 if lost else balance,
        refilled_at=now if lost else mender.refilled_at(),
        carry=0 if lost else mender.number("carry"),
        carry_refill=mender.optional("carry_refill"),
        carry_period_us=mender.optional("carry_period_us", 1),
        closed_until=mender.optional("closed_until"),
        sequence=sequence,
        reading_at=reading_at,
        reading_sequence=mender.reading_sequence(reading_at, sequence),
        server_time=mender.optional("server_time"),
        drift=mender.optional("drift", 1 - LIMIT),
        kept_back=mender.optional("kept_back"),
        kept_back_at=mender.past("kept_back_at"),
        probe_until=mender.probe_until(),
        probe_failures=min(_MAX_FAILURES, mender.number("probe_failures")),
        reported_refill=refill,
        reported_period_us=period_us,
        reported_capacity=mender.optional("reported_capacity", 1),
        holds=mender.holds(sequence),
    )
    sound = _within_its_period(quota, sound, mender)
    return _with_holds_that_end(quota, sound, now, mender), tuple(mender.names)


@dataclass(slots=True)
class _Mender:
    """Reads one stored field at a time and notes the names of those that were mended."""

    stored: BucketState
    now: int
    names: list[str] = field(default_factory=list[str])

    def note(self, name: str) -> None:
        if name not in self.names:
            self.names.append(name)

    def optional(self, name: str, least: int = 0) -> int | None:
        value = getattr(self.stored, name)
        if value is None or _is_whole(value, least):
            return value  # type: ignore[no-any-return] # a whole number by the check
        self.note(name)
        return None

    def number(self, name: str) -> int:
        value = self.optional(name)
        if value is None:
            self.note(name)
        return value or 0

    def check_format(self) -> None:
        stored = self.stored.format
        if _is_whole(stored, FORMAT + 1, NEWEST_FORMAT):
            msg = (
                f"the stored state has format {stored}, this release knows format {FORMAT}:"
                " it was written by a newer release. Upgrade this one; nothing was changed."
            )
            raise ConfigError(msg)
        if stored != FORMAT:
            self.note("format")

    def balance(self, quota: Quota, reading_at: int | None) -> int | None:
        value = self.optional("balance", 1 - LIMIT)
        # A synced bucket may rightly have no balance, but not after a reading.
        if value is None and (reading_at is not None or not quota.synced):
            self.note("balance")
        return value

    def refilled_at(self) -> int:
        value = self.optional("refilled_at")
        if value is None:
            self.note("refilled_at")
            return self.now
        kept = anchored(value, self.now, TOLERANCE_US)
        if kept != value:
            self.note("refilled_at")
        return kept

    def past(self, name: str) -> int | None:
        """Return an instant that can't lie ahead; None: there is none."""
        value = self.optional(name)
        if value is not None and value > self.now + TOLERANCE_US:
            self.note(name)
            return None
        return value

    def probe_until(self) -> int | None:
        value = self.optional("probe_until")
        if value is not None and value > self.now + CLAIM_US + TOLERANCE_US:
            self.note("probe_until")
            return self.now + CLAIM_US
        return value

    def sequence(self) -> int:
        value = self.stored.sequence
        if _is_whole(value, 0, _MAX_SEQUENCE):
            return value or 0
        # Lost: go on from the latest that anything still remembers, so that what was opened stays in order.
        self.note("sequence")
        sound = [hold for hold in self._stored_holds().values() if _is_hold(hold)]
        seen = [self.stored.reading_sequence or 0, *(max(hold.opened, hold.charged) for hold in sound)]
        return max((number for number in seen if _is_whole(number, 0, _MAX_SEQUENCE)), default=0)

    def reading_sequence(self, reading_at: int | None, sequence: int) -> int:
        value = self.optional("reading_sequence")
        if value is None and reading_at is None:
            return 0
        if value is None or value > sequence:
            # Unknown: nothing in flight may count as opened after it; those fall back on the server's time.
            self.note("reading_sequence")
            return sequence
        return value

    def reported_rate(self, quota: Quota, reading_at: int | None) -> tuple[int | None, int | None]:
        refill, period_us = self.optional("reported_refill"), self.optional("reported_period_us", 1)
        if refill is None and period_us is None:
            return None, None
        if refill is None or period_us is None or refill * (period_us + 1) >= LIMIT:
            self.note("reported_refill")
            return None, None
        if refill == 0 and quota.synced and reading_at is None:
            # A net refill of 0 stops everything, so it counts only on a reading's word, which a probe can take back.
            self.note("reported_refill")
            return None, None
        return refill, period_us

    def _stored_holds(self) -> Mapping[str, Hold]:
        if isinstance(cast("object", self.stored.holds), Mapping):
            return self.stored.holds
        self.note("holds")
        return {}

    def holds(self, sequence: int) -> Mapping[str, Hold]:
        """Return the sound holds, in the order of their names. More set aside than can be counted exactly is damage."""
        sound: dict[str, Hold] = {}
        held = 0
        for hold_id, hold in sorted(self._stored_holds().items(), key=lambda item: str(item[0])):
            if not _is_hold(hold) or (hold.in_flight and held + hold.tokens >= LIMIT):
                self.note(f"hold:{hold_id}")
                continue
            held += hold.tokens if hold.in_flight else 0
            if max(hold.opened, hold.charged) > sequence:
                self.note(f"hold:{hold_id}")
                sound[hold_id] = replace(
                    hold, opened=min(hold.opened, sequence), charged=min(hold.charged, max(1, sequence))
                )
            else:
                sound[hold_id] = hold
        return sound


def _within_its_period(quota: Quota, state: BucketState, mender: _Mender) -> BucketState:
    """Return the state with a carry of less than one token at the rate at which it was earned."""
    flow = flow_in_effect(quota, state)
    if state.carry_refill is None or state.carry_period_us is None:
        state = replace(state, carry_refill=flow.refill, carry_period_us=flow.period_us)
    if (state.carry or 0) < (state.carry_period_us or 0):
        return state
    mender.note("carry")
    return replace(state, carry=0)


def _with_holds_that_end(quota: Quota, state: BucketState, now: int, mender: _Mender) -> BucketState:
    """Return the state with every hold ending no later than it could: its lifetime from now, or from its place.

    Only a plain bucket lets a hold be opened for a place ahead; the furthest is where all the debt is refilled.
    """
    if not any(hold.expires_at > _latest_end(hold, now) for hold in state.holds.values()):
        return state
    place = now
    if not quota.synced:
        flow = flow_in_effect(quota, state)
        held = sum(hold.tokens for hold in state.holds.values() if hold.in_flight)
        debt = saturated(flow.capacity - (state.balance or 0) + held)
        instant = flow.instant(debt, state.refilled_at or 0, state.carry or 0)
        place = now if instant == NEVER else max(now, instant)
    holds = dict(state.holds)
    for hold_id, hold in state.holds.items():
        latest = _latest_end(hold, place if hold.in_flight else now)
        if hold.expires_at > latest:
            mender.note(f"hold:{hold_id}")
            holds[hold_id] = replace(hold, expires_at=latest)
    return replace(state, holds=holds)


def _latest_end(hold: Hold, start: int) -> int:
    return start + hold.hold_for + TOLERANCE_US


def _is_hold(hold: object) -> bool:
    return (
        isinstance(hold, Hold)
        and _is_whole(hold.tokens, 0)
        and _is_whole(hold.opened, 0)
        and _is_whole(hold.expires_at, 0)
        and _is_whole(hold.hold_for, 1, MAX_HOLD_US)
        and _is_whole(hold.charged, 0)
    )


def _is_whole(value: object, least: int, most: int = LIMIT - 1) -> bool:
    # `type`, not `isinstance`: True is no balance.
    return type(value) is int and least <= value <= most
