"""Holds: taken at once on a plain bucket, set beside the balance on a synced one; ended once, by id.

One that runs out is forgotten on a plain bucket; on a synced one it is charged at its own instant, and corrected once
by a late settle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checks.models.strategies import DAY, EPOCH, HOUR, MINUTE, SECOND, commands, gaps, instants, quotas
from keepa_tokens import keepa_quota
from keepa_tokens.quota import Quota
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
)
from keepa_tokens.rules.decision import InFlight
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import lifetime_us, transition
from keepa_tokens.units import REFUND_MEMORY_US, SWEEP_US, TOLERANCE_US
from tests.strategies import SPARING, Direct, Make, Situation, either_way, reached

FIXED = Quota(100, 0, 1.0)
"""No refill: every token is accounted for."""

TOLD = Quota(100, 0, 1.0, synced=True, initial=100)
"""The same beside a server."""


@either_way
@pytest.mark.parametrize("quota, left_beside", [(FIXED, 90), (TOLD, 100)])
def test_a_hold_takes_its_tokens_or_sets_them_aside_and_settling_charges_the_actual_cost(
    make: Make, quota: Quota, left_beside: int
) -> None:
    """Plain: the balance goes down at once. Synced: they stand beside it. A settle leaves the actual cost."""
    for actual, left in ((7, 93), (10, 90), (0, 100), (25, 75), (150, -50)):
        bucket = make(quota)
        assert bucket.apply(Reserve("a", 10, MINUTE), 0).granted
        assert bucket.balance(0) == (left_beside, 10)
        snapshot = bucket.look(0)
        assert snapshot.available == 90
        assert bucket.apply(Settle("a", actual), SECOND).found
        assert bucket.balance(SECOND) == (left, 0)


def test_a_look_shows_the_calls_in_flight() -> None:
    """Whose they are, since when and until when, in the order in which they run out; by no clock less than 0."""
    bucket = Direct(TOLD)
    bucket.apply(Reserve("a", 10, MINUTE, label="crawler"), SECOND)
    bucket.apply(Reserve("b", 5, 2 * SECOND), SECOND)
    for now, first, second in ((0, (0, 3), (0, 61)), (SECOND, (0, 2), (0, 60)), (2 * SECOND, (1, 1), (1, 59))):
        shown = bucket.look(now)
        assert shown.in_flight == (InFlight("b", 5, "", *first), InFlight("a", 10, "crawler", *second))


@either_way
@pytest.mark.parametrize("ending", [Settle("a", 4), Settle("a"), Cancel("a")])
def test_a_hold_ends_once(make: Make, ending: Command) -> None:
    """A settle or a cancel that arrives again, or after the other, finds nothing and changes nothing."""
    bucket = make(FIXED)
    bucket.apply(Reserve("a", 10, MINUTE), 0)
    bucket.apply(ending, 1)
    after = bucket.balance(1)
    for late in (Settle("a", 4), Settle("a"), Cancel("a"), Settle("a", 90)):
        assert not bucket.apply(late, 2).found
        assert bucket.balance(2) == after


@either_way
def test_a_reserve_that_arrives_again_sets_nothing_more_aside(make: Make) -> None:
    """A repeated reserve is granted on the hold that is there, also when nothing is left for another."""
    bucket = make(FIXED)
    assert bucket.apply(Reserve("a", 100, MINUTE), 0).granted
    assert bucket.apply(Reserve("a", 100, MINUTE), 1).granted
    assert bucket.balance(1) == (0, 100)
    assert not bucket.apply(Reserve("b", 1, MINUTE), 1).granted


@either_way
@given(tokens=st.integers(1, 100), actual=st.integers(0, 200), late=st.integers(0, MINUTE - 1))
def test_a_hold_that_runs_out_is_charged_and_a_late_settle_corrects_it_once(
    make: Make, tokens: int, actual: int, late: int
) -> None:
    """Synced: at its end the estimate is charged; within one more lifetime a settle corrects that, once."""
    bucket = make(TOLD)
    bucket.apply(Reserve("a", tokens, MINUTE), 0)
    assert bucket.balance(MINUTE - 1) == (100, tokens)
    assert bucket.balance(MINUTE) == (100 - tokens, 0)
    assert bucket.apply(Settle("a", actual), MINUTE + late).found
    assert bucket.balance(MINUTE + late) == (100 - actual, 0)
    assert not bucket.apply(Settle("a", actual), MINUTE + late).found
    assert bucket.balance(MINUTE + late) == (100 - actual, 0)


@either_way
@pytest.mark.parametrize("ending", [Settle("a", 3), Cancel("a")])
def test_a_plain_hold_that_runs_out_is_forgotten(make: Make, ending: Command) -> None:
    """Its tokens were taken when it was opened: nothing more is charged, and nothing comes back afterwards."""
    bucket = make(FIXED)
    bucket.apply(Reserve("a", 10, MINUTE), 0)
    assert bucket.balance(MINUTE - 1) == (90, 10)
    ended = bucket.apply(Acquire(0), MINUTE)
    assert [hold.tokens for hold in ended.ran_out] == [10]
    assert bucket.balance(MINUTE) == (90, 0)
    assert not bucket.apply(ending, MINUTE).found
    assert bucket.balance(MINUTE) == (90, 0)


@pytest.mark.parametrize("ending", [Settle("a", 3), Cancel("a")])
def test_a_hold_is_forgotten_after_one_more_lifetime(ending: Command) -> None:
    """Synced: a settle or cancel that is later than that finds nothing: the estimate stays charged."""
    bucket = Direct(TOLD)
    bucket.apply(Reserve("a", 10, MINUTE), 0)
    assert not bucket.apply(ending, 2 * MINUTE).found
    assert bucket.balance(2 * MINUTE) == (90, 0)
    assert bucket.stored.holds == {}


@either_way
def test_a_hold_is_charged_at_its_own_instant_whenever_somebody_looks(make: Make) -> None:
    """The refill after a hold's end counts from its end, also when nobody comes by until long after."""
    asked, alone = (make(Quota(100, 1, 1.0, synced=True, initial=100)) for _ in range(2))
    for bucket in (asked, alone):
        bucket.apply(Reserve("a", 50, 10 * SECOND), 0)
    asked.apply(Acquire(0), 10 * SECOND)
    asked.apply(Acquire(0), 11 * SECOND)
    # Full until the hold runs out at 10 s; then 50 are gone, and 20 come back until 30 s.
    assert asked.balance(30 * SECOND) == alone.balance(30 * SECOND) == (70, 0)


@pytest.mark.parametrize("looked, left", [(1_000_000, [1e-6]), (1_999_999, [0]), (2_000_000, [])])
def test_holds_that_fall_due_are_swept_once_a_second_at_most(looked: int, left: list[float]) -> None:
    """After a sweep the next one waits for a second; until then a hold that has run out counts as in flight."""
    bucket = Direct(TOLD)
    bucket.apply(Reserve("a", 10, SECOND), 0)
    bucket.apply(Reserve("b", 5, SECOND + 1), 0)
    bucket.apply(Acquire(0), SECOND)
    assert bucket.balance(looked)[1] == 5 * len(left)
    shown = bucket.look(looked)
    assert [each.runs_out_in for each in shown.in_flight] == left
    # A settle needs no sweep: it ends the hold as if it were in time.
    assert bucket.apply(Settle("b", 2), looked).found
    assert bucket.balance(looked) == (88, 0)


@SPARING
@given(at=reached(), looks=st.lists(gaps, min_size=1, max_size=4))
def test_looking_on_the_way_changes_nothing(at: Situation, looks: list[int]) -> None:
    """A bucket that was looked at and asked for 0 tokens on the way says in the end what one says that wasn't."""
    often, once = Direct(at.quota, at.state), Direct(at.quota, at.state)
    now = at.now
    for gap in looks:
        now += gap
        before = often.state
        outcome = often.apply(Peek(), now)
        due = any(hold.due_at <= now for hold in before.holds.values()) if before is not None else True
        # Nothing is stored for a look, unless something was mended, swept, or begins to fill.
        assert often.state is before or outcome.repaired or due
    if at.state is not None and not at.state.holds:
        assert often.apply(Peek(), now) == once.apply(Peek(), now)


@given(first=st.integers(1, 20 * SECOND), second=st.integers(1, 20 * SECOND), now=st.integers(0, HOUR))
@example(first=20 * SECOND, second=SECOND, now=20 * SECOND)
def test_holds_are_charged_in_the_order_of_their_ends(first: int, second: int, now: int) -> None:
    """Two holds of a nearly full bucket: the refill between their ends is what each end left room for, by hand."""
    bucket = Direct(Quota(10, 1, 1.0, synced=True, initial=10))
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
    assert bucket.balance(now)[0] == expected


@SPARING
@given(state_at=reached(), command=st.data())
def test_held_and_balance_say_what_the_holds_say(state_at: Situation, command: st.DataObject) -> None:
    """After any command the sums are those of the holds in flight, `available` follows, and no hold is overdue."""
    bucket = Direct(state_at.quota, state_at.state)
    bucket.apply(command.draw(commands(state_at.now)), state_at.now)
    outcome = bucket.apply(Acquire(0), state_at.now)
    state = bucket.state
    if state is None or outcome.balance is None:
        return
    flying = [hold.tokens for hold in state.holds.values() if hold.in_flight]
    seen = bucket.look(state_at.now)
    assert (seen.held, seen.holds) == (sum(flying), len(flying)) == (state.held or 0, state.open or 0)
    assert seen.available == outcome.balance - (sum(flying) if state_at.quota.synced else 0)
    for hold in state.holds.values():
        assert hold.due_at + SWEEP_US > state_at.now


@given(back=st.integers(1, 2 * HOUR), life=st.integers(1, HOUR))
def test_a_clock_that_steps_back_does_not_keep_a_hold_for_longer_than_its_lifetime(back: int, life: int) -> None:
    """After any step back a hold ends within one lifetime of the new time, and the tolerance between clocks."""
    for quota in (FIXED, TOLD):
        bucket = Direct(quota)
        start = 3 * HOUR
        bucket.apply(Reserve("a", 10, life), start)
        now = start - back
        bucket.apply(Acquire(0), now)
        assert bucket.balance(now + life + TOLERANCE_US) == (90, 0)


# --- beside readings


def synced(start: int = 100) -> Direct:
    """Return a synced bucket that was told its balance at EPOCH."""
    bucket = Direct(Quota(1000, 0, 1.0, synced=True))
    bucket.apply(Reconcile(Reading(start, server_time=1000.0, refill=0)), EPOCH)
    return bucket


def test_a_late_settle_does_not_correct_a_balance_that_a_reading_has_replaced() -> None:
    """Once a reading has replaced the balance that a hold was charged to, nothing is given back for that charge."""
    bucket = synced()
    bucket.apply(Reserve("a", 10, MINUTE), EPOCH)
    bucket.apply(Reconcile(Reading(70, server_time=1001.0)), EPOCH + 61 * SECOND)
    assert bucket.balance(EPOCH + 61 * SECOND) == (70, 0)
    bucket.apply(Settle("a", 4), EPOCH + 62 * SECOND)
    # What it cost may have come after that reading: it is charged, the estimate isn't given back.
    assert bucket.balance(EPOCH + 62 * SECOND) == (66, 0)


def test_a_hold_that_runs_out_while_nothing_is_known_charges_nothing() -> None:
    """There is no balance to charge; the next reading has the cost."""
    bucket = Direct(Quota(100, 0, 1.0, synced=True))
    outcome = bucket.apply(Reserve("a", 10, SECOND, scout=True), EPOCH)
    assert outcome.scout
    assert bucket.balance(EPOCH + SECOND) == (None, 0)
    assert bucket.apply(Settle("a", 3, Reading(50)), EPOCH + 2 * SECOND - 1).found
    assert bucket.balance(EPOCH + 2 * SECOND) == (50, 0)
    # Nor is anything given back where the balance began at 0 meanwhile, as the claim ended without a reading.
    bucket = Direct(Quota(100, 0, 1.0, synced=True))
    bucket.apply(Reserve("a", 10, 15 * SECOND, scout=True), EPOCH)
    assert bucket.balance(EPOCH + 15 * SECOND) == (None, 0)
    assert bucket.apply(Settle("a", 3), EPOCH + 25 * SECOND).found
    assert bucket.balance(EPOCH + 25 * SECOND) == (-3, 0)


# --- refunds and the lifetime of a state


@either_way
def test_a_refund_counts_once_and_not_above_capacity(make: Make) -> None:
    """The same refund again finds nothing; another fills up to capacity and no further; neither lowers a balance."""
    bucket = make(Quota(100, 0, 1.0, initial=50))
    assert bucket.apply(Refund("r", 30), 0).balance == 80
    again = bucket.apply(Refund("r", 30), 0)
    assert (again.found, again.balance) == (False, 80)
    assert bucket.apply(Refund("s", 30), 0).balance == 100
    above = make(Quota(100, 0, 1.0))
    above.put(BucketState(balance=150, refilled_at=0))
    assert above.apply(Refund("r", 30), 0).balance == 150


@pytest.mark.parametrize("later, counts", [(0, False), (REFUND_MEMORY_US - 1, False), (REFUND_MEMORY_US, True)])
def test_a_refund_is_remembered_for_ten_minutes(later: int, counts: bool) -> None:
    """Until then the same id counts no second time."""
    bucket = Direct(Quota(100, 0, 1.0, initial=0))
    assert bucket.apply(Refund("r", 5), EPOCH).found
    assert bucket.apply(Refund("r", 5), EPOCH + later).found is counts
    assert bucket.balance(EPOCH + later)[0] == (10 if counts else 5)


@pytest.mark.parametrize("ending", [Refund("r", 1), Settle("a", 0), Cancel("a")])
def test_what_comes_back_and_fills_the_bucket_leaves_no_fraction_under_way(ending: Command) -> None:
    """A full bucket earns nothing: the part of a token that was under way is gone, so that 10 pass and not 11.

    So it is with a refund, and with what comes back of a synced hold that ran out.
    """
    bucket = Direct(Quota(10, 1, 1.0, synced=not isinstance(ending, Refund), initial=10))
    bucket.apply(Reserve("a", 1, 10 * SECOND), EPOCH)
    if not bucket.quota.synced:
        bucket.apply(Acquire(1), EPOCH + 10 * SECOND)
    now = EPOCH + 11 * SECOND - 1
    bucket.apply(Acquire(0), now)
    assert bucket.apply(ending, now).balance == 10
    assert bucket.apply(Acquire(10), now).granted
    assert not bucket.apply(Acquire(1), now + SECOND - 1).granted
    assert bucket.apply(Acquire(1), now + SECOND).granted


@pytest.mark.parametrize("ending", [Settle("a", 1), Cancel("a")])
@pytest.mark.parametrize("synced", [False, True])
def test_what_is_given_back_fills_up_to_capacity(ending: Settle | Cancel, synced: bool) -> None:
    """What was refilled since counts: nothing is given back above capacity, also (synced) after the hold ran out."""
    quota = Quota(7, 7, 1.0, synced=True, initial=7) if synced else Quota(7, 7, 1.0)
    bucket = Direct(quota)
    bucket.apply(Reserve("a", 4, 10 * SECOND if synced else MINUTE), EPOCH)
    bucket.apply(Acquire(3), EPOCH + 10 * SECOND)
    assert bucket.apply(ending, EPOCH + 12 * SECOND).balance == 7
    bucket.apply(Reserve("b", 4, 10 * SECOND), EPOCH + 12 * SECOND)
    end = EPOCH + (22 * SECOND if synced else 12 * SECOND)
    assert bucket.apply(Acquire(3), end).balance == 0
    late = bucket.apply(replace(ending, id="b"), end)
    assert late.balance == (3 if isinstance(ending, Settle) else 4)


@SPARING
@given(at=reached(quotas(synced=False, stepped=False), most_steps=12), data=st.data(), idle=gaps)
def test_dropping_a_plain_state_at_its_lifetime_changes_nothing(at: Situation, data: st.DataObject, idle: int) -> None:
    """A plain bucket kept past its lifetime answers every command as a new one does: it was full, with no holds."""
    state = at.state
    life = None if state is None else lifetime_us(state, at.now)
    if life is None or at.quota.refill == 0:
        return
    now = at.now + life + idle
    command = data.draw(commands(now))
    kept = transition(at.quota, state, now, command)[1]
    fresh = transition(at.quota, None, now, command)[1]
    assert replace(kept, ran_out=()) == fresh


@SPARING
@given(at=reached(quotas(synced=False, stepped=True, least_refill=1)), data=st.data(), idle=gaps)
def test_dropping_a_stepped_state_at_its_lifetime_only_forgets_the_phase(
    at: Situation, data: st.DataObject, idle: int
) -> None:
    """The same for stepped refill, but for when the next step comes: a period from the first use, so not earlier."""
    state = at.state
    life = None if state is None else lifetime_us(state, at.now)
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


PER_SECOND: Final = Quota(10, 1, 1.0)
LEARNING: Final = Quota(10, 1, 1.0, synced=True)
SLOW: Final = Quota(100, 1, 3600.0, synced=True, initial=100)


@pytest.mark.parametrize(
    "why, quota, state, command, life",
    [
        ("a new one would begin lower", replace(PER_SECOND, initial=9), None, Acquire(1), None),
        ("and so would a synced one", replace(LEARNING, initial=0), None, Acquire(1), None),
        ("`initial` at capacity is the default", Quota(10, 1, 100.0, initial=10), None, Acquire(3), 310 * SECOND),
        ("until it is full", PER_SECOND, BucketState(balance=-990, refilled_at=EPOCH), Acquire(0), 1010 * SECOND),
        ("and its last hold is over", PER_SECOND, None, Reserve("a", 10, 10 * MINUTE), 610 * SECOND),
        ("and its pause", PER_SECOND, None, Pause(HOUR), HOUR + 10 * SECOND),
        (
            "and whoever stands in line has lapsed",
            PER_SECOND,
            BucketState(balance=10, refilled_at=EPOCH, line=(Ticket("t", 5, 0, 0, EPOCH + HOUR),)),
            Acquire(0),
            HOUR + MINUTE + 10 * SECOND,
        ),
        ("a synced one keeps for a day what it learned", LEARNING, None, Acquire(1), DAY),
        ("longer with a hold", LEARNING, None, Reserve("a", 1, DAY, scout=True), DAY + 10 * SECOND),
        ("but not for a debt", LEARNING, None, Reconcile(Reading(-(10**6))), DAY),
        (
            "what the server reported bounds for ever",
            keepa_quota(20, initial=1200),
            None,
            Reconcile(Reading(300, refill=5, capacity=300)),
            None,
        ),
        ("where it begins full", replace(LEARNING, initial=10), None, Acquire(1), DAY),
        ("until it is full if that is longer", SLOW, None, Acquire(100), 100 * HOUR + 10 * SECOND),
        ("after its holds", SLOW, None, Reserve("a", 100, 12 * HOUR), 112 * HOUR + 10 * SECOND),
    ],
)
def test_a_bucket_is_kept_as_long_as_a_new_one_would_let_more_go(
    why: str, quota: Quota, state: BucketState | None, command: Command, life: int | None
) -> None:
    """Until it is full, its last hold, its pause and its line are over, and a margin; else a day, or for ever."""
    after, _ = transition(quota, state, EPOCH, command)
    assert after is not None
    assert lifetime_us(after, EPOCH) == life, why


@given(now=instants)
def test_a_refill_of_0_keeps_a_state_for_a_day(now: int) -> None:
    """Without refill there is no instant at which a plain bucket is full; it is kept for a day from its last use."""
    state, _ = transition(FIXED, None, now, Acquire(1))
    assert state is not None
    assert lifetime_us(state, now) == DAY


def test_what_comes_back_to_an_unknown_balance_is_as_unknown() -> None:
    """A hold that ran out had nothing to be charged to; settled late, or with a refund, the balance is not known."""
    bucket = Direct(Quota(100, 5, 60.0, synced=True))
    assert bucket.apply(Reserve("a", 10, 2 * SECOND, scout=True), EPOCH).granted
    for command in (Settle("a", 7), Settle("a", 3), Cancel("a"), Refund("r", 5)):
        outcome = bucket.apply(command, EPOCH + 3 * SECOND)
        assert (outcome.balance, bucket.look(EPOCH + 3 * SECOND).balance) == (None, None)
