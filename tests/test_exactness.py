"""Exactness: who waits exactly `retry_after` is granted, one microsecond earlier is refused; and nothing drifts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND, instants, quotas, requests, summed
from keepa_tokens import TokenBucket
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Outcome, Pause, Peek, Reconcile, Refund, Reserve
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import LIMIT, MICROSECONDS, NEVER, TOLERANCE_US, seconds
from tests.strategies import SPARING, Bucket, Direct, Make, Situation, any_situations, either_way


@st.composite
def refusable(
    draw: st.DrawFn, quota_strategy: st.SearchStrategy[Quota] | None = None
) -> tuple[Situation, Acquire | Reserve]:
    at = draw(any_situations(quota_strategy))
    tokens, keep = draw(requests(at.quota))
    ticket = draw(st.none() | st.just("new"))
    if draw(st.booleans()):
        return at, Acquire(tokens, keep, ticket=ticket)
    return at, Reserve("new", tokens, draw(st.integers(1, HOUR)), keep, ticket=ticket)


def refused_then_granted(bucket: Bucket, now: int, command: Acquire | Reserve) -> Outcome | None:
    """Assert that the wait of a refusal is exact, and return the refusal; None where it is not to be.

    It is for EMPTY and RECHARGING, with no call in flight (on a plain bucket what is in flight was taken) and nobody
    before it in line, if it ends.
    """
    refusal = bucket.apply(command, now)
    beside_calls = bucket.quota.synced and refusal.open
    if refusal.reason not in {Reason.EMPTY, Reason.RECHARGING} or beside_calls or refusal.retry_after_us >= NEVER:
        return None
    state = bucket.state
    assert state is not None
    if any(each.keep <= command.keep and each.id != command.ticket for each in state.line):
        return None
    assert refusal.retry_after_us > 0
    early = bucket.apply(command, now + refusal.retry_after_us - 1)
    assert not early.granted
    bucket.put(state)
    exact = bucket.apply(command, now + refusal.retry_after_us)
    assert exact.granted
    return refusal


@either_way
@SPARING
@given(case=refusable())
def test_a_refused_caller_is_granted_at_retry_after_and_not_a_microsecond_earlier(
    make: Make, case: tuple[Situation, Acquire | Reserve]
) -> None:
    """From any state the wait named in a refusal is exact, holds that run out, recharge and overdraft included."""
    at, command = case
    refused_then_granted(make(at.quota, at.state), at.now, command)


@SPARING
@given(case=refusable(quotas(recharge=True)))
def test_the_wait_is_exact_while_a_bucket_recharges(case: tuple[Situation, Acquire | Reserve]) -> None:
    """With a recharge target the wait named in a refusal is exact."""
    at, command = case
    refused_then_granted(Direct(at.quota, at.state), at.now, command)


@SPARING
@given(
    quota=quotas(synced=False, least_refill=1),
    balance=st.integers(-50, 50),
    ends=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20 * MINUTE)), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_wait_is_exact_beside_holds_that_run_out(
    quota: Quota, balance: int, ends: list[tuple[int, int]], data: st.DataObject
) -> None:
    """On a plain bucket the tokens of holds are taken: whichever run out on the way, the wait is the refill's."""
    holds = {f"h{n}": Hold(tokens, 1, EPOCH + left, HOUR) for n, (tokens, left) in enumerate(ends)}
    state = summed(quota, BucketState(balance=balance, refilled_at=EPOCH, sequence=2, holds=holds))
    tokens, keep = data.draw(requests(quota))
    refused_then_granted(Direct(quota, state), EPOCH, Acquire(tokens, keep))


# Each kind by hand, so that none of them hangs on the luck of a draw.


def at(balance: int, ahead: int = 0, **fields: Any) -> BucketState:
    """Return a bucket that had `balance` tokens at EPOCH, or `ahead` of it."""
    return BucketState(balance=balance, refilled_at=EPOCH + ahead, **fields)


PER_SECOND: Final = Quota.per_second(1, capacity=10)


THREE: Final = Quota(10, 3, 1.0)
STEPPED: Final = Quota(10, 3, 60.0, stepped=True)
CREDIT: Final = Quota(10, 1, 1.0, overdraft=5)
HELD: Final = at(2, sequence=1, held=8, open=1, holds={"a": Hold(8, 1, EPOCH + SECOND, MINUTE)})

KINDS: Final[dict[str, tuple[Quota, BucketState, Acquire, int]]] = {
    "smooth": (THREE, at(0), Acquire(1), 333_334),
    "smooth, two": (THREE, at(0), Acquire(2), 666_667),
    "a carry": (THREE, at(0, carry=999_999), Acquire(1), 1),
    "stepped": (STEPPED, at(0, -10 * SECOND), Acquire(3), 50 * SECOND),
    "stepped, the second": (STEPPED, at(0, -10 * SECOND), Acquire(4), 110 * SECOND),
    "beside keep": (PER_SECOND, at(4), Acquire(3, keep=2), SECOND),
    "into the overdraft": (CREDIT, at(-4), Acquire(7), 6 * SECOND),
    "out of debt": (CREDIT, at(-4), Acquire(2), 5 * SECOND),
    "recharging": (replace(PER_SECOND, recharge_to=8), at(0), Acquire(1), 8 * SECOND),
    "recharging to above the capacity": (replace(PER_SECOND, recharge_to=80), at(0), Acquire(1), 10 * SECOND),
    "ahead": (PER_SECOND, at(0, TOLERANCE_US), Acquire(1), 6 * SECOND),
    "too far ahead": (PER_SECOND, at(0, TOLERANCE_US + 1), Acquire(1), SECOND),
    "a plain hold runs out on the way": (PER_SECOND, HELD, Acquire(4), 2 * SECOND),
}


@either_way
@pytest.mark.parametrize("kind", KINDS)
def test_the_wait_of_each_kind(make: Make, kind: str) -> None:
    """Each way to be refused names the reason and the exact wait, worked out by hand."""
    quota, state, command, wait_us = KINDS[kind]
    refusal = refused_then_granted(make(quota, state), EPOCH, command)
    assert refusal is not None
    assert refusal.reason is (Reason.RECHARGING if quota.recharge_to else Reason.EMPTY)
    assert refusal.retry_after_us == wait_us


@given(now=instants, balance=st.integers(-300, 0), after=st.floats(0, 60), tokens=st.integers(1, 60))
def test_the_wait_follows_the_phase_that_the_server_told(now: int, balance: int, after: float, tokens: int) -> None:
    """On a stepped synced bucket the wait ends exactly at one of the steps that the last reading announced."""
    now += MINUTE
    bucket = Direct(Quota(300, 5, 60.0, stepped=True, synced=True, overdraft=50))
    bucket.apply(Reconcile(Reading(balance, next_refill_in=after)), now)
    refusal = refused_then_granted(bucket, now, Acquire(tokens))
    needed = max(1, tokens - 50) - balance
    if refusal is None:
        # A step that is due this very moment has come.
        assert round(after * MICROSECONDS) == 0
    else:
        assert refusal.retry_after_us == round(after * MICROSECONDS) + (-(-needed // 5) - 1) * MINUTE


@given(us=st.one_of(st.integers(0, LIMIT // 2), st.integers(0, HOUR)))
@example(us=LIMIT // 2 - 1)
def test_seconds_name_each_microsecond(us: int) -> None:
    """A wait told in float seconds is rounded back to the very microsecond."""
    assert round(seconds(us) * MICROSECONDS) == us


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("overdraft", [0, 7])
def test_spending_by_the_wait_gets_all_the_refill_and_nothing_more(stepped: bool, overdraft: int) -> None:
    """Who always comes back exactly at `retry_after` gets over thousands of grants what was refilled, to the token."""
    quota = Quota(20, 7, 61.0, stepped=stepped, overdraft=overdraft)
    bucket = Direct(quota)
    now, granted = EPOCH, 0
    for turn in range(3000):
        tokens = turn % 5 + 1
        outcome = bucket.apply(Acquire(tokens), now)
        if outcome.granted:
            granted += tokens
        else:
            now += outcome.retry_after_us
    left = bucket.apply(Acquire(0), now).balance
    assert left is not None
    elapsed = now - EPOCH
    refilled = 7 * (elapsed // (61 * SECOND)) if stepped else 7 * elapsed // (61 * SECOND)
    # Nobody here waits for more than 5 tokens, so no part of a step, nor of a token, is lost at the cap.
    assert granted + left == 20 + refilled


FEW: Final = st.builds(
    Quota,
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1.0, 2.0]),
    stepped=st.booleans(),
    overdraft=st.sampled_from([0, 4]),
    initial=st.sampled_from([0, 1]),
)
ONE_OR_TWO: Final = st.sampled_from([1, 1, 1, 2])
WAYS: Final = st.one_of(ONE_OR_TWO, ONE_OR_TWO, st.sampled_from(["give back", "look"]))
LATER: Final = st.sampled_from([0, 1, 1, SECOND // 3, SECOND // 2, SECOND - 1, SECOND, 2 * SECOND, -SECOND])


@given(FEW, st.lists(st.tuples(WAYS, LATER), min_size=4, max_size=30))
@example(Quota(3, 1, 1.0, overdraft=4, initial=1), [(2, 0), (1, 0), (1, 0), (1, SECOND), (1, SECOND)])
@example(Quota(3, 1, 2.0, initial=0), [(1, 0), (2, 1), (1, 1), (2, SECOND), (1, 0), (2, 0)])
@example(Quota(3, 1, 2.0, initial=0), [(2, 0), (1, 1), (1, 2 * SECOND - 2), (1, 1)])
@example(Quota(1, 0, 1.0, initial=0), [(1, 0), (1, 1), (1, 1)])
def test_a_door_that_is_asked_again_and_again_tells_what_the_rules_tell(
    quota: Quota, steps: list[tuple[int | str, int]]
) -> None:
    """A door in memory remembers its last refusal; nothing that comes between makes it tell an old one."""
    clock, state = ManualClock(), None
    bucket = TokenBucket(quota, clock=clock, listener=lambda _: None)
    for way, later in steps:
        clock.advance(later / MICROSECONDS)
        now = clock.now_us()
        if way == "look":
            state, looked = transition(quota, state, now, Peek())
            assert bucket.peek() == looked.snapshot
        elif way == "give back":
            state, _ = transition(quota, state, now, Refund(str(now), 1))
            bucket.refund(1)
        elif isinstance(way, int) and way <= quota.capacity + quota.overdraft:
            state, told = transition(quota, state, now, Acquire(way))
            assert bucket.try_acquire(way) == told.decision()


@pytest.mark.deep
@either_way
def test_a_hundred_thousand_steps_do_not_drift(make: Make) -> None:
    """After 10^5 steps of uneven length the balance is what exact fractions say, to the last microsecond's part."""
    quota = Quota(10**6, 599, 60.5)
    bucket = make(quota, BucketState(balance=-(10**12), refilled_at=EPOCH))
    now = EPOCH
    for n in range(100_000):
        now += 1 + n * 7919 % 104_729
        bucket.apply(Pause(0), now)  # it stores what has flowed; a look would not
    balance, carry = bucket.stored.balance or 0, bucket.stored.carry or 0
    total = Fraction(now - EPOCH) * quota.rate / quota.rate_period_us
    assert balance + Fraction(carry, quota.rate_period_us) == total - 10**12
