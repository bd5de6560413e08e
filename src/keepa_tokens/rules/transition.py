"""All the rules of a bucket, in words, then in code, in the same order.

`transition(quota, state, now, command)` is a pure function from any stored state to the next one and an outcome. Times
are whole microseconds, `now` an argument, tokens whole numbers. `balance` is what the server would report; holds stand
beside it on a synced bucket: available = balance - held. A plain bucket has no server to ask: what is held was taken
from the balance already, and available = balance.

1. Repair. Any stored thing becomes a sound state first (`repair.py`), which is written back with every command,
   refusals included, and named in the outcome. A missing `refilled_at`: the balance stays and refills from now. One too
   far ahead, as after a clock went back: likewise.
2. Refill. The balance flows up to capacity, exactly, and is never lowered to it. At refill 0 `refilled_at` moves on.
3. Holds. Synced: a hold that runs out is charged to the balance, at the instant at which it runs out, and remembered
   for one more `hold_for`: a late settle still corrects by the difference, once, unless a reading has replaced the
   balance since. While the balance is unknown there is nothing to charge. Plain: the tokens are taken when the hold is
   opened; a hold that runs out is forgotten. Holds that fall due are swept together, at most once a second.
4. Admit, iff the bucket is not closed and available - keep >= max(1, tokens - overdraft). Cost 0 always passes. On a
   synced bucket the overdraft is for a call alone: beside tokens in flight it is admitted iff available - keep >=
   tokens, since calls may reach the server in another order, and the one that overdraws would get the others refused.
   What rule 10 keeps back counts as kept. More than the capacity in effect can admit, or than can be counted exactly,
   is TOO_LARGE. Refused only because of calls in flight is IN_FLIGHT: ask again soon, a settle may free it any moment.
   Otherwise retry_after is the earliest instant at which it can be granted, if the calls in flight cost nothing.
5. Recharge. When a request that would fail even at keep 0 finds too little and `recharge_to` is set, the bucket closes
   until the refill, capacity aside, has brought min(recharge_to, capacity), counted before the caller's own take. The
   end is fixed then; every later step may only move it nearer, to the instant that the state still implies, so it opens
   early when the balance is there and no damage can keep it shut. Refill 0 never closes, and an unknown balance has
   nothing to recharge.
6. Places. On a plain bucket without `recharge_to` an acquire at keep 0 that may wait takes its tokens now and waits for
   its place: first come, first served. Everybody else is told when to ask again. What is given back (a cancelled place,
   an unused grant, a settle at less) comes back whole where no place lies ahead, or by the last place; else only what
   exceeds the refill between its own instant (now, if that is past) and the last place, because the places between were
   told theirs for good; and of a past grant no more than fits under the capacity when the largest place comes. So
   in any interval at most capacity + refill is let go.
7. Readings replace the balance, and bring refill, capacity and phase, if they are fresh: the bucket is unknown or has
   no reading; or the call was opened after the last reading was applied; or the server's time is later than the last
   one's. Outside a call also: the last reading is older than two minutes by our clock, or nobody gave a server's time.
   A server's time up to 5 s before the last one's, or equal, tells no order: the lower of projection and reading is
   taken. Nor does one that moved over a minute more or less than our clock did, an answer being told at any time since
   its call was opened; it replaces the stored one. A settle whose reading is older charges nothing: the newer reading
   had its cost. One without a server's time cannot be put in order and is not adopted, and its cost is charged. A
   refusal without a fresh reading, of a call opened after the last one: the balance is not above 0. A `refillIn` longer
   than the period in effect is the period until the next reading, ten minutes at most.
8. Probe. A refusal that rests on nothing known, or on a reading older than the caller's `probe_after`, claims the probe
   for the caller, unless somebody holds the claim or failures are backing off. A claim that ended without a reading is
   a failed probe, by the clock alone; one that was given back is free at once, the first time after a reading. A failed
   probe on an unknown balance starts it at 0, refilling from the end of the claim. A scout is let through on its claim.
9. Lifetime. A plain bucket is kept until it would be full and its last hold forgotten: a new one would be no different.
   One whose `initial` is below capacity is kept for ever. A synced one is kept for a day at least, and for ever where
   `initial` would let go what the server's reported terms do not.
10. Others. A fresh reading below the projection shows that somebody else spends, if there was a reading to project
   from, nothing is in flight, the plan is unchanged, and the gap is more than refill under way explains. The gap is
   kept back from then on, for what they spend before the next reading. Gaps add up. With a request's `keep` it comes to
   a third of the capacity at most, and never to so much that the request can't be admitted. Readings halve what is kept
   back for every hour without a gap.
11. The line: every wait without a place. Who is refused for want of tokens and names a ticket stands in line, ordered
   by `keep`, the smallest first, then by arrival. A request is admitted iff rule 4 holds after taking away the tokens
   of the tickets before it that are not late; who passes them doesn't overdraw. So small calls can't starve a big one,
   and one that overdraws gets its turn.
   Told: the instant at which the refill, capacity aside, has brought all of that; each look tells anew. A day ahead at
   most; and where a clock went back, as far ahead as it was from the last refill. Late: 1 s past the told instant;
   others may pass. Lapsed: a minute past it. A grant or a cancel by the same id leaves the line. At most 256 stand
   there; more get the plain refusal. An unknown balance, claims and scouts don't ask the line.
12. Pause. Until its end every request is refused as PAUSED, and claims nothing; a day at most.
13. Terms. A bucket runs on one set of terms, stored with it. A caller with others replaces them, at most once a minute;
   in between it is served by the stored ones. The time under way goes over as time; from refill 0 at most a minute's.
   For a minute after a change the larger of the two capacities bounds, then the smaller one clips a plain balance.
   Plain and synced on one key is a ConfigError.

The fast path (`fast_path.py`) serves a sound bucket on which nothing of 1, 5, 7, 8, 12 and 13 is due.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, assert_never

from ..quota import Quota
from ..units import (
    CLAIM_US,
    DAY_US,
    LIMIT,
    LONGEST_STRETCH_US,
    LOOK_AGAIN_US,
    MAX_BACKOFF_US,
    MICROSECONDS,
    MINUTE_US,
    NEAR_US,
    NEVER,
    REFUND_MEMORY_US,
    REORDER_US,
    SWEEP_US,
    TOLERANCE_US,
    seconds,
)
from . import fast_path
from .arithmetic import KEPT_SHARE, halved, phased, required, saturated, set_aside
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
from .decision import InFlight, Reason, Snapshot
from .flow import clipped_at, flow_in_effect, furthest_place
from .line import LATE_US, LONGEST_LINE, Ticket, ahead_of, lapses_at, standing
from .reading import Reading
from .repair import new_state, repair
from .state import BucketState, FastTerms, Hold, SoundState

__all__ = ["carry_out", "lifetime_us", "transition"]

HALF_LIFE_US: Final = 3_600 * MICROSECONDS
"""What is kept back halves in this time without a gap."""

FAST_US: Final = MINUTE_US
"""The longest that the fast path may serve a bucket before the rules look at all of it again."""

LIFETIME_MARGIN_US: Final = 10 * MICROSECONDS
SHORTEST_LIFETIME_US: Final = 60 * MICROSECONDS


def transition(
    quota: Quota, state: BucketState | None, now: int, command: Command
) -> tuple[BucketState | None, Outcome]:
    """Return the state after `command` at `now`, and what it came to. Pure; any stored state will do.

    The state is `state` itself where there is nothing to store: only time has passed. Raises ConfigError for a stored
    format of a newer release, and for a bucket of the other kind; nothing else.
    """
    sound, repaired = repair(quota, state, now)
    # Terms that were lost are stored again: nobody else may take them for others' next time.
    unnamed = state is not None and state.quota is None
    changed, fast, outcome = carry_out(quota, sound, now, command, repaired, is_new=state is None, unnamed=unnamed)
    return sound.stored(fast) if changed else state, outcome


def carry_out(
    callers: Quota,
    sound: SoundState,
    now: int,
    command: Command,
    repaired: tuple[str, ...] = (),
    *,
    is_new: bool = False,
    unnamed: bool = False,
) -> tuple[bool, FastTerms | None, Outcome]:
    """Carry `command` to a sound state, in place.

    Return whether there is anything to store, what goes with it, and what it came to. If there is nothing, only time
    has passed in the state; its holds are as they were.
    """
    step = _Step(callers, sound, now, repaired)
    step.advance()
    step.take_up(callers)
    outcome = step.run(command)
    # A bucket that is not full yet begins to fill when it is first seen, if only by a look.
    begun = is_new and sound.balance is not None and sound.balance < step.flow.capacity
    if not (step.changed or repaired or begun or unnamed):
        return False, None, outcome
    sound.version += 1
    return True, step.fast(), outcome


def lifetime_us(state: BucketState, now: int) -> int | None:
    """Return how long a state that `transition` returned must be kept if nobody touches it; None: for ever (rule 9).

    Of a partial state: no less than what is left of the lifetime that it has.
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
    # What calls in flight may still cost a synced bucket flows in again from their end.
    held = sound.held if quota.synced else 0
    start = max(sound.refilled_at, last) if held else sound.refilled_at
    full_at = flow.instant(flow.capacity - (sound.balance or 0) + held, start, 0)
    if full_at == NEVER:
        return None
    return max(DAY_US if quota.synced else SHORTEST_LIFETIME_US, max(full_at, last) - now + LIFETIME_MARGIN_US)


class _Step:
    """One step of one bucket: a sound state, worked on in place. Lives for one `transition`."""

    __slots__ = ("changed", "flow", "now", "ran_out", "repaired", "s", "terms", "terms_from")

    def __init__(self, callers: Quota, sound: SoundState, now: int, repaired: tuple[str, ...]) -> None:
        self.s = sound
        self.now = now
        self.repaired = repaired
        self.changed = False
        self.flow = flow_in_effect(sound, sound.refilled_at)
        self.ran_out: list[Hold] = []
        self.terms: tuple[Quota, Quota] | None = None
        served_by_others = callers != sound.quota and sound.terms_at is not None
        self.terms_from = (sound.terms_at or 0) + MINUTE_US if served_by_others else now

    def run(self, command: Command) -> Outcome:  # noqa: C901 - a case for each command
        match command:
            case Acquire():
                return self.acquire(command)
            case Reserve():
                return self.reserve(command)
            case Settle():
                return self.settle(command)
            case Cancel():
                return self.cancel(command)
            case Refund():
                return self.refund(command)
            case Reconcile():
                return self.reconcile(command)
            case ClaimProbe():
                return self.claim_probe()
            case Unclaim():
                return self.unclaim(command)
            case Pause():
                return self.pause(command)
            case Peek():
                return self.peek(command)
        assert_never(command)

    # 2 and 3: time passes

    def advance(self) -> None:
        """Let the balance flow to now, sweeping what falls due on the way."""
        if self.s.due_at is not None and self.s.due_at <= self.now:
            self._sweep()
        line = standing(self.s.line, self.now)
        if len(line) < len(self.s.line):
            self.s.line, self.changed = line, True
        self._flow_to(self.now)
        self._reopen()
        if self.s.paused_until is not None and self.s.paused_until <= self.now:
            self.s.paused_until = None

    def _sweep(self) -> None:
        due = sorted(
            (item for item in self.s.holds.items() if item[1].due_at <= self.now),
            key=lambda item: (item[1].due_at, item[1].opened, item[0]),
        )
        for hold_id, hold in due:
            del self.s.holds[hold_id]
            if hold.in_flight:
                self._run_out(hold_id, hold)
        first = min((hold.due_at for hold in self.s.holds.values()), default=None)
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
        if s.balance is not None:
            s.balance = saturated(s.balance - charged)
        remembered = Hold(charged, hold.opened, hold.expires_at, hold.hold_for, s.sequence, hold.label)
        if remembered.due_at > self.now:
            s.holds[hold_id] = remembered

    def _end(self, hold: Hold) -> None:
        self.s.held = max(0, self.s.held - hold.tokens)
        self.s.open = max(0, self.s.open - 1)

    def _flow_to(self, at: int) -> None:
        s = self.s
        if s.wide_capacity is not None and at >= clipped_at(s):
            self._clip()
        if s.balance is None and s.probe_until is not None and at >= s.probe_until:
            # 8: the probe of an unknown balance failed. Start at 0: slow, never stuck.
            s.balance, s.carry = 0, 0
            s.refilled_at = max(s.refilled_at, s.probe_until)
        if s.balance is None:
            s.refilled_at, s.carry = max(s.refilled_at, at), 0
            return
        s.balance, s.refilled_at, s.carry = self.flow.refilled(s.balance, s.refilled_at, s.carry, at)

    def _clip(self) -> None:
        """Let the smaller capacity bound from its instant on (rule 13)."""
        s = self.s
        at = clipped_at(s)
        if s.balance is not None:
            s.balance, s.refilled_at, s.carry = self.flow.refilled(s.balance, s.refilled_at, s.carry, at)
        s.wide_capacity = None
        self.flow = flow_in_effect(s, at)
        if s.balance is not None and not s.quota.synced:
            s.balance = min(s.balance, self.flow.capacity)

    # 4: admission

    def _in_flight(self) -> int:
        """Return the tokens that are set aside beside the balance; a plain bucket has taken them already."""
        return self.s.held if self.s.quota.synced else 0

    def _judge(self, tokens: int, keep: int, ticket: str | None = None) -> tuple[Reason, int]:
        """Return whether `tokens` are admitted now, or why not, and the instant at which to ask again.

        ticket: who asks stands in line by this id, or would.
        """
        s = self.s
        if tokens == 0:
            return Reason.GRANTED, self.now
        if s.held + tokens >= LIMIT:
            return Reason.TOO_LARGE, NEVER
        alone = required(tokens, s.quota.overdraft)
        aside = set_aside(keep, self._kept_back(), self.flow.capacity, alone)
        wanted = alone + aside
        reason, at = self._open_judge(tokens, keep, wanted, aside, ticket)
        if s.paused_until is not None:
            return Reason.PAUSED, max(s.paused_until, at)
        return reason, at

    def _open_judge(self, tokens: int, keep: int, wanted: int, aside: int, ticket: str | None) -> tuple[Reason, int]:
        s = self.s
        if s.balance is None:
            return Reason.UNKNOWN, self.now + LOOK_AGAIN_US
        in_flight, ahead = self._in_flight(), self._ahead(keep, ticket)
        available = s.balance - in_flight
        if available < wanted and (wanted > self.flow.capacity or self._clipped_before(wanted)):
            # While it is served by others' terms, the caller's own may still admit it.
            return Reason.TOO_LARGE, self.terms_from if self.terms_from > self.now else NEVER
        # 11: when the refill, capacity aside, has brought what is before it, and what calls in flight hold.
        stands = ahead or ticket is not None
        need = saturated(wanted + ahead - available)
        at = self.flow.instant(need, s.refilled_at, s.carry) if stands else self._reached(wanted)
        closed_until = self._closed_for(tokens, keep)
        if closed_until is not None:
            return Reason.RECHARGING, max(closed_until, at)
        others = in_flight or ahead
        if available - ahead >= (tokens + aside if others else wanted):
            return Reason.GRANTED, self.now
        if in_flight and s.balance - ahead >= wanted:
            return Reason.IN_FLIGHT, self.now + LOOK_AGAIN_US
        return Reason.EMPTY, at if at > self.now or not stands else self.now + LOOK_AGAIN_US

    def _reached(self, wanted: int) -> int:
        """Return the first instant from now on at which the balance has flowed to `wanted`; NEVER if none."""
        return self._reached_from(self.s.balance or 0, self.s.refilled_at, self.s.carry, wanted, self.now)

    def _reached_from(self, balance: int, refilled_at: int, carry: int, wanted: int, start: int) -> int:
        if balance >= wanted:
            return start
        if wanted > self.flow.capacity:
            return NEVER
        at = max(start, self.flow.instant(wanted - balance, refilled_at, carry))
        return at if wanted <= self._lasting_capacity() or at < clipped_at(self.s) else NEVER

    def _clipped_before(self, wanted: int) -> bool:
        """Whether `wanted` can be had only until the smaller capacity bounds (rule 13), and isn't there by then."""
        return wanted > self._lasting_capacity() and self._reached(wanted) == NEVER

    def _lasting_capacity(self) -> int:
        """Return the capacity in effect, without the larger one that bounds for a minute only."""
        s = self.s
        return self.flow.capacity if s.wide_capacity is None else flow_in_effect(s, clipped_at(s)).capacity

    # 5: recharge

    def _recharged_at(self) -> int:
        s = self.s
        if s.balance is None:
            return NEVER
        lacking = min(s.quota.recharge_to or 0, self._lasting_capacity()) - (s.balance - self._in_flight())
        return self.now if lacking <= 0 else max(self.now, self.flow.instant(lacking, s.refilled_at, s.carry))

    def _closed_for(self, tokens: int, keep: int) -> int | None:
        """Return the end of the recharge that a request for `tokens` finds, or begins; None: the bucket is open."""
        s = self.s
        if s.quota.recharge_to is None or s.balance is None:
            return None
        lacking = required(tokens, s.quota.overdraft)
        enough = tokens == 0 or s.balance - self._in_flight() >= lacking
        if s.closed_until is not None or enough or lacking + keep > self._lasting_capacity():
            return s.closed_until
        end = self._recharged_at()
        return end if self.now < end < NEVER else None

    def _close_for(self, tokens: int, keep: int) -> None:
        end = self._closed_for(tokens, keep)
        if end != self.s.closed_until and self.s.paused_until is None:
            self.s.closed_until = end
            self.changed = True

    def _reopen(self) -> None:
        s = self.s
        if s.closed_until is None:
            return
        if s.balance is None or s.quota.recharge_to is None:
            # Nothing known, nothing to recharge.
            s.closed_until = None
            return
        end = min(s.closed_until, self._recharged_at())
        s.closed_until = end if self.now < end and self.flow.refill > 0 else None

    # 6: taking tokens, now or in a place

    def acquire(self, command: Acquire) -> Outcome:
        self._close_for(command.tokens, command.keep)
        reason, at = self._judge(command.tokens, command.keep, command.ticket)
        if not (reason is Reason.GRANTED or self._has_place(reason, at, command)):
            return self._refuse(reason, command)
        if at > self.now:
            s = self.s
            s.largest_place = max(command.tokens, s.largest_place if s.last_place > self.now else 0)
            s.last_place = max(s.last_place, at)
        self._take(command.tokens)
        self._leave(command.ticket)
        return self._outcome(granted=True, place_us=at - self.now)

    def _has_place(self, reason: Reason, at: int, command: Acquire) -> bool:
        if command.wait_us is None or command.keep or reason is not Reason.EMPTY:
            return False
        queues = not self.s.quota.synced and self.s.quota.recharge_to is None and not self._ahead(0, command.ticket)
        return queues and at < NEVER and at - self.now <= command.wait_us

    def _take(self, tokens: int) -> None:
        if tokens and self.s.balance is not None:
            self.s.balance = saturated(self.s.balance - tokens)
            self.changed = True

    def reserve(self, command: Reserve) -> Outcome:
        if command.id in self.s.holds:
            return self._outcome(granted=True)
        self._close_for(command.tokens, command.keep)
        reason, _ = self._judge(command.tokens, command.keep, command.ticket)
        if reason is Reason.GRANTED:
            self._open(command)
            return self._outcome(granted=True)
        refusal = self._refuse(reason, command)
        if not (command.scout and refusal.probe):
            return refusal
        self._open(command)
        return self._outcome(granted=True, claimed_until_us=refusal.claimed_until_us, scout=True)

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

    def _refuse(self, reason: Reason, command: Acquire | Reserve) -> Outcome:
        claimed_until_us = None
        if reason is not Reason.PAUSED and self._probe_at(command.probe_after_us) <= self.now:
            claimed_until_us = self._claim()
        reason, at = self._judge(command.tokens, command.keep, command.ticket)
        if command.ticket is not None and reason in _STANDS:
            self._stand(command.ticket, command.tokens, command.keep, at)
        return self._outcome(reason=reason, retry_after_us=_until(at, self.now), claimed_until_us=claimed_until_us)

    # 11: the line

    def _ahead(self, keep: int, ticket: str | None) -> int:
        """Return the tokens of those who are before a request in line."""
        line = self.s.line
        if not line:
            return 0
        rank = next((each.rank for each in line if each.id == ticket), (keep, LIMIT))
        return ahead_of(line, rank, self.now)

    def _stand(self, ticket: str, tokens: int, keep: int, at: int) -> None:
        """Take a place in line, or tell anew whoever stands there already."""
        s = self.s
        arrived = next((each.arrived for each in s.line if each.id == ticket), None)
        if arrived is None and len(s.line) >= LONGEST_LINE:
            return
        self._leave(ticket)
        if arrived is None:
            s.sequence += 1
            arrived = s.sequence
        s.line.append(Ticket(ticket, tokens, keep, arrived, min(at, self.now + DAY_US)))
        s.line.sort(key=lambda each: each.rank)
        self.changed = True

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
            verdict, drift = self._observe(command.reading)
            return self._outcome(found=False, reading=verdict, drift=drift)
        self.changed = True
        if hold.in_flight:
            self._end(hold)
        cost = hold.tokens if command.actual is None else command.actual
        if self.s.quota.synced:
            return self._settle_synced(hold, cost, command)
        self._correct(hold.tokens - cost, hold.granted_at)
        return self._outcome(reading=Verdict.NONE if command.reading is None else Verdict.STALE)

    def _settle_synced(self, hold: Hold, cost: int, command: Settle) -> Outcome:
        s, reading = self.s, command.reading
        before = self._charged_before(hold)
        order = None if reading is None else self._order(reading, hold.granted_at)
        if reading is not None and (self._nothing_known() or hold.opened > s.reading_sequence or order is _Order.NEWER):
            projected = None if s.balance is None else s.balance + before - cost
            return self._outcome(reading=Verdict.TAKEN, drift=self._adopt(reading, projected, hold.granted_at))
        if order is not None:
            cost = 0
        if s.balance is not None:
            self._correct(before - cost)
            if command.refused and hold.opened > s.reading_sequence:
                s.balance = min(s.balance, 0)
        verdict, drift = (Verdict.NONE, None) if reading is None else self._lowered(reading, order)
        self._reopen()
        return self._outcome(reading=verdict, drift=drift)

    def cancel(self, command: Cancel) -> Outcome:
        left = self._leave(command.id)
        hold = self.s.holds.pop(command.id, None)
        if hold is None:
            return self._outcome(found=left)
        self.changed = True
        if hold.in_flight:
            self._end(hold)
        if not self.s.quota.synced:
            self._correct(hold.tokens, hold.granted_at)
        elif not hold.in_flight:
            self._correct(self._charged_before(hold))
        self._reopen()
        return self._outcome()

    def _charged_before(self, hold: Hold) -> int:
        """Return what running out cost the balance that is there now: nothing, if a reading has replaced it since."""
        return hold.tokens if hold.charged > self.s.reading_sequence else 0

    def refund(self, command: Refund) -> Outcome:
        s = self.s
        if command.id in s.holds:
            return self._outcome(found=False)
        s.sequence += 1
        remembered = Hold(0, s.sequence, self.now, REFUND_MEMORY_US, s.sequence)
        s.holds[command.id] = remembered
        self._remember(remembered)
        self._correct(command.tokens, command.own_us or 0)
        self._reopen()
        return self._outcome()

    def _correct(self, by: int, own: int = 0) -> None:
        """Take tokens from the balance, or give them back by rule 6, up to capacity."""
        s = self.s
        if s.balance is None or by == 0:
            return
        if by < 0 or s.quota.synced:
            s.balance = self._corrected(by)
        else:
            numbers = self._numbers(s.balance)
            fast_path.give_back(numbers, self.now, by, own)
            s.balance, s.last_place, s.firm_place = numbers.balance, numbers.last_place, numbers.firm_place
        if s.balance >= self.flow.capacity and by > 0 and not self.flow.stepped:
            # A full bucket earns nothing: no fraction is under way.
            s.carry = 0

    def _corrected(self, by: int) -> int:
        balance = self.s.balance or 0
        # What is above the capacity would have been lost.
        return saturated(min(max(balance, self.flow.capacity), balance + by))

    # 7: readings

    def reconcile(self, command: Reconcile) -> Outcome:
        verdict, drift = self._observe(command.reading)
        return self._outcome(reading=verdict, drift=drift, snapshot=self._snapshot(Peek()))

    def _observe(self, reading: Reading | None) -> tuple[Verdict, int | None]:
        s = self.s
        if reading is None:
            return Verdict.NONE, None
        if not s.quota.synced:
            return Verdict.STALE, None
        order = self._order(reading, self.now)
        old = self.now - (s.reading_at or 0) > REORDER_US
        if self._nothing_known() or order is _Order.NEWER or s.server_time is None or old:
            return Verdict.TAKEN, self._adopt(reading, s.balance, self.now)
        return self._lowered(reading, order)

    def _nothing_known(self) -> bool:
        return self.s.balance is None or self.s.reading_at is None

    def _order(self, reading: Reading, since: int) -> _Order | None:
        """Return how a reading lies to the last one by the server's time; None: one of them has none.

        since: the earliest instant at which it can have been told: an answer may be late by the whole of its call.
        """
        s, told = self.s, reading.server_time_us
        if told is None or s.server_time is None:
            return None
        if not since - MINUTE_US <= s.server_time_at + told - s.server_time <= self.now + MINUTE_US:
            return _Order.JUMPED
        if told > s.server_time:
            return _Order.NEWER
        return _Order.NEAR if told >= s.server_time - NEAR_US else _Order.OLDER

    def _lowered(self, reading: Reading, order: _Order | None) -> tuple[Verdict, int | None]:
        """Take the lower of projection and reading where nothing tells which of two readings is newer."""
        s = self.s
        if order not in {_Order.NEAR, _Order.JUMPED} or s.balance is None:
            return Verdict.STALE, None
        if order is _Order.JUMPED and reading.server_time_us is not None:
            s.server_time, s.server_time_at = reading.server_time_us, self.now
            self.changed = True
        if s.probe_until is not None:
            # The server did answer: whoever asked it has not failed.
            s.probe_until, s.probe_failures, self.changed = None, 0, True
        if reading.balance >= s.balance:
            return Verdict.STALE, None
        s.drift = drift = saturated(reading.balance - s.balance)
        s.balance, s.carry = reading.balance, 0
        # From here on a call is newer only if it was opened after this one too.
        s.sequence += 1
        s.reading_sequence = s.sequence
        self.changed = True
        return Verdict.TAKEN, drift

    def _adopt(self, reading: Reading, projected: int | None, since: int) -> int | None:
        """Take the server's word, told since `since`; return the drift: how far the projection was below it."""
        s = self.s
        followed = s.reading_at is not None and s.held == 0
        before = self.flow
        s.drift = None if projected is None else saturated(reading.balance - projected)
        s.balance = reading.balance
        s.sequence += 1
        s.reading_sequence = s.sequence
        s.reading_at = self.now
        told = reading.server_time_us
        if told is not None:
            by_last = self.now if s.server_time is None else s.server_time_at + told - s.server_time
            s.server_time, s.server_time_at = told, max(min(since, self.now), min(self.now, by_last))
        s.probe_until, s.probe_failures, s.probe_returned = None, 0, 0
        period_us = s.quota.period_us if reading.period_us is None else reading.period_us
        self._adopt_flow(reading, period_us)
        self._keep_back(-(s.drift or 0) if followed and self.flow == before else 0)
        if self.flow.stepped and reading.next_refill_in_us is not None:
            s.refilled_at = phased(self.now, max(period_us, s.stretched_us or 0), reading.next_refill_in_us)
        elif not self.flow.stepped:
            s.refilled_at = max(s.refilled_at, self.now)
        s.carry = 0
        self.changed = True
        self._reopen()
        return s.drift

    def _adopt_flow(self, reading: Reading, period_us: int) -> None:
        s = self.s
        if reading.capacity is not None:
            s.reported_capacity = reading.capacity
        refill, every_us = reading.refill_tokens, period_us * reading.refill_periods
        if refill is not None and refill * (every_us + 1) < LIMIT and every_us < LIMIT:
            s.reported_refill, s.reported_period_us = refill, every_us
        s.stretched_us = None
        self.flow = flow_in_effect(s, self.now)
        stretched = min(reading.next_refill_in_us or 0, LONGEST_STRETCH_US)
        if self.flow.stepped and stretched > self.flow.period_us and self.flow.refill * (stretched + 1) < LIMIT:
            s.stretched_us = stretched
            self.flow = flow_in_effect(s, self.now)

    # 8: the probe

    def claim_probe(self) -> Outcome:
        s = self.s
        free = s.quota.synced and (s.probe_until is None or self.now >= s.probe_until)
        return self._outcome(claimed_until_us=self._claim() if free else None)

    def unclaim(self, command: Unclaim) -> Outcome:
        s = self.s
        if s.probe_until is None or s.probe_until != command.until_us or s.probe_until <= self.now:
            return self._outcome(found=False)
        # A claim given back again without a reading between is a failed probe: whoever is cancelled must not hammer.
        s.probe_until = self.now if s.probe_returned or (s.balance is None and s.probe_failures) else None
        s.probe_returned = 1
        self.changed = True
        return self._outcome()

    def _probe_at(self, probe_after_us: int | None) -> int:
        """Return the first instant at which a refusal gets the claim."""
        s = self.s
        if probe_after_us is None or not s.quota.synced:
            return NEVER
        stale_at = self.now if self._nothing_known() else (s.reading_at or 0) + probe_after_us
        if s.probe_until is None:
            return max(self.now, stale_at)
        backoff = min(probe_after_us << s.probe_failures, max(probe_after_us, MAX_BACKOFF_US))
        return max(self.now, stale_at, s.probe_until + backoff)

    def _claim(self) -> int:
        s = self.s
        if s.probe_until is not None:
            s.probe_failures += 1
        s.probe_until = self.now + CLAIM_US
        self.changed = True
        return s.probe_until

    # 10: others

    def _kept_back(self) -> int:
        return min(self.s.kept_back, self.flow.capacity // KEPT_SHARE) if self.s.quota.synced else 0

    def _keep_back(self, gap: int) -> None:
        """Learn from a fresh reading that lay `gap` below the projection; 0 where it says nothing of others."""
        s = self.s
        since = self.now if s.kept_back_at is None else s.kept_back_at
        kept, since = halved(self._kept_back(), since, self.now, HALF_LIFE_US)
        # A step, or what flows within the tolerance, may have come to the projection while the answer was under way.
        under_way = self.flow.refill * (TOLERANCE_US // self.flow.period_us + 1)
        if gap > under_way:
            kept, since = min(kept + gap, self.flow.capacity // KEPT_SHARE), self.now
        s.kept_back, s.kept_back_at = kept, since if kept else None

    # 12: a pause

    def pause(self, command: Pause) -> Outcome:
        self.s.paused_until = self.now + min(command.for_us, DAY_US) if command.for_us else None
        self.changed = True
        return self._outcome()

    # 13: terms

    def take_up(self, callers: Quota) -> None:
        """Let the caller's terms replace the stored ones, if they may."""
        s, now = self.s, self.now
        before = s.quota
        if callers == before or now < self.terms_from:
            return
        old, since = self.flow, s.terms_at
        if old.refill == 0:
            s.refilled_at = max(0, now - (MINUTE_US if since is None else min(MINUTE_US, max(0, now - since))))
        elif not old.stepped:
            s.refilled_at = max(0, s.refilled_at - s.carry // old.refill)
        s.carry = 0
        s.quota, s.terms_at = callers, now
        s.wide_capacity = before.capacity if before.capacity > callers.capacity else None
        self.flow = flow_in_effect(s, now)
        self.terms, self.terms_from = (before, callers), now
        self.changed = True
        if s.balance is not None:
            s.balance, s.refilled_at, s.carry = self.flow.refilled(s.balance, s.refilled_at, s.carry, now)
        # Places told by a slower refill may lie further ahead than any at the new one.
        furthest = furthest_place(self.flow, callers.capacity, s.balance or 0, now)
        s.last_place, s.firm_place = min(s.last_place, furthest), min(s.firm_place, furthest)
        self._reopen()

    # what is stored for the fast path

    def fast(self) -> FastTerms | None:
        """Return until when, and with what, the fast path may serve this bucket; None where the terms alone tell."""
        s = self.s
        if not s.quota.synced and s.quota.recharge_to is None:
            return None
        due = (s.closed_until, s.paused_until, s.wide_capacity)
        usual = s.balance is not None and due == (None, None, None) and not s.line
        flow = self.flow
        return FastTerms(
            self.now + FAST_US if usual else 0, flow.capacity, flow.refill, flow.period_us, self._kept_back()
        )

    def _numbers(self, balance: int) -> fast_path.Numbers:
        s, flow = self.s, self.flow
        return fast_path.Numbers(
            balance=balance,
            refilled_at=s.refilled_at,
            carry=s.carry,
            held=s.held,
            open=s.open,
            sequence=s.sequence,
            last_place=s.last_place,
            firm_place=s.firm_place,
            largest_place=s.largest_place,
            capacity=flow.capacity,
            refill=flow.refill,
            period_us=flow.period_us,
            stepped=flow.stepped,
            overdraft=s.quota.overdraft,
            synced=s.quota.synced,
            queues=not s.quota.synced and s.quota.recharge_to is None,
            kept_back=self._kept_back(),
        )

    # what is told

    def peek(self, command: Peek) -> Outcome:
        reason, at = self._judge(command.tokens, command.keep)
        return self._outcome(
            granted=reason is Reason.GRANTED,
            reason=reason,
            retry_after_us=_until(at, self.now),
            snapshot=self._snapshot(command),
        )

    def _snapshot(self, command: Peek) -> Snapshot:
        s, now = self.s, self.now
        _, at = self._judge(command.tokens, command.keep)
        bound = min(self._granted_by(command), max(self._probe_at(command.probe_after_us), s.paused_until or 0))
        full_at = NEVER if s.balance is None else self._reached(self.flow.capacity)
        return Snapshot(
            balance=s.balance,
            held=s.held,
            holds=s.open,
            retry_after=seconds(_until(at, now)),
            full_in=seconds(_until(full_at, now)),
            closed_for=seconds((s.closed_until or now) - now),
            bound=seconds(_until(bound, now)),
            quota=s.quota,
            capacity=self.flow.capacity,
            refill=self.flow.refill,
            period=seconds(self.flow.period_us),
            paused_for=seconds((s.paused_until or now) - now),
            reading_age=None if s.reading_at is None else seconds(max(0, now - s.reading_at)),
            drift=s.drift,
            kept_back=self._kept_back(),
            waiting=len(s.line),
            wanted=sum(each.tokens for each in s.line),
            in_flight=tuple(
                InFlight(
                    id=hold_id,
                    tokens=hold.tokens,
                    label=hold.label,
                    age=seconds(max(0, now - hold.expires_at + hold.hold_for)),
                    runs_out_in=seconds(max(0, hold.expires_at - now)),
                )
                for hold_id, hold in self._holds_in_flight()
            ),
            repaired=self.repaired,
        )

    def _holds_in_flight(self) -> list[tuple[str, Hold]]:
        """Return the holds in flight that were read, in the order in which they run out."""
        holds = [(hold_id, hold) for hold_id, hold in self.s.holds.items() if hold.in_flight]
        holds.sort(key=lambda item: (item[1].expires_at, item[1].opened, item[0]))
        return holds

    def _granted_by(self, command: Peek) -> int:
        """Return the latest instant of a grant if attempts go on meanwhile.

        Calls in flight may cost all that they hold, and an attempt that fails may begin a recharge.
        """
        s = self.s
        reason, at = self._judge(command.tokens, command.keep)
        if reason in {Reason.GRANTED, Reason.TOO_LARGE}:
            return at
        alone = required(command.tokens, s.quota.overdraft)
        wanted = alone + set_aside(command.keep, self._kept_back(), self.flow.capacity, alone)
        latest = max(self._charged_all(wanted), s.paused_until or 0, s.closed_until or 0)
        if s.quota.recharge_to is None:
            return latest
        end = self._charged_all(min(s.quota.recharge_to, self._lasting_capacity()))
        return max(latest, end) if end < NEVER else latest

    def _charged_all(self, wanted: int) -> int:
        """Return when `wanted` tokens are there if every call in flight runs out, and nobody else asks.

        Those who stand in line come first, each as late as it may.
        """
        s = self.s
        balance, refilled_at, carry, start = s.balance, s.refilled_at, s.carry, self.now
        if balance is None:
            start = self.now + CLAIM_US if s.probe_until is None else s.probe_until
            balance, refilled_at, carry = 0, max(refilled_at, start), 0
        if s.quota.synced:
            for _, hold in self._holds_in_flight():
                start = max(start, hold.expires_at + SWEEP_US)
                balance, refilled_at, carry = self.flow.refilled(balance, refilled_at, carry, start)
                balance = saturated(balance - hold.tokens)
        if not s.line:
            return self._reached_from(balance, refilled_at, carry, wanted, start)
        if wanted > self._lasting_capacity():
            return NEVER
        start = max(start, *(each.told_at + LATE_US + 1 for each in s.line))
        balance, refilled_at, carry = self.flow.refilled(balance, refilled_at, carry, start)
        need = saturated(wanted + sum(each.tokens for each in s.line) - balance)
        return max(start, self.flow.instant(need, refilled_at, carry)) + LATE_US

    def _outcome(
        self,
        *,
        granted: bool = False,
        reason: Reason = Reason.GRANTED,
        retry_after_us: int = 0,
        place_us: int = 0,
        claimed_until_us: int | None = None,
        scout: bool = False,
        found: bool = True,
        reading: Verdict = Verdict.NONE,
        drift: int | None = None,
        snapshot: Snapshot | None = None,
    ) -> Outcome:
        s = self.s
        return Outcome(
            now_us=self.now,
            balance=s.balance,
            granted=granted,
            reason=reason,
            retry_after_us=retry_after_us,
            place_us=place_us,
            held=s.held,
            open=s.open,
            closed=s.closed_until is not None,
            kept_back=self._kept_back(),
            claimed_until_us=claimed_until_us,
            scout=scout,
            found=found,
            reading=reading,
            drift=drift,
            repaired=self.repaired,
            ran_out=tuple(self.ran_out),
            terms=self.terms,
            snapshot=snapshot,
        )


_STANDS: Final = frozenset({Reason.EMPTY, Reason.IN_FLIGHT, Reason.RECHARGING, Reason.PAUSED})
"""Refusals with which one stands in line."""


class _Order(Enum):
    """How a reading lies to the last one, by the server's time."""

    NEWER = auto()
    NEAR = auto()
    OLDER = auto()
    JUMPED = auto()


def _until(at: int, now: int) -> int:
    return NEVER if at >= NEVER else at - now
