"""Small worlds: every state that a tiny bucket can reach by the shipped `transition`, faults and clock steps included.

A world is explored breadth first. Times are kept relative to now and sequence numbers by their order alone, so the
states are finitely many; all of them are visited. What is checked:

- safety, on every step, as a potential. What is there to spend, in token microseconds, is available * period, the
  remainder, and what the running period has earned; available is the balance, with the tokens of places that are free,
  on a synced bucket less what is held. No step may end with more of it, and of what it granted net, than it began with
  and the clock's way forward brings; no grant may end below the overdraft. Summed over the steps: net granted <= start
  + refill + overdraft. A reading begins a new account. A fault adds what it forgives: a lost balance its debt, a synced
  bucket's lost hold its tokens; a lost timestamp, remainder or place nothing. Under terms that take turns time is
  counted at the fastest of their rates.
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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, TypeVar

from checks.proof.states import (
    BASE_TIME,
    LONG_AGO,
    NOW,
    REFUND,
    SECOND,
    Broken,
    Key,
    check_liveness,
    faults,
    flow_of,
    held,
    key,
    resting,
    step,
)
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Pause,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MINUTE_US, TOLERANCE_US, UNLIMITED

# --- a plain bucket


@dataclass
class Count:
    """How many states and steps a world has."""

    name: str
    states: int = 0
    steps: int = 0
    orders: int = 0
    broken: str = ""

    def __str__(self) -> str:
        orders = f", {self.orders:,} orders" if self.orders else ""
        return f"{self.states:,} states, {self.steps:,} steps{orders}"


N = TypeVar("N")


def reached(
    first: Iterable[N], key_of: Callable[[N], Key], next_of: Callable[[N], Iterable[N]]
) -> Iterator[tuple[Key, list[Key]]]:
    """Visit all that can be reached, breadth first; yield the key of each, and those of what comes next."""
    queue = deque(first)
    seen = set(map(key_of, queue))
    while queue:
        node = queue.popleft()
        then: list[Key] = []
        for after in next_of(node):
            then.append(found := key_of(after))
            if found not in seen:
                seen.add(found)
                queue.append(after)
        yield key_of(node), then


@dataclass(frozen=True)
class Alone:
    """A bucket of two workers with a hold each; a synced one is told what no real server would say, in any order.

    Steps come so many units after the one before, or on a clock that stepped back. The unit is the tolerance of
    clocks, 5 s, so that what a repair moves stays on the grid. waits: workers may queue for a place, and give one back;
    one that is ahead only where fewer than `most_free` are free. pauses: somebody may pause it. in_line: two callers
    may stand in line, one of them to leave tokens for others. probe_after_us: None, nobody claims the probe. in_order:
    each reading is newer than the last one. oldest: past instants count as at most this old.
    """

    name: str
    quota: Quota
    workers: tuple[str, ...] = ("a", "b")
    unit: int = TOLERANCE_US
    after: tuple[int, ...] = (0, 1, 5, -1, -2)
    damage: bool = True
    waits: bool = False
    most_free: int = 2
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
            if len(state.free) < self.most_free:
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
        for _ in reached([self._rested(first, NOW)], key, lambda state: map(self._renamed, self._next(state, count))):
            count.states += 1
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
        for tokens in (1, self.quota.capacity):
            count.steps += check_liveness(self.quota, state, self.probe_after_us, tokens)
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
    """How far a call has come, and the envelope on its way back: the server's balance, time and next step."""

    stage: int = OPEN
    balance: int = 0
    told: int = 0
    next_step: int = 0
    refused: bool = False


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
    how far the server's answers of one moment are apart by its clock, which is ours, or behind by so much; None: it
    tells no time. outside: what another program spends first, behind our back, so that calls may be refused. blind: a
    call whose answer says what it cost and no balance. slack: by how many tokens the projection may be above the truth,
    where nothing tells the order of what was said; the end then needn't be the truth. known: the bucket was told its
    balance. plan: what the server says of its refill and capacity, where the bucket's terms have others. late: an
    answer may come after its call's hold has run out.
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
    behind: int | None = 0
    outside: int = 0
    blind: int | None = None
    slack: int = 0
    known: bool = True
    plan: Quota | None = None
    late: bool = False

    @property
    def period(self) -> int:
        """The server's period in units."""
        return self.quota.period_us // self.unit

    def explore(self) -> Count:
        """Visit every state; raise Broken at the first step or state that breaks the promise."""
        count = Count(self.name)
        bucket: BucketState | None = None
        # Told twice, it knows by the second time alone when the next step comes.
        for ago in (self.unit, 0) if self.known else (0,):
            told = Reconcile(self._said(Call(0, self.start, NOW - ago, self.period)))
            bucket, _ = transition(self.quota, bucket, NOW - ago, told if self.known else ClaimProbe())
        if bucket is None:
            raise Broken("nothing stored")
        calls = (Call(),) * len(self.costs)
        rested = resting(self.quota, bucket, NOW, self.oldest)
        first = self._packed(Node(rested, self.start - self.outside, self.period, calls, self.ticks or 0))
        ways: dict[Key, int] = {first.key(): 1}
        # In a world that ends, states come in the order of their steps, so each is complete when it is taken.
        for at, then in reached([first], Node.key, lambda node: map(self._packed, self._next(node, count))):
            count.states += 1
            for found in then:
                ways[found] = ways[at] if found not in ways else ways[found] + ways[at] * (self.ticks is not None)
            if not then:
                count.orders += ways[at]
        return count

    def _check(self, node: Node, count: Count) -> None:
        state = node.bucket
        count.steps += check_liveness(self.quota, state, self.probe_after_us or 3600 * SECOND, 1)
        if state.balance is None:
            return
        most = node.server + self.slack
        if state.balance - held(state) > most and not self.outside:
            raise Broken(f"available above the truth: {node}")
        done = all(call.stage in {OPEN, DONE} for call in node.calls)
        if done and not state.holds and state.balance > most and not self.outside:
            raise Broken(f"the projection is above the truth: {node}")
        ended = self.ticks == 0 and all(call.stage == DONE for call in node.calls)
        if ended and not self.slack and state.balance != node.server:
            raise Broken(f"the projection is not the truth at the end: {node}")

    def _packed(self, node: Node) -> Node:
        """Return the node without the times of answers that have come."""
        calls = tuple(call if call.stage == RECEIVE else replace(call, told=0) for call in node.calls)
        return replace(node, calls=calls)

    def _server_now(self, node: Node) -> int:
        told = [call.told for call in node.calls if call.stage == RECEIVE]
        last = (node.bucket.server_time or 0) + (self.behind or 0)
        return max(NOW, max(told, default=0) + self.apart, last + self.apart)

    def _said(self, call: Call) -> Reading:
        """Return what the server says of its bucket in the answer to a call."""
        told = None if self.behind is None else (call.told - self.behind) / SECOND
        said = Reading(call.balance, next_refill_in=call.next_step * self.unit / SECOND, server_time=told)
        if self.plan is None:
            return said
        return replace(said, refill=self.plan.refill, period=self.plan.period, capacity=self.plan.capacity)

    def _next(self, node: Node, count: Count) -> Iterator[Node]:
        self._check(node, count)
        for number, call in enumerate(node.calls):
            if call.stage != DONE:
                count.steps += 1
                yield from self._advance(node, number, call)
        if (self.ticks is None or node.ticks) and all(
            hold.expires_at > NOW + self.unit or (self.late and node.calls[int(name)].stage == RECEIVE)
            for name, hold in node.bucket.holds.items()
        ):
            count.steps += 1
            yield self._tick(node)

    def _advance(self, node: Node, number: int, call: Call) -> Iterator[Node]:
        name, cost = str(number), 0 if call.refused else self.costs[number]

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
                refused = node.server <= 0
                if refused and not self.outside:
                    raise Broken(f"the server refuses a call that the bucket let through: {node}")
                charged = cost if self.at_admission and not refused else 0
                yield after(Call(COMPLETE, refused=refused), server=node.server - charged)
            case 2:  # COMPLETE
                left = node.server - (0 if self.at_admission else cost)
                told = self._server_now(node)
                yield after(Call(RECEIVE, left, told, node.next_step, call.refused), server=left)
            case _:  # RECEIVE
                reading = None if number == self.blind else self._said(call)
                bucket, _ = step(self.quota, node.bucket, NOW, Settle(name, cost, reading, refused=call.refused))
                yield after(end, resting(self.quota, bucket, NOW, self.oldest))

    def _tick(self, node: Node) -> Node:
        """Let a unit of time pass, with whatever step of the server falls into it."""
        server, next_step = node.server, node.next_step - 1
        if next_step == 0:
            plan = self.plan or self.quota
            server, next_step = max(server, min(plan.capacity, server + plan.refill)), self.period
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
        states: dict[Key, BucketState] = {}
        refused: dict[Key, list[tuple[int, Key]]] = {}

        def key_of(node: tuple[BucketState, int]) -> Key:
            return (node[1], *key(node[0]))

        def next_of(node: tuple[BucketState, int]) -> Iterator[tuple[BucketState, int]]:
            (state, caller), found = node, key_of(node)
            states[found], refused[found] = state, []
            for pace, tokens, after, granted in self._next(state, caller, count):
                for other in range(len(self.quotas)):
                    if self.alternating and other == caller:
                        continue
                    if tokens == self.wanted and not granted and pace:
                        refused[found].append((pace * self.unit, key_of((after, other))))
                    yield after, other

        count.states = sum(
            1 for _ in reached([(rested, number) for number in range(len(self.quotas))], key_of, next_of)
        )
        longest = longest_ways(refused, states)
        for found, state in states.items():
            if longest[found] > self._latest(state):
                raise Broken(f"refused for {longest[found] / SECOND:g} s: {state}")
        return count

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


def longest_ways(refused: dict[Key, list[tuple[int, Key]]], states: dict[Key, BucketState]) -> dict[Key, int]:
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
TWO_CALLS: Final = replace(THREE_CALLS, start=2, costs=(3, 5), estimates=(4, 5), ticks=3)
OTHERS: Final = (
    replace(TWO_CALLS, name="two calls, nothing known", start=0, known=False),
    replace(TWO_CALLS, name="two calls, another plan", plan=replace(LARGE, refill=4, capacity=200)),
    replace(
        TWO_CALLS, name="a call answered after its hold", costs=(5,), estimates=(6,), late=True, hold_for=60 * SECOND
    ),
)
LARGER: Final = (
    *OTHERS,
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
    Alone("plain, with places", PLAIN, workers=(), waits=True, most_free=0),
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
    """Explore a world; one that breaks the promise says how."""
    try:
        return world.explore()
    except Broken as broken:
        return Count(world.name, broken=str(broken))


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
