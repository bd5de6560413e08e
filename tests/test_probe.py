"""Rule 8: one worker at a time is sent to the server; a claim ends by the clock alone; failures back off, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND, gaps, instants
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, ClaimProbe, Reconcile, Reserve, Settle
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import CLAIM_US, LOOK_AGAIN_US, MAX_BACKOFF_US, NEVER, PROBE_AFTER_US, TOLERANCE_US
from tests.strategies import Bucket, Direct, Make, either_way

QUOTA = Quota(1200, 20, 60.0, stepped=True, synced=True)
NET_0 = Quota(1200, 0, 60.0, stepped=True, synced=True)


def probed(bucket: Bucket, now: int, tokens: int = 1) -> bool:
    """Make an attempt and return whether it was sent to the server."""
    outcome = bucket.apply(Acquire(tokens), now)
    assert not outcome.granted
    return outcome.probe


def empty(make: Make = Direct) -> Bucket:
    """Return a bucket that the server said at EPOCH is empty, and that doesn't refill."""
    bucket = make(NET_0)
    bucket.apply(Reconcile(Reading(-5, server_time=1000.0)), EPOCH)
    return bucket


@either_way
@given(workers=st.integers(2, 30), now=instants, spread=st.integers(0, CLAIM_US - 1))
def test_one_of_many_workers_is_sent_to_the_server(make: Make, workers: int, now: int, spread: int) -> None:
    """However many ask an unknown bucket while a claim lasts, one gets it; the others are told when to come back."""
    bucket = make(QUOTA)
    outcomes = [bucket.apply(Acquire(1), now + spread * n // workers) for n in range(workers)]
    assert [outcome.probe for outcome in outcomes] == [True] + [False] * (workers - 1)
    assert {outcome.reason for outcome in outcomes} == {Reason.UNKNOWN}
    assert all(outcome.retry_after_us < NEVER for outcome in outcomes)


def test_a_grant_never_calls_for_a_probe() -> None:
    """Who gets tokens isn't sent anywhere, however old the reading, nor as a scout."""
    bucket = Direct(QUOTA)
    bucket.apply(Reconcile(Reading(500)), EPOCH)
    for command in (Acquire(1), Reserve("a", 1, MINUTE, scout=True)):
        outcome = bucket.apply(command, EPOCH + 10 * HOUR)
        assert (outcome.granted, outcome.scout, outcome.probe) == (True, False, False)


@pytest.mark.parametrize("after_us", [1, SECOND, 10 * MINUTE, 2 * HOUR])
def test_a_refusal_on_an_old_reading_calls_for_a_probe_at_the_callers_age_and_not_earlier(after_us: int) -> None:
    """A reading is old from `probe_after_us` on, to the microsecond; None never sends anybody."""
    bucket = empty()
    assert not bucket.apply(Acquire(1, probe_after_us=after_us), EPOCH + after_us - 1).probe
    assert not bucket.apply(Acquire(1, probe_after_us=None), EPOCH + 100 * HOUR).probe
    bucket = empty()
    assert bucket.apply(Acquire(1, probe_after_us=after_us), EPOCH + after_us).probe


def test_a_plain_bucket_never_calls_for_a_probe() -> None:
    """There is no server to ask."""
    bucket = Direct(Quota(10, 0, 1.0, initial=0))
    assert not probed(bucket, EPOCH)
    assert not bucket.apply(ClaimProbe(), EPOCH).probe


@either_way
def test_claims_that_end_without_a_reading_back_off_and_the_backoff_is_bounded(make: Make) -> None:
    """By the clock alone, as where a prober crashed: each doubles the pause until the next, up to an hour."""
    bucket = empty(make)
    now = EPOCH + PROBE_AFTER_US
    assert probed(bucket, now)
    pauses = []
    for _ in range(40):
        seen = bucket.look(now + CLAIM_US)
        bound = round(seen.bound * 10**6)
        assert not probed(bucket, now + CLAIM_US + bound - 1)
        now += CLAIM_US + bound
        assert probed(bucket, now)
        pauses.append(bound)
        bucket.restart()  # the prober is gone and has told nobody
    assert pauses[:4] == [PROBE_AFTER_US, 2 * PROBE_AFTER_US, 4 * PROBE_AFTER_US, MAX_BACKOFF_US]
    assert set(pauses[3:]) == {MAX_BACKOFF_US}


def test_a_probe_interval_above_an_hour_is_the_backoff() -> None:
    """Who wants to ask rarely isn't made to ask more often by failures."""
    bucket = empty()
    day = 24 * HOUR
    now = EPOCH + day
    assert bucket.apply(Acquire(1, probe_after_us=day), now).probe
    assert not bucket.apply(Acquire(1, probe_after_us=day), now + CLAIM_US + day - 1).probe
    assert bucket.apply(Acquire(1, probe_after_us=day), now + CLAIM_US + day).probe


def test_a_reading_ends_the_claim_and_forgives_the_failures() -> None:
    """After a reading the next probe comes at the reading's age, and its failure is the first again."""
    bucket = empty()
    now = EPOCH + PROBE_AFTER_US
    for _ in range(3):
        bucket.apply(ClaimProbe(), now)
        now += CLAIM_US
    bucket.apply(Reconcile(Reading(-7, server_time=2000.0)), now)
    assert not probed(bucket, now + PROBE_AFTER_US - 1)
    assert probed(bucket, now + PROBE_AFTER_US)
    assert not probed(bucket, now + 2 * PROBE_AFTER_US + CLAIM_US - 1)
    assert probed(bucket, now + 2 * PROBE_AFTER_US + CLAIM_US)


@either_way
def test_a_failed_probe_of_an_unknown_bucket_starts_it_at_0(make: Make) -> None:
    """From the end of the claim on an unknown bucket has 0 tokens and refills: slow, never stuck."""
    bucket = make(Quota(1200, 20, 60.0, synced=True))
    first = bucket.apply(Acquire(2), EPOCH)
    assert first.probe
    assert first.retry_after_us == LOOK_AGAIN_US
    assert bucket.look(EPOCH + 5 * SECOND, 2).bound == 21.0
    assert bucket.apply(Acquire(2), EPOCH + CLAIM_US - 1).reason is Reason.UNKNOWN
    known = bucket.apply(Acquire(2), EPOCH + CLAIM_US)
    assert (known.reason, known.balance) == (Reason.EMPTY, 0)
    assert not bucket.apply(Acquire(2), EPOCH + CLAIM_US + 6 * SECOND - 1).granted
    assert bucket.apply(Acquire(2), EPOCH + CLAIM_US + 6 * SECOND).granted
    # One that was only slow still tells the truth.
    assert bucket.apply(Reconcile(Reading(-300)), EPOCH + CLAIM_US + 7 * SECOND).balance == -300


@given(now=instants, late=gaps)
def test_it_starts_at_the_end_of_the_claim_whenever_somebody_looks(now: int, late: int) -> None:
    """Nobody needs to come by when the claim ends: the refill counts from there, up to what has come since."""
    bucket = Direct(Quota(10**6, 1, 1.0, synced=True))
    assert probed(bucket, now)
    seen = bucket.apply(Acquire(0), now + CLAIM_US + late)
    assert seen.balance == late // SECOND


@either_way
def test_one_request_is_let_through_as_the_scout(make: Make) -> None:
    """On the claim one reserve goes through though nothing is known; the next is refused; its answer tells all."""
    bucket = make(QUOTA)
    first = bucket.apply(Reserve("a", 40, MINUTE, scout=True), EPOCH)
    assert (first.granted, first.scout, first.probe) == (True, True, True)
    second = bucket.apply(Reserve("b", 1, MINUTE, scout=True), EPOCH)
    assert (second.granted, second.scout, second.probe) == (False, False, False)
    outcome = bucket.apply(Settle("a", 0, Reading(-12, server_time=5.0), refused=True), EPOCH + SECOND)
    assert outcome.balance == -12
    assert bucket.stored.probe_until is None


def test_more_than_the_reported_capacity_is_too_large_and_calls_for_a_probe() -> None:
    """After a plan went down a large request can't be admitted; an old reading is asked after, the wait is endless."""
    bucket = Direct(QUOTA)
    bucket.apply(Reconcile(Reading(300, capacity=300, server_time=1.0)), EPOCH)
    outcome = bucket.apply(Acquire(301), EPOCH)
    assert (outcome.reason, outcome.retry_after_us, outcome.probe) == (Reason.TOO_LARGE, NEVER, False)
    assert bucket.apply(Acquire(301), EPOCH + PROBE_AFTER_US).probe
    bucket.apply(Reconcile(Reading(301, capacity=1200, server_time=2.0)), EPOCH + PROBE_AFTER_US)
    assert bucket.apply(Acquire(301), EPOCH + PROBE_AFTER_US).granted


@either_way
def test_a_claim_by_hand_is_given_to_one_at_a_time(make: Make) -> None:
    """Who asks for the claim gets it if nobody has it; it ends by itself."""
    bucket = make(QUOTA)
    assert bucket.apply(ClaimProbe(), EPOCH).probe
    assert not bucket.apply(ClaimProbe(), EPOCH + CLAIM_US - 1).probe
    assert not probed(bucket, EPOCH + CLAIM_US - 1)
    assert bucket.apply(ClaimProbe(), EPOCH + CLAIM_US).probe


@given(claim=st.integers(0, 2**52 - 1), failures=st.integers(0, 2**52 - 1), now=instants)
def test_no_stored_claim_keeps_the_probe_for_ever(claim: int, failures: int, now: int) -> None:
    """Whatever claim and failures are stored, an unknown bucket is known or asked for by a claim's end."""
    state = BucketState(None, now, reading_at=None, probe_until=claim, probe_failures=failures)
    bucket = Direct(QUOTA, state)
    first = bucket.apply(Acquire(1), now)
    assert first.granted or first.probe or first.retry_after_us <= CLAIM_US + TOLERANCE_US + 2 * MINUTE
    assert bucket.apply(Acquire(0), now + CLAIM_US + TOLERANCE_US).balance is not None


@given(ahead=st.integers(1, 2**51), now=st.integers(HOUR, EPOCH))
def test_a_reading_from_the_future_does_not_stay_young_for_ever(ahead: int, now: int) -> None:
    """A reading stored too far ahead of the clock is none; one within the tolerance ages as any other."""
    state = BucketState(balance=-5, refilled_at=now, reading_at=now + ahead)
    bucket = Direct(NET_0, state)
    first = bucket.apply(Acquire(1), now)
    assert first.probe is (ahead > TOLERANCE_US)
    assert first.probe or bucket.apply(Acquire(1), now + PROBE_AFTER_US + ahead).probe
