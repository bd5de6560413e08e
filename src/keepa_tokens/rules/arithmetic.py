"""The arithmetic of refilling: whole numbers in, whole numbers out, smooth and stepped apart.

`bucket.lua` computes the same in doubles, and divides first, so that nothing on the way passes 2**53. Preconditions,
kept by `Quota`, `Reading` and `repair`: period >= 1, rate >= 0, rate * (period + 1) < LIMIT, 0 <= carry < period,
instants from 0 to LIMIT, balances and capacities within LIMIT. Nothing here knows None, garbage or dataclasses.
"""

from __future__ import annotations

from typing import Final

from ..units import LIMIT, NEVER

KEPT_SHARE: Final = 3
"""At most the capacity divided by this is kept back."""


def saturated(tokens: int) -> int:
    """Return `tokens` held within the range that is computed exactly."""
    return max(1 - LIMIT, min(LIMIT - 1, tokens))


def refill_smooth(
    balance: int, refilled_at: int, carry: int, now: int, capacity: int, rate: int, period: int
) -> tuple[int, int, int]:
    """Return balance, refilled_at and carry after `rate` tokens per `period` flowed evenly until `now`.

    Nothing changes while `now` is behind `refilled_at`. A balance at or above capacity stays and earns no remainder.
    """
    if now <= refilled_at:
        return balance, refilled_at, carry
    if rate == 0:
        return balance, now, 0
    gain, carry = divmod((now - refilled_at) * rate + carry, period)
    room = max(0, capacity - balance)
    if gain >= room:
        return balance + room, now, 0
    return balance + gain, now, carry


def refill_stepped(
    balance: int, refilled_at: int, now: int, capacity: int, refill: int, period: int
) -> tuple[int, int]:
    """Return balance and refilled_at after all whole periods until `now` brought `refill` tokens each.

    `refilled_at` moves by whole periods, so the phase of the steps is kept, on a full bucket too.
    """
    if refill == 0:
        return balance, max(refilled_at, now)
    periods = max(0, now - refilled_at) // period
    return min(max(balance, capacity), balance + periods * refill), refilled_at + periods * period


def instant_smooth(need: int, refilled_at: int, carry: int, rate: int, period: int) -> int:
    """Return the first instant at which `need` more tokens have flowed in; NEVER if none."""
    if need <= 0:
        return refilled_at
    if rate == 0:
        return NEVER
    # -(-a // b) is a / b rounded up: a caller that comes a microsecond too early is refused.
    return min(NEVER, refilled_at - (carry - need * period) // rate)


def instant_stepped(need: int, refilled_at: int, refill: int, period: int) -> int:
    """Return the first instant at which steps have brought `need` more tokens; NEVER if none."""
    if need <= 0:
        return refilled_at
    if refill == 0:
        return NEVER
    steps = (need - 1) // refill + 1
    return min(NEVER, refilled_at + steps * period)


def required(tokens: int, overdraft: int) -> int:
    """Return what must be available to admit `tokens`: 1 at least, and no grant leaves more debt than the overdraft."""
    return max(1, tokens - overdraft)


def set_aside(keep: int, kept_back: int, capacity: int, need: int) -> int:
    """Return the tokens that a request leaves: its `keep`, and what is kept back for others.

    What is kept back adds to `keep` up to a third of the capacity, and only as far as `need` can still be had.
    """
    return max(keep, min(keep + kept_back, capacity // KEPT_SHARE, capacity - need))


def flowed_between(start: int, end: int, refill: int, period: int, *, stepped: bool) -> int:
    """Return the most tokens that flow in from `start` to `end`, rounded up, within LIMIT."""
    passed = max(0, end - start)
    return min(LIMIT, -(-passed // period) * refill if stepped else -(-passed * refill // period))


def given_back(tokens: int, own: int, last_place: int, now: int, refill: int, period: int, *, stepped: bool) -> int:
    """Return what comes back of `tokens` that were taken for the place `own` and are not used (rule 6).

    All of it if no place lies ahead, or if `own` is the last place. Else what exceeds the refill from `own` to the last
    place: that refill is promised to the places between, which were told their instants for good.
    """
    return max(0, tokens - flowed_between(max(own, now), last_place, refill, period, stepped=stepped))


def moved_back(own: int, tokens: int, refill: int, period: int, *, stepped: bool) -> int:
    """Return the latest that the place before `own` can be, where `own` waited for `tokens`; 0 if long past."""
    if refill == 0:
        return own
    return max(0, own - (tokens // refill * period if stepped else tokens * period // refill))


def halved(tokens: int, since: int, now: int, half_life: int) -> tuple[int, int]:
    """Return `tokens` halved for every whole half-life from `since` to `now`, and the instant of the last halving."""
    halvings = max(0, now - since) // half_life
    # At most 52, for the solver: so many halvings leave nothing of any number here.
    return tokens >> min(halvings, 52), since + halvings * half_life


def anchored(refilled_at: int, now: int, tolerance: int) -> int:
    """Return the instant to refill from: a stored one ahead of the clock by more than the tolerance is damage."""
    return now if refilled_at > now + tolerance else refilled_at


def phased(now: int, period: int, next_refill_in: int) -> int:
    """Return the instant of the last step, if the next one comes in `next_refill_in`."""
    return max(0, now - (period - max(0, min(period, next_refill_in))))
