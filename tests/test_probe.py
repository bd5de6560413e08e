"""Rule 8: one worker at a time is sent to the server; a claim ends by the clock alone; failures back off, bounded."""

from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND, gaps, instants
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Reconcile
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import CLAIM_US, MAX_BACKOFF_US, NEVER, PROBE_AFTER_US, TOLERANCE_US
from tests.stories import Story, each_story
from tests.strategies import Bucket, Direct, Make, either_way

QUOTA = Quota(1200, 20, 60.0, stepped=True, synced=True)
NET_0 = Quota(1200, 0, 60.0, stepped=True, synced=True)


def probed(bucket: Bucket, now: int, tokens: int = 1) -> bool:
    outcome = bucket.apply(Acquire(tokens), now)
    assert not outcome.granted
    return outcome.probe


def empty(make: Make = Direct) -> Bucket:
    """Return a bucket that the server said at EPOCH is empty, and that doesn't refill."""
    bucket = make(NET_0)
    bucket.apply(Reconcile(Reading(-5, server_time=1000.0)), EPOCH)
    return bucket


SMOOTH: Final = Quota(1200, 20, 60.0, synced=True)
PLAIN: Final = Quota(10, 0, 1.0, initial=0)

STORIES: Final = """
who gets tokens isn't sent anywhere, however old the reading, nor as a scout: QUOTA
    0 read 500; 36000s take 1 -> GRANTED !probe, hold a 1 life=60s scout=1 -> GRANTED !scout !probe
a refusal on a reading calls for a probe from the age on that the caller said, and not earlier: NET_0
    0 read -5 1000; (0|1s-1|600s-1|7200s-1) take 1 probe=(1|1s|600s|7200s) -> EMPTY !probe
    (1|1s|600s|7200s) take 1 probe=(1|1s|600s|7200s) -> EMPTY probe
who names no age is never sent: NET_0
    0 read -5 1000; 80000s take 1 probe=- -> EMPTY !probe
on a plain bucket there is no server to ask: PLAIN
    0 take 1 -> EMPTY !probe, claim -> !probe
who wants to ask rarely isn't made to ask more often by failures: NET_0
    0 read -5 1000; 7200s take 1 probe=7200s -> probe
    14420s-1 take 1 probe=7200s -> !probe; 14420s take 1 probe=7200s -> probe
a reading ends the claim and forgives the failures, so that the next one is the first again: NET_0
    0 read -5 1000; 600s claim; 620s claim; 640s claim; 660s read -7 2000
    1260s-1 take 1 -> EMPTY !probe; 1260s take 1 -> EMPTY probe; 1880s-1 take 1 -> EMPTY !probe; 1880s take 1 -> probe
# The last reading is of a probe that was only slow, and still tells the truth.
a failed probe of an unknown bucket starts it at 0, and it refills: SMOOTH
    0 take 2 -> UNKNOWN probe in=1.5s; 5s peek 2 -> bound=21s; 20s-1 take 2 -> UNKNOWN in=1
    20s take 2 -> EMPTY balance=0; 26s-1 take 2 -> EMPTY; 26s take 2 -> GRANTED; 27s read -300 -> balance=-300
one request is let through on the claim as the scout, the next is refused; its answer tells all: QUOTA
    0 hold a 40 life=60s scout=1 -> GRANTED scout probe, hold b 1 life=60s scout=1 -> !granted !scout !probe
    1s settle a 0 says=-12 at=5 refused=1 -> balance=-12 probe_until=-
more than the reported capacity is too large, and an old reading of it is asked after: QUOTA
    0 read 300 1 capacity=300, take 301 -> TOO_LARGE in=4503599627370496 !probe; 600s take 301 -> TOO_LARGE probe
    600s read 301 2 capacity=1200, take 301 -> GRANTED
a claim by hand is given to one at a time, and ends by itself: QUOTA
    0 claim -> probe; 20s-1 claim -> !probe, take 1 -> UNKNOWN !probe; 20s claim -> probe
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_the_probe_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


@either_way
@given(workers=st.integers(2, 30), now=instants, spread=st.integers(0, CLAIM_US - 1))
def test_one_of_many_workers_is_sent_to_the_server(make: Make, workers: int, now: int, spread: int) -> None:
    """However many ask an unknown bucket while a claim lasts, one gets it; the others are told when to come back."""
    bucket = make(QUOTA)
    outcomes = [bucket.apply(Acquire(1), now + spread * n // workers) for n in range(workers)]
    assert [outcome.probe for outcome in outcomes] == [True] + [False] * (workers - 1)
    assert {outcome.reason for outcome in outcomes} == {Reason.UNKNOWN}
    assert all(outcome.retry_after_us < NEVER for outcome in outcomes)


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


@given(now=instants, late=gaps)
def test_it_starts_at_the_end_of_the_claim_whenever_somebody_looks(now: int, late: int) -> None:
    """Nobody needs to come by when the claim ends: the refill counts from there, up to what has come since."""
    bucket = Direct(Quota(10**6, 1, 1.0, synced=True))
    assert probed(bucket, now)
    seen = bucket.apply(Acquire(0), now + CLAIM_US + late)
    assert seen.balance == late // SECOND


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
