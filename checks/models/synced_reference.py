"""A synced bucket as the rules have it in words: `reference` with a server that tells the balance. Nothing is shared.

There are no sequence numbers: each call knows whether it was opened, and ran out, since the server last told the
balance. A wait is searched for on a copy, in which calls in flight cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from fractions import Fraction
from typing import Final, Self

from checks.models.reference import CLOCKS_APART_US, END_OF_TIME, SOON_US, Answer, Held, Reference, until
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Verdict
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading

CLAIM_LASTS_US: Final = 20_000_000
"""Whoever claims the probe has it for so long."""

SHUT_OUT_US: Final = 120_000_000
"""A reading seen outside a call counts, whatever its time, if the last one is older."""

NEAR_US: Final = 5_000_000
"""So close together the server's times tell no order."""

JUMP_US: Final = 60_000_000
"""A server's time that moved so much more or less than ours tells none either."""

LONGEST_STEP_US: Final = 600_000_000
"""A step that is said to come later than that is not waited for."""

HOUR_US: Final = 3_600_000_000
"""Failed probes back off up to this; what is kept back halves in this time."""


class Order(Enum):
    """How what the server says lies to what it said last."""

    LATER = auto()
    NEAR = auto()
    EARLIER = auto()
    JUMPED = auto()


@dataclass(frozen=True)
class Told(Answer):
    """What a request comes to; probe: the caller is to ask the server. scout: by going there itself."""

    probe: bool = False
    scout: bool = False


@dataclass(frozen=True)
class Ended:
    """What came of the end of a call, or of a reading."""

    found: bool
    verdict: Verdict = Verdict.NONE
    drift: int | None = None


@dataclass
class SyncedReference(Reference):
    """One synced bucket. Its level means nothing until it is `known`.

    start: what was available when the balance was last told, or began at 0; `events` are those since then.
    read_at: when the balance was last told. server_time, server_time_at: what the server last said of its time, and
    when by ours. claimed_until, failures, returned: of the probe. kept, kept_at: what is left to somebody else, and
    from when it halves. stretched_us: how long the step under way takes, if longer than a period.
    """

    known: bool = True
    start: int = 0
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

    @classmethod
    def new(cls, quota: Quota, now: int) -> Self:
        """Return a bucket that nobody has used: without `initial` nobody knows what is in it."""
        start = quota.initial or 0
        return cls(quota, Fraction(start), now, now, known=quota.initial is not None, start=start)

    @property
    def capacity(self) -> int:
        """To so many tokens it refills, as the server last told."""
        return super().capacity if self.boundless or self.told_capacity is None else self.told_capacity

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
    def told_balance(self) -> int | None:
        """Whole tokens, with what is held; None: unknown."""
        return self.balance if self.known else None

    @property
    def is_known(self) -> bool:
        """Whether there is a balance."""
        return self.known

    @property
    def beside(self) -> int:
        """Tokens set aside for calls in flight: the balance has them, since the server has."""
        return self.held

    # --- time

    def flow_until(self, now: int) -> None:
        """Refill. An unknown balance begins at 0 when the probe that should have told it has failed."""
        if not self.known and self.claimed_until is not None and now >= self.claimed_until:
            self.known, self.level, self.start, self.events = True, Fraction(0), 0, ()
            self.at = self.steps_from = max(self.at, self.claimed_until)
        if self.known:
            super().flow_until(now)
        else:
            self.at = self.steps_from = max(self.at, now)

    def run_out(self, name: str, call: Held, now: int) -> None:
        """Take the tokens of a call that ran out, and remember it; from an unknown balance there is nothing to take."""
        cost = call.tokens if self.known else 0
        self.level -= cost
        call = replace(call, tokens=cost, charged=True, charged_since=True)
        if call.over > now:
            self.calls[name] = call

    def correct_what_lies_ahead(self, now: int) -> None:
        """What is further ahead than clocks may differ can't be right."""
        super().correct_what_lies_ahead(now)
        if self.read_at is not None and self.read_at > now + CLOCKS_APART_US:
            self.lose_reading()
            self.touched = True
        if self.kept_at is not None and self.kept_at > now + CLOCKS_APART_US:
            self.kept_at, self.touched = None, True
        if self.server_time_at > now + CLOCKS_APART_US:
            self.server_time_at, self.touched = 0, True
        if self.claimed_until is not None and self.claimed_until > now + CLAIM_LASTS_US + CLOCKS_APART_US:
            self.claimed_until, self.touched = now + CLAIM_LASTS_US, True

    # --- asking

    def judged_open(self, tokens: int, keep: int, now: int, ticket: str | None) -> Answer:
        """Return what a request would come to. One that overdraws goes alone: beside others it must find all.

        In line what calls in flight hold is waited for as if it were spent.
        """
        if not self.known:
            return Answer(granted=False, reason=Reason.UNKNOWN, wait=SOON_US)
        alone, beside = self.needed(tokens), tokens
        aside, ahead = self._aside(keep, self.capacity - alone), self.before(keep, ticket, now)
        alone, beside = alone + aside, beside + aside
        if self.available < alone and alone > self.capacity:
            return Answer(granted=False, reason=Reason.TOO_LARGE, wait=END_OF_TIME)
        stands = ticket is not None or ahead > 0
        enough = self.first_with(alone + ahead + self.held if stands else alone, now)
        end = self.end_of_recharge(tokens, keep, now)
        if end is not None:
            return Answer(granted=False, reason=Reason.RECHARGING, wait=until(max(end, enough), now))
        if self.available - ahead >= (beside if self.held or ahead else alone):
            return Answer(granted=True, reason=Reason.GRANTED)
        if self.held and self.balance - ahead >= alone:
            return Answer(granted=False, reason=Reason.IN_FLIGHT, wait=SOON_US)
        return Answer(granted=False, reason=Reason.EMPTY, wait=until(enough, now) if enough > now else SOON_US)

    def _aside(self, keep: int, most: int) -> int:
        """Return what a request must leave: its `keep`, and what others were seen to spend, in moderation."""
        kept = self.kept_for_others
        return max(keep, min(keep + kept, self.capacity // 3, most)) if kept else keep

    @property
    def kept_for_others(self) -> int:
        """Tokens left to somebody else: a third of the capacity at most."""
        return min(self.kept, self.capacity // 3)

    def end_of_recharge(self, tokens: int, keep: int, now: int) -> int | None:
        """Return until when the bucket is closed for a request: an unknown balance has nothing to recharge."""
        return super().end_of_recharge(tokens, keep, now) if self.known else None

    def open_if_it_may(self, now: int) -> None:
        """A recharge ends no later than the bucket as it is now will be recharged."""
        if self.known:
            super().open_if_it_may(now)
        else:
            self.closed_until = None

    # --- what is done

    def take(self, tokens: int, keep: int, now: int, probe_after: int | None, ticket: str | None = None) -> Told:
        """Take tokens now, or be told when, and perhaps to ask the server."""

        def take(bucket: Self) -> Told:
            answer = bucket.request(tokens, keep, now, None, ticket)
            if not answer.granted:
                return bucket.refused(tokens, keep, now, probe_after, ticket)
            bucket.leave(ticket)
            if bucket.known:
                bucket.level -= tokens
            bucket.give(tokens)
            return Told(granted=True, reason=Reason.GRANTED)

        return self.asked(now, take)

    def open(
        self,
        name: str,
        call: Held,
        keep: int,
        now: int,
        probe_after: int | None,
        ticket: str | None = None,
        *,
        scout: bool,
    ) -> Told:
        """Set tokens aside; a scout that is refused, and told to ask the server, goes through."""

        def open_a_call(bucket: Self) -> Told:
            if name in bucket.calls:
                return Told(granted=True, reason=Reason.GRANTED)
            told = Told(granted=True, reason=Reason.GRANTED)
            if not bucket.request(call.tokens, keep, now, None, ticket).granted:
                told = bucket.refused(call.tokens, keep, now, probe_after, ticket)
            if scout and told.probe:
                told = Told(granted=True, reason=Reason.GRANTED, probe=True, scout=True)
            if told.granted:
                bucket.remember(name, call)
                bucket.give(call.tokens)
                bucket.leave(ticket)
            return told

        return self.asked(now, open_a_call)

    def refused(self, tokens: int, keep: int, now: int, probe_after: int | None, ticket: str | None) -> Told:
        """Return what a refusal says: perhaps to ask the server. Who wants to stands in line."""
        probe = self.paused_until is None and self.wants_to_know(now, probe_after)
        if probe:
            self._claim(now)
        answer = self.judged(tokens, keep, now, ticket)
        self.stand(ticket, tokens, keep, answer, now)
        return Told(granted=False, reason=answer.reason, wait=answer.wait, probe=probe)

    def end(self, name: str, actual: int | None, reading: Reading | None, now: int, *, refused: bool = False) -> Ended:
        """End a call at its cost, which the answer's reading has in it already if that is the latest word."""
        return self.asked(now, lambda bucket: bucket.ended(name, actual, reading, now, refused=refused))

    def ended(self, name: str, actual: int | None, reading: Reading | None, now: int, *, refused: bool) -> Ended:
        """End it in a bucket as it stands."""
        call = self.calls.pop(name, None)
        if call is None:
            return self.hear_now(reading, now, found=False)
        self.touched = True
        return self.end_call(call, actual, reading, now, refused=refused)

    def end_call(self, call: Held, actual: int | None, reading: Reading | None, now: int, *, refused: bool) -> Ended:
        """End a call that is no more in mind."""
        cost = call.tokens if actual is None else actual
        before = call.tokens if call.charged and call.charged_since else 0
        # What was set aside, or charged, comes free again; its cost, as far as it was asked for, stays given.
        self.give(min(cost, call.tokens) - (before if call.charged else call.tokens))
        since = max(0, call.ends - call.lives)
        order = None if reading is None else self._order(reading, since, now)
        if reading is not None and (self._nothing_known() or call.opened_since or order is Order.LATER):
            expected = self.balance + before - cost if self.known else None
            return Ended(found=True, verdict=Verdict.TAKEN, drift=self._believe(reading, expected, since, now))
        if order is not None:
            cost = 0
        if self.known:
            self._correct(before - cost)
            if refused and call.opened_since:
                self.level -= max(0, self.balance)
        drift = None if reading is None else self._lower(reading, order, now)
        verdict = Verdict.NONE if reading is None else Verdict.STALE if drift is None else Verdict.TAKEN
        self.open_if_it_may(now)
        return Ended(found=True, verdict=verdict, drift=drift)

    def _correct(self, by: int) -> None:
        """Give tokens back, up to capacity, or take more; a full bucket has no part of a token under way."""
        self.level += min(by, max(0, self.capacity - self.balance))
        if by > 0 and self.balance >= self.capacity and not self.quota.stepped:
            self.level = Fraction(self.balance)

    def take_back(self, tokens: int, own: int, now: int) -> None:  # noqa: ARG002 - there are no places
        """Take back what was not used."""
        if self.known:
            self.fill(tokens)

    def give_up(self, name: str, now: int) -> Ended:
        """End a call that was never made, or a wait in line."""

        def end(bucket: Self) -> Ended:
            left = bucket.leave(name)
            ended = bucket.ended(name, 0, None, now, refused=False)
            return replace(ended, found=ended.found or left)

        return self.asked(now, end)

    # --- what the server says

    def hear(self, reading: Reading, now: int) -> Ended:
        """Take a reading that was seen outside a call, if it is news."""
        return self.asked(now, lambda bucket: bucket.hear_now(reading, now))

    def hear_now(self, reading: Reading | None, now: int, *, found: bool = True) -> Ended:
        """Take it on a bucket as it stands."""
        if reading is None:
            return Ended(found)
        order = self._order(reading, now, now)
        is_old = now - (self.read_at or 0) > SHUT_OUT_US
        if self._nothing_known() or order is Order.LATER or self.server_time is None or is_old:
            return Ended(found, Verdict.TAKEN, self._believe(reading, self.told_balance, now, now))
        drift = self._lower(reading, order, now)
        return Ended(found, Verdict.STALE if drift is None else Verdict.TAKEN, drift)

    def _nothing_known(self) -> bool:
        return not self.known or self.read_at is None

    def _order(self, reading: Reading, since: int, now: int) -> Order | None:
        """Return whether the server said this after what it said last; None: nobody can tell that it said when.

        since: it was said then at the earliest.
        """
        told, last = reading.server_time_us, self.server_time
        if told is None or last is None:
            return None
        moved = told - last
        if not since - JUMP_US <= self.server_time_at + moved <= now + JUMP_US:
            return Order.JUMPED
        if moved > 0:
            return Order.LATER
        return Order.NEAR if moved >= -NEAR_US else Order.EARLIER

    def _lower(self, reading: Reading, order: Order | None, now: int) -> int | None:
        """Where nothing tells the order take the lower balance; return how much lower it is, None if it isn't taken."""
        if order not in {Order.NEAR, Order.JUMPED} or not self.known:
            return None
        if order is Order.JUMPED:
            self.server_time, self.server_time_at, self.touched = reading.server_time_us, now, True
        if self.claimed_until is not None:
            # The server did answer.
            self.claimed_until, self.failures, self.touched = None, 0, True
        if reading.balance >= self.balance:
            return None
        self.drift = reading.balance - self.balance
        self._begin_from(reading.balance)
        return self.drift

    def _begin_from(self, balance: int) -> None:
        """Go on from what the server has."""
        self.known, self.level, self.touched = True, Fraction(balance), True
        self.calls = {n: replace(c, opened_since=False, charged_since=False) for n, c in self.calls.items()}
        self.start, self.events = self.available, ()

    def _believe(self, reading: Reading, expected: int | None, since: int, now: int) -> int | None:
        """Go on from what the server says, said between `since` and now; return how far that is from `expected`."""
        tells_of_others = self.read_at is not None and self.held == 0
        plan = (self.capacity, self.flow)
        self.drift = None if expected is None else reading.balance - expected
        self._begin_from(reading.balance)
        self.read_at, self.claimed_until, self.failures, self.returned = now, None, 0, False
        told = reading.server_time_us
        if told is not None:
            said_at = now if self.server_time is None else self.server_time_at + told - self.server_time
            self.server_time, self.server_time_at = told, max(min(since, now), min(now, said_at))
        period_us = self.quota.period_us if reading.period_us is None else reading.period_us
        self.told_capacity = self.told_capacity if reading.capacity is None else reading.capacity
        if reading.refill_tokens is not None:
            self.told_flow = (reading.refill_tokens, period_us * reading.refill_periods)
        self.stretched_us = 0
        if self.quota.stepped:
            takes = min(reading.next_refill_in_us or 0, LONGEST_STEP_US)
            self.stretched_us = takes if takes > self.period_us else 0
        same_plan = plan == (self.capacity, self.flow)
        self._learn_of_others(-self.drift if self.drift is not None and tells_of_others and same_plan else 0, now)
        if not self.quota.stepped:
            self.at = max(self.at, now)
        elif reading.next_refill_in_us is not None:
            # The last step came one period before the next one.
            takes = max(period_us, self.stretched_us)
            self.at = self.steps_from = max(0, now + min(takes, reading.next_refill_in_us) - takes)
        self.open_if_it_may(now)
        return self.drift

    def _learn_of_others(self, gap: int, now: int) -> None:
        """Keep a gap back that refill under way doesn't explain; halve what is kept for each hour without."""
        kept, since = self.kept_for_others, now if self.kept_at is None else self.kept_at
        while kept and now - since >= HOUR_US:
            kept, since = kept // 2, since + HOUR_US
        steps_under_way = CLOCKS_APART_US // self.period_us + 1
        if gap > steps_under_way * self.refill:
            kept, since = min(kept + gap, self.capacity // 3), now
        self.kept, self.kept_at = kept, since if kept else None

    # --- the probe

    def claim(self, now: int) -> bool:
        """Claim the probe; return whether nobody else has it."""

        def claim(bucket: Self) -> bool:
            free = bucket.claimed_until is None or now >= bucket.claimed_until
            if free:
                bucket._claim(now)
            return free

        return self.asked(now, claim)

    def unclaim(self, claimed_until: int, now: int) -> bool:
        """Give a claim back; return whether it was under way. The first time since a reading it is free at once."""

        def free(bucket: Self) -> bool:
            if bucket.claimed_until != claimed_until or claimed_until <= now:
                return False
            failed = bucket.returned or (not bucket.known and bucket.failures > 0)
            bucket.claimed_until = now if failed else None
            bucket.returned = bucket.touched = True
            return True

        return self.asked(now, free)

    def wants_to_know(self, now: int, probe_after: int | None) -> bool:
        """Whether a refusal is to ask the server: nothing is known, or not lately, and nobody asks or just failed."""
        if probe_after is None:
            return False
        if not self._nothing_known() and now < (self.read_at or 0) + probe_after:
            return False
        pause = min(probe_after * 2**self.failures, max(probe_after, HOUR_US))
        return self.claimed_until is None or now >= self.claimed_until + pause

    def _claim(self, now: int) -> None:
        self.failures += 1 if self.claimed_until is not None else 0
        self.claimed_until, self.touched = now + CLAIM_LASTS_US, True

    # --- what goes wrong

    def unlearn(self) -> None:
        """Without a balance nothing is known, and it doesn't matter any more what the server said last."""
        self.known, self.events, self.start = False, (), 0
        self.lose_reading()

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
