"""The fast path, with all of its numbers open: what it grants was there, and it does what `transition` does."""

from __future__ import annotations

from typing import Final

from keepa_tokens.rules import fast_path
from keepa_tokens.rules.arithmetic import refill_smooth, refill_stepped
from keepa_tokens.rules.commands import Acquire, Refund, Reserve, Settle
from keepa_tokens.rules.fast_path import Numbers
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, YEAR_US

from .terms import (
    CAPACITY,
    DEBT,
    LATEST,
    OVERDRAWN,
    PERIOD_US,
    RATE,
    RATE_PERIOD_US,
    REFILL,
    SMOOTH,
    STEPPED,
    SYNCED,
    holding,
    numbers,
    plain,
)

FOREVER: Final = LIMIT - 1


def acquire_conserves(balance: int, at: int, carry: int, now: int, tokens: int, keep: int, wait: int) -> bool:
    """What a grant took and left is what was there and flowed in, now or in a place; what is handed over is untouched.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= LATEST and 0 <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: 1 <= tokens <= DEBT and keep >= 0 and wait >= -1
    post: _
    """
    n = numbers(SMOOTH, balance, at, carry)
    go = fast_path.acquire(n, now, tokens, keep, wait)
    if go is None:
        return (n.balance, n.refilled_at, n.carry, n.last_place) == (balance, at, carry, 0)
    left = (n.balance + tokens) * RATE_PERIOD_US + n.carry
    brought = balance * RATE_PERIOD_US + carry + max(0, now - at) * RATE
    if n.balance + tokens < CAPACITY:
        return left == brought and n.refilled_at == max(at, now)
    return n.balance + tokens == CAPACITY and left <= brought


def acquire_stays_within_the_overdraft(balance: int, at: int, now: int, tokens: int, keep: int) -> bool:
    """Who may go now leaves `keep`, and no less than the overdraft; whoever is handed over would not have.

    pre: -DEBT < balance <= CAPACITY and 0 <= at <= LATEST and 0 <= now <= LATEST
    pre: 1 <= tokens <= DEBT and keep >= 0
    post: _
    """
    n = numbers(OVERDRAWN, balance, at)
    there = refill_smooth(balance, at, 0, now, CAPACITY, RATE, RATE_PERIOD_US)[0]
    granted = fast_path.acquire(n, now, tokens, keep, -1) == now
    return granted == (there - keep >= 1 and there - keep - tokens >= -OVERDRAWN.overdraft)


def smooth_place_is_the_first_instant(balance: int, at: int, carry: int, now: int, tokens: int) -> bool:
    """The place that a caller gets is the first instant at which its tokens are there, if nobody is refunded.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: 1 <= tokens <= CAPACITY
    post: _
    """
    n = numbers(SMOOTH, balance, at, carry)
    place = fast_path.acquire(n, now, tokens, 0, FOREVER)
    if place is None:
        return False
    there = refill_smooth(balance, at, carry, place, CAPACITY, RATE, RATE_PERIOD_US)[0]
    before = refill_smooth(balance, at, carry, place - 1, CAPACITY, RATE, RATE_PERIOD_US)[0]
    return there >= tokens and (place == now or (before < tokens and n.last_place == place))


def stepped_place_is_the_first_instant(balance: int, at: int, now: int, tokens: int) -> bool:
    """The same where the refill comes in steps.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST
    pre: 1 <= tokens <= CAPACITY
    post: _
    """
    n = numbers(STEPPED, balance, at)
    place = fast_path.acquire(n, now, tokens, 0, FOREVER)
    if place is None:
        return False
    there = refill_stepped(balance, at, place, CAPACITY, REFILL, PERIOD_US)[0]
    before = refill_stepped(balance, at, place - 1, CAPACITY, REFILL, PERIOD_US)[0]
    return there >= tokens and (place == now or (before < tokens and n.last_place == place))


def places_come_in_order(balance: int, at: int, now: int, first: int, second: int) -> bool:
    """Who asks later never goes earlier, and what both take has flowed in by then.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST
    pre: 1 <= first <= CAPACITY and 1 <= second <= CAPACITY
    post: _
    """
    n = numbers(SMOOTH, balance, at)
    one = fast_path.acquire(n, now, first, 0, FOREVER)
    two = fast_path.acquire(n, now, second, 0, FOREVER)
    if one is None or two is None:
        return False
    return one <= two and (balance - first - second) * RATE_PERIOD_US + (two - at) * RATE >= 0


def a_place_is_within_the_wait(balance: int, at: int, now: int, tokens: int, wait: int) -> bool:
    """No place is further ahead than its caller waits, and none is given beyond it.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= LATEST and 0 <= now <= LATEST and wait >= 0
    pre: 1 <= tokens <= DEBT
    post: _
    """
    n = numbers(SMOOTH, balance, at)
    place = fast_path.acquire(n, now, tokens, 0, wait)
    if place is not None:
        return now <= place <= now + wait
    n = numbers(SMOOTH, balance, at)
    further = fast_path.acquire(n, now, tokens, 0, FOREVER)
    return further is None or further > now + wait


def reserve_takes_or_sets_aside(balance: int, held: int, at: int, now: int, tokens: int, keep: int) -> bool:
    """A plain bucket's balance pays for a hold at once, a synced one's stays; available falls by the same.

    pre: -DEBT < balance < CAPACITY and 0 <= held <= DEBT and 0 <= at <= LATEST and 0 <= now <= LATEST
    pre: 1 <= tokens <= DEBT and keep >= 0
    post: _
    """
    for quota in (STEPPED, SYNCED):
        n = numbers(quota, balance, at, held=held)
        there = n.flowed(now)[0]
        available = there - (held if quota.synced else 0)
        if not fast_path.reserve(n, now, tokens, keep):
            if available >= tokens + keep or (n.balance, n.held) != (balance, held):
                return False
            continue
        if available < tokens + keep or n.held != held + tokens:
            return False
        if n.balance - (n.held if quota.synced else 0) != available - tokens:
            return False
    return True


def settle_never_mints(
    balance: int, at: int, now: int, held: int, cost: int, own: int, last: int, *, synced: bool
) -> bool:
    """A settle leaves what was there and what the hold had not used, up to the capacity; at more, it takes the rest.

    On a synced bucket it takes the cost from the balance, and what was set aside is free.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST and 0 <= own <= now and 0 <= last <= LATEST
    pre: 1 <= held <= DEBT and 0 <= cost <= DEBT and (not synced or own == last == 0)
    post: _
    """
    n = numbers(SYNCED if synced else SMOOTH, balance, at, held=held)
    n.last_place = last
    there = n.flowed(now)[0]
    fast_path.settle(n, now, held, cost, own)
    if (n.held, n.open) != (0, 0):
        return False
    if synced:
        return n.balance == there - cost
    if cost > held:
        return n.balance == there + held - cost
    return there <= n.balance <= min(CAPACITY, there + held - cost)


# --- the same as `transition`


def _agree(n: Numbers, state: BucketState | None) -> bool:
    """Return whether what is stored says what the numbers say."""
    return (
        state is not None
        and (state.balance, state.refilled_at, state.carry or 0) == (n.balance, n.refilled_at, n.carry)
        and (state.held or 0, state.open or 0) == (n.held, n.open)
        and (state.last_place or 0, state.firm_place or 0) == (n.last_place, n.firm_place)
        and (state.largest_place or 0) == n.largest_place
    )


def acquire_is_transitions(balance: int, at: int, carry: int, now: int, tokens: int, wait: int) -> bool:
    """An acquire by the fast path is the rules' to the last digit; what it hands over, the rules refuse.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST and now <= at + YEAR_US and 0 <= carry < RATE_PERIOD_US
    pre: 1 <= tokens <= CAPACITY and wait >= 0
    post: _
    """
    n = numbers(SMOOTH, balance, at, carry)
    go = fast_path.acquire(n, now, tokens, 0, wait)
    state, outcome = transition(SMOOTH, plain(SMOOTH, balance, at, carry), now, Acquire(tokens, wait_us=wait))
    if go is None:
        return not outcome.granted
    return outcome.granted and outcome.place_us == go - now and _agree(n, state)


def reserve_is_transitions(balance: int, at: int, carry: int, now: int, tokens: int, keep: int) -> bool:
    """A reserve by the fast path is the rules' to the last digit; what it hands over, the rules refuse.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST and now <= at + YEAR_US and 0 <= carry < RATE_PERIOD_US
    pre: 1 <= tokens and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    n = numbers(SMOOTH, balance, at, carry)
    done = fast_path.reserve(n, now, tokens, keep)
    state, outcome = transition(SMOOTH, plain(SMOOTH, balance, at, carry), now, Reserve("b", tokens, 60_000_000, keep))
    return outcome.granted == done and (not done or _agree(n, state))


def settle_is_transitions(balance: int, held: int, cost: int, now: int, *, synced: bool) -> bool:
    """A settle without a reading by the fast path is the rules' to the last digit, of a plain hold or a synced one.

    pre: -DEBT < balance < CAPACITY and 1 <= now <= LATEST
    pre: 1 <= held <= DEBT and 0 <= cost <= DEBT
    post: _
    """
    quota = SYNCED if synced else SMOOTH
    n = numbers(quota, balance, now, held=held)
    fast_path.settle(n, now, held, cost, now - 1)
    state, _ = transition(quota, holding(quota, balance, now, Hold(held, 1, now + 1, 2)), now, Settle("a", cost))
    return _agree(n, state)


def refund_is_transitions(balance: int, tokens: int, own: int, now: int) -> bool:
    """A refund by the fast path is the rules' to the last digit.

    pre: -DEBT < balance < CAPACITY and 0 <= now <= LATEST
    pre: 1 <= tokens <= DEBT and 0 <= own <= LATEST
    post: _
    """
    n = numbers(SMOOTH, balance, now)
    fast_path.refund(n, now, tokens, own)
    state, _ = transition(SMOOTH, plain(SMOOTH, balance, now), now, Refund("r", tokens, own))
    return _agree(n, state)
