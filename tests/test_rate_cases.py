"""What limiters elsewhere are tested for, written for this one: bursts, long runs, places, cancelling, timeouts.

The list of situations is that of the tests of Go's x/time/rate; where the answers differ, a comment says why. At 10
tokens a second a tenth of a second is the time of one token.
"""

from __future__ import annotations

from typing import Final

from keepa_tokens import Quota
from keepa_tokens.quota import exact
from keepa_tokens.units import LIMIT
from tests.stories import Story, each_story
from tests.strategies import Make, either_way

ONE: Final = Quota(1, 10, 1.0)
TEN: Final = Quota(2, 10, 1.0)
BURST: Final = Quota(3, 10, 1.0)
ODD: Final = Quota(1, 10, 13.0)
FOUR: Final = Quota(4, 10, 1.0)
FIVE: Final = Quota(2, 5, 1.0)
WIDE: Final = Quota(4, 5, 1.0)
NEVER: Final = Quota(1, 0, 1.0)
LATER: Final = Quota(100, 1, 1.0)
CENTURY: Final = Quota(1, 1, 100 * 365 * 86_400.0)

STORIES: Final = """
a burst of one passes, then a token a tenth of a second; more than the capacity never, 0 always: ONE
    0    take 1 -> GRANTED balance=0, take 1 -> EMPTY balance=0, take 1 -> EMPTY balance=0
    0.1s take 1 -> GRANTED balance=0, take 1 -> EMPTY; 0.2s take 2 -> TOO_LARGE balance=1, take 1 -> GRANTED
a burst of three: BURST
    0    take 2 -> GRANTED balance=1, take 2 -> EMPTY balance=1, take 1 -> GRANTED balance=0, take 1 -> EMPTY
    0.1s take 4 -> TOO_LARGE balance=1; 0.2s take 1 -> GRANTED balance=1; 0.3s take 1 -> GRANTED balance=1
    0.4s take 1 -> GRANTED balance=1, take 1 -> GRANTED balance=0, take 1 -> EMPTY balance=0
    0.9s take 3 -> GRANTED balance=0, take 0 -> GRANTED, take 1 -> EMPTY
# Within the tolerance time stands still until it has caught up: Go's limiter hands the way back out again.
a clock that steps back gives what is left and mints nothing: BURST
    0.1s take 1 -> GRANTED balance=2
    0    take 1 -> GRANTED balance=1, take 1 -> GRANTED balance=0, take 1 -> EMPTY balance=0
    0.1s take 1 -> EMPTY balance=0; 0.2s take 1 -> GRANTED balance=0, take 1 -> EMPTY
a rate that is no round number eats no burst of 1: ODD
    0 take 1 -> GRANTED; 1.2s take 1 -> EMPTY balance=0; 1.3s take 1 -> GRANTED balance=0
each place begins where the one before it has been served: TEN
    0 take 2 wait=9s -> place=0, take 2 wait=9s -> place=0.2s; 0.3s take 2 wait=9s -> place=0.1s
who asks for now gets nothing while somebody is in a place: TEN
    0 take 3 wait=9s -> !granted, take 2 wait=9s -> GRANTED place=0
    0.1s take 2 -> EMPTY balance=1, take 2 wait=9s -> place=0.1s, take 1 -> EMPTY balance=-1; 0.3s take 1 -> GRANTED
the last place given up is free for the next one, once: TEN
    0 take 2 wait=9s, take 2 wait=9s -> place=0.2s; 0.1s back a 2 0.2s -> found, back a 2 0.2s -> !found
    0.1s take 2 wait=9s -> place=0.1s, take 2 wait=9s -> place=0.3s
# Nobody was told an instant ahead. Go's limiter gives nothing back then.
a place given up when it has come comes back whole: TEN
    0 take 2 wait=9s, take 2 wait=9s -> place=0.2s; 0.3s back a 2 0.2s -> found, take 2 wait=9s -> GRANTED place=0
# Those behind keep their places; of two tokens one is promised to the place a tenth behind.
one in the middle gives back what those behind leave: TEN
    0 take 2 wait=9s, take 2 wait=9s -> place=0.2s, take 1 wait=9s -> place=0.3s
    0.1s back a 2 0.2s -> found, take 2 wait=9s -> place=0.3s
# Go's limiter gives one back. Here what comes back of a place that has come must fit in beside the largest one.
one that has just come gives nothing back: TEN
    0 take 2 wait=9s, take 2 wait=9s -> place=0.2s, take 1 wait=9s -> place=0.3s
    0.2s back a 2 0.2s -> found, take 2 wait=9s -> place=0.3s
of two that are given up the first counts as if the last had never been: FOUR
    0 take 4 wait=9s, take 3 wait=9s -> place=0.3s, take 1 wait=9s -> place=0.4s, take 1 wait=9s -> place=0.5s
    0.1s back a 1 0.5s -> found, back b 3 0.3s -> found, take 3 wait=9s -> place=0.4s
by a clock that stands behind a place is by the one that was ahead, none earlier: TEN
    0.1s take 2 wait=9s -> place=0; 0 take 1 wait=9s -> place=0.2s; 0.2s take 2 wait=9s -> place=0.2s
    0 take 3 wait=9s -> !granted; 0.2s take 1 wait=9s -> place=0.3s; 0 take 2 wait=0.1s -> !granted
    0.2s take 1 wait=9s -> place=0.4s
by a clock that stands behind as many tokens come back: TEN
    0.1s take 2 wait=9s -> place=0, take 2 wait=9s -> place=0.2s, take 1 wait=9s -> place=0.3s
    0 back a 2 0.3s -> found; 0.1s take 2 wait=9s -> place=0.4s
# At 0.2 s one token has flowed at the old rate; one more and its own come at the new one.
another rate counts from now on: FIVE
    0 take 2 wait=9s, take 2 wait=9s -> place=0.4s, on TEN; 0.2s take 1 wait=9s -> place=0.2s
another burst counts from now on: FIVE
    0 take 2 wait=9s, on WIDE; 0.3s take 4 wait=9s -> place=0.5s
what is there may be taken at a rate of 0, and nothing comes after: NEVER
    0 take 1 -> GRANTED, take 1 -> EMPTY, take 1 wait=9s -> !granted
# Nobody counted the time without any refill.
    3600s take 1 -> EMPTY, on LATER, take 1 -> EMPTY in=1s; 3601s take 1 -> GRANTED
a wait for one token in a century is told, and not overflown: CENTURY start=5s
    0 take 1 -> GRANTED, take 1 -> EMPTY in=3153600000s
the longest wait is a bound that includes itself: TEN
    0 take 2 wait=0.1s -> place=0, take 1 wait=0.1s -> place=0.1s, take 1 wait=0.1s -> !granted
    0 take 1 wait=0.2s -> place=0.2s
"""


@either_way
@each_story(STORIES, globals())
def test_a_situation_of_other_limiters_comes_out_as_it_should(make: Make, story: Story) -> None:
    """Bursts, places, places given up, clocks that step back, other terms: each step comes to what is written there."""
    story.goes(make)


def test_the_fastest_rate_that_is_exact_is_one_below_the_limit() -> None:
    """Tokens times a period and a microsecond, in the smallest numbers, must stay below 2**52."""
    assert exact(1, LIMIT - 2)
    assert not exact(1, LIMIT - 1)
    assert exact(2 * (LIMIT // 2 - 1), 2)
    assert not exact(LIMIT // 2, 1)
