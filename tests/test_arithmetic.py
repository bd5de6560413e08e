"""The scalar arithmetic, against exact fractions and against itself in other steps.

Path independence is why nothing drifts: if every two steps are worth one, 10^9 are worth one by induction, so the
error after any number of operations is that of a single one: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepa_tokens.quota import exact, reduced
from keepa_tokens.rules.arithmetic import (
    anchored,
    carried_over,
    halved,
    instant_smooth,
    instant_stepped,
    phased,
    refill_smooth,
    refill_stepped,
    required,
    saturated,
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


@st.composite
def flows(draw: st.DrawFn) -> tuple[Rate, int, int, int, int]:
    """Draw a rate, a carry that fits it, a balance, an instant and a capacity."""
    rate = draw(rates)
    carry = draw(st.integers(0, rate.period - 1))
    return rate, carry, draw(balances), draw(moments), draw(capacities)


@given(flow=flows(), gap=later)
def test_smooth_refill_is_exact(flow: tuple[Rate, int, int, int, int], gap: int) -> None:
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


@given(flow=flows(), first=later, second=later)
@example(flow=(Rate(7, 61_000_000), 60_999_999, -1, 0, LIMIT - 1), first=1, second=10**15)
def test_smooth_refill_does_not_depend_on_the_steps(
    flow: tuple[Rate, int, int, int, int], first: int, second: int
) -> None:
    """Refilling in two steps, up to instants of 10^15 us and more, is refilling in one."""
    rate, carry, balance, at, capacity = flow
    half = refill_smooth(balance, at, carry, at + first, capacity, rate.rate, rate.period)
    whole = refill_smooth(balance, at, carry, at + first + second, capacity, rate.rate, rate.period)
    assert refill_smooth(*half, at + first + second, capacity, rate.rate, rate.period) == whole


@given(flow=flows(), first=later, second=later)
def test_stepped_refill_does_not_depend_on_the_steps(
    flow: tuple[Rate, int, int, int, int], first: int, second: int
) -> None:
    """Refilling in two steps is refilling in one, with the phase of the steps kept."""
    rate, _, balance, at, capacity = flow
    half = refill_stepped(balance, at, at + first, capacity, rate.rate, rate.period)
    whole = refill_stepped(balance, at, at + first + second, capacity, rate.rate, rate.period)
    assert refill_stepped(*half, at + first + second, capacity, rate.rate, rate.period) == whole


@given(flow=flows(), gap=later)
def test_stepped_refill_is_exact(flow: tuple[Rate, int, int, int, int], gap: int) -> None:
    """Each whole period brings the refill, up to the cap; the part of a period that is left stays to come."""
    rate, _, balance, at, capacity = flow
    after, moved = refill_stepped(balance, at, at + gap, capacity, rate.rate, rate.period)
    if rate.rate == 0:
        assert (after, moved) == (balance, at + gap)
        return
    assert after == max(balance, min(capacity, balance + gap // rate.period * rate.rate))
    assert moved == at + gap - gap % rate.period


@given(flow=flows(), need=st.one_of(st.integers(0, 100), st.integers(0, 10**9), st.integers(0, LIMIT)))
def test_the_smooth_instant_is_the_first_one(flow: tuple[Rate, int, int, int, int], need: int) -> None:
    """At the instant the tokens are there, a microsecond earlier they aren't; NEVER only beyond what is counted."""
    rate, carry, _, at, _ = flow
    instant = instant_smooth(need, at, carry, rate.rate, rate.period)
    if need == 0:
        assert instant == at
        return
    if rate.rate == 0:
        assert instant == NEVER
        return
    true = at + Fraction(need * rate.period - carry, rate.rate)
    assert instant >= true or instant == NEVER
    assert instant - 1 < true
    if instant < NEVER:
        big = LIMIT - 1 + need
        assert refill_smooth(0, at, carry, instant, big, rate.rate, rate.period)[0] >= need
        assert refill_smooth(0, at, carry, instant - 1, big, rate.rate, rate.period)[0] < need


@given(flow=flows(), need=st.one_of(st.integers(0, 100), st.integers(0, LIMIT)))
def test_the_stepped_instant_is_the_first_one(flow: tuple[Rate, int, int, int, int], need: int) -> None:
    """At the instant the steps have brought the tokens, a microsecond earlier they haven't."""
    rate, _, _, at, _ = flow
    instant = instant_stepped(need, at, rate.rate, rate.period)
    if need == 0:
        assert instant == at
    elif rate.rate == 0:
        assert instant == NEVER
    elif instant < NEVER:
        big = LIMIT - 1 + need
        assert refill_stepped(0, at, instant, big, rate.rate, rate.period)[0] >= need
        assert refill_stepped(0, at, instant - 1, big, rate.rate, rate.period)[0] < need
    else:
        assert at + -(-need // rate.rate) * rate.period >= NEVER


@given(flow=flows(), back=later)
def test_a_clock_behind_stands_still(flow: tuple[Rate, int, int, int, int], back: int) -> None:
    """A clock at or behind `refilled_at` changes nothing, smooth or stepped."""
    rate, carry, balance, at, capacity = flow
    now = max(0, at - back)
    assert refill_smooth(balance, at, carry, now, capacity, rate.rate, rate.period) == (balance, at, carry)
    assert refill_stepped(balance, at, now, capacity, rate.rate, rate.period) == (balance, at)


@given(flow=flows(), gap=later)
def test_refill_never_lowers_and_never_passes_the_cap(flow: tuple[Rate, int, int, int, int], gap: int) -> None:
    """A balance only rises, to capacity at most; one above capacity stays as it is."""
    rate, carry, balance, at, capacity = flow
    smooth = refill_smooth(balance, at, carry, at + gap, capacity, rate.rate, rate.period)[0]
    stepped = refill_stepped(balance, at, at + gap, capacity, rate.rate, rate.period)[0]
    assert balance <= stepped <= max(balance, capacity)
    assert balance <= smooth <= max(balance, capacity)


@given(old=flows(), new=rates)
def test_a_remainder_carried_to_another_rate_never_mints(old: tuple[Rate, int, int, int, int], new: Rate) -> None:
    """A remainder stands for the same time at the other rate, or less, and is under a token; back again, no more."""
    rate, carry, _, _, _ = old
    moved = carried_over(carry, rate.rate, rate.period, new.rate, new.period)
    assert 0 <= moved < new.period
    if rate == new:
        assert moved == carry
    elif rate.rate and new.rate:
        assert Fraction(moved, new.rate) <= Fraction(carry, rate.rate)
        assert carried_over(moved, new.rate, new.period, rate.rate, rate.period) <= carry
    else:
        assert moved == 0


@given(old=flows(), others=st.lists(rates, max_size=6))
def test_switching_back_and_forth_between_rates_never_mints(
    old: tuple[Rate, int, int, int, int], others: list[Rate]
) -> None:
    """However many quotas take turns on one key without time passing, the first one's remainder has not grown."""
    first, carry, _, _, _ = old
    rate, moved = first, carry
    for other in (*others, first):
        moved = carried_over(moved, rate.rate, rate.period, other.rate, other.period)
        rate = other
    assert moved <= carry


@given(at=moments, now=moments)
def test_only_what_is_ahead_by_more_than_the_tolerance_is_anchored(at: int, now: int) -> None:
    """A stored instant is kept, up to the tolerance ahead of the clock, else it becomes now."""
    kept = anchored(at, now, TOLERANCE_US)
    assert kept == (at if at - now <= TOLERANCE_US else now)


@pytest.mark.parametrize("ahead, kept", [(0, True), (TOLERANCE_US, True), (TOLERANCE_US + 1, False)])
def test_the_edge_of_the_tolerance(ahead: int, kept: bool) -> None:
    """Exactly the tolerance ahead is kept, a microsecond more is damage."""
    assert anchored(100 + ahead, 100, TOLERANCE_US) == (100 + ahead if kept else 100)


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
def test_saturation_stays_below_the_limit(tokens: int) -> None:
    """A number within the limit is itself, one beyond becomes the nearest that is within."""
    held = saturated(tokens)
    assert -LIMIT < held < LIMIT
    assert held == tokens or abs(tokens) >= LIMIT


@pytest.mark.parametrize("tokens", [LIMIT - 1, LIMIT, 2**60])
def test_saturation_reaches_the_last_number_below_the_limit(tokens: int) -> None:
    """What is at the limit or beyond becomes the number next to it, either way."""
    assert (saturated(tokens), saturated(-tokens)) == (LIMIT - 1, 1 - LIMIT)


@pytest.mark.parametrize("at, expected", [(NEVER - 3, NEVER - 1), (NEVER - 2, NEVER), (NEVER - 1, NEVER)])
def test_the_last_step_before_the_end_of_time_is_counted(at: int, expected: int) -> None:
    """A step that comes before NEVER is told as it is, one at it or after it as NEVER."""
    assert instant_stepped(1, at, 1, 2) == expected
    assert instant_smooth(1, at, 0, 1, 2) == expected


@pytest.mark.parametrize("carry, moved", [(3, 3), (4, 4), (5, 4), (6, 4)])
def test_a_remainder_that_is_worth_a_token_at_the_new_rate_stays_just_below_one(carry: int, moved: int) -> None:
    """A remainder of up to a whole new period is taken over; a longer one would be a token, and isn't minted."""
    assert carried_over(carry, 1, 7, 1, 5) == moved


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
