"""Refill: what flows in is exactly what the time brings. At every rate unless the name says otherwise."""

from __future__ import annotations

from keepa_tokens.rules.arithmetic import refill_smooth, refill_stepped
from keepa_tokens.units import LIMIT

from .terms import PERIOD_US, REFILL


def smooth_conserves(balance: int, at: int, carry: int, now: int, capacity: int, rate: int, period: int) -> bool:
    """Below capacity, new tokens and the remainder are the elapsed time at the rate and the old remainder, exactly.

    What fills the bucket is no more than that. A balance never falls; one at capacity or above stays as it is; a clock
    that stands still or steps back moves nothing.

    pre: rate >= 0 and 0 <= carry < period
    post: _
    """
    after, moved, rest = refill_smooth(balance, at, carry, now, capacity, rate, period)
    if now <= at:
        return (after, moved, rest) == (balance, at, carry)
    if balance >= capacity:
        return (after, moved) == (balance, now) and 0 <= rest < period
    if rate == 0:
        return (after, moved, rest) == (balance, now, 0)
    gained, brought = (after - balance) * period + rest, (now - at) * rate + carry
    if after < capacity:
        return moved == now and 0 <= rest < period and gained == brought
    return (after, moved, rest) == (capacity, now, 0) and gained <= brought


def smooth_path_does_not_matter(
    balance: int, at: int, carry: int, between: int, now: int, capacity: int, rate: int, period: int
) -> bool:
    """Refilling in two steps gives the digits of one.

    pre: at <= between <= now
    pre: rate >= 0 and 0 <= carry < period
    post: _
    """
    two = refill_smooth(
        *refill_smooth(balance, at, carry, between, capacity, rate, period), now, capacity, rate, period
    )
    return two == refill_smooth(balance, at, carry, now, capacity, rate, period)


def smooth_stays_exact_in_lua(
    balance: int, at: int, carry: int, now: int, capacity: int, rate: int, period: int
) -> bool:
    """Every number on the way stays below 2**53, where doubles are exact, but for a gain beyond all room.

    pre: rate >= 1 and 0 <= carry < period and rate * (period + 1) < LIMIT
    pre: 0 <= at < now <= LIMIT and -LIMIT < balance < capacity < LIMIT
    post: _
    """
    room = capacity - balance
    periods, rest = divmod(now - at, period)
    if periods >= room // rate + 1:
        return room < 2 * LIMIT
    earned = rest * rate + carry
    gain = periods * rate + earned // period
    return earned < 2 * LIMIT and periods * rate < 2 * LIMIT and (gain < 2 * LIMIT or gain > room)


def stepped_conserves(balance: int, at: int, now: int, capacity: int, refill: int, period: int) -> bool:
    """Below capacity, each whole period brought `refill` tokens and moved the phase by itself, and none is left over.

    What fills the bucket is no more than that. A balance never falls; one above capacity stays as it is; a clock that
    stands still or steps back moves nothing.

    pre: refill >= 0 and period >= 1
    post: _
    """
    after, moved = refill_stepped(balance, at, now, capacity, refill, period)
    if now <= at:
        return (after, moved) == (balance, at)
    if balance >= capacity:
        return after == balance and at <= moved <= now
    if refill == 0:
        return (after, moved) == (balance, now)
    if not moved <= now < moved + period:
        return False
    gained, brought = (after - balance) * period, (moved - at) * refill
    return gained == brought if after < capacity else after == capacity and gained <= brought


def stepped_path_does_not_matter_at_plans(balance: int, at: int, between: int, now: int, capacity: int) -> bool:
    """Refilling in two steps gives the digits of one, and the same phase.

    pre: at <= between <= now
    post: _
    """
    two = refill_stepped(
        *refill_stepped(balance, at, between, capacity, REFILL, PERIOD_US), now, capacity, REFILL, PERIOD_US
    )
    return two == refill_stepped(balance, at, now, capacity, REFILL, PERIOD_US)
