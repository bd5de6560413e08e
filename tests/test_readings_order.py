"""Rule 7: which readings are taken, by the order of the calls and the server's own time, never by comparing clocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, MINUTE, SECOND, quotas, readings, sound_states
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, ClaimProbe, Outcome, Reconcile, Reserve, Settle, Verdict
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import REORDER_US
from tests.strategies import SPARING, Direct, Situation, reached

QUOTA = Quota(1000, 0, 60.0, synced=True)


def told(balance: int, at: float | None = None) -> Reading:
    """Return a reading with the server's time, or without."""
    return Reading(balance, server_time=at)


def at(reading: Reading) -> Direct:
    """Return a bucket that was told `reading` at EPOCH."""
    bucket = Direct(QUOTA)
    assert bucket.apply(Reconcile(reading), EPOCH).reading is Verdict.TAKEN
    return bucket


def opened(bucket: Direct, *names: str) -> None:
    """Open a hold of 10 tokens for each name."""
    for name in names:
        assert bucket.apply(Reserve(name, 10, 10 * MINUTE), EPOCH).granted


def look(bucket: Direct) -> Snapshot:
    """Return the bucket as it stands a second later."""
    return bucket.look(EPOCH + SECOND)


def settled(bucket: Direct, name: str, actual: int, reading: Reading | None) -> Outcome:
    return bucket.apply(Settle(name, actual, reading), EPOCH + SECOND)


def test_the_first_reading_is_taken_whatever_it_says() -> None:
    """An unknown bucket takes any reading, with a server's time or without, old or not; it says nothing of others."""
    for reading in (told(5), told(-5, 0.0), told(7, 1.0)):
        seen = look(at(reading))
        assert (seen.balance, seen.kept_back) == (reading.balance, 0)
    unknown = Direct(QUOTA)
    unknown.apply(Reserve("a", 1, MINUTE, scout=True), EPOCH)
    assert unknown.apply(Settle("a", 1, told(-3, 5.0)), EPOCH).reading is Verdict.TAKEN


def test_a_call_opened_after_the_last_reading_brings_a_newer_one() -> None:
    """By the order of the calls alone, whatever the server's clock says: later, equal, earlier, nothing."""
    for time in (1001.0, 1000.0, 10.0, None):
        bucket = at(told(100, 1000.0))
        opened(bucket, "a")
        outcome = settled(bucket, "a", 10, told(90, time))
        assert (outcome.reading, outcome.balance) == (Verdict.TAKEN, 90)


def test_an_older_envelope_that_arrives_late_charges_and_changes_nothing() -> None:
    """The newer reading had its cost already: the hold goes, the balance stays."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a", "b")
    settled(bucket, "b", 10, told(80, 1002.0))
    outcome = settled(bucket, "a", 10, replace(told(90, 1001.0), refill=7, capacity=5, next_refill_in=3))
    assert (outcome.reading, outcome.balance) == (Verdict.STALE, 80)
    assert bucket.stored.holds == {}
    assert (bucket.stored.reported_refill, bucket.stored.reported_capacity) == (None, None)


def test_a_newer_envelope_of_a_call_opened_before_the_last_reading_is_taken_by_its_time() -> None:
    """Two calls under way at once come back in the order in which the server answered: both are taken."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a", "b")
    settled(bucket, "b", 10, told(90, 1001.0))
    assert settled(bucket, "a", 10, told(80, 1002.0)).reading is Verdict.TAKEN


def test_of_two_readings_at_one_server_time_the_lower_balance_counts() -> None:
    """Answers within one millisecond of the server: the lower balance has both costs, in either order of arrival."""
    for first, second in (("a", "b"), ("b", "a")):
        bucket = at(told(100, 1000.0))
        opened(bucket, "a", "b")
        balances = {"a": 90, "b": 80}
        settled(bucket, first, 10, told(balances[first], 1001.0))
        settled(bucket, second, 10, told(balances[second], 1001.0))
        assert bucket.stored.balance == 80


@pytest.mark.parametrize("time", [None, 1001.0])
def test_where_the_last_reading_has_no_server_time_a_call_opened_before_it_charges_its_cost(time: float | None) -> None:
    """It can't be put in order, so it isn't adopted, and its cost is charged rather than lost."""
    bucket = at(told(100))
    opened(bucket, "a", "b")
    settled(bucket, "b", 10, told(80))
    outcome = settled(bucket, "a", 7, told(90, time))
    assert (outcome.reading, outcome.balance) == (Verdict.STALE, 73)


def test_a_settle_again_may_still_bring_a_reading_but_charges_nothing() -> None:
    """The hold is gone, so nothing is charged; what the envelope says is judged as one seen elsewhere."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a")
    settled(bucket, "a", 10, told(90, 1001.0))
    again = settled(bucket, "a", 10, told(90, 1001.0))
    assert (again.found, again.reading, again.balance) == (False, Verdict.STALE, 90)
    once_more = settled(bucket, "a", 10, told(70, 1002.0))
    assert (once_more.balance, once_more.drift) == (70, -20)


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


def test_of_two_front_ends_five_seconds_apart_the_lower_balance_counts() -> None:
    """A's answer, by a clock ahead, came first; B's cost came after it: 40 are left, not 90."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a", "b")
    assert settled(bucket, "a", 10, told(90, 1001.0)).balance == 90
    second = settled(bucket, "b", 50, told(40, 996.0))
    assert (second.balance, second.drift) == (40, -50)
    assert look(bucket).held == 0


def test_a_call_opened_before_a_lower_reading_is_not_newer_than_that() -> None:
    """C was opened after A's answer was applied, and answered before B: B's lower balance has C's cost too."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a", "b")
    settled(bucket, "a", 3, told(97, 1001.0))
    opened(bucket, "c")
    assert settled(bucket, "b", 8, told(84, 1001.0)).balance == 84
    assert settled(bucket, "c", 5, told(92, 1001.0)).balance == 84


def test_a_server_that_was_in_2100_once_is_followed_again() -> None:
    """The first time that is no longer the old one's tells no order; it replaces that, so that the next one does."""
    bucket = at(told(100, 4_102_444_800.0))
    opened(bucket, "a")
    bucket.apply(Reconcile(told(95, 1001.0)), EPOCH + SECOND)
    outcome = bucket.apply(Reconcile(told(97, 1002.0)), EPOCH + 2 * SECOND)
    assert (outcome.reading, outcome.balance) == (Verdict.TAKEN, 97)


def test_an_answer_that_was_long_under_way_was_told_when_the_server_says() -> None:
    """Told 200 s after the reading before it and settled 100 s later: its server's time is that old, none jumped."""
    bucket = at(told(100, 1000.0))
    opened(bucket, "a")
    bucket.apply(Settle("a", 10, told(90, 1200.0)), EPOCH + 300 * SECOND)
    outcome = bucket.apply(Reconcile(told(95, 1300.0)), EPOCH + 300 * SECOND)
    assert (outcome.reading, outcome.balance) == (Verdict.TAKEN, 95)


def test_if_nobody_ever_gave_a_server_time_the_latest_to_arrive_counts() -> None:
    """Without any server's time there is nothing to judge an observed reading by."""
    bucket = at(told(100))
    assert bucket.apply(Reconcile(told(200)), EPOCH).balance == 200


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


def test_a_reading_brings_refill_capacity_and_phase() -> None:
    """What the server says of its terms rules from then on; what it leaves out stays as it was."""
    bucket = Direct(Quota(300, 5, 60.0, stepped=True, synced=True))
    reading = Reading(0, next_refill_in=10.0, refill=20, period=30.0, capacity=1200, server_time=1.0)
    seen = bucket.apply(Reconcile(reading), EPOCH).snapshot
    assert seen is not None
    assert (seen.capacity, seen.refill, seen.period) == (1200, 20, 30.0)
    assert bucket.apply(Acquire(21), EPOCH).retry_after_us == 40 * SECOND
    bucket.apply(Reconcile(Reading(1, server_time=2.0)), EPOCH + SECOND)
    seen = bucket.look(EPOCH + SECOND)
    assert (seen.capacity, seen.refill, seen.period) == (1200, 20, 30.0)


@pytest.mark.parametrize(
    "told_refill, tokens, period", [(0.25, 1, 240.0), (0.3, 1, 240.0), (1.9, 1, 60.0), (5.0, 5, 60.0)]
)
def test_a_fractional_refill_is_rounded_down(told_refill: float, tokens: int, period: float) -> None:
    """A net refill above 1 loses its fraction, one between 0 and 1 is one token in several periods."""
    bucket = Direct(Quota(300, 5, 60.0, stepped=True, synced=True))
    seen = bucket.apply(Reconcile(Reading(0, refill=told_refill)), EPOCH).snapshot
    assert seen is not None
    assert (seen.refill, seen.period) == (tokens, period)


@pytest.mark.parametrize(
    "first, later, second, next_in",
    [
        pytest.param(
            Reading(0, refill=5, period=1.0), 0, Reading(0, next_refill_in=0.5), 0.5, id="told-1-s-phase-alone"
        ),
        pytest.param(Reading(9), 0, Reading(0, period=600.0, next_refill_in=10.0), 10.0, id="period-and-no-refill"),
        pytest.param(Reading(9), 0, Reading(0, period=600.0, next_refill_in=500.0), 500.0, id="stretched"),
        pytest.param(Reading(0, next_refill_in=300.0), 200, Reading(0), 40.0, id="after-a-stretched-one"),
        pytest.param(
            Reading(0, refill=5, period=600.0, next_refill_in=600.0), 500, Reading(0, refill=5), 40.0, id="shorter"
        ),
        pytest.param(Reading(0, refill=0.25), 0, Reading(0, next_refill_in=60.0), 240.0, id="one-in-several-periods"),
        pytest.param(Reading(9), 0, Reading(0, next_refill_in=0.0), 60.0, id="a-step-due-now"),
    ],
)
def test_no_step_from_before_a_reading_comes_after_it(
    first: Reading, later: int, second: Reading, next_in: float
) -> None:
    """Whatever periods were told, what came until the reading is in its balance; the next step comes when it says."""
    bucket = Direct(Quota(300, 5, 60.0, stepped=True, synced=True))
    bucket.apply(Reconcile(first), EPOCH)
    now = EPOCH + later * SECOND
    bucket.apply(Reconcile(second), now)
    due = 5 if second.next_refill_in == 0 else 0
    assert bucket.look(now).balance == due
    assert bucket.look(now + round(next_in * SECOND) - 1).balance == due
    assert (bucket.look(now + round(next_in * SECOND)).balance or 0) > due


def test_a_settle_sent_again_is_no_news() -> None:
    """Without a server's time too: the hold is gone, and what others spent since stays spent."""
    bucket = at(told(100))
    opened(bucket, "a", "b")
    settled(bucket, "a", 10, told(90))
    settled(bucket, "b", 10, None)
    again = settled(bucket, "a", 10, told(90))
    assert (again.reading, again.balance) == (Verdict.STALE, 80)
    late = bucket.apply(Settle("a", 10, told(70)), EPOCH + SECOND + REORDER_US + 1)
    assert (late.reading, late.balance) == (Verdict.TAKEN, 70)


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


def test_a_reading_closes_no_bucket() -> None:
    """Only a request that finds too little begins a recharge: the news that the balance is low isn't one."""
    bucket = Direct(Quota(100, 1, 1.0, synced=True, recharge_to=50))
    bucket.apply(Reconcile(told(0, 1000.0)), EPOCH)
    assert bucket.stored.closed_until is None
    assert bucket.apply(Acquire(3), EPOCH + 3 * SECOND).granted


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


NEAR_ONE, JUMPED_ONE, OLD_ONE = EPOCH / 1e6 - 3, EPOCH / 1e6 + 7200, EPOCH / 1e6 - 30


@pytest.mark.parametrize(
    "server_time, claims, is_stored",
    [(NEAR_ONE, False, False), (NEAR_ONE, True, True), (JUMPED_ONE, False, True), (OLD_ONE, False, False)],
    ids=["near", "near, beside a claim", "jumped", "older"],
)
def test_a_reading_that_tells_no_order_stores_only_what_it_brings(
    server_time: float, claims: bool, is_stored: bool
) -> None:
    """A higher balance is not taken. A claim is over, since the server did answer; a jumped time replaces the last."""
    bucket = at(told(50, EPOCH / 1e6))
    if claims:
        assert bucket.apply(ClaimProbe(), EPOCH + SECOND).claimed_until_us
    before = bucket.state
    assert before is not None
    assert (before.probe_until is not None) is claims
    assert bucket.apply(Reconcile(told(60, server_time)), EPOCH + SECOND).reading is Verdict.STALE
    after = bucket.state
    assert after is not None
    assert (after is not before) is is_stored
    assert (after.balance, after.probe_until, after.probe_failures or 0) == (50, None, 0)
    assert (after.server_time == before.server_time) is (server_time != JUMPED_ONE)
