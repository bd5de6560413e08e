"""The scalar arithmetic, against exact fractions and against itself in other steps.

Path independence is why nothing drifts: if every two steps are worth one, 10^9 are worth one by induction, so the
error after any number of operations is that of a single one: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepa_tokens.quota import exact, reduced
from keepa_tokens.rules.arithmetic import (
    anchored,
    flowed_between,
    given_back,
    halved,
    instant_smooth,
    instant_stepped,
    moved_back,
    phased,
    refill_smooth,
    refill_stepped,
    required,
    saturated,
    set_aside,
)
from keepa_tokens.units import LIMIT, NEVER, TOLERANCE_US


@dataclass(frozen=True)
class Rate:
    """A rate that quotas allow, in reduced numbers."""

    rate: int
    period: int


def _rates() -> st.SearchStrategy[Rate]:
    pairs = st.one_of(
        st.tuples(st.integers(0, 50), st.integers(1, 100)),
        st.tuples(st.integers(0, 10_000), st.sampled_from([1_000_000, 60_000_000, 60_500_000, 86_400_000_000])),
        st.tuples(st.integers(0, 2**30), st.integers(1, 2**21)),
        st.tuples(st.integers(0, 3), st.integers(1, 2**50)),
    )
    return pairs.filter(lambda pair: exact(*pair)).map(lambda pair: Rate(*reduced(*pair)))


rates = _rates()
moments = st.one_of(st.integers(0, 1000), st.integers(0, 10**15), st.integers(0, LIMIT))
later = st.one_of(st.integers(0, 1000), st.integers(0, 10**9), st.integers(0, 10**15))
capacities = st.one_of(st.integers(1, 20), st.integers(1, 10**6), st.integers(1, LIMIT - 1))
balances = st.one_of(st.integers(-20, 20), st.integers(-(10**6), 10**6), st.integers(1 - LIMIT, LIMIT - 1))


Drawn = tuple[Rate, int, int, int, int]
either_way: Final = pytest.mark.parametrize("stepped", [False, True])


@st.composite
def flows(draw: st.DrawFn) -> Drawn:
    rate = draw(rates)
    carry = draw(st.integers(0, rate.period - 1))
    return rate, carry, draw(balances), draw(moments), draw(capacities)


def refilled(
    rate: Rate, balance: int, at: int, carry: int, now: int, capacity: int, *, stepped: bool
) -> tuple[int, int, int]:
    """Return balance, instant and carry; steps leave the carry as it is."""
    if stepped:
        return *refill_stepped(balance, at, now, capacity, rate.rate, rate.period), carry
    return refill_smooth(balance, at, carry, now, capacity, rate.rate, rate.period)


@given(flow=flows(), gap=later)
def test_smooth_refill_is_exact(flow: Drawn, gap: int) -> None:
    """Balance and carry together are what exact fractions say, below the cap; at the cap the carry is 0."""
    rate, carry, balance, at, capacity = flow
    now = at + gap
    after, refilled_at, rest = refill_smooth(balance, at, carry, now, capacity, rate.rate, rate.period)
    true = Fraction(gap * rate.rate + carry, rate.period)
    assert refilled_at == now
    assert 0 <= rest < rate.period
    if balance >= capacity or rate.rate == 0:
        assert (after, rest) == ((balance, carry) if gap == 0 else (balance, 0))
    elif balance + floor(true) >= capacity and gap:
        assert (after, rest) == (capacity, 0)
    elif gap:
        assert after + Fraction(rest, rate.period) == balance + true


@either_way
@given(flow=flows(), first=later, second=later)
@example(flow=(Rate(7, 61_000_000), 60_999_999, -1, 0, LIMIT - 1), first=1, second=10**15)
def test_refill_does_not_depend_on_the_steps(flow: Drawn, first: int, second: int, stepped: bool) -> None:
    """Refilling in two steps, up to instants of 10^15 us and more, is refilling in one; the phase of steps is kept."""
    rate, carry, balance, at, capacity = flow
    half = refilled(rate, balance, at, carry, at + first, capacity, stepped=stepped)
    whole = refilled(rate, balance, at, carry, at + first + second, capacity, stepped=stepped)
    assert refilled(rate, *half, at + first + second, capacity, stepped=stepped) == whole


@given(flow=flows(), gap=later)
def test_stepped_refill_is_exact(flow: Drawn, gap: int) -> None:
    """Each whole period brings the refill, up to the cap; the part of a period that is left stays to come."""
    rate, _, balance, at, capacity = flow
    after, moved = refill_stepped(balance, at, at + gap, capacity, rate.rate, rate.period)
    if rate.rate == 0:
        assert (after, moved) == (balance, at + gap)
        return
    assert after == max(balance, min(capacity, balance + gap // rate.period * rate.rate))
    assert moved == at + gap - gap % rate.period


@either_way
@given(flow=flows(), need=st.one_of(st.integers(0, 100), st.integers(0, 10**9), st.integers(0, LIMIT)))
def test_the_instant_is_the_first_one(flow: Drawn, need: int, stepped: bool) -> None:
    """At the instant the tokens are there, a microsecond earlier they aren't; NEVER only beyond what is counted."""
    rate, carry, _, at, _ = flow
    if stepped:
        instant = instant_stepped(need, at, rate.rate, rate.period)
    else:
        instant = instant_smooth(need, at, carry, rate.rate, rate.period)
    if need == 0:
        assert instant == at
    elif rate.rate == 0:
        assert instant == NEVER
    elif instant < NEVER:
        big = LIMIT - 1 + need
        assert refilled(rate, 0, at, carry, instant, big, stepped=stepped)[0] >= need
        assert refilled(rate, 0, at, carry, instant - 1, big, stepped=stepped)[0] < need
    elif stepped:
        assert at + -(-need // rate.rate) * rate.period >= NEVER
    else:
        assert instant - 1 < at + Fraction(need * rate.period - carry, rate.rate)


@either_way
@given(flow=flows(), back=later)
def test_a_clock_behind_stands_still(flow: Drawn, back: int, stepped: bool) -> None:
    """A clock at or behind `refilled_at` changes nothing."""
    rate, carry, balance, at, capacity = flow
    assert refilled(rate, balance, at, carry, max(0, at - back), capacity, stepped=stepped) == (balance, at, carry)


@given(at=moments, now=moments)
@example(at=100 + TOLERANCE_US, now=100)
@example(at=101 + TOLERANCE_US, now=100)
def test_only_what_is_ahead_by_more_than_the_tolerance_is_anchored(at: int, now: int) -> None:
    """A stored instant is kept, up to the tolerance ahead of the clock, else it becomes now."""
    kept = anchored(at, now, TOLERANCE_US)
    assert kept == (at if at - now <= TOLERANCE_US else now)


@given(now=st.integers(0, LIMIT), period=st.integers(1, 10**9), told=st.integers(-(10**10), 10**10))
def test_the_phase_is_the_servers_and_at_most_a_period_old(now: int, period: int, told: int) -> None:
    """The last step was at most a period ago and isn't ahead, and the next one comes when the server said."""
    at = phased(now, period, told)
    assert max(0, now - period) <= at <= now
    if now >= period and 0 <= told <= period:
        assert at + period == now + told


@given(tokens=st.integers(1, LIMIT), overdraft=st.integers(0, LIMIT))
def test_what_must_be_available_leaves_the_debt_within_the_overdraft(tokens: int, overdraft: int) -> None:
    """At least one token must be there, and the grant takes the balance no further below 0 than the overdraft."""
    needed = required(tokens, overdraft)
    assert needed >= 1
    assert needed - tokens >= -overdraft
    assert needed == 1 or needed - tokens == -overdraft


@given(tokens=st.integers(-(2**60), 2**60))
@example(tokens=LIMIT)
@example(tokens=-LIMIT)
def test_saturation_stays_below_the_limit(tokens: int) -> None:
    """A number within the limit is itself, one beyond becomes the nearest that is within."""
    assert saturated(tokens) == (tokens if abs(tokens) < LIMIT else (LIMIT - 1) * (1 if tokens > 0 else -1))


@pytest.mark.parametrize("at, expected", [(NEVER - 3, NEVER - 1), (NEVER - 2, NEVER), (NEVER - 1, NEVER)])
def test_the_last_step_before_the_end_of_time_is_counted(at: int, expected: int) -> None:
    """A step that comes before NEVER is told as it is, one at it or after it as NEVER."""
    assert instant_stepped(1, at, 1, 2) == expected
    assert instant_smooth(1, at, 0, 1, 2) == expected


@given(tokens=st.integers(0, LIMIT - 1), since=moments, gap=later, half_life=st.integers(1, 10**10))
@example(tokens=LIMIT - 1, since=0, gap=52, half_life=1)
@example(tokens=LIMIT - 1, since=0, gap=51, half_life=1)
def test_halving_halves_once_a_half_life(tokens: int, since: int, gap: int, half_life: int) -> None:
    """For each half-life that passed the tokens are halved, rounded down; the part of one that is left goes on."""
    left, at = halved(tokens, since, since + gap, half_life)
    assert left == tokens // 2 ** min(gap // half_life, 60)
    assert at == since + gap - gap % half_life


def test_a_clock_behind_halves_nothing() -> None:
    """Before the last halving there is nothing to do, however short the half-life."""
    assert halved(8, 5, 3, 1) == halved(8, 5, 5, 1) == (8, 5)


# --- what comes back, and what is left to others


@given(rate=rates, start=moments, gap=later, stepped=st.booleans())
def test_what_flows_between_two_instants_is_rounded_up(rate: Rate, start: int, gap: int, stepped: bool) -> None:
    """Never less than the exact share, and less than a token (stepped: a step) more, up to what is counted exactly."""
    flowed = flowed_between(start, start + gap, rate.rate, rate.period, stepped=stepped)
    true = Fraction(gap * rate.rate, rate.period)
    assert flowed == min(LIMIT, ceil(Fraction(gap, rate.period)) * rate.rate if stepped else ceil(true))
    more = max(1, rate.rate) if stepped else 1
    assert flowed >= true or flowed == LIMIT
    assert flowed <= LIMIT + rate.rate
    assert flowed < true + more
    assert flowed_between(start + gap + 1, start + gap, rate.rate, rate.period, stepped=stepped) == 0


@given(rate=rates, tokens=st.integers(0, 10**6), now=moments, own=moments, last_place=moments, stepped=st.booleans())
@example(rate=Rate(2, 10), tokens=10, now=0, own=0, last_place=11, stepped=True)
def test_what_is_given_back_is_no_more_than_the_places_behind_leave(
    rate: Rate, tokens: int, now: int, own: int, last_place: int, stepped: bool
) -> None:
    """All of it with no place ahead or by the last one; else the refill from its own instant to the last is left."""
    back = given_back(tokens, own, last_place, now, rate.rate, rate.period, stepped=stepped)
    if last_place <= max(own, now):
        assert back == tokens
        return
    assert back == max(0, tokens - flowed_between(max(own, now), last_place, rate.rate, rate.period, stepped=stepped))


@given(rate=rates, tokens=st.integers(0, 10**6), own=moments, stepped=st.booleans())
@example(rate=Rate(2, 10), tokens=3, own=100, stepped=True)
def test_the_place_before_another_is_as_far_back_as_its_tokens_take(
    rate: Rate, tokens: int, own: int, stepped: bool
) -> None:
    """The refill from there to the place is no less than the tokens, a microsecond (stepped: a period) later it is."""
    back = moved_back(own, tokens, rate.rate, rate.period, stepped=stepped)
    assert 0 <= back <= own
    if rate.rate == 0:
        assert back == own
    elif not stepped and back:
        exact_back = own - Fraction(tokens * rate.period, rate.rate)
        assert 0 <= back - exact_back < 1
    elif stepped and back:
        assert back == own - tokens // rate.rate * rate.period


@given(keep=st.integers(0, 500), kept=st.integers(0, 500), capacity=st.integers(1, 400), need=st.integers(1, 400))
@example(keep=1, kept=2, capacity=300, need=5)
def test_what_is_set_aside_is_the_keep_and_at_most_a_third(keep: int, kept: int, capacity: int, need: int) -> None:
    """Never less than the keep; what is kept back on top goes to a third and makes nothing impossible."""
    aside = set_aside(keep, kept, capacity, need)
    assert keep <= aside <= max(keep, capacity // 3)
    if aside > keep:
        assert aside + need <= capacity
        assert aside - keep <= min(kept, capacity // 3)
    elif kept and capacity >= 3:
        assert keep >= min(capacity // 3, capacity - need)
