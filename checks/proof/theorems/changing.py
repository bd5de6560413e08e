"""Terms that replace others on one key (rule 13): the time under way goes over, nothing is minted, the wider ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MINUTE_US, TOLERANCE_US, YEAR_US

from .terms import (
    CAPACITY,
    DEBT,
    LATEST,
    PERIOD,
    PERIOD_US,
    RATE,
    RATE_PERIOD_US,
    REFILL,
    SMOOTH,
    STEPPED,
    plain,
    there,
)

FASTER: Final = Quota(CAPACITY, 4 * REFILL, PERIOD)
NONE: Final = Quota(CAPACITY, 0, PERIOD)
NARROW: Final = Quota(10, REFILL, PERIOD)


def smooth_to_stepped_loses_no_time(balance: int, at: int, carry: int, now: int) -> bool:
    """From smooth to stepped terms of one rate the tokens and the time under way go over, but for a microsecond.

    pre: -DEBT < balance < CAPACITY and PERIOD_US <= at <= now <= LATEST and now <= at + YEAR_US
    pre: 0 <= carry < RATE_PERIOD_US
    post: _
    """
    state, outcome = transition(STEPPED, plain(SMOOTH, balance, at, carry), now, Acquire(0))
    if state is None or outcome.terms is None or state.quota != STEPPED:
        return False
    under_way = now - there(state.refilled_at)
    after = there(state.balance) * RATE_PERIOD_US + under_way * RATE
    before = balance * RATE_PERIOD_US + carry + (now - at) * RATE
    if there(state.balance) == CAPACITY:
        return 0 <= under_way < PERIOD_US and after <= before
    return before - RATE < after <= before


def stepped_to_smooth_loses_no_time(balance: int, at: int, now: int) -> bool:
    """From stepped to smooth terms of one rate the part of a step that has passed flows in as tokens, exactly.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST and now <= at + YEAR_US
    post: _
    """
    state, outcome = transition(SMOOTH, plain(STEPPED, balance, at), now, Acquire(0))
    if state is None or outcome.terms is None:
        return False
    after = there(state.balance) * RATE_PERIOD_US + (state.carry or 0)
    before = balance * RATE_PERIOD_US + (now - at) * RATE
    return state.refilled_at == now and (after == before or (state.balance == CAPACITY and after <= before))


def to_another_rate_goes_time_not_tokens(balance: int, at: int, carry: int, now: int) -> bool:
    """From one rate to another no whole token comes or goes at the change: of a remainder its time goes over.

    pre: -DEBT < balance < CAPACITY and PERIOD_US <= at <= now <= LATEST and now <= at + YEAR_US
    pre: 0 <= carry < RATE_PERIOD_US
    post: _
    """
    seen, looked = transition(SMOOTH, plain(SMOOTH, balance, at, carry), now, Acquire(0))
    state, outcome = transition(FASTER, plain(SMOOTH, balance, at, carry), now, Acquire(0))
    if state is None or seen is None or outcome.terms is None:
        return False
    # What is under way stands for less than a token at the old rate, so for less than four and a bit at four times it.
    return there(looked.balance) <= there(state.balance) <= min(CAPACITY, there(looked.balance) + 4)


def a_change_counts_no_time_twice(balance: int, at: int, now: int, later: int) -> bool:
    """From smooth to stepped and back, a minute apart: there is what the time brought, within a microsecond.

    pre: -DEBT < balance < 0 and PERIOD_US <= at <= now <= later <= LATEST and now + MINUTE_US <= later
    pre: later <= at + YEAR_US
    post: _
    """
    state, _ = transition(STEPPED, plain(SMOOTH, balance, at), now, Acquire(0))
    state, outcome = transition(SMOOTH, state, later, Acquire(0))
    if state is None or outcome.terms is None:
        return False
    after = there(state.balance) * RATE_PERIOD_US + (state.carry or 0) + (later - there(state.refilled_at)) * RATE
    before = balance * RATE_PERIOD_US + (later - at) * RATE
    return before - RATE < after <= before or state.balance == CAPACITY


def others_terms_wait_a_minute(balance: int, terms_at: int, now: int) -> bool:
    """Terms that have just replaced others serve everybody for a minute, and no longer, whatever is stored.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 0 <= terms_at
    post: _
    """
    stored = replace(plain(SMOOTH, balance, now), terms_at=terms_at)
    state, outcome = transition(STEPPED, stored, now, Acquire(0))
    if outcome.terms is not None:
        return terms_at + MINUTE_US <= now or terms_at > now + TOLERANCE_US
    _, second = transition(STEPPED, state, now + MINUTE_US + TOLERANCE_US, Acquire(0))
    return second.terms == (SMOOTH, STEPPED)


def the_larger_capacity_bounds_for_a_minute(balance: int, now: int, later: int) -> bool:
    """At a change to a smaller capacity nothing is cut for a minute; then a plain balance is clipped to it.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= later <= LATEST and later <= now + YEAR_US
    post: _
    """
    state, first = transition(NARROW, plain(SMOOTH, balance, now), now, Acquire(0))
    _, second = transition(NARROW, state, later, Acquire(0))
    if first.balance != balance:
        return False
    if later < now + MINUTE_US:
        return balance <= there(second.balance) <= CAPACITY
    return min(balance, NARROW.capacity) <= there(second.balance) <= NARROW.capacity


def a_wider_capacity_ends(wide: int, terms_at: int, now: int) -> bool:
    """Whatever is stored as the wider capacity, a minute and the tolerance later it bounds nothing.

    pre: 0 <= now <= LATEST and 1 <= wide <= DEBT and 0 <= terms_at <= now + TOLERANCE_US
    post: _
    """
    stored = replace(plain(SMOOTH, 0, now), wide_capacity=wide, terms_at=terms_at)
    _, outcome = transition(SMOOTH, stored, now + MINUTE_US + TOLERANCE_US, Acquire(0))
    return there(outcome.balance) <= CAPACITY


def from_refill_0_at_most_a_minute_goes_over(balance: int, age: int, now: int) -> bool:
    """From terms that never refill no more than a minute's refill goes over, and no more than since they began.

    pre: -DEBT < balance < CAPACITY and MINUTE_US <= now <= LATEST and MINUTE_US <= age <= now
    post: _
    """
    stored = replace(plain(NONE, balance, now), terms_at=now - age)
    state, outcome = transition(SMOOTH, stored, now, Acquire(0))
    if state is None or outcome.terms is None:
        return False
    after = there(state.balance) * RATE_PERIOD_US + (state.carry or 0)
    before = balance * RATE_PERIOD_US
    return before <= after <= before + MINUTE_US * RATE
