"""A plain bucket as the rules have it in words: slow, in exact fractions, and obviously right. Nothing of it is shared.

The level is a fraction, so there is no remainder to carry. There is no formula for a wait: the first instant at which
something comes true is searched for, by letting a copy of the bucket live on until then. Every event is written down,
so that what was given can be counted afterwards.

Whatever is asked is asked of a copy first; it counts only if something came of it, for a look leaves no trace.

Not modelled: readings and probes, which a plain bucket doesn't have (`synced_reference` goes on from here with
them), two quotas on one bucket, and numbers near the limit of 2**52: `programs` holds storages to the rules
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, Self, TypeVar

from keepa_tokens.quota import Quota
from keepa_tokens.rules.decision import Reason

CLOCKS_APART_US: Final = 5_000_000
"""Clocks may differ by so much."""

REFUNDS_KEPT_US: Final = 600_000_000
"""A refund is remembered for so long."""

SWEPT_US: Final = 1_000_000
"""What is over is swept away, once in this time at most."""

A_DAY_US: Final = 86_400_000_000
"""No pause is longer, and nobody is told to come later."""

LATE_AFTER_US: Final = 1_000_000
"""Who stands in line and doesn't come so soon after it was told to, may be passed."""

GONE_AFTER_US: Final = 60_000_000
"""Who doesn't come so soon has left."""

SOON_US: Final = 1_500_000
"""When to ask again where whoever is before, a call in flight, or the server may end the wait any moment."""

END_OF_TIME: Final = 2**52

T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """A call's tokens, taken or set aside until `ends`. Synced: after that `charged`, and remembered for as long again.

    opened_since, charged_since: since the server last told the balance. On a plain bucket nobody tells it.
    """

    tokens: int
    ends: int
    lives: int
    charged: bool = False
    opened_since: bool = True
    charged_since: bool = True

    @property
    def over(self) -> int:
        """When something is to be done about it."""
        return self.ends + (self.lives if self.charged else 0)


@dataclass(frozen=True)
class Waiting:
    """Somebody in line: how much it wants, and leaves to others, as which it came, and when it was told to come."""

    name: str
    tokens: int
    keep: int
    number: int
    told: int

    @property
    def turn(self) -> tuple[int, int]:
        """Who leaves the least to others goes first, then who came first."""
        return self.keep, self.number


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
    """One plain bucket: its level at the instant `at`, the calls in flight, and until when it is closed or paused.

    steps_from: for a stepped quota an instant at which a step came. begun: something is stored of it. swept_from: what
    is over is swept from then on. last_place: the latest that somebody who waits was told; firm_place: the same for
    those before whom tokens came back; largest_place: the most tokens that one of them waits for. line: who waits
    without a place; came: how many ever did. after: the bucket as it stood after the last command, though that left no
    trace.
    """

    quota: Quota
    level: Fraction = Fraction(0)
    at: int = 0
    steps_from: int = 0
    begun: bool = False
    closed_until: int | None = None
    paused_until: int | None = None
    calls: dict[str, Held] = field(default_factory=dict[str, Held])
    swept_from: int | None = None
    last_place: int = 0
    firm_place: int = 0
    largest_place: int = 0
    line: tuple[Waiting, ...] = ()
    came: int = 0
    events: tuple[Event, ...] = ()
    boundless: bool = False
    touched: bool = False
    after: Self | None = None

    @classmethod
    def new(cls, quota: Quota, now: int) -> Self:
        """Return a bucket that nobody has used."""
        start = quota.capacity if quota.initial is None else quota.initial
        return cls(quota, Fraction(start), now, now)

    @property
    def capacity(self) -> int:
        """To so many tokens it refills."""
        return END_OF_TIME**2 if self.boundless else self.quota.capacity

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
        """Whole tokens."""
        return math.floor(self.level)

    @property
    def held(self) -> int:
        """Tokens of calls in flight."""
        return sum(call.tokens for call in self.calls.values() if not call.charged)

    @property
    def beside(self) -> int:
        """Tokens that are in the balance and set aside: none, what is held was taken."""
        return 0

    @property
    def available(self) -> int:
        """Whole tokens that nobody has set aside."""
        return self.balance - self.beside

    def alike(self) -> Self:
        """Return a copy that lives its own life."""
        twin = copy(self)
        twin.calls = dict(self.calls)
        return twin

    def seen(self, now: int) -> Self:
        """Return the bucket as it stands at `now`."""
        twin = self.alike()
        twin.touched, twin.after = False, None
        if not twin.begun:
            twin.at = twin.steps_from = now
            twin.touched = twin.level < twin.capacity and twin.is_known
        twin.live_until(now)
        return twin

    def asked(self, now: int, command: Callable[[Self], T]) -> T:
        """Carry a command to the bucket as it stands at `now`; without a trace if nothing came of it."""
        twin = self.seen(now)
        answer = command(twin)
        if twin.touched:
            twin.begun = True
            self.__dict__.update(twin.__dict__)
        self.after = twin
        return answer

    def look(self, now: int, *, mended: bool = False) -> None:
        """Let somebody look. mended: damage was found, and is stored as it was mended."""

        def note(bucket: Self) -> None:
            bucket.touched |= mended

        self.asked(now, note)

    @property
    def is_known(self) -> bool:
        """Whether there is a balance."""
        return True

    # --- time

    def live_until(self, now: int) -> None:
        """Let time pass until `now`, by whoever's clock that is."""
        self.correct_what_lies_ahead(now)
        if self.swept_from is not None and self.swept_from <= now:
            self.sweep(now)
        if any(each.told + GONE_AFTER_US <= now for each in self.line):
            self.stay([each for each in self.line if each.told + GONE_AFTER_US > now])
        self.flow_until(now)
        self.open_if_it_may(now)
        if self.paused_until is not None and self.paused_until <= now:
            self.paused_until = None

    def sweep(self, now: int) -> None:
        """End what is over, each at its own instant."""
        for name, call in sorted(self.calls.items(), key=lambda item: item[1].over):
            if call.over > now:
                continue
            del self.calls[name]
            if not call.charged:
                self.flow_until(call.ends)
                self.run_out(name, call, now)
        first_over = min((call.over for call in self.calls.values()), default=None)
        self.swept_from = None if first_over is None else max(first_over, now + SWEPT_US)
        self.touched = True

    def run_out(self, name: str, call: Held, now: int) -> None:
        """Forget a call that ran out: its tokens were taken when it was opened."""

    def flow_until(self, now: int) -> None:
        """Refill. A clock that lags behind brings nothing, nor does a bucket that is full get fuller."""
        if now <= self.at:
            return
        if self.refill == 0:
            self.level, self.steps_from = Fraction(self.balance), now
        elif self.quota.stepped:
            self._take_steps_until(now)
        elif self.balance >= self.capacity:
            self.level = Fraction(self.balance)  # no part of a token is earned beside a full bucket
        else:
            earned = Fraction(self.refill * (now - self.at), self.period_us)
            self.level = min(Fraction(self.capacity), self.level + earned)
        # Between two steps a clock that goes back does no harm.
        self.at = self.steps_from if self.quota.stepped else now

    def _take_steps_until(self, now: int) -> None:
        steps = (now - self.steps_from) // self.period_us
        earned = steps * self.refill
        self.level = max(self.level, min(Fraction(self.capacity), self.level + earned))
        self.steps_from += steps * self.period_us

    def correct_what_lies_ahead(self, now: int) -> None:
        """What is further ahead than clocks may differ can't be right."""
        too_far = self.at - now if self.at > now + CLOCKS_APART_US else 0
        if too_far:
            self.at = self.steps_from = now
            self.touched = True
        self.tell_nearer(too_far, now)
        if self.paused_until is not None and self.paused_until > now + A_DAY_US + CLOCKS_APART_US:
            self.paused_until, self.touched = now + A_DAY_US, True
        for name, call in self.calls.items():
            if call.ends > now + call.lives + CLOCKS_APART_US:
                self.calls[name] = replace(call, ends=now + call.lives + CLOCKS_APART_US)
                self.touched = True
        if self.calls:
            first_over = min(call.over for call in self.calls.values())
            latest = max(first_over, now + SWEPT_US)
            self.swept_from = first_over if self.swept_from is None else min(self.swept_from, latest)
        self.correct_places(now)

    def correct_places(self, now: int) -> None:
        """Nobody was told more than the refill of all debt and a capacity, and a period, from now."""
        need = self.capacity - min(0, self.balance)
        takes = self.time_of(need, math.ceil) if self.refill else END_OF_TIME
        period_us = self.period_us if self.quota.stepped else self.quota.rate_period_us
        for name in ("last_place", "firm_place"):
            if getattr(self, name) > now + takes + period_us + CLOCKS_APART_US:
                setattr(self, name, 0)
                self.touched = True

    # --- the line

    def stay(self, line: Iterable[Waiting]) -> None:
        """Let these stand in line, and nobody else."""
        self.line, self.touched = tuple(line), True

    def tell_nearer(self, by: int, now: int) -> None:
        """Where the clock went back, whoever stands in line comes as much earlier; nobody later than in a day."""
        told = [min(each.told, now + A_DAY_US, max(now, each.told - by)) for each in self.line]
        if told != [each.told for each in self.line]:
            self.stay(replace(each, told=at) for each, at in zip(self.line, told, strict=True))

    def before(self, keep: int, ticket: str | None, now: int) -> int:
        """Return the tokens of those in line before a request, without those who are late."""
        turn = next((each.turn for each in self.line if each.name == ticket), (keep, END_OF_TIME))
        return sum(each.tokens for each in self.line if each.turn < turn and now <= each.told + LATE_AFTER_US)

    def stand(self, ticket: str | None, tokens: int, keep: int, answer: Answer, now: int) -> None:
        """Let who was refused take a place in line, or keep the one that it has, if it wants one."""
        if ticket is None or answer.reason in {Reason.UNKNOWN, Reason.TOO_LARGE}:
            return
        number = next((each.number for each in self.line if each.name == ticket), None)
        if number is None:
            self.came = number = self.came + 1
        told = now + min(answer.wait, A_DAY_US)
        others = [each for each in self.line if each.name != ticket]
        self.stay([*others, Waiting(ticket, tokens, keep, number, told)])

    def leave(self, ticket: str | None) -> bool:
        """Leave the line; return whether somebody of that name stood there."""
        staying = tuple(each for each in self.line if each.name != ticket)
        if staying == self.line:
            return False
        self.stay(staying)
        return True

    # --- asking

    def needed(self, tokens: int) -> int:
        """Return what must be available for a grant: it may leave debt up to the overdraft, not begin in debt."""
        return max(1, tokens - self.quota.overdraft)

    def request(self, tokens: int, keep: int, now: int, patience: int | None, ticket: str | None) -> Answer:
        """Return what a request comes to; it may begin a recharge. patience: how long it would wait for a place.

        ticket: its name in line; None: it doesn't stand there.
        """
        end = self.end_of_recharge(tokens, keep, now)
        if self.paused_until is None and end != self.closed_until:
            self.closed_until, self.touched = end, True
        answer = self.judged(tokens, keep, now, ticket)
        queues = self.quota.recharge_to is None and keep == 0 and patience is not None
        queues = queues and not self.before(keep, ticket, now)
        if answer.reason is Reason.EMPTY and queues and answer.wait < END_OF_TIME and answer.wait <= (patience or 0):
            return Answer(granted=True, reason=Reason.GRANTED, place=answer.wait)
        return answer

    def judged(self, tokens: int, keep: int, now: int, ticket: str | None) -> Answer:
        """Return what a request would come to, without a place."""
        if tokens == 0:
            return Answer(granted=True, reason=Reason.GRANTED)
        answer = self.judged_open(tokens, keep, now, ticket)
        if self.paused_until is None:
            return answer
        return Answer(granted=False, reason=Reason.PAUSED, wait=max(self.paused_until - now, answer.wait))

    def judged_open(self, tokens: int, keep: int, now: int, ticket: str | None) -> Answer:
        """Return the same, pauses aside. Who passes others finds all of its tokens beside theirs."""
        wanted, ahead = self.needed(tokens) + keep, self.before(keep, ticket, now)
        if self.balance < wanted and wanted > self.capacity:
            return Answer(granted=False, reason=Reason.TOO_LARGE, wait=END_OF_TIME)
        enough = self.first_with(wanted + ahead, now)
        end = self.end_of_recharge(tokens, keep, now)
        if end is not None:
            return Answer(granted=False, reason=Reason.RECHARGING, wait=until(max(end, enough), now))
        if self.balance < (tokens + keep + ahead if ahead else wanted):
            return Answer(granted=False, reason=Reason.EMPTY, wait=until(enough, now) if enough > now else SOON_US)
        return Answer(granted=True, reason=Reason.GRANTED)

    def first_with(self, wanted: int, now: int) -> int:
        """Return the first instant from `now` at which the refill, capacity aside, has brought the balance to that."""
        twin = self.alike()
        twin.boundless = True

        def has_enough(at: int) -> bool:
            later = copy(twin)
            later.flow_until(at)
            return later.balance >= wanted

        return first(has_enough, now)

    # --- recharging

    def recharged_at(self, now: int) -> int:
        """Return when a recharge that begins now ends."""
        return self.first_with(min(self.quota.recharge_to or 0, self.capacity) + self.beside, now)

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

    def acquire(self, tokens: int, keep: int, now: int, patience: int | None, ticket: str | None = None) -> Answer:
        """Take tokens, or a place, or stand in line."""

        def take(bucket: Self) -> Answer:
            answer = bucket.request(tokens, keep, now, patience, ticket)
            if answer.granted:
                bucket.leave(ticket)
            else:
                bucket.stand(ticket, tokens, keep, answer, now)
            if answer.granted and tokens:
                bucket.level -= tokens
                bucket.give(tokens)
                if answer.place:
                    bucket.largest_place = max(tokens, bucket.largest_place if bucket.last_place > now else 0)
                    bucket.last_place = max(bucket.last_place, now + answer.place)
            return answer

        return self.asked(now, take)

    def reserve(self, name: str, tokens: int, lives: int, keep: int, now: int, ticket: str | None = None) -> Answer:
        """Take tokens for a call, or stand in line. One that is open is answered as before."""

        def open_a_call(bucket: Self) -> Answer:
            if name in bucket.calls:
                return Answer(granted=True, reason=Reason.GRANTED)
            answer = bucket.request(tokens, keep, now, None, ticket)
            if answer.granted:
                bucket.level -= tokens
                bucket.remember(name, Held(tokens, now + lives, lives))
                bucket.give(tokens)
                bucket.leave(ticket)
            else:
                bucket.stand(ticket, tokens, keep, answer, now)
            return answer

        return self.asked(now, open_a_call)

    def remember(self, name: str, call: Held) -> None:
        """Keep a call, or a refund, in mind."""
        self.calls[name] = call
        self.swept_from = call.over if self.swept_from is None else min(self.swept_from, call.over)
        self.touched = True

    def settle(self, name: str, actual: int | None, now: int) -> bool:
        """End a call at its cost; return whether it was known."""
        return self.asked(now, lambda bucket: bucket.settled(name, actual, now))

    def settled(self, name: str, actual: int | None, now: int) -> bool:
        """End it in a bucket as it stands."""
        call = self.calls.pop(name, None)
        if call is None:
            return False
        self.touched = True
        unused = 0 if actual is None else call.tokens - actual
        if unused < 0:
            self.level += unused  # beyond its estimate nobody was asked for it
        else:
            self.take_back(unused, max(0, call.ends - call.lives), now)
        self.open_if_it_may(now)
        return True

    def cancel(self, name: str, now: int) -> bool:
        """End a call that was never made, or a wait in line; return whether it was known."""

        def end(bucket: Self) -> bool:
            left = bucket.leave(name)
            return bucket.settled(name, 0, now) or left

        return self.asked(now, end)

    def refund(self, name: str, tokens: int, own: int | None, now: int) -> bool:
        """Give back what was taken for the place `own`, once; return whether it counted."""

        def give_back(bucket: Self) -> bool:
            if name in bucket.calls:
                return False
            bucket.remember(name, Held(0, now, REFUNDS_KEPT_US, charged=True))
            bucket.take_back(tokens, own or 0, now)
            bucket.open_if_it_may(now)
            return True

        return self.asked(now, give_back)

    def take_back(self, tokens: int, own: int, now: int) -> None:
        """Take back what was given for the instant `own`: what is promised to the places ahead stays given."""
        if not tokens:
            return
        back, ahead = tokens, self.last_place > now
        if ahead and self.last_place > own:
            back = max(0, tokens - self.flows_between(max(own, now), self.last_place))
        if ahead and own < now:
            # It must not run over before the largest place is reached.
            by_then = max(0, self.balance + self.flows_between(now, self.last_place))
            back = min(back, max(0, self.capacity - self.largest_place - by_then))
        if back and ahead and own < self.last_place:
            self.firm_place = self.last_place
        elif back and ahead:
            self.last_place = max(self.firm_place, 0, own - self.time_of(tokens, math.floor) if self.refill else own)
        self.fill(back)

    def fill(self, tokens: int) -> None:
        """Put tokens back, up to capacity; a full bucket has no part of a token under way."""
        fits = min(tokens, max(0, self.capacity - self.balance))
        self.level += fits
        self.give(-fits)
        if tokens and self.balance >= self.capacity and not self.quota.stepped:
            self.level = Fraction(self.balance)

    def flows_between(self, start: int, end: int) -> int:
        """Return the most tokens that flow in from one instant to another."""
        periods = Fraction(max(0, end - start), self.period_us)
        return math.ceil(periods) * self.refill if self.quota.stepped else math.ceil(periods * self.refill)

    def time_of(self, tokens: int, rounded: Callable[[Fraction], int]) -> int:
        """Return how long so many tokens take, a step or a microsecond `rounded`."""
        periods = Fraction(tokens, self.refill)
        return rounded(periods) * self.period_us if self.quota.stepped else rounded(periods * self.period_us)

    def pause(self, lasts: int, now: int) -> None:
        """Refuse everybody for a while; 0 ends it."""

        def stop(bucket: Self) -> None:
            bucket.paused_until = now + min(lasts, A_DAY_US) if lasts else None
            bucket.touched = True

        self.asked(now, stop)

    def give(self, tokens: int) -> None:
        """Write down that tokens went out, or came back."""
        if tokens:
            self.events += (Event(self.at, tokens),)
            self.touched = True

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
        """What is known of a call is lost."""
        del self.calls[name]


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
