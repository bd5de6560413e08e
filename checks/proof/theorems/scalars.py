"""The small formulas: what is required, what is carried over, anchored, phased and saturated. At every rate."""

from __future__ import annotations

from keepa_tokens.rules.arithmetic import anchored, carried_over, phased, required, saturated
from keepa_tokens.units import LIMIT


def grant_stays_within_the_overdraft(available: int, tokens: int, overdraft: int) -> bool:
    """A grant starts above 0 and ends no lower than the overdraft; less would be refused needlessly.

    pre: tokens >= 1 and overdraft >= 0
    post: _
    """
    admitted = available >= required(tokens, overdraft)
    return admitted == (available >= 1 and available - tokens >= -overdraft)


def carried_over_never_mints(carry: int, old_rate: int, old_period: int, rate: int, period: int) -> bool:
    """A remainder in units of another rate stands for no more time than before, and for less than a whole token.

    pre: old_rate >= 0 and rate >= 0 and period >= 1 and 0 <= carry < old_period
    post: _
    """
    kept = carried_over(carry, old_rate, old_period, rate, period)
    if not 0 <= kept < period:
        return False
    return kept == carry if (old_rate, old_period) == (rate, period) else kept * old_rate <= carry * rate


def carried_to_and_fro_never_mints(carry: int, old_rate: int, old_period: int, rate: int, period: int) -> bool:
    """Two quotas that take turns on one key never make a remainder grow.

    pre: old_rate >= 0 and rate >= 0 and period >= 1 and 0 <= carry < old_period
    post: _
    """
    there = carried_over(carry, old_rate, old_period, rate, period)
    return carried_over(there, rate, period, old_rate, old_period) <= carry


def carried_over_loses_less_than_a_microsecond(
    carry: int, old_rate: int, old_period: int, rate: int, period: int
) -> bool:
    """What rounding takes from a remainder is less than a microsecond's refill, unless a whole token caps it.

    pre: old_rate >= 1 and rate >= 1 and period >= 1 and 0 <= carry < old_period
    post: _
    """
    kept = carried_over(carry, old_rate, old_period, rate, period)
    return kept == period - 1 or (kept + rate) * old_rate > carry * rate


def anchored_is_never_far_ahead(stored: int, now: int, tolerance: int) -> bool:
    """A stored instant within the tolerance stays, one further ahead becomes now; doing it again changes nothing.

    pre: tolerance >= 0
    post: _
    """
    kept = anchored(stored, now, tolerance)
    expected = stored if stored <= now + tolerance else now
    return kept == expected and kept <= now + tolerance and anchored(kept, now, tolerance) == kept


def phased_is_within_the_last_period(now: int, period: int, next_refill_in: int) -> bool:
    """The last step lies within the last period, and the next one comes when the server said, if that can be.

    pre: period >= 1 and now >= 0
    post: _
    """
    last = phased(now, period, next_refill_in)
    if not max(0, now - period) <= last <= now:
        return False
    return last + period == now + next_refill_in or not 0 <= next_refill_in <= period <= now + next_refill_in


def saturated_stays_in_range(tokens: int) -> bool:
    """What is in range is unchanged; what is not is moved to the nearest end.

    post: _
    """
    held = saturated(tokens)
    return -LIMIT < held < LIMIT and (held == tokens or abs(held) == LIMIT - 1 < abs(tokens))
