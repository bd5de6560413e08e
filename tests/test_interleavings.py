"""All interleavings of three calls: each is opened here, admitted and completed there, and its envelope comes back.

The server is a tiny model: one balance, a call admitted while it is above 0, charged when it is admitted or when it
completes. With estimates that cover the cost the projection must never be above the truth, and end equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import pytest

from checks.models.strategies import EPOCH, MINUTE, SECOND
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Command, Outcome, Reconcile, Reserve, Settle
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import MICROSECONDS, UNLIMITED
from tests.strategies import Bucket, Direct, InMemory

CALLS: Final = 3
OPEN, ADMIT, COMPLETE, RECEIVE, DONE = range(5)
HOLD_FOR: Final = 600 * SECOND
QUOTA: Final = Quota(1000, 20, 60.0, stepped=True, synced=True, overdraft=UNLIMITED)
ORDERS: Final = 34_650 // 6
"""12! / 4!^3 orders of the steps, told apart by nothing but the order in which the calls are opened."""


@dataclass(frozen=True)
class World:
    """What differs between the runs: the first reading, the prices, when they are charged, how fast time passes.

    clock: what the server's envelopes say of its time. outside: what another program spends behind our back first.
    blind: a call whose answer carries no envelope: its cost is known, the balance after it isn't.
    slack: by how many tokens the projection may be above where nothing tells the order of the answers.
    """

    balance: int = 100
    costs: tuple[int, ...] = (3, 5, 8)
    estimates: tuple[int, ...] = (4, 5, 10)
    at_admission: bool = False
    step_us: int = 1000
    clock: str = "true"
    ends_equal: bool = True
    outside: int = 0
    blind: int | None = None
    slack: int = 0

    def server_time(self, now: int) -> float | None:
        """Return the server's time as its envelope tells it."""
        match self.clock:
            case "true":
                return now / MICROSECONDS
            case "ten minutes off":
                return now / MICROSECONDS - 600
            case "frozen":
                return EPOCH / MICROSECONDS
            case _:
                return None


@dataclass(frozen=True)
class Moment:
    """How far a run has come: the truth, what is stored, where each call is. All runs that go on from it share it."""

    now: int
    truth: int
    next_step: int
    state: BucketState
    steps: tuple[int, ...] = (OPEN,) * CALLS
    admitted: frozenset[int] = frozenset()
    envelopes: tuple[Settle | None, ...] = (None,) * CALLS


@dataclass
class Explorer:
    """Goes through every order and asserts the promise at every moment."""

    world: World
    bucket: Bucket
    ended: int = field(default=0)

    def run(self) -> int:
        first = Reading(self.world.balance, next_refill_in=30.0, server_time=self.world.server_time(EPOCH))
        self.bucket.apply(Reconcile(first), EPOCH)
        self.go_on(Moment(EPOCH, self.world.balance - self.world.outside, EPOCH + 30 * SECOND, self.stored()))
        return self.ended

    def stored(self) -> BucketState:
        assert self.bucket.state is not None
        return self.bucket.state

    def go_on(self, moment: Moment) -> None:
        """Take every next step that there is."""
        if all(step == DONE for step in moment.steps):
            self.ended += 1
            if self.world.ends_equal:
                assert moment.state.balance == moment.truth, moment
            return
        for call, step in enumerate(moment.steps):
            # The calls are told apart by their prices, so only one order of opening them is needed.
            if step != DONE and (step != OPEN or all(moment.steps[earlier] != OPEN for earlier in range(call))):
                self.go_on(self.never_above(self.step(moment, call)))

    def step(self, moment: Moment, call: int) -> Moment:
        """Let one call take its next step."""
        now, truth, next_step = moment.now + self.world.step_us, moment.truth, moment.next_step
        while next_step <= now:
            truth, next_step = truth + QUOTA.refill, next_step + MINUTE
        step = moment.steps[call]
        steps = (*moment.steps[:call], step + 1, *moment.steps[call + 1 :])
        moment = replace(moment, now=now, truth=truth, next_step=next_step, steps=steps)
        match step:
            case 0:  # OPEN
                return self.opened(moment, call)
            case 1:  # ADMIT
                if truth <= 0:
                    return moment
                charged = self.world.costs[call] if self.world.at_admission else 0
                return replace(moment, truth=truth - charged, admitted=moment.admitted | {call})
            case 2:  # COMPLETE
                return self.completed(moment, call)
            case _:  # RECEIVE
                envelope = moment.envelopes[call]
                assert envelope is not None
                return self.applied(moment, envelope)[0]

    def opened(self, moment: Moment, call: int) -> Moment:
        """Reserve for a call; one that is refused here is never sent."""
        moment, outcome = self.applied(moment, Reserve(str(call), self.world.estimates[call], HOLD_FOR))
        if outcome.granted:
            return moment
        return replace(moment, steps=(*moment.steps[:call], DONE, *moment.steps[call + 1 :]))

    def completed(self, moment: Moment, call: int) -> Moment:
        """The server is done with a call and writes its envelope."""
        admitted = call in moment.admitted
        cost = self.world.costs[call] if admitted else 0
        truth = moment.truth - (0 if self.world.at_admission else cost)
        refill_in = (moment.next_step - moment.now) / MICROSECONDS
        reading = Reading(truth, next_refill_in=refill_in, server_time=self.world.server_time(moment.now))
        envelope = Settle(str(call), cost, None if call == self.world.blind else reading, refused=not admitted)
        envelopes = (*moment.envelopes[:call], envelope, *moment.envelopes[call + 1 :])
        return replace(moment, truth=truth, envelopes=envelopes)

    def applied(self, moment: Moment, command: Command) -> tuple[Moment, Outcome]:
        """Carry a command to the bucket as it was stored at that moment."""
        self.bucket.put(moment.state)
        outcome = self.bucket.apply(command, moment.now)
        return replace(moment, state=self.stored()), outcome

    def never_above(self, moment: Moment) -> Moment:
        """Assert that the projection isn't above the truth: what is available ever, the balance with nothing open."""
        if self.world.step_us >= SECOND:  # else no step of the refill comes
            moment = self.applied(moment, Settle("nobody"))[0]
        balance = moment.state.balance
        assert balance is not None
        if self.world.outside:  # no one could know
            return moment
        held = sum(hold.tokens for hold in moment.state.holds.values())
        assert balance - held <= moment.truth + self.world.slack, moment
        if not held and all(step in {OPEN, DONE} for step in moment.steps):
            assert balance <= moment.truth + self.world.slack, moment
        return moment


ALL: Final = ORDERS - 1

WORLDS: Final[dict[str, tuple[World, int]]] = {
    "in any order": (World(estimates=(4, 5, 9)), ALL),
    "without a server's time nothing tells the order: calls in flight may be missed, and nothing else": (
        World(clock="none", ends_equal=False, slack=5 + 8),
        ALL,
    ),
    "with refill steps between the calls: a late envelope's step is believed late": (
        World(balance=3, step_us=13 * SECOND, ends_equal=False),
        100,
    ),
}
"""What differs, and how many orders there are more than; where no call is refused, all."""

DEEPER: Final[dict[str, tuple[World, int]]] = {
    "with a free call": (World(costs=(8, 0, 1), estimates=(9, 1, 2)), ALL),
    "with calls of one price": (World(costs=(5, 5, 5), estimates=(5, 5, 5)), ALL),
    "another program has spent what they counted on: those that are refused there charge nothing": (
        World(outside=98),
        ORDERS // 2,
    ),
    "the server's clock is off": (World(clock="ten minutes off"), ALL),
    "the server's clock is too coarse to tell answers apart": (World(clock="frozen"), ALL),
    # A reading that was made before it may lack its cost, until the next one; no more is missed.
    **{
        f"call {blind} is settled at its cost alone": (
            World(blind=blind, ends_equal=False, slack=World.costs[blind]),
            ALL,
        )
        for blind in range(CALLS)
    },
}


@pytest.mark.parametrize("at_admission", [False, True])
@pytest.mark.parametrize("world", [*WORLDS, *(pytest.param(name, marks=pytest.mark.deep) for name in DEEPER)])
def test_in_every_order_the_projection_is_never_above_and_ends_equal(world: str, at_admission: bool) -> None:
    """Envelopes in any order, charged at admission or completion: never above the truth, and, where something tells the
    order, equal at the end.
    """
    what, more_than = (WORLDS | DEEPER)[world]
    assert more_than < Explorer(replace(what, at_admission=at_admission), Direct(QUOTA)).run() <= ORDERS


@pytest.mark.deep
def test_memory_storage_keeps_the_same_books() -> None:
    """All orders over memory storage."""
    assert Explorer(World(), InMemory(QUOTA)).run() == ORDERS


class Gullible(Direct):
    """A bucket that forgets what it was told, so that every envelope looks fresh."""

    def apply(self, command: Command, now: int) -> Outcome:
        if self.state is not None:
            self.state = replace(self.state, server_time=None, reading_sequence=1)
        return super().apply(command, now)


class Forgetful(Direct):
    """A bucket that counts no call in flight."""

    def apply(self, command: Command, now: int) -> Outcome:
        return super().apply(replace(command, tokens=0) if isinstance(command, Reserve) else command, now)


@pytest.mark.parametrize("make", [Gullible, Forgetful])
def test_a_broken_bucket_is_caught(make: Callable[[Quota], Direct]) -> None:
    """A bucket that believes stale envelopes, or counts no call in flight, fails in some order: the check can fail."""
    with pytest.raises(AssertionError):
        Explorer(World(at_admission=make is Forgetful), make(QUOTA)).run()
