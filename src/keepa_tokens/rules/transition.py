"""All the rules of a bucket, in words, then in code; `bucket.lua` mirrors them under the same numbers.

`transition(quota, state, now, command)` is a pure function from any stored state to the next one and an
outcome. Times are whole microseconds, `now` an argument, tokens whole numbers. `balance` is what the server
would report; holds stand beside it; available = balance - what is held in flight.

1. Repair. Any stored thing becomes a sound state first (`repair.py`), which is written back with every command,
   refusals included, and named in the outcome. A missing `refilled_at`: the balance stays and refills from now.
2. Refill. The balance flows up to capacity, exactly, and is never lowered to it. A remainder earned at another
   rate is kept as time. At refill 0 `refilled_at` moves on.
3. Holds. A hold that runs out is charged to the balance, at the instant at which it runs out, and remembered
   for one more `hold_for`: a late settle still corrects by the difference, once, unless a reading has replaced
   the balance since. What is given back, by a refund too, fills up to capacity. While the balance is unknown there
   is nothing to charge.
4. Admit, iff the bucket is not closed and available - keep >= max(1, tokens - overdraft). Cost 0 always passes.
   On a synced bucket the overdraft is for a call alone: beside tokens in flight it is admitted iff available - keep
   >= tokens, since calls may reach the server in another order, and the one that overdraws would get the others
   refused. What rule 10 keeps back counts as kept. More than the capacity in effect can admit, or than can be
   counted exactly, is TOO_LARGE.
5. Recharge. A request that would fail even at keep 0 for want of tokens closes the bucket until the instant at
   which min(recharge_to, capacity) is available. The end is fixed then; every later step may only move it
   nearer, to the instant that the state still implies, so it opens early when the balance is there and no
   damage can keep it shut. Refill 0 never closes, and an unknown balance has nothing to recharge. retry_after is
   the later of the end and the instant at which enough is available, holds that run out included.
6. Places. On a plain bucket without `recharge_to` a request at keep 0 that may wait takes its tokens now and
   waits for its place: first come, first served. Everybody else is told when to ask again.
7. Readings replace the balance, and bring refill, capacity and phase, if they are fresh: the bucket is unknown
   or has no reading; or the call was opened after the last reading was applied; or the server's time is later
   than the last one's, or equal with a lower balance. Outside a call also: the last reading is older than two
   minutes by our clock, or nobody ever gave a server's time. A settle whose reading is older than the last one
   charges nothing: the newer reading had its cost. One that cannot be put in order is not adopted, and its cost
   is charged. A refusal without a fresh reading, of a call opened after the last one: the balance is not above
   0.
8. Probe. A refusal that rests on nothing known, or on a reading older than the caller's `probe_after`, claims
   the probe for the caller, unless somebody holds the claim or failures are backing off. A claim that ended
   without a reading is a failed probe, by the clock alone. A failed probe on an unknown balance starts it at 0,
   refilling from the end of the claim. A scout is let through on its claim.
9. Lifetime. A bucket is kept until it would be full and its last hold forgotten; then a new one would be no
   different, or is unknown by its quota. One whose `initial` is below capacity is kept for ever.
10. Others. A fresh reading below the projection shows that somebody else spends, if there was a reading to
   project from, nothing is in flight, the plan is unchanged, and the gap is more than refill under way explains.
   The gap is kept back from then on, for what they spend before the next reading. Gaps add up. With a request's
   `keep` it comes to a third of the capacity at most, and never to so much that the request can't be admitted.
   Readings halve what is kept back for every hour without a gap.
"""

from __future__ import annotations

from typing import Final, assert_never

from ..quota import Quota
from ..units import (
    CLAIM_US,
    LIMIT,
    MAX_BACKOFF_US,
    MICROSECONDS,
    NEVER,
    REFUND_MEMORY_US,
    REORDER_US,
    TOLERANCE_US,
    seconds,
)
from .arithmetic import carried_over, halved, phased, required, saturated
from .commands import Acquire, Cancel, ClaimProbe, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle, Verdict
from .decision import Reason, Snapshot
from .flow import flow_in_effect
from .reading import Reading
from .repair import repair
from .state import BucketState, Hold

__all__ = ["lifetime_us", "transition"]

KEPT_SHARE: Final = 3
"""One part in this many of the capacity is the most that is kept back."""

HALF_LIFE_US: Final = 3_600 * MICROSECONDS
"""What is kept back halves in this time without a gap."""

LIFETIME_MARGIN_US: Final = 10 * MICROSECONDS
SHORTEST_LIFETIME_US: Final = 60 * MICROSECONDS
LIFETIME_AT_REFILL_0_US: Final = 86_400 * MICROSECONDS


def transition(
    quota: Quota, state: BucketState | None, now: int, command: Command
) -> tuple[BucketState | None, Outcome]:
    """Return the state after `command` at `now`, and what it came to. Pure; any stored state will do.

    The state is None where there is nothing to store: a look at a bucket never seen. Raises ConfigError for a
    stored format of a newer release, nothing else.
    """
    sound, repaired = repair(quota, state, now)
    step = _Step(quota, sound, now, repaired)
    step.advance()
    if isinstance(command, Peek):
        mended = step.state() if repaired else state
        return mended, step.peek(command)
    outcome = step.run(command)
    return step.state(), outcome


def lifetime_us(quota: Quota, state: BucketState, now: int) -> int | None:
    """Return how long a state that `transition` returned must be kept if nobody touches it; None: for ever (rule 9)."""
    if quota.initial is not None and quota.initial < quota.capacity:
        return None
    flow = flow_in_effect(quota, state)
    if flow.refill == 0:
        return LIFETIME_AT_REFILL_0_US
    in_flight = [hold for hold in state.holds.values() if hold.in_flight]
    balance, start = state.balance, state.refilled_at or 0
    if balance is None:
        # A new one would be no different, unless somebody asks: if that fails, the balance starts at 0.
        balance = flow.capacity if state.probe_until is None else 0
        start = max(start, state.probe_until or 0)
    start = max((start, *(hold.expires_at for hold in in_flight)))
    full_at = flow.instant(flow.capacity - balance + sum(hold.tokens for hold in in_flight), start, 0)
    last = max((hold.forgotten_at for hold in state.holds.values()), default=0)
    if full_at == NEVER:
        return None
    return max(SHORTEST_LIFETIME_US, max(full_at, last, state.probe_until or 0) - now + LIFETIME_MARGIN_US)


class _Step:
    """One step of one bucket: a sound state, worked on in place and handed out again. Lives for one `transition`."""

    __slots__ = (
        "balance",
        "carry",
        "closed_until",
        "drift",
        "flow",
        "held",
        "holds",
        "kept_back",
        "kept_back_at",
        "now",
        "probe_failures",
        "probe_until",
        "quota",
        "reading_at",
        "reading_sequence",
        "refilled_at",
        "repaired",
        "reported_capacity",
        "reported_period_us",
        "reported_refill",
        "sequence",
        "server_time",
    )

    def __init__(self, quota: Quota, sound: BucketState, now: int, repaired: tuple[str, ...]) -> None:
        self.quota = quota
        self.now = now
        self.repaired = repaired
        self.flow = flow_in_effect(quota, sound)
        self.balance = sound.balance
        self.refilled_at = sound.refilled_at or 0
        self.carry = carried_over(
            sound.carry or 0,
            sound.carry_refill or 0,
            sound.carry_period_us or 1,
            self.flow.refill,
            self.flow.period_us,
        )
        self.closed_until = sound.closed_until
        self.sequence = sound.sequence or 0
        self.holds = dict(sound.holds)
        self.held = sum(hold.tokens for hold in self.holds.values() if hold.in_flight)
        self.reading_at = sound.reading_at
        self.reading_sequence = sound.reading_sequence or 0
        self.server_time = sound.server_time
        self.drift = sound.drift
        self.kept_back = sound.kept_back or 0
        self.kept_back_at = sound.kept_back_at
        self.probe_until = sound.probe_until
        self.probe_failures = sound.probe_failures or 0
        self.reported_refill = sound.reported_refill
        self.reported_period_us = sound.reported_period_us
        self.reported_capacity = sound.reported_capacity

    def state(self) -> BucketState:
        return BucketState(
            balance=self.balance,
            refilled_at=self.refilled_at,
            carry=self.carry,
            carry_refill=self.flow.refill,
            carry_period_us=self.flow.period_us,
            closed_until=self.closed_until,
            sequence=self.sequence,
            holds=self.holds,
            quota=self.quota,
            reading_at=self.reading_at,
            reading_sequence=self.reading_sequence,
            server_time=self.server_time,
            drift=self.drift,
            kept_back=self.kept_back or None,
            kept_back_at=self.kept_back_at,
            probe_until=self.probe_until,
            probe_failures=self.probe_failures,
            reported_refill=self.reported_refill,
            reported_period_us=self.reported_period_us,
            reported_capacity=self.reported_capacity,
        )

    def run(self, command: Acquire | Reserve | Settle | Cancel | Refund | Reconcile | ClaimProbe) -> Outcome:
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
        assert_never(command)

    # 2 and 3: time passes

    def advance(self) -> None:
        """Let the balance flow to now, charging every hold that runs out on the way at its own instant."""
        for hold_id, hold in self._in_flight():
            if hold.expires_at > self.now:
                break
            self._flow_to(hold.expires_at)
            self._charge(hold_id, hold)
        self._flow_to(self.now)
        for hold_id, hold in list(self.holds.items()):
            if not hold.in_flight and hold.forgotten_at <= self.now:
                del self.holds[hold_id]
        self._reopen()

    def _in_flight(self) -> list[tuple[str, Hold]]:
        """Return the holds in flight in the order in which they run out."""
        holds = [(hold_id, hold) for hold_id, hold in self.holds.items() if hold.in_flight]
        holds.sort(key=lambda item: (item[1].expires_at, item[1].opened, item[0]))
        return holds

    def _flow_to(self, at: int) -> None:
        if self.balance is None and self.probe_until is not None and at >= self.probe_until:
            # 8: the probe of an unknown balance failed. Start at 0: slow, never stuck.
            self.balance, self.carry = 0, 0
            self.refilled_at = max(self.refilled_at, self.probe_until)
        if self.balance is None:
            self.refilled_at, self.carry = max(self.refilled_at, at), 0
            return
        self.balance, self.refilled_at, self.carry = self.flow.refilled(self.balance, self.refilled_at, self.carry, at)

    def _charge(self, hold_id: str, hold: Hold) -> None:
        self.sequence += 1
        self.held -= hold.tokens
        charged = hold.tokens
        if self.balance is None:
            charged = 0
        else:
            self.balance = saturated(self.balance - charged)
        self.holds[hold_id] = Hold(charged, hold.opened, hold.expires_at, hold.hold_for, self.sequence)

    # 4: admission

    def _judge(self, tokens: int, keep: int) -> tuple[Reason, int]:
        """Return whether `tokens` are admitted now, or why not, and the instant from which they would be."""
        if tokens == 0:
            return Reason.GRANTED, self.now
        if self.held + tokens >= LIMIT:
            # More than can be counted exactly.
            return Reason.TOO_LARGE, NEVER
        alone = required(tokens, self.quota.overdraft)
        beside = tokens if self.quota.synced else alone
        aside = self._set_aside(keep, self.flow.capacity - alone)
        alone, beside = alone + aside, beside + aside
        if self.balance is None:
            return Reason.UNKNOWN, self._instant(alone, beside)
        available = self.balance - self.held
        if available < alone and alone > self.flow.capacity:
            return Reason.TOO_LARGE, NEVER
        closed_until = self._closed_for(tokens, keep)
        if closed_until is not None:
            return Reason.RECHARGING, max(closed_until, self._instant(alone, beside))
        if available < (beside if self.held else alone):
            return Reason.EMPTY, self._instant(alone, beside)
        return Reason.GRANTED, self.now

    def _instant(self, alone: int, beside: int) -> int:
        """Return the first instant at which `alone` tokens are available, or `beside` tokens beside any in flight.

        It counts on nobody asking or settling; NEVER if there is none.
        """
        balance, refilled_at, carry, held, start = self.balance, self.refilled_at, self.carry, self.held, self.now
        in_flight = self._in_flight()
        if balance is None:
            failed_at = self.now + CLAIM_US if self.probe_until is None else self.probe_until
            balance, refilled_at, carry = 0, max(refilled_at, failed_at), 0
            held -= sum(hold.tokens for _, hold in in_flight if hold.expires_at < failed_at)
            in_flight = [item for item in in_flight if item[1].expires_at >= failed_at]
        for _, hold in in_flight:
            at = self._reached(balance, refilled_at, carry, (beside if held else alone) + held, start)
            if at <= hold.expires_at:
                return at
            start = hold.expires_at
            balance, refilled_at, carry = self.flow.refilled(balance, refilled_at, carry, start)
            balance = saturated(balance - hold.tokens)
            held -= hold.tokens
        return self._reached(balance, refilled_at, carry, alone, start)

    def _reached(self, balance: int, refilled_at: int, carry: int, wanted: int, start: int) -> int:
        """Return the first instant from `start` on at which the balance has flowed to `wanted`; NEVER if none."""
        if balance >= wanted:
            return start
        if wanted > self.flow.capacity:
            return NEVER
        return max(start, self.flow.instant(wanted - balance, refilled_at, carry))

    # 5: recharge

    def _is_closed(self) -> bool:
        return self.quota.recharge_to is not None and self.closed_until is not None

    def _recharged_at(self) -> int:
        target = min(self.quota.recharge_to or 0, self.flow.capacity)
        return self._instant(target, target)

    def _closed_for(self, tokens: int, keep: int) -> int | None:
        """Return the end of the recharge that a request for `tokens` finds, or begins; None: the bucket is open."""
        if self.quota.recharge_to is None or self.balance is None:
            return None
        lacking = required(tokens, self.quota.overdraft)
        enough = tokens == 0 or self.balance - self.held >= lacking
        if self.closed_until is not None or enough or lacking + keep > self.flow.capacity:
            return self.closed_until
        end = self._recharged_at()
        return end if self.now < end < NEVER else None

    def _close_for(self, tokens: int, keep: int) -> None:
        end = self._closed_for(tokens, keep)
        if end is not None:
            self.closed_until = end

    def _reopen(self) -> None:
        if self.closed_until is None or self.quota.recharge_to is None:
            return
        if self.balance is None:
            # Nothing known, nothing to recharge.
            self.closed_until = None
            return
        end = min(self.closed_until, self._recharged_at())
        self.closed_until = end if self.now < end and self.flow.refill > 0 else None

    # 6: taking tokens, now or in a place

    def acquire(self, command: Acquire) -> Outcome:
        self._close_for(command.tokens, command.keep)
        reason, at = self._judge(command.tokens, command.keep)
        if not self._has_place(reason, at, command):
            return self._refuse(reason, command.tokens, command.keep, command.probe_after_us)
        if self.balance is not None:
            self.balance = saturated(self.balance - command.tokens)
        return self._outcome(granted=True, place_us=at - self.now)

    def reserve(self, command: Reserve) -> Outcome:
        repeated = self.holds.get(command.id)
        if repeated is not None:
            return self._outcome(granted=True, place_us=max(0, repeated.expires_at - repeated.hold_for - self.now))
        self._close_for(command.tokens, command.keep)
        reason, at = self._judge(command.tokens, command.keep)
        if self._has_place(reason, at, command):
            self._open(command, at)
            return self._outcome(granted=True, place_us=at - self.now)
        refusal = self._refuse(reason, command.tokens, command.keep, command.probe_after_us)
        if not (command.scout and refusal.probe):
            return refusal
        self._open(command, self.now)
        return self._outcome(granted=True, probe=True, scout=True)

    def _has_place(self, reason: Reason, at: int, command: Acquire | Reserve) -> bool:
        if reason is Reason.GRANTED:
            return True
        if command.wait_us is None or command.keep or reason is not Reason.EMPTY:
            return False
        queues = not self.quota.synced and self.quota.recharge_to is None
        return queues and at < NEVER and at - self.now <= command.wait_us

    def _open(self, command: Reserve, at: int) -> None:
        self.sequence += 1
        self.holds[command.id] = Hold(command.tokens, self.sequence, at + command.hold_for_us, command.hold_for_us)
        self.held = saturated(self.held + command.tokens)

    def _refuse(self, reason: Reason, tokens: int, keep: int, probe_after_us: int | None) -> Outcome:
        probe = self._probe_at(probe_after_us) <= self.now
        if probe:
            self._claim()
        _, at = self._judge(tokens, keep)
        return self._outcome(reason=reason, retry_after_us=_until(at, self.now), probe=probe)

    # 3: ending a hold, giving back

    def settle(self, command: Settle) -> Outcome:
        hold = self.holds.pop(command.id, None)
        if hold is None:
            verdict, drift = self._observe(command.reading)
            return self._outcome(found=False, reading=verdict, drift=drift)
        if hold.in_flight:
            self.held -= hold.tokens
        cost = hold.tokens if command.actual is None else command.actual
        before = self._charged_before(hold)
        reading = command.reading
        if reading is not None and self._fresh_by_call(reading, hold.opened):
            projected = None if self.balance is None else self.balance + before - cost
            return self._outcome(reading=Verdict.TAKEN, drift=self._adopt(reading, projected))
        if reading is not None and self._is_older(reading):
            cost = 0
        if self.balance is not None:
            self._correct(before - cost)
            if command.refused and hold.opened > self.reading_sequence:
                self.balance = min(self.balance, 0)
        self._reopen()
        return self._outcome(reading=Verdict.NONE if reading is None else Verdict.STALE)

    def cancel(self, command: Cancel) -> Outcome:
        hold = self.holds.pop(command.id, None)
        if hold is None:
            return self._outcome(found=False)
        if hold.in_flight:
            self.held -= hold.tokens
        else:
            self._correct(self._charged_before(hold))
        self._reopen()
        return self._outcome()

    def _charged_before(self, hold: Hold) -> int:
        """Return what running out cost the balance that is there now: nothing, if a reading has replaced it since."""
        return hold.tokens if hold.charged > self.reading_sequence else 0

    def refund(self, command: Refund) -> Outcome:
        age = self.now - command.issued_us
        # Twice the tolerance: one between those who issue and count it, one between those who forget and repeat it.
        if command.id in self.holds or not -TOLERANCE_US <= age < REFUND_MEMORY_US - 2 * TOLERANCE_US:
            return self._outcome(found=False)
        self.sequence += 1
        self.holds[command.id] = Hold(0, self.sequence, self.now, REFUND_MEMORY_US, self.sequence)
        self._correct(command.tokens)
        self._reopen()
        return self._outcome()

    def _correct(self, by: int) -> None:
        """Take tokens from the balance, or give them back, up to capacity: what was above it would have been lost."""
        if self.balance is not None:
            most = max(self.balance, self.flow.capacity)
            self.balance = saturated(min(most, self.balance + by))

    # 7: readings

    def reconcile(self, command: Reconcile) -> Outcome:
        verdict, drift = self._observe(command.reading)
        return self._outcome(reading=verdict, drift=drift, snapshot=self._snapshot(Peek()))

    def _observe(self, reading: Reading | None) -> tuple[Verdict, int | None]:
        if reading is None:
            return Verdict.NONE, None
        if not self._fresh_by_itself(reading):
            return Verdict.STALE, None
        return Verdict.TAKEN, self._adopt(reading, self.balance)

    def _nothing_known(self) -> bool:
        return self.balance is None or self.reading_at is None

    def _fresh_by_call(self, reading: Reading, opened: int) -> bool:
        if not self.quota.synced:
            return False
        return self._nothing_known() or opened > self.reading_sequence or self._is_newer(reading)

    def _fresh_by_itself(self, reading: Reading) -> bool:
        if not self.quota.synced:
            return False
        if self._nothing_known() or self._is_newer(reading):
            return True
        if self.server_time is None:
            return True
        return self.now - (self.reading_at or 0) > REORDER_US

    def _is_newer(self, reading: Reading) -> bool:
        told = reading.server_time_us
        if told is None or self.server_time is None:
            return False
        return told > self.server_time or (told == self.server_time and reading.balance < (self.balance or 0))

    def _is_older(self, reading: Reading) -> bool:
        told = reading.server_time_us
        return told is not None and self.server_time is not None and told <= self.server_time

    def _adopt(self, reading: Reading, projected: int | None) -> int | None:
        """Take the server's word; return the drift: how far the projection was below it."""
        followed = self.reading_at is not None and self.held == 0
        before = self.flow
        self.drift = None if projected is None else saturated(reading.balance - projected)
        self.balance = reading.balance
        self.sequence += 1
        self.reading_sequence = self.sequence
        self.reading_at = self.now
        if reading.server_time_us is not None:
            self.server_time = reading.server_time_us
        self.probe_until, self.probe_failures = None, 0
        period_us = self.quota.period_us if reading.period_us is None else reading.period_us
        self._adopt_flow(reading, period_us)
        self._keep_back(-(self.drift or 0) if followed and self.flow == before else 0)
        if self.flow.stepped and reading.next_refill_in_us is not None:
            self.refilled_at = phased(self.now, period_us, reading.next_refill_in_us)
        elif not self.flow.stepped:
            self.refilled_at = max(self.refilled_at, self.now)
        self.carry = 0
        self._reopen()
        return self.drift

    def _adopt_flow(self, reading: Reading, period_us: int) -> None:
        if reading.capacity is not None:
            self.reported_capacity = reading.capacity
        refill, period_us = reading.refill_tokens, period_us * reading.refill_periods
        if refill is not None and refill * (period_us + 1) < LIMIT and period_us < LIMIT:
            self.reported_refill, self.reported_period_us = refill, period_us
        self.flow = flow_in_effect(self.quota, self.state())

    # 8: the probe

    def claim_probe(self) -> Outcome:
        claimed = self.quota.synced and (self.probe_until is None or self.now >= self.probe_until)
        if claimed:
            self._claim()
        return self._outcome(probe=claimed)

    def _probe_at(self, probe_after_us: int | None) -> int:
        """Return the first instant at which a refusal gets the claim."""
        if probe_after_us is None or not self.quota.synced:
            return NEVER
        stale_at = self.now if self._nothing_known() else (self.reading_at or 0) + probe_after_us
        if self.probe_until is None:
            return max(self.now, stale_at)
        backoff = min(probe_after_us << self.probe_failures, max(probe_after_us, MAX_BACKOFF_US))
        return max(self.now, stale_at, self.probe_until + backoff)

    def _claim(self) -> None:
        if self.probe_until is not None:
            self.probe_failures += 1
        self.probe_until = self.now + CLAIM_US

    # 10: others

    def _set_aside(self, keep: int, most: int) -> int:
        kept = self._kept_for_others()
        return max(keep, min(keep + kept, self.flow.capacity // KEPT_SHARE, most)) if kept else keep

    def _kept_for_others(self) -> int:
        return min(self.kept_back, self.flow.capacity // KEPT_SHARE) if self.quota.synced else 0

    def _keep_back(self, gap: int) -> None:
        """Learn from a fresh reading that lay `gap` below the projection; 0 where it says nothing of others."""
        since = self.now if self.kept_back_at is None else self.kept_back_at
        kept, since = halved(self._kept_for_others(), since, self.now, HALF_LIFE_US)
        # A step, or what flows within the tolerance, may have come to the projection while the answer was under way.
        under_way = self.flow.refill * (TOLERANCE_US // self.flow.period_us + 1)
        if gap > under_way:
            kept, since = min(kept + gap, self.flow.capacity // KEPT_SHARE), self.now
        self.kept_back, self.kept_back_at = kept, since if kept else None

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
        reason, at = self._judge(command.tokens, command.keep)
        bound = min(self._granted_by(reason, at), self._probe_at(command.probe_after_us))
        full_at = NEVER if self.balance is None else self._full_at(self.balance)
        closed_for = (self.closed_until or 0) - self.now if self._is_closed() else 0
        return Snapshot(
            balance=self.balance,
            held=self.held,
            holds=sum(hold.in_flight for hold in self.holds.values()),
            retry_after=seconds(_until(at, self.now)),
            full_in=seconds(_until(full_at, self.now)),
            closed_for=seconds(closed_for),
            bound=seconds(_until(bound, self.now)),
            quota=self.quota,
            capacity=self.flow.capacity,
            refill=self.flow.refill,
            period=seconds(self.flow.period_us),
            reading_age=None if self.reading_at is None else seconds(max(0, self.now - self.reading_at)),
            drift=self.drift,
            kept_back=self._kept_for_others(),
            repaired=self.repaired,
        )

    def _granted_by(self, reason: Reason, at: int) -> int:
        """Return the latest instant of a grant if attempts go on meanwhile: one that fails may begin a recharge."""
        if reason is Reason.GRANTED or self.quota.recharge_to is None:
            return at
        end = self._recharged_at()
        return max(at, end) if end < NEVER else at

    def _full_at(self, balance: int) -> int:
        return self._reached(balance, self.refilled_at, self.carry, self.flow.capacity, self.now)

    def _outcome(
        self,
        *,
        granted: bool = False,
        reason: Reason = Reason.GRANTED,
        retry_after_us: int = 0,
        place_us: int = 0,
        probe: bool = False,
        scout: bool = False,
        found: bool = True,
        reading: Verdict = Verdict.NONE,
        drift: int | None = None,
        snapshot: Snapshot | None = None,
    ) -> Outcome:
        return Outcome(
            now_us=self.now,
            balance=self.balance,
            granted=granted,
            reason=reason,
            retry_after_us=retry_after_us,
            place_us=place_us,
            closed=self._is_closed(),
            kept_back=self._kept_for_others(),
            probe=probe,
            scout=scout,
            found=found,
            reading=reading,
            drift=drift,
            repaired=self.repaired,
            snapshot=snapshot,
        )


def _until(at: int, now: int) -> int:
    return NEVER if at >= NEVER else at - now
