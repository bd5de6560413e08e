"""Small worlds: every state that a tiny bucket can reach by the shipped `transition`, faults and clock steps included.

A world is explored breadth first. Times are kept relative to now and sequence numbers by their order alone, so the
states are finitely many; all of them are visited. What is checked:

- safety, on every step, as a potential. What is there to spend, in token microseconds, is available * period, the
  remainder, and what the running period has earned; available is the balance, on a synced bucket less what is held. No
  step may end with more of it, and of what it granted net, than it began with and the clock's way forward brings; no
  grant may end below the overdraft. Summed over the steps: net granted <= start + refill + overdraft. A reading begins
  a new account. A fault adds what it forgives: a lost balance its debt, a synced bucket's lost hold its tokens; a lost
  timestamp, remainder or place nothing. Under terms that take turns time is counted at the fastest of their rates.
- liveness, in every state: `peek` states a bound, and an attempt at the bound is granted or told to probe, also if
  another attempt failed half-way there.
- under terms that take turns: no refused attempts, by whoever and at whatever pace, go round in a circle, and none go
  on for longer than the bound stated at their beginning, a minute and a period.
- in worlds without faults, with a server that owns the balance: the projection is never above the truth, and the server
  refuses no call that the bucket let through.

Run alone: `python -m checks.proof.worlds`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from operator import attrgetter
from typing import Any, Final

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
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
from keepa_tokens.rules.flow import Flow, flow_in_effect
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.repair import new_state, repair
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, MICROSECONDS, MINUTE_US, TOLERANCE_US, UNLIMITED

SECOND: Final = MICROSECONDS
NOW: Final = 10**6 * SECOND
"""Where every state is moved to: the instant of its last step."""

LONG_AGO: Final = 5400 * SECOND
"""Past ends and readings count as at most this old: nothing asks how much older they are."""

BASE_TIME: Final = 10**5 * SECOND
"""The server's time of the last reading, where only what comes after it counts."""

REFUND: Final = "refund"
"""What is remembered of a refund is left out: each is another one, and none comes twice."""


class Broken(Exception):
    """A step or a state breaks the promise; the message is the counterexample."""


# --- states, apart from when they are


def resting(quota: Quota, state: BucketState, now: int, oldest: int = LONG_AGO, *, terms: bool = False) -> BucketState:
    """Return a state moved from `now` to NOW, with its sequence numbers packed and what decides nothing left out.

    What has flowed in is in the balance: a step that stored nothing leaves the state in which the next one finds it. A
    place that is past by more than one step of the clock back is left out, and the instant of the next sweep where no
    hold is left. terms: keep the terms that the bucket runs on.
    """
    state, by = flowed(quota, state, now), NOW - now

    def moved(at: int | None) -> int | None:
        return None if at is None else max(NOW - oldest, at + by)

    known = {0, state.reading_sequence or 0}
    for hold in state.holds.values():
        known |= {hold.opened, hold.charged}
    known |= {ticket.arrived for ticket in state.line}
    # Without readings and a line it is only ever asked whether a hold was charged.
    in_order = state.reading_at is not None or state.line
    rank = {number: place if in_order else min(1, place) for place, number in enumerate(sorted(known))}
    holds = {
        name: Hold(hold.tokens, rank[hold.opened], hold.expires_at + by, hold.hold_for, rank[hold.charged])
        for name, hold in sorted(state.holds.items())
        if name != REFUND
    }
    instants: dict[str, Any] = {name: moved(getattr(state, name)) for name in INSTANTS}
    instants |= {name: None for name in PLACES if (getattr(state, name) or 0) <= now - LONGEST_BACK}
    if not holds:
        instants["due_at"] = None
    return replace(
        state,
        **instants,
        version=0,
        fast=None,
        carry=state.carry or 0,
        largest_place=state.largest_place if instants["last_place"] is not None else None,
        probe_failures=min(1, state.probe_failures or 0),
        sequence=max(rank.values()),
        reading_sequence=rank[state.reading_sequence or 0],
        holds=holds,
        line=tuple(replace(each, arrived=rank[each.arrived], told_at=each.told_at + by) for each in state.line),
        quota=state.quota if terms else None,
        drift=None,
    )


def flowed(quota: Quota, state: BucketState, now: int) -> BucketState:
    """Return a state in which the refill until `now` is in the balance, unless something is due before.

    That looking between changes nothing is proved: `refill.smooth_path_does_not_matter` and its twin.
    """
    due = state.wide_capacity is not None or any(hold.due_at <= now for hold in state.holds.values())
    if due or state.balance is None or state.refilled_at is None:
        return state
    flow = flow_of(state.quota or quota, state, now)
    balance, refilled_at, carry = flow.refilled(state.balance, state.refilled_at, state.carry or 0, now)
    return replace(state, balance=balance, refilled_at=refilled_at, carry=carry)


PLACES: Final = "last_place", "firm_place"
INSTANTS: Final = (
    *(field.name for field in fields(BucketState) if field.name.endswith(("_at", "_until"))),
    *PLACES,
)
LONGEST_BACK: Final = 2 * TOLERANCE_US
"""The furthest that a clock steps back in a world with places."""


Key = tuple[object, ...]


def key(state: BucketState) -> Key:
    """Return what tells one state from another."""
    return (*WITHOUT_HOLDS(state), *state.holds.items())


WITHOUT_HOLDS: Final = attrgetter(*(field.name for field in fields(BucketState) if field.name != "holds"))


def held(state: BucketState) -> int:
    """Return what calls in flight have set aside."""
    return sum(hold.tokens for hold in state.holds.values() if hold.in_flight)


def potential(state: BucketState, now: int, flow: Flow, *, synced: bool) -> int:
    """Return what there is to spend, in token microseconds at a flow's rate; an unknown balance counts as 0."""
    running = max(0, now - (state.refilled_at or 0)) * flow.refill if state.balance is not None else 0
    available = (state.balance or 0) - (held(state) if synced else 0)
    return available * flow.period_us + (state.carry or 0) + running


def flow_of(quota: Quota, state: BucketState, now: int) -> Flow:
    """Return the flow in effect."""
    told = (state.reported_refill, state.reported_capacity, state.stretched_us, state.wide_capacity)
    return flow_alone(quota) if told == (None,) * 4 else flow_in_effect(repair(quota, state, now)[0], now)


@cache
def flow_alone(quota: Quota) -> Flow:
    """Return the flow of terms of which nobody has said anything else."""
    return flow_in_effect(new_state(quota, NOW), NOW)


def gained(before: BucketState, command: Command, outcome: Outcome) -> int:
    """Return the tokens that a step gave away, less those that it got back."""
    match command:
        case Acquire(tokens) if outcome.granted:
            return tokens
        case Reserve(name, tokens) if outcome.granted and name not in before.holds:
            return tokens
        case Settle(name, actual, reading) if outcome.found and name in before.holds:
            tokens = before.holds[name].tokens
            if outcome.reading is Verdict.STALE and reading and _has_time(reading, before):
                return -tokens  # the last reading had the cost: the call belongs to the account before it
            return 0 if actual is None else actual - tokens
        case Cancel(name) if outcome.found and name in before.holds:
            return -before.holds[name].tokens
        case Refund(_, tokens) if outcome.found:
            return -tokens
        case _:
            return 0


def _has_time(reading: Reading, state: BucketState) -> bool:
    return reading.server_time_us is not None and type(state.server_time) is int


# --- faults

# What isn't a whole number is mended as what is missing or out of range (proved in theorems/mending.py), so one stands
# for all; where the far future is in range, it is a fault of its own, but for the next sweep: damage at every step
# would put it off for ever, a second at a time.
LOST_OR_SENSELESS: Final[dict[str, tuple[int | str | None, ...]]] = {
    "balance": (None,),
    "refilled_at": ("x", LIMIT - 1),
    "carry": (LIMIT - 1,),
    "closed_until": (None, LIMIT - 1),
    "held": (None, LIMIT - 1),
    "open": (None,),
    "due_at": (None, 0),
    "last_place": (None, LIMIT - 1),
    "firm_place": (LIMIT - 1,),
    "largest_place": (None,),
    "sequence": (None,),
    "reading_at": (None, LIMIT - 1),
    "reading_sequence": (None, LIMIT // 4),
    "server_time": (None, LIMIT - 1),
    "server_time_at": (None, LIMIT - 1),
    "probe_until": (None, LIMIT - 1),
    "probe_failures": (None, LIMIT - 1),
    "probe_returned": (None, LIMIT - 1),
    "reported_refill": (0,),
    "stretched_us": (LIMIT - 1,),
}


SYNCED_ALONE: Final = frozenset({"reading_sequence", "probe_failures", "reported_refill", "held", "open"})


def faults(quota: Quota, state: BucketState) -> Iterator[tuple[str, BucketState, int]]:
    """Yield what can befall a state, and how many tokens it forgives."""
    for name, values in LOST_OR_SENSELESS.items():
        # Some of a plain bucket's fields are always empty.
        if getattr(state, name) is None and not quota.synced:
            continue
        if name in SYNCED_ALONE and not quota.synced:
            continue
        if name == "closed_until" and quota.recharge_to is None:
            continue
        for value in values:
            forgiven = max(0, -(state.balance or 0)) if name == "balance" else 0
            yield f"{name}={value!r}", replace(state, **{name: value}), forgiven  # type: ignore[arg-type] # garbage
    for name, hold in state.holds.items():
        rest = {other: kept for other, kept in state.holds.items() if other != name}
        # One that was charged, or taken from a plain balance, is given back no longer: nothing is forgiven.
        forgiven = hold.tokens if hold.in_flight and quota.synced else 0
        yield f"hold {name} lost", replace(state, holds=rest), forgiven
        late = {**state.holds, name: replace(hold, expires_at=LIMIT - 1)}
        yield f"hold {name} without end", replace(state, holds=late), 0
        early = {**state.holds, name: replace(hold, opened=LIMIT // 4)}
        yield f"hold {name} out of order", replace(state, holds=early), 0


# --- a plain bucket


@dataclass
class Count:
    """How many states and steps a world has."""

    name: str
    states: int = 0
    steps: int = 0
    orders: int = 0
    seconds: float = 0.0
    broken: str = ""

    def __str__(self) -> str:
        orders = f", {self.orders:,} orders" if self.orders else ""
        return f"{self.states:,} states, {self.steps:,} steps{orders}"


def step(
    quota: Quota, state: BucketState, now: int, command: Command, *, forgiven: int = 0, start: int = NOW
) -> tuple[BucketState, Outcome]:
    """Take one step from a state that rested at `start`, and raise Broken if it breaks safety."""
    after, outcome = transition(quota, state, now, command)
    if after is None:
        raise Broken(f"{command} left nothing")
    if outcome.granted and outcome.reason == "GRANTED" and not outcome.scout and quota.overdraft < UNLIMITED:
        available = (after.balance or 0) - (held(after) if quota.synced else 0)
        if outcome.place_us == 0 and isinstance(command, Acquire | Reserve) and command.tokens and command.keep == 0:
            fresh = not (isinstance(command, Reserve) and command.id in state.holds)
            if fresh and available < -quota.overdraft:
                raise Broken(f"{command} at {now - NOW} from {state} left {available}: below the overdraft")
    if outcome.reading is not Verdict.TAKEN and state.balance is not None and _sound(state.balance):
        flow, synced = flow_of(quota, after, now), quota.synced
        brought = max(0, now - start) * flow.refill + forgiven * flow.period_us
        end = potential(after, now, flow, synced=synced) + gained(state, command, outcome) * flow.period_us
        most = potential(_spendable(state), start, flow, synced=synced) + brought
        if end > most:
            raise Broken(f"{command} at {now - NOW} minted {end - most}: from {state} to {after}")
    return after, outcome


def _sound(balance: object) -> bool:
    return type(balance) is int and abs(balance) < LIMIT


def _spendable(state: BucketState) -> BucketState:
    """Return a damaged state with what its damage can't add to: its remainder and time count for nothing."""
    sound_carry = type(state.carry) is int and 0 <= state.carry < LIMIT - 1
    sound_time = type(state.refilled_at) is int and state.refilled_at >= 0
    return replace(state, carry=state.carry if sound_carry else 0, refilled_at=state.refilled_at if sound_time else NOW)


def check_liveness(quota: Quota, state: BucketState, probe_after_us: int | None, tokens: int) -> int:
    """Raise Broken unless the state keeps the bound that it states for a request; return the steps taken."""
    # A look writes its repairs back, like every command.
    mended, seen = transition(quota, state, NOW, Peek(tokens, 0, probe_after_us))
    bound = math.inf if seen.snapshot is None else seen.snapshot.bound
    if bound == math.inf:
        raise Broken(f"no bound for {tokens}: {state}")
    end = NOW + round(bound * MICROSECONDS)
    ask = Acquire(tokens, probe_after_us=probe_after_us)
    _, outcome = transition(quota, mended, end, ask)
    if not (outcome.granted or outcome.probe):
        raise Broken(f"bound {bound} s not kept for {tokens}: {state}")
    halfway, early = transition(quota, mended, (NOW + end) // 2, ask)
    if not (early.granted or early.probe):
        _, outcome = transition(quota, halfway, end, ask)
        if not (outcome.granted or outcome.probe):
            raise Broken(f"bound {bound} s moved by an attempt for {tokens}: {state}")
    return 3


@dataclass(frozen=True)
class Alone:
    """A bucket of two workers with a hold each; a synced one is told what no real server would say, in any order.

    Steps come so many units after the one before, or on a clock that stepped back. The unit is the tolerance of
    clocks, 5 s, so that what a repair moves stays on the grid. waits: workers may queue for a place, and give one back.
    pauses: somebody may pause it. in_line: two callers may stand in line, one of them to leave tokens for others.
    probe_after_us: None, nobody claims the probe. in_order: each reading is newer than the last one. oldest: past
    instants count as at most this old.
    """

    name: str
    quota: Quota
    workers: tuple[str, ...] = ("a", "b")
    unit: int = TOLERANCE_US
    after: tuple[int, ...] = (0, 1, 5, -1, -2)
    damage: bool = True
    waits: bool = False
    pauses: bool = False
    in_line: bool = False
    hold_for: int = 2 * TOLERANCE_US
    probe_after_us: int | None = None
    in_order: bool = False
    oldest: int = LONG_AGO

    def commands(self, state: BucketState, now: int) -> Iterator[Command]:
        """Yield all that can be asked in a state."""
        yield Acquire(1, probe_after_us=self.probe_after_us)
        if self.pauses:
            yield Pause(2 * self.unit)
            yield Pause(0)
        if self.quota.synced:
            yield Acquire(0)
            yield from self.readings(state, now)
            return
        if self.in_line:
            yield Acquire(2, ticket="one")
            yield Acquire(1, keep=1, ticket="other")
            yield Cancel("one")
        yield Acquire(2, keep=self.quota.capacity - 2)
        if self.waits:
            yield Acquire(1, wait_us=2 * self.unit)
            yield Refund(REFUND, 1)
            yield Refund(REFUND, 1, now + self.unit)
        for worker in self.workers:
            if worker not in state.holds:
                yield Reserve(worker, 2, self.hold_for)
                continue
            yield Settle(worker, 1)
            yield Settle(worker, 3)
            yield Cancel(worker)

    def readings(self, state: BucketState, now: int) -> Iterator[Command]:
        """Yield claims, holds and settles of a synced bucket, and readings in any order, or in none."""
        last, passed = state.server_time, now - (state.server_time_at or now)
        newer, older, near, jumped = (
            (BASE_TIME if last is None else max(0, last + later)) / SECOND
            for later in (passed + 20 * SECOND, -15 * SECOND, -3 * SECOND, passed + 7200 * SECOND)
        )
        yield from (Reconcile(Reading(balance, server_time=newer)) for balance in (-1, 1))
        if not self.in_order:
            yield Reconcile(Reading(1, server_time=older))
            yield Reconcile(Reading(-1, server_time=near))
            yield Reconcile(Reading(0, server_time=jumped))
            yield Reconcile(Reading(1))
        if self.probe_after_us is not None:
            yield ClaimProbe()
        if state.probe_until is not None and not self.workers:
            yield Unclaim(state.probe_until)
        for worker in self.workers:
            if worker not in state.holds:
                yield Reserve(worker, 1, self.hold_for, probe_after_us=self.probe_after_us, scout=True)
                continue
            yield Settle(worker, 1, Reading(1, server_time=newer))
            if not self.in_order:
                yield Settle(worker, 2)
                yield Settle(worker, 0, Reading(1, server_time=older), refused=True)
            yield Cancel(worker)

    def explore(self) -> Count:
        """Visit every state; raise Broken at the first step or state that breaks the promise."""
        count = Count(self.name)
        first = BucketState(balance=self.quota.starts_at, refilled_at=NOW, sequence=0)
        queue = deque([self._rested(first, NOW)])
        seen = {key(queue[0])}
        while queue:
            state = queue.popleft()
            count.states += 1
            for tokens in (1, self.quota.capacity):
                count.steps += check_liveness(self.quota, state, self.probe_after_us, tokens)
            for after in self._next(state, count):
                renamed = self._renamed(after)
                found = key(renamed)
                if found not in seen:
                    seen.add(found)
                    queue.append(renamed)
        return count

    def _rested(self, state: BucketState, now: int) -> BucketState:
        return resting(self.quota, state, now, self.oldest)

    def _renamed(self, state: BucketState) -> BucketState:
        """Return the state with its holds given to the workers in one order: they are told apart by nothing else."""
        if state.server_time is not None:
            # Times are told relative to it: how much longer than a minute ago it was told is not asked.
            told_at = state.server_time_at
            since = None if told_at is None else told_at if told_at >= NOW else max(told_at, NOW - self.unit)
            state = replace(state, server_time=BASE_TIME, server_time_at=since)
        else:
            state = replace(state, server_time_at=None)
        holds = sorted(state.holds.values(), key=lambda hold: (hold.expires_at, hold.charged, hold.tokens))
        return replace(state, holds=dict(zip(self.workers, holds, strict=False)))

    def _next(self, state: BucketState, count: Count) -> Iterator[BucketState]:
        for units in self.after:
            now = NOW + units * self.unit
            for command in self.commands(state, now):
                count.steps += 1
                yield self._rested(step(self.quota, state, now, command)[0], now)
        if not self.damage:
            return
        for _, damaged, forgiven in faults(self.quota, state):
            # A loss shows at the next step, now or later; the mended state is then looked at like any.
            for units in (0, 1):
                now = NOW + units * self.unit
                count.steps += 1
                yield self._rested(step(self.quota, damaged, now, Acquire(1), forgiven=forgiven)[0], now)


# --- a bucket beside the server that owns the balance

OPEN, ADMIT, COMPLETE, RECEIVE, DONE = range(5)


@dataclass(frozen=True)
class Call:
    """How far a call has come, and the envelope on its way back: the server's balance, time and next step.

    The server's clock is ours.
    """

    stage: int = OPEN
    balance: int = 0
    told: int = 0
    next_step: int = 0


@dataclass(frozen=True)
class Node:
    """A state of the world: the bucket, the server's balance, when its next step comes, and the calls."""

    bucket: BucketState
    server: int
    next_step: int
    calls: tuple[Call, ...]
    ticks: int

    def key(self) -> Key:
        """Return what tells one from another."""
        return (key(self.bucket), self.server, self.next_step, self.calls, self.ticks)


@dataclass(frozen=True)
class Synced:
    """Calls that take their four steps in any order: opened here, admitted and charged there, answered.

    at_admission: the server charges when it admits, else when it completes. ticks: how often time may pass by `unit`
    (0: never; None: without end, calls begin anew), though not past the end of a hold whose call is under way. apart:
    how far the server's answers of one moment are apart by its clock.
    """

    name: str
    quota: Quota
    start: int
    costs: tuple[int, ...]
    estimates: tuple[int, ...]
    at_admission: bool = False
    ticks: int | None = 0
    unit: int = 30 * SECOND
    probe_after_us: int | None = None
    hold_for: int = 600 * SECOND
    oldest: int = LONG_AGO
    apart: int = 10 * SECOND

    @property
    def period(self) -> int:
        """The server's period in units."""
        return self.quota.period_us // self.unit

    def explore(self) -> Count:
        """Visit every state; raise Broken at the first step or state that breaks the promise."""
        count = Count(self.name)
        reading = Reading(self.start, next_refill_in=self.period * self.unit / SECOND, server_time=NOW / SECOND)
        bucket, _ = transition(self.quota, None, NOW, Reconcile(reading))
        if bucket is None:
            raise Broken("nothing stored")
        calls = (Call(),) * len(self.costs)
        rested = resting(self.quota, bucket, NOW, self.oldest)
        first = self._packed(Node(rested, self.start, self.period, calls, self.ticks or 0))
        queue = deque([first])
        ways: dict[Key, int] = {first.key(): 1}
        while queue:
            node = queue.popleft()
            count.states += 1
            self._check(node, count)
            last = True
            for after in self._next(node, count):
                packed = self._packed(after)
                found = packed.key()
                last = False
                # In a world that ends, states come in the order of their steps, so each is complete when it is taken.
                if found in ways:
                    ways[found] += ways[node.key()] if self.ticks is not None else 0
                else:
                    ways[found] = ways[node.key()]
                    queue.append(packed)
            if last:
                count.orders += ways[node.key()]
        return count

    def _check(self, node: Node, count: Count) -> None:
        state = node.bucket
        count.steps += check_liveness(self.quota, state, self.probe_after_us or 3600 * SECOND, 1)
        if state.balance is None:
            return
        if state.balance - held(state) > node.server:
            raise Broken(f"available above the truth: {node}")
        done = all(call.stage in {OPEN, DONE} for call in node.calls)
        if done and not state.holds and state.balance > node.server:
            raise Broken(f"the projection is above the truth: {node}")
        ended = self.ticks == 0 and all(call.stage == DONE for call in node.calls)
        if ended and not self.quota.recharge_to and state.balance != node.server:
            raise Broken(f"the projection is not the truth at the end: {node}")

    def _packed(self, node: Node) -> Node:
        """Return the node without the times of answers that have come."""
        calls = tuple(call if call.stage == RECEIVE else replace(call, told=0) for call in node.calls)
        return replace(node, calls=calls)

    def _server_now(self, node: Node) -> int:
        told = [call.told for call in node.calls if call.stage == RECEIVE]
        return max(NOW, max(told, default=0) + self.apart, (node.bucket.server_time or 0) + self.apart)

    def _next(self, node: Node, count: Count) -> Iterator[Node]:
        for number, call in enumerate(node.calls):
            if call.stage != DONE:
                count.steps += 1
                yield from self._advance(node, number, call)
        if (self.ticks is None or node.ticks) and all(
            hold.expires_at > NOW + self.unit for hold in node.bucket.holds.values()
        ):
            count.steps += 1
            yield self._tick(node)

    def _advance(self, node: Node, number: int, call: Call) -> Iterator[Node]:
        name, cost = str(number), self.costs[number]

        def after(changed: Call, bucket: BucketState = node.bucket, server: int = node.server) -> Node:
            calls = (*node.calls[:number], changed, *node.calls[number + 1 :])
            return replace(node, bucket=bucket, server=server, calls=calls)

        end = Call(DONE) if self.ticks is not None else Call()
        match call.stage:
            case 0:  # OPEN
                ask = Reserve(name, self.estimates[number], self.hold_for, probe_after_us=self.probe_after_us)
                bucket, outcome = step(self.quota, node.bucket, NOW, ask)
                yield after(Call(ADMIT) if outcome.granted else end, resting(self.quota, bucket, NOW, self.oldest))
            case 1:  # ADMIT
                if node.server <= 0:
                    raise Broken(f"the server refuses a call that the bucket let through: {node}")
                yield after(Call(COMPLETE), server=node.server - (cost if self.at_admission else 0))
            case 2:  # COMPLETE
                left = node.server - (0 if self.at_admission else cost)
                told = self._server_now(node)
                yield after(Call(RECEIVE, left, told, node.next_step), server=left)
            case _:  # RECEIVE
                reading = Reading(
                    call.balance, next_refill_in=call.next_step * self.unit / SECOND, server_time=call.told / SECOND
                )
                bucket, _ = step(self.quota, node.bucket, NOW, Settle(name, cost, reading))
                yield after(end, resting(self.quota, bucket, NOW, self.oldest))

    def _tick(self, node: Node) -> Node:
        """Let a unit of time pass, with whatever step of the server falls into it."""
        server, next_step = node.server, node.next_step - 1
        if next_step == 0:
            server, next_step = max(server, min(self.quota.capacity, server + self.quota.refill)), self.period
        now = NOW + self.unit
        bucket, _ = step(self.quota, node.bucket, now, Acquire(0, probe_after_us=None))
        calls = tuple(replace(call, told=call.told - self.unit) for call in node.calls)
        rested = resting(self.quota, bucket, now, self.oldest)
        if rested.server_time is not None:
            rested = replace(rested, server_time=max(NOW - self.oldest, rested.server_time - self.unit))
        return Node(rested, server, next_step, calls, max(0, node.ticks - 1))


# --- terms that take turns


@dataclass(frozen=True)
class Turns:
    """A plain bucket in debt whose callers have other terms, and ask in any order at any pace.

    paces: units between attempts. alternating: strictly in turn; else in any order.
    """

    name: str
    quotas: tuple[Quota, ...]
    unit: int = 20 * SECOND
    paces: tuple[int, ...] = (1, 3)
    alternating: bool = False
    wanted: int = 2

    def explore(self) -> Count:
        """Visit every state; raise Broken at the first step that mints, and where attempts can go on refused."""
        count = Count(self.name)
        first = BucketState(balance=-2, refilled_at=NOW, sequence=0, quota=self.quotas[0])
        rested = resting(self.quotas[0], first, NOW, OLDEST_TERMS, terms=True)
        queue = deque((rested, number) for number in range(len(self.quotas)))
        refused: dict[Key, list[tuple[int, Key]]] = {}
        states = {self._key(*node): node for node in queue}
        while queue:
            state, caller = queue.popleft()
            count.states += 1
            found = self._key(state, caller)
            refused[found] = []
            for pace, tokens, after, granted in self._next(state, caller, count):
                for other in self._others(caller):
                    then = self._key(after, other)
                    if tokens == self.wanted and not granted and pace:
                        refused[found].append((pace * self.unit, then))
                    if then not in states:
                        states[then] = (after, other)
                        queue.append((after, other))
        longest = longest_ways(refused, states)
        for found, (state, _) in states.items():
            if longest[found] > self._latest(state):
                raise Broken(f"refused for {longest[found] / SECOND:g} s: {state}")
        return count

    def _key(self, state: BucketState, caller: int) -> Key:
        return (caller, *key(state))

    def _others(self, caller: int) -> Iterator[int]:
        numbers = range(len(self.quotas))
        yield from (number for number in numbers if not self.alternating or number != caller)

    def _next(self, state: BucketState, caller: int, count: Count) -> Iterator[tuple[int, int, BucketState, bool]]:
        quota = self.quotas[caller]
        for pace in (0, *self.paces):
            for tokens in {0, self.wanted}:
                now = NOW + pace * self.unit
                count.steps += 1
                after, outcome = transition(quota, state, now, Acquire(tokens))
                if after is None:
                    raise Broken("nothing stored")
                granted = outcome.granted and tokens > 0
                brought = pace * self.unit * self._fastest.rate * self._common
                taken = tokens * granted * self._fastest.rate_period_us * self._common
                if self._potential(after, now) + taken > self._potential(state, NOW) + brought:
                    raise Broken(f"{tokens} by {quota} at {now - NOW} minted: from {state} to {after}")
                yield pace, tokens, resting(quota, after, now, OLDEST_TERMS, terms=True), granted

    @property
    def _fastest(self) -> Quota:
        return max(self.quotas, key=lambda quota: quota.rate / quota.rate_period_us)

    @property
    def _common(self) -> int:
        return math.lcm(*(quota.rate or 1 for quota in self.quotas))

    def _potential(self, state: BucketState, now: int) -> int:
        """Return what there is to spend: tokens, and the time under way at the fastest rate."""
        quota = state.quota or self.quotas[0]
        flow = flow_of(quota, state, now)
        if flow.refill:
            under_way = max(0, now - (state.refilled_at or 0))
        else:
            # A change from refill 0 brings at most a minute's time, and no more than since it began.
            under_way = MINUTE_US if state.terms_at is None else min(MINUTE_US, max(0, now - state.terms_at))
        time = under_way * self._common + (state.carry or 0) * self._common // (flow.refill or 1)
        fastest = self._fastest
        return (state.balance or 0) * fastest.rate_period_us * self._common + time * fastest.rate

    def _latest(self, state: BucketState) -> int:
        """Return for how long attempts may be refused: by the slowest terms, a minute and a period."""
        lacking = self.wanted - (state.balance or 0)
        flowing = [quota for quota in self.quotas if quota.refill]
        slowest = max(-(-lacking // quota.refill) * quota.period_us for quota in flowing)
        if len(flowing) < len(self.quotas):
            # Terms that never refill hold for a minute in two.
            slowest = 2 * slowest + MINUTE_US
        return slowest + MINUTE_US + max(quota.period_us for quota in flowing)


def longest_ways(
    refused: dict[Key, list[tuple[int, Key]]], states: dict[Key, tuple[BucketState, int]]
) -> dict[Key, int]:
    """Return for how long attempts from each state can be refused; raise Broken where they can for ever."""
    longest: dict[Key, int] = {}
    on_the_way: set[Key] = set()
    for beginning in refused:
        way = [beginning]
        while way:
            at = way[-1]
            ahead = next((then for _, then in refused[at] if then not in longest), None)
            if at in longest or ahead is None:
                longest.setdefault(at, max((time + longest[then] for time, then in refused[at]), default=0))
                on_the_way.discard(way.pop())
                continue
            on_the_way.add(at)
            if ahead in on_the_way:
                raise Broken(f"refused for ever: {states[ahead]}")
            way.append(ahead)
    return longest


# --- the worlds

OLDEST_TERMS: Final = 5 * MINUTE_US
"""A change of terms counts as at most this old: after a minute nothing asks how much older. No period is longer."""

LARGE: Final = Quota(1000, 20, 60.0, stepped=True, synced=True, overdraft=UNLIMITED)
TINY: Final = Quota(2, 1, 120.0, stepped=True, synced=True, overdraft=UNLIMITED)
SLOW: Final = Quota(2, 1, 1800.0, synced=True)
"""Slow, so that claims, backoffs, holds and refills all last a few units of half an hour. 3 tokens are the fewest of
which one is kept back."""

PLAIN: Final = Quota(2, 1, 10.0)
MINUTELY: Final = Quota(2, 1, 60.0)
SLOWLY: Final = Quota(2, 1, 180.0)
"""Longer than terms stay at least, so that none of them brings a step by itself."""

THREE_CALLS: Final = Synced("three calls", LARGE, 100, (3, 5, 8), (4, 5, 10))
TWO_WORKERS: Final = Synced(
    "two workers for ever",
    *(TINY, 2, (1, 2), (1, 2)),
    ticks=None,
    unit=120 * SECOND,
    hold_for=600 * SECOND,
    oldest=240 * SECOND,
)
SMALL: Final = (
    THREE_CALLS,
    replace(THREE_CALLS, name="three calls on 2 tokens", start=2),
    replace(THREE_CALLS, name="three calls on 7 tokens", start=7),
    replace(THREE_CALLS, name="three calls a second apart", apart=SECOND),
)
LARGER: Final = (
    replace(THREE_CALLS, name="three calls, two refills", start=12, ticks=2, unit=60 * SECOND),
    TWO_WORKERS,
)
"""Worlds with a server, which charges at completion or at admission."""

HALF_AN_HOUR: Final = 1800 * SECOND
SLOW_ALONE: Final = Alone("synced", SLOW, workers=(), unit=HALF_AN_HOUR, after=(0, 1, -1))
ONE_CALLER: Final = replace(SLOW_ALONE, workers=("a",), damage=False, hold_for=HALF_AN_HOUR)

ALONE: Final = (
    Alone("plain, smooth", PLAIN),
    Alone("plain, stepped, capacity 4", Quota(4, 2, 10.0, stepped=True)),
    Alone("plain, with places", PLAIN, workers=(), waits=True),
    Alone(
        "plain, overdraft 1, with a hold and places",
        Quota(3, 1, 10.0, overdraft=1),
        workers=("a",),
        waits=True,
        damage=False,
        after=(0, 1),
    ),
    Alone("plain, recharge to 3", Quota(3, 1, 10.0, recharge_to=3), workers=("a",)),
    Alone("plain, with a line", PLAIN, workers=(), in_line=True, damage=False, after=(0, 1, 5, 13)),
    Alone("plain, with pauses", PLAIN, workers=("a",), pauses=True, damage=False, after=(0, 1, 5)),
    Turns("terms in turn, smooth and stepped", (SLOWLY, replace(SLOWLY, stepped=True)), unit=30 * SECOND),
    Turns("terms in turn, other rates and capacities", (MINUTELY, Quota(3, 1, 40.0), Quota(2, 2, 100.0, stepped=True))),
    Turns("terms in turn, one with refill 0", (MINUTELY, Quota(2, 0, 60.0)), alternating=True),
    replace(ONE_CALLER, name="synced, told anything in any order", quota=replace(SLOW, initial=1), oldest=HALF_AN_HOUR),
    replace(ONE_CALLER, name="synced, a call as the scout", probe_after_us=HALF_AN_HOUR, in_order=True),
    replace(SLOW_ALONE, name="synced, claims and faults", probe_after_us=HALF_AN_HOUR, in_order=True),
    replace(SLOW_ALONE, name="synced, somebody else spends", quota=replace(SLOW, capacity=3, initial=1), damage=False),
)


def worlds(*, quick: bool = False) -> Iterator[Alone | Synced | Turns]:
    """Yield every world; with `quick` only small ones."""
    if quick:
        yield Alone("plain, one worker, no faults", PLAIN, workers=("a",), after=(0, 1, -2), damage=False)
    for world in SMALL if quick else (*SMALL, *LARGER):
        yield replace(world, name=f"{world.name}, charged at completion")
        yield replace(world, name=f"{world.name}, charged at admission", at_admission=True)
    if not quick:
        yield from ALONE


def explore(world: Alone | Synced | Turns) -> Count:
    """Explore a world and time it; one that breaks the promise says how."""
    began = time.monotonic()
    try:
        count = world.explore()
    except Broken as broken:
        count = Count(world.name, broken=str(broken))
    count.seconds = time.monotonic() - began
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore the worlds named (by default: all) and print what each came to, a line of JSON each; 1 if one broke."""
    names = sys.argv[1:] if arguments is None else arguments
    chosen = {world.name: world for world in worlds()}
    broken = False
    for name in names or chosen:
        count = explore(chosen[name])
        print(json.dumps(asdict(count)), flush=True)
        broken |= bool(count.broken)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
