"""The arithmetic of refilling: whole numbers in, whole numbers out, smooth and stepped apart.

Every intermediate stays below 2**53, so that Lua's doubles give the same digits: divide first, multiply what is
left. Preconditions, kept by `Quota`, `Reading` and `repair`: period >= 1, rate >= 0, rate * (period + 1) <
LIMIT, 0 <= carry < period, instants from 0 to LIMIT, balances and capacities within LIMIT. Nothing here knows
None, garbage or dataclasses.
"""

from __future__ import annotations

from ..units import LIMIT, NEVER


def saturated(tokens: int) -> int:
    """Return `tokens` held within the range that is computed exactly."""
    return max(1 - LIMIT, min(LIMIT - 1, tokens))


def refill_smooth(
    balance: int, refilled_at: int, carry: int, now: int, capacity: int, rate: int, period: int
) -> tuple[int, int, int]:
    """Return balance, refilled_at and carry after `rate` tokens per `period` flowed evenly until `now`.

    A clock behind `refilled_at` stands still. A balance at or above capacity stays as it is and earns no remainder.
    """
    if now <= refilled_at:
        return balance, refilled_at, carry
    if balance >= capacity or rate == 0:
        return balance, now, 0
    room = capacity - balance
    periods, rest = divmod(now - refilled_at, period)
    if periods >= room // rate + 1:
        return capacity, now, 0
    earned = rest * rate + carry
    gain = periods * rate + earned // period
    if gain >= room:
        return capacity, now, 0
    return balance + gain, now, earned % period


def refill_stepped(
    balance: int, refilled_at: int, now: int, capacity: int, refill: int, period: int
) -> tuple[int, int]:
    """Return balance and refilled_at after all whole periods until `now` brought `refill` tokens each.

    `refilled_at` moves by whole periods, so the phase of the steps is kept, on a full bucket too.
    """
    if now <= refilled_at:
        return balance, refilled_at
    if refill == 0:
        return balance, now
    periods = (now - refilled_at) // period
    moved = refilled_at + periods * period
    if balance >= capacity:
        return balance, moved
    room = capacity - balance
    if periods >= room // refill + 1:
        return capacity, moved
    return min(capacity, balance + periods * refill), moved


def instant_smooth(need: int, refilled_at: int, carry: int, rate: int, period: int) -> int:
    """Return the first instant at which `need` more tokens have flowed in; NEVER if none."""
    if need <= 0:
        return refilled_at
    if rate == 0:
        return NEVER
    periods, rest = divmod(need, rate)
    if periods > (NEVER - refilled_at) // period:
        return NEVER
    # -(-a // b) is a / b rounded up: a microsecond too late is a wait, one too early a refusal.
    return min(NEVER, refilled_at + periods * period - (carry - rest * period) // rate)


def instant_stepped(need: int, refilled_at: int, refill: int, period: int) -> int:
    """Return the first instant at which steps have brought `need` more tokens; NEVER if none."""
    if need <= 0:
        return refilled_at
    if refill == 0:
        return NEVER
    steps = (need - 1) // refill + 1
    if steps > (NEVER - refilled_at) // period:
        return NEVER
    return refilled_at + steps * period


def required(tokens: int, overdraft: int) -> int:
    """Return what must be available to admit `tokens`: the debt a grant may leave is the overdraft, from above 0."""
    return max(1, tokens - overdraft)


def carried_over(carry: int, old_rate: int, old_period: int, rate: int, period: int) -> int:
    """Return a remainder earned at the old rate in units of the new one: the same time, less than a whole token.

    Rounded down by less than a microsecond, so no switching back and forth between two quotas mints.
    """
    if old_rate == rate and old_period == period:
        return carry
    if old_rate == 0 or rate == 0:
        return 0
    time = carry // old_rate
    if time > (period - 1) // rate:
        return period - 1
    return time * rate


def halved(tokens: int, since: int, now: int, half_life: int) -> tuple[int, int]:
    """Return `tokens` halved for every whole half-life from `since` to `now`, and the instant of the last halving."""
    halvings = max(0, now - since) // half_life
    return tokens >> min(halvings, 52), since + halvings * half_life


def anchored(refilled_at: int, now: int, tolerance: int) -> int:
    """Return the instant to refill from: a stored one ahead of the clock by more than the tolerance is damage."""
    return now if refilled_at > now + tolerance else refilled_at


def phased(now: int, period: int, next_refill_in: int) -> int:
    """Return the instant of the last step, if the next one comes in `next_refill_in`."""
    return max(0, now - (period - max(0, min(period, next_refill_in))))
