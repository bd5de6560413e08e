"""What is asked of a bucket, and told to it, as the rules have it in words: slow, and obviously right.

There is no formula for a wait: the first instant at which something comes true is searched for, by letting a copy of
the bucket live on until then, in which calls in flight cost nothing. Whatever is asked is asked of a copy first; it
counts only if something came of it, for a look leaves no trace. `lapse` has what time does to a bucket.

Not modelled: two quotas on one bucket, and numbers near the limit of 2**52.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field, replace
from enum import Enum, auto
from fractions import Fraction
from typing import Final

from checks.models.lapse import A_DAY_US, CLAIM_LASTS_US, CLOCKS_APART_US, END_OF_TIME, Held, Lapse, Waiting, until
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
    Verdict,
)
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading

MOST_FREE: Final = 256
"""The most places that are kept for others once they were given up."""

REFUNDS_KEPT_US: Final = 600_000_000
"""A refund is remembered for so long."""

LATE_AFTER_US: Final = 1_000_000
"""Who stands in line and doesn't come so soon after it was told to, may be passed."""

SOON_US: Final = 1_500_000
"""When to ask again where whoever is before, a call in flight, or the server may end the wait any moment."""

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
class Came:
    """What a command comes to. wait: NEVER is END_OF_TIME. probe: the caller is to ask the server; scout: itself.

    freed: the place is one that somebody gave up. found, verdict, drift: of the end of a call, or of a reading.
    """

    reason: Reason = Reason.GRANTED
    wait: int = 0
    place: int = 0
    probe: bool = False
    scout: bool = False
    found: bool = True
    verdict: Verdict = Verdict.NONE
    drift: int | None = None
    freed: bool = field(default=False, compare=False)

    @property
    def granted(self) -> bool:
        """Whether it was let go."""
        return self.reason is Reason.GRANTED


GRANTED: Final = Came()


class Reference(Lapse):
    """One bucket, plain or synced."""

    def carry_out(self, command: Command, now: int, *, mended: bool = False) -> Came:
        """Carry a command to the bucket as it stands at `now`; without a trace if nothing came of it.

        mended: damage was found, and is stored as it was mended.
        """
        twin = self.seen(now)
        twin.touched |= mended
        came = twin.answered(command, now)
        if twin.touched:
            twin.begun = True
            self.__dict__.update(twin.__dict__)
        self.after = twin
        return came

    def answered(self, command: Command, now: int) -> Came:  # noqa: C901 - a case for each command
        """Carry it out in a bucket as it stands."""
        match command:
            case Acquire():
                return self.take(command, now)
            case Reserve():
                return self.open(command, now)
            case Settle(name, actual, reading, refused):
                return self.end(name, actual, reading, now, refused=refused)
            case Cancel(name):
                left = self.leave(name)
                ended = self.end(name, 0, None, now, refused=False)
                return replace(ended, found=ended.found or left)
            case Refund(name, tokens, own):
                return self.refund(name, tokens, own or 0, now)
            case Reconcile(reading):
                return self.hear(reading, now)
            case ClaimProbe():
                return self.claim(now)
            case Unclaim(claimed_until):
                return self.unclaim(claimed_until, now)
            case Pause(lasts):
                self.paused_until = now + min(lasts, A_DAY_US) if lasts else None
                self.touched = True
            case Peek():
                pass
        return GRANTED

    # --- the line

    def before(self, keep: int, ticket: str | None, now: int) -> int:
        """Return the tokens of those in line before a request."""
        return sum(each.tokens for each in self.those_before(keep, ticket, now))

    def those_before(self, keep: int, ticket: str | None, now: int) -> list[Waiting]:
        """Return those in line before a request, without those who are late. Nobody waits for what can't be had."""
        turn = next((each.turn for each in self.line if each.name == ticket), (keep, END_OF_TIME))
        before = [each for each in self.line if each.turn < turn and now <= each.told + LATE_AFTER_US]
        return [each for each in before if self.needed(each.tokens) + each.keep <= self.capacity]

    def stand(self, ticket: str | None, tokens: int, keep: int, told: Came, now: int) -> None:
        """Let who was refused take a place in line, or keep the one that it has, if it wants one."""
        if ticket is None or told.reason in {Reason.UNKNOWN, Reason.TOO_LARGE}:
            return
        number = self.number(ticket)
        if number is None:
            self.came = number = self.came + 1
        others = [each for each in self.line if each.name != ticket]
        self.stay([*others, Waiting(ticket, tokens, keep, number, now + min(told.wait, A_DAY_US))])

    def number(self, ticket: str | None) -> int | None:
        """Return whose turn it is among those who leave as much to others, by when it came; None: it doesn't stand."""
        return next((each.number for each in self.line if each.name == ticket), None)

    def standing_again(self, command: Reserve, now: int) -> tuple[Waiting, ...]:
        """Return the line in which who was let go and refused by the server stands where it stood, told to come now."""
        number = command.arrived
        if command.ticket and number is not None and number <= self.came and self.number(command.ticket) is None:
            return *self.line, Waiting(command.ticket, command.tokens, command.keep, number, now)
        return self.line

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

    def request(self, tokens: int, keep: int, now: int, patience: int | None, ticket: str | None) -> Came:
        """Return what a request comes to; it may begin a recharge. patience: how long it would wait for a place.

        ticket: its name in line; None: it doesn't stand there.
        """
        end = self.end_of_recharge(tokens, keep, now)
        if self.paused_until is None and end != self.closed_until:
            self.closed_until, self.touched = end, True
        told = self.judged(tokens, keep, now, ticket)
        queues = self.quota.recharge_to is None and keep == 0 and patience is not None
        queues = queues and not self.before(keep, ticket, now)
        if told.reason is Reason.EMPTY and queues:
            free = [at - now for at, most in self.free if most >= tokens and at - now <= told.wait]
            if free and min(free) <= (patience or 0):
                return Came(place=min(free), freed=True)
        if told.reason is Reason.EMPTY and queues and told.wait < END_OF_TIME and told.wait <= (patience or 0):
            return Came(place=told.wait)
        return told

    def judged(self, tokens: int, keep: int, now: int, ticket: str | None) -> Came:
        """Return what a request would come to, without a place."""
        if tokens == 0:
            return GRANTED
        told = self.judged_open(tokens, keep, now, ticket)
        if self.paused_until is None:
            return told
        return Came(Reason.PAUSED, max(self.paused_until - now, told.wait))

    def judged_open(self, tokens: int, keep: int, now: int, ticket: str | None) -> Came:
        """Return the same, pauses aside. One that overdraws goes alone: beside others it must find all.

        So must one who passes others. In line what calls in flight hold is waited for as if it were spent.
        """
        if not self.known:
            return Came(Reason.UNKNOWN, min(SOON_US, until(self.claimed_until or END_OF_TIME, now)))
        alone, together = self.needed(tokens), tokens
        aside, ahead = self.aside(keep, self.capacity - alone), self.before(keep, ticket, now)
        alone, together = alone + aside, together + aside
        if self.available < alone and alone > self.capacity:
            return Came(Reason.TOO_LARGE, END_OF_TIME)
        stands = ticket is not None or ahead > 0
        enough = self.first_with(alone + ahead + self.beside if stands else alone, now)
        if ahead:
            enough = min(enough, max(self.first_with(alone, now), now + A_DAY_US))
        end = self.end_of_recharge(tokens, keep, now)
        if end is not None:
            return Came(Reason.RECHARGING, until(max(end, enough), now))
        if self.available - ahead >= (together if self.beside or ahead else alone):
            return GRANTED
        if self.beside and self.balance - ahead >= alone:
            early = any(each.name == ticket and each.told > now for each in self.line)
            soon = min(SOON_US, until(self.swept_from or END_OF_TIME, now))
            return Came(Reason.IN_FLIGHT, enough - now if early and now < enough < END_OF_TIME else soon)
        if enough <= now:
            late = min(each.told for each in self.those_before(keep, ticket, now)) + LATE_AFTER_US + 1
            enough = min(late, self.first_with(together + ahead + self.beside, now))
        return Came(Reason.EMPTY, until(enough, now))

    def aside(self, keep: int, most: int) -> int:
        """Return what a request must leave: its `keep`, and what others were seen to spend, in moderation."""
        kept = self.kept_for_others
        return max(keep, min(keep + kept, self.capacity // 3, most)) if kept else keep

    @property
    def kept_for_others(self) -> int:
        """Tokens left to somebody else: a third of the capacity at most."""
        return min(self.kept, self.capacity // 3)

    def end_of_recharge(self, tokens: int, keep: int, now: int) -> int | None:
        """Return until when the bucket is closed for a request: it is already, or finding too little closes it now.

        An unknown balance has nothing to recharge.
        """
        if not self.known:
            return None
        if self.quota.recharge_to is None or self.closed_until is not None:
            return self.closed_until
        needed = self.needed(tokens)
        if tokens == 0 or self.available >= needed or needed + keep > self.capacity:
            return None
        end = self.recharged_at(now)
        return end if now < end < END_OF_TIME else None

    def refused(self, tokens: int, keep: int, now: int, probe_after: int | None, ticket: str | None) -> Came:
        """Return what a refusal says: perhaps to ask the server. Who wants to stands in line."""
        probe = self.paused_until is None and self.wants_to_know(now, probe_after)
        if probe:
            self.claim_now(now)
        told = self.judged(tokens, keep, now, ticket)
        self.stand(ticket, tokens, keep, told, now)
        return replace(told, probe=probe)

    # --- what is done

    def take(self, command: Acquire, now: int) -> Came:
        """Take tokens now, or a place, or stand in line; perhaps be told to ask the server."""
        tokens, keep, patience, probe_after, ticket = astuple(command)
        told = self.request(tokens, keep, now, patience, ticket)
        if not told.granted:
            return self.refused(tokens, keep, now, probe_after, ticket)
        self.leave(ticket)
        if told.freed:
            self.fill(now + told.place, tokens)
            return told
        self.level -= tokens
        self.give(tokens)
        if told.place:
            self.wait(tokens, now + told.place, now)
        return told

    def open(self, command: Reserve, now: int) -> Came:
        """Take tokens for a call, or set them aside; a scout that is to ask the server goes through.

        A call that is open is answered as before.
        """
        name, tokens, keep, ticket = command.id, command.tokens, command.keep, command.ticket
        if name in self.calls:
            return GRANTED
        before, self.line = self.line, self.standing_again(command, now)
        told = GRANTED
        if not self.request(tokens, keep, now, None, ticket).granted:
            told = self.refused(tokens, keep, now, command.probe_after_us, ticket)
        if told.reason in {Reason.UNKNOWN, Reason.TOO_LARGE}:
            self.line = before  # such a refusal stands nowhere
        if command.scout and told.probe:
            told = Came(probe=True, scout=True)
        if told.granted:
            self.level -= 0 if self.quota.synced else tokens
            self.remember(name, Held(tokens, now + command.hold_for_us, command.hold_for_us))
            self.give(tokens)
            self.leave(ticket)
        return told

    def remember(self, name: str, call: Held) -> None:
        """Keep a call, or a refund, in mind."""
        self.calls[name] = call
        self.swept_from = call.over if self.swept_from is None else min(self.swept_from, call.over)
        self.touched = True

    def end(self, name: str, actual: int | None, reading: Reading | None, now: int, *, refused: bool) -> Came:
        """End a call at its cost, which the answer's reading has in it already if that is the latest word."""
        call = self.calls.pop(name, None)
        if call is None:
            return self.hear(reading, now, found=False)
        self.touched = True
        if self.quota.synced:
            return self.end_synced(call, actual, reading, now, refused=refused)
        unused = 0 if actual is None else call.tokens - actual
        if unused < 0:
            self.level += unused  # beyond its estimate nobody was asked for it
        else:
            self.take_back(unused, max(0, call.ends - call.lives), now)
        self.open_if_it_may(now)
        return GRANTED

    def end_synced(self, call: Held, actual: int | None, reading: Reading | None, now: int, *, refused: bool) -> Came:
        """End a synced bucket's call that is no more in mind."""
        cost = call.tokens if actual is None else actual
        before = call.tokens if call.charged and call.charged_since else 0
        # What was set aside, or charged, comes free again; its cost, as far as it was asked for, stays given.
        self.give(min(cost, call.tokens) - (before if call.charged else call.tokens))
        since = max(0, call.ends - call.lives)
        order = None if reading is None else self.order(reading, since, now)
        if reading is not None and (self.nothing_known or call.opened_since or order is Order.LATER):
            expected = self.balance + before - cost if self.known else None
            return Came(verdict=Verdict.TAKEN, drift=self.believe(reading, expected, since, now))
        if order is not None:
            cost = 0
        if self.known:
            self.correct(before - cost)
            if refused and call.opened_since:
                self.level -= max(0, self.balance)
        drift = None if reading is None else self.lower(reading, order, now)
        verdict = Verdict.NONE if reading is None else Verdict.STALE if drift is None else Verdict.TAKEN
        self.open_if_it_may(now)
        return Came(verdict=verdict, drift=drift)

    def refund(self, name: str, tokens: int, own: int, now: int) -> Came:
        """Give back what was taken for the place `own`, once; say whether it counted."""
        if name in self.calls:
            return Came(found=False)
        self.remember(name, Held(0, now, REFUNDS_KEPT_US, charged=True))
        last = self.last_place
        came = self.take_back(tokens, own, now)
        if self.quota.recharge_to is None and now < own <= last:
            # Behind it others wait: whoever fits in may have it.
            kept = min(tokens - came, self.capacity + self.quota.overdraft)
            freed = [(own, kept)] if kept else []
            self.free = tuple(sorted([*self.free, *freed])[-MOST_FREE:])
            while own == last and self.free and self.free[-1][0] >= self.last_place - 1:
                at, kept = self.free[-1]
                self.free = self.free[:-1]
                self.take_back(kept, max(at, self.last_place), now)
        self.open_if_it_may(now)
        return GRANTED

    def fill(self, at: int, tokens: int) -> None:
        """Let somebody have a free place: the tokens went out when it was told first."""
        which = next(n for n, (when, most) in enumerate(self.free) if when == at and most >= tokens)
        left = (at, self.free[which][1] - tokens)
        if left[1]:
            # Of two at one instant either may be given up as the last one.
            self.firm_place = max(self.firm_place, at)
        others = self.free[:which] + self.free[which + 1 :]
        self.free, self.touched = tuple(sorted([*others, left] if left[1] else others)), True

    def wait(self, tokens: int, at: int, now: int) -> None:
        """Note who waits until when, and the most that there is beside what is left after the last one."""
        last = max(self.last_place, at)
        largest = self.largest_place if self.last_place > now else 0
        if at == self.last_place:
            # Of two at one instant either may be given up as the last one.
            self.firm_place = at
        if self.firm_place > now:
            largest += tokens - (self.balance_by(last) - self.balance_by(self.last_place))
        self.largest_place = min(max(tokens, largest), self.capacity + self.quota.overdraft)
        self.last_place = last

    def balance_by(self, at: int) -> int:
        """Return the balance at a later instant, capacity aside, if nothing is taken."""
        later = self.alike()
        later.boundless = True
        later.flow_until(at)
        return later.balance

    def take_back(self, tokens: int, own: int, now: int) -> int:
        """Take back what was given for the instant `own`, and say how much. What others were promised stays given."""
        if not tokens or not self.known:
            return 0
        back, ahead = tokens, self.last_place > now
        if ahead and self.last_place > own:
            back = max(0, tokens - self.flows_between(max(own, now), self.last_place))
        if ahead and own <= now:
            # It must not run over before the largest place is reached.
            by_then = max(0, self.balance + self.flows_between(now, self.last_place))
            back = min(back, max(0, self.capacity - self.largest_place - by_then))
        if back and ahead and own < self.last_place:
            self.firm_place = self.last_place
        elif back and ahead:
            # Who goes into debt waits for less than it takes.
            waited = self.time_of(self.needed(tokens), math.floor) if self.refill else 0
            self.last_place = max(self.firm_place, 0, own - waited)
        came = self.correct(back)
        self.give(-came)
        return came

    def correct(self, by: int) -> int:
        """Give tokens back, up to capacity, or take more; a full bucket has no part of a token under way."""
        fits = min(by, max(0, self.capacity - self.balance))
        self.level += fits
        if by > 0 and self.balance >= self.capacity and not self.quota.stepped:
            self.level = Fraction(self.balance)
        return fits

    def flows_between(self, start: int, end: int) -> int:
        """Return the most tokens that flow in from one instant to another."""
        periods = Fraction(max(0, end - start), self.period_us)
        return math.ceil(periods) * self.refill if self.quota.stepped else math.ceil(periods * self.refill)

    def give(self, tokens: int) -> None:
        """Note that tokens went out, or came back."""
        self.given += tokens
        self.touched |= tokens != 0

    # --- what the server says

    def hear(self, reading: Reading | None, now: int, *, found: bool = True) -> Came:
        """Take a reading that was seen outside a call, if it is news."""
        if reading is None:
            return Came(found=found)
        order = self.order(reading, now, now)
        is_old = now - (self.read_at or 0) > SHUT_OUT_US
        # Of a call that is over, found or not, its answer is no news by arriving.
        arrives_last = found and self.server_time is None
        if self.nothing_known or order is Order.LATER or arrives_last or is_old:
            return Came(found=found, verdict=Verdict.TAKEN, drift=self.believe(reading, self.told_balance, now, now))
        drift = self.lower(reading, order, now)
        return Came(found=found, verdict=Verdict.STALE if drift is None else Verdict.TAKEN, drift=drift)

    @property
    def nothing_known(self) -> bool:
        """Whether there is no balance, or nobody who told it."""
        return not self.known or self.read_at is None

    def order(self, reading: Reading, since: int, now: int) -> Order | None:
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

    def lower(self, reading: Reading, order: Order | None, now: int) -> int | None:
        """Where nothing tells the order take the lower balance; return how much lower it is, None if it isn't taken."""
        if order not in {Order.NEAR, Order.JUMPED} or not self.known:
            return None
        if order is Order.JUMPED:
            self.server_time, self.server_time_at, self.touched = reading.server_time_us, now, True
        if self.claimed_until is not None and (self.claimed_until > now or self.failures):
            # The server did answer.
            self.claimed_until, self.failures, self.touched = min(self.claimed_until, now), 0, True
        if reading.balance >= self.balance:
            return None
        self.drift = reading.balance - self.balance
        self.begin_from(reading.balance)
        return self.drift

    def begin_from(self, balance: int) -> None:
        """Go on from what the server has."""
        self.known, self.level, self.touched = True, Fraction(balance), True
        self.calls = {n: replace(c, opened_since=False, charged_since=False) for n, c in self.calls.items()}
        self.start, self.given = self.available, 0

    def believe(self, reading: Reading, expected: int | None, since: int, now: int) -> int | None:
        """Go on from what the server says, said between `since` and now; return how far that is from `expected`."""
        tells_of_others = self.read_at is not None and all(call.charged for call in self.calls.values())
        plan = (self.capacity, self.flow)
        self.drift = None if expected is None else reading.balance - expected
        self.begin_from(reading.balance)
        self.read_at, self.claimed_until, self.failures, self.returned = now, None, 0, False
        told, said_at = reading.server_time_us, min(since, now)
        if told is not None:
            said_at = now if self.server_time is None else self.server_time_at + told - self.server_time
            said_at = max(min(since, now), min(now, said_at))
            self.server_time, self.server_time_at = told, said_at
        elif self.server_time is not None and now > self.server_time_at:
            # By the server's clock it is as much later as by ours.
            self.server_time, self.server_time_at = self.server_time + now - self.server_time_at, now
        period_us = self.quota.period_us if reading.period_us is None else reading.period_us
        self.told_capacity = self.told_capacity if reading.capacity is None else reading.capacity
        if reading.refill_tokens is not None:
            self.told_flow = (reading.refill_tokens, period_us * reading.refill_periods)
        self.stretched_us = 0
        if self.quota.stepped:
            takes = min(reading.next_refill_in_us or 0, LONGEST_STEP_US)
            self.stretched_us = takes if takes > self.period_us else 0
        same_plan = plan == (self.capacity, self.flow)
        self.learn_of_others(
            -self.drift if self.drift is not None and tells_of_others and same_plan else 0, said_at, now
        )
        if not self.quota.stepped:
            self.at = max(self.at, now)
        elif reading.next_refill_in_us is not None:
            # The last step came one period before the next one; nothing else came that the balance hasn't.
            takes = self.stretched_us or min(period_us, self.period_us)
            self.at = self.steps_from = max(0, now + min(takes, reading.next_refill_in_us) - takes)
        else:
            self.steps_from += max(0, now - self.steps_from) // self.period_us * self.period_us
            self.at = self.steps_from
        self.open_if_it_may(now)
        return self.drift

    def learn_of_others(self, gap: int, said_at: int, now: int) -> None:
        """Keep a gap back that refill since it was said doesn't explain; halve what is kept for each hour without."""
        kept, since = self.kept_for_others, now if self.kept_at is None else self.kept_at
        while kept and now - since >= HOUR_US:
            kept, since = kept // 2, since + HOUR_US
        steps_under_way = (now - said_at + CLOCKS_APART_US) // self.period_us + 1
        if gap > steps_under_way * self.refill:
            kept, since = min(kept + gap, self.capacity // 3), now
        self.kept, self.kept_at = kept, since if kept else None

    # --- the probe

    def claim(self, now: int) -> Came:
        """Claim the probe, unless somebody else has it."""
        free = self.claimed_until is None or now >= self.claimed_until
        if free:
            self.claim_now(now)
        return Came(probe=free)

    def unclaim(self, claimed_until: int, now: int) -> Came:
        """Give a claim back; say whether it was under way. The first time since a reading it is free at once."""
        if self.claimed_until != claimed_until or claimed_until <= now:
            return Came(found=False)
        failed = self.returned or (not self.known and self.failures > 0)
        self.claimed_until = now if failed else None
        self.returned = self.touched = True
        return GRANTED

    def wants_to_know(self, now: int, probe_after: int | None) -> bool:
        """Whether a refusal is to ask the server: nothing is known, or not lately, and nobody asks or just failed."""
        if probe_after is None or not self.quota.synced:
            return False
        if not self.nothing_known and now < (self.read_at or 0) + probe_after:
            return False
        pause = min(probe_after * 2**self.failures, max(probe_after, HOUR_US))
        return self.claimed_until is None or now >= self.claimed_until + pause

    def claim_now(self, now: int) -> None:
        """Send somebody to ask; who was sent before and hasn't come back has failed."""
        self.failures += 1 if self.claimed_until is not None else 0
        self.claimed_until, self.touched = now + CLAIM_LASTS_US, True
