"""The small formulas: what is required, anchored, phased and saturated. At every rate."""

from __future__ import annotations

from keepa_tokens.rules.arithmetic import anchored, phased, required, saturated
from keepa_tokens.units import LIMIT


def grant_stays_within_the_overdraft(available: int, tokens: int, overdraft: int) -> bool:
    """A grant starts above 0 and ends no lower than the overdraft; less would be refused needlessly.

    pre: tokens >= 1 and overdraft >= 0
    post: _
    """
    admitted = available >= required(tokens, overdraft)
    return admitted == (available >= 1 and available - tokens >= -overdraft)


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
