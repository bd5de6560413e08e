"""Small worlds: every state that a tiny bucket can reach by the shipped `transition`, faults and clock steps included.

A world is explored breadth first. Times are kept relative to now and sequence numbers by their order alone, so the
states are finitely many; all of them are visited. What is checked:

- safety, on every step, as a potential. What is there to spend, in token microseconds, is (balance - held) * period,
  the remainder, and what the running period has earned. No step may end with more of it, and of what it granted net,
  than it began with and the clock's way forward brings; no grant may end below the overdraft. Summed over the steps:
  net granted <= start + refill + overdraft. A reading begins a new account. A fault adds what it forgives: a lost
  balance its debt, a lost hold its tokens; a lost timestamp or remainder nothing.
- liveness, in every state: `peek` states a bound, and an attempt at the bound is granted or told to probe, also if
  another attempt failed half-way there.
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
from typing import Any, Final, cast

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Peek,
    Reconcile,
    Reserve,
    Settle,
    Verdict,
)
from keepa_tokens.rules.flow import flow_in_effect
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, MICROSECONDS, TOLERANCE_US, UNLIMITED

SECOND: Final = MICROSECONDS
NOW: Final = 10**6 * SECOND
"""Where every state is moved to: the instant of its last step."""

LONG_AGO: Final = 2 * 3600 * SECOND
"""Past ends and readings count as at most this old: nothing asks how much older they are."""


class Broken(Exception):
    """A step or a state breaks the promise; the message is the counterexample."""


# --- states, apart from when they are


def resting(state: BucketState, now: int, oldest: int = LONG_AGO) -> BucketState:
    """Return a state moved from `now` to NOW, with its sequence numbers packed and what is only shown left out."""
    by = NOW - now

    def moved(at: int | None) -> int | None:
        return None if at is None else max(NOW - oldest, at + by)

    known = {0, state.reading_sequence or 0}
    for hold in state.holds.values():
        known |= {hold.opened, hold.charged}
    # Without readings it is only ever asked whether a hold was charged.
    synced = state.reading_at is not None
    rank = {number: place if synced else min(1, place) for place, number in enumerate(sorted(known))}
    holds = {
        name: Hold(hold.tokens, rank[hold.opened], hold.expires_at + by, hold.hold_for, rank[hold.charged])
        for name, hold in sorted(state.holds.items())
    }
    instants = {field.name: moved(getattr(state, field.name)) for field in fields(state) if _is_instant(field.name)}
    return replace(
        replace(state, **cast("dict[str, Any]", instants)),
        probe_failures=min(1, state.probe_failures or 0),
        sequence=max(rank.values()),
        reading_sequence=rank[state.reading_sequence or 0],
        holds=holds,
        quota=None,
        drift=None,
    )


def _is_instant(name: str) -> bool:
    return name.endswith(("_at", "_until"))


Key = tuple[object, ...]


def key(state: BucketState) -> Key:
    """Return what tells one state from another."""
    return (*(getattr(state, field.name) for field in fields(state) if field.name != "holds"), *state.holds.items())


def held(state: BucketState) -> int:
    """Return what calls in flight have set aside."""
    return sum(hold.tokens for hold in state.holds.values() if hold.in_flight)


def potential(quota: Quota, state: BucketState, now: int) -> int:
    """Return what there is to spend, in token microseconds at the quota's rate; an unknown balance counts as 0."""
    flow = flow_in_effect(quota, state)
    running = max(0, now - (state.refilled_at or 0)) * flow.refill if state.balance is not None else 0
    return ((state.balance or 0) - held(state)) * flow.period_us + (state.carry or 0) + running


def gained(before: BucketState, command: Command, outcome: Outcome) -> int:
    """Return the tokens that a step gave away, less those that it got back."""
    match command:
        case Acquire(tokens) if outcome.granted:
            return tokens
        case Reserve(name, tokens) if outcome.granted and name not in before.holds:
            return tokens
        case Settle(name, actual, reading) if outcome.found and name in before.holds:
            tokens = before.holds[name].tokens
            if outcome.reading is Verdict.STALE and reading and _is_older(reading, before):
                return -tokens  # the last reading had the cost: the call belongs to the account before it
            return 0 if actual is None else actual - tokens
        case Cancel(name) if outcome.found and name in before.holds:
            return -before.holds[name].tokens
        case _:
            return 0


def _is_older(reading: Reading, state: BucketState) -> bool:
    told = reading.server_time_us
    return told is not None and type(state.server_time) is int and told <= state.server_time


# --- faults

# What isn't a whole number is mended as what is missing or out of range (proved in theorems/mending.py), so one stands
# for all; where the far future is in range, it is a fault of its own.
LOST_OR_SENSELESS: Final[dict[str, tuple[int | str | None, ...]]] = {
    "balance": (None,),
    "refilled_at": ("x", LIMIT - 1),
    "carry": (LIMIT - 1,),
    "closed_until": (None, LIMIT - 1),
    "sequence": (None,),
    "reading_at": (None, LIMIT - 1),
    "reading_sequence": (None, LIMIT // 4),
    "server_time": (None, LIMIT - 1),
    "probe_until": (None, LIMIT - 1),
    "probe_failures": (None, LIMIT - 1),
    "reported_refill": (0,),
}


SYNCED_ALONE: Final = frozenset({"reading_sequence", "probe_failures", "reported_refill"})


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
        # One that was charged may be given back by a late settle no longer: nothing is forgiven.
        yield f"hold {name} lost", replace(state, holds=rest), hold.tokens if hold.in_flight else 0
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
        available = (after.balance or 0) - held(after)
        if outcome.place_us == 0 and isinstance(command, Acquire | Reserve) and command.tokens and command.keep == 0:
            fresh = not (isinstance(command, Reserve) and command.id in state.holds)
            if fresh and available < -quota.overdraft:
                raise Broken(f"{command} at {now - NOW} from {state} left {available}: below the overdraft")
    if outcome.reading is not Verdict.TAKEN and state.balance is not None and _sound(state.balance):
        flow = flow_in_effect(quota, after)
        brought = max(0, now - start) * flow.refill + forgiven * flow.period_us
        end = potential(quota, after, now) + gained(state, command, outcome) * flow.period_us
        most = potential(quota, _spendable(state), start) + brought
        if end > most:
            raise Broken(f"{command} at {now - NOW} minted {end - most}: from {state} to {after}")
    return after, outcome


def _sound(balance: object) -> bool:
    return type(balance) is int and abs(balance) < LIMIT


def _spendable(state: BucketState) -> BucketState:
    """Return a damaged state with what its damage can't add to: its remainder and time count for nothing."""
    sound_carry = type(state.carry) is int and 0 <= state.carry < (state.carry_period_us or 0)
    sound_time = type(state.refilled_at) is int and state.refilled_at >= 0
    return replace(
        state,
        carry=state.carry if sound_carry else 0,
        refilled_at=state.refilled_at if sound_time else NOW,
        reported_refill=state.reported_refill if type(state.reported_refill) is int else None,
        reported_capacity=state.reported_capacity if type(state.reported_capacity) is int else None,
    )


def check_liveness(quota: Quota, state: BucketState, probe_after_us: int | None, tokens: int, keep: int = 0) -> int:
    """Raise Broken unless the state keeps the bound that it states for a request; return the steps taken."""
    # A look writes its repairs back, like every command.
    mended, seen = transition(quota, state, NOW, Peek(tokens, keep, probe_after_us))
    bound = math.inf if seen.snapshot is None else seen.snapshot.bound
    if bound == math.inf:
        raise Broken(f"no bound for {tokens} beside {keep}: {state}")
    end = NOW + round(bound * MICROSECONDS)
    ask = Acquire(tokens, keep, probe_after_us=probe_after_us)
    _, outcome = transition(quota, mended, end, ask)
    if not (outcome.granted or outcome.probe):
        raise Broken(f"bound {bound} s not kept for {tokens} beside {keep}: {state}")
    halfway, early = transition(quota, mended, (NOW + end) // 2, ask)
    if not (early.granted or early.probe):
        _, outcome = transition(quota, halfway, end, ask)
        if not (outcome.granted or outcome.probe):
            raise Broken(f"bound {bound} s moved by an attempt for {tokens} beside {keep}: {state}")
    return 3


@dataclass(frozen=True)
class Alone:
    """A bucket of two workers with a hold each; a synced one is told what no real server would say, in any order.

    Steps come so many units after the one before, or on a clock that stepped back. The unit is the tolerance of
    clocks, 5 s, so that what a repair moves stays on the grid. waits: workers may queue for a place.
    """

    name: str
    quota: Quota
    workers: tuple[str, ...] = ("a", "b")
    unit: int = TOLERANCE_US
    after: tuple[int, ...] = (0, 1, 5, -1, -2)
    damage: bool = True
    waits: bool = False
    hold_for: int = 2 * TOLERANCE_US
    probe_after_us: int | None = None

    def commands(self, state: BucketState) -> Iterator[Command]:
        """Yield all that can be asked in a state."""
        yield Acquire(1, probe_after_us=self.probe_after_us)
        if self.quota.synced:
            yield Acquire(0)
            yield from self.readings(state)
            return
        yield Acquire(2, keep=self.quota.capacity - 2)
        if self.waits:
            yield Acquire(1, wait_us=2 * self.unit)
        for worker in self.workers:
            if worker not in state.holds:
                yield Reserve(worker, 2, self.hold_for)
                continue
            yield Settle(worker, 1)
            yield Settle(worker, 3)
            yield Cancel(worker)

    def readings(self, state: BucketState) -> Iterator[Command]:
        """Yield holds, settles and readings of a synced bucket: newer, older, and without a server's time."""
        newer, older = (Reading(-1, server_time=20.0), Reading(1, server_time=20.0)), Reading(1, server_time=5.0)
        yield from map(Reconcile, (*newer, older, Reading(1)))
        yield ClaimProbe()
        for worker in self.workers:
            if worker not in state.holds:
                yield Reserve(worker, 1, self.hold_for, probe_after_us=self.probe_after_us, scout=True)
                continue
            yield Settle(worker, 2)
            yield Settle(worker, 1, newer[1])
            yield Settle(worker, 0, older, refused=True)
            yield Cancel(worker)

    def explore(self) -> Count:
        """Visit every state; raise Broken at the first step or state that breaks the promise."""
        count = Count(self.name)
        first, _ = transition(self.quota, None, NOW, Acquire(0))
        if first is None:
            raise Broken("nothing stored")
        queue = deque([resting(first, NOW)])
        seen = {key(queue[0])}
        while queue:
            state = queue.popleft()
            count.states += 1
            for tokens, keep in ((1, 0), (self.quota.capacity, 0)):
                count.steps += check_liveness(self.quota, state, self.probe_after_us, tokens, keep)
            for after in self._next(state, count):
                renamed = self._renamed(after)
                found = key(renamed)
                if found not in seen:
                    seen.add(found)
                    queue.append(renamed)
        return count

    def _renamed(self, state: BucketState) -> BucketState:
        """Return the state with its holds given to the workers in one order: they are told apart by nothing else."""
        if state.server_time is not None:
            state = replace(state, server_time=10 * SECOND)
        holds = sorted(state.holds.values(), key=lambda hold: (hold.expires_at, hold.charged, hold.tokens))
        return replace(state, holds=dict(zip(self.workers, holds, strict=False)))

    def _next(self, state: BucketState, count: Count) -> Iterator[BucketState]:
        for command in self.commands(state):
            for units in self.after:
                now = NOW + units * self.unit
                count.steps += 1
                yield resting(step(self.quota, state, now, command)[0], now)
        if not self.damage:
            return
        for _, damaged, forgiven in faults(self.quota, state):
            # A loss shows at the next step, now or later; the mended state is then looked at like any.
            for units in (0, 1):
                now = NOW + units * self.unit
                count.steps += 1
                yield resting(step(self.quota, damaged, now, Acquire(1), forgiven=forgiven)[0], now)


# --- a bucket beside the server that owns the balance

OPEN, ADMIT, COMPLETE, RECEIVE, DONE = range(5)


@dataclass(frozen=True)
class Call:
    """How far a call has come, and the envelope on its way back: the server's balance, time and next step."""

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
    (0: never; None: without end, calls begin anew), though not past the end of a hold whose call is under way.
    """

    name: str
    quota: Quota
    start: int
    costs: tuple[int, ...]
    estimates: tuple[int, ...]
    at_admission: bool
    ticks: int | None = 0
    unit: int = 30 * SECOND
    probe_after_us: int | None = None
    hold_for: int = 600 * SECOND
    oldest: int = LONG_AGO

    @property
    def period(self) -> int:
        """The server's period in units."""
        return self.quota.period_us // self.unit

    def explore(self) -> Count:
        """Visit every state; raise Broken at the first step or state that breaks the promise."""
        count = Count(self.name)
        reading = Reading(self.start, next_refill_in=self.period * self.unit / SECOND, server_time=1.0)
        bucket, _ = transition(self.quota, None, NOW, Reconcile(reading))
        if bucket is None:
            raise Broken("nothing stored")
        first = self._packed(
            Node(
                resting(bucket, NOW, self.oldest), self.start, self.period, (Call(),) * len(self.costs), self.ticks or 0
            )
        )
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
        """Return the node with the server's times packed: only their order is ever asked for."""
        times = {call.told for call in node.calls if call.stage == RECEIVE} | {node.bucket.server_time or 0}
        rank = {told: place * SECOND for place, told in enumerate(sorted(times), start=1)}
        calls = tuple(
            replace(call, told=rank[call.told]) if call.stage == RECEIVE else replace(call, told=0)
            for call in node.calls
        )
        bucket = replace(node.bucket, server_time=None)
        if node.bucket.server_time is not None:
            bucket = replace(bucket, server_time=rank[node.bucket.server_time])
        return replace(node, bucket=bucket, calls=calls)

    def _server_now(self, node: Node) -> int:
        times = [call.told for call in node.calls if call.stage == RECEIVE]
        return (
            max(*times, node.bucket.server_time or 0, 0) + SECOND if times else (node.bucket.server_time or 0) + SECOND
        )

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
                yield after(Call(ADMIT) if outcome.granted else end, resting(bucket, NOW, self.oldest))
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
                yield after(end, resting(bucket, NOW, self.oldest))

    def _tick(self, node: Node) -> Node:
        """Let a unit of time pass, with whatever step of the server falls into it."""
        server, next_step = node.server, node.next_step - 1
        if next_step == 0:
            server, next_step = max(server, min(self.quota.capacity, server + self.quota.refill)), self.period
        now = NOW + self.unit
        bucket, _ = step(self.quota, node.bucket, now, Acquire(0, probe_after_us=None))
        calls = tuple(replace(call) for call in node.calls)
        return Node(resting(bucket, now, self.oldest), server, next_step, calls, max(0, node.ticks - 1))


# --- the worlds

LARGE: Final = Quota(1000, 20, 60.0, stepped=True, synced=True, overdraft=UNLIMITED)
TINY: Final = Quota(2, 1, 120.0, stepped=True, synced=True, overdraft=UNLIMITED)
SLOW: Final = Quota(2, 1, 1800.0, synced=True)
"""Slow, so that claims, backoffs, holds and refills all last a few units of half an hour. 3 tokens are the fewest of
which one is kept back."""


def worlds(*, quick: bool = False) -> Iterator[Alone | Synced]:
    """Yield every world; with `quick` only small ones."""
    if quick:
        yield Alone("plain, one worker, no faults", Quota(2, 1, 10.0), workers=("a",), after=(0, 1, -2), damage=False)
    for charged, at_admission in (("completion", False), ("admission", True)):
        yield Synced(f"three calls, charged at {charged}", LARGE, 100, (3, 5, 8), (4, 5, 10), at_admission)
        yield Synced(f"three calls on 2 tokens, charged at {charged}", LARGE, 2, (3, 5, 8), (4, 5, 10), at_admission)
        yield Synced(f"three calls on 7 tokens, charged at {charged}", LARGE, 7, (3, 5, 8), (4, 5, 10), at_admission)
    if quick:
        return
    for charged, at_admission in (("completion", False), ("admission", True)):
        yield Synced(
            f"three calls, two refills, charged at {charged}",
            LARGE,
            12,
            (3, 5, 8),
            (4, 5, 10),
            at_admission,
            ticks=2,
            unit=60 * SECOND,
        )
        yield Synced(
            f"two workers for ever, charged at {charged}",
            TINY,
            2,
            (1, 2),
            (1, 2),
            at_admission,
            ticks=None,
            unit=120 * SECOND,
            hold_for=600 * SECOND,
            oldest=240 * SECOND,
        )
    yield Alone("plain, smooth", Quota(2, 1, 10.0))
    yield Alone("plain, stepped, capacity 4", Quota(4, 2, 10.0, stepped=True))
    yield Alone("plain, overdraft 1, with places", Quota(3, 1, 10.0, overdraft=1), workers=("a",), waits=True)
    yield Alone("plain, recharge to 3", Quota(3, 1, 10.0, recharge_to=3), workers=("a",))
    half_an_hour = 1800 * SECOND
    yield Alone(
        "synced, told anything in any order",
        SLOW,
        workers=("a",),
        unit=half_an_hour,
        after=(0, 1, -1),
        damage=False,
        hold_for=half_an_hour,
        probe_after_us=half_an_hour,
    )
    yield Alone(
        "synced, told anything, faults",
        SLOW,
        workers=(),
        unit=half_an_hour,
        after=(0, 1, 5, -1),
        probe_after_us=half_an_hour,
    )
    yield Alone(
        "synced, somebody else spends",
        replace(SLOW, capacity=3),
        workers=(),
        unit=half_an_hour,
        after=(0, 1, -1),
        damage=False,
        probe_after_us=half_an_hour,
    )


def explore(world: Alone | Synced) -> Count:
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
