"""Holds: settled once, given back once, and charged once or, on a plain bucket, forgotten."""

from __future__ import annotations

from dataclasses import replace

from keepa_tokens.rules.commands import Acquire, Cancel, Refund, Reserve, Settle
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MAX_HOLD_US, MINUTE_US

from .terms import CAPACITY, DEBT, LATEST, SMOOTH, SYNCED, holding, plain, there


def settle_is_idempotent(
    balance: int, tokens: int, left: int, charged: int, actual: int, now: int, *, synced: bool
) -> bool:
    """The second settle of a hold, in flight or run out, finds nothing and changes nothing, plain or synced.

    pre: -DEBT < balance <= CAPACITY and MAX_HOLD_US <= now <= LATEST and -MAX_HOLD_US <= left <= MAX_HOLD_US
    pre: 0 <= tokens <= DEBT and 0 <= actual <= DEBT and 0 <= charged <= 9 and (left <= 0 if synced else charged == 0)
    post: _
    """
    quota = SYNCED if synced else SMOOTH
    stored = holding(quota, balance, now, Hold(tokens, 1, now + left, MAX_HOLD_US, charged))
    once, _ = transition(quota, stored, now, Settle("a", actual))
    twice, again = transition(quota, once, now, Settle("a", actual))
    return not again.found and once == twice


def plain_hold_is_taken_at_once(balance: int, tokens: int, keep: int, hold_for: int, now: int) -> bool:
    """A plain reserve takes its tokens like an acquire, if they are there beside `keep`; available is the balance.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= CAPACITY and 0 <= keep <= CAPACITY
    pre: 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    state, outcome = transition(SMOOTH, plain(SMOOTH, balance, now), now, Reserve("a", tokens, hold_for, keep))
    if not outcome.granted:
        return balance < tokens + keep and outcome.balance == balance
    return (
        state is not None
        and balance >= tokens + keep
        and state.balance == balance - tokens
        and (state.held, state.open) == (tokens, 1)
    )


def settle_takes_the_cost(
    balance: int, tokens: int, actual: int, opened: int, told: int, now: int, *, synced: bool
) -> bool:
    """Settling a synced hold takes the actual cost and sets the rest free, whenever the hold was opened.

    With nobody waiting, a plain settle at less gives back the difference, up to capacity; at more it takes it.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 0 <= actual <= DEBT
    pre: (0 <= opened <= 9 and 1 <= told <= 9) if synced else opened == told == 1
    post: _
    """
    quota = SYNCED if synced else SMOOTH
    stored = holding(quota, balance, now, Hold(tokens, opened, now + 1, 1), told=told)
    state, outcome = transition(quota, stored, now, Settle("a", actual))
    if state is None or not outcome.found or state.holds or state.held or state.open:
        return False
    return state.balance == (balance - actual if synced else min(CAPACITY, balance + tokens - actual))


def plain_hold_runs_out_forgotten(balance: int, tokens: int, hold_for: int, now: int) -> bool:
    """A plain hold that nobody settles is forgotten when it runs out, and costs nothing then.

    pre: -DEBT < balance <= 0 and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    quota = replace(SMOOTH, refill=0)
    stored = holding(quota, balance, now, Hold(tokens, 1, now, hold_for))
    state, outcome = transition(quota, stored, now, Acquire(0))
    return state is not None and (state.balance, outcome.held, outcome.open) == (balance, 0, 0) and not state.holds


def late_settle_corrects_once(balance: int, tokens: int, hold_for: int, actual: int, now: int) -> bool:
    """Run out and charged, then settled late: the balance is what a settle in time would have left.

    pre: -DEBT < balance <= 0 and 0 <= now <= LATEST and 0 <= tokens <= DEBT and 0 <= actual <= DEBT
    pre: 2 <= hold_for <= MAX_HOLD_US
    post: _
    """
    quota = replace(SYNCED, refill=0)
    charged, _ = transition(quota, holding(quota, balance, now, Hold(tokens, 1, now, hold_for)), now, Acquire(0))
    state, outcome = transition(quota, charged, now + 1, Settle("a", actual))
    if charged is None or state is None:
        return False
    return charged.balance == balance - tokens and outcome.found and state.balance == balance - actual


def hold_runs_out_once(balance: int, tokens: int, hold_for: int, now: int, later: int) -> bool:
    """A synced hold that ran out is charged once, however often the bucket is used afterwards.

    pre: -DEBT < balance <= 0 and 0 <= now <= later <= LATEST and 0 <= tokens <= DEBT and 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    quota = replace(SYNCED, refill=0)
    charged, _ = transition(quota, holding(quota, balance, now, Hold(tokens, 1, now, hold_for)), now, Acquire(0))
    state, _ = transition(quota, charged, later, Acquire(0))
    remembered = later < now + hold_for + MINUTE_US
    return state is not None and state.balance == balance - tokens and len(state.holds) == remembered


def cancel_gives_back_what_was_reserved(
    balance: int, tokens: int, keep: int, hold_for: int, now: int, *, synced: bool
) -> bool:
    """A reserve and its cancel leave the balance untouched; in between the tokens are nobody else's.

    pre: 0 <= balance <= CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= CAPACITY and 0 <= keep <= CAPACITY
    pre: 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    quota = SYNCED if synced else SMOOTH
    stored = replace(plain(quota, balance, now), reading_at=now if synced else None)
    held, granted = transition(quota, stored, now, Reserve("a", tokens, hold_for, keep))
    if not granted.granted:
        return balance < tokens + keep
    _, other = transition(quota, held, now, Acquire(balance - tokens + 1))
    state, found = transition(quota, held, now, Cancel("a"))
    if state is None or state.holds or state.held or state.open:
        return False
    return not other.granted and found.found and state.balance == balance


def reserve_is_idempotent(balance: int, tokens: int, hold_for: int, now: int) -> bool:
    """A reserve that arrives twice takes its tokens once.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= CAPACITY and 1 <= hold_for <= MAX_HOLD_US
    post: _
    """
    once, first = transition(SMOOTH, plain(SMOOTH, balance, now), now, Reserve("a", tokens, hold_for))
    twice, second = transition(SMOOTH, once, now, Reserve("a", tokens, hold_for))
    return first.granted == second.granted and once == twice


def refund_counts_once(balance: int, tokens: int, now: int) -> bool:
    """A refund that arrives twice counts once, and never fills above capacity.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST and 0 <= tokens <= DEBT
    post: _
    """
    once, first = transition(SMOOTH, plain(SMOOTH, balance, now), now, Refund("r", tokens))
    twice, second = transition(SMOOTH, once, now, Refund("r", tokens))
    if once is None or twice is None or second.found or not first.found:
        return False
    return once.balance == min(CAPACITY, balance + tokens) == twice.balance
