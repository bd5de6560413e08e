"""All the rules of a bucket in words, then in code what each command changes by them, in the same order.

`transition(quota, state, now, command)` is a pure function from any stored state to the next one and an outcome. Times
are whole microseconds, `now` an argument, tokens whole numbers. On a synced bucket `balance` is the projection of what
the server would report, and holds stand beside it: available = balance - held. A plain bucket has no server to ask:
what is held was taken from the balance already, and available = balance.

1. Repair. Any stored thing becomes a sound state first (`repair.py`). What was mended is written back with every
   command, refusals included, and named in the outcome. If `refilled_at` is missing or too far ahead, as after a clock
   went back, the balance stays and refills from now.
2. Refill. The refill brings the balance up to capacity, exactly; a balance above it stays. At refill 0 the balance
   stays and `refilled_at` moves on.
3. Holds. Synced: a hold that runs out is charged to the balance at the instant at which it runs out, and remembered for
   one more `hold_for`. A late settle within that time corrects the charge by the difference, once; if a reading has
   replaced the balance since, it charges its whole cost. An unknown balance is charged nothing. Plain: the tokens are
   taken when the hold is opened; a hold that runs out is forgotten. Holds that run out are swept together, at most once
   a second; what is remembered may stay a minute longer.
4. Admit a request iff the bucket is not closed and available - keep >= max(1, tokens - overdraft). Cost 0 always
   passes. On a synced bucket only a call that is alone may overdraw: beside tokens in flight it is admitted iff
   available - keep >= tokens, since calls may reach the server in another order, and one that overdraws would get the
   others refused. What rule 10 keeps back counts as kept. More than the capacity in effect can admit is TOO_LARGE. A
   request is IN_FLIGHT if only calls in flight keep it from a grant, or if its tokens and theirs together can't be
   counted exactly: ask again soon, since a settle may free tokens any moment, or when the next hold runs out, if that
   is sooner. Otherwise retry_after ends at the earliest instant at which the request can be granted, if the calls in
   flight cost nothing.
5. Recharge. If `recharge_to` is set and a request finds too little even for keep 0, the bucket closes until the refill,
   capacity aside, has brought min(recharge_to, capacity); what the request itself would take doesn't count. A request
   that the capacity can't admit closes nothing. The end is fixed then. Every later step works it out anew and may only
   move it nearer: so the bucket opens early when the balance is there, and no damage can keep it shut. Refill 0 never
   closes a bucket, and an unknown balance has nothing to recharge.
6. Places. On a plain bucket without `recharge_to` an acquire at keep 0 that may wait takes its tokens now and waits for
   its place: first come, first served. Everybody else is told when to ask again. Tokens may be given back: by a
   cancelled place, an unused grant, a settle at less than was held. They come back whole if no place lies ahead, or if
   they were taken for the last place. Otherwise the places between were told their instants for good, and only what
   exceeds the refill from the tokens' own instant (now, if that is past) to the last place comes back. And if their own
   instant is now or past, no more comes back than fits under the capacity when the places ahead come, beside what lies
   in the bucket then. When the last place is given up, the one before it counts as late as it can have been. So in any
   interval at most capacity + overdraft + refill is let go.
   What doesn't come back of a place that is given up before its instant stays with it, and the place is free: the
   nearest one that is large enough serves the next caller who would otherwise wait as long or longer. What such a
   caller leaves of it stays free. The free places right before the last one come back with it. A change of terms or of
   capacity ends them all; 256 are kept, the latest.
7. Readings replace the balance, and bring refill, capacity and the phase of steps, if they are fresh. A reading is
   fresh if the bucket is unknown or has no reading, if its call was opened after the last reading was applied, or if
   its server's time is later than the last one's. Outside a call it is also fresh if the last reading is older than two
   minutes by our clock, or if none so far had a server's time. The latter doesn't hold for a settle whose hold is gone:
   it may have been sent again, and then is no news.
   A server's time up to 5 s before the last one's, or equal, tells no order: the lower of projection and reading is
   taken. The same goes for one that moved over a minute more or less than our clock did (an answer may have been told
   at any time since its call was opened); it also replaces the stored one. A settle whose reading is not fresh charges
   nothing: the newer reading had its cost. But where the reading or the last one has no server's time, they can't be
   put in order: the reading is not adopted, and the cost is charged. If a reading without a server's time is fresh all
   the same, the last server's time moves on as our clock did. If the server refused a call that was opened after the
   last reading, and its answer has no reading, the balance is taken for 0 at most. If `refillIn` is longer than the
   period in effect, steps come at that longer period until the next reading, ten minutes at most. All steps up to the
   reading are in its balance: none comes at once because the phase was left from, or told with, a longer period.
8. Probe: asking the server for a reading. A refusal claims the probe for the caller if nothing is known, or if the last
   reading is older than the caller's `probe_after`; but not while somebody holds the claim, or in the pause after
   failed probes. A claim that ends without a reading is a failed probe, by the clock alone. A claim that was given back
   is free at once, the first time after a reading. A claim also ends with an answer that tells no order, and the next
   one waits as after a failure. A failed probe on an unknown balance starts it at 0, refilling from the end of the
   claim. A request that may be the scout is let through on its claim: its answer brings the reading.
9. Lifetime. A plain bucket is kept until it would be full and its last hold forgotten: a new one would be no
   different. One with an `initial` below capacity is kept for ever, plain or synced. Any other synced one is kept for
   a day at least; if it has an `initial`, for ever while the server's reported terms differ from its own: a new one
   would start at `initial` without them.
10. Others. A fresh reading below the projection shows that somebody else spends, if there was a reading to project
    from, nothing is in flight, refill and capacity are unchanged, and the gap is more than the refill since the reading
    was told can explain. The gap is kept back from then on, for what the others spend before the next reading. Gaps add
    up. Together with a request's `keep` they count up to a third of the capacity, and never so much that the request
    can't be admitted. Readings halve what is kept back for every hour without a gap.
11. The line: every wait without a place. A request that names a ticket and is refused as EMPTY, IN_FLIGHT, RECHARGING
    or PAUSED stands in line. The line is ordered by `keep`, the smallest first, then by arrival. A request is admitted
    iff rule 4 holds after taking away the tokens of the tickets before it that are not late; while there are such, it
    may not overdraw. So small calls can't starve a big one, and one that overdraws gets its turn. Nobody waits for a
    ticket of more than can be admitted.
    A ticket is told the instant at which the refill, capacity aside, has brought its tokens, those of the tickets
    before it and those of the calls in flight; each look tells it anew. A caller that comes then and finds only calls
    in flight in its way asks again soon. One that comes earlier waits as if their tokens were spent. One that would
    overdraw behind other tickets asks again when the first of those is late, or when there is enough for all. It is
    told a day ahead at most, and nobody waits longer than a day for those before it. Where a clock went back, the told
    instant moves back with `refilled_at`, but not into the past. A ticket is late 1 s past its told instant: others
    may pass it. It lapses a minute past it. A grant or a cancel by the same id leaves the line; if the server then
    refuses the call, its caller may stand again where it stood; one that never stood, as if it had come when it was
    let go. At most 256 stand in line; more get the plain refusal. An unknown balance, claims and scouts don't ask the
    line.
12. Pause. Until it ends every request is refused as PAUSED and claims no probe. A pause lasts a day at most.
13. Terms. A bucket runs on one set of terms, stored with it. A caller with others replaces them, at most once a minute;
    in between it is served by the stored ones. At a change the time since the last whole token or step goes over as
    time; from refill 0 at most a minute's, and nothing at the first change; none from before the last reading, which
    has it in its balance. For a minute after a change the larger of the two capacities bounds, unless the server
    reported one. Then the smaller one bounds, and clips a plain balance. What a request leaves to others (10) goes by
    the capacity that lasts. Plain and synced on one key is a ConfigError.

Here is what each command changes. Whether a request is admitted (4, 5, 8, 11) is in `admission.py`, what a reading
brings (7, 10) in `readings.py`, what a look tells in `telling.py`, repair (1) in `repair.py`. The fast path
(`fast_path.py`) serves a sound bucket on which nothing of 1, 5, 7, 8, 12 and 13 is due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

from ..quota import Quota
from ..units import (
    CLAIM_US,
    DAY_US,
    LIMIT,
    MICROSECONDS,
    MINUTE_US,
    NEVER,
    REFUND_MEMORY_US,
    REORDER_US,
    SWEEP_US,
)
from . import fast_path
from .arithmetic import saturated
from .commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
    Verdict,
)
from .decision import Reason, Snapshot
from .flow import Flow, clipped_at, flow_in_effect, furthest_place, has_places
from .free_places import FreePlace, nearest, with_free, without
from .line import LONGEST_LINE, Ticket, lapses_at, standing
from .reading import Reading
from .readings import Order, adopt, kept_back, lowered, order_of, skip_until_reading
from .repair import new_state, repair
from .state import BucketState, FastTerms, Hold, SoundState
from .telling import Telling, until

_STANDS: Final = frozenset({Reason.EMPTY, Reason.IN_FLIGHT, Reason.RECHARGING, Reason.PAUSED})
"""Refusals after which a caller with a ticket stands in line."""

FAST_US: Final = MINUTE_US
"""The longest that the fast path may serve a bucket before the rules look at all of it again."""

_Numbers: TypeAlias = tuple[tuple[int, int, int], int, int, int, int, int, int, Flow, Quota, int]

LIFETIME_MARGIN_US: Final = 10 * MICROSECONDS
SHORTEST_LIFETIME_US: Final = 60 * MICROSECONDS


def transition(
    quota: Quota, state: BucketState | None, now: int, command: Command
) -> tuple[BucketState | None, Outcome]:
    """Return the state after `command` at `now`, and the outcome. Pure; any stored state will do.

    The state is `state` itself where there is nothing to store: only time has passed. Raises ConfigError for a stored
    format of a newer release, and for a bucket of the other kind; nothing else.
    """
    read = read_as(quota, state, now)
    changed, outcome = carry_out(quota, read, now, command)
    return read.sound.stored(_fast_terms(read.sound, now)) if changed else state, outcome


class Read(NamedTuple):
    """A state as it was read: sound now, and what was mended. must_store: even if the command changes nothing."""

    sound: SoundState
    repaired: tuple[str, ...] = ()
    must_store: bool = False


def read_as(quota: Quota, stored: BucketState | None, now: int) -> Read:
    """Return any stored state as a sound one; raises as `transition`."""
    sound, repaired = repair(quota, stored, now)
    if stored is None:
        # A new bucket that isn't full fills from when it is first seen, even if only by a look: store that instant.
        return Read(sound, must_store=sound.balance is not None and sound.balance < quota.capacity)
    # Lost terms are stored again, so that the next caller's aren't taken for them.
    return Read(sound, repaired, bool(repaired) or stored.quota is None)


def carry_out(callers: Quota, read: Read, now: int, command: Command) -> tuple[bool, Outcome]:
    """Apply `command` to a sound state, in place; return whether there is anything to store, and the outcome.

    If there is nothing to store, only time has passed in the state, and its holds are as they were.
    """
    step = _Step(callers, read.sound, now, read.repaired)
    step.advance()
    step.take_up(callers)
    outcome = step.completed(step.run(command))
    changed = step.changed or read.must_store
    read.sound.version += changed
    return changed, outcome


def is_usual(s: SoundState) -> bool:
    """Whether the fast path may serve a bucket, as long as no hold is due."""
    if s.balance is None or s.line or s.free:
        return False
    return s.closed_until is s.paused_until is s.wide_capacity is None


def _fast_terms(s: SoundState, now: int) -> FastTerms | None:
    """Return the numbers that the fast path needs, and until when it may use them; None: the terms alone are enough."""
    if has_places(s.quota):
        return None
    flow = flow_in_effect(s, now)
    until_us = now + FAST_US if is_usual(s) else 0
    return FastTerms(until_us, flow.capacity, flow.refill, flow.period_us, kept_back(s, flow))


def numbers_of(s: SoundState, flow: Flow) -> _Numbers:
    """Return what the fast path reads of a bucket, in the order of `fast_path.Numbers`."""
    level, places = (s.balance or 0, s.refilled_at, s.carry), (s.last_place, s.firm_place, s.largest_place)
    return level, s.held, s.open, s.sequence, *places, flow, s.quota, s.kept_back


def inspected(state: BucketState | None, now: int) -> Snapshot | None:
    """Return a bucket as it stands by its stored terms; None if there is no bucket, or its terms are lost."""
    if state is None or state.quota is None:
        return None
    return transition(state.quota, state, now, Peek())[1].snapshot


def lifetime_us(state: BucketState, now: int) -> int | None:
    """Return how long a state that `transition` returned must be kept if nobody touches it; None: for ever (rule 9).

    Of a partial state the answer may be too short, since not all holds were read: shorten no lifetime to it.
    """
    if state.quota is None:
        return None
    sound, _ = repair(state.quota, state, now)
    quota, flow = sound.quota, flow_in_effect(sound, now)
    last = max((max(hold.expires_at, hold.due_at) for hold in sound.holds.values()), default=now)
    last = max(last, sound.paused_until or 0, *(lapses_at(each) for each in sound.line))
    if quota.synced and quota.initial is None:
        return max(DAY_US, last - now + LIFETIME_MARGIN_US)
    differs = quota.synced and flow != flow_in_effect(new_state(quota, now), now)
    if differs or (quota.initial is not None and quota.initial < quota.capacity):
        return None
    if flow.refill == 0:
        return DAY_US
    # Calls in flight may still cost a synced bucket what they hold: that refills from the end of the last hold.
    held = sound.held if quota.synced else 0
    start = max(sound.refilled_at, last) if held else sound.refilled_at
    full_at = flow.instant(flow.capacity - (sound.balance or 0) + held, start, 0)
    if full_at == NEVER:
        return None
    return max(DAY_US if quota.synced else SHORTEST_LIFETIME_US, max(full_at, last) - now + LIFETIME_MARGIN_US)


class _Step(Telling):
    """One step of one bucket: a sound state, worked on in place. Lives for one `transition`."""

    __slots__ = ("changed", "ran_out", "terms")

    def __init__(self, callers: Quota, sound: SoundState, now: int, repaired: tuple[str, ...]) -> None:
        super().__init__(callers, sound, now, repaired)
        self.changed = False
        self.ran_out: list[Hold] = []
        self.terms: tuple[Quota, Quota] | None = None

    def run(self, command: Command) -> Outcome:
        return _RUN[type(command)](self, command)

    # 2 and 3: time passes

    def advance(self) -> None:
        """Let the balance flow to now, sweeping what falls due on the way."""
        if self.s.due_at is not None and self.s.due_at <= self.now:
            self._sweep()
        if any(lapses_at(each) <= self.now for each in self.s.line):
            self.s.line, self.changed = standing(self.s.line, self.now), True
        if self.s.free and self.s.free[0].at <= self.now:
            self.s.free, self.changed = tuple(each for each in self.s.free if each.at > self.now), True
        self._flow_to(self.now)
        self._reopen()
        if self.s.paused_until is not None and self.s.paused_until <= self.now:
            self.s.paused_until = None

    def _sweep(self) -> None:
        due = sorted(
            (item for item in self.s.holds.items() if item[1].due_at <= self.now),
            key=lambda item: (item[1].due_at, item[1].opened),
        )
        for hold_id, hold in due:
            del self.s.holds[hold_id]
            if hold.in_flight:
                self._run_out(hold_id, hold)
        first = min((hold.swept_at for hold in self.s.holds.values()), default=None)
        self.s.due_at = None if first is None else max(first, self.now + SWEEP_US)
        self.changed = True

    def _run_out(self, hold_id: str, hold: Hold) -> None:
        s = self.s
        self._flow_to(hold.expires_at)
        self._end(hold)
        self.ran_out.append(hold)
        if not s.quota.synced:
            return
        s.sequence += 1
        charged = 0 if s.balance is None else hold.tokens
        self._correct(-charged)
        remembered = replace(hold, tokens=charged, charged=s.sequence)
        if remembered.due_at > self.now:
            s.holds[hold_id] = remembered

    def _end(self, hold: Hold) -> None:
        self.s.held = max(0, self.s.held - hold.tokens)
        self.s.open = max(0, self.s.open - 1)

    def _flow_to(self, at: int) -> None:
        s = self.s
        if s.balance is None and s.probe_until is not None and at >= s.probe_until:
            # 8: the probe of an unknown balance failed. Start at 0: slow, never stuck.
            s.balance, s.carry = 0, 0
            s.refilled_at = max(s.refilled_at, s.probe_until)
        if s.wide_capacity is not None and at >= clipped_at(s):
            self._clip()
        if s.balance is None:
            s.refilled_at = max(s.refilled_at, at)
        self._fill(at)

    def _fill(self, at: int) -> None:
        s = self.s
        if s.balance is not None:
            s.balance, s.refilled_at, s.carry = self.flow.refilled(s.balance, s.refilled_at, s.carry, at)

    def _clip(self) -> None:
        """End the minute in which the larger capacity bounds (rule 13)."""
        s, at = self.s, clipped_at(self.s)
        self._fill(at)
        s.wide_capacity, s.free = None, ()
        self.flow = flow_in_effect(s, at)
        if s.balance is not None and not s.quota.synced:
            s.balance = min(s.balance, self.flow.capacity)

    # 5: recharge

    def _close_for(self, tokens: int, keep: int) -> None:
        end = self._recharge_ends_at(tokens, keep)
        if end != self.s.closed_until and self.s.paused_until is None:
            self.s.closed_until = end
            self.changed = True

    def _reopen(self) -> None:
        s = self.s
        if s.closed_until is None:
            return
        if s.balance is None or s.quota.recharge_to is None:
            # Nothing to recharge: the balance is unknown, or the terms have no recharge any more.
            s.closed_until = None
            return
        end = min(s.closed_until, self._recharged_at())
        s.closed_until = end if self.now < end and self.flow.refill > 0 else None

    # 6: taking tokens, now or in a place

    def acquire(self, command: Acquire) -> Outcome:
        self._close_for(command.tokens, command.keep)
        s = self.s
        reason, at = self._judge(command.tokens, command.keep, command.ticket)
        free = nearest(s.free, command.tokens, at)
        if free is not None and self._has_place(reason, free.at, command):
            s.free, self.changed = without(s.free, free, command.tokens), True
            if free.tokens > command.tokens:
                # Others may share this instant with it: if one of them is given up, somebody may still be here.
                s.firm_place = max(s.firm_place, free.at)
            self._leave(command.ticket)
            return Outcome(granted=True, place_us=free.at - self.now)
        if not (reason is Reason.GRANTED or self._has_place(reason, at, command)):
            return self._refuse(reason, at, command)
        if at > self.now:
            numbers = fast_path.Numbers(*numbers_of(s, self.flow))
            fast_path.note_place(numbers, self.now, command.tokens, at)
            s.last_place, s.firm_place, s.largest_place = numbers.last_place, numbers.firm_place, numbers.largest_place
        self._take(command.tokens)
        self._leave(command.ticket)
        return Outcome(granted=True, place_us=at - self.now)

    def _has_place(self, reason: Reason, at: int, command: Acquire) -> bool:
        if command.wait_us is None or command.keep or reason is not Reason.EMPTY:
            return False
        queues = has_places(self.s.quota) and not self._before(0, command.ticket)
        return queues and at < NEVER and at - self.now <= command.wait_us

    def _take(self, tokens: int) -> None:
        if tokens and self.s.balance is not None:
            self.s.balance = saturated(self.s.balance - tokens)
            self.changed = True

    def reserve(self, command: Reserve) -> Outcome:
        if command.id in self.s.holds:
            return Outcome(granted=True)
        self._close_for(command.tokens, command.keep)
        # By a number that was never given, or without a ticket, nobody stands again.
        arrived = LIMIT if command.arrived is None or command.arrived > self.s.sequence else command.arrived
        reason, at = self._judge(command.tokens, command.keep, command.ticket, arrived if command.ticket else LIMIT)
        if reason is Reason.GRANTED:
            outcome = Outcome(granted=True, arrived=self._arrived(command.ticket))
        else:
            outcome = self._refuse(reason, at, command, arrived)
        if command.scout and outcome.probe:
            until_us = outcome.claimed_until_us
            outcome = Outcome(granted=True, arrived=outcome.arrived, claimed_until_us=until_us, scout=True)
        if outcome.granted:
            self._open(command)
        return outcome

    def _open(self, command: Reserve) -> None:
        s = self.s
        s.sequence += 1
        hold = Hold(
            command.tokens, s.sequence, self.now + command.hold_for_us, command.hold_for_us, label=command.label
        )
        s.holds[command.id] = hold
        s.held = saturated(s.held + command.tokens)
        s.open += 1
        if not s.quota.synced:
            self._take(command.tokens)
        self._remember(hold)
        self._leave(command.ticket)

    def _remember(self, hold: Hold) -> None:
        self.s.due_at = hold.due_at if self.s.due_at is None else min(self.s.due_at, hold.due_at)
        self.changed = True

    def _refuse(self, reason: Reason, at: int, command: Acquire | Reserve, arrived: int = LIMIT) -> Outcome:
        claimed_until_us = None
        if reason is not Reason.PAUSED and self._probe_at(command.probe_after_us) <= self.now:
            claimed_until_us = self._claim()
        if command.ticket is not None and reason in _STANDS:
            self._stand(Ticket(command.ticket, command.tokens, command.keep, arrived, min(at, self.now + DAY_US)))
        stands = self._arrived(command.ticket)
        return Outcome(
            reason=reason, retry_after_us=until(at, self.now), arrived=stands, claimed_until_us=claimed_until_us
        )

    # 11: the line

    def _stand(self, ticket: Ticket) -> None:
        """Put a ticket in line, or tell the one that stands there already its new instant. arrived: LIMIT if new."""
        s, stood = self.s, self._arrived(ticket.id)
        if stood is None and len(s.line) >= LONGEST_LINE:
            return
        self._leave(ticket.id)
        arrived = ticket.arrived if stood is None else stood
        if arrived == LIMIT:
            s.sequence += 1
            arrived = s.sequence
        s.line = sorted([*s.line, replace(ticket, arrived=arrived)], key=lambda each: each.rank)
        self.changed = True

    def _arrived(self, ticket: str | None) -> int | None:
        return next((each.arrived for each in self.s.line if each.id == ticket), None)

    def _leave(self, ticket: str | None) -> bool:
        """Leave the line; return whether there was such a ticket."""
        staying = [each for each in self.s.line if each.id != ticket]
        left = len(staying) < len(self.s.line)
        if left:
            self.s.line = staying
            self.changed = True
        return left

    # 3 and 6: ending a hold, giving back

    def settle(self, command: Settle) -> Outcome:
        hold = self.s.holds.pop(command.id, None)
        if hold is None:
            verdict, drift = self._observe(command.reading, of_a_call=True)
            return Outcome(found=False, reading=verdict, drift=drift)
        self.changed = True
        if hold.in_flight:
            self._end(hold)
        cost = hold.tokens if command.actual is None else command.actual
        if self.s.quota.synced:
            outcome = self._settle_synced(hold, cost, command)
            outcome.arrived = hold.opened if command.refused else None
            return outcome
        self._correct(hold.tokens - cost, hold.granted_at)
        return Outcome(reading=Verdict.NONE if command.reading is None else Verdict.STALE)

    def _settle_synced(self, hold: Hold, cost: int, command: Settle) -> Outcome:
        s, reading = self.s, command.reading
        before = self._charged_before(hold)
        order = None if reading is None else order_of(s, reading, hold.granted_at, self.now)
        nothing_known = s.reading_at is None
        if reading is not None and (nothing_known or hold.opened > s.reading_sequence or order is Order.NEWER):
            projected = None if s.balance is None else s.balance + before - cost
            return Outcome(reading=Verdict.TAKEN, drift=self._adopt(reading, projected, hold.granted_at))
        if order is not None:
            cost = 0
        if s.balance is not None:
            self._correct(before - cost)
            if command.refused and hold.opened > s.reading_sequence:
                s.balance = min(s.balance, 0)
        verdict, drift = (Verdict.NONE, None) if reading is None else self._lowered(reading, order)
        self._reopen()
        return Outcome(reading=verdict, drift=drift)

    def cancel(self, command: Cancel) -> Outcome:
        left = self._leave(command.id)
        hold = self.s.holds.pop(command.id, None)
        if hold is None:
            return Outcome(found=left)
        self.changed = True
        if hold.in_flight:
            self._end(hold)
        if not self.s.quota.synced:
            self._correct(hold.tokens, hold.granted_at)
        elif not hold.in_flight:
            self._correct(self._charged_before(hold))
        self._reopen()
        return Outcome()

    def _charged_before(self, hold: Hold) -> int:
        """Return what the hold charged to the present balance by running out; 0 if a reading replaced that since."""
        return hold.tokens if hold.charged > self.s.reading_sequence else 0

    def refund(self, command: Refund) -> Outcome:
        s = self.s
        if command.id in s.holds:
            return Outcome(found=False)
        s.sequence += 1
        remembered = Hold(0, s.sequence, self.now, REFUND_MEMORY_US, s.sequence)
        s.holds[command.id] = remembered
        self._remember(remembered)
        self._give_back(command.tokens, command.own_us or 0)
        self._reopen()
        return Outcome()

    def _give_back(self, tokens: int, own: int) -> None:
        """Give back the tokens of the place `own`; what doesn't come back stays with it, for others."""
        s, last = self.s, self.s.last_place
        came = self._correct(tokens, own)
        if not (has_places(s.quota) and self.now < own <= last):
            return
        kept = min(tokens - came, self.flow.capacity + s.quota.overdraft)
        if kept:
            s.free, self.changed = with_free(s.free, FreePlace(own, kept)), True
        # The last one was given up, and nobody is left behind those right before it: they come back, too.
        while own == last and s.free and s.free[-1].at + 1 >= s.last_place:
            *others, free = s.free
            s.free = tuple(others)
            self._correct(free.tokens, max(free.at, s.last_place))

    def _correct(self, by: int, own: int = 0) -> int:
        """Give back `by` tokens by rule 6, up to capacity, or take them if that is below 0; return what it came to."""
        s = self.s
        if s.balance is None or by == 0:
            return 0
        before = s.balance
        if by < 0:
            s.balance = saturated(before + by)
        else:
            numbers = fast_path.Numbers(*numbers_of(s, self.flow))
            fast_path.give_back(numbers, self.now, by, own)
            s.balance, s.carry = numbers.balance, numbers.carry
            s.last_place, s.firm_place = numbers.last_place, numbers.firm_place
        return s.balance - before

    # 7: readings

    def reconcile(self, command: Reconcile) -> Outcome:
        verdict, drift = self._observe(command.reading)
        return Outcome(reading=verdict, drift=drift, snapshot=self.peek(Peek()).snapshot)

    def _observe(self, reading: Reading | None, *, of_a_call: bool = False) -> tuple[Verdict, int | None]:
        s = self.s
        if reading is None:
            return Verdict.NONE, None
        if not s.quota.synced:
            return Verdict.STALE, None
        order = order_of(s, reading, self.now, self.now)
        known_at, timeless = s.reading_at, s.server_time is None and not of_a_call
        if known_at is None or order is Order.NEWER or timeless or self.now - known_at > REORDER_US:
            return Verdict.TAKEN, self._adopt(reading, s.balance, self.now)
        return self._lowered(reading, order)

    def _lowered(self, reading: Reading, order: Order | None) -> tuple[Verdict, int | None]:
        changed, drift = lowered(self.s, reading, order, self.now)
        self.changed = self.changed or changed
        return Verdict.STALE if drift is None else Verdict.TAKEN, drift

    def _adopt(self, reading: Reading, projected: int | None, since: int) -> int | None:
        self.flow = adopt(self.s, self.flow, reading, projected, since, self.now)
        self.changed = True
        self._reopen()
        return self.s.drift

    # 8: the probe

    def claim_probe(self, _: ClaimProbe) -> Outcome:
        s = self.s
        free = s.quota.synced and (s.probe_until is None or self.now >= s.probe_until)
        return Outcome(claimed_until_us=self._claim() if free else None)

    def unclaim(self, command: Unclaim) -> Outcome:
        s = self.s
        if s.probe_until is None or s.probe_until != command.until_us or s.probe_until <= self.now:
            return Outcome(found=False)
        # Given back a second time without a reading it is a failed probe: cancelled callers must not hammer the server.
        s.probe_until = self.now if s.probe_returned or (s.balance is None and s.probe_failures) else None
        s.probe_returned = 1
        self.changed = True
        return Outcome()

    def _claim(self) -> int:
        s = self.s
        if s.probe_until is not None:
            s.probe_failures += 1
        s.probe_until = self.now + CLAIM_US
        self.changed = True
        return s.probe_until

    # 12: a pause

    def pause(self, command: Pause) -> Outcome:
        self.s.paused_until = self.now + min(command.for_us, DAY_US) if command.for_us else None
        self.changed = True
        return Outcome()

    # 13: terms

    def take_up(self, callers: Quota) -> None:
        """Let the caller's terms replace the stored ones, if they may."""
        s, now = self.s, self.now
        before = s.quota
        if callers == before or now < self.terms_from:
            return
        old = self.flow
        if old.refill == 0:
            # Terms that replaced others have run for a minute at least; a bucket's first terms perhaps for no time.
            s.refilled_at = now if s.terms_at is None else max(0, now - MINUTE_US)
        elif not old.stepped:
            s.refilled_at = max(0, s.refilled_at - s.carry // old.refill)
        s.carry = 0
        s.quota, s.terms_at, s.free = callers, now, ()
        s.wide_capacity = before.capacity if before.capacity > callers.capacity else None
        self.flow = flow_in_effect(s, now)
        skip_until_reading(s, self.flow)
        self.terms, self.terms_from = (before, callers), now
        self.changed = True
        self._fill(now)
        # Places told under a slower refill may lie further ahead than any can under the new one.
        furthest = furthest_place(self.flow, callers.capacity, s.balance or 0, now)
        s.last_place, s.firm_place = min(s.last_place, furthest), min(s.firm_place, furthest)
        self._reopen()

    # what is told

    def peek(self, command: Peek) -> Outcome:
        arrived = LIMIT if command.arrived is None else command.arrived
        reason, at = self._judge(command.tokens, command.keep, arrived=arrived)
        return Outcome(
            granted=reason is Reason.GRANTED,
            reason=reason,
            retry_after_us=until(at, self.now),
            snapshot=self._snapshot(command, reason, at),
        )

    def completed(self, outcome: Outcome) -> Outcome:
        """Add to an outcome what is told of the bucket after any command."""
        s = self.s
        outcome.now_us, outcome.balance, outcome.held, outcome.open = self.now, s.balance, s.held, s.open
        outcome.closed, outcome.kept_back = s.closed_until is not None, kept_back(s, self.flow)
        outcome.repaired, outcome.ran_out, outcome.terms = self.repaired, tuple(self.ran_out), self.terms
        return outcome


_RUN: Final[dict[type[Command], Callable[[_Step, Any], Outcome]]] = {
    Acquire: _Step.acquire,
    Reserve: _Step.reserve,
    Settle: _Step.settle,
    Cancel: _Step.cancel,
    Refund: _Step.refund,
    Reconcile: _Step.reconcile,
    ClaimProbe: _Step.claim_probe,
    Unclaim: _Step.unclaim,
    Pause: _Step.pause,
    Peek: _Step.peek,
}
