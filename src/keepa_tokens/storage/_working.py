"""A bucket as it is worked on in memory: the numbers of the fast path, and what tells when the rules must decide."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, TypeAlias

from ..quota import Quota
from ..rules import fast_path
from ..rules.arithmetic import KEPT_SHARE
from ..rules.commands import Acquire, Cancel, Command, Outcome, Refund, Reserve, Settle
from ..rules.state import BucketState, FastTerms, Hold, SoundState
from ..units import DAY_US, LIMIT, MINUTE_US, REFUND_MEMORY_US, TOLERANCE_US, YEAR_US

__all__ = ["Bucket", "Compact", "Whole", "begun", "kept", "serves", "step"]


@dataclass(slots=True)
class Compact(fast_path.Numbers):
    """A plain bucket of which the fast path's numbers tell all. The names are those of `SoundState`.

    until: the fast path may serve it up to then. touched: when it was last written. own: whether by the storage's own
    time. ends: when to look whether it may be forgotten. A bucket that never had a hold shares `NO_HOLDS`.
    """

    quota: Quota
    version: int
    due_at: int | None
    until: int
    touched: int
    own: bool
    holds: dict[str, Hold]
    ends: int | None = None

    @property
    def terms_at(self) -> None:
        """When its terms replaced others: never."""

    def sound(self) -> SoundState:
        """Return a copy of the state, to be worked on in place."""
        return SoundState(
            quota=self.quota,
            refilled_at=self.refilled_at,
            balance=self.balance,
            carry=self.carry,
            version=self.version,
            sequence=self.sequence,
            held=self.held,
            open=self.open,
            due_at=self.due_at,
            last_place=self.last_place,
            firm_place=self.firm_place,
            largest_place=self.largest_place,
            holds=dict(self.holds),
        )

    def state(self) -> BucketState:
        """Return what is stored of it."""
        return self.sound().stored(None)


@dataclass(slots=True)
class Whole(SoundState):
    """Any other bucket: its whole state, and beside it the fast path's numbers in effect."""

    fast: FastTerms | None = None
    capacity: int = 0
    refill: int = 0
    period_us: int = 1
    stepped: bool = False
    overdraft: int = 0
    synced: bool = False
    queues: bool = False
    until: int = 0
    touched: int = 0
    own: bool = True
    ends: int | None = None

    flowed = fast_path.Numbers.flowed

    def sound(self) -> SoundState:
        """Return a copy of the state, to be worked on in place."""
        sound = SoundState(*_state_of(self))
        sound.holds, sound.line = dict(sound.holds), list(sound.line)
        return sound

    def state(self) -> BucketState:
        """Return what is stored of it."""
        return self.sound().stored(self.fast)


Bucket: TypeAlias = Compact | Whole

NO_HOLDS: Final[dict[str, Hold]] = {}
"""Nothing, once for all; never written to."""

_CHANGED: Final = (
    *("balance", "refilled_at", "carry", "held", "open", "sequence", "last_place", "firm_place", "largest_place"),
    *("version", "due_at", "until", "touched", "holds"),
)
"""What a step on the fast path may change of a bucket, beside one of its holds."""
_changed: Final = attrgetter(*_CHANGED)
_NAMES: Final = tuple(each.name for each in fields(SoundState))
_state_of: Final = attrgetter(*_NAMES)
_beside: Final = attrgetter(
    *(
        *("closed_until", "paused_until", "terms_at", "wide_capacity", "reading_at", "reading_sequence"),
        *("server_time", "server_time_at", "drift", "kept_back", "kept_back_at", "probe_until", "probe_failures"),
        *("probe_returned", "reported_refill", "reported_period_us", "reported_capacity", "stretched_us"),
    )
)
"""What a `Compact` bucket has nothing of."""
_NOTHING: Final = _beside(SoundState(Quota(1, 1, 1.0), 0))


def begun(quota: Quota, now: int, *, own: bool) -> Compact | None:
    """Return a bucket never seen before; None: it is not the fast path's business."""
    if quota.starts_at is None or quota.synced or quota.recharge_to is not None:
        return None
    bucket = kept(SoundState(quota, now, quota.starts_at), None, now, own=own)
    return bucket if isinstance(bucket, Compact) else None


def kept(sound: SoundState, fast: FastTerms | None, now: int, *, own: bool) -> Bucket:
    """Return what is kept of a sound state, which is handed over."""
    quota = sound.quota
    refill, period_us = (quota.refill, quota.period_us) if quota.stepped else (quota.rate, quota.rate_period_us)
    queues = not quota.synced and quota.recharge_to is None
    if queues and sound.balance is not None and not sound.line and _beside(sound) == _NOTHING:
        return Compact(
            balance=sound.balance,
            refilled_at=sound.refilled_at,
            carry=sound.carry,
            held=sound.held,
            open=sound.open,
            sequence=sound.sequence,
            last_place=sound.last_place,
            firm_place=sound.firm_place,
            largest_place=sound.largest_place,
            capacity=quota.capacity,
            refill=refill,
            period_us=period_us,
            stepped=quota.stepped,
            overdraft=quota.overdraft,
            synced=False,
            queues=True,
            kept_back=0,
            quota=quota,
            version=sound.version,
            due_at=sound.due_at,
            until=_until(sound, None),
            touched=now,
            own=own,
            holds=sound.holds or NO_HOLDS,
        )
    whole = Whole(*_state_of(sound))
    whole.fast, whole.until, whole.touched, whole.own = fast, _until(sound, fast), now, own
    whole.overdraft, whole.stepped, whole.synced, whole.queues = quota.overdraft, quota.stepped, quota.synced, queues
    whole.capacity, whole.refill, whole.period_us = quota.capacity, refill, period_us
    if fast is not None:
        whole.capacity, whole.refill, whole.period_us = fast.capacity, fast.refill, fast.period_us
    return whole


def _until(sound: SoundState, fast: FastTerms | None) -> int:
    """Return up to when the fast path may serve a bucket; 0: not at all."""
    if (
        sound.balance is None
        or sound.line
        or not (sound.closed_until is None and sound.paused_until is None and sound.wide_capacity is None)
    ):
        return 0
    until = _within_a_year(sound.refilled_at // DAY_US) if fast is None else fast.until
    return until if sound.due_at is None else min(until, sound.due_at)


@lru_cache(maxsize=4)
def _within_a_year(day: int) -> int:
    """Return an instant within a year of every one of that day: one number for all buckets takes less memory."""
    return day * DAY_US + YEAR_US


def serves(bucket: Bucket, callers: Quota, now: int) -> bool:
    """Whether the fast path may serve a caller with these terms now."""
    if not bucket.refilled_at - TOLERANCE_US <= now < bucket.until:
        return False
    if callers is bucket.quota or callers == bucket.quota:
        return True
    terms_at = bucket.terms_at
    return callers.synced == bucket.synced and terms_at is not None and now - terms_at < MINUTE_US


def step(bucket: Bucket, command: Command, now: int) -> Outcome | None:
    """Carry a command out on the fast path; None: it is not its business, and nothing has changed.

    Nothing has changed either where a signal's exception strikes in the middle.
    """
    before, hold_id = _changed(bucket), "" if isinstance(command, Acquire) else getattr(command, "id", "")
    hold = bucket.holds.get(hold_id)
    try:
        return _stepped(bucket, command, now)
    except BaseException:
        _undo(bucket, before, hold_id, hold)
        raise


def _undo(bucket: Bucket, before: tuple[Any, ...], hold_id: str, hold: Hold | None) -> None:
    try:
        for name, value in zip(_CHANGED, before, strict=True):
            setattr(bucket, name, value)
        if hold is not None:
            bucket.holds[hold_id] = hold
        elif bucket.holds:
            bucket.holds.pop(hold_id, None)
    except BaseException:
        # Struck once more: one of them is raised, and nothing is left half done.
        _undo(bucket, before, hold_id, hold)
        raise


def _stepped(bucket: Bucket, command: Command, now: int) -> Outcome | None:
    served: Any = bucket  # either kind has the numbers, and one that is served a balance
    granted, place_us = False, 0
    if isinstance(command, Acquire):
        wait_us = -1 if command.wait_us is None else command.wait_us
        at = fast_path.acquire(served, now, command.tokens, command.keep, wait_us)
        if at is None:
            return None
        granted, place_us = True, at - now
    elif isinstance(command, Reserve):
        if not _reserve(served, command, now):
            return None
        granted = True
    elif isinstance(command, Settle):
        if command.reading is not None or command.refused or not _settle(served, command.id, command.actual, now):
            return None
    elif isinstance(command, Cancel):
        if not _settle(served, command.id, 0, now):
            return None
    elif not isinstance(command, Refund) or not _refund(served, command, now):
        return None
    bucket.version += 1
    bucket.touched = now
    kept_back = min(bucket.kept_back, bucket.capacity // KEPT_SHARE) if bucket.kept_back else 0
    outcome = Outcome(now, bucket.balance, granted)
    outcome.place_us, outcome.held, outcome.open, outcome.kept_back = place_us, bucket.held, bucket.open, kept_back
    return outcome


def _reserve(bucket: Compact, command: Reserve, now: int) -> bool:
    ends = now + command.hold_for_us
    if command.id in bucket.holds or ends >= LIMIT:
        return False
    if not fast_path.reserve(bucket, now, command.tokens, command.keep):
        return False
    hold = Hold(command.tokens, bucket.sequence, ends, command.hold_for_us, 0, command.label)
    _remember(bucket, command.id, hold, ends)
    return True


def _settle(bucket: Compact, hold_id: str, actual: int | None, now: int) -> bool:
    hold = bucket.holds.get(hold_id)
    if hold is None or hold.charged or hold.expires_at <= now:
        return False
    cost = hold.tokens if actual is None else actual
    fast_path.settle(bucket, now, hold.tokens, cost, hold.granted_at)
    del bucket.holds[hold_id]
    return True


def _refund(bucket: Compact, command: Refund, now: int) -> bool:
    if command.id in bucket.holds:
        return False
    bucket.sequence += 1
    hold = Hold(0, bucket.sequence, now, REFUND_MEMORY_US, bucket.sequence)
    fast_path.refund(bucket, now, command.tokens, command.own_us or 0)
    _remember(bucket, command.id, hold, now + REFUND_MEMORY_US)
    return True


def _remember(bucket: Compact, hold_id: str, hold: Hold, due_at: int) -> None:
    if bucket.holds is NO_HOLDS:
        bucket.holds = {}
    bucket.holds[hold_id] = hold
    if bucket.due_at is None or due_at < bucket.due_at:
        bucket.due_at = due_at
    bucket.until = min(bucket.until, due_at)
