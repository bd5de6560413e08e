"""The whole of an acquire: `transition` with everything stored and asked left open, at Keepa's plans."""

from __future__ import annotations

from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MAX_HOLD_US, YEAR_US

from .terms import (
    CAPACITY,
    DEBT,
    KEEPAS,
    LATEST,
    OVERDRAWN,
    PERIOD_US,
    RATE,
    RATE_PERIOD_US,
    RECHARGED,
    REFILL,
    SMOOTH,
    STEPPED,
    TARGET,
    holding,
    plain,
    there,
)


def grants_what_is_there_above_keep(balance: int, stored: int, carry: int, now: int, tokens: int, keep: int) -> bool:
    """A grant takes its tokens and leaves `keep`; a refusal found less, takes nothing and names a wait above 0.

    It stores nothing, or, where it mended a time far ahead or a year old, nothing but that.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= LATEST and 0 <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    before = plain(SMOOTH, balance, stored, carry)
    state, outcome = transition(SMOOTH, before, now, Acquire(tokens, keep))
    if outcome.granted:
        return there(outcome.balance) >= keep and (stored != now or outcome.balance == balance - tokens)
    if outcome.retry_after_us <= 0 or (stored == now and not outcome.balance == balance < tokens + keep):
        return False
    if state is before:
        return True
    return (
        state is not None
        and outcome.repaired == ("refilled_at",)
        and (state.balance, state.refilled_at) == (balance, now)
        and (state.carry or 0) <= carry
    )


def wait_is_exact(balance: int, stored: int, carry: int, now: int, tokens: int, keep: int, *, stepped: bool) -> bool:
    """A refused caller who waits exactly `retry_after` is granted; a microsecond before it is refused, and told so.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY and (stored == now or (stepped and keep == 0))
    post: _
    """
    quota = STEPPED if stepped else SMOOTH
    before = plain(quota, balance, stored, 0 if stepped else carry)
    state, refusal = transition(quota, before, now, Acquire(tokens, keep))
    if refusal.granted:
        return balance >= tokens + keep or stored < now
    then = now + refusal.retry_after_us
    _, sooner = transition(quota, state, then - 1, Acquire(tokens, keep))
    _, waited = transition(quota, state, then, Acquire(tokens, keep))
    return waited.granted and not sooner.granted and sooner.retry_after_us == 1


def overdraft_is_kept(balance: int, stored: int, now: int, tokens: int) -> bool:
    """No grant takes the balance further below 0 than the overdraft, and none begins at 0 or below.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= LATEST and 0 <= now <= LATEST
    pre: 1 <= tokens <= CAPACITY + 50
    post: _
    """
    _, outcome = transition(OVERDRAWN, plain(OVERDRAWN, balance, stored), now, Acquire(tokens))
    left = there(outcome.balance)
    return not outcome.granted or (left >= -OVERDRAWN.overdraft and left + tokens >= 1)


def overdraws_alone(balance: int, held: int, now: int, tokens: int) -> bool:
    """On a synced bucket a call takes what is not there only alone; beside others in flight there is enough for all.

    Who is refused only because of calls in flight is told so, and to look again when one runs out; else EMPTY.

    pre: -DEBT < balance <= CAPACITY and 0 <= held <= DEBT and 1 <= tokens <= DEBT and 0 <= now <= LATEST
    post: _
    """
    stored = holding(KEEPAS, balance, now, Hold(held, 1, now + 1, 1))
    _, outcome = transition(KEEPAS, stored, now, Acquire(tokens))
    if outcome.granted != (balance >= 1 if held == 0 else balance >= held + tokens):
        return False
    if outcome.granted:
        return True
    if balance >= 1:
        return outcome.reason is Reason.IN_FLIGHT and outcome.retry_after_us == 1
    steps = -balance // REFILL + 1
    return outcome.reason is Reason.EMPTY and outcome.retry_after_us == steps * PERIOD_US


def overdraws_when_the_others_are_done(balance: int, held: int, now: int, tokens: int) -> bool:
    """Whatever others hold, a call finds nothing in flight once that has run out, and is granted when it is told.

    pre: -DEBT < balance <= CAPACITY and 0 <= held <= DEBT and 1 <= tokens <= DEBT and 0 <= now <= LATEST
    post: _
    """
    stored = holding(KEEPAS, balance, now, Hold(held, 1, now, MAX_HOLD_US))
    state, refusal = transition(KEEPAS, stored, now, Acquire(tokens, probe_after_us=None))
    if refusal.granted:
        return True
    _, waited = transition(KEEPAS, state, now + refusal.retry_after_us, Acquire(tokens, probe_after_us=None))
    return refusal.reason is Reason.EMPTY and waited.granted


def lost_timestamp_mints_nothing(balance: int, now: int, later: int, tokens: int) -> bool:
    """After a loss only the time since the first attempt counts, though the refusal in between wrote it down.

    pre: -DEBT < balance < tokens <= CAPACITY and tokens >= 1 and 0 <= now <= later <= LATEST
    post: _
    """
    state, refusal = transition(SMOOTH, BucketState(balance=balance), now, Acquire(tokens))
    _, after = transition(SMOOTH, state, later, Acquire(0))
    brought, left = (later - now) * RATE + balance * RATE_PERIOD_US, there(after.balance) * RATE_PERIOD_US
    if refusal.granted or left > brought:
        return False
    return left > brought - RATE_PERIOD_US or after.balance == CAPACITY or later > now + YEAR_US


def recharge_ends_when_it_says(balance: int, closed_until: int | None, now: int, tokens: int) -> bool:
    """However far ahead its end is stored, a closed bucket opens by the refill time to `recharge_to`, when it says.

    pre: -DEBT < balance < CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= TARGET
    post: _
    """
    stored = BucketState(balance=balance, refilled_at=now, closed_until=closed_until, quota=RECHARGED)
    state, outcome = transition(RECHARGED, stored, now, Acquire(tokens))
    if outcome.granted:
        return not outcome.closed
    longest = ((TARGET - min(balance, TARGET)) // RATE + 1) * RATE_PERIOD_US
    _, waited = transition(RECHARGED, state, now + outcome.retry_after_us, Acquire(tokens))
    return outcome.closed and 0 < outcome.retry_after_us <= longest and waited.granted
