"""Rules 4 and 10 on a synced bucket: our calls may overtake each other, and others spend what we believe is there."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND
from keepa_tokens import keepa_quota
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Outcome, Peek, Reconcile, Reserve, Settle
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.readings import HALF_LIFE_US
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import LOOK_AGAIN_US, MICROSECONDS
from tests.strategies import Direct

QUOTA = keepa_quota(5)
"""300 tokens, 5 a step."""


def told(balance: int, at: int, *, refill: float | None = 5, next_refill_in: float = 60.0) -> Reconcile:
    """Return what the server says at `at`: a step is a minute off."""
    return Reconcile(
        Reading(balance, next_refill_in=next_refill_in, refill=refill, capacity=300, server_time=at / MICROSECONDS)
    )


def at(balance: int, quota: Quota = QUOTA) -> Direct:
    """Return a bucket that was told its balance at EPOCH."""
    bucket = Direct(quota)
    bucket.apply(told(balance, EPOCH), EPOCH)
    return bucket


def stored(bucket: Direct, **fields: str) -> Direct:
    """Put these into what is stored of a bucket, and return it."""
    bucket.put(BucketState.from_fields({**bucket.stored.to_fields(), **fields}))
    return bucket


def ask(bucket: Direct, name: str, tokens: int, now: int = EPOCH, *, hold_for: int = 2 * MINUTE) -> Outcome:
    """Ask for a hold, without a probe."""
    return bucket.apply(Reserve(name, tokens, hold_for, probe_after_us=None), now)


# --- 4: beside calls in flight


def test_beside_calls_in_flight_what_is_covered_passes() -> None:
    """Calls that the balance covers all together are all admitted at once, and a call of 0 always."""
    bucket = at(10)
    assert [ask(bucket, str(cost), cost).granted for cost in (1, 2, 3, 4)] == [True] * 4
    assert not ask(bucket, "one more", 1).granted
    assert ask(bucket, "free", 0).granted


def test_a_plain_bucket_overdraws_beside_calls_in_flight() -> None:
    """Nobody else keeps a plain bucket's books, so no order matters there."""
    bucket = Direct(Quota(10, 1, 60.0, overdraft=20))
    assert ask(bucket, "small", 9).granted
    assert ask(bucket, "large", 16).granted


@given(
    balance=st.integers(1, 60),
    costs=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    charged_at_once=st.booleans(),
)
def test_in_whatever_order_calls_reach_the_server_it_refuses_none(
    balance: int, costs: list[int], charged_at_once: bool
) -> None:
    """A server that admits above 0 admits all that was let through together, charged at admission or at completion."""
    bucket = at(balance)
    through = [cost for number, cost in enumerate(costs) if ask(bucket, str(number), cost).granted]
    assert through
    for order in permutations(through):
        left = balance
        for cost in order:
            assert left > 0
            left -= cost if charged_at_once else 0


@given(balance=st.integers(-50, 60), small=st.integers(1, 30), large=st.integers(1, 90), hold_for=st.integers(1, 400))
def test_who_waits_beside_a_call_in_flight_is_told_the_earliest_instant(
    balance: int, small: int, large: int, hold_for: int
) -> None:
    """Refused as EMPTY: exactly when it is granted if the call in flight costs nothing. As IN_FLIGHT: then, at once."""
    bucket = at(balance)
    ask(bucket, "small", small, hold_for=hold_for * SECOND)
    refused = ask(bucket, "large", large)
    if refused.granted:
        return
    free = Direct(bucket.quota, bucket.state)
    free.apply(Cancel("small"), EPOCH)
    if refused.reason is Reason.IN_FLIGHT:
        assert refused.retry_after_us == LOOK_AGAIN_US
        assert ask(free, "large", large).granted
        return
    assert refused.reason is Reason.EMPTY
    due = EPOCH + refused.retry_after_us
    assert not ask(bucket, "large", large, due - 1).granted
    assert not ask(free, "large", large, due - 1).granted
    assert ask(free, "large", large, due).granted


# --- 10: others


def test_a_gap_is_kept_back_for_whoever_spends() -> None:
    """30 tokens gone behind our back are kept back from then on: what was granted at 1 token waits for 31."""
    bucket = at(100)
    later = EPOCH + SECOND
    bucket.apply(told(70, later), later)
    assert bucket.look(later).kept_back == 30
    assert bucket.apply(Acquire(40, probe_after_us=None), later).granted
    refused = bucket.apply(Acquire(1, probe_after_us=None), later)
    assert (refused.granted, refused.reason, refused.balance, refused.kept_back) == (False, Reason.EMPTY, 30, 30)
    assert bucket.apply(Acquire(1), later + refused.retry_after_us).granted


def test_a_refusal_by_the_server_shows_somebody_elses_spending() -> None:
    """The balance that comes with a 429 is such a reading: the next call waits for it and for as much again."""
    bucket = at(20)
    assert ask(bucket, "a", 10).granted
    refusal = told(-15, EPOCH + SECOND).reading
    bucket.apply(Settle("a", 0, refusal, refused=True), EPOCH + SECOND)
    assert bucket.look(EPOCH + SECOND).kept_back == 35


def test_gaps_add_up_to_a_third_of_the_capacity() -> None:
    """Who spends again and again has more kept back, never over a third: the rest is for us."""
    bucket, now, balance = at(300), EPOCH, 300
    for kept in (40, 80, 100, 100):
        now, balance = now + SECOND, balance - 40
        bucket.apply(told(balance, now), now)
        assert bucket.look(now).kept_back == kept


def test_an_hour_without_a_gap_halves_what_is_kept_back() -> None:
    """Readings halve it once for every whole hour since the last gap, down to nothing."""
    bucket = at(100)
    bucket.apply(told(60, EPOCH + SECOND), EPOCH + SECOND)
    since = EPOCH + SECOND
    for hours, kept in ((1, 20), (2, 10), (4, 2), (6, 0)):
        now = since + hours * HALF_LIFE_US
        bucket.apply(told(300, now - 1), now - 1)
        bucket.apply(told(300, now), now)
        assert bucket.look(now).kept_back == kept
    assert bucket.stored.kept_back is None
    assert bucket.stored.kept_back_at is None


@pytest.mark.parametrize(
    "why, gap, refill, in_flight, known",
    [
        ("a step that had come to the projection while the answer was under way", 5, 5, False, True),
        ("the plan has changed", 30, 20, False, True),
        ("a call of ours is in flight, and may have been charged", 30, 5, True, True),
        ("nothing was known before", 30, 5, False, False),
        ("there is more than was projected", -30, 5, False, True),
    ],
)
def test_a_gap_that_ours_or_the_server_explain_is_nobody_elses(
    why: str, gap: int, refill: int, in_flight: bool, known: bool
) -> None:
    """Nothing is kept back where something else than another program may have made the gap."""
    bucket = at(100) if known else Direct(QUOTA, BucketState(balance=100, refilled_at=EPOCH))
    if in_flight:
        assert ask(bucket, "a", 30).granted
    now = EPOCH + SECOND
    bucket.apply(told(100 - gap, now, refill=refill), now)
    assert bucket.look(now).kept_back == 0, why


@pytest.mark.parametrize("timed", [True, False], ids=["server-time", "no-server-time"])
def test_steps_that_came_while_an_answer_was_under_way_are_nobodys(timed: bool) -> None:
    """A reading told four minutes before its settle lies four steps below the projection; a fifth may be on its way."""
    times = (1000.0, 1001.0) if timed else (None, None)
    for balance, kept in ((90, 0), (85, 0), (84, 26)):
        bucket = Direct(QUOTA)
        bucket.apply(Reconcile(Reading(100, next_refill_in=60.0, server_time=times[0])), EPOCH)
        assert ask(bucket, "slow", 10, hold_for=10 * MINUTE).granted
        now = EPOCH + 4 * MINUTE + 3 * SECOND
        outcome = bucket.apply(Settle("slow", 10, Reading(balance, server_time=times[1])), now)
        assert outcome.drift == balance - 110
        assert bucket.look(now).kept_back == kept


@given(kept=st.integers(0, 400), tokens=st.integers(1, 500), keep=st.integers(0, 299), balance=st.integers(-400, 300))
def test_what_is_kept_back_never_makes_a_request_impossible(kept: int, tokens: int, keep: int, balance: int) -> None:
    """Whatever is stored as kept back, a request that could be admitted without it is admitted in the end."""
    bucket = stored(at(balance), kept_back=str(kept))
    outcome = bucket.apply(Peek(tokens, keep), EPOCH)
    assert outcome.reason is not Reason.TOO_LARGE
    assert outcome.retry_after_us < 100 * HOUR
    assert bucket.apply(Acquire(tokens, keep), EPOCH + outcome.retry_after_us).granted


def test_nothing_stored_keeps_back_more_than_a_third() -> None:
    """A number that damage left there counts for a third of the capacity at most; what is no number, for nothing."""
    for text, kept in (("40", 40), ("299", 100), ("4503599627370495", 100), ("NaN", 0), ("-1", 0)):
        assert stored(at(50), kept_back=text).look(EPOCH).kept_back == kept


def test_the_instant_of_a_gap_that_was_lost_or_lies_ahead_is_now() -> None:
    """Without it what is kept back still halves, an hour after the next reading."""
    for text in (None, "NaN", str(EPOCH + 100 * HOUR)):
        bucket = stored(at(50), kept_back="80", **({} if text is None else {"kept_back_at": text}))
        for now, kept in ((EPOCH + MINUTE, 80), (EPOCH + MINUTE + HALF_LIFE_US, 40)):
            bucket.apply(told(300, now), now)
            assert bucket.look(now).kept_back == kept


def test_a_plain_bucket_keeps_nothing_back() -> None:
    """A plain bucket takes no readings, and a field left by a synced quota on its key means nothing to it."""
    bucket = Direct(Quota(10, 1, 60.0), BucketState(balance=10, refilled_at=EPOCH, kept_back=3))
    assert bucket.apply(Acquire(10), EPOCH).granted
