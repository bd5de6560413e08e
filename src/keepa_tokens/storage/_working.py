"""A bucket as it is worked on: the fast path's numbers, and what it must know to leave a command to the rules.

It is what memory storage keeps, and what `bucket.lua` makes of a hash: both equal `transition` to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Self

from ..quota import Quota
from ..rules import fast_path
from ..rules.commands import Acquire, Cancel, Command, Outcome, Refund, Reserve, Settle
from ..rules.state import BucketState, Hold
from ..units import LIMIT, MINUTE_US, NEVER, REFUND_MEMORY_US, TOLERANCE_US, YEAR_US

__all__ = ["Working"]


@dataclass(slots=True)
class Working(fast_path.Numbers):
    """A sound bucket that the fast path may serve until `until`. The names are those of `BucketState`.

    touched: when it was last written. own: whether by the storage's own time. rest: the state from which it was made.
    """

    quota: Quota
    version: int
    due_at: int
    until: int
    touched: int
    own: bool
    rest: BucketState | None
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])

    @classmethod
    def begun(cls, quota: Quota, now: int, *, own: bool) -> Self | None:
        """Return a bucket never seen before; None: it is not the fast path's business."""
        balance = quota.starts_at
        if balance is None or quota.synced or quota.recharge_to is not None:
            return None
        return cls(
            balance=balance,
            refilled_at=now,
            carry=0,
            held=0,
            open=0,
            sequence=0,
            last_place=0,
            firm_place=0,
            capacity=quota.capacity,
            refill=quota.refill if quota.stepped else quota.rate,
            period_us=quota.period_us if quota.stepped else quota.rate_period_us,
            stepped=quota.stepped,
            overdraft=quota.overdraft,
            synced=False,
            queues=True,
            kept_back=0,
            quota=quota,
            version=0,
            due_at=NEVER,
            until=now + YEAR_US,
            touched=now,
            own=own,
            rest=None,
        )

    @classmethod
    def of(cls, state: BucketState, now: int, *, own: bool = True) -> Self | None:
        """Return a working copy of a sound state; None: it is not the fast path's business."""
        quota, fast = state.quota, state.fast
        unusual = (state.closed_until, state.paused_until, state.wide_capacity)
        if quota is None or state.balance is None or state.refilled_at is None or unusual != (None, None, None):
            return None
        queues = not quota.synced and quota.recharge_to is None
        if not queues and (fast is None or not now < fast.until <= now + MINUTE_US):
            return None
        capacity, kept_back = quota.capacity, 0
        refill, period_us = (
            (quota.refill, quota.period_us) if quota.stepped else (quota.rate, quota.rate_period_us)
        )
        if not queues and fast is not None:
            capacity, refill, period_us, kept_back = fast.capacity, fast.refill, fast.period_us, fast.kept_back
        due_at = NEVER if state.due_at is None else state.due_at
        until = min(due_at, state.refilled_at + YEAR_US + 1, NEVER if queues or fast is None else fast.until)
        return cls(
            balance=state.balance,
            refilled_at=state.refilled_at,
            carry=state.carry or 0,
            held=state.held or 0,
            open=state.open or 0,
            sequence=state.sequence or 0,
            last_place=state.last_place or 0,
            firm_place=state.firm_place or 0,
            capacity=capacity,
            refill=refill,
            period_us=period_us,
            stepped=quota.stepped,
            overdraft=quota.overdraft,
            synced=quota.synced,
            queues=queues,
            kept_back=kept_back,
            quota=quota,
            version=state.version or 0,
            due_at=due_at,
            until=until,
            touched=now,
            own=own,
            rest=state,
            holds=dict(state.holds),
        )

    def state(self) -> BucketState:
        """Return what is stored of it."""
        least = 0 if self.synced else None
        numbers = {
            "version": self.version,
            "balance": self.balance,
            "refilled_at": self.refilled_at,
            "carry": self.carry or None,
            "held": self.held or least,
            "open": self.open or least,
            "sequence": self.sequence or least,
            "last_place": self.last_place or None,
            "firm_place": self.firm_place or None,
            "due_at": None if self.due_at == NEVER else self.due_at,
        }
        return replace(self.rest or BucketState(quota=self.quota), **numbers, holds=self.holds)

    def serves(self, callers: Quota, now: int) -> bool:
        """Whether the fast path may serve a caller with these terms now."""
        if not self.refilled_at - TOLERANCE_US <= now < self.until:
            return False
        if callers is self.quota or callers == self.quota:
            return True
        terms_at = None if self.rest is None else self.rest.terms_at
        return callers.synced == self.synced and terms_at is not None and now - terms_at < MINUTE_US

    def step(self, command: Command, now: int) -> Outcome | None:
        """Carry the command out; None: it is not the fast path's business, and nothing has changed."""
        granted, place_us = False, 0
        match command:
            case Acquire(tokens, keep, wait_us):
                at = fast_path.acquire(self, now, tokens, keep, -1 if wait_us is None else wait_us)
                if at is None:
                    return None
                granted, place_us = True, at - now
            case Reserve():
                if not self._reserve(command, now):
                    return None
                granted = True
            case Settle(hold_id, actual, None, False):
                if not self._settle(hold_id, actual, now):
                    return None
            case Cancel(hold_id):
                if not self._settle(hold_id, 0, now):
                    return None
            case Refund():
                if not self._refund(command, now):
                    return None
            case _:
                return None
        self.version += 1
        self.touched = now
        return Outcome(
            now_us=now,
            balance=self.balance,
            granted=granted,
            place_us=place_us,
            held=self.held,
            open=self.open,
            kept_back=min(self.kept_back, self.capacity // _KEPT_SHARE),
        )

    def _reserve(self, command: Reserve, now: int) -> bool:
        ends = now + command.hold_for_us
        if command.id in self.holds or ends >= LIMIT:
            return False
        if not fast_path.reserve(self, now, command.tokens, command.keep):
            return False
        hold = Hold(command.tokens, self.sequence, ends, command.hold_for_us, label=command.label)
        self._remember(command.id, hold, ends)
        return True

    def _settle(self, hold_id: str, actual: int | None, now: int) -> bool:
        hold = self.holds.get(hold_id)
        if hold is None or not hold.in_flight or hold.expires_at <= now:
            return False
        fast_path.settle(self, now, hold.tokens, hold.tokens if actual is None else actual, hold.granted_at)
        del self.holds[hold_id]
        return True

    def _refund(self, command: Refund, now: int) -> bool:
        if command.id in self.holds:
            return False
        self.sequence += 1
        hold = Hold(0, self.sequence, now, REFUND_MEMORY_US, self.sequence)
        fast_path.refund(self, now, command.tokens, command.own_us or 0)
        self._remember(command.id, hold, now + REFUND_MEMORY_US)
        return True

    def _remember(self, hold_id: str, hold: Hold, due_at: int) -> None:
        self.holds[hold_id] = hold
        self.due_at = min(self.due_at, due_at)
        self.until = min(self.until, due_at)


_KEPT_SHARE: Final = 3
