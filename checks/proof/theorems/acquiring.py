"""The whole of an acquire: `transition` with everything stored and asked left open, at Keepa's plans."""

from __future__ import annotations

from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MAX_HOLD_US, NEVER, TOLERANCE_US

from .terms import (
    CAPACITY,
    DEBT,
    KEEPAS,
    LATEST,
    OVERDRAWN,
    RATE,
    RATE_PERIOD_US,
    RECHARGED,
    SMOOTH,
    STEPPED,
    TARGET,
)


def _balance(state: BucketState | None) -> int:
    if state is None or state.balance is None:
        raise AssertionError(state)
    return state.balance


def _micro_tokens(state: BucketState | None) -> int:
    """Return the balance and the remainder in token microseconds."""
    if state is None or state.carry is None:
        raise AssertionError(state)
    return _balance(state) * RATE_PERIOD_US + state.carry


def smooth_step_conserves(balance: int, stored: int, carry: int, now: int, tokens: int, keep: int) -> bool:
    """What a step granted and left is what was there and flowed in: never more; and exactly that below capacity.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= LATEST and 0 <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    state, outcome = transition(SMOOTH, BucketState(balance, stored, carry), now, Acquire(tokens, keep))
    spent = tokens if outcome.granted else 0
    left = _micro_tokens(state) + spent * RATE_PERIOD_US
    brought = balance * RATE_PERIOD_US + carry + max(0, now - stored) * RATE
    if _balance(state) + spent < CAPACITY:
        return left == brought
    return _balance(state) + spent == CAPACITY and left <= brought


def smooth_grants_what_is_there_above_keep(
    balance: int, stored: int, carry: int, now: int, tokens: int, keep: int
) -> bool:
    """A grant leaves `keep`; a refusal found less than tokens and keep, takes nothing and names a wait above 0.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= LATEST and 0 <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    state, outcome = transition(SMOOTH, BucketState(balance, stored, carry), now, Acquire(tokens, keep))
    if outcome.granted:
        return _balance(state) >= keep
    return balance <= _balance(state) < tokens + keep and outcome.retry_after_us > 0


def smooth_waited_is_granted(balance: int, carry: int, now: int, tokens: int, keep: int) -> bool:
    """A refused caller who waits exactly `retry_after` is granted.

    pre: -DEBT < balance < tokens + keep and 0 <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    state, refusal = transition(SMOOTH, BucketState(balance, now, carry), now, Acquire(tokens, keep))
    _, waited = transition(SMOOTH, state, now + refusal.retry_after_us, Acquire(tokens, keep))
    return not refusal.granted and waited.granted


def smooth_sooner_is_refused(balance: int, carry: int, now: int, tokens: int, keep: int) -> bool:
    """A microsecond before `retry_after` the caller is refused, and told that a microsecond is left.

    pre: -DEBT < balance < tokens + keep and 0 <= now <= LATEST and 0 <= carry < RATE_PERIOD_US
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    state, refusal = transition(SMOOTH, BucketState(balance, now, carry), now, Acquire(tokens, keep))
    _, sooner = transition(SMOOTH, state, now + refusal.retry_after_us - 1, Acquire(tokens, keep))
    return not sooner.granted and sooner.retry_after_us == 1


def stepped_waited_is_granted(balance: int, stored: int, now: int, tokens: int, keep: int) -> bool:
    """On a stepped bucket too, a refused caller who waits exactly `retry_after` is granted.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= now <= LATEST
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    state, refusal = transition(STEPPED, BucketState(balance, stored), now, Acquire(tokens, keep))
    if refusal.granted:
        return True
    _, waited = transition(STEPPED, state, now + refusal.retry_after_us, Acquire(tokens, keep))
    return waited.granted


def stepped_sooner_is_refused(balance: int, stored: int, now: int, tokens: int, keep: int) -> bool:
    """On a stepped bucket too, a microsecond before `retry_after` the caller is refused.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= now <= LATEST
    pre: tokens >= 1 and keep >= 0 and tokens + keep <= CAPACITY
    post: _
    """
    state, refusal = transition(STEPPED, BucketState(balance, stored), now, Acquire(tokens, keep))
    if refusal.granted:
        return True
    _, sooner = transition(STEPPED, state, now + refusal.retry_after_us - 1, Acquire(tokens, keep))
    return not sooner.granted


def overdraft_is_kept(balance: int, stored: int, now: int, tokens: int) -> bool:
    """No grant takes the balance further below 0 than the overdraft, and none begins at 0 or below.

    pre: -DEBT < balance < CAPACITY and 0 <= stored <= LATEST and 0 <= now <= LATEST
    pre: 1 <= tokens <= CAPACITY + 50
    post: _
    """
    state, outcome = transition(OVERDRAWN, BucketState(balance, stored), now, Acquire(tokens))
    return not outcome.granted or (_balance(state) >= -OVERDRAWN.overdraft and _balance(state) + tokens >= 1)


def overdraws_alone(balance: int, held: int, now: int, tokens: int) -> bool:
    """On a synced bucket a call takes what is not there only alone; beside others in flight there is enough for all.

    pre: -DEBT < balance <= CAPACITY and 0 <= held <= DEBT and 1 <= tokens <= DEBT and 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(
        balance, now, sequence=1, reading_at=now, reading_sequence=1, holds={"a": Hold(held, 1, now + 1, 1)}
    )
    _, outcome = transition(KEEPAS, stored, now, Acquire(tokens))
    return outcome.granted == (balance >= 1 if held == 0 else balance >= held + tokens)


def overdraws_when_the_others_are_done(balance: int, held: int, left: int, now: int, tokens: int) -> bool:
    """A call refused beside others in flight that waits `retry_after` is granted, their hold run out or not.

    pre: -DEBT < balance <= CAPACITY and 0 <= held <= DEBT and 1 <= tokens <= DEBT and 0 <= now <= LATEST
    pre: 1 <= left <= MAX_HOLD_US
    post: _
    """
    stored = BucketState(
        balance, now, sequence=1, reading_at=now, reading_sequence=1, holds={"a": Hold(held, 1, now + left, left)}
    )
    state, refusal = transition(KEEPAS, stored, now, Acquire(tokens))
    if refusal.granted:
        return True
    _, waited = transition(KEEPAS, state, now + refusal.retry_after_us, Acquire(tokens))
    return waited.granted


def lost_timestamp_leaves_the_wait_bounded(balance: int, stored: int | str | None, now: int, tokens: int) -> bool:
    """Whatever is in `refilled_at`, a refused caller waits no longer than the refill time, a period and the tolerance.

    pre: -DEBT < balance < tokens <= CAPACITY and tokens >= 1 and 0 <= now <= LATEST
    post: _
    """
    # Garbage is the point.
    damaged = BucketState(balance, stored)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    _, outcome = transition(SMOOTH, damaged, now, Acquire(tokens))
    longest = TOLERANCE_US + ((tokens - balance) // RATE + 1) * RATE_PERIOD_US
    return outcome.granted or 0 < outcome.retry_after_us <= longest


def lost_timestamp_mints_nothing(balance: int, now: int, later: int, tokens: int) -> bool:
    """After a loss only the time since the first attempt counts, though the refusal in between wrote it down.

    pre: -DEBT < balance < tokens <= CAPACITY and tokens >= 1 and 0 <= now <= later <= LATEST
    post: _
    """
    state, refusal = transition(SMOOTH, BucketState(balance, None), now, Acquire(tokens))
    after, _ = transition(SMOOTH, state, later, Acquire(0))
    brought = (later - now) * RATE + balance * RATE_PERIOD_US
    left = _micro_tokens(after)
    return not refusal.granted and (left == brought or (_balance(after) == CAPACITY and left <= brought))


def recharge_ends(balance: int, closed_until: int | None, now: int, tokens: int) -> bool:
    """However far ahead `closed_until` is stored, a closed bucket opens by the refill time to `recharge_to`.

    pre: -DEBT < balance < CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= TARGET
    post: _
    """
    stored = BucketState(balance, now, closed_until=closed_until)
    state, outcome = transition(RECHARGED, stored, now, Acquire(tokens))
    if outcome.granted:
        return not outcome.closed
    if state is None or state.closed_until is None or outcome.retry_after_us >= NEVER:
        return False
    longest = ((TARGET - min(balance, TARGET)) // RATE + 1) * RATE_PERIOD_US
    return now < state.closed_until <= now + longest and outcome.retry_after_us <= longest


def recharge_opens_when_it_says(balance: int, closed_until: int | None, now: int, tokens: int) -> bool:
    """Who was refused by a recharge and waits `retry_after` is granted.

    pre: -DEBT < balance < CAPACITY and 0 <= now <= LATEST and 1 <= tokens <= TARGET
    post: _
    """
    stored = BucketState(balance, now, closed_until=closed_until)
    state, outcome = transition(RECHARGED, stored, now, Acquire(tokens))
    if outcome.granted:
        return True
    _, waited = transition(RECHARGED, state, now + outcome.retry_after_us, Acquire(tokens))
    return waited.granted
