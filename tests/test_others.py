"""Rules 4 and 10 on a synced bucket: our calls may overtake each other, and others spend what we believe is there."""

from __future__ import annotations

from itertools import permutations
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, MINUTE, SECOND
from keepa_tokens import keepa_quota
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Outcome, Peek, Reconcile, Reserve
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import LOOK_AGAIN_US, MICROSECONDS
from tests.stories import Story, each_story
from tests.strategies import Direct, Make, either_way

QUOTA = keepa_quota(5)
"""300 tokens, 5 a step."""


def told(balance: int, at: int, *, refill: float | None = 5, next_refill_in: float = 60.0) -> Reconcile:
    """Return what the server says at `at`: a step is a minute off."""
    return Reconcile(
        Reading(balance, next_refill_in=next_refill_in, refill=refill, capacity=300, server_time=at / MICROSECONDS)
    )


def at(balance: int, quota: Quota = QUOTA) -> Direct:
    bucket = Direct(quota)
    bucket.apply(told(balance, EPOCH), EPOCH)
    return bucket


def stored(bucket: Direct, **fields: str) -> Direct:
    bucket.put(BucketState.from_fields({**bucket.stored.to_fields(), **fields}))
    return bucket


def ask(bucket: Direct, name: str, tokens: int, now: int = EPOCH, *, hold_for: int = 2 * MINUTE) -> Outcome:
    return bucket.apply(Reserve(name, tokens, hold_for, probe_after_us=None), now)


OVERDRAWN: Final = Quota(10, 1, 60.0, overdraft=20)

STORIES: Final = """
calls that the balance covers all together are all admitted at once, one more isn't, a call of 0 always: QUOTA
    0 read 10 1000, hold a 1 -> GRANTED, hold b 2 -> GRANTED, hold c 3 -> GRANTED, hold d 4 -> GRANTED
    0 hold e 1 -> !granted, hold f 0 -> GRANTED
nobody else keeps a plain bucket's books, so no order matters there, and calls in flight overdraw: OVERDRAWN
    0 hold small 9 -> GRANTED, hold large 16 -> GRANTED
a gap is kept back for whoever spends: what was granted at 1 token waits for 31: QUOTA
    0 read 100 1000; 1s read 70 1001 next_refill_in=60 -> kept_back=30, take 40 -> GRANTED
    1s take 1 -> EMPTY balance=30 kept_back=30 in=60s; 61s take 1 -> GRANTED
the balance that comes with a refusal by the server shows somebody else's spending: QUOTA
    0 read 20 1000, hold a 10 life=60s -> GRANTED; 1s settle a 0 says=-15 at=1001 refused=1, peek -> kept_back=35
gaps add up, to a third of the capacity: QUOTA
    0 read 300 1000; 1s read 260 1001 -> kept_back=40; 2s read 220 1002 -> kept_back=80
    3s read 180 1003 -> kept_back=100; 4s read 140 1004 -> kept_back=100
readings halve what is kept back once for every whole hour since the last gap, down to nothing: QUOTA
    0 read 100 1000; 1s read 60 1001; 3601s-1 read 300 4600; 3601s read 300 4601 -> kept_back=20
    7201s-1 read 300 8200; 7201s read 300 8201 -> kept_back=10
    14401s-1 read 300 15400; 14401s read 300 15401 -> kept_back=2
    21601s-1 read 300 22600; 21601s read 300 22601 -> kept_back=0 kept_back_at=-
# A step that had come to the projection while the answer was under way; another plan; a call of ours is in flight, and
# may have been charged, whatever was expected of it; there is more than was projected.
a gap that ours or the server explain is nobody else's: QUOTA
    0 read 100 1000 refill=5, (take 0|take 0|hold a 30 life=60s|hold a 0 life=60s|take 0)
    1s read (95|70|70|70|130) 1001 refill=(5|20|5|5|5) -> TAKEN kept_back=0
# Told four minutes before, with a server's time and without, it lies four steps below; a fifth may have been under way.
# Told now, it explains one step alone.
nor is what came while an answer was under way: QUOTA
    0 read 100 (1000|1000|1000|-|1000) next_refill_in=60, hold slow 10 life=600s
    243s settle slow 10 says=(90|85|84|85|90) at=(1001|1001|1001|-|1243) -> drift=(-20|-25|-26|-25|-20)
    243s peek -> kept_back=(0|0|26|0|20)
nor is one where nothing was known before: QUOTA balance=100 reading_at=-
    1s read 70 1001 -> TAKEN kept_back=0
of what is stored as kept back a third of the capacity counts at most, of what is no number nothing: QUOTA
    0 read 50 1000, put kept_back=(40|299|4503599627370495|NaN|-1), peek -> kept_back=(40|100|100|0|0)
where the instant of a gap is lost or lies ahead it is now: what is kept back still halves: QUOTA
    0 read 50 1000, put kept_back=80 kept_back_at=(-|NaN|@360000s)
    60s read 300 1060 -> kept_back=80; 3660s read 300 4660 -> kept_back=40
a field that a synced quota left means nothing to a plain bucket: OVERDRAWN overdraft=0 balance=10 kept_back=3
    0 take 10 -> GRANTED
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_others_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


# --- 4: beside calls in flight


@given(
    balance=st.integers(1, 60),
    costs=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    charged_at_once=st.booleans(),
)
def test_in_whatever_order_calls_reach_the_server_it_refuses_none(
    balance: int, costs: list[int], charged_at_once: bool
) -> None:
    """A server that admits above 0 admits all that was let through together, charged at admission or at completion."""
    bucket = at(balance)
    through = [cost for number, cost in enumerate(costs) if ask(bucket, str(number), cost).granted]
    assert through
    for order in permutations(through):
        left = balance
        for cost in order:
            assert left > 0
            left -= cost if charged_at_once else 0


@given(balance=st.integers(-50, 60), small=st.integers(1, 30), large=st.integers(1, 90), hold_for=st.integers(1, 400))
def test_who_waits_beside_a_call_in_flight_is_told_the_earliest_instant(
    balance: int, small: int, large: int, hold_for: int
) -> None:
    """Refused as EMPTY: exactly when it is granted if the call in flight costs nothing. As IN_FLIGHT: then,
    at once, and it looks again when that call runs out, if not before.
    """
    bucket = at(balance)
    ask(bucket, "small", small, hold_for=hold_for * SECOND)
    refused = ask(bucket, "large", large)
    if refused.granted:
        return
    free = Direct(bucket.quota, bucket.state)
    free.apply(Cancel("small"), EPOCH)
    if refused.reason is Reason.IN_FLIGHT:
        assert refused.retry_after_us == min(LOOK_AGAIN_US, hold_for * SECOND)
        assert ask(free, "large", large).granted
        return
    assert refused.reason is Reason.EMPTY
    due = EPOCH + refused.retry_after_us
    assert not ask(bucket, "large", large, due - 1).granted
    assert not ask(free, "large", large, due - 1).granted
    assert ask(free, "large", large, due).granted


# --- 10: others


@given(kept=st.integers(0, 400), tokens=st.integers(1, 500), keep=st.integers(0, 299), balance=st.integers(-400, 300))
def test_what_is_kept_back_never_makes_a_request_impossible(kept: int, tokens: int, keep: int, balance: int) -> None:
    """Whatever is stored as kept back, a request that could be admitted without it is admitted in the end."""
    bucket = stored(at(balance), kept_back=str(kept))
    outcome = bucket.apply(Peek(tokens, keep), EPOCH)
    assert outcome.reason is not Reason.TOO_LARGE
    assert outcome.retry_after_us < 100 * HOUR
    assert bucket.apply(Acquire(tokens, keep), EPOCH + outcome.retry_after_us).granted
