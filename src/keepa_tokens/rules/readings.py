"""What a reading brings: its order among others (rule 7), and what it shows of somebody else's spending (rule 10)."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from ..units import LIMIT, LONGEST_STRETCH_US, MICROSECONDS, MINUTE_US, NEAR_US, TOLERANCE_US
from .arithmetic import KEPT_SHARE, halved, phased, saturated
from .flow import Flow, flow_in_effect
from .reading import Reading
from .state import SoundState

HALF_LIFE_US: Final = 3_600 * MICROSECONDS
"""In each such time without a gap what is kept back halves."""


class Order(Enum):
    """Whether a reading is newer than the last one, by the server's time; NEAR and JUMPED: nobody can tell."""

    NEWER = auto()
    NEAR = auto()
    OLDER = auto()
    JUMPED = auto()


def order_of(s: SoundState, reading: Reading, since: int, now: int) -> Order | None:
    """Return whether a reading is newer than the last one by the server's time; None: one of the two has none.

    since: the earliest instant at which it can have been told, which is when its call was opened.
    """
    told = reading.server_time_us
    if told is None or s.server_time is None:
        return None
    if not since - MINUTE_US <= s.server_time_at + told - s.server_time <= now + MINUTE_US:
        return Order.JUMPED
    if told > s.server_time:
        return Order.NEWER
    return Order.NEAR if told >= s.server_time - NEAR_US else Order.OLDER


def lowered(s: SoundState, reading: Reading, order: Order | None, now: int) -> tuple[bool, int | None]:
    """Take the lower of projection and reading where nothing tells which of two readings is newer.

    Return whether anything changed, and the drift where the reading was taken.
    """
    if order not in {Order.NEAR, Order.JUMPED} or s.balance is None:
        return False, None
    changed = order is Order.JUMPED
    if order is Order.JUMPED:
        s.server_time, s.server_time_at = reading.server_time_us, now
    if s.probe_until is not None and (s.probe_until > now or s.probe_failures):
        # The server did answer, so this probe hasn't failed. But the last reading stays as old as it is, so the next
        # probe waits as after a failure.
        s.probe_until, s.probe_failures, changed = min(s.probe_until, now), 0, True
    if reading.balance >= s.balance:
        return changed, None
    s.drift = saturated(reading.balance - s.balance)
    s.balance, s.carry = reading.balance, 0
    # From here on only a call that is opened after this reading counts as newer.
    s.sequence += 1
    s.reading_sequence = s.sequence
    return True, s.drift


def adopt(s: SoundState, before: Flow, reading: Reading, projected: int | None, since: int, now: int) -> Flow:
    """Take a fresh reading, told at `since` at the earliest; return the flow that it brings.

    projected: what the balance would be without it; None: unknown.
    """
    shows_others = s.reading_at is not None and s.open == 0
    s.drift = None if projected is None else saturated(reading.balance - projected)
    s.balance = reading.balance
    s.sequence += 1
    s.reading_sequence = s.sequence
    s.reading_at = now
    told, told_at = reading.server_time_us, min(since, now)
    if told is not None:
        by_last = now if s.server_time is None else s.server_time_at + told - s.server_time
        told_at = max(told_at, min(now, by_last))
        s.server_time, s.server_time_at = told, told_at
    elif s.server_time is not None:
        # It was told by now: what the server said before that is no newer.
        passed = max(0, now - s.server_time_at)
        s.server_time, s.server_time_at = saturated(s.server_time + passed), s.server_time_at + passed
    s.probe_until, s.probe_failures, s.probe_returned = None, 0, 0
    period_us = s.quota.period_us if reading.period_us is None else reading.period_us
    flow = _flow_of(s, reading, period_us, now)
    gap = -s.drift if s.drift is not None and shows_others and flow == before else 0
    _keep_back(s, flow, gap, told_at, now)
    if flow.stepped and reading.next_refill_in_us is not None:
        # Counted by the period of the next steps: with a longer one the phase would lie too far back, and some steps
        # would come at once.
        step_us = s.stretched_us or min(period_us, flow.period_us)
        s.refilled_at = phased(now, step_us, reading.next_refill_in_us)
    else:
        skip_until_reading(s, flow)
    s.carry = 0
    return flow


def skip_until_reading(s: SoundState, flow: Flow) -> None:
    """Skip the refill up to the last reading, which has it in its balance; stepped, the phase stays."""
    past_us = max(0, (s.reading_at or 0) - s.refilled_at)
    s.refilled_at += past_us // flow.period_us * flow.period_us if flow.stepped else past_us


def _flow_of(s: SoundState, reading: Reading, period_us: int, now: int) -> Flow:
    if reading.capacity is not None:
        s.reported_capacity = reading.capacity
    refill, every_us = reading.refill_tokens, period_us * reading.refill_periods
    if refill is not None and refill * (every_us + 1) < LIMIT:
        s.reported_refill, s.reported_period_us = refill, every_us
    s.stretched_us = None
    flow = flow_in_effect(s, now)
    stretched = min(reading.next_refill_in_us or 0, LONGEST_STRETCH_US)
    if flow.stepped and stretched > flow.period_us and flow.refill * (stretched + 1) < LIMIT:
        s.stretched_us = stretched
        return flow_in_effect(s, now)
    return flow


def kept_back(s: SoundState, flow: Flow) -> int:
    """Return the tokens that are left to others, who were seen to spend."""
    return min(s.kept_back, flow.capacity // KEPT_SHARE)


def _keep_back(s: SoundState, flow: Flow, gap: int, told_at: int, now: int) -> None:
    """Keep back the `gap` by which a fresh reading lay below the projection; 0 if it says nothing of others."""
    since = now if s.kept_back_at is None else s.kept_back_at
    kept, since = halved(kept_back(s, flow), since, now, HALF_LIFE_US)
    # The projection may have steps, or the refill of the tolerance, that came while the answer was under way.
    under_way = flow.refill * ((now - told_at + TOLERANCE_US) // flow.period_us + 1)
    if gap > under_way:
        kept, since = min(kept + gap, flow.capacity // KEPT_SHARE), now
    s.kept_back, s.kept_back_at = kept, since if kept else None
