"""Each rule at its very edge, a token or a microsecond to either side; numbered as in `transition.py`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import pytest

from checks.models.strategies import summed
from keepa_tokens import BucketState, Hold, Quota, Reading, Reason
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
    Verdict,
)
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.rules.flow import Flow, flow_in_effect
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.repair import new_state
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import CLAIM_US, LIMIT, NEVER, REORDER_US, UNLIMITED
from tests.strategies import Direct

NOW: Final = 1_780_000_000_000_000
SECOND: Final = 1_000_000
SYNCED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
RECHARGING: Final = Quota(10, 1, 1.0, recharge_to=4)


def known(**fields: Any) -> BucketState:
    """Return a bucket with a reading from just now."""
    read = {"refilled_at": NOW, "reading_at": NOW, "sequence": 5, "reading_sequence": 3, "server_time_at": NOW}
    return summed(SYNCED, BucketState(**{**read, **fields}))


def step(quota: Quota, state: BucketState | None, command: Command, now: int = NOW) -> tuple[BucketState, Outcome]:
    after, outcome = transition(quota, state, now, command)
    assert after is not None
    return after, outcome


def look(quota: Quota, state: BucketState, now: int = NOW, tokens: int = 1) -> Snapshot:
    return Direct(quota, state).look(now, tokens)


@pytest.mark.parametrize(
    "command, now",
    [
        (Reserve("b", 1, SECOND), NOW),
        (Reserve("b", 200, SECOND, ticket="t"), NOW),
        (Refund("r", 1), NOW),
        (Reconcile(Reading(70, server_time=8.0)), NOW),
        (Reconcile(Reading(30, server_time=7.0)), NOW),
        (Acquire(0), NOW + SECOND),
    ],
)
def test_what_has_an_order_gets_the_next_number(command: Command, now: int) -> None:
    """A hold, a ticket, a refund, a reading, one that is only lower, a hold that runs out: one more each."""
    state = known(balance=50, server_time=7 * SECOND, holds={"a": Hold(1, 4, NOW + SECOND, SECOND)})
    assert step(SYNCED, state, command, now)[0].sequence == 6


# --- 3: ending a hold


def test_the_drift_of_a_call_that_ran_out_counts_its_charge_back() -> None:
    """What running out had charged is in the projection no more when the answer comes after all."""
    held = known(balance=50, holds={"a": Hold(9, 4, NOW + SECOND, SECOND)})
    state, _ = step(SYNCED, held, Acquire(0), NOW + SECOND)
    assert state.balance == 41
    _, outcome = step(SYNCED, state, Settle("a", 2, Reading(40)), NOW + SECOND)
    assert (outcome.reading, outcome.drift) == (Verdict.TAKEN, 40 - 48)


@pytest.mark.parametrize("synced", [False, True])
def test_a_hold_given_up_brings_the_end_of_a_recharge_nearer(synced: bool) -> None:
    """What it had taken or set aside is available again: the bucket opens as soon as the rest has flowed in."""
    quota = replace(RECHARGING, synced=synced)
    hold, other = (Hold(tokens, 1, NOW + 99 * SECOND, 99 * SECOND) for tokens in (4, 1))
    held = summed(quota, known(balance=5 if synced else 1, holds={"a": hold}))
    state, outcome = step(quota, held, Acquire(3))
    assert (outcome.reason, state.closed_until) == (Reason.RECHARGING, NOW + 3 * SECOND)
    assert step(quota, state, Cancel("a"))[0].closed_until is None
    both = summed(quota, replace(held, balance=3 if synced else -2, holds={"a": hold, "b": other}))
    state, _ = step(quota, both, Acquire(3))
    assert state.closed_until == NOW + 6 * SECOND
    assert step(quota, state, Cancel("a"))[0].closed_until == NOW + 2 * SECOND


# --- 4: admission


def test_more_than_can_be_counted_waits_for_a_call_in_flight() -> None:
    """What is held and what is asked for must stay below 2**52 together."""
    quota = Quota(10, 1, 1.0, overdraft=UNLIMITED)
    state = known(balance=5, holds={"a": Hold(LIMIT - 2, 1, NOW + 1, 1)})
    assert step(quota, state, Acquire(1))[1].granted
    assert step(quota, state, Acquire(2))[1].reason is Reason.IN_FLIGHT


@pytest.mark.parametrize("keep, reason", [(10, Reason.GRANTED), (11, Reason.IN_FLIGHT)])
def test_beside_calls_in_flight_as_much_is_left_for_others(keep: int, reason: Reason) -> None:
    """Of 20 with 5 in flight, 5 more leave 10."""
    state = known(balance=20, holds={"a": Hold(5, 4, NOW + 90 * SECOND, 120 * SECOND)})
    assert step(SYNCED, state, Peek(5, keep=keep))[1].reason is reason


def test_what_is_there_can_be_had_above_the_capacity_too() -> None:
    """A balance above capacity is spent down by a request as large as itself; one token more is too large."""
    state = BucketState(balance=11, refilled_at=NOW)
    assert step(Quota(10, 1, 1.0), state, Acquire(11))[1].granted
    assert step(Quota(10, 1, 1.0), state, Acquire(12))[1].reason is Reason.TOO_LARGE
    # A full bucket would admit it, though nothing will ever fill it.
    outcome = step(Quota(10, 0, 1.0), BucketState(balance=9, refilled_at=NOW), Acquire(10))[1]
    assert (outcome.reason, outcome.retry_after_us) == (Reason.EMPTY, NEVER)


def test_a_free_call_in_flight_delays_nobody_who_overdraws() -> None:
    """Beside nothing held the wait is for one token, not for all that is asked."""
    quota = Quota(300, 5, 60.0, synced=True, overdraft=UNLIMITED)
    state = known(balance=-3, holds={"free": Hold(0, 4, NOW + 3600 * SECOND, 3600 * SECOND)})
    wait = step(quota, state, Peek(50))[1].retry_after_us
    assert wait == 48 * SECOND
    assert not step(quota, state, Acquire(50), NOW + wait - 1)[1].granted
    assert step(quota, state, Acquire(50), NOW + wait)[1].granted


# --- 5: recharge


@pytest.mark.parametrize("refilled_at", [NOW, NOW + SECOND])  # by a clock behind too, which stands still
@pytest.mark.parametrize(
    "balance, command, reason",
    [
        (0, Acquire(5, keep=5), Reason.RECHARGING),  # fits in beside its keep, just
        (0, Acquire(5, keep=6), Reason.TOO_LARGE),
        (3, Acquire(8), Reason.RECHARGING),
        (4, Acquire(8), Reason.EMPTY),  # the recharge would be over already
        (0, Acquire(1), Reason.RECHARGING),
        (0, Acquire(0), Reason.GRANTED),  # finds too little of nothing
    ],
)
def test_who_finds_too_little_of_what_a_refill_could_admit_begins_a_recharge(
    balance: int, command: Command, reason: Reason, refilled_at: int
) -> None:
    """A token more than could ever be there begins none, nor does what a bucket has that is open."""
    state, outcome = step(RECHARGING, BucketState(balance=balance, refilled_at=refilled_at), command)
    assert outcome.reason is reason
    assert (state.closed_until is not None) == outcome.closed == (reason is Reason.RECHARGING)


def test_a_recharge_that_no_refill_ends_is_over() -> None:
    """The server says that nothing comes any more: nobody waits for it."""
    state = known(balance=0, closed_until=NOW + 4 * SECOND)
    quota = replace(RECHARGING, synced=True)
    assert step(quota, state, Reconcile(Reading(0)))[0].closed_until == NOW + 4 * SECOND
    assert step(quota, state, Reconcile(Reading(0, refill=0)))[0].closed_until is None


def test_a_recharge_that_somebody_began_binds_everybody() -> None:
    """Who asks for what is there waits for its end too."""
    state = BucketState(balance=3, refilled_at=NOW, quota=RECHARGING)
    assert step(RECHARGING, state, Acquire(3))[1].granted
    state, _ = step(RECHARGING, state, Acquire(8))
    assert step(RECHARGING, state, Acquire(3))[1].reason is Reason.RECHARGING


def test_an_unknown_balance_ends_a_recharge() -> None:
    """There is nothing to recharge: the bucket is open, and nothing is stored of its end."""
    quota = replace(SYNCED, recharge_to=40)
    for command in (Acquire(0), Cancel("nobody")):
        state, outcome = step(quota, BucketState(balance=None, refilled_at=NOW, closed_until=NOW + SECOND), command)
        assert (state.closed_until, outcome.closed) == (None, False)


def test_a_recharge_beyond_the_end_of_time_binds_nobody() -> None:
    """Where the target would never be reached the bucket stays open, and the bound is that of the request itself."""
    quota = Quota(10, 1, 4e9, recharge_to=8)
    shown = look(quota, BucketState(balance=0, refilled_at=0), 0, 1)
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


def test_where_the_last_reading_is_lost_any_answer_is_taken() -> None:
    """Its number alone shuts nobody out."""
    state = known(balance=50, reading_at=None, holds={"a": Hold(1, 2, NOW + SECOND, SECOND)})
    assert step(SYNCED, state, Settle("a", 1, Reading(7)))[1].reading is Verdict.TAKEN


def test_a_plain_bucket_takes_no_answer_for_its_balance() -> None:
    """Its own count is the truth: a settle with a reading ends the hold at its cost, and no more."""
    state = BucketState(balance=4, refilled_at=NOW, sequence=1, holds={"a": Hold(5, 1, NOW + SECOND, SECOND)})
    after, outcome = step(Quota(10, 1, 60.0), state, Settle("a", 2, Reading(1)))
    assert (outcome.reading, after.balance) == (Verdict.STALE, 7)


@pytest.mark.parametrize("probed, told, kept", [(False, 7, 7), (True, 7, 7), (False, 68, 68), (False, 1, 7)])
def test_a_reading_that_is_not_lower_ends_the_probe(probed: bool, told: int, kept: int) -> None:
    """The server did answer: whoever asked it has not failed. A time that jumped is kept; else nothing is written."""
    state, _ = step(SYNCED, known(balance=50, server_time=7 * SECOND), Refund("r", 0))
    claimed = replace(state, probe_until=NOW + SECOND, probe_failures=2) if probed else state
    after, outcome = step(SYNCED, claimed, Reconcile(Reading(60, server_time=float(told))))
    assert outcome.reading is Verdict.STALE
    assert after == replace(state, version=(state.version or 0) + (probed or kept != 7), server_time=kept * SECOND)


@pytest.mark.parametrize("age, taken", [(REORDER_US, False), (REORDER_US + 1, True)])
def test_a_reading_that_tells_no_order_is_shut_out_for_two_minutes(age: int, taken: bool) -> None:
    """Also if the last one was taken at the very beginning of time."""
    state = replace(known(balance=5, reading_at=0, server_time=9 * SECOND, server_time_at=0), refilled_at=0)
    outcome = step(SYNCED, state, Reconcile(Reading(3)), age)[1]
    assert (outcome.reading is Verdict.TAKEN) == taken


def test_a_reading_that_says_nothing_of_the_next_step_leaves_it_where_it_was() -> None:
    """The phase of the steps is kept: the refill comes when it would have come."""
    state = known(balance=50, refilled_at=NOW - 40 * SECOND)
    after, _ = step(SYNCED, state, Reconcile(Reading(20)))
    assert step(SYNCED, after, Acquire(0), NOW + 20 * SECOND - 1)[1].balance == 20
    assert step(SYNCED, after, Acquire(0), NOW + 20 * SECOND)[1].balance == 25


@pytest.mark.parametrize("period_us, adopted", [(LIMIT // 2 - 2, True), (LIMIT // 2 - 1, False)])
def test_a_rate_is_adopted_if_it_can_be_computed(period_us: int, adopted: bool) -> None:
    """Tokens times the quota's period and a microsecond stay below 2**52; else the last rate goes on."""
    quota = Quota(300, 1, period_us / SECOND, stepped=True, synced=True)
    after, outcome = step(quota, known(balance=5), Reconcile(Reading(7, refill=2)))
    assert (outcome.reading, after.balance) == (Verdict.TAKEN, 7)
    assert (after.reported_refill, after.reported_period_us) == ((2, period_us) if adopted else (None, None))


def test_the_terms_flow_in_steps_or_evenly_in_the_smallest_numbers() -> None:
    """Steps come whole and leave no remainder; a smooth rate is reduced."""
    stepped, smooth = (flow_in_effect(new_state(Quota(10, 4, 2.0, stepped=each), 0), 0) for each in (True, False))
    assert (stepped, smooth) == (Flow(10, 4, 2 * SECOND, True), Flow(10, 1, SECOND // 2, False))
    assert stepped.refilled(1, 0, 5, 3 * SECOND) == (5, 2 * SECOND, 0)


@pytest.mark.parametrize(
    "told, first, second",
    [
        (60_000_000, 60_000_000, 120_500_000),
        (60_500_000, 60_500_000, 121_000_000),
        (60_500_001, 60_500_001, 121_000_002),
        (90_000_000, 90_000_000, 180_000_000),
        (600_000_000, 600_000_000, 1_200_000_000),
        (600_000_001, 600_000_000, 1_200_000_000),
    ],
)
def test_a_refill_told_further_off_than_the_period_is_the_period_until_the_next_reading(
    told: int, first: int, second: int
) -> None:
    """0 left and the next step in 90 s: ask again in 90 s; after ten minutes no word of the server's is waited for."""
    quota = Quota(300, 5, 60.5, stepped=True, synced=True)
    state, _ = step(quota, None, Reconcile(Reading(0, next_refill_in=told / SECOND)))
    assert step(quota, state, Acquire(1))[1].retry_after_us == first
    assert step(quota, state, Acquire(6))[1].retry_after_us == second
    assert state.stretched_us == (first if first > 60_500_000 else None)
    state, _ = step(quota, state, Reconcile(Reading(0, next_refill_in=60.0)), NOW + 1)
    assert step(quota, state, Acquire(6), NOW + 1)[1].retry_after_us == 120_500_000


@pytest.mark.parametrize("told, stretched", [(2**29 - 2, 2**29 - 2), (2**29 - 1, None)])
def test_a_refill_told_further_off_counts_if_it_can_be_computed(told: int, stretched: int | None) -> None:
    """Tokens times that time and a microsecond stay below 2**52; else the period goes on."""
    quota = Quota(2**24, 2**23, 60.0, stepped=True, synced=True)
    state, _ = step(quota, None, Reconcile(Reading(0, next_refill_in=told / SECOND)))
    assert state.stretched_us == stretched


@pytest.mark.parametrize("told", [Reading(-1), Reading(-1, server_time=7.0)])
def test_a_reading_leaves_no_fraction_under_way(told: Reading) -> None:
    """Taken because it is newer or because it is lower: a whole token comes after its whole time, not earlier."""
    quota = Quota(10, 1, 60.0, synced=True)
    state = known(balance=0, carry=7, server_time=told.server_time and 7 * SECOND)
    state, outcome = step(quota, state, Reconcile(told))
    assert (outcome.reading, outcome.balance) == (Verdict.TAKEN, -1)
    assert step(quota, state, Acquire(1))[1].retry_after_us == 120 * SECOND


# --- 8: the probe


def test_a_probe_that_is_due_is_due_now_and_not_earlier() -> None:
    """Once the back-off of a failed probe is over the bound is 0, however long ago that was."""
    state = known(balance=-5, reading_at=NOW - 7200 * SECOND, probe_until=NOW - 7000 * SECOND)
    for bucket, now in ((state, NOW), (BucketState(refilled_at=0), 0)):
        shown = look(SYNCED, bucket, now)
        assert shown.bound == 0


def test_a_full_bucket_is_full_now() -> None:
    """By a clock behind too."""
    shown = look(Quota(10, 1, 1.0), BucketState(balance=10, refilled_at=NOW + SECOND))
    assert shown.full_in == 0


FAST: Final = Quota(10, 1, 1.0, synced=True)
FLYING: Final = {"b": Hold(2, 5, NOW + 4 * SECOND, 9 * SECOND), "a": Hold(5, 4, NOW + 3 * SECOND, 9 * SECOND)}


@pytest.mark.parametrize(
    "quota, fields, ask, bound",
    [
        # Nothing known: a claim's length from now, or its end; then 0, and refilling.
        (SYNCED, {"reading_at": None}, {}, CLAIM_US + 60 * SECOND),
        (SYNCED, {"reading_at": None, "probe_until": NOW + 5 * SECOND}, {}, 65 * SECOND),
        # 5 run out at 3 s and 2 at 4 s, each seen a second later: 9 - 5, 5 - 2, and 3 more.
        (FAST, {"balance": 5, "holds": FLYING}, {"tokens": 6}, 8 * SECOND),
        (FAST, {"balance": 5, "holds": FLYING}, {"tokens": 4, "keep": 2}, 8 * SECOND),
        # Full until 2 run out at 4 s, which is seen a second later.
        (FAST, {"balance": 9, "holds": {"b": FLYING["b"]}}, {"tokens": 10}, 7 * SECOND),
        # A sweep that was put off to 4.5 s: 10 - 5, and at 5 s 5.5 - 2.
        (FAST, {"balance": 9, "holds": FLYING, "due_at": NOW + 4_500_000}, {"tokens": 9}, 10_500_000),
        # Whoever stands in line comes a second late at most, and so does whoever asks.
        (FAST, {"balance": 0, "line": (Ticket("t", 5, 0, 1, NOW + 2 * SECOND),)}, {"tokens": 3}, 9 * SECOND),
        (FAST, {"balance": 0, "line": (Ticket("t", 1, 0, 1, NOW + 8 * SECOND),)}, {"tokens": 3}, 10 * SECOND + 1),
        (FAST, {"balance": 0, "line": (Ticket("t", 1, 0, 1, NOW + 2 * SECOND),)}, {"tokens": 10}, 12 * SECOND),
        # A recharge that an attempt begins is waited for.
        (replace(FAST, recharge_to=7), {"balance": 0}, {"tokens": 3}, 7 * SECOND),
        (replace(FAST, recharge_to=2), {"balance": 0}, {"tokens": 3}, 3 * SECOND),
        (FAST, {"balance": 0, "paused_until": NOW + 4 * SECOND}, {"tokens": 3}, 4 * SECOND),
        (FAST, {"balance": 0, "paused_until": NOW + 2 * SECOND}, {"tokens": 3}, 3 * SECOND),
    ],
)
def test_the_bound_counts_what_may_come_before(
    quota: Quota, fields: dict[str, Any], ask: dict[str, int], bound: int
) -> None:
    """Calls in flight that run out, those who stand in line, a recharge, a pause: to the microsecond."""
    state = known(**fields)
    state = replace(state, due_at=fields.get("due_at", state.due_at))
    shown = step(quota, state, Peek(**ask, probe_after_us=None))[1].snapshot
    assert shown is not None
    assert round(shown.bound * SECOND) == bound


def test_when_an_unknown_balance_will_be_full_is_not_known() -> None:
    """It may never be: the server may say anything."""
    shown = look(SYNCED, BucketState(refilled_at=NOW))
    assert (shown.balance, shown.available, shown.full_in) == (None, None, math.inf)


@pytest.mark.parametrize("balance, failures, free_at", [(5, 0, 0), (None, 0, 0), (None, 1, CLAIM_US + 600 * SECOND)])
def test_a_claim_given_back_is_free_at_once_and_the_second_time_a_failed_probe(
    balance: int | None, failures: int, free_at: int
) -> None:
    """Whoever is cancelled leaves the claim to the next one; who gives it back again and again must not hammer."""
    state = known(balance=balance, reading_at=None, probe_failures=failures)
    state, claim = step(SYNCED, state, Acquire(999))
    assert claim.claimed_until_us == NOW + CLAIM_US
    assert step(SYNCED, state, Unclaim(NOW + CLAIM_US - 1))[1].found is False
    assert step(SYNCED, state, Unclaim(NOW + CLAIM_US), NOW + CLAIM_US)[1].found is False
    state, given = step(SYNCED, state, Unclaim(NOW + CLAIM_US))
    assert (given.found, state.probe_returned) == (True, 1)
    assert not step(SYNCED, state, Unclaim(NOW + CLAIM_US))[1].found
    if failures:
        assert not step(SYNCED, state, Acquire(999))[1].probe
        return
    state, again = step(SYNCED, state, Acquire(999))
    assert again.probe
    state, _ = step(SYNCED, state, Unclaim(NOW + CLAIM_US))
    assert not step(SYNCED, state, Acquire(999), NOW + 600 * SECOND - 1)[1].probe
    assert step(SYNCED, state, Acquire(999), NOW + 1200 * SECOND)[1].probe
    # After a reading it is the first time again.
    state, _ = step(SYNCED, state, Reconcile(Reading(5)))
    now = NOW + 600 * SECOND
    state, _ = step(SYNCED, state, Acquire(999), now)
    state, _ = step(SYNCED, state, Unclaim(now + CLAIM_US), now)
    assert step(SYNCED, state, Acquire(999), now)[1].probe


# --- 9: lifetime


def test_a_look_at_an_empty_bucket_never_used_lets_it_begin_to_fill() -> None:
    """It is stored, so that who waits as told is granted; a full one needs no storing."""
    quota = Quota(3, 1, 1.0, initial=0)
    state, outcome = transition(quota, None, NOW, Peek(3))
    assert state is not None
    assert outcome.retry_after_us == 3 * SECOND
    for early in (1, 0):
        shown = step(quota, state, Peek(3), NOW + 3 * SECOND - early)[1]
        assert (shown.granted, shown.retry_after_us) == (not early, early)
    assert transition(Quota(3, 1, 1.0), None, NOW, Peek(3))[0] is None


# --- 10: others


@pytest.mark.parametrize(
    "capacity, tokens, kept, keep, balance, granted",
    [
        (300, 250, 100, 0, 300, True),  # never so much that the request can't be admitted
        (300, 250, 100, 0, 299, False),
        (300, 1, 40, 0, 41, True),
        (300, 1, 40, 0, 40, False),
        (300, 1, 40, 30, 71, True),
        (300, 1, 40, 30, 70, False),
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


# --- 12: a pause


@pytest.mark.parametrize("quota", [Quota(10, 1, 1.0), RECHARGING, Quota(10, 1, 1.0, synced=True)])
def test_a_pause_refuses_every_request_until_its_end_and_nothing_else(quota: Quota) -> None:
    """Whoever asks, in whatever way, is told its end; no probe is claimed, no recharge begins, holds are ended."""
    state = summed(quota, known(balance=7, holds={"a": Hold(2, 1, NOW + 99 * SECOND, 99 * SECOND)}))
    state, _ = step(quota, state, Pause(5 * SECOND))
    asks = (Acquire(1), Acquire(1, wait_us=LIMIT - 1), Reserve("b", 1, SECOND, scout=True), Peek(1))
    for command in asks:
        outcome = step(quota, state, command, NOW + 5 * SECOND - 1)[1]
        assert (outcome.granted, outcome.reason, outcome.retry_after_us) == (False, Reason.PAUSED, 1)
        assert not outcome.probe
        assert not outcome.closed
        assert step(quota, state, command, NOW + 5 * SECOND)[1].granted
    assert step(quota, state, Settle("a", 1))[1].found
    assert step(quota, state, Acquire(0))[1].granted
    ended, _ = step(quota, state, Pause(0))
    assert ended.paused_until is None
    assert step(quota, ended, Acquire(1))[1].granted


def test_who_would_wait_for_longer_than_the_pause_is_told_so() -> None:
    """The later of the two instants."""
    state, _ = step(Quota(10, 1, 1.0), BucketState(balance=0, refilled_at=NOW), Pause(2 * SECOND))
    for tokens, wait_us in ((1, 2 * SECOND), (2, 2 * SECOND), (3, 3 * SECOND)):
        assert step(Quota(10, 1, 1.0), state, Acquire(tokens))[1].retry_after_us == wait_us


def test_a_pause_is_a_day_at_most() -> None:
    """A longer one is cut when it is set, and damage is drawn in to as much when it is read."""
    day = 86_400 * SECOND
    state, _ = step(RECHARGING, None, Pause(day + 1))
    assert state.paused_until == NOW + day
    state, outcome = step(RECHARGING, replace(state, paused_until=LIMIT - 1), Acquire(0))
    assert (state.paused_until, outcome.repaired) == (NOW + day, ("paused_until",))


# --- 13: terms (see also test_terms.py)


def test_the_time_under_way_goes_over_as_time() -> None:
    """Half a token of the old rate is half a second, and so many tokens at the new one."""
    state, _ = step(Quota(10, 1, 1.0), None, Acquire(10))
    state, outcome = step(Quota(10, 10, 1.0), state, Acquire(0), NOW + 1_500_000)
    assert outcome.balance == 1 + 5
    stepped, _ = step(Quota(10, 1, 1.0), None, Acquire(10))
    stepped, outcome = step(Quota(10, 1, 1.0, stepped=True), stepped, Acquire(1), NOW + 500_000)
    assert (outcome.reason, outcome.retry_after_us) == (Reason.EMPTY, 500_000)


def test_of_the_time_at_refill_0_at_most_a_minute_goes_over() -> None:
    """It was not counted, so it may not all count at the next rate; of a bucket that began so nothing is known."""
    state, _ = step(Quota(1000, 0, 1.0), None, Acquire(1000))
    for stood in (SECOND, 3600 * SECOND):
        assert step(Quota(1000, 1, 1.0), state, Acquire(0), NOW + stood)[1].balance == 0
    # Once terms changed, they stand for a minute at least.
    for start in (0, NOW):
        state, _ = step(Quota(1000, 1, 1.0), None, Acquire(1000), start)
        state, _ = step(Quota(1000, 0, 1.0), state, Acquire(0), start)
        for passed in (60, 61, 3600):
            assert step(Quota(1000, 1, 1.0), state, Acquire(0), start + passed * SECOND)[1].balance == 60
    for refill in (0, 1):
        state, _ = step(Quota(1000, refill, 1.0), None, Acquire(1000), 0)
        assert step(Quota(1000, 2, 1.0), state, Acquire(0), 0)[0].refilled_at == 0
    hourly = Quota(1000, 1, 3600.0, stepped=True)
    state, _ = step(hourly, None, Acquire(1000), 0)
    state, _ = step(replace(hourly, refill=0), state, Acquire(0), 0)
    assert step(hourly, state, Acquire(0), 60 * SECOND)[0].refilled_at == 0


@pytest.mark.parametrize("capacity, wide", [(9, 10), (10, None), (11, None)])
def test_other_terms_leave_a_larger_capacity_and_the_places_that_were_told(capacity: int, wide: int | None) -> None:
    """A capacity that isn't larger bounds nothing; a place ten tokens in debt is where it was."""
    state, _ = step(Quota(10, 1, 60.0), None, Acquire(10))
    for _ in range(2):
        state, _ = step(Quota(10, 1, 60.0), state, Acquire(10, wait_us=LIMIT - 1))
    state, _ = step(Quota(capacity, 1, 59.0), state, Acquire(0))
    assert (state.wide_capacity, state.last_place) == (wide, NOW + 1200 * SECOND)


def test_for_a_minute_the_larger_capacity_bounds_and_then_the_smaller_clips() -> None:
    """At the end of the minute what is above the smaller one is gone, and no sooner; refill fills up to the larger."""
    large, small, minute = Quota(100, 1, 60.0), Quota(50, 1, 60.0), 60 * SECOND
    state, _ = step(large, None, Acquire(20))
    state, changed = step(small, state, Acquire(0))
    assert (changed.balance, changed.terms) == (80, (large, small))
    assert step(small, state, Acquire(81), NOW + minute - 1)[1].reason is Reason.TOO_LARGE
    assert step(small, state, Acquire(80), NOW + minute - 1)[1].granted
    clipped, outcome = step(small, state, Acquire(1), NOW + minute)
    assert (outcome.balance, clipped.wide_capacity) == (49, None)
    assert step(small, state, Acquire(0), NOW + 9 * minute)[1].balance == 50
    # What a server said is there is there.
    state = known(balance=80, quota=replace(large, synced=True))
    state, _ = step(replace(small, synced=True), state, Acquire(0))
    assert step(replace(small, synced=True), state, Acquire(0), NOW + minute)[1].balance == 81


@pytest.mark.parametrize("tokens, reason, wait_us", [(69, Reason.EMPTY, 59 * SECOND), (70, Reason.TOO_LARGE, LIMIT)])
def test_what_the_smaller_capacity_will_clip_is_never_there(tokens: int, reason: Reason, wait_us: int) -> None:
    """10 tokens at one a second: the 70th would come as only 50 are held any more."""
    large, small = Quota(100, 1, 1.0), Quota(50, 1, 1.0)
    state, _ = step(small, step(large, None, Acquire(90))[0], Acquire(0))
    outcome = step(small, state, Acquire(tokens))[1]
    assert (outcome.reason, outcome.retry_after_us) == (reason, wait_us)
    assert not step(small, state, Acquire(tokens), NOW + 59 * SECOND - 1)[1].granted
    assert step(small, state, Acquire(tokens), NOW + 59 * SECOND)[1].granted is (reason is Reason.EMPTY)
    assert not step(small, state, Acquire(tokens), NOW + 60 * SECOND)[1].granted


def test_a_recharge_aims_at_the_capacity_that_lasts() -> None:
    """Its end is fixed when it begins, so it may not reckon with the larger one that bounds for a minute."""
    large, small = Quota(100, 1, 2.0, recharge_to=90), Quota(50, 1, 2.0, recharge_to=90)
    state, _ = step(small, step(large, None, Acquire(100))[0], Acquire(0))
    outcome = step(small, state, Acquire(1))[1]
    assert (outcome.reason, outcome.retry_after_us) == (Reason.RECHARGING, 100 * SECOND)
