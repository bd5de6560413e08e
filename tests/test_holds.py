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

from checks.models.strategies import HOUR, MINUTE, SECOND, commands, gaps, quotas
from keepa_tokens import keepa_quota
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Outcome, Peek, Refund, Reserve, Settle
from keepa_tokens.rules.decision import InFlight
from keepa_tokens.rules.transition import lifetime_us, transition
from keepa_tokens.units import SWEEP_US, TOLERANCE_US
from tests.stories import Story, each_story
from tests.strategies import SPARING, Direct, Make, Situation, either_way, reached

FIXED = Quota(100, 0, 1.0)
"""No refill: every token is accounted for."""

TOLD = Quota(100, 0, 1.0, synced=True, initial=100)
"""The same beside a server."""


NET_0: Final = Quota(1000, 0, 1.0, synced=True)
UNKNOWN: Final = Quota(100, 5, 60.0, synced=True)
PER_SECOND: Final = Quota(10, 1, 1.0)
LEARNING: Final = Quota(10, 1, 1.0, synced=True)
SEVEN: Final = Quota(7, 7, 1.0)
SLOW: Final = Quota(100, 1, 3600.0, synced=True, initial=100)
PLAN: Final = keepa_quota(20)

STORIES: Final = """
a plain hold takes its tokens at once, and settling it charges what it cost: FIXED
    0 hold a 10 life=60s -> GRANTED balance=90 held=10 available=90
    1s settle a (7|10|0|25|150) -> found balance=(93|90|100|75|-50) held=0
a synced one sets them aside beside the balance: TOLD
    0 hold a 10 life=60s -> GRANTED balance=100 held=10 available=90
    1s settle a (7|10|0|25|150) -> found balance=(93|90|100|75|-50) held=0
a hold ends once, however it is ended: FIXED
    0 hold a 10 life=60s; 1 (settle a 4|settle a|cancel a) -> found balance=(96|90|100) held=0
    2 settle a 4 -> !found, settle a -> !found, cancel a -> !found, settle a 90 -> !found balance=(96|90|100) held=0
a reserve that arrives again is granted on the hold that is there, and sets nothing more aside: FIXED
    0 hold a 100 life=60s -> GRANTED; 1 hold a 100 life=60s -> GRANTED balance=0 held=100, hold b 1 -> EMPTY
a plain hold that runs out is forgotten: its tokens were taken, and none come back: FIXED
    0 hold a 10 life=60s; 60s-1 peek -> balance=90 held=10
    60s take 0 -> ran_out=10 balance=90 held=0, (settle a 3|cancel a) -> !found balance=90 held=0
a synced one is forgotten after one more lifetime, its estimate stays charged: TOLD
    0 hold a 10 life=60s; 120s (settle a 3|cancel a) -> !found balance=90 held=0 !due_at
# Full until the hold runs out at 10 s; then 50 are gone, and 20 come back until 30 s.
a hold is charged at its own instant, whenever somebody looks: TOLD refill=1
    0 hold a 50 life=10s; (10s take 0; 11s take 0; 30s|30s) peek -> balance=70 held=0
# What it cost may have come after that reading: it is charged, the estimate isn't given back.
a late settle does not correct a balance that a reading has replaced: NET_0
    0 read 100 1000 refill=0, hold a 10 life=60s; 61s read 70 1001 -> balance=70 held=0
    62s settle a 4 -> balance=66 held=0
a hold that runs out while nothing is known charges nothing, the next reading has its cost: UNKNOWN refill=0
    0 hold a 10 scout=1 -> scout; 1s peek -> balance=- held=0; 2s-1 settle a 3 says=50 -> found
    2s peek -> balance=50 held=0
nor is anything given back where the balance began at 0 meanwhile, as the claim is over: UNKNOWN refill=0
    0 hold a 10 life=15s scout=1; 15s peek -> balance=- held=0; 25s settle a 3 -> found balance=-3 held=0
what comes back to an unknown balance is as unknown: UNKNOWN
    0 hold a 10 life=2s scout=1 -> GRANTED
    3s settle a 7 -> balance=-, settle a 3 -> balance=-
    3s cancel a -> balance=-, back r 5 -> balance=-, peek -> balance=-
a refund counts once, and not above capacity: FIXED initial=50
    0 back r 30 -> balance=80, back r 30 -> !found balance=80, back s 30 -> balance=100
a refund lowers no balance that is above capacity: FIXED balance=150
    0 back r 30 -> balance=150
a refund is remembered for ten minutes: FIXED initial=0
    0 back r 5 -> found; (0|600s-1|600s) back r 5 -> (!found|!found|found) balance=(5|5|10)
# So it is with a refund, and with what comes back of a synced hold that ran out.
what fills the bucket leaves no fraction under way: 10 pass, not 11: (PER_SECOND|LEARNING|LEARNING) initial=10
    0 hold a 1 life=10s; 10s take (1|0|0); 11s-1 take 0, (back r 1|settle a 0|cancel a) -> balance=10
    11s-1 take 10 -> GRANTED; 12s-2 take 1 -> EMPTY; 12s-1 take 1 -> GRANTED
what is given back of a plain hold fills up to capacity, what was refilled since counts: SEVEN
    0 hold a 4 life=60s; 10s take 3; 12s (settle a 1|cancel a) -> balance=7, hold b 4 life=10s, take 3 -> balance=0
    12s (settle b 1|cancel b) -> balance=(3|4)
and so does what is given back of a synced one that ran out: SEVEN synced initial=7
    0 hold a 4 life=10s; 10s take 3; 12s (settle a 1|cancel a) -> balance=7, hold b 4 life=10s
    22s take 3 -> balance=0, (settle b 1|cancel b) -> balance=(3|4)
# A new one would let more go until then.
a bucket is kept until it is full, its last hold, its pause and its line are over, and a margin: PER_SECOND balance=10
    0 (put balance=-990, take 0|put balance=7, take 0|hold a 10 life=600s|pause 3600s|put line=t:5:0:0:@3600s, take 0)
    0 peek -> lifetime=(1010s|60s|610s|3610s|3670s)
`initial` at the capacity is the default: PER_SECOND period=100 initial=10
    0 take 3 -> lifetime=310s
one is kept for ever where a new one would begin lower: (PER_SECOND|LEARNING|PLAN) initial=(9|0|1200)
    0 (take 1|take 1|read 300 refill=5 capacity=300), peek -> lifetime=-
one that never refills is kept for a day from its last use: FIXED start=(0|77s|99999999s)
    0 take 1 -> lifetime=86400s
a synced one keeps for a day what it learned, longer with a hold, but not for a debt: LEARNING initial=(-|-|-|10)
    0 (take 1|hold a 1 life=86400s scout=1|read -1000000|take 1), peek -> lifetime=(86400s|86410s|86400s|86400s)
and until it is full if that is longer, or after its holds: SLOW
    0 (take 100|hold a 100 life=43200s), peek -> lifetime=(360010s|403210s)
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_holds_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


def test_a_look_shows_the_calls_in_flight() -> None:
    """Whose they are, since when and until when, in the order in which they run out; by no clock less than 0."""
    bucket = Direct(TOLD)
    bucket.apply(Reserve("a", 10, MINUTE, label="crawler"), SECOND)
    bucket.apply(Reserve("b", 5, 2 * SECOND), SECOND)
    for now, first, second in ((0, (0, 3), (0, 61)), (SECOND, (0, 2), (0, 60)), (2 * SECOND, (1, 1), (1, 59))):
        shown = bucket.look(now)
        assert shown.in_flight == (InFlight("b", 5, "", *first), InFlight("a", 10, "crawler", *second))


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


def test_what_is_only_remembered_is_forgotten_once_a_minute_at_most() -> None:
    """With a refund every second it is not every second that all of the bucket is read to forget one."""
    bucket = Direct(FIXED)
    swept_at = set()
    for second in range(700):
        bucket.apply(Refund(f"{second}", 1), second * SECOND)
        assert bucket.state is not None
        swept_at.add(bucket.state.due_at)
    assert swept_at == {600 * SECOND, 661 * SECOND, 722 * SECOND}
    assert bucket.state is not None
    assert len(bucket.state.holds) == 700 - 62


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
        assert hold.swept_at + SWEEP_US > state_at.now


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


# --- the lifetime of a state


def kept_and_fresh(at: Situation, data: st.DataObject, idle: int) -> tuple[Outcome, Outcome] | None:
    """Return what becomes of a command at a bucket whose lifetime is over, and at a new one; None: it has no end."""
    life = None if at.state is None else lifetime_us(at.state, at.now)
    if life is None:
        return None
    now = at.now + life + idle
    command = data.draw(commands(now))
    return transition(at.quota, at.state, now, command)[1], transition(at.quota, None, now, command)[1]


@SPARING
@given(at=reached(quotas(synced=False, stepped=False), most_steps=12), data=st.data(), idle=gaps)
def test_dropping_a_plain_state_at_its_lifetime_changes_nothing(at: Situation, data: st.DataObject, idle: int) -> None:
    """A plain bucket kept past its lifetime answers every command as a new one does: it was full, with no holds."""
    if at.quota.refill and (found := kept_and_fresh(at, data, idle)):
        kept, fresh = found
        assert replace(kept, ran_out=()) == fresh


@SPARING
@given(at=reached(quotas(synced=False, stepped=True, least_refill=1)), data=st.data(), idle=gaps)
def test_dropping_a_stepped_state_at_its_lifetime_only_forgets_the_phase(
    at: Situation, data: st.DataObject, idle: int
) -> None:
    """The same for stepped refill, but for when the next step comes: a period from the first use, so not earlier."""
    if found := kept_and_fresh(at, data, idle):
        old, new = found
        assert replace_times(old) == replace_times(new)
        assert old.retry_after_us <= new.retry_after_us
        assert old.place_us <= new.place_us


def replace_times(outcome: Outcome) -> tuple[object, ...]:
    """Return what was decided, without when."""
    return outcome.granted, outcome.reason, outcome.balance, outcome.found, outcome.probe
