"""A synced bucket as the rules have it in words: `reference` with a server that tells the balance. Nothing is shared.

There are no sequence numbers: each call knows whether it was opened, and ran out, since the server last told the
balance. A wait is searched for on a copy, in which holds run out and a probe fails, as they would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, Self

from checks.models.reference import CLOCKS_APART_US, END_OF_TIME, Answer, Held, Reference, first, until
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Verdict
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading

CLAIM_LASTS_US: Final = 20_000_000
"""Whoever claims the probe has it for so long."""

SHUT_OUT_US: Final = 120_000_000
"""A reading seen outside a call counts, whatever its time, if the last one is older."""

HOUR_US: Final = 3_600_000_000
"""Failed probes back off up to this; what is kept back halves in this time."""


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
    read_at, server_time: of the last reading. claimed_until, failures: of the probe. kept, kept_at: what is left to
    somebody else, and from when it halves.
    """

    known: bool = True
    start: int = 0
    read_at: int | None = None
    server_time: int | None = None
    drift: int | None = None
    claimed_until: int | None = None
    failures: int = 0
    kept: int = 0
    kept_at: int | None = None
    told_capacity: int | None = None
    told_flow: tuple[int, int] | None = None

    @classmethod
    def new(cls, quota: Quota, now: int) -> Self:
        """Return a bucket that nobody has used: without `initial` nobody knows what is in it."""
        start = quota.initial or 0
        return cls(quota, Fraction(start), now, now, known=quota.initial is not None, start=start)

    @property
    def capacity(self) -> int:
        """To so many tokens it refills, as the server last told."""
        return self.quota.capacity if self.told_capacity is None else self.told_capacity

    @property
    def flow(self) -> tuple[int, int]:
        """Tokens, and the microseconds in which they come, as the server last told, or as the quota has them."""
        if self.told_flow is not None:
            return self.told_flow
        return (
            (self.quota.refill, self.quota.period_us)
            if self.quota.stepped
            else (self.quota.rate, self.quota.rate_period_us)
        )

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

    def charge(self, call: Held) -> Held:
        """Take the tokens of a call that ran out; from an unknown balance there is nothing to take."""
        charged = super().charge(call)
        return replace(charged, charged_since=True) if self.known else replace(charged, tokens=0, charged_since=True)

    def correct_what_lies_ahead(self, now: int) -> None:
        """What is further ahead than clocks may differ can't be right."""
        super().correct_what_lies_ahead(now)
        if self.read_at is not None and self.read_at > now + CLOCKS_APART_US:
            self.lose_reading()
        if self.kept_at is not None and self.kept_at > now + CLOCKS_APART_US:
            self.kept_at = None
        if self.claimed_until is not None and self.claimed_until > now + CLAIM_LASTS_US + CLOCKS_APART_US:
            self.claimed_until = now + CLAIM_LASTS_US

    def furthest_place(self, now: int) -> int:
        """Return now: there are no places."""
        return now

    # --- asking

    def judged(self, tokens: int, keep: int, now: int) -> Answer:
        """Return what a request would come to. One that overdraws goes alone: beside others it must find all."""
        if tokens == 0:
            return Answer(granted=True, reason=Reason.GRANTED)
        alone, beside = self.needed(tokens), tokens
        aside = self._aside(keep, self.capacity - alone)
        alone, beside = alone + aside, beside + aside
        wait = until(self.first_with_either(alone, beside, now), now)
        if not self.known:
            return Answer(granted=False, reason=Reason.UNKNOWN, wait=wait)
        if self.available < alone and alone > self.capacity:
            return Answer(granted=False, reason=Reason.TOO_LARGE, wait=END_OF_TIME)
        end = self.end_of_recharge(tokens, keep, now)
        if end is not None:
            return Answer(granted=False, reason=Reason.RECHARGING, wait=max(wait, end - now))
        if self.available < (beside if self.held else alone):
            return Answer(granted=False, reason=Reason.EMPTY, wait=wait)
        return Answer(granted=True, reason=Reason.GRANTED)

    def first_with(self, wanted: int, now: int) -> int:
        """Return the first instant from `now` at which so much is available, if nobody does anything until then."""
        return self.first_with_either(wanted, wanted, now)

    def first_with_either(self, alone: int, beside: int, now: int) -> int:
        """Return the same for a call that wants so much if nothing is in flight, and more beside others.

        The probe of an unknown balance fails: it would be good luck if the server told it in time.
        """

        def has_enough(at: int) -> bool:
            twin = self.alike()
            twin.closed_until = None
            if twin.claimed_until is None:
                twin.claimed_until = now + CLAIM_LASTS_US
            twin.live_until(at)
            return twin.known and twin.available >= (beside if twin.held else alone)

        return first(has_enough, now)

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

    def take(self, tokens: int, keep: int, now: int, probe_after: int | None) -> Told:
        """Take tokens now, or be told when, and perhaps to ask the server."""
        self.live_until(now)
        answer = self.request(tokens, keep, now, None)
        if not answer.granted:
            return self._refused(tokens, keep, now, probe_after)
        self.level -= tokens
        self.give(tokens)
        return Told(granted=True, reason=Reason.GRANTED)

    def open(self, name: str, call: Held, keep: int, now: int, probe_after: int | None, *, scout: bool) -> Told:
        """Set tokens aside; a scout that is refused, and told to ask the server, goes through."""
        self.live_until(now)
        known = self.calls.get(name)
        if known is not None:
            return Told(granted=True, reason=Reason.GRANTED, place=max(0, known.ends - known.lives - now))
        answer = self.request(call.tokens, keep, now, None)
        told = (
            Told(granted=True, reason=Reason.GRANTED)
            if answer.granted
            else self._refused(call.tokens, keep, now, probe_after)
        )
        if scout and told.probe:
            told = Told(granted=True, reason=Reason.GRANTED, probe=True, scout=True)
        if told.granted:
            self.calls[name] = call
            self.give(call.tokens)
        return told

    def _refused(self, tokens: int, keep: int, now: int, probe_after: int | None) -> Told:
        probe = self.wants_to_know(now, probe_after)
        if probe:
            self._claim(now)
        answer = self.judged(tokens, keep, now)
        return Told(granted=False, reason=answer.reason, wait=answer.wait, probe=probe)

    def end(self, name: str, actual: int | None, reading: Reading | None, now: int, *, refused: bool = False) -> Ended:
        """End a call at its cost, which the answer's reading has in it already if that is the latest word."""
        self.live_until(now)
        call = self.calls.pop(name, None)
        if call is None:
            return self.hear(reading, now, found=False)
        cost = call.tokens if actual is None else actual
        before = call.tokens if call.charged and call.charged_since else 0
        # What was set aside, or charged, comes free again; its cost, as far as it was asked for, stays given.
        self.give(min(cost, call.tokens) - (before if call.charged else call.tokens))
        if reading is not None and (self._nothing_known() or call.opened_since or self._is_later(reading)):
            expected = self.balance + before - cost if self.known else None
            return Ended(found=True, verdict=Verdict.TAKEN, drift=self._believe(reading, expected, now))
        if reading is not None and self._is_no_later(reading):
            cost = 0
        if self.known:
            self._correct(before - cost)
            if refused and call.opened_since:
                self.level -= max(0, self.balance)
        self.open_if_it_may(now)
        return Ended(found=True, verdict=Verdict.NONE if reading is None else Verdict.STALE)

    def _correct(self, by: int) -> None:
        """Give tokens back, up to capacity, or take more; the part of a token under way stays."""
        self.level += min(by, max(0, self.capacity - self.balance))

    def give_up(self, name: str, now: int) -> Ended:
        """End a call that was never made."""
        return self.end(name, 0, None, now)

    # --- what the server says

    def hear(self, reading: Reading | None, now: int, *, found: bool = True) -> Ended:
        """Take a reading that was seen outside a call, if it is news."""
        self.live_until(now)
        if reading is None:
            return Ended(found)
        news = (
            self._nothing_known()
            or self._is_later(reading)
            or self.server_time is None
            or now - (self.read_at or 0) > SHUT_OUT_US
        )
        if not news:
            return Ended(found, Verdict.STALE)
        return Ended(found, Verdict.TAKEN, self._believe(reading, self.told_balance, now))

    def _nothing_known(self) -> bool:
        return not self.known or self.read_at is None

    def _is_later(self, reading: Reading) -> bool:
        """Whether the server said this after what it said last; in the same second, the lower balance is the later."""
        told, last = reading.server_time_us, self.server_time
        if told is None or last is None:
            return False
        return told > last or (told == last and reading.balance < (self.told_balance or 0))

    def _is_no_later(self, reading: Reading) -> bool:
        told = reading.server_time_us
        return told is not None and self.server_time is not None and told <= self.server_time

    def _believe(self, reading: Reading, expected: int | None, now: int) -> int | None:
        """Go on from what the server says; return how far that is from what was expected."""
        tells_of_others = self.read_at is not None and self.held == 0
        plan = (self.capacity, self.flow)
        self.drift = None if expected is None else reading.balance - expected
        self.known, self.level = True, Fraction(reading.balance)
        self.calls = {n: replace(c, opened_since=False, charged_since=False) for n, c in self.calls.items()}
        self.start, self.events = self.available, ()
        self.read_at, self.claimed_until, self.failures = now, None, 0
        self.server_time = self.server_time if reading.server_time_us is None else reading.server_time_us
        period_us = self.quota.period_us if reading.period_us is None else reading.period_us
        self.told_capacity = self.told_capacity if reading.capacity is None else reading.capacity
        if reading.refill_tokens is not None:
            self.told_flow = (reading.refill_tokens, period_us * reading.refill_periods)
        same_plan = plan == (self.capacity, self.flow)
        self._learn_of_others(-self.drift if self.drift is not None and tells_of_others and same_plan else 0, now)
        if not self.quota.stepped:
            self.at = max(self.at, now)
        elif reading.next_refill_in_us is not None:
            # The last step came one period before the next one.
            self.at = self.steps_from = now + min(period_us, reading.next_refill_in_us) - period_us
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
        self.live_until(now)
        free = self.claimed_until is None or now >= self.claimed_until
        if free:
            self._claim(now)
        return free

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
        self.claimed_until = now + CLAIM_LASTS_US

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
        """The refill is the quota's again; a part of a token under way is kept as time, in whole microseconds."""
        part, (refill, period_us) = self.level - self.balance, self.flow
        self.told_flow = None
        time = part * period_us // refill if refill else 0
        whole = Fraction(self.balance)
        most = Fraction(self.period_us - 1, self.period_us)
        self.level = whole + (min(most, Fraction(time * self.refill, self.period_us)) if self.refill else 0)
