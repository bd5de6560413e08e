"""A plain bucket as the rules have it in words: slow, in exact fractions, and obviously right. Nothing of it is shared.

The level is a fraction, so there is no remainder to carry. There is no formula for a wait: the first instant at which
something comes true is searched for, by letting a copy of the bucket live on until then. Every event is written down,
so that what was given can be counted afterwards.

Not modelled: readings and probes, which a plain bucket doesn't have (`synced_reference` goes on from here with
them), two quotas on one bucket, and numbers near the limit of 2**52: `programs` holds storages to the rules there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, Self

from keepa_tokens.quota import Quota
from keepa_tokens.rules.decision import Reason

CLOCKS_APART_US: Final = 5_000_000
"""Clocks may differ by so much."""

REFUNDABLE_US: Final = 590_000_000
"""A refund counts if it was issued less long ago."""

REFUNDS_KEPT_US: Final = 600_000_000
"""And is remembered for so long."""

END_OF_TIME: Final = 2**52


@dataclass(frozen=True)
class Held:
    """A call's tokens, set aside until `ends`; after that `charged`, and remembered for one more `lives`.

    opened_since, charged_since: since the server last told the balance. On a plain bucket nobody tells it.
    """

    tokens: int
    ends: int
    lives: int
    charged: bool = False
    opened_since: bool = True
    charged_since: bool = True


@dataclass(frozen=True)
class Event:
    """What came to pass at an instant of the bucket's time: tokens given (more than 0) or given back (less)."""

    at: int
    given: int


@dataclass(frozen=True)
class Answer:
    """What a request comes to. wait: NEVER is END_OF_TIME."""

    granted: bool
    reason: Reason
    wait: int = 0
    place: int = 0


@dataclass
class Reference:
    """One plain bucket: its level at the instant `at`, the calls in flight, and until when it is closed.

    steps_from: for a stepped quota an instant at which a step came. minted: all that was ever refilled, exactly.
    """

    quota: Quota
    level: Fraction = Fraction(0)
    at: int = 0
    steps_from: int = 0
    closed_until: int | None = None
    calls: dict[str, Held] = field(default_factory=dict[str, Held])
    minted: Fraction = Fraction(0)
    events: tuple[Event, ...] = ()

    @classmethod
    def new(cls, quota: Quota, now: int) -> Self:
        """Return a bucket that nobody has used."""
        start = quota.capacity if quota.initial is None else quota.initial
        return cls(quota, Fraction(start), now, now)

    @property
    def capacity(self) -> int:
        """To so many tokens it refills."""
        return self.quota.capacity

    @property
    def refill(self) -> int:
        """Tokens that come every `period_us`."""
        return self.quota.refill

    @property
    def period_us(self) -> int:
        """In this time `refill` tokens come."""
        return self.quota.period_us

    @property
    def balance(self) -> int:
        """Whole tokens, with what is held."""
        return math.floor(self.level)

    @property
    def held(self) -> int:
        """Tokens set aside for calls in flight."""
        return sum(call.tokens for call in self.calls.values() if not call.charged)

    @property
    def available(self) -> int:
        """Whole tokens that nobody has set aside."""
        return self.balance - self.held

    def alike(self) -> Self:
        """Return a copy that lives its own life."""
        twin = copy(self)
        twin.calls = dict(self.calls)
        return twin

    # --- time

    def live_until(self, now: int) -> None:
        """Let time pass until `now`, by whoever's clock that is."""
        self.correct_what_lies_ahead(now)
        for name, call in sorted(self.calls.items(), key=lambda item: item[1].ends):
            if not call.charged and call.ends <= now:
                self.flow_until(call.ends)
                self.calls[name] = self.charge(call)
        self.flow_until(now)
        self.calls = {
            name: call for name, call in self.calls.items() if not call.charged or call.ends + call.lives > now
        }
        self.open_if_it_may(now)

    def charge(self, call: Held) -> Held:
        """Take the tokens of a call that ran out, and return what is remembered of it."""
        self.level -= call.tokens
        return replace(call, charged=True)

    def flow_until(self, now: int) -> None:
        """Refill. A clock that lags behind brings nothing, nor does a bucket that is full get fuller."""
        if now <= self.at:
            return
        before = self.level
        if self.refill == 0:
            self.level, self.steps_from = Fraction(self.balance), now
        elif self.quota.stepped:
            self._take_steps_until(now)
        elif self.balance >= self.capacity:
            self.level = Fraction(self.balance)  # no part of a token is earned beside a full bucket
        else:
            earned = Fraction(self.refill * (now - self.at), self.period_us)
            self.level = min(Fraction(self.capacity), self.level + earned)
        self.minted += self.level - before
        # Between two steps a clock that goes back does no harm.
        self.at = self.steps_from if self.quota.stepped else now

    def _take_steps_until(self, now: int) -> None:
        steps = (now - self.steps_from) // self.period_us
        earned = steps * self.refill
        self.level = max(self.level, min(Fraction(self.capacity), self.level + earned))
        self.steps_from += steps * self.period_us

    def correct_what_lies_ahead(self, now: int) -> None:
        """What is further ahead than clocks may differ can't be right."""
        latest = self.furthest_place(now)
        if self.at > now + CLOCKS_APART_US:
            self.at = self.steps_from = now
        for name, call in self.calls.items():
            start = now if call.charged else latest
            if call.ends > start + call.lives + CLOCKS_APART_US:
                self.calls[name] = replace(call, ends=start + call.lives + CLOCKS_APART_US)

    def furthest_place(self, now: int) -> int:
        """Return when the bucket would be full if all that is held were charged: no place lies beyond that."""
        if not any(not call.charged and call.ends > now for call in self.calls.values()):
            return now
        twin = self.alike()
        twin.at = min(self.at, now) if self.at > now + CLOCKS_APART_US else self.at
        twin.steps_from = min(self.steps_from, twin.at)
        twin.level -= twin.held
        twin.calls = {}

        def is_full(at: int) -> bool:
            later = copy(twin)
            later.flow_until(at)
            return later.balance >= self.capacity

        full = first(is_full, max(now, twin.at))
        return now if full == END_OF_TIME else full

    # --- asking

    def needed(self, tokens: int) -> int:
        """Return what must be available for a grant: it may leave debt up to the overdraft, not begin in debt."""
        return max(1, tokens - self.quota.overdraft)

    def request(self, tokens: int, keep: int, now: int, patience: int | None) -> Answer:
        """Return what a request comes to; it may begin a recharge. patience: how long it would wait for a place."""
        end = self.end_of_recharge(tokens, keep, now)
        self.closed_until = end if self.quota.recharge_to is not None else self.closed_until
        answer = self.judged(tokens, keep, now)
        queues = self.quota.recharge_to is None and keep == 0 and patience is not None
        if answer.reason is Reason.EMPTY and queues and answer.wait < END_OF_TIME and answer.wait <= (patience or 0):
            return Answer(granted=True, reason=Reason.GRANTED, place=answer.wait)
        return answer

    def judged(self, tokens: int, keep: int, now: int) -> Answer:
        """Return what a request would come to, without a place."""
        wanted = self.needed(tokens) + keep
        if tokens == 0:
            return Answer(granted=True, reason=Reason.GRANTED)
        if self.available < wanted and wanted > self.capacity:
            return Answer(granted=False, reason=Reason.TOO_LARGE, wait=END_OF_TIME)
        enough = self.first_with(wanted, now)
        end = self.end_of_recharge(tokens, keep, now)
        if end is not None:
            return Answer(granted=False, reason=Reason.RECHARGING, wait=until(max(end, enough), now))
        if self.available < wanted:
            return Answer(granted=False, reason=Reason.EMPTY, wait=until(enough, now))
        return Answer(granted=True, reason=Reason.GRANTED)

    def first_with(self, wanted: int, now: int) -> int:
        """Return the first instant from `now` at which so much is available, if nobody does anything until then."""

        def has_enough(at: int) -> bool:
            twin = self.alike()
            twin.closed_until = None  # whether it is open doesn't matter to what there is
            twin.live_until(at)
            return twin.available >= wanted

        return first(has_enough, now)

    # --- recharging

    def recharged_at(self, now: int) -> int:
        """Return when a recharge that begins now ends."""
        return self.first_with(min(self.quota.recharge_to or 0, self.capacity), now)

    def end_of_recharge(self, tokens: int, keep: int, now: int) -> int | None:
        """Return until when the bucket is closed for a request: it is already, or finding too little closes it now."""
        if self.quota.recharge_to is None or self.closed_until is not None:
            return self.closed_until
        needed = self.needed(tokens)
        if tokens == 0 or self.available >= needed or needed + keep > self.capacity:
            return None
        end = self.recharged_at(now)
        return end if now < end < END_OF_TIME else None

    def open_if_it_may(self, now: int) -> None:
        """A recharge ends no later than the bucket as it is now will be recharged."""
        if self.closed_until is None or self.quota.recharge_to is None:
            return
        end = min(self.closed_until, self.recharged_at(now))
        self.closed_until = end if now < end and self.refill > 0 else None

    # --- what is done

    def acquire(self, tokens: int, keep: int, now: int, patience: int | None) -> Answer:
        """Take tokens, or a place."""
        self.live_until(now)
        answer = self.request(tokens, keep, now, patience)
        if answer.granted:
            self.level -= tokens
            self.give(tokens)
        return answer

    def reserve(self, name: str, tokens: int, lives: int, keep: int, now: int, patience: int | None) -> Answer:
        """Set tokens aside, now or in a place. One that is open, or remembered, is answered as before."""
        self.live_until(now)
        known = self.calls.get(name)
        if known is not None:
            return Answer(granted=True, reason=Reason.GRANTED, place=max(0, known.ends - known.lives - now))
        answer = self.request(tokens, keep, now, patience)
        if answer.granted:
            self.calls[name] = Held(tokens, now + answer.place + lives, lives)
            self.give(tokens)
        return answer

    def settle(self, name: str, actual: int | None, now: int) -> bool:
        """End a call at its cost; return whether it was known. One that ran out is corrected, up to capacity."""
        self.live_until(now)
        call = self.calls.pop(name, None)
        if call is None:
            return False
        cost = call.tokens if actual is None else actual
        part, before = self.level - self.balance, self.balance
        corrected = before + (call.tokens if call.charged else 0) - cost
        full = min(corrected, max(before, self.capacity))
        self.level = full + part
        # What it cost beyond its estimate nobody was asked for; what doesn't fit any more nobody gets back.
        self.give(min(cost, call.tokens) - call.tokens + corrected - full)
        self.open_if_it_may(now)
        return True

    def cancel(self, name: str, now: int) -> bool:
        """End a call that was never made; return whether it was known."""
        return self.settle(name, 0, now)

    def refund(self, name: str, tokens: int, issued: int, now: int) -> bool:
        """Give back, up to capacity, once; return whether it counted."""
        self.live_until(now)
        age = now - issued
        if name in self.calls or not -CLOCKS_APART_US <= age < REFUNDABLE_US:
            return False
        part = self.level - self.balance
        full = max(self.balance, min(self.capacity, self.balance + tokens))
        self.give(self.balance - full)
        self.level = full + part
        self.calls[name] = Held(0, now, REFUNDS_KEPT_US, charged=True)
        self.open_if_it_may(now)
        return True

    def give(self, tokens: int) -> None:
        """Write down that tokens went out, or came back."""
        if tokens:
            self.events += (Event(self.at, tokens),)

    # --- what goes wrong

    def lose_balance(self, now: int) -> None:
        """Without a balance a plain bucket goes on from 0, from when that is noticed."""
        self.level, self.at, self.steps_from = Fraction(0), now, now

    def lose_time(self, now: int) -> None:
        """Without the instant of the last refill the level stays, and refills from when that is noticed."""
        self.at = self.steps_from = now

    def lose_part(self) -> None:
        """The part of a token that was under way is lost."""
        self.level = Fraction(self.balance)

    def lose_call(self, name: str) -> None:
        """What was set aside for a call is lost: it is free again."""
        call = self.calls.pop(name)
        self.give(0 if call.charged else -call.tokens)


def first(comes_true: Callable[[int], bool], now: int) -> int:
    """Return the first instant from `now` at which something is true that then stays so; END_OF_TIME if none is."""
    if comes_true(now):
        return now
    early, step = now, 1
    while not comes_true(early + step):
        early, step = early + step, step * 2
        if early + step >= END_OF_TIME:
            return END_OF_TIME
    late = early + step
    while late - early > 1:
        middle = (early + late) // 2
        early, late = (early, middle) if comes_true(middle) else (middle, late)
    return late


def until(at: int, now: int) -> int:
    """Return the wait until `at`."""
    return END_OF_TIME if at >= END_OF_TIME else at - now
