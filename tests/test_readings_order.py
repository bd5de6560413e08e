"""Rule 7: which readings are taken, by the order of the calls and the server's own time, never by comparing clocks."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, MINUTE, SECOND, quotas, readings, sound_states
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Outcome, Reconcile, Reserve, Settle, Verdict
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import REORDER_US
from tests.stories import Story, each_story
from tests.strategies import SPARING, Direct, Make, Situation, either_way, reached

QUOTA = Quota(1000, 0, 60.0, synced=True)


def told(balance: int, at: float | None = None) -> Reading:
    return Reading(balance, server_time=at)


def at(reading: Reading) -> Direct:
    bucket = Direct(QUOTA)
    assert bucket.apply(Reconcile(reading), EPOCH).reading is Verdict.TAKEN
    return bucket


def opened(bucket: Direct, *names: str) -> None:
    for name in names:
        assert bucket.apply(Reserve(name, 10, 10 * MINUTE), EPOCH).granted


def look(bucket: Direct) -> Snapshot:
    """Return the bucket as it stands a second later."""
    return bucket.look(EPOCH + SECOND)


def settled(bucket: Direct, name: str, actual: int, reading: Reading | None) -> Outcome:
    return bucket.apply(Settle(name, actual, reading), EPOCH + SECOND)


STEPS: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
RECHARGING: Final = Quota(100, 1, 1.0, synced=True, recharge_to=50)

STORIES: Final = """
an unknown bucket takes any reading, with a server's time or without, old or not; it says nothing of others: QUOTA
    0 read (5|-5 0|7 1) -> TAKEN balance=(5|-5|7) kept_back=0
nor does it matter that a call brings it: QUOTA
    0 hold a 1 life=60s scout=1, settle a 1 says=-3 at=5 -> TAKEN
# By the order of the calls alone, whatever the server's clock says: later, equal, nothing, earlier.
a call opened after the last reading brings a newer one: QUOTA
    0 read 100 1000, hold a 10 life=600s; 1s settle a 10 says=90 at=(1001|1000|-|10) -> TAKEN balance=90
an older envelope that arrives late charges and changes nothing, for the newer one had its cost: QUOTA
    0 read 100 1000, hold a 10 life=600s, hold b 10 life=600s; 1s settle b 10 says=80 at=1002
    1s settle a 10 says=90 at=1001 refill=7 capacity=5 next_refill_in=3 -> STALE balance=80
    1s settle a 10 -> !found balance=80, peek -> reported_refill=- reported_capacity=-
beside a garbled server's time the lower balance counts once; with the next word the order is known again: QUOTA
    0 read 100 1000; 1 put server_time=@34560000s; 1s read 107 1001 -> balance=100
    2s read 107 1002 -> TAKEN balance=107
two calls under way at once come back as the server answered: both are taken, by its time: QUOTA
    0 read 100 1000, hold a 10 life=600s, hold b 10 life=600s
    1s settle b 10 says=90 at=1001, settle a 10 says=80 at=1002 -> TAKEN
of two readings within one millisecond of the server's the lower balance has both costs: QUOTA
    0 read 100 1000, hold a 10 life=600s, hold b 10 life=600s
    1s settle (a|b) 10 says=(90|80) at=1001, settle (b|a) 10 says=(80|90) at=1001 -> balance=80
# It can't be put in order, so it isn't adopted, and its cost is charged rather than lost.
where the last reading has no server's time, a call opened before it charges its cost: QUOTA
    0 read 100, hold a 10 life=600s, hold b 10 life=600s
    1s settle b 10 says=80, settle a 7 says=90 at=(-|1001) -> STALE balance=73
# The next by the server's time lay between: A's answer was told before B's, and doesn't have B's cost.
a reading without a server's time was told when it came, and what was told before that is no news: QUOTA
    0 read 100 1000, hold a 10 life=600s, hold b 10 life=600s; 20s settle b 10 says=80 -> TAKEN server_time=1020s
    20s hold c 10, settle c 0 says=80 -> TAKEN server_time=1020s server_time_at=@20s
    21s settle a 10 says=90 at=(1010|1016|1021) -> balance=(80|80|90)
a settle that comes again may still bring a reading, but charges nothing: QUOTA
    0 read 100 1000, hold a 10 life=600s; 1s settle a 10 says=90 at=1001
    1s settle a 10 says=90 at=1001 -> !found STALE balance=90, settle a 10 says=70 at=1002 -> balance=70 drift=-20
a settle that is sent again without a server's time is no news either: what others spent since stays spent: QUOTA
    0 read 100, hold a 10 life=600s, hold b 10 life=600s
    1s settle a 10 says=90, settle b 10, settle a 10 says=90 -> STALE balance=80
    121s+1 settle a 10 says=70 -> TAKEN balance=70
# A's answer, by a clock ahead, came first; B's cost came after it: 40 are left, not 90.
of two front ends five seconds apart the lower balance counts: QUOTA
    0 read 100 1000, hold a 10 life=600s, hold b 10 life=600s; 1s settle a 10 says=90 at=1001 -> balance=90
    1s settle b 50 says=40 at=996 -> balance=40 drift=-50 held=0
# C was opened after A's answer was applied, and answered before B: B's lower balance has C's cost too.
a call opened before a lower reading is not newer than that: QUOTA
    0 read 100 1000, hold a 10 life=600s, hold b 10 life=600s; 1s settle a 3 says=97 at=1001, hold c 10 life=600s
    1s settle b 8 says=84 at=1001 -> balance=84, settle c 5 says=92 at=1001 -> balance=84
# The first time that is no longer the old one's tells no order; it replaces that, so that the next one does.
a server that was in 2100 once is followed again: QUOTA
    0 read 100 4102444800, hold a 10 life=600s; 1s read 95 1001; 2s read 97 1002 -> TAKEN balance=97
# Told 200 s after the reading before it and settled 100 s later: its server's time is that old, none jumped.
an answer that was long under way was told when the server says: QUOTA
    0 read 100 1000, hold a 10 life=600s; 300s settle a 10 says=90 at=1200, read 95 1300 -> TAKEN balance=95
# The last reading stays as old as it is, so else every refusal after it would probe, however the last one ended.
an answer that tells no order sends nobody to the server at once: QUOTA
    0 read 10 1000, hold a 10 life=1200s, read 0 1001; 660s take 1 -> probe
    661s settle a 0 says=10 at=1000.5 -> STALE balance=0 probe_until=@661s, take 1 -> !probe
    1261s-1 take 1 -> !probe; 1261s take 1 -> probe
and ends a claim once: QUOTA
    0 read 0 1001; 10s take 1 probe=5s -> probe; 11s read 9 1000.5 -> STALE probe_until=@11s version=3
    11s read 9 1000.5 -> STALE version=3
if nobody ever gave a server's time, the latest to arrive counts: QUOTA
    0 read 100, read 200 -> balance=200
what the server says of its terms rules from then on, and what it leaves out stays as it was: STEPS
    0 read 0 1 next_refill_in=10 refill=20 period=30 capacity=1200 -> capacity=1200 refill=20 period=30s
    0 take 21 -> in=40s; 1s read 1 2, peek -> capacity=1200 refill=20 period=30s
a net refill above 1 loses its fraction, one between 0 and 1 is one token in several periods: STEPS
    0 read 0 refill=(0.25|0.3|1.9|5) -> refill=(1|1|1|5) period=(240s|240s|60s|60s)
what came until a reading is in its balance, whatever periods were told, and the next step comes when it says: STEPS
    0 read 9, read 0 period=600 next_refill_in=(10|500), peek -> balance=0
    (10s|500s)-1 peek -> balance=0; (10s|500s) peek -> balance=5
so it is after a second told before: STEPS
    0 read 0 refill=5 period=1, read 0 next_refill_in=0.5, peek -> balance=0; 0.5s-1 peek -> balance=0
    0.5s peek -> balance=5
after a period that was stretched: STEPS
    0 read 0 next_refill_in=300; 200s read 0, peek -> balance=0; 240s-1 peek -> balance=0; 240s peek -> balance=5
after a longer one: STEPS
    0 read 0 refill=5 period=600 next_refill_in=600; 500s read 0 refill=5, peek -> balance=0
    540s-1 peek -> balance=0; 540s peek -> balance=5
of one token in several periods: STEPS
    0 read 0 refill=0.25, read 0 next_refill_in=60, peek -> balance=0; 240s-1 peek -> balance=0; 240s peek -> balance=1
and a step that is due now has come: STEPS
    0 read 9, read 0 next_refill_in=0, peek -> balance=5; 60s-1 peek -> balance=5; 60s peek -> balance=10
a reading leaves out no step that is still to come, of a microsecond either: STEPS period=0.000001
    0 read 5 -> balance=5; 1 peek -> balance=10
the news that the balance is low begins no recharge, only a request does that: RECHARGING
    0 read 0 1000 -> closed_until=-; 3s take 3 -> GRANTED
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_readings_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


FRESH, LOWER, SHUT_OUT = (True, True), (False, True), (False, False)
"""Whether a balance that isn't lower is taken, and whether a lower one is."""


@pytest.mark.parametrize(
    "time, age_us, taken",
    [
        pytest.param(1001.0, 0, FRESH, id="later-by-the-server"),
        pytest.param(1000.0, 0, LOWER, id="equal"),
        pytest.param(995.0, 0, LOWER, id="five-seconds-earlier"),
        pytest.param(994.999999, 0, SHUT_OUT, id="earlier"),
        pytest.param(1060.0, 0, FRESH, id="a-minute-more-than-our-clock"),
        pytest.param(1060.000001, 0, LOWER, id="over-a-minute-more"),
        pytest.param(1000.000001, 60 * SECOND, FRESH, id="later-and-under-a-minute-less"),
        pytest.param(1000.0, 60 * SECOND, LOWER, id="equal-a-minute-later"),
        pytest.param(1000.000001, 60 * SECOND + 1, FRESH, id="later-and-a-minute-less"),
        pytest.param(1000.000001, 60 * SECOND + 2, LOWER, id="over-a-minute-less"),
        pytest.param(0.0, 60 * SECOND, LOWER, id="years-less"),
        pytest.param(999.0, REORDER_US, LOWER, id="earlier-at-two-minutes"),
        pytest.param(999.0, REORDER_US + 1, FRESH, id="earlier-but-ours-is-older-than-two-minutes"),
        pytest.param(None, 0, SHUT_OUT, id="no-time"),
        pytest.param(None, REORDER_US, SHUT_OUT, id="no-time-at-two-minutes"),
        pytest.param(None, REORDER_US + 1, FRESH, id="no-time-but-ours-is-old"),
    ],
)
def test_a_reading_outside_any_call(time: float | None, age_us: int, taken: tuple[bool, bool]) -> None:
    """A probe's or an observed reading needs a later server's time, or a last reading older than two minutes.

    Where the server's time tells no order the lower of projection and reading counts.
    """
    for balance, is_taken in zip((200, 100, 50), (taken[0], *taken), strict=True):
        bucket = at(told(100, 1000.0))
        outcome = bucket.apply(Reconcile(told(balance, time)), EPOCH + age_us)
        assert (outcome.reading is Verdict.TAKEN) is is_taken
        assert (outcome.balance, outcome.drift) == ((balance, balance - 100) if is_taken else (100, None))


@given(
    offset=st.integers(-1_000_000, 1_000_000).map(float),
    now=st.integers(10**12, EPOCH),
    order=st.permutations((0, 1, 2)),
)
def test_a_server_clock_that_is_off_changes_nothing(offset: float, now: int, order: list[int]) -> None:
    """The server's time is only compared with itself: any offset gives the same waits and the same balance."""
    results = set()
    for off in (0.0, offset):
        bucket = Direct(Quota(1000, 20, 60.0, stepped=True, synced=True))
        bucket.apply(Reconcile(Reading(9, server_time=2_000_000.0 + off, next_refill_in=30.0)), now)
        for name in order:
            bucket.apply(Reserve(str(name), 3, MINUTE), now + SECOND)
        for name in order:
            reading = Reading(8 - name, server_time=2_000_001.0 + name + off, next_refill_in=28.0)
            bucket.apply(Settle(str(name), 1, reading), now + 2 * SECOND)
        refusal = bucket.apply(Acquire(50), now + 3 * SECOND)
        results.add((refusal.balance, refusal.retry_after_us))
    assert len(results) == 1
    assert results.pop() == (6, 27 * SECOND + 2 * MINUTE)


@SPARING
@given(data=st.data(), reading=readings, quota=quotas(synced=True))
def test_a_reading_that_is_taken_is_the_balance(data: st.DataObject, reading: Reading, quota: Quota) -> None:
    """A reading that is taken becomes the balance, and ends the probe if it is news; another one changes nothing."""
    state: BucketState = data.draw(sound_states(quota, EPOCH))
    bucket, untouched = Direct(quota, state), Direct(quota, state)
    before = untouched.apply(Acquire(0), EPOCH)
    outcome = bucket.apply(Reconcile(reading), EPOCH)
    if outcome.reading is Verdict.STALE:
        assert outcome.balance == before.balance
        for later in (EPOCH, EPOCH + 5 * MINUTE):
            assert bucket.apply(Acquire(5, probe_after_us=None), later) == untouched.apply(
                Acquire(5, probe_after_us=None), later
            )
        return
    assert outcome.balance == reading.balance
    if bucket.stored.reading_at == EPOCH:
        assert bucket.stored.probe_until is None
        assert not bucket.stored.probe_failures
    else:
        assert before.balance is not None
        assert reading.balance < before.balance


@SPARING
@given(at_state=reached(quotas(synced=False)), reading=readings)
def test_a_plain_bucket_follows_no_reading(at_state: Situation, reading: Reading) -> None:
    """Whatever arrives, a plain bucket keeps its own books."""
    bucket, untouched = Direct(at_state.quota, at_state.state), Direct(at_state.quota, at_state.state)
    outcome = bucket.apply(Reconcile(reading), at_state.now)
    untouched.apply(Acquire(0), at_state.now)
    assert outcome.reading is Verdict.STALE
    assert bucket.state == untouched.state


@given(reported=st.integers(-500, 500), spent=st.integers(0, 50))
def test_the_drift_is_how_far_the_projection_was_off(reported: int, spent: int) -> None:
    """Reported minus projected balance, the call's own cost counted, stays to be seen until the next reading."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a")
    outcome = settled(bucket, "a", spent, told(reported, 1001.0))
    assert outcome.drift == reported - (100 - spent)
    for age in (2, 0):
        seen = bucket.look(EPOCH + (1 + age) * SECOND)
        assert (seen.drift, seen.reading_age) == (outcome.drift, age)
