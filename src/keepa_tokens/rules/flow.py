"""The refill in effect: the quota's, or what the server last reported, smooth or stepped."""

from __future__ import annotations

from dataclasses import dataclass

from ..quota import Quota
from ..units import MINUTE_US
from .arithmetic import instant_smooth, instant_stepped, refill_smooth, refill_stepped, saturated
from .state import SoundState


@dataclass(slots=True, unsafe_hash=True)  # not frozen, which is slower to make: each step of the rules makes one
class Flow:
    """`refill` tokens per `period_us`, up to `capacity`; smooth rates are in reduced numbers."""

    capacity: int
    refill: int
    period_us: int
    stepped: bool

    def refilled(self, balance: int, refilled_at: int, carry: int, now: int) -> tuple[int, int, int]:
        """Return balance, refilled_at and carry at `now`."""
        if self.stepped:
            balance, refilled_at = refill_stepped(balance, refilled_at, now, self.capacity, self.refill, self.period_us)
            return balance, refilled_at, 0
        return refill_smooth(balance, refilled_at, carry, now, self.capacity, self.refill, self.period_us)

    def brought(self, level: tuple[int, int, int], start: int, end: int) -> int:
        """Return the tokens that flow in from `start` to `end`, capacity aside. level: as it was before both."""
        _, refilled_at, carry = level
        if self.stepped:
            return ((end - refilled_at) // self.period_us - (start - refilled_at) // self.period_us) * self.refill
        parts = [((at - refilled_at) * self.refill + carry) // self.period_us for at in (start, end)]
        return parts[1] - parts[0]

    def instant(self, need: int, refilled_at: int, carry: int) -> int:
        """Return the first instant at which `need` more tokens have come, capacity aside; NEVER if none."""
        if self.stepped:
            return instant_stepped(need, refilled_at, self.refill, self.period_us)
        return instant_smooth(need, refilled_at, carry, self.refill, self.period_us)


def has_places(quota: Quota) -> bool:
    """Whether a bucket gives places to callers that wait: it keeps its own books, and never closes."""
    return not quota.synced and quota.recharge_to is None


def furthest_place(flow: Flow, capacity: int, balance: int, now: int) -> int:
    """Return the latest instant that a place on a plain bucket of this flow can rightly have."""
    return flow.instant(saturated(capacity - min(0, balance)), now, 0) + flow.period_us


def flow_in_effect(state: SoundState, now: int) -> Flow:
    """Return the flow of the bucket's terms, with what the server reported to a synced bucket.

    For a minute after a change of terms the larger of the two capacities bounds, if the server reported none.
    """
    quota = state.quota
    refill, period_us = (quota.refill, quota.period_us) if quota.stepped else (quota.rate, quota.rate_period_us)
    capacity = quota.capacity
    if quota.synced:
        if state.reported_refill is not None and state.reported_period_us is not None:
            refill, period_us = state.reported_refill, state.reported_period_us
        if state.stretched_us is not None and quota.stepped:
            period_us = max(period_us, state.stretched_us)
        if state.reported_capacity is not None:
            # The server's capacity holds, whatever the terms.
            return Flow(state.reported_capacity, refill, period_us, quota.stepped)
    if state.wide_capacity is not None and now < clipped_at(state):
        capacity = max(capacity, state.wide_capacity)
    return Flow(capacity, refill, period_us, quota.stepped)


def clipped_at(state: SoundState) -> int:
    """Return the instant from which the larger capacity of before the change of terms no longer bounds (rule 13)."""
    return (state.terms_at or 0) + MINUTE_US
