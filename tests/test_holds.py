"""Holds: charged when they run out, at their own instant; corrected once by a late settle; ended once by id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND, commands, gaps, instants, quotas
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import lifetime_us, transition
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.units import MAX_HOLD_US, TOLERANCE_US
from tests.strategies import BUCKETS, SPARING, Bucket, Direct, Situation, reached

FIXED = Quota(100, 0, 1.0)
"""No refill: every token is accounted for."""

SLOW = Quota(100, 1, 1.0)


def balance(bucket: Bucket, now: int) -> tuple[int | None, int]:
    """Return balance and held tokens."""
    snapshot = bucket.apply(Peek(), now).snapshot
    assert snapshot is not None
    return snapshot.balance, snapshot.held


@pytest.mark.parametrize("make", BUCKETS)
def test_a_hold_sets_tokens_aside_and_settling_charges_the_actual_cost(make: Callable[[Quota], Bucket]) -> None:
    """Reserved tokens stand beside the balance; a settle takes them off and subtracts what the call cost."""
    for actual, left in ((7, 93), (10, 90), (0, 100), (25, 75), (150, -50)):
        bucket = make(FIXED)
        assert bucket.apply(Reserve("a", 10, MINUTE), 0).granted
        assert balance(bucket, 0) == (100, 10)
        assert bucket.apply(Settle("a", actual), SECOND).found
        assert balance(bucket, SECOND) == (left, 0)


@pytest.mark.parametrize("make", BUCKETS)
@pytest.mark.parametrize("ending", [Settle("a", 4), Settle("a"), Cancel("a")])
def test_a_hold_ends_once(make: Callable[[Quota], Bucket], ending: Command) -> None:
    """A settle or a cancel that arrives again, or after the other, finds nothing and changes nothing."""
    bucket = make(FIXED)
    bucket.apply(Reserve("a", 10, MINUTE), 0)
    bucket.apply(ending, 1)
    after = balance(bucket, 1)
    for late in (Settle("a", 4), Settle("a"), Cancel("a"), Settle("a", 90)):
        assert not bucket.apply(late, 2).found
        assert balance(bucket, 2) == after


@pytest.mark.parametrize("make", BUCKETS)
def test_a_reserve_that_arrives_again_sets_nothing_more_aside(make: Callable[[Quota], Bucket]) -> None:
    """A repeated reserve is granted on the hold that is there, also when nothing is left for another."""
    bucket = make(FIXED)
    assert bucket.apply(Reserve("a", 100, MINUTE), 0).granted
    assert bucket.apply(Reserve("a", 100, MINUTE), 1).granted
    assert balance(bucket, 1) == (100, 100)
    assert not bucket.apply(Reserve("b", 1, MINUTE), 1).granted


@pytest.mark.parametrize("make", BUCKETS)
@given(tokens=st.integers(1, 100), actual=st.integers(0, 200), late=st.integers(0, MINUTE - 1))
def test_a_hold_that_runs_out_is_charged_and_a_late_settle_corrects_it_once(
    make: Callable[[Quota], Bucket], tokens: int, actual: int, late: int
) -> None:
    """At its end the estimate is charged; within one more lifetime a settle corrects by the difference, once."""
    bucket = make(FIXED)
    bucket.apply(Reserve("a", tokens, MINUTE), 0)
    assert balance(bucket, MINUTE - 1) == (100, tokens)
    assert balance(bucket, MINUTE) == (100 - tokens, 0)
    assert bucket.apply(Settle("a", actual), MINUTE + late).found
    assert balance(bucket, MINUTE + late) == (100 - actual, 0)
    assert not bucket.apply(Settle("a", actual), MINUTE + late).found
    assert balance(bucket, MINUTE + late) == (100 - actual, 0)


@pytest.mark.parametrize("ending", [Settle("a", 3), Cancel("a")])
def test_a_hold_is_forgotten_after_one_more_lifetime(ending: Command) -> None:
    """A settle or cancel that is later than that finds nothing: the estimate stays charged."""
    bucket = Direct(FIXED)
    bucket.apply(Reserve("a", 10, MINUTE), 0)
    assert not bucket.apply(ending, 2 * MINUTE).found
    assert balance(bucket, 2 * MINUTE) == (90, 0)
    assert bucket.state is not None
    bucket.apply(Acquire(0), 2 * MINUTE)
    assert bucket.state.holds == {}


def test_a_late_cancel_gives_back_what_running_out_took() -> None:
    """A call that was never sent, cancelled after its hold ran out, costs nothing in the end."""
    bucket = Direct(FIXED)
    bucket.apply(Reserve("a", 10, MINUTE), 0)
    assert balance(bucket, MINUTE) == (90, 0)
    assert bucket.apply(Cancel("a"), MINUTE + 1).found
    assert balance(bucket, MINUTE + 1) == (100, 0)


@pytest.mark.parametrize("make", BUCKETS)
def test_a_hold_is_charged_at_its_own_instant_whenever_somebody_looks(make: Callable[[Quota], Bucket]) -> None:
    """The refill after a hold's end counts from its end, also when nobody comes by until long after."""
    asked, alone = make(SLOW), make(SLOW)
    for bucket in (asked, alone):
        bucket.apply(Reserve("a", 50, 10 * SECOND), 0)
    asked.apply(Acquire(0), 10 * SECOND)
    asked.apply(Acquire(0), 11 * SECOND)
    # Full until the hold runs out at 10 s; then 50 are gone, and 20 come back until 30 s.
    assert balance(asked, 30 * SECOND) == balance(alone, 30 * SECOND) == (70, 0)


@SPARING
@given(at=reached(), looks=st.lists(gaps, min_size=1, max_size=4))
def test_looking_on_the_way_changes_nothing(at: Situation, looks: list[int]) -> None:
    """Whatever holds run out on the way, a bucket that was asked for 0 tokens in between ends as one that wasn't."""
    if at.state is None:
        return
    often, once = Direct(at.quota, at.state), Direct(at.quota, at.state)
    now = at.now
    for gap in looks:
        now += gap
        often.apply(Acquire(0), now)
    once.apply(Acquire(0), now)
    assert often.state == once.state


@given(first=st.integers(1, 20 * SECOND), second=st.integers(1, 20 * SECOND), now=st.integers(0, HOUR))
def test_holds_are_charged_in_the_order_of_their_ends(first: int, second: int, now: int) -> None:
    """Two holds of a nearly full bucket: the refill between their ends is what each end left room for, by hand."""
    bucket = Direct(Quota(10, 1, 1.0))
    bucket.apply(Reserve("a", 4, first), 0)
    bucket.apply(Reserve("b", 3, second), 0)
    ends = sorted([(first, 4), (second, 3)])
    expected, at, carry = 10, 0, 0
    for end, tokens in [*(end for end in ends if end[0] <= now), (now, 0)]:
        gained, rest = divmod(end - at + carry, SECOND)
        if expected + gained >= 10:
            expected, carry = 10, 0
        else:
            expected, carry = expected + gained, rest
        expected, at = expected - tokens, end
    assert balance(bucket, now)[0] == expected


@SPARING
@given(state_at=reached(quotas(synced=False)), command=st.data())
def test_held_and_balance_say_what_the_holds_say(state_at: Situation, command: st.DataObject) -> None:
    """After any command `available` is the balance less the holds in flight, and each hold ends within its lifetime."""
    bucket = Direct(state_at.quota, state_at.state)
    bucket.apply(command.draw(commands(state_at.now)), state_at.now)
    outcome = bucket.apply(Acquire(0), state_at.now)
    state = bucket.state
    if state is None or outcome.balance is None:
        return
    held = sum(hold.tokens for hold in state.holds.values() if hold.in_flight)
    seen = bucket.apply(Peek(), state_at.now).snapshot
    assert seen is not None
    assert seen.held == held
    assert seen.available == outcome.balance - held
    for hold in state.holds.values():
        assert hold.forgotten_at > state_at.now


@given(back=st.integers(1, 2 * HOUR), life=st.integers(1, HOUR))
def test_a_clock_that_steps_back_does_not_keep_a_hold_for_longer_than_its_lifetime(back: int, life: int) -> None:
    """After any step back a hold ends within one lifetime of the new time, and the tolerance between clocks."""
    bucket = Direct(Quota(100, 0, 1.0))
    start = 3 * HOUR
    bucket.apply(Reserve("a", 10, life), start)
    now = start - back
    bucket.apply(Acquire(0), now)
    assert balance(bucket, now + life + TOLERANCE_US) == (90, 0)


def test_a_hold_cannot_be_stored_into_the_far_future() -> None:
    """A garbled end is drawn in to what a lifetime allows, and named."""
    far = Hold(10, 1, EPOCH * 2, MAX_HOLD_US)
    bucket = Direct(FIXED, BucketState(100, EPOCH, sequence=1, holds={"a": far}))
    outcome = bucket.apply(Acquire(0), EPOCH)
    assert outcome.repaired == ("hold:a",)
    assert balance(bucket, EPOCH + MAX_HOLD_US + TOLERANCE_US)[0] == 90


# --- beside readings


def synced(start: int = 100) -> Direct:
    """Return a synced bucket that was told its balance at EPOCH."""
    bucket = Direct(Quota(1000, 0, 1.0, synced=True))
    bucket.apply(Reconcile(Reading(start, server_time=1000.0, refill=0)), EPOCH)
    return bucket


def test_a_reading_leaves_the_holds_in_flight_beside_it() -> None:
    """The balance is replaced, the tokens set aside for calls under way stay set aside."""
    bucket = synced()
    bucket.apply(Reserve("a", 10, MINUTE), EPOCH)
    bucket.apply(Reconcile(Reading(70, server_time=1001.0)), EPOCH + 1)
    assert balance(bucket, EPOCH + 1) == (70, 10)


def test_a_late_settle_does_not_correct_a_balance_that_a_reading_has_replaced() -> None:
    """Once a reading has replaced the balance that a hold was charged to, nothing is given back for that charge."""
    bucket = synced()
    bucket.apply(Reserve("a", 10, MINUTE), EPOCH)
    bucket.apply(Reconcile(Reading(70, server_time=1001.0)), EPOCH + 61 * SECOND)
    assert balance(bucket, EPOCH + 61 * SECOND) == (70, 0)
    bucket.apply(Settle("a", 4), EPOCH + 62 * SECOND)
    # What it cost may have come after that reading: it is charged, the estimate isn't given back.
    assert balance(bucket, EPOCH + 62 * SECOND) == (66, 0)


def test_a_hold_that_runs_out_while_nothing_is_known_charges_nothing() -> None:
    """There is no balance to charge; the next reading has the cost."""
    bucket = Direct(Quota(100, 0, 1.0, synced=True))
    outcome = bucket.apply(Reserve("a", 10, SECOND, scout=True), EPOCH)
    assert outcome.scout
    assert balance(bucket, EPOCH + 2 * SECOND) == (None, 0)
    assert bucket.apply(Settle("a", 3, Reading(50)), EPOCH + 2 * SECOND - 1).found
    assert balance(bucket, EPOCH + 2 * SECOND) == (50, 0)


# --- refunds and the lifetime of a state


@pytest.mark.parametrize("make", BUCKETS)
def test_a_refund_counts_once_and_not_above_capacity(make: Callable[[Quota], Bucket]) -> None:
    """The same refund again finds nothing; another fills up to capacity and no further; neither lowers a balance."""
    bucket = make(Quota(100, 0, 1.0, initial=50))
    assert bucket.apply(Refund("r", 30, 0), 0).balance == 80
    again = bucket.apply(Refund("r", 30, 0), 0)
    assert (again.found, again.balance) == (False, 80)
    assert bucket.apply(Refund("s", 30, 0), 0).balance == 100
    above = make(Quota(100, 0, 1.0))
    above.put(BucketState(balance=150, refilled_at=0))
    assert above.apply(Refund("r", 30, 0), 0).balance == 150


@pytest.mark.parametrize("ending", [Settle("a", 1), Cancel("a")])
def test_what_is_given_back_late_fills_up_to_capacity(ending: Settle | Cancel) -> None:
    """A hold that ran out and was refilled since gives nothing back above capacity, as if it had ended in time."""
    bucket = Direct(Quota(7, 7, 1.0))
    bucket.apply(Reserve("a", 4, 10 * SECOND), EPOCH)
    bucket.apply(Acquire(3), EPOCH + 10 * SECOND)
    assert bucket.apply(ending, EPOCH + 12 * SECOND).balance == 7
    bucket.apply(Reserve("b", 4, 10 * SECOND), EPOCH + 12 * SECOND)
    assert bucket.apply(Acquire(3), EPOCH + 22 * SECOND).balance == 0
    late = bucket.apply(replace(ending, id="b"), EPOCH + 22 * SECOND)
    assert late.balance == (3 if isinstance(ending, Settle) else 4)


@pytest.mark.parametrize("issued, counts", [(0, True), (-589 * SECOND, True), (-590 * SECOND, False), (5, True)])
def test_a_refund_that_was_issued_too_long_ago_might_be_a_repeat(issued: int, counts: bool) -> None:
    """Older than ids are remembered, a refund is refused; ahead by no more than the tolerance, it counts."""
    bucket = Direct(Quota(100, 0, 1.0, initial=0))
    now = EPOCH
    assert bucket.apply(Refund("r", 5, now + issued), now).found is counts
    assert not bucket.apply(Refund("s", 5, now + TOLERANCE_US + 1), now).found


@SPARING
@given(at=reached(quotas(synced=False, stepped=False), most_steps=12), data=st.data(), idle=gaps)
def test_dropping_a_plain_state_at_its_lifetime_changes_nothing(at: Situation, data: st.DataObject, idle: int) -> None:
    """A plain bucket kept past its lifetime answers every command as a new one does: it was full, with no holds."""
    if at.state is None:
        return
    state, _ = transition(at.quota, at.state, at.now, Acquire(0))
    assert state is not None
    life = lifetime_us(at.quota, state, at.now)
    if life is None or at.quota.refill == 0:
        return
    now = at.now + life + idle
    command = data.draw(commands(now))
    kept = transition(at.quota, state, now, command)[1]
    fresh = transition(at.quota, None, now, command)[1]
    assert kept == fresh


@SPARING
@given(at=reached(quotas(synced=False, stepped=True, least_refill=1)), data=st.data(), idle=gaps)
def test_dropping_a_stepped_state_at_its_lifetime_only_forgets_the_phase(
    at: Situation, data: st.DataObject, idle: int
) -> None:
    """The same for stepped refill, but for when the next step comes: a period from the first use, so not earlier."""
    if at.state is None:
        return
    state, _ = transition(at.quota, at.state, at.now, Acquire(0))
    assert state is not None
    life = lifetime_us(at.quota, state, at.now)
    if life is None:
        return
    now = at.now + life + idle
    command = data.draw(commands(now))
    old = transition(at.quota, state, now, command)[1]
    new = transition(at.quota, None, now, command)[1]
    assert replace_times(old) == replace_times(new)
    assert old.retry_after_us <= new.retry_after_us
    assert old.place_us <= new.place_us


def replace_times(outcome: Outcome) -> tuple[object, ...]:
    """Return what was decided, without when."""
    return outcome.granted, outcome.reason, outcome.balance, outcome.found, outcome.probe


@pytest.mark.parametrize("quota", [Quota(10, 1, 1.0, initial=9), Quota(10, 1, 1.0, initial=0, synced=True)])
def test_a_bucket_that_begins_below_its_capacity_is_kept_for_ever(quota: Quota) -> None:
    """A new one would begin lower, so the state has no end."""
    state, _ = transition(quota, None, EPOCH, Acquire(1))
    assert state is not None
    assert lifetime_us(quota, state, EPOCH) is None


def test_a_bucket_with_holds_or_debts_is_kept_until_they_are_gone() -> None:
    """The lifetime reaches past the instant at which the bucket is full, and past the memory of its last hold."""
    bucket = Direct(Quota(10, 1, 1.0))
    bucket.apply(Reserve("a", 10, 10 * MINUTE), EPOCH)
    assert bucket.state is not None
    life = lifetime_us(bucket.quota, bucket.state, EPOCH)
    assert life is not None
    assert 20 * MINUTE <= life <= 20 * MINUTE + MINUTE
    bucket = Direct(Quota(10, 1, 1.0), BucketState(balance=-990, refilled_at=EPOCH))
    assert bucket.state is not None
    life = lifetime_us(bucket.quota, bucket.state, EPOCH)
    assert life is not None
    assert 1000 * SECOND <= life <= 1000 * SECOND + MINUTE


def test_an_unknown_bucket_is_kept_until_its_failed_probe_would_have_filled_it() -> None:
    """Who is told to come back when a failed probe has let a token flow in finds it, though nobody came in between."""
    quota = Quota(10, 5, 60.5, stepped=True, synced=True)
    state, told = transition(quota, None, EPOCH, Acquire(1))
    assert state is not None
    assert (told.reason, told.probe, told.retry_after_us) == (Reason.UNKNOWN, True, 80_500_000)
    life = lifetime_us(quota, state, EPOCH)
    assert life is not None
    # 20 s of the claim, two steps from 0 to 10, and the margin.
    assert life == (20 + 121 + 10) * SECOND
    storage = MemoryStorage()
    assert storage.apply("k", quota, Acquire(1), now_us=EPOCH) == told
    storage.apply("others", quota, Peek(), now_us=EPOCH + told.retry_after_us - 1)
    assert storage.apply("k", quota, Acquire(1), now_us=EPOCH + told.retry_after_us).granted


@given(now=instants)
def test_a_refill_of_0_keeps_a_state_for_a_day(now: int) -> None:
    """Without refill there is no instant at which a plain bucket is full; it is kept for a day from its last use."""
    state, _ = transition(FIXED, None, now, Acquire(1))
    assert state is not None
    assert lifetime_us(FIXED, state, now) == 24 * HOUR
