"""Waiting: the instant that a refused caller is told is the first at which the tokens are there."""

from __future__ import annotations

from keepa_tokens.rules.arithmetic import anchored, instant_smooth, instant_stepped, refill_smooth, refill_stepped
from keepa_tokens.units import NEVER, TOLERANCE_US

from .terms import PERIOD_US, REFILL


def smooth_instant_is_the_first(
    need: int, balance: int, at: int, carry: int, capacity: int, rate: int, period: int
) -> bool:
    """At the instant what is needed has flowed in; a microsecond earlier it has not.

    pre: need >= 1 and balance + need <= capacity and at >= 0
    pre: rate >= 1 and 0 <= carry < period
    post: _
    """
    instant = instant_smooth(need, at, carry, rate, period)
    if instant >= NEVER:
        return True
    before = refill_smooth(balance, at, carry, instant - 1, capacity, rate, period)[0]
    there = refill_smooth(balance, at, carry, instant, capacity, rate, period)[0]
    return before < balance + need <= there


def stepped_instant_is_the_first(need: int, balance: int, at: int, capacity: int, refill: int, period: int) -> bool:
    """At the instant steps have brought what is needed; a microsecond earlier they have not.

    pre: need >= 1 and balance + need <= capacity and at >= 0
    pre: refill >= 1 and period >= 1
    post: _
    """
    instant = instant_stepped(need, at, refill, period)
    if instant >= NEVER:
        return True
    before = refill_stepped(balance, at, instant - 1, capacity, refill, period)[0]
    there = refill_stepped(balance, at, instant, capacity, refill, period)[0]
    return before < balance + need <= there


def smooth_looking_does_not_move_it(
    need: int, balance: int, at: int, carry: int, capacity: int, now: int, rate: int, period: int
) -> bool:
    """Whoever asks before the instant is told the same one, up to a period before the end of time.

    pre: need >= 1 and balance + need <= capacity and 0 <= at <= now
    pre: rate >= 1 and 0 <= carry < period
    post: _
    """
    instant = instant_smooth(need, at, carry, rate, period)
    if instant >= NEVER - period or now >= instant:
        return True
    after, moved, rest = refill_smooth(balance, at, carry, now, capacity, rate, period)
    return instant_smooth(balance + need - after, moved, rest, rate, period) == instant


def stepped_looking_does_not_move_it_at_plans(need: int, balance: int, at: int, capacity: int, now: int) -> bool:
    """Whoever asks before the instant is told the same one.

    pre: need >= 1 and balance + need <= capacity and 0 <= at <= now
    post: _
    """
    instant = instant_stepped(need, at, REFILL, PERIOD_US)
    if instant >= NEVER or now >= instant:
        return True
    after, moved = refill_stepped(balance, at, now, capacity, REFILL, PERIOD_US)
    return instant_stepped(balance + need - after, moved, REFILL, PERIOD_US) == instant


def smooth_wait_is_bounded(need: int, stored: int, now: int, carry: int, rate: int, period: int) -> bool:
    """Whatever instant is stored, the wait ends within the refill time, a period and the tolerance.

    pre: need >= 1 and stored >= 0 and now >= 0
    pre: rate >= 1 and 0 <= carry < period
    post: _
    """
    instant = instant_smooth(need, anchored(stored, now, TOLERANCE_US), carry, rate, period)
    latest = now + TOLERANCE_US + (need // rate + 1) * period
    return instant <= latest or (instant == NEVER and latest >= NEVER)


def stepped_wait_is_bounded(need: int, stored: int, now: int, refill: int, period: int) -> bool:
    """Whatever instant is stored, the wait ends within the refill time, a period and the tolerance.

    pre: need >= 1 and stored >= 0 and now >= 0
    pre: refill >= 1 and period >= 1
    post: _
    """
    instant = instant_stepped(need, anchored(stored, now, TOLERANCE_US), refill, period)
    latest = now + TOLERANCE_US + (need // refill + 1) * period
    return instant <= latest or (instant == NEVER and latest >= NEVER)


def never_is_said_only_at_the_end_of_time(need: int, at: int, carry: int, rate: int, period: int) -> bool:
    """At a refill above 0 an instant is NEVER only if it lies within a period of the end of time, or beyond.

    pre: need >= 1 and at >= 0
    pre: rate >= 1 and 0 <= carry < period
    post: _
    """
    latest = at + (need // rate + 1) * period
    return latest >= NEVER or (instant_smooth(need, at, carry, rate, period) < NEVER)
