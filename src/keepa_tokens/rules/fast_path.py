"""The fast path: carries out almost every command, in whole numbers; `bucket.lua` mirrors it.

It serves a sound bucket on which nothing unusual is due, and equals `transition` there to the last digit. All else it
leaves to the rules, with the bucket untouched: a refusal, a repair, a reading, a claim, a recharge. The mirror differs
in two things. What is given back while places lie ahead it leaves to the rules, too. And it answers the refusals that
`take` can work out: of a caller that wants tokens now from a plain bucket without recharge.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..quota import Quota
from ..units import LIMIT, NEVER
from .arithmetic import (
    flowed_between,
    given_back,
    moved_back,
    required,
    saturated,
    set_aside,
)
from .flow import Flow


@dataclass(slots=True)
class Numbers:
    """The numbers of a sound bucket that the fast path reads, and those that it writes: level to largest_place.

    level: balance, refilled_at and carry. They change together, by one assignment, so that no signal can strike in
    between. flow: the refill in effect. quota: the terms. Everything is as `state.SoundState` has it.
    """

    level: tuple[int, int, int]
    held: int
    open: int
    sequence: int
    last_place: int
    firm_place: int
    largest_place: int
    flow: Flow
    quota: Quota
    kept_back: int

    @property
    def balance(self) -> int:
        """What was there at `refilled_at`."""
        return self.level[0]

    @property
    def refilled_at(self) -> int:
        """Up to when the refill has been counted."""
        return self.level[1]

    @property
    def carry(self) -> int:
        """The part of a token that was under way then."""
        return self.level[2]

    def flowed(self, now: int) -> tuple[int, int, int]:
        """Return the level at `now`."""
        return self.flow.refilled(*self.level, now)


def take(n: Numbers, now: int, tokens: int, keep: int) -> tuple[int, int] | None:  # noqa: C901 - no call on the way
    """Take `tokens` if they are there, and return None.

    If they are not, change nothing, and return the balance and how long until they are there: NEVER if the bucket can't
    hold so many, or if not the refill alone decides (synced, recharge). Not to be asked for 0 tokens.
    """
    balance, refilled_at, carry = n.level
    flow, quota, since = n.flow, n.quota, now - refilled_at
    if since > 0:
        if balance >= flow.capacity or flow.stepped or not flow.refill:
            balance, refilled_at, carry = flow.refilled(balance, refilled_at, carry, now)
        else:  # the same without a call, and mostly without a division
            refilled_at = now
            carry += since * flow.refill
            if carry >= flow.period_us:
                balance += carry // flow.period_us
                carry %= flow.period_us
                if balance >= flow.capacity:
                    balance, carry = flow.capacity, 0
    need = tokens
    if keep or quota.synced or quota.overdraft:
        need = _need(n, tokens, keep) + (n.held if quota.synced else 0)
    if balance >= need:
        # Above -LIMIT: at least one was there, and fewer than LIMIT are taken.
        n.level = balance - tokens, refilled_at, carry
        return None
    if need > flow.capacity or quota.synced or quota.recharge_to is not None:
        return balance, NEVER
    if flow.refill and not flow.stepped:
        # The same as `instant_smooth`, quicker where no number comes near NEVER.
        parts = (need - balance) * flow.period_us
        if refilled_at + parts < NEVER:
            parts -= carry
            if flow.refill > 1:
                parts = -(-parts // flow.refill)
            return balance, parts if since >= 0 else parts - since
    at = flow.instant(need - balance, refilled_at, carry)
    return balance, NEVER if at >= NEVER else at - now


def acquire(n: Numbers, now: int, tokens: int, keep: int, wait_us: int) -> int | None:
    """Take `tokens` and return the instant from which the caller may go; None: not the fast path's business.

    wait_us: how far ahead a place may be; -1: now or not at all.
    """
    if tokens == 0 or n.held + tokens >= LIMIT:
        return None
    refusal = take(n, now, tokens, keep)
    if refusal is None:
        return now
    wait = refusal[1]
    if keep or wait >= NEVER or wait > wait_us:
        return None
    balance, refilled_at, carry = n.flowed(now)
    n.level = saturated(balance - tokens), refilled_at, carry
    note_place(n, now, tokens, now + wait)
    return now + wait


def note_place(n: Numbers, now: int, tokens: int, at: int) -> None:
    """Take note of a place for `tokens` at `at`, in a bucket that has flowed to `now`."""
    largest, last = n.largest_place if n.last_place > now else 0, max(n.last_place, at)
    if n.last_place == at:
        # Several places share this instant: if the last one is given up, the one before it may still be here.
        n.firm_place = at
    if n.firm_place > now:
        # This place counts on tokens given back before the places ahead; until it comes they lie beside theirs.
        largest += tokens - n.flow.brought(n.level, n.last_place, last)
    # More than the capacity and the debt that the last place may leave is never there: the rest is of past places.
    n.largest_place = min(max(tokens, largest), saturated(n.flow.capacity + n.quota.overdraft))
    n.last_place = last


def reserve(n: Numbers, now: int, tokens: int, keep: int) -> bool:
    """Set `tokens` aside (synced) or take them (plain) for a hold opened now; False: not the fast path's business.

    On True the hold's number is `n.sequence`.
    """
    if tokens == 0 or n.held + tokens >= LIMIT:
        return False
    balance, refilled_at, carry = n.flowed(now)
    if balance - (n.held if n.quota.synced else 0) < _need(n, tokens, keep):
        return False
    if not n.quota.synced:
        balance = saturated(balance - tokens)
    n.level = balance, refilled_at, carry
    n.sequence += 1
    n.held += tokens
    n.open += 1
    return True


def settle(n: Numbers, now: int, held: int, cost: int, own: int) -> None:
    """End a hold in flight of `held` tokens, opened at the instant `own`, at `cost`; 0 cancels it."""
    n.level = balance, refilled_at, carry = n.flowed(now)
    n.held -= held
    n.open -= 1
    if n.quota.synced:
        n.level = saturated(balance - cost), refilled_at, carry
    elif cost > held:
        n.level = saturated(balance + held - cost), refilled_at, carry
    else:
        give_back(n, now, held - cost, own)


def refund(n: Numbers, now: int, tokens: int, own: int) -> bool:
    """Give back `tokens` that were taken for the place `own` (rule 6) and not used, up to capacity.

    False: not the fast path's business, as the place may stay free.
    """
    if now < own < n.last_place:
        return False
    n.level = n.flowed(now)
    give_back(n, now, tokens, own)
    return True


def _need(n: Numbers, tokens: int, keep: int) -> int:
    alone = required(tokens, n.quota.overdraft)
    need = tokens if n.quota.synced and n.held else alone
    return need + set_aside(keep, n.kept_back, n.flow.capacity, alone)


def give_back(n: Numbers, now: int, tokens: int, own: int) -> None:
    """Give back `tokens` that were taken for the place `own`, to a bucket that has flowed to `now`."""
    flow, back = n.flow, tokens
    balance, refilled_at, carry = n.level
    if not n.quota.synced:
        back = given_back(tokens, own, n.last_place, now, flow.refill, flow.period_us, stepped=flow.stepped)
        if own <= now < n.last_place:
            # Until a place comes, its tokens lie in the bucket. What doesn't fit beside them doesn't come back.
            flowed = flowed_between(now, n.last_place, flow.refill, flow.period_us, stepped=flow.stepped)
            back = min(back, max(0, flow.capacity - n.largest_place - max(0, saturated(balance + flowed))))
        if back and n.last_place > now:
            _free_place(n, tokens, own)
    if back == 0:
        return
    balance = saturated(min(max(balance, flow.capacity), balance + back))
    if balance >= flow.capacity and not flow.stepped:
        # A full bucket earns nothing: no fraction is under way.
        carry = 0
    n.level = balance, refilled_at, carry


def _free_place(n: Numbers, tokens: int, own: int) -> None:
    if own < n.last_place:
        # Tokens came back before the last place, so from now on the balance alone doesn't tell where that place is.
        n.firm_place = n.last_place
        return
    # The place before can't be later than this: after it, `own` had to wait for `need` tokens at least.
    flow, need = n.flow, required(tokens, n.quota.overdraft)
    n.last_place = max(n.firm_place, moved_back(own, need, flow.refill, flow.period_us, stepped=flow.stepped))
