"""From outside: in any interval a plain bucket lets at most its capacity, its overdraft and the interval's refill go.

Counted at the instants at which callers may go. A place that is given up before its instant never went; what comes
back later, by a settle at less or a grant that was not used, counts as minus at the instant at which it comes back.
Nothing of the rules is used here but `transition` itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Refund, Reserve, Settle
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import MICROSECONDS

SECOND = MICROSECONDS
FOR_EVER = 10**12


@dataclass
class Gone:
    """A grant: when its caller may go, and with how many tokens; minus: what came back; 0: given up in time."""

    at: int
    tokens: int


@dataclass
class World:
    quota: Quota
    now: int = 1_000 * SECOND
    state: BucketState | None = None
    places: list[Gone] = field(default_factory=list[Gone])
    holds: dict[str, Gone] = field(default_factory=dict[str, Gone])
    log: list[Gone] = field(default_factory=list[Gone])
    serial: int = 0

    def apply(self, command: Command) -> Outcome:
        self.state, outcome = transition(self.quota, self.state, self.now, command)
        return outcome

    def acquire(self, tokens: int, *, wait: bool) -> Gone | None:
        outcome = self.apply(Acquire(tokens, wait_us=FOR_EVER if wait else None))
        if not outcome.granted:
            return None
        gone = Gone(self.now + outcome.place_us, tokens)
        self.places.append(gone)
        self.log.append(gone)
        return gone

    def give_up(self, gone: Gone) -> None:
        """Give back a grant that was not used, its place having come or not."""
        if not gone.tokens:
            return
        self.serial += 1
        self.apply(Refund(f"r{self.serial}", gone.tokens, gone.at if gone.at > self.now else None))
        self.places = [each for each in self.places if each is not gone]
        if gone.at > self.now:
            self.log = [each for each in self.log if each is not gone]
        else:
            self.log.append(Gone(self.now, -gone.tokens))

    def reserve(self, tokens: int) -> None:
        self.serial += 1
        if self.apply(Reserve(f"h{self.serial}", tokens, 3_600 * SECOND)).granted:
            gone = self.holds[f"h{self.serial}"] = Gone(self.now, tokens)
            self.log.append(gone)

    def settle(self, actual: int | None) -> None:
        if not self.holds:
            return
        hold_id = next(iter(self.holds))
        gone = self.holds.pop(hold_id)
        cost = 0 if actual is None else min(actual, gone.tokens)
        self.apply(Cancel(hold_id) if actual is None else Settle(hold_id, cost))
        self.log.append(Gone(self.now, cost - gone.tokens))

    def goes(self) -> list[Gone]:
        return sorted(self.log, key=lambda each: each.at)


def most(quota: Quota, start: int, end: int) -> int:
    """Return the capacity, the overdraft and the refill from `start` to `end`."""
    there = quota.capacity + quota.overdraft
    if not quota.stepped:
        # An instant is rounded up to a whole microsecond, so the refill before it may have begun that much earlier.
        return there + (end - start + 1) * quota.refill // quota.period_us
    # The first step may come right after the start: at most refill - 1 of it went past the cap.
    return there + ((end - start) // quota.period_us + 1) * quota.refill


def check(quota: Quota, goes: list[Gone]) -> None:
    for first, start in enumerate(goes):
        total = 0
        for end in goes[first:]:
            total += end.tokens
            assert total <= most(quota, start.at, end.at), (start, end, goes)


quotas = st.builds(
    Quota,
    capacity=st.integers(1, 12),
    refill=st.integers(1, 5),
    period=st.sampled_from([1.0, 0.7, 3.0]),
    stepped=st.booleans(),
    overdraft=st.sampled_from([0, 0, 1, 4, 12]),
    initial=st.sampled_from([None, 0]),
)

steps = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 4_000_000)),
    st.tuples(st.just("pass"), st.integers(0, 60).map(lambda n: n * 500_000)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
    st.tuples(st.just("try"), st.integers(1, 12)),
    st.tuples(st.just("give up"), st.integers(0, 30)),
    st.tuples(st.just("give up last"), st.just(0)),
    st.tuples(st.just("reserve"), st.integers(1, 12)),
    st.tuples(st.just("settle"), st.none() | st.integers(0, 12)),
)


def play(world: World, program: list[tuple[str, int | None]]) -> None:
    largest = world.quota.capacity + world.quota.overdraft
    for verb, number in program:
        amount = number or 0
        match verb:
            case "pass":
                world.now += amount
            case "wait" | "try" if amount <= largest:
                world.acquire(amount, wait=verb == "wait")
            case "reserve" if amount <= largest:
                world.reserve(amount)
            case "settle":
                world.settle(number)
            case "give up last" if world.places:
                world.give_up(max(world.places, key=lambda gone: gone.at))
            case "give up" if amount < len(world.places):
                world.give_up(world.places[amount])
            case _:
                pass


@given(quotas, st.lists(steps, max_size=40))
@example(Quota(10, 1, 1.0), [("try", 10), ("wait", 10), ("wait", 10), ("give up", 1), ("wait", 10), ("wait", 10)])
@example(  # what comes back in front of the last place hides where that place is
    Quota(12, 1, 1.0),
    [
        *[("wait", 12), ("give up last", 0), ("wait", 3), ("pass", 3_000_000), ("wait", 7), ("pass", 2_000_000)],
        *[("wait", 7), ("give up", 1), ("wait", 1), ("wait", 10), ("give up", 1), ("wait", 10), ("give up last", 0)],
    ],
)
@example(Quota(3, 1, 1.0), [("wait", 3)] * 20 + [("give up", 0)] * 10 + [("wait", 3)] * 10)
@example(  # a grant of this instant is given back after one that is past has filled the bucket
    Quota(10, 1, 1.0),
    [
        *[("reserve", 10), ("pass", 30_000_000), ("reserve", 9), ("try", 1), ("wait", 3)],
        *[("settle", None), ("settle", None), ("pass", 3_000_000), ("try", 10)],
    ],
)
@example(  # a place is told that counts on what came back before the places ahead of it
    Quota(10, 1, 1.0),
    [
        *[("try", 10), ("pass", 30_000_000), ("try", 10), ("pass", 30_000_000), ("try", 4)],
        *[("wait", 7), ("give up", 0), ("wait", 5), ("give up", 0), ("pass", 3_000_000), ("try", 3)],
    ],
)
@example(  # the last one given up was let into debt, and waited for less than it took
    Quota(1, 5, 3.0, overdraft=1),
    [("wait", 1), ("wait", 1), ("wait", 2), ("give up last", 0), ("give up", 0), ("wait", 2)],
)
@example(  # two places at one step, and the first of them is given up
    Quota(20, 5, 3.0, stepped=True),
    [
        *[("wait", 1), ("wait", 20), ("pass", 17_000_000), ("wait", 2), ("wait", 20), ("wait", 2)],
        *[("give up last", 0), ("give up", 1), ("wait", 19), ("wait", 5)],
    ],
)
@example(Quota(20, 1, 1.0, initial=0), [("wait", 15), ("wait", 5), ("give up", 0), *[("wait", 5)] * 3])
def test_no_interval_lets_more_go_than_capacity_and_refill(quota: Quota, program: list[tuple[str, int | None]]) -> None:
    """Whatever is asked for, given up or settled at less, each interval lets at most what it may go."""
    world = World(quota)
    play(world, program)
    check(quota, world.goes())


@pytest.mark.parametrize("stepped", [False, True])
def test_the_last_places_given_up_one_by_one_come_back_whole(*, stepped: bool) -> None:
    """Three places given up from the last to the first leave the bucket as it was."""
    world = World(Quota(10, 5, 5.0, initial=0, stepped=stepped))
    waiting = [world.acquire(5, wait=True) for _ in range(3)]
    for gone in reversed(waiting):
        assert gone is not None
        world.give_up(gone)
    assert world.state is not None
    assert world.state.balance == 0


def test_the_check_finds_what_gives_everything_back() -> None:
    """A bucket that gives all back whoever stands behind is found out: the check bites."""
    goes = [Gone(10 * SECOND, 10), Gone(10 * SECOND, 10)]
    with pytest.raises(AssertionError):
        check(Quota(10, 1, 1.0), goes)
