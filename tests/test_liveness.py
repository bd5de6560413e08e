"""Liveness: from any stored state the bucket grants, or calls for a probe, within a bound that `peek` can state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import pytest
from hypothesis import example, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from checks.models.strategies import (
    EPOCH,
    HOUR,
    MINUTE,
    NONSENSE,
    SECOND,
    gaps,
    instants,
    periods_us,
    quotas,
    requests,
    steps_back,
    with_fields,
)
from keepa_tokens.cli import old_rule
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Reconcile, Reserve
from keepa_tokens.rules.decision import Reason, Snapshot
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import NUMBERS, BucketState, Hold
from keepa_tokens.units import CLAIM_US, LIMIT, MAX_BACKOFF_US, MICROSECONDS, PROBE_AFTER_US, TOLERANCE_US
from tests.strategies import SPARING, Bucket, Direct, Make, Situation, any_situations, either_way

ATTEMPTS: Final = 40


def micro(duration: float) -> int:
    return round(duration * MICROSECONDS)


# --- a missing timestamp and a negative balance


@dataclass(frozen=True)
class Stalled:
    """A negative balance without a timestamp, what is asked of it, and when: attempts come `waits` apart, in turns."""

    balance: int
    capacity: int
    refill: int
    period_us: int
    stepped: bool
    synced: bool
    cost: int
    now: int
    waits: tuple[int, ...]
    restart_every: int

    @property
    def quota(self) -> Quota:
        period = self.period_us / MICROSECONDS
        return Quota(self.capacity, self.refill, period, stepped=self.stepped, synced=self.synced)

    @property
    def state(self) -> BucketState:
        """What is stored: no `refilled_at`."""
        reading_at = self.now if self.synced else None
        return BucketState(balance=self.balance, refilled_at=None, quota=self.quota, reading_at=reading_at)

    @property
    def bound(self) -> int:
        missing = self.cost - self.balance
        return -(-missing * self.period_us // self.refill) + self.period_us


class OldRule(Direct):
    """The rule that once stood still for days, at 20 tokens a minute; beside its state a worker knows nothing."""

    def __init__(self, state: BucketState) -> None:
        super().__init__(MET_IN_THE_WILD.quota, state)
        self.old = old_rule.OldState(state.balance or 0, state.refilled_at)

    def gets_through(self, now: int, tokens: int, keep: int = 0) -> bool:
        self.old, verdict = old_rule.attempt(self.old, tokens, MET_IN_THE_WILD.refill, now)
        return verdict is not old_rule.Verdict.REFUSED


def gets_through(case: Stalled, bucket: Bucket) -> bool:
    """Return whether an attempt gets through by the bound.

    Attempts come by the pattern of the case, with restarts between; one more comes at the bound itself.
    """
    deadline = case.now + case.bound
    at, attempts = case.now, 0
    while at < deadline and attempts < ATTEMPTS:
        if bucket.gets_through(at, case.cost):
            return True
        attempts += 1
        if attempts % case.restart_every == 0:
            bucket.restart()
        at += max(1, case.waits[attempts % len(case.waits)])
    return bucket.gets_through(deadline, case.cost)


@st.composite
def stalled(draw: st.DrawFn, *, synced: bool | None = None) -> Stalled:
    """Draw a bucket as it was found after its timestamp had been lost."""
    capacity = draw(st.one_of(st.integers(1, 20), st.integers(1, 3000)))
    return Stalled(
        balance=draw(st.one_of(st.integers(-100, -1), st.integers(-(10**6), -1))),
        capacity=capacity,
        refill=draw(st.integers(1, 600)),
        period_us=draw(periods_us),
        stepped=draw(st.booleans()),
        synced=draw(st.booleans()) if synced is None else synced,
        cost=draw(st.integers(1, capacity)),
        now=draw(instants),
        waits=tuple(draw(st.lists(gaps, min_size=1, max_size=4))),
        restart_every=draw(st.integers(1, 5)),
    )


MET_IN_THE_WILD: Final = Stalled(-79, 1200, 20, MINUTE, True, True, 1, EPOCH, (MINUTE,), 1)


@either_way
@given(case=stalled())
@example(case=MET_IN_THE_WILD)
@example(case=replace(MET_IN_THE_WILD, balance=-(10**6), synced=False, stepped=False))
def test_a_missing_timestamp_never_deadlocks_a_negative_balance(make: Make, case: Stalled) -> None:
    """With the timestamp lost and the balance negative, an attempt gets through within the refill time and a period."""
    assert gets_through(case, make(case.quota, case.state))


@either_way
@given(case=stalled(synced=False))
def test_each_refusal_after_a_lost_timestamp_names_the_same_instant(make: Make, case: Stalled) -> None:
    """The first attempt writes the mended timestamp back, so all refusals name one instant, which is kept."""
    bucket = make(case.quota, case.state)
    first = bucket.apply(Acquire(case.cost), case.now)
    assert "refilled_at" in first.repaired
    assert not first.granted
    end = case.now + first.retry_after_us
    at = case.now
    for wait in case.waits:
        at += wait
        if at >= end:
            break
        again = bucket.apply(Acquire(case.cost), at)
        assert not again.granted
        assert again.repaired == ()
        assert at + again.retry_after_us == end
        bucket.restart()
    assert bucket.apply(Acquire(case.cost), end).granted


def as_in_the_wild() -> st.SearchStrategy[Stalled]:
    """Draw what was met in the wild with any debt, at any pace. Costs below its threshold the old rule never serves."""
    wild = MET_IN_THE_WILD
    terms = {"capacity": wild.capacity, "refill": wild.refill, "period_us": wild.period_us, "stepped": False}
    costs = st.integers(old_rule.THRESHOLD, wild.capacity)
    return st.builds(lambda case, cost: replace(case, cost=cost, **terms), stalled(), costs)


@pytest.mark.deep
def test_the_same_property_fails_the_old_rule() -> None:
    """The rule that stood still for days breaks the property, so the property bites."""
    quick = settings(database=None, derandomize=True, max_examples=1000)
    found = find(as_in_the_wild(), lambda case: not gets_through(case, OldRule(case.state)), settings=quick)
    assert found.balance < 0
    assert not gets_through(MET_IN_THE_WILD, OldRule(MET_IN_THE_WILD.state))


def test_the_old_rule_fails_by_the_lost_timestamp_alone() -> None:
    """With its timestamp in place the old rule gets through, so it is the loss that the property catches."""

    def stands_still(case: Stalled) -> bool:
        return not gets_through(case, OldRule(replace(case.state, refilled_at=case.now)))

    with pytest.raises(NoSuchExample):
        find(as_in_the_wild(), stands_still, settings=settings(database=None, derandomize=True, max_examples=200))


@either_way
@given(case=stalled(synced=False), losses=st.lists(gaps, max_size=5))
def test_a_timestamp_lost_again_and_again_delays_only_until_the_last_loss(
    make: Make, case: Stalled, losses: list[int]
) -> None:
    """However often the timestamp is lost, from the last loss on the bound holds."""
    bucket = make(case.quota, case.state)
    now = case.now
    for wait in losses:
        bucket.apply(Acquire(case.cost), now)
        now += wait
        bucket.put(replace(bucket.stored, refilled_at=None))
    assert gets_through(replace(case, now=now), bucket)


# --- from any state at all


@dataclass(frozen=True)
class Try:
    """A bucket in any condition, a request, and when it is repeated before the bound."""

    at: Situation
    tokens: int
    keep: int
    early: tuple[float, ...]


@st.composite
def tries(draw: st.DrawFn, quota_strategy: st.SearchStrategy[Quota] | None = None) -> Try:
    at = draw(any_situations(quota_strategy))
    tokens, keep = draw(requests(at.quota))
    return Try(at, tokens, keep, tuple(sorted(draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=4)))))


def has_an_end(case: Try, snapshot: Snapshot) -> bool:
    """Return whether refill or a probe must bring an end: all but a refill of 0 that was really configured.

    What would take longer than the 142 years that are counted, is no end either.
    """
    if case.at.quota.synced:
        return True
    debt = case.at.quota.capacity - (snapshot.balance or 0) + snapshot.held + 10**7
    return case.at.quota.refill > 0 and debt * case.at.quota.period_us // case.at.quota.refill < 2**50


def keeps_its_bound(bucket: Bucket, case: Try, now: int) -> None:
    """Assert that the request gets through by the bound that `peek` states now, whatever is tried before."""
    snapshot = bucket.look(now, case.tokens, case.keep)
    if math.isinf(snapshot.bound):
        assert not has_an_end(case, snapshot)
        return
    for part in (*case.early, 1.0):
        if bucket.gets_through(now + round(micro(snapshot.bound) * part), case.tokens, case.keep):
            return
        bucket.restart()
    pytest.fail("neither granted nor sent to the server by the bound")


@either_way
@SPARING
@given(case=tries())
@example(
    # The lost balance's reading once counted for the 0 that it begins at after a failed probe: no probe by the bound.
    case=Try(
        Situation(
            Quota(1, 0, 1e-06, stepped=True, synced=True),
            0,
            BucketState(balance=None, refilled_at=0, reading_at=2, probe_until=1, sequence=50, reading_sequence=0),
        ),
        1,
        0,
        (),
    )
)
def test_from_any_state_there_is_a_bound_and_it_is_kept(make: Make, case: Try) -> None:
    """`peek` states a finite bound, and an attempt at it is granted or gets the probe, whatever came before."""
    for early in ((), case.early):
        keeps_its_bound(make(case.at.quota, case.at.state), replace(case, early=early), case.at.now)


@either_way
@SPARING
@given(case=tries(), back=steps_back)
def test_after_a_clock_step_there_is_a_bound_and_it_is_kept(make: Make, case: Try, back: int) -> None:
    """A clock that jumps back leaves the bucket with a finite bound on the new time, and the bound is kept."""
    bucket = make(case.at.quota, case.at.state)
    bucket.apply(Acquire(case.tokens, case.keep), case.at.now)
    keeps_its_bound(bucket, case, max(0, case.at.now - back))


@SPARING
@given(case=tries(quotas(synced=True)))
def test_no_synced_bucket_is_further_from_a_probe_than_the_longest_backoff(case: Try) -> None:
    """On a synced bucket the bound is at most the reading's age limit, a claim and the longest backoff, or a pause."""
    bucket = Direct(case.at.quota, case.at.state)
    snapshot = bucket.look(case.at.now, case.tokens, case.keep)
    longest = max(PROBE_AFTER_US, CLAIM_US + MAX_BACKOFF_US, micro(snapshot.paused_for))
    assert micro(snapshot.bound) <= longest + 10 * SECOND


@either_way
@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_single_field_of_nonsense_stops_a_bucket(make: Make, name: str, synced: bool) -> None:
    """Each field in turn holds each kind of nonsense: the bucket still names a bound and keeps it."""
    quota = Quota(100, 20, 60.0, synced=synced, recharge_to=50)
    reading_at = EPOCH - MINUTE if synced else None
    sound = BucketState(balance=-30, refilled_at=EPOCH - SECOND, reading_at=reading_at, closed_until=EPOCH + MINUTE)
    for nonsense in NONSENSE:
        bucket = make(quota, with_fields(sound, {name: nonsense}))
        snapshot = bucket.look(EPOCH, 5, 0)
        assert snapshot.bound < 1000, (name, nonsense)
        assert bucket.gets_through(EPOCH + micro(snapshot.bound), 5), (name, nonsense)


@either_way
def test_a_dead_hold_is_charged_whatever_its_sweep_was_put_off_to(make: Make) -> None:
    """Refusals write nothing, and yet the sweep comes: it was put off anew by each of them, and nobody got through."""
    quota = Quota(100, 20, 60.0, synced=True)
    bucket = make(
        quota,
        BucketState(
            balance=50,
            refilled_at=EPOCH,
            sequence=2,
            held=60,
            open=1,
            due_at=EPOCH + 24 * HOUR,
            reading_at=EPOCH,
            reading_sequence=1,
            holds={"dead": Hold(60, 2, EPOCH + SECOND, 2 * MINUTE)},
        ),
    )
    bound = bucket.look(EPOCH, 60, 0).bound
    for second in range(10, math.ceil(bound), 10):
        assert not bucket.gets_through(EPOCH + second * SECOND, 60)
    assert bound == 210
    assert bucket.gets_through(EPOCH + micro(bound), 60)


@either_way
def test_what_calls_in_flight_hold_is_never_too_much_for_good(make: Make) -> None:
    """A garbled hold of a plain bucket counts as much as there can be: until it is forgotten, not for ever."""
    quota = Quota(10, 1, 1.0)
    hold = Hold(LIMIT - 1, 1, EPOCH + MINUTE, MINUTE)
    bucket = make(quota, BucketState(balance=5, refilled_at=EPOCH, sequence=1, quota=quota, holds={"a": hold}))
    refused = bucket.apply(Acquire(1), EPOCH)
    assert (refused.granted, refused.reason) == (False, Reason.IN_FLIGHT)
    bound = bucket.look(EPOCH, 1, 0).bound
    assert bound <= 61
    assert bucket.gets_through(EPOCH + micro(bound), 1)


# --- what has no end says so


@given(synced=st.booleans(), stepped=st.booleans(), now=instants)
def test_a_configured_refill_of_0_is_the_one_exception_and_says_so(synced: bool, stepped: bool, now: int) -> None:
    """A plain bucket that never refills states an endless bound; a synced one is still sent to the server."""
    bucket = Direct(Quota(5, 0, 1.0, synced=synced, stepped=stepped, initial=0))
    snapshot = bucket.look(now, 1, 0)
    assert math.isinf(snapshot.retry_after)
    assert math.isinf(snapshot.bound) is not synced
    outcome = bucket.apply(Acquire(1), now)
    assert outcome.probe is synced
    assert math.isinf(outcome.decision().retry_after)


@given(now=st.integers(HOUR, EPOCH))
def test_a_reported_refill_of_0_ends_with_a_probe(now: int) -> None:
    """A net refill of 0 stops the bucket on the server's word, and a probe takes that word back in time."""
    bucket = Direct(Quota(100, 20, 60.0, synced=True))
    bucket.apply(Reconcile(Reading(-3, refill=0)), now)
    snapshot = bucket.look(now, 1, 0)
    assert math.isinf(snapshot.retry_after)
    assert micro(snapshot.bound) == PROBE_AFTER_US
    assert not bucket.apply(Acquire(1), now + PROBE_AFTER_US - 1).probe
    assert bucket.apply(Acquire(1), now + PROBE_AFTER_US).probe


@given(now=instants)
def test_a_refill_of_0_that_no_reading_brought_is_not_believed(now: int) -> None:
    """Without a reading to vouch for it a stored refill of 0 gives way to the quota's own."""
    bucket = Direct(
        Quota(100, 20, 60.0, synced=True),
        BucketState(balance=-3, refilled_at=now, reported_refill=0, reported_period_us=MINUTE),
    )
    outcome = bucket.apply(Acquire(1), now)
    assert "reported_refill" in outcome.repaired
    assert outcome.retry_after_us == 12 * SECOND


@given(
    quota=quotas(least_refill=1, synced=False),
    now=instants,
    closed=st.integers(0, 2**52 - 1),
    ends=st.integers(0, 2**52 - 1),
)
def test_no_flag_outlives_what_could_rightly_have_set_it(quota: Quota, now: int, closed: int, ends: int) -> None:
    """Whatever `closed_until` and a hold's end are stored, the wait for one token is what refilling takes at most."""
    state = BucketState(balance=0, refilled_at=now, closed_until=closed, holds={"a": Hold(1, 0, ends, MINUTE)})
    bucket = Direct(quota, state)
    outcome = bucket.apply(Reserve("b", 1, MINUTE), now)
    if outcome.granted:
        return
    target = max(1, min(quota.recharge_to or 1, quota.capacity))
    refill_time = -(-(target + 1) * quota.period_us // quota.refill) + quota.period_us
    place = -(-(quota.capacity + 2) * quota.period_us // quota.refill) + quota.period_us
    # What lies ahead within the tolerance is left: another worker's clock may be that much ahead.
    assert outcome.retry_after_us <= max(refill_time, place + MINUTE + TOLERANCE_US + refill_time)
