"""A bucket as the rules have it in words, as time passes: slow, in exact fractions. Nothing of it is shared.

The level is a fraction, so there is no remainder to carry. There are no sequence numbers: each call knows whether it
was opened, and ran out, since the server last told the balance. Every event is written down, so that what was given can
be counted afterwards. `reference` has what is asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, Self

from keepa_tokens.quota import Quota

CLOCKS_APART_US: Final = 5_000_000
"""Clocks may differ by so much."""

SWEPT_US: Final = 1_000_000
"""What is over is swept away, once in this time at most."""

A_DAY_US: Final = 86_400_000_000
"""No pause is longer, and nobody is told to come later."""

GONE_AFTER_US: Final = 60_000_000
"""Who stands in line and doesn't come so soon after it was told to, has left."""

CLAIM_LASTS_US: Final = 20_000_000
"""Whoever claims the probe has it for so long."""

END_OF_TIME: Final = 2**52


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


@dataclass
class Lapse:
    """One bucket: its level at the instant `at`, the calls in flight, and until when it is closed or paused.

    steps_from: for a stepped quota an instant at which a step came. begun: something is stored of it. known: without
    that the level means nothing. swept_from: what is over is swept from then on. last_place: the latest that somebody
    who waits was told; firm_place: the same for those before whom tokens came back; largest_place: the most tokens that
    one of them waits for. free: places that nobody waits for any more, and their tokens. line: who waits without a
    place; came: how many ever did. start: what was available when the balance was last told, or began; given: what went
    out since, less what came back.

    Synced alone: read_at: when the balance was last told. server_time, server_time_at: what the server last said of its
    time, and when by ours. claimed_until, failures, returned: of the probe. kept, kept_at: what is left to somebody
    else, and from when it halves. stretched_us: how long the step under way takes, if longer than a period.

    after: the bucket as it stood after the last command, though that left no trace.
    """

    quota: Quota
    level: Fraction = Fraction(0)
    at: int = 0
    steps_from: int = 0
    known: bool = True
    start: int = 0
    given: int = 0
    begun: bool = False
    closed_until: int | None = None
    paused_until: int | None = None
    calls: dict[str, Held] = field(default_factory=dict[str, Held])
    swept_from: int | None = None
    last_place: int = 0
    firm_place: int = 0
    largest_place: int = 0
    free: tuple[tuple[int, int], ...] = ()
    line: tuple[Waiting, ...] = ()
    came: int = 0
    read_at: int | None = None
    server_time: int | None = None
    server_time_at: int = 0
    drift: int | None = None
    claimed_until: int | None = None
    failures: int = 0
    returned: bool = False
    kept: int = 0
    kept_at: int | None = None
    told_capacity: int | None = None
    told_flow: tuple[int, int] | None = None
    stretched_us: int = 0
    boundless: bool = False
    touched: bool = False
    after: Lapse | None = None

    @classmethod
    def new(cls, quota: Quota, now: int) -> Self:
        """Return a bucket that nobody has used: nobody knows what is in a synced one without `initial`."""
        start = quota.capacity if quota.initial is None and not quota.synced else quota.initial
        return cls(quota, Fraction(start or 0), now, now, known=start is not None, start=start or 0)

    @property
    def capacity(self) -> int:
        """To so many tokens it refills, as the server last told."""
        if self.boundless:
            return END_OF_TIME**2
        return self.quota.capacity if self.told_capacity is None else self.told_capacity

    @property
    def flow(self) -> tuple[int, int]:
        """Tokens, and the microseconds in which they come, as the server last told, or as the quota has them."""
        refill, period_us = self.quota.refill, self.quota.period_us
        if not self.quota.stepped:
            refill, period_us = self.quota.rate, self.quota.rate_period_us
        if self.told_flow is not None:
            refill, period_us = self.told_flow
        return refill, max(period_us, self.stretched_us)

    @property
    def refill(self) -> int:
        """Tokens that come every `period_us`."""
        return self.flow[0]

    @property
    def period_us(self) -> int:
        """In this time `refill` tokens come."""
        return self.flow[1]

    @property
    def balance(self) -> int:
        """Whole tokens."""
        return math.floor(self.level)

    @property
    def told_balance(self) -> int | None:
        """Whole tokens; None: unknown."""
        return self.balance if self.known else None

    @property
    def held(self) -> int:
        """Tokens of calls in flight."""
        return sum(call.tokens for call in self.calls.values() if not call.charged)

    @property
    def beside(self) -> int:
        """Tokens that are in the balance and set aside: a synced one has them, since the server has."""
        return self.held if self.quota.synced else 0

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
            twin.touched = twin.level < twin.capacity and twin.known
        twin.live_until(now)
        return twin

    def live_until(self, now: int) -> None:
        """Let time pass until `now`, by whoever's clock that is."""
        self.correct_what_lies_ahead(now)
        if self.swept_from is not None and self.swept_from <= now:
            self.sweep(now)
        if any(each.told + GONE_AFTER_US <= now for each in self.line):
            self.stay(each for each in self.line if each.told + GONE_AFTER_US > now)
        self.leave_free(lambda at: at > now)
        self.flow_until(now)
        self.open_if_it_may(now)
        if self.paused_until is not None and self.paused_until <= now:
            self.paused_until = None

    def sweep(self, now: int) -> None:
        """End what is over, each at its own instant. Synced: who ran out is charged, and remembered.

        Of an unknown balance there is nothing to take.
        """
        for name, call in sorted(self.calls.items(), key=lambda item: item[1].over):
            if call.over > now:
                continue
            del self.calls[name]
            if call.charged:
                continue
            self.flow_until(call.ends)
            if not self.quota.synced:
                continue
            cost = call.tokens if self.known else 0
            self.level -= cost
            charged = replace(call, tokens=cost, charged=True, charged_since=True)
            if charged.over > now:
                self.calls[name] = charged
        first_over = min((call.over for call in self.calls.values()), default=None)
        self.swept_from = None if first_over is None else max(first_over, now + SWEPT_US)
        self.touched = True

    def flow_until(self, now: int) -> None:
        """Refill. A clock that lags behind brings nothing, nor does a bucket that is full get fuller.

        An unknown balance begins at 0 when the probe that should have told it has failed.
        """
        if not self.known and self.claimed_until is not None and now >= self.claimed_until:
            self.known, self.level, self.start, self.given = True, Fraction(0), 0, 0
            self.at = self.steps_from = max(self.at, self.claimed_until)
        if not self.known:
            self.at = self.steps_from = max(self.at, now)
            return
        if now <= self.at:
            return
        if self.refill == 0:
            self.level, self.steps_from = Fraction(self.balance), now
        elif self.quota.stepped:
            steps = (now - self.steps_from) // self.period_us
            self.level = max(self.level, min(Fraction(self.capacity), self.level + steps * self.refill))
            self.steps_from += steps * self.period_us
        elif self.balance >= self.capacity:
            self.level = Fraction(self.balance)  # no part of a token is earned beside a full bucket
        else:
            earned = Fraction(self.refill * (now - self.at), self.period_us)
            self.level = min(Fraction(self.capacity), self.level + earned)
        # Between two steps a clock that goes back does no harm.
        self.at = self.steps_from if self.quota.stepped else now

    def first_with(self, wanted: int, now: int) -> int:
        """Return the first instant from `now` at which the refill, capacity aside, has brought the balance to that."""
        twin = self.alike()
        twin.boundless = True

        def has_enough(at: int) -> bool:
            later = copy(twin)
            later.flow_until(at)
            return later.balance >= wanted

        return first(has_enough, now)

    def recharged_at(self, now: int) -> int:
        """Return when a recharge that begins now ends."""
        return self.first_with(min(self.quota.recharge_to or 0, self.capacity) + self.beside, now)

    def open_if_it_may(self, now: int) -> None:
        """A recharge ends no later than the bucket as it is now will be recharged."""
        if not self.known:
            self.closed_until = None
        if self.closed_until is None or self.quota.recharge_to is None:
            return
        end = min(self.closed_until, self.recharged_at(now))
        self.closed_until = end if now < end and self.refill > 0 else None

    def stay(self, line: Iterable[Waiting]) -> None:
        """Let these stand in line, and nobody else."""
        self.line, self.touched = tuple(line), True

    def leave_free(self, may_stay: Callable[[int], bool]) -> None:
        """Forget free places, by their instants."""
        free = tuple(each for each in self.free if may_stay(each[0]))
        self.touched |= free != self.free
        self.free = free

    def time_of(self, tokens: int, rounded: Callable[[Fraction], int]) -> int:
        """Return how long so many tokens take, a step or a microsecond `rounded`."""
        periods = Fraction(tokens, self.refill)
        return rounded(periods) * self.period_us if self.quota.stepped else rounded(periods * self.period_us)

    # --- what lies further ahead than clocks may differ, and what is lost

    def correct_what_lies_ahead(self, now: int) -> None:
        """What is further ahead than clocks may differ can't be right."""
        soon = now + CLOCKS_APART_US
        too_far = self.at - now if self.at > soon else 0
        if too_far:
            self.at = self.steps_from = now
            self.touched = True
        self.tell_nearer(too_far, now)
        if self.paused_until is not None and self.paused_until > soon + A_DAY_US:
            self.paused_until, self.touched = now + A_DAY_US, True
        for name, call in self.calls.items():
            if call.ends > soon + call.lives:
                self.calls[name] = replace(call, ends=soon + call.lives)
                self.touched = True
        if self.calls:
            first_over = min(call.over for call in self.calls.values())
            latest = max(first_over, now + SWEPT_US)
            self.swept_from = first_over if self.swept_from is None else min(self.swept_from, latest)
        self.correct_places(soon)
        if self.read_at is not None and self.read_at > soon:
            self.lose_reading()
            self.touched = True
        if self.kept_at is not None and self.kept_at > soon:
            self.kept_at, self.touched = None, True
        if self.server_time_at > soon:
            self.server_time_at, self.touched = 0, True
        if self.claimed_until is not None and self.claimed_until > soon + CLAIM_LASTS_US:
            self.claimed_until, self.touched = now + CLAIM_LASTS_US, True

    def correct_places(self, soon: int) -> None:
        """Nobody was told more than the refill of all debt and a capacity, and a period, from now."""
        need = self.capacity - min(0, self.balance)
        takes = self.time_of(need, math.ceil) if self.refill else END_OF_TIME
        for name in ("last_place", "firm_place"):
            if getattr(self, name) > soon + takes + self.period_us:
                setattr(self, name, 0)
                self.touched = True
        self.leave_free(lambda at: at <= soon + takes + self.period_us)

    def tell_nearer(self, by: int, now: int) -> None:
        """Where the clock went back, whoever stands in line comes as much earlier; nobody later than in a day."""
        told = [max(min(each.told, now), each.told - by) for each in self.line]
        told = [at if at <= now + A_DAY_US + CLOCKS_APART_US else now + A_DAY_US for at in told]
        if told != [each.told for each in self.line]:
            self.stay(replace(each, told=at) for each, at in zip(self.line, told, strict=True))

    def lose_balance(self, now: int) -> None:
        """A plain bucket goes on from 0, from when that is noticed; of a synced one nothing is known.

        Nor does it matter any more what its server said last.
        """
        if self.quota.synced:
            self.known, self.given, self.start = False, 0, 0
            self.lose_reading()
            return
        self.start += max(0, -self.balance)  # the debt is forgiven
        self.level, self.at, self.steps_from = Fraction(0), now, now

    def lose_time(self, now: int) -> None:
        """Without the instant of the last refill the level stays, and refills from when that is noticed."""
        self.at = self.steps_from = now

    def lose_part(self) -> None:
        """The part of a token that was under way is lost."""
        self.level = Fraction(self.balance)

    def lose_call(self, name: str) -> None:
        """What is known of a call is lost: on a synced bucket what it had set aside is free again."""
        call = self.calls.pop(name)
        self.given -= call.tokens if self.quota.synced and not call.charged else 0

    def lose_reading(self) -> None:
        """Without the time of the last reading the next one counts; a refill of 0 was only as good as its reading."""
        self.read_at = None
        if self.told_flow is not None and self.refill == 0:
            self.lose_flow()

    def lose_order(self) -> None:
        """Nobody knows any more which calls were opened, or ran out, since the last reading: as if none had."""
        since = self.read_at is None
        self.calls = {n: replace(c, opened_since=since, charged_since=since) for n, c in self.calls.items()}

    def lose_flow(self) -> None:
        """The refill is the quota's again; of a part of a token under way as much is left as fits."""
        part, period_us = self.level - self.balance, self.period_us
        self.told_flow = None
        left = part * period_us / self.period_us
        self.level = self.balance + (left if left < 1 else Fraction(0))


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
