"""A bucket as memory storage keeps it: the fast path's numbers, the rest, and what tells when the rules must decide."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from ..quota import Quota
from ..rules import fast_path
from ..rules.arithmetic import KEPT_SHARE
from ..rules.commands import Acquire, Cancel, Command, Outcome, Refund, Reserve, Settle
from ..rules.flow import Flow, flow_in_effect, has_places
from ..rules.state import BucketState, Hold, SoundState
from ..rules.transition import is_usual, numbers_of
from ..units import DAY_US, LIMIT, MINUTE_US, REFUND_MEMORY_US, TOLERANCE_US, YEAR_US


@dataclass(slots=True)
class Bucket(fast_path.Numbers):
    """The numbers of the fast path, and the rest of what is known; version, due_at, holds as in `SoundState`.

    until: the fast path may serve it up to then; 0 once it is no longer the bucket of its key. touched: when it was
    last written. own: it goes by the storage's own time, not by a caller's. rest: the state as the rules left it, for
    what the numbers don't tell; None: they tell all. ends: when to look whether it may be forgotten. A bucket that
    never had a hold shares `NO_HOLDS`.
    """

    version: int
    due_at: int | None
    until: int
    touched: int
    own: bool
    holds: dict[str, Hold]
    rest: SoundState | None = None
    ends: int | None = None

    def sound(self) -> SoundState:
        """Return a copy of the state, to be worked on in place."""
        balance, refilled_at, carry = self.level
        if self.rest is None:
            sound = SoundState(self.quota, refilled_at, balance, carry)
        else:
            sound = SoundState(*_fields_of(self.rest))
            sound.balance = None if sound.balance is None else balance
            sound.refilled_at, sound.carry = refilled_at, carry
        sound.held, sound.open, sound.sequence = self.held, self.open, self.sequence
        sound.last_place, sound.firm_place, sound.largest_place = self.last_place, self.firm_place, self.largest_place
        sound.version, sound.due_at = self.version, self.due_at
        sound.holds, sound.line = dict(self.holds), list(sound.line)
        return sound

    def state(self) -> BucketState:
        """Return what is stored of it."""
        return self.sound().stored(None)


NO_HOLDS: Final[dict[str, Hold]] = {}
"""One empty dict for all buckets without holds; never written to."""

_WRITTEN: Final = (
    *("level", "held", "open", "sequence", "last_place", "firm_place", "largest_place"),
    *("version", "due_at", "until", "touched", "holds"),
)
"""What a step on the fast path may write of a bucket, beside one of its holds."""
_written: Final = attrgetter(*_WRITTEN)
_fields_of: Final = attrgetter(*(each.name for each in fields(SoundState)))
_unusual_of: Final = attrgetter(
    *(each.name for each in fields(SoundState) if not hasattr(Bucket, each.name) and each.name != "partial")
)
"""The fields of a state that only its `rest` keeps; in memory none is partial."""
_NOTHING_UNUSUAL: Final = _unusual_of(SoundState(Quota(1, 1, 1.0), 0))


def new_bucket(quota: Quota, now: int, *, own: bool) -> Bucket | None:
    """Return a bucket never seen before; None: the rules must begin it."""
    if quota.starts_at is None or not has_places(quota):
        return None
    return bucket_of(SoundState(quota, now, quota.starts_at), now, own=own)


def bucket_of(sound: SoundState, now: int, *, own: bool) -> Bucket:
    """Return a sound state as memory keeps it. The state is the bucket's from then on."""
    until = _within_a_year(sound.refilled_at // DAY_US) if is_usual(sound) else 0
    return Bucket(
        *numbers_of(sound, _shared(flow_in_effect(sound, now))),
        sound.version,
        sound.due_at,
        until if sound.due_at is None else min(until, sound.due_at),
        now,
        own,
        sound.holds or NO_HOLDS,
        None if has_places(sound.quota) and _unusual_of(sound) == _NOTHING_UNUSUAL else sound,
    )


@lru_cache(maxsize=256)
def _shared(flow: Flow) -> Flow:
    """Return one flow for all buckets that have the same."""
    return flow


@lru_cache(maxsize=4)
def _within_a_year(day: int) -> int:
    """Return an instant within a year of every one of that day: one number for all buckets takes less memory."""
    return day * DAY_US + YEAR_US


def serves(bucket: Bucket, callers: Quota, now: int) -> bool:
    """Whether the fast path may serve a caller with these terms now."""
    # A stepped `refilled_at` may lie so far back that a clock that went back doesn't show by it; `touched` shows it.
    if not max(bucket.touched, bucket.level[1]) - TOLERANCE_US <= now < bucket.until:
        return False
    if callers is bucket.quota or callers == bucket.quota:
        return True
    terms_at = None if bucket.rest is None else bucket.rest.terms_at
    return (
        callers.synced == bucket.quota.synced and terms_at is not None and -TOLERANCE_US <= now - terms_at < MINUTE_US
    )


def step(bucket: Bucket, command: Command, now: int) -> Outcome | None:
    """Carry a command out on the fast path; None: the rules must decide, and nothing has changed.

    If a signal's exception strikes in the middle, nothing has changed either.
    """
    before, hold_id = _written(bucket), "" if isinstance(command, Acquire) else getattr(command, "id", "")
    hold = bucket.holds.get(hold_id)
    try:
        return _stepped(bucket, command, now)
    except BaseException:
        _undo(bucket, before, hold_id, hold)
        raise


def _undo(bucket: Bucket, before: tuple[Any, ...], hold_id: str, hold: Hold | None) -> None:
    try:
        for name, value in zip(_WRITTEN, before, strict=True):
            setattr(bucket, name, value)
        if hold is not None:
            bucket.holds[hold_id] = hold
        elif bucket.holds:
            bucket.holds.pop(hold_id, None)
    except BaseException:
        # A second signal struck here: undo again, so that nothing is left half done, and raise one of the two.
        _undo(bucket, before, hold_id, hold)
        raise


def _stepped(bucket: Bucket, command: Command, now: int) -> Outcome | None:
    granted, place_us = False, 0
    if isinstance(command, Acquire):
        wait_us = -1 if command.wait_us is None else command.wait_us
        at = fast_path.acquire(bucket, now, command.tokens, command.keep, wait_us)
        if at is None:
            return None
        granted, place_us = True, at - now
    elif isinstance(command, Reserve):
        if not _reserve(bucket, command, now):
            return None
        granted = True
    elif isinstance(command, Settle):
        if command.reading is not None or command.refused or not _settle(bucket, command.id, command.actual, now):
            return None
    elif isinstance(command, Cancel):
        if not _settle(bucket, command.id, 0, now):
            return None
    elif not isinstance(command, Refund) or not _refund(bucket, command, now):
        return None
    bucket.version += 1
    bucket.touched = now
    kept_back = min(bucket.kept_back, bucket.flow.capacity // KEPT_SHARE) if bucket.kept_back else 0
    outcome = Outcome(now, bucket.level[0], granted)
    outcome.place_us, outcome.held, outcome.open, outcome.kept_back = place_us, bucket.held, bucket.open, kept_back
    return outcome


def _reserve(bucket: Bucket, command: Reserve, now: int) -> bool:
    ends = now + command.hold_for_us
    if command.id in bucket.holds or ends >= LIMIT:
        return False
    if not fast_path.reserve(bucket, now, command.tokens, command.keep):
        return False
    hold = Hold(command.tokens, bucket.sequence, ends, command.hold_for_us, 0, command.label)
    _remember(bucket, command.id, hold, ends)
    return True


def _settle(bucket: Bucket, hold_id: str, actual: int | None, now: int) -> bool:
    hold = bucket.holds.get(hold_id)
    if hold is None or hold.charged or hold.expires_at <= now:
        return False
    cost = hold.tokens if actual is None else actual
    fast_path.settle(bucket, now, hold.tokens, cost, hold.granted_at)
    del bucket.holds[hold_id]
    return True


def _refund(bucket: Bucket, command: Refund, now: int) -> bool:
    if command.id in bucket.holds:
        return False
    if not fast_path.refund(bucket, now, command.tokens, command.own_us or 0):
        return False
    bucket.sequence += 1
    hold = Hold(0, bucket.sequence, now, REFUND_MEMORY_US, bucket.sequence)
    _remember(bucket, command.id, hold, now + REFUND_MEMORY_US)
    return True


def _remember(bucket: Bucket, hold_id: str, hold: Hold, due_at: int) -> None:
    if bucket.holds is NO_HOLDS:
        bucket.holds = {}
    bucket.holds[hold_id] = hold
    if bucket.due_at is None or due_at < bucket.due_at:
        bucket.due_at = due_at
    if due_at < bucket.until:  # noqa: PLR1730 - min() is a call
        bucket.until = due_at
