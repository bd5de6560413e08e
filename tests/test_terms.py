"""Rule 13: a bucket runs on one set of terms, stored with it, whoever asks on which terms and however often."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepa_tokens.errors import ConfigError
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Outcome, Pause, Peek
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.units import MICROSECONDS, MINUTE_US
from tests.stories import Story, each_story
from tests.strategies import Direct, Make, either_way

SECOND: Final = MICROSECONDS
NOW: Final = 1_780_000_000 * SECOND
DEAL: Final = Quota(300, 5, 60.0)


ZERO: Final = Quota(11, 0, 1.0)
SOME: Final = Quota(11, 1, 3.0)
FAST: Final = Quota(1000, 1000, 1.0)
SLOW: Final = Quota(10, 10, 1.0)
LARGE: Final = Quota(100, 10, 1.0)
PLAN, BIGGER_PLAN = replace(DEAL, synced=True), Quota(1200, 20, 60.0, synced=True)
WIDE, NARROW = (Quota(capacity, 1, 1.0, synced=True) for capacity in (1200, 300))
BROAD, SLIM = (Quota(capacity, 100, 61.0, stepped=True, synced=True) for capacity in (300, 20))
LONG, SHORT = (Quota(300, 5, period, stepped=True, synced=True) for period in (600.0, 60.0))
MANY, FEW = (Quota(capacity, 5, 60.0, stepped=True, synced=True) for capacity in (1200, 300))

STORIES: Final = """
terms that replace refill 0 find what was there, and no more: ZERO
    0 take 9 -> balance=2, on SOME, take 2 -> balance=0, take 1 -> EMPTY
from 1,000 a second to 10: a minute after the change the smaller capacity clips the balance: FAST
    0 take 1 -> GRANTED; 60s on SLOW, take 1 -> GRANTED
    180s take 11 -> TOO_LARGE, take 10 -> GRANTED, take 1 -> EMPTY
served by others' smaller terms, a caller is told when its own may take over: LARGE
    0 take 1 -> GRANTED, on SLOW, take 1 -> GRANTED; 10 on LARGE, take 150 -> TOO_LARGE in=60s-10
a capacity that the server reported bounds on whichever terms, a bigger plan's too, in turns: BIGGER_PLAN
    0 read 300 refill=5 capacity=300; 61s on PLAN, take 0 -> balance=300; 122s on BIGGER_PLAN, take 0 -> balance=300
    183s on PLAN, take 0 -> balance=300; 244s on BIGGER_PLAN, take 0 -> balance=300
a reading bounds nothing in the minute after a change, whenever it tells the next refill: MANY
    0 read 1000, on FEW, take 1 -> balance=999; 30s read 900 next_refill_in=(20|90) -> TAKEN balance=900 capacity=1200
    60s-1 peek -> capacity=1200; 60s peek -> capacity=300
other terms bring nothing of what came until the last reading, it is in the balance: LONG
    0 read 0 next_refill_in=100; 1s on (SHORT|PLAN), take 1 -> EMPTY balance=0 in=(39s|11s)
nor do those that end a refill of 0: LONG refill=0 balance=0 terms_at=@0
    100s read 0; 110s on PLAN, take 1 -> EMPTY balance=0 in=2s
a step that the server told for later than the terms have it slows steps alone: SHORT
    0 read 0 next_refill_in=90, on (SHORT|PLAN), take 1 -> EMPTY in=(90s|12s)
# A step after the minute of the larger capacity brings less than one within.
the stated bound counts on the capacity that lasts: BROAD
    0 read 30 next_refill_in=61, hold lost 25 life=90s -> GRANTED, on SLIM, take 19 -> !granted, peek 19 -> bound=122s
    122s take 19 -> GRANTED
after a minute a plain one's line has the smaller capacity: LARGE balance=500 wide_capacity=1000 terms_at=@0 (|synced)
    0 put line=first:450:0:0:@70s, peek 100 -> bound=(117s+1|77s+1)
# The larger capacity bounds for a minute, so a wait can pass its end: its third would be too large after it.
what is kept back goes by the capacity that lasts: WIDE
    0 read 1000, read 500, read 10, on NARROW, take 150 -> EMPTY in=240s
    240s-1 take 150 -> EMPTY; 240s take 150 -> GRANTED
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_terms_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


class Shared(Direct):
    now = NOW

    def ask(self, quota: Quota, tokens: int = 1) -> Outcome:
        self.quota = quota
        return self.apply(Acquire(tokens), self.now)

    def serves_one_of(self, kinds: list[Quota], pace: int, until: int) -> None:
        """Assert that of callers who ask in turn, each on its own terms, one is granted in time."""
        for quota in cycle(kinds):
            if self.ask(quota).granted:
                return
            assert self.now <= until
            self.now += pace


def slowest_us(terms: list[Quota], balance: int) -> int:
    """Return the refill time to one token by the slowest of the terms that refill at all, and its period."""
    return max((1 - balance) * quota.period_us // quota.refill + 2 * quota.period_us for quota in terms if quota.refill)


terms = st.builds(
    Quota,
    capacity=st.integers(20, 300),
    refill=st.sampled_from([1, 5, 5, 5, 20]),
    period=st.sampled_from([60.0, 60.0, 60.5, 1.0, 300.0]),
    stepped=st.booleans(),
    recharge_to=st.sampled_from([None, None, 10]),
)


@given(st.lists(terms, min_size=2, max_size=3), st.integers(-79, -1), st.integers(1, 200).map(lambda n: n * SECOND))
@example([DEAL, replace(DEAL, stepped=True)], -79, 5 * SECOND)
@example([replace(DEAL, period=60.5, stepped=True), replace(DEAL, stepped=True)], -79, 5 * SECOND)
@example([DEAL, replace(DEAL, recharge_to=40)], -79, 61 * SECOND)
def test_alternating_terms_stand_still_for_nobody(kinds: list[Quota], balance: int, pace: int) -> None:
    """In debt, the timestamp lost, workers ask in turn on terms of their own: one is granted in the slowest's time."""
    shared = Shared(DEAL, BucketState(balance=balance, quota=kinds[0]))
    extra = max(quota.recharge_to or 0 for quota in kinds)
    # Each change may be waited for, and costs less than a period of either.
    until = NOW + slowest_us(kinds, balance - extra) + MINUTE_US + len(kinds) * pace
    shared.serves_one_of(kinds, pace, until)


def test_refill_0_beside_refill_5_goes_on() -> None:
    """A worker whose terms never refill does not stop the time of one whose terms do."""
    shared = Shared(DEAL, BucketState(balance=-10))
    kinds = [replace(DEAL, period=60.5, stepped=True), Quota(300, 0, 60.0, stepped=True)]
    shared.serves_one_of(kinds, 61 * SECOND, NOW + 3_600 * SECOND)


def test_a_balance_at_the_smaller_of_two_capacities_goes_on() -> None:
    """For a minute after a change the larger capacity bounds, so refill comes beside what a hold has set aside."""
    shared = Shared(DEAL)
    small, large = Quota(50, 1, 60.0), Quota(100, 1, 60.0)
    assert shared.ask(small, 50).granted
    shared.serves_one_of([large, small], 5 * SECOND, NOW + 121 * SECOND)


def test_a_failed_probe_within_the_minute_comes_to_the_same_whoever_looked() -> None:
    """An unknown balance begins at 0 before the larger capacity ends: what came until then is there, seen or not."""
    small = Quota(1, 3, 0.7, synced=True)
    counted = BucketState(refilled_at=NOW, sequence=0, held=0, open=0, quota=small)
    state = replace(counted, terms_at=NOW, wide_capacity=60, probe_until=NOW + 20 * SECOND)
    seen = [transition(small, state, NOW + at * SECOND, Pause(0))[0] for at in (0, 40)]
    left = [transition(small, each, NOW + 90 * SECOND, Peek())[1].balance for each in seen]
    assert left == [60, 60]


def test_after_a_step_back_memory_serves_nobody_by_terms_of_later() -> None:
    """The minute in which others' terms serve is counted from now, as on every storage."""
    storage, slow = MemoryStorage(), Quota(10, 1, 3_600.0, stepped=True)
    for terms, now in ((slow, NOW), (replace(slow, capacity=20), NOW + 50 * SECOND)):
        storage.apply("k", terms, Acquire(1), now_us=now)
    assert storage.apply("k", slow, Acquire(1), now_us=NOW + 44 * SECOND).terms is not None


def test_terms_change_once_a_minute_and_say_so() -> None:
    """Other terms replace the stored ones at once, then not for a minute; the outcome names both."""
    shared = Shared(DEAL)
    other = Quota(100, 5, 60.0)
    assert shared.ask(DEAL).terms is None
    assert shared.ask(other).terms == (DEAL, other)
    shared.now += MINUTE_US - 1
    assert shared.ask(DEAL).terms is None
    shared.now += 1
    assert shared.ask(DEAL).terms == (other, DEAL)


def test_plain_and_synced_on_one_key_is_a_mistake_that_names_both() -> None:
    """A plain caller of a synced bucket, and the other way round, gets an error with both terms and the way out."""
    synced = replace(DEAL, synced=True)
    for first, second in ((DEAL, synced), (synced, DEAL)):
        state, _ = transition(first, BucketState(balance=1, refilled_at=NOW, quota=first), NOW, Acquire(1))
        with pytest.raises(ConfigError) as caught:
            transition(second, state, NOW, Peek())
        kinds = {True: "synced (it follows a server)", False: "plain (it keeps its own books)"}
        assert str(caught.value) == (
            f"this bucket is {kinds[first.synced]} and runs on {first}, but {second} is for one that is"
            f" {kinds[second.synced]}. Give each its own key, or call reset() to begin anew on the new terms."
            " Nothing was changed."
        )
