"""Waiting: the instant that a refused caller is told is the first at which the tokens are there."""

from __future__ import annotations

from keepa_tokens.rules.arithmetic import anchored, instant_smooth, instant_stepped, refill_smooth, refill_stepped
from keepa_tokens.units import NEVER, TOLERANCE_US

from .terms import PERIOD_US, REFILL


def instant_is_the_first(
    need: int, balance: int, at: int, carry: int, capacity: int, rate: int, period: int, *, stepped: bool
) -> bool:
    """At the instant what is needed has flowed in, or steps have brought it; a microsecond earlier they have not.

    pre: need >= 1 and balance + need <= capacity and at >= 0
    pre: rate >= 1 and 0 <= carry < period
    post: _
    """
    instant = instant_stepped(need, at, rate, period) if stepped else instant_smooth(need, at, carry, rate, period)
    if instant >= NEVER:
        return True
    if stepped:
        before, there = (refill_stepped(balance, at, now, capacity, rate, period)[0] for now in (instant - 1, instant))
    else:
        before, there = (
            refill_smooth(balance, at, carry, now, capacity, rate, period)[0] for now in (instant - 1, instant)
        )
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


def wait_is_bounded(need: int, stored: int, now: int, carry: int, rate: int, period: int, *, stepped: bool) -> bool:
    """Whatever instant is stored, the wait ends within the refill time, a period and the tolerance.

    It is NEVER only if that lies beyond the end of time.

    pre: need >= 1 and stored >= 0 and now >= 0
    pre: rate >= 1 and 0 <= carry < period
    post: _
    """
    at = anchored(stored, now, TOLERANCE_US)
    instant = instant_stepped(need, at, rate, period) if stepped else instant_smooth(need, at, carry, rate, period)
    latest = at + (need // rate + 1) * period
    return at <= now + TOLERANCE_US and (instant <= latest or (instant == NEVER and latest >= NEVER))
