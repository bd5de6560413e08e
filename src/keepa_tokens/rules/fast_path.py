"""The fast path: what almost every command comes to, in whole numbers; `bucket.lua` mirrors it.

It serves a sound bucket on which nothing unusual is due, and equals `transition` there to the last digit. Whatever
is not its business it hands over untouched, by returning None: a refusal, a repair, a reading, a claim, a recharge.
The mirror also hands over what comes back before those who wait for their places.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..units import LIMIT, NEVER
from .arithmetic import (
    flowed_between,
    given_back,
    instant_smooth,
    instant_stepped,
    moved_back,
    refill_smooth,
    refill_stepped,
    required,
    saturated,
    set_aside,
)

__all__ = ["Numbers", "acquire", "give_back", "refund", "reserve", "settle", "take"]


@dataclass(slots=True)
class Numbers:
    """The numbers of a sound bucket that the fast path reads, and those that it writes.

    The first nine change. capacity, refill, period_us: in effect; smooth rates reduced. queues: who waits gets a place
    (a plain bucket without recharge). Everything is as `state.SoundState` has it.
    """

    balance: int
    refilled_at: int
    carry: int
    held: int
    open: int
    sequence: int
    last_place: int
    firm_place: int
    largest_place: int
    capacity: int
    refill: int
    period_us: int
    stepped: bool
    overdraft: int
    synced: bool
    queues: bool
    kept_back: int

    def flowed(self, now: int) -> tuple[int, int, int]:
        """Return balance, refilled_at and carry at `now`."""
        if self.stepped:
            balance, refilled_at = refill_stepped(
                self.balance, self.refilled_at, now, self.capacity, self.refill, self.period_us
            )
            return balance, refilled_at, 0
        return refill_smooth(
            self.balance, self.refilled_at, self.carry, now, self.capacity, self.refill, self.period_us
        )


def take(n: Numbers, now: int, tokens: int, keep: int) -> tuple[int, int]:
    """Take `tokens` if they are there and return the balance then, and `now`.

    If they are not, nothing changes: the balance as it is, and the later instant at which they are; NEVER if the bucket
    can't hold so much, or if more than the refill decides (synced, recharge). Not for 0 tokens, nor for more than can
    be counted exactly beside `held`.
    """
    balance, refilled_at, carry, period_us = n.balance, n.refilled_at, n.carry, n.period_us
    before, since, part = balance, refilled_at, carry
    if refilled_at < now:
        if n.stepped or balance >= n.capacity or not n.refill or now - refilled_at >= period_us:
            balance, refilled_at, carry = n.flowed(now)
        else:  # the same, within one period, where most calls are: a call less, and often two divisions
            carry += (now - refilled_at) * n.refill
            refilled_at = now
            if carry >= period_us:
                balance += carry // period_us
                carry %= period_us
                if balance >= n.capacity:
                    balance, carry = n.capacity, 0
    need = tokens
    if n.overdraft or keep or n.synced:
        need = _need(n, tokens, keep) + (n.held if n.synced else 0)
    if balance >= need:
        balance -= tokens  # above -LIMIT: at least one was there, and fewer than LIMIT are taken
        try:
            n.balance, n.refilled_at, n.carry = balance, refilled_at, carry
        except BaseException:
            n.balance, n.refilled_at, n.carry = before, since, part
            raise
        return balance, now
    if need > n.capacity or not n.queues:
        return balance, NEVER
    if n.stepped:
        return balance, instant_stepped(need - balance, refilled_at, n.refill, period_us)
    return balance, instant_smooth(need - balance, refilled_at, carry, n.refill, period_us)


def acquire(n: Numbers, now: int, tokens: int, keep: int, wait_us: int) -> int | None:
    """Take `tokens` and return the instant from which the caller may go; None: not the fast path's business.

    wait_us: how far ahead a place may be; -1: now or not at all.
    """
    if tokens == 0 or n.held + tokens >= LIMIT:
        return None
    balance, at = take(n, now, tokens, keep)
    if at == now:
        return at
    if wait_us < 0 or keep or at >= NEVER or at - now > wait_us:
        return None
    _, n.refilled_at, n.carry = n.flowed(now)
    n.balance = saturated(balance - tokens)
    n.largest_place = max(tokens, n.largest_place if n.last_place > now else 0)
    n.last_place = max(n.last_place, at)
    return at


def reserve(n: Numbers, now: int, tokens: int, keep: int) -> bool:
    """Set `tokens` aside (synced) or take them (plain) for a hold opened now; False: not the fast path's business.

    On True the hold's number is `n.sequence`.
    """
    if tokens == 0 or n.held + tokens >= LIMIT:
        return False
    balance, refilled_at, carry = n.flowed(now)
    if balance - (n.held if n.synced else 0) < _need(n, tokens, keep):
        return False
    if not n.synced:
        balance = saturated(balance - tokens)
    n.balance, n.refilled_at, n.carry = balance, refilled_at, carry
    n.sequence += 1
    n.held += tokens
    n.open += 1
    return True


def settle(n: Numbers, now: int, held: int, cost: int, own: int) -> None:
    """End a hold in flight of `held` tokens, opened at the instant `own`, at `cost`; 0 cancels it."""
    n.balance, n.refilled_at, n.carry = n.flowed(now)
    n.held -= held
    n.open -= 1
    if n.synced:
        n.balance = saturated(n.balance - cost)
    elif cost > held:
        n.balance = saturated(n.balance + held - cost)
    else:
        give_back(n, now, held - cost, own)


def refund(n: Numbers, now: int, tokens: int, own: int) -> None:
    """Give back `tokens` that were taken for the place `own` (rule 6) and not used, up to capacity."""
    n.balance, n.refilled_at, n.carry = n.flowed(now)
    give_back(n, now, tokens, own)


def _need(n: Numbers, tokens: int, keep: int) -> int:
    alone = required(tokens, n.overdraft)
    need = tokens if n.synced and n.held else alone
    return need + set_aside(keep, n.kept_back, n.capacity, alone)


def give_back(n: Numbers, now: int, tokens: int, own: int) -> None:
    """Give back `tokens` that were taken for the place `own`, to a bucket that has flowed to `now`."""
    back = tokens
    if not n.synced:
        back = given_back(tokens, own, n.last_place, now, n.refill, n.period_us, stepped=n.stepped)
        if own < now < n.last_place:
            # The bucket must not run over before the largest place is reached: what runs over has not come back.
            flowed = flowed_between(now, n.last_place, n.refill, n.period_us, stepped=n.stepped)
            back = min(back, max(0, n.capacity - n.largest_place - max(0, saturated(n.balance + flowed))))
        if back and n.last_place > now:
            _free_place(n, tokens, own)
    if back == 0:
        return
    n.balance = saturated(min(max(n.balance, n.capacity), n.balance + back))
    if n.balance >= n.capacity and not n.stepped:
        # A full bucket earns nothing: no fraction is under way.
        n.carry = 0


def _free_place(n: Numbers, tokens: int, own: int) -> None:
    if own < n.last_place:
        # Tokens came back before the last place: from now on the balance alone does not tell where that place is.
        n.firm_place = n.last_place
        return
    n.last_place = max(n.firm_place, moved_back(own, tokens, n.refill, n.period_us, stepped=n.stepped))
