"""What limiters elsewhere are tested for, written for this one: bursts, long runs, places, cancelling, timeouts.

The list of situations is that of the tests of Go's x/time/rate; where the answers differ, the docstring says why.
`D` is a tenth of a second: at 10 tokens a second the time of one token.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from keepa_tokens import AcquireTimeout, MemoryStorage, Quota, TokenBucket
from keepa_tokens.quota import exact
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Refund
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import LIMIT

D = 100_000
FOR_EVER = LIMIT - 1
START = 1000 * D


class Bench:
    """A bucket over memory storage, asked at multiples of `D`."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.storage = MemoryStorage()

    def allow(self, at: int, tokens: int) -> tuple[int | None, bool]:
        """Return the tokens that there were, and whether the request got its own."""
        before = self.apply(at, Acquire(0)).balance
        return before, self.apply(at, Acquire(tokens)).granted

    def place(self, at: int, tokens: int, within: int = FOR_EVER) -> int | None:
        """Return the place (in D) that a request gets at `at`, None if it gets none."""
        outcome = self.apply(at, Acquire(tokens, wait_us=within))
        return (at * D + outcome.place_us) // D if outcome.granted else None

    def cancel(self, at: int, tokens: int, place: int) -> bool:
        """Give the place `place` (in D) up, as the doors do it; return whether it counted."""
        return self.apply(at, Refund(f"{tokens} at {place}", tokens, START + place * D)).found

    def terms(self, quota: Quota) -> None:
        self.quota = quota

    def apply(self, at: int, command: Command) -> Outcome:
        return self.storage.apply("k", self.quota, command, now_us=START + at * D)


Step = tuple[str, tuple[Any, ...], Any]
TEN: Final = Quota(2, 10, 1.0)
BEHIND: Final = [("place", (0, 2), 0), ("place", (0, 2), 2), ("place", (0, 1), 3)]


def allows(*steps: tuple[int, int, int, bool]) -> list[Step]:
    """Return steps that ask for now: when, how many tokens there are, how many are asked for, and whether they pass."""
    return [("allow", (at, tokens), (there, passes)) for at, there, tokens, passes in steps]


STORIES: Final[dict[str, tuple[Quota, list[Step]]]] = {
    "a burst of one passes, then a token a tenth of a second; more than the capacity never, 0 always": (
        Quota(1, 10, 1.0),
        allows(
            *[(0, 1, 1, True), (0, 0, 1, False), (0, 0, 1, False), (1, 1, 1, True), (1, 0, 1, False)],
            *[(2, 1, 2, False), (2, 1, 1, True)],
        ),
    ),
    "a burst of three": (
        Quota(3, 10, 1.0),
        allows(
            *[(0, 3, 2, True), (0, 1, 2, False), (0, 1, 1, True), (0, 0, 1, False), (1, 1, 4, False)],
            *[(2, 2, 1, True), (3, 2, 1, True), (4, 2, 1, True), (4, 1, 1, True), (4, 0, 1, False)],
            *[(9, 3, 3, True), (9, 0, 0, True), (9, 0, 1, False)],
        ),
    ),
    # Within the tolerance time stands still until it has caught up: Go's limiter hands the way back out again.
    "a clock that steps back gives what is left and mints nothing": (
        Quota(3, 10, 1.0),
        allows(
            *[(1, 3, 1, True), (0, 2, 1, True), (0, 1, 1, True), (0, 0, 1, False), (1, 0, 1, False)],
            *[(2, 1, 1, True), (2, 0, 1, False)],
        ),
    ),
    "a rate that is no round number eats no burst of 1": (
        Quota(1, 10, 13.0),
        allows((0, 1, 1, True), (12, 0, 1, False), (13, 1, 1, True)),
    ),
    "each place begins where the one before it has been served": (
        TEN,
        [("place", (0, 2), 0), ("place", (0, 2), 2), ("place", (3, 2), 4)],
    ),
    "who asks for now gets nothing while somebody is in a place": (
        TEN,
        [
            *[("place", (0, 3), None), ("place", (0, 2), 0), ("allow", (1, 2), (1, False)), ("place", (1, 2), 2)],
            *allows((1, -1, 1, False), (3, 1, 1, True)),
        ],
    ),
    "the last place given up is free for the next one, once": (
        TEN,
        [
            *[("place", (0, 2), 0), ("place", (0, 2), 2), ("cancel", (1, 2, 2), True), ("cancel", (1, 2, 2), False)],
            *[("place", (1, 2), 2), ("place", (1, 2), 4)],
        ],
    ),
    # Nobody was told an instant ahead. Go's limiter gives nothing back then.
    "a place given up when it has come comes back whole": (
        TEN,
        [("place", (0, 2), 0), ("place", (0, 2), 2), ("cancel", (3, 2, 2), True), ("place", (3, 2), 3)],
    ),
    # Those behind keep their places; of two tokens one is promised to the place a tenth behind.
    "one in the middle gives back what those behind leave": (
        TEN,
        [*BEHIND, ("cancel", (1, 2, 2), True), ("place", (1, 2), 4)],
    ),
    # Go's limiter gives one back. Here what comes back of a place that has come must fit in beside the largest one.
    "one that has just come gives nothing back": (TEN, [*BEHIND, ("cancel", (2, 2, 2), True), ("place", (2, 2), 5)]),
    "of two that are given up the first counts as if the last had never been": (
        Quota(4, 10, 1.0),
        [
            *[("place", (0, 4), 0), ("place", (0, 3), 3), ("place", (0, 1), 4), ("place", (0, 1), 5)],
            *[("cancel", (1, 1, 5), True), ("cancel", (1, 3, 3), True), ("place", (1, 3), 5)],
        ],
    ),
    "by a clock that stands behind a place is by the one that was ahead, none earlier": (
        TEN,
        [
            *[("place", (1, 2), 1), ("place", (0, 1), 2), ("place", (2, 2), 4), ("place", (0, 3), None)],
            *[("place", (2, 1), 5), ("place", (0, 2, D), None), ("place", (2, 1), 6)],
        ],
    ),
    "by a clock that stands behind as many tokens come back": (
        TEN,
        [
            *[("place", (1, 2), 1), ("place", (1, 2), 3), ("place", (1, 1), 4)],
            *[("cancel", (0, 2, 3), True), ("place", (1, 2), 5)],
        ],
    ),
    # At 2 one token has flowed at the old rate; one more and its own come at the new one.
    "another rate counts from now on": (
        Quota(2, 5, 1.0),
        [("place", (0, 2), 0), ("place", (0, 2), 4), ("terms", (TEN,), None), ("place", (2, 1), 4)],
    ),
    "another burst counts from now on": (
        Quota(2, 5, 1.0),
        [("place", (0, 2), 0), ("terms", (Quota(4, 5, 1.0),), None), ("place", (3, 4), 8)],
    ),
    "the longest wait is a bound that includes itself": (
        TEN,
        [("place", (0, 2, D), 0), ("place", (0, 1, D), 1), ("place", (0, 1, D), None), ("place", (0, 1, 2 * D), 2)],
    ),
}
"""What each shows: the terms, and step by step what is done at which instant, and what comes of it."""


@pytest.mark.parametrize("story", STORIES)
def test_a_situation_of_other_limiters_comes_out_as_it_should(story: str) -> None:
    """Bursts, places, places given up, clocks that step back, other terms: each step comes to what is written there."""
    quota, steps = STORIES[story]
    bench = Bench(quota)
    for what, given, comes in steps:
        assert getattr(bench, what)(*given) == comes, (what, given)


def test_a_rate_of_0() -> None:
    """What is there may be taken, nothing comes after; another rate later brings tokens from then on."""
    clock = ManualClock(5.0)
    storage = MemoryStorage()
    bucket = TokenBucket(Quota(1, 0, 1.0), storage=storage, clock=clock)
    assert bucket.try_acquire()
    assert not bucket.try_acquire()
    with pytest.raises(AcquireTimeout):
        bucket.acquire()
    clock.advance(3600.0)
    faster = TokenBucket(Quota(100, 1, 1.0), storage=storage, clock=clock)
    assert not bucket.try_acquire()
    # Nobody counted the time without any refill.
    assert not faster.try_acquire()
    assert faster.acquire().waited == 1.0


def test_a_tiny_rate() -> None:
    """One token in a century: the first passes, the second doesn't, and the wait is told, not overflown."""
    century = 100 * 365 * 86_400.0
    clock = ManualClock(5.0)
    bucket = TokenBucket(Quota(1, 1, century), clock=clock)
    assert bucket.try_acquire()
    refusal = bucket.try_acquire()
    assert not refusal
    assert refusal.retry_after == century


def test_the_fastest_rate_that_is_exact_is_one_below_the_limit() -> None:
    """Tokens times a period and a microsecond, in the smallest numbers, must stay below 2**52."""
    assert exact(1, LIMIT - 2)
    assert not exact(1, LIMIT - 1)
    assert exact(2 * (LIMIT // 2 - 1), 2)
    assert not exact(LIMIT // 2, 1)
