"""Holds: settled once, given back once, charged once."""

from __future__ import annotations

from dataclasses import replace

from keepa_tokens.rules.commands import Acquire, Cancel, Refund, Reserve, Settle
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MAX_HOLD_US

from .terms import CAPACITY, DEBT, LATEST, SMOOTH, SYNCED


def settle_is_idempotent(
    balance: int, tokens: int, opened: int, expires_at: int, charged: int, actual: int, now: int
) -> bool:
    """The second settle of a hold, in flight or run out, finds nothing and changes nothing.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST
    pre: 0 <= tokens <= DEBT and 0 <= actual <= DEBT and 0 <= opened <= 9 and 0 <= charged <= 9 and expires_at >= 0
    post: _
    """
    held = Hold(tokens, opened, expires_at, 60_000_000, charged)
    stored = BucketState(balance, now, sequence=9, holds={"a": held})
    once, _ = transition(SMOOTH, stored, now, Settle("a", actual))
    twice, again = transition(SMOOTH, once, now, Settle("a", actual))
    return not again.found and once == twice


def settle_charges_the_actual_cost(balance: int, tokens: int, actual: int, now: int) -> bool:
    """Settling a hold in flight takes the actual cost from the balance and sets the rest free.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 0 <= actual <= DEBT
    post: _
    """
    stored = BucketState(balance, now, sequence=1, holds={"a": Hold(tokens, 1, now + 1, 1)})
    state, outcome = transition(SMOOTH, stored, now, Settle("a", actual))
    return state is not None and outcome.found and state.balance == balance - actual and not state.holds


def late_settle_corrects_once(balance: int, tokens: int, hold_for: int, actual: int, now: int) -> bool:
    """Run out and charged, then settled late: the balance is what a settle in time would have left.

    pre: -DEBT < balance <= 0 and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 0 <= actual <= DEBT
    pre: 2 <= hold_for <= MAX_HOLD_US
    post: _
    """
    quota = replace(SMOOTH, refill=0)
    stored = BucketState(balance, now, sequence=1, holds={"a": Hold(tokens, 1, now, hold_for)})
    charged, _ = transition(quota, stored, now, Acquire(0))
    state, outcome = transition(quota, charged, now + 1, Settle("a", actual))
    if charged is None or state is None:
        return False
    return charged.balance == balance - tokens and outcome.found and state.balance == balance - actual


def hold_runs_out_once(balance: int, tokens: int, hold_for: int, now: int, later: int) -> bool:
    """A hold that ran out is charged once, however often the bucket is used afterwards.

    pre: -DEBT < balance <= 0 and 0 <= now <= later <= LATEST and 0 <= tokens <= DEBT and 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    quota = replace(SMOOTH, refill=0)
    stored = BucketState(balance, now, sequence=1, holds={"a": Hold(tokens, 1, now, hold_for)})
    charged, _ = transition(quota, stored, now, Acquire(0))
    state, _ = transition(quota, charged, later, Acquire(0))
    return state is not None and state.balance == balance - tokens and len(state.holds) == (later < now + hold_for)


def cancel_gives_back_what_was_reserved(balance: int, tokens: int, keep: int, hold_for: int, now: int) -> bool:
    """A reserve and its cancel leave the balance untouched; in between the tokens are nobody else's.

    pre: 0 <= balance <= CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= CAPACITY and 0 <= keep <= CAPACITY
    pre: 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    held, granted = transition(SMOOTH, BucketState(balance, now), now, Reserve("a", tokens, hold_for, keep))
    if not granted.granted:
        return balance < tokens + keep
    left = balance - tokens
    _, other = transition(SMOOTH, held, now, Acquire(left + 1)) if left < CAPACITY else (None, granted)
    state, found = transition(SMOOTH, held, now, Cancel("a"))
    return not other.granted and found.found and state is not None and state.balance == balance and not state.holds


def reserve_is_idempotent(balance: int, tokens: int, hold_for: int, now: int) -> bool:
    """A reserve that arrives twice sets its tokens aside once.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= CAPACITY and 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    once, first = transition(SMOOTH, BucketState(balance, now), now, Reserve("a", tokens, hold_for))
    twice, second = transition(SMOOTH, once, now, Reserve("a", tokens, hold_for))
    return first.granted == second.granted and once == twice


def refund_counts_once(balance: int, tokens: int, issued: int, now: int) -> bool:
    """A refund that arrives twice counts once, never above capacity, and not at all if it is old.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 0 <= issued
    post: _
    """
    once, first = transition(SMOOTH, BucketState(balance, now), now, Refund("r", tokens, issued))
    twice, second = transition(SMOOTH, once, now, Refund("r", tokens, issued))
    if once is None or twice is None or second.found:
        return False
    expected = min(CAPACITY, balance + tokens) if first.found else balance
    return once.balance == expected == twice.balance


def settle_without_a_reading_never_mints(
    balance: int, tokens: int, actual: int, opened: int, told: int, now: int
) -> bool:
    """On a synced bucket too a settle without a reading leaves no more than it found, whenever the hold was opened.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 0 <= actual <= DEBT
    pre: 0 <= opened <= 9 and 0 <= told <= 9
    post: _
    """
    stored = BucketState(
        balance, now, sequence=9, reading_at=now, reading_sequence=told, holds={"a": Hold(tokens, opened, now + 1, 1)}
    )
    state, _ = transition(SYNCED, stored, now, Settle("a", actual))
    return state is not None and state.balance == balance - actual
