"""Each rule at its very edge, a token or a microsecond to either side; numbered as in `transition.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from keepa_tokens import BucketState, Hold, Quota, Reading, Reason
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Reserve, Settle, Verdict
from keepa_tokens.rules.transition import LIFETIME_MARGIN_US, SHORTEST_LIFETIME_US, lifetime_us, transition
from keepa_tokens.units import CLAIM_US, LIMIT, REORDER_US, UNLIMITED

NOW: Final = 1_780_000_000_000_000
SECOND: Final = 1_000_000
SYNCED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
RECHARGING: Final = Quota(10, 1, 1.0, recharge_to=4)


def known(**fields: Any) -> BucketState:
    """Return a bucket with a reading from just now."""
    read = {"refilled_at": NOW, "reading_at": NOW, "sequence": 5, "reading_sequence": 3}
    return BucketState(**{**read, **fields})


def step(quota: Quota, state: BucketState | None, command: Command, now: int = NOW) -> tuple[BucketState, Outcome]:
    """Take a step."""
    after, outcome = transition(quota, state, now, command)
    assert after is not None
    return after, outcome


# --- 3: ending a hold


def test_the_drift_of_a_call_that_ran_out_counts_its_charge_back() -> None:
    """What running out had charged is in the projection no more when the answer comes after all."""
    held = known(balance=50, holds={"a": Hold(9, 4, NOW + SECOND, SECOND)})
    state, _ = step(SYNCED, held, Acquire(0), NOW + SECOND)
    assert state.balance == 41
    _, outcome = step(SYNCED, state, Settle("a", 2, Reading(40)), NOW + SECOND)
    assert (outcome.reading, outcome.drift) == (Verdict.TAKEN, 40 - 48)


def test_a_hold_given_up_brings_the_end_of_a_recharge_nearer() -> None:
    """What it had set aside is available again: the bucket opens as soon as the rest has flowed in."""
    held = BucketState(balance=5, refilled_at=NOW, sequence=1, holds={"a": Hold(4, 1, NOW + 99 * SECOND, 99 * SECOND)})
    state, outcome = step(RECHARGING, held, Acquire(3))
    assert (outcome.reason, state.closed_until) == (Reason.RECHARGING, NOW + 3 * SECOND)
    assert step(RECHARGING, state, Cancel("a"))[0].closed_until is None
    other = Hold(1, 2, NOW + 99 * SECOND, 99 * SECOND)
    both = replace(held, balance=3, sequence=2, holds={**held.holds, "b": other})
    state, _ = step(RECHARGING, both, Acquire(3))
    assert state.closed_until == NOW + 6 * SECOND
    assert step(RECHARGING, state, Cancel("a"))[0].closed_until == NOW + 2 * SECOND


# --- 4: admission


def test_more_than_can_be_counted_is_too_large() -> None:
    """What is held and what is asked for must stay below 2**52 together."""
    quota = Quota(10, 1, 1.0, overdraft=UNLIMITED)
    state = BucketState(balance=5, refilled_at=NOW, sequence=1, holds={"a": Hold(LIMIT - 2, 1, NOW + 1, 1)})
    assert step(quota, state, Acquire(1))[1].reason is Reason.EMPTY
    assert step(quota, state, Acquire(2))[1].reason is Reason.TOO_LARGE


def test_what_is_there_can_be_had_above_the_capacity_too() -> None:
    """A balance above capacity is spent down by a request as large as itself; one token more is too large."""
    state = BucketState(balance=11, refilled_at=NOW)
    assert step(Quota(10, 1, 1.0), state, Acquire(11))[1].granted
    assert step(Quota(10, 1, 1.0), state, Acquire(12))[1].reason is Reason.TOO_LARGE


def test_a_free_call_in_flight_delays_nobody_who_overdraws() -> None:
    """Beside nothing held the wait is for one token, not for all that is asked."""
    quota = Quota(300, 5, 60.0, synced=True, overdraft=UNLIMITED)
    state = known(balance=-3, holds={"free": Hold(0, 4, NOW + 3600 * SECOND, 3600 * SECOND)})
    wait = step(quota, state, Peek(50))[1].retry_after_us
    assert wait == 48 * SECOND
    assert not step(quota, state, Acquire(50), NOW + wait - 1)[1].granted
    assert step(quota, state, Acquire(50), NOW + wait)[1].granted


@pytest.mark.parametrize("ends_by", [-1, 0, 1])
def test_a_hold_that_ends_with_the_claim_is_counted_to_the_microsecond(ends_by: int) -> None:
    """Whether it runs out just before, at or after the start from 0, the wait that is told is the one that it takes."""
    claimed_until = NOW + CLAIM_US
    hold = Hold(5, 1, claimed_until + ends_by, CLAIM_US)
    state = BucketState(balance=None, refilled_at=NOW, sequence=1, probe_until=claimed_until, holds={"a": hold})
    quota = Quota(300, 5, 60.0, synced=True)
    wait = step(quota, state, Peek(1))[1].retry_after_us
    assert not step(quota, state, Acquire(1), NOW + wait - 1)[1].granted
    assert step(quota, state, Acquire(1), NOW + wait)[1].granted


# --- 5: recharge


@pytest.mark.parametrize("keep, closes", [(5, True), (6, False)])
def test_what_no_refill_could_admit_closes_no_bucket(keep: int, closes: bool) -> None:
    """A request that fits in beside its keep, just, begins a recharge; one token more doesn't."""
    state, outcome = step(RECHARGING, BucketState(balance=0, refilled_at=NOW), Acquire(5, keep=keep))
    assert (state.closed_until is not None) == closes
    assert outcome.reason is (Reason.RECHARGING if closes else Reason.TOO_LARGE)


def test_a_bucket_with_enough_to_be_open_is_not_closed() -> None:
    """A request for more than is there begins no recharge if the recharge would be over already."""
    for balance, reason in ((4, Reason.EMPTY), (3, Reason.RECHARGING)):
        outcome = step(RECHARGING, BucketState(balance=balance, refilled_at=NOW), Acquire(8))[1]
        assert outcome.reason is reason


def test_an_unknown_balance_ends_a_recharge() -> None:
    """There is nothing to recharge: the bucket is open, and nothing is stored of its end."""
    quota = replace(SYNCED, recharge_to=40)
    state, outcome = step(quota, BucketState(balance=None, refilled_at=NOW, closed_until=NOW + SECOND), Acquire(0))
    assert (state.closed_until, outcome.closed) == (None, False)


def test_a_recharge_beyond_the_end_of_time_binds_nobody() -> None:
    """Where the target would never be reached the bucket stays open, and the bound is that of the request itself."""
    quota = Quota(10, 1, 4e9, recharge_to=8)
    shown = step(quota, BucketState(balance=0, refilled_at=0), Peek(1), 0)[1].snapshot
    assert shown is not None
    assert shown.retry_after == shown.bound == 4e9


# --- 7: readings


@pytest.mark.parametrize("opened, fresh", [(3, False), (4, True)])
def test_a_call_is_later_than_a_reading_if_it_was_opened_after_it(opened: int, fresh: bool) -> None:
    """Without a server's time the order of opening decides, for a reading and for a refusal without one."""
    state = known(balance=50, holds={"a": Hold(1, opened, NOW + SECOND, SECOND)})
    taken = step(SYNCED, state, Settle("a", 1, Reading(7)))[1].reading
    assert taken is (Verdict.TAKEN if fresh else Verdict.STALE)
    after, _ = step(SYNCED, state, Settle("a", 0, refused=True))
    assert after.balance == (0 if fresh else 50)


def test_a_plain_bucket_takes_no_answer_for_its_balance() -> None:
    """Its own count is the truth: a settle with a reading ends the hold at its cost, and no more."""
    state = known(balance=9, holds={"a": Hold(5, 4, NOW + SECOND, SECOND)})
    after, outcome = step(Quota(10, 1, 60.0), state, Settle("a", 2, Reading(1)))
    assert (outcome.reading, after.balance) == (Verdict.STALE, 7)


@pytest.mark.parametrize("balance, told, taken", [(0, 0, False), (0, -1, True), (5, 5, False), (5, 4, True)])
def test_of_two_readings_of_one_moment_the_lower_counts(balance: int, told: int, taken: bool) -> None:
    """At the same server's time only a lower balance is news, at 0 too."""
    state = known(balance=balance, server_time=7 * SECOND)
    outcome = step(SYNCED, state, Reconcile(Reading(told, server_time=7.0)))[1]
    assert (outcome.reading is Verdict.TAKEN) == taken


def test_a_reading_that_cannot_be_put_in_order_charges_its_cost() -> None:
    """Where the last reading came without a server's time, one of an earlier call can be older or newer."""
    state = known(balance=50, holds={"a": Hold(9, 2, NOW + SECOND, SECOND)})
    after, outcome = step(SYNCED, state, Settle("a", 6, Reading(40, server_time=7.0)))
    assert (outcome.reading, after.balance) == (Verdict.STALE, 44)


@pytest.mark.parametrize("age, taken", [(REORDER_US, False), (REORDER_US + 1, True)])
def test_an_older_reading_is_shut_out_for_two_minutes(age: int, taken: bool) -> None:
    """Also if the last one was taken at the very beginning of time."""
    state = BucketState(balance=5, refilled_at=0, reading_at=0, server_time=9 * SECOND)
    outcome = step(SYNCED, state, Reconcile(Reading(3, server_time=8.0)), age)[1]
    assert (outcome.reading is Verdict.TAKEN) == taken


def test_a_reading_that_says_nothing_of_the_next_step_leaves_it_where_it_was() -> None:
    """The phase of the steps is kept: the refill comes when it would have come."""
    state = known(balance=50, refilled_at=NOW - 40 * SECOND)
    after, _ = step(SYNCED, state, Reconcile(Reading(20)))
    assert step(SYNCED, after, Acquire(0), NOW + 20 * SECOND - 1)[0].balance == 20
    assert step(SYNCED, after, Acquire(0), NOW + 20 * SECOND)[0].balance == 25


@pytest.mark.parametrize("period_us, adopted", [(LIMIT // 2 - 2, True), (LIMIT // 2 - 1, False)])
def test_a_rate_is_adopted_if_it_can_be_computed(period_us: int, adopted: bool) -> None:
    """Tokens times the quota's period and a microsecond stay below 2**52; else the last rate goes on."""
    quota = Quota(300, 1, period_us / SECOND, stepped=True, synced=True)
    after, outcome = step(quota, known(balance=5), Reconcile(Reading(7, refill=2)))
    assert (outcome.reading, after.balance) == (Verdict.TAKEN, 7)
    assert (after.reported_refill, after.reported_period_us) == ((2, period_us) if adopted else (None, None))


def test_a_reading_brings_its_own_period() -> None:
    """What the server calls a period counts, not what the quota does."""
    after, _ = step(SYNCED, known(balance=5), Reconcile(Reading(5, refill=2, period=30.0, next_refill_in=10.0)))
    assert step(SYNCED, after, Acquire(0), NOW + 40 * SECOND)[0].balance == 9


# --- 8: the probe


def test_a_probe_that_is_due_is_due_now_and_not_earlier() -> None:
    """Once the back-off of a failed probe is over the bound is 0, however long ago that was."""
    state = known(balance=-5, reading_at=NOW - 7200 * SECOND, probe_until=NOW - 7000 * SECOND)
    shown = step(SYNCED, state, Peek())[1].snapshot
    assert shown is not None
    assert shown.bound == 0


# --- 9: lifetime


def test_a_bucket_that_starts_full_is_forgotten_when_it_is_full() -> None:
    """`initial` at capacity is the default: such a bucket needs no keeping for ever; one below it does."""
    for initial, expected in ((10, 300 * SECOND + LIFETIME_MARGIN_US), (9, None)):
        quota = Quota(10, 1, 100.0, initial=initial)
        state, _ = step(quota, BucketState(balance=10, refilled_at=0), Acquire(3), 0)
        assert lifetime_us(quota, state, 0) == expected


def test_a_bucket_is_kept_until_what_its_holds_will_have_cost_is_refilled() -> None:
    """From the end of the last hold on, all that was set aside has to flow in again."""
    state, outcome = step(Quota(10, 1, 100.0), None, Reserve("a", 4, SECOND))
    assert outcome.granted
    assert lifetime_us(Quota(10, 1, 100.0), state, NOW) == 401 * SECOND + LIFETIME_MARGIN_US


def test_an_unknown_bucket_is_kept_for_as_long_as_it_can_tell_anything() -> None:
    """Asked about, until it would have filled from 0 to the last token; if nobody asked, for the shortest time."""
    quota = Quota(11, 5, 60.5, stepped=True, synced=True)
    state, outcome = step(quota, None, Acquire(1))
    assert outcome.probe
    assert lifetime_us(quota, state, NOW) == (20 + 3 * 60.5) * SECOND + LIFETIME_MARGIN_US
    state, outcome = step(quota, None, Acquire(0))
    assert not outcome.probe
    assert lifetime_us(quota, state, NOW) == SHORTEST_LIFETIME_US


# --- 10: others


@pytest.mark.parametrize(
    "capacity, tokens, kept, keep, balance, granted",
    [
        (300, 250, 100, 0, 300, True),  # never so much that the request can't be admitted
        (300, 250, 100, 0, 299, False),
        (301, 1, 150, 0, 101, True),  # a third, rounded down
        (301, 1, 150, 0, 100, False),
        (301, 1, 150, 50, 101, True),  # with what the request itself leaves
        (301, 1, 150, 50, 100, False),
        (301, 1, 150, 200, 201, True),  # which is more at times
        (301, 1, 150, 200, 200, False),
    ],
)
def test_what_is_kept_back_is_a_third_at_most_and_never_too_much(
    capacity: int, tokens: int, kept: int, keep: int, balance: int, granted: bool
) -> None:
    """The largest request is admitted by a full bucket, whatever was seen of others."""
    quota = Quota(capacity, 5, 60.0, stepped=True, synced=True)
    state = known(balance=balance, kept_back=kept, kept_back_at=NOW)
    assert step(quota, state, Acquire(tokens, keep=keep))[1].granted == granted


@pytest.mark.parametrize(
    "refill, period, gap, kept", [(5, 1.0, 30, 0), (5, 1.0, 31, 31), (2, 2.0, 6, 0), (2, 2.0, 7, 7), (5, 60.0, 6, 6)]
)
def test_a_gap_is_more_than_what_may_be_under_way(refill: int, period: float, gap: int, kept: int) -> None:
    """As many steps as fit in the tolerance of clocks, and one more, explain a gap; a token more is somebody else."""
    quota = Quota(300, refill, period, stepped=True, synced=True)
    after, _ = step(quota, known(balance=200), Reconcile(Reading(200 - gap)))
    assert (after.kept_back or 0) == kept


def test_beside_calls_in_flight_nothing_is_learned() -> None:
    """At refill 0, where every gap counts, a reading beside a call says nothing of others."""
    quota = Quota(300, 0, 60.0, stepped=True, synced=True)
    state = known(balance=200, holds={"a": Hold(9, 4, NOW + SECOND, SECOND)})
    after, _ = step(quota, state, Reconcile(Reading(150)))
    assert not after.kept_back
