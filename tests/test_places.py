"""Places on a plain bucket: first come, first served; one step a grant; a place given up gives its tokens back."""

from __future__ import annotations

import asyncio
import gc
import heapq
from contextlib import suppress
from itertools import takewhile
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, MINUTE, SECOND, quotas
from keepa_tokens import AsyncTokenBucket, BucketState, Clock, Event, EventKind, Quota, TokenBucket
from keepa_tokens.rules.commands import Acquire, Peek, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.free_places import Free, FreePlace, nearest, with_free, without
from keepa_tokens.testing import ManualClock, virtual_loop
from keepa_tokens.units import LIMIT
from tests.helpers import Noted
from tests.stories import Story, each_story
from tests.strategies import SPARING, Bucket, Direct, Make, either_way

pytestmark = pytest.mark.anyio

WAITS = LIMIT - 1


def placed(bucket: Bucket, tokens: int, now: int, wait_us: int = WAITS) -> int | None:
    """Return the instant of the place that a request gets, or None."""
    outcome = bucket.apply(Acquire(tokens, wait_us=wait_us), now)
    return now + outcome.place_us if outcome.granted else None


@pytest.mark.parametrize("stepped", [False, True])
@SPARING
@given(data=st.data())
def test_nobody_barges_past(stepped: bool, data: st.DataObject) -> None:
    """Places come in the order of asking, and who may not wait gets nothing while others do."""
    quota = data.draw(quotas(synced=False, stepped=stepped, recharge=False, least_refill=1))
    bucket, now, last = Direct(quota), EPOCH, EPOCH
    for _ in range(data.draw(st.integers(1, 15))):
        now += data.draw(st.integers(0, SECOND))
        tokens = data.draw(st.integers(1, min(quota.capacity, 9)))
        if now < last and quota.overdraft == 0:
            assert not bucket.apply(Acquire(tokens), now).granted
        place = placed(bucket, tokens, now)
        assert place is not None
        assert place >= last or place == now
        last = max(last, place)


@pytest.mark.parametrize("stepped", [False, True])
@SPARING
@given(data=st.data())
def test_what_the_places_give_is_within_capacity_and_refill(stepped: bool, data: st.DataObject) -> None:
    """Counted at the instants of the places, grants stay within capacity and refill; stepped, up to a step past it."""
    overdraft = st.sampled_from([0, 3])
    quota = data.draw(quotas(synced=False, stepped=stepped, recharge=False, least_refill=1, overdrafts=overdraft))
    bucket, now = Direct(quota), EPOCH
    grants: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 15))):
        now += data.draw(st.integers(0, SECOND))
        tokens = data.draw(st.integers(1, quota.capacity))
        place = placed(bucket, tokens, now)
        assert place is not None
        grants.append((place, tokens))
    total = 0
    for place, tokens in sorted(grants):
        total += tokens
        refilled = (place - EPOCH) * quota.refill // quota.period_us
        slack = quota.refill - 1 if stepped else 0
        assert total <= quota.capacity + quota.overdraft + refilled + slack


THREE: Final = Quota(3, 1, 1.0)
TEN: Final = Quota(10, 1, 1.0)
HUNDRED: Final = Quota(100, 1, 1.0)
FAST: Final = Quota(20, 10, 1.0)
OVER: Final = Quota(10, 1, 1.0, overdraft=5)

STORIES: Final = """
# With keep, with a recharge, beside a server, without patience, without refill.
who gets no place: THREE (initial=3|recharge_to=3|synced|initial=3|refill=0)
    0 read 0; 0 take (3|3|0|3|3), take 1 (keep=1 wait=99s|wait=99s|wait=99s|wait=-|wait=99s) -> !granted balance=0
a place given up is free for the next one, those behind it keep theirs; the last one comes back: THREE
    0 take 3 wait=99s, take 3 wait=99s -> place=3s, take 3 wait=99s -> place=6s, take 3 wait=99s -> place=9s
    0 back r 3 (3s|6s|9s), take 3 wait=99s -> place=(3s|6s|9s)
a free place serves those who fit in, the nearest first, and stays free for what they leave: TEN
    0 take 10, take 4 wait=99s -> place=4s, take 2 wait=99s -> place=6s, take 4 wait=99s -> place=10s
    0 take 9 wait=99s -> place=19s, back r 4 4s, back s 2 6s, take 3 wait=99s -> place=4s
    0 take 2 wait=99s -> place=6s, take 2 wait=99s -> place=21s, take 1 wait=99s -> place=4s
    0 take 1 wait=99s -> place=22s
# Who has a keep, doesn't wait, or not so long; and in the end it is too late.
a free place serves nobody who would get no place: TEN
    0 take 10, take 4 wait=99s -> place=4s, take 9 wait=99s -> place=13s, back r 4 4s
    0 take 1 (keep=1 wait=99s|wait=-|wait=4s-1) -> EMPTY in=(15s|14s|14s) balance=-13
    4s take 1 wait=99s -> place=10s
with an overdraft a free place may be for more than the capacity: OVER
    0 take 15, take 15 wait=99s -> place=15s, take 15 wait=99s -> place=30s
    0 back r 15 15s, take 15 wait=99s -> place=15s
nor who gets one sooner: TEN
    0 take 10, take 1 wait=99s, take 9 wait=99s -> place=10s, take 1 wait=99s -> place=11s
    0 back r 9 10s -> balance=-3, take 1 wait=99s -> place=4s
free places right before the last one come back with it: TEN
    0 take 10, take 1 wait=99s -> place=1s, take 2 wait=99s -> place=3s, take 3 wait=99s -> place=6s
    0 back r 1 1s, back s 2 3s, back t 3 6s -> balance=0
# The second is there no more, but the first is.
and no others: TEN
    0 take 10, take 1 wait=99s -> place=1s, take 2 wait=99s -> place=3s, take 3 wait=99s -> place=6s
    0 back r 1 1s, back t 3 6s -> balance=-3; 0 take 1 wait=99s -> place=1s
with a place 8 s ahead what exceeds the refill from an own instant up to it comes back: HUNDRED
    0 take 100, take 8 wait=99s -> place=8s, back r (10 4s|10 0|8 0|10 8s|10 9s|3) -> balance=(-2|-6|-8|2|2|-8)
once the last place has come an unused grant comes back whole, of whatever instant it was: HUNDRED
    0 take 100, take 8 wait=99s; 8s-1 back r 10 0 -> balance=8; 8s back s 10 0 -> balance=19
# At a token a microsecond, where a microsecond more or less would show.
what exceeds the refill comes back at the beginning of time too: TEN period=0.000001 start=0
    0 take 10, take 4 wait=99s -> place=4, back r 10 -> balance=2
# Of 10 the refill from 1 s to the place at 4 s stays.
by a clock that stands behind, a hold comes back as of its opening: TEN
    1s hold a 10 life=60s -> GRANTED, take 3 wait=99s -> place=3s; 0 (settle a 0|cancel a) -> balance=4
# Freed first, the last place is gone, so 6 of 10 come back, and then the rest; else 2, and the rest is free.
the last place is not freed behind one before which tokens came back, but stays firm: TEN
    0 take 10, take 10 wait=99s -> place=10s, take 4 wait=99s -> place=14s, take 4 wait=99s -> place=18s
    0 (back l 4 18s, back m 10 10s|back m 10 10s, back l 4 18s), back r 4 14s, take 1 wait=99s -> place=(5s|10s)
what is reserved is taken: places behind it are 2 s apart: FAST
    0 hold a 20 life=120s -> GRANTED, take 20 wait=99s -> place=2s, take 20 wait=99s -> place=4s
    0 take 20 wait=99s -> place=6s, take 20 wait=99s -> place=8s, take 20 wait=99s -> place=10s
and nobody goes before who asked earlier: FAST
    0 hold a 10 life=120s -> GRANTED, take 16 wait=99s -> place=0.6s, take 14 wait=99s -> place=2s
who reserves waits for the refill and never for a hold: FAST
    0 hold a 10 life=120s -> GRANTED, hold b 10 life=120s -> GRANTED, hold c 10 life=120s -> EMPTY in=1s
    1s-1 hold c 10 life=120s -> EMPTY; 1s hold c 10 life=120s -> GRANTED
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_places_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


@given(wait=st.integers(0, 5 * SECOND))
def test_a_place_further_ahead_than_the_wait_is_refused_and_takes_nothing(wait: int) -> None:
    """Exactly as long as it takes is enough; a microsecond less is a refusal that takes nothing."""
    bucket = Direct(Quota(3, 1, 1.0))
    bucket.apply(Acquire(3), EPOCH)
    outcome = bucket.apply(Acquire(3, wait_us=wait), EPOCH)
    assert outcome.granted is (wait >= 3 * SECOND)
    assert outcome.balance == (-3 if outcome.granted else 0)
    if not outcome.granted:
        assert (outcome.reason, outcome.retry_after_us) == (Reason.EMPTY, 3 * SECOND)


@pytest.mark.parametrize(
    "quota, workers, tokens, until, begun",
    [
        (Quota(10, 1, 1.0, initial=0), 2, 10, 25 * SECOND, [10, 20]),
        pytest.param(Quota.per_second(10), 15, 1, 300 * SECOND, None, marks=pytest.mark.deep),
    ],
)
def test_workers_that_reserve_and_settle_get_all_the_refill(
    quota: Quota, workers: int, tokens: int, until: int, begun: list[int] | None
) -> None:
    """Each asks again when it was told to, and settles at once: two on an empty bucket, and 3,000 calls in 300 s."""
    bucket = Direct(quota)
    asking = [(0, worker) for worker in range(workers)]
    began: list[int] = []
    while (asked := heapq.heappop(asking))[0] <= until:
        now, worker = asked
        outcome = bucket.apply(Reserve(f"{worker} {now}", tokens, 2 * MINUTE), EPOCH + now)
        if outcome.granted:
            began.append(now)
            bucket.apply(Settle(f"{worker} {now}", tokens), EPOCH + now)
        heapq.heappush(asking, (now + outcome.retry_after_us, worker))
    if begun is not None:
        assert began == [at * SECOND for at in begun]
    assert len(began) * tokens == (quota.starts_at or 0) + until * quota.refill // quota.period_us // tokens * tokens


def test_what_a_caller_leaves_of_a_free_place_is_free() -> None:
    """The nearest that is large enough, until an instant; used up it is gone; the latest 256 are kept, in order."""
    small, large = FreePlace(5, 1), FreePlace(7, 3)
    free = with_free(with_free((), large), small)
    assert (nearest(free, 2, 9), nearest(free, 1, 5), nearest(free, 1, 4)) == (large, small, None)
    assert (without(free, small, 1), without(free, large, 2)) == ((large,), (small, FreePlace(7, 1)))
    assert without(free, large, 3) == (small,)
    many: Free = ()
    for at in (*range(300, 0, -2), *range(1, 300, 2)):
        many = with_free(many, FreePlace(at, 1))
    assert [each.at for each in many] == list(range(45, 301))


def test_a_free_place_is_stored_until_its_instant() -> None:
    """Only of a place that is still ahead; once its time has come a look stores that it is gone."""
    bucket = Direct(TEN)
    for tokens in (10, 4, 9):
        placed(bucket, tokens, EPOCH)
    bucket.apply(Refund("r", 4, EPOCH + 4 * SECOND), EPOCH)
    bucket.apply(Refund("s", 1, EPOCH), EPOCH)
    bucket.apply(Refund("t", 0, EPOCH + 4 * SECOND), EPOCH)
    assert bucket.stored.free == (FreePlace(EPOCH + 4 * SECOND, 4),)
    bucket.apply(Peek(), EPOCH + 4 * SECOND)
    assert not bucket.stored.free


@pytest.mark.parametrize("tokens, last", [(1, EPOCH + 3 * SECOND), (3, EPOCH)])
def test_whoever_shares_a_free_place_is_not_passed_over(tokens: int, last: int) -> None:
    """Of its three tokens one is taken: others may have had the rest, so it stays the last; taken whole it goes."""
    bucket = Direct(TEN)
    for each in (10, 3, 8):
        placed(bucket, each, EPOCH)
    bucket.apply(Refund("r", 3, EPOCH + 3 * SECOND), EPOCH)
    assert placed(bucket, tokens, EPOCH) == EPOCH + 3 * SECOND
    bucket.apply(Refund("s", 8, EPOCH + 11 * SECOND), EPOCH)
    assert (bucket.stored.balance, bucket.stored.free) == (-tokens, ())
    assert bucket.stored.last_place == EPOCH + 3 * SECOND
    bucket.apply(Refund("t", tokens, EPOCH + 3 * SECOND), EPOCH)
    assert bucket.stored.last_place == last


@pytest.mark.parametrize("at, stays", [(1_000_000, False), (999_999, True)])
def test_an_instant_may_be_a_microsecond_before_the_one_that_is_worked_out(*, at: int, stays: bool) -> None:
    """Three tokens a second: of the last place, given up, the one before it comes out a microsecond late."""
    own, free = EPOCH + 1_333_334, FreePlace(EPOCH + at, 1)
    bucket = Direct(Quota(10, 3, 1.0))
    bucket.put(BucketState(balance=-4, refilled_at=EPOCH, quota=bucket.quota, last_place=own, free=(free,)))
    bucket.apply(Refund("r", 1, own), EPOCH)
    assert bucket.stored.free == ((free,) if stays else ())


# --- through the doors


async def test_who_is_held_up_before_it_sleeps_has_its_place_in_the_order() -> None:
    """By 15 ms, as by another thread, the second of five: given up from the first one on, all of them come back."""
    clock, granted = ManualClock(), list[EventKind]()

    def listen(event: Event) -> None:
        granted.extend([event.kind] * (event.kind is EventKind.GRANTED))
        if len(granted) == 2 and event.kind is EventKind.GRANTED:
            clock.advance(0.015)

    bucket = AsyncTokenBucket(Quota(1, 100, 1.0, initial=0), clock=clock, listener=listen)
    waiting = [asyncio.create_task(bucket.acquire()) for _ in range(5)]
    await asyncio.sleep(0)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await bucket.peek()).balance == 1


async def test_waiting_takes_one_storage_call_a_grant_however_many_wait() -> None:
    """Fifty coroutines wait on one bucket: fifty commands, and they come in the order in which they asked."""
    storage, clock = Noted(), ManualClock()
    bucket = AsyncTokenBucket(Quota(2, 1, 1.0), key="default", storage=storage, clock=clock)
    came: list[tuple[int, int]] = []

    async def worker(number: int) -> None:
        await bucket.acquire()
        came.append((number, clock.now_us()))

    await asyncio.gather(*(worker(number) for number in range(50)))
    assert len(storage.commands) == 50
    assert [number for number, _ in came] == list(range(50))
    assert [at for _, at in came] == [0, 0, *(n * SECOND for n in range(1, 49))]


def test_a_waiting_thread_makes_one_call_and_sleeps_once() -> None:
    """The sync door takes its place in one step and sleeps exactly until it comes."""
    storage, clock = Noted(), ManualClock()
    bucket = TokenBucket(Quota(2, 1, 1.0), key="default", storage=storage, clock=clock)
    bucket.acquire(2)
    assert bucket.acquire(2).waited == clock.slept == clock.now_us() / SECOND == 2.0
    assert len(storage.commands) == 2


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3)])
@pytest.mark.parametrize("doors", [1, 3])
def test_callers_that_give_up_leave_the_refill_to_others(sizes: tuple[int, ...], doors: int) -> None:
    """Twice as many come as can be served, and each gives up after 5 s: the refill is used all the same.

    By one door, or by several that know nothing of each other, as those of several processes.
    """
    served, size = 0, sum(sizes) / len(sizes)

    async def caller(bucket: AsyncTokenBucket, number: int) -> None:
        nonlocal served
        await asyncio.sleep(number / 20 * size)
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await bucket.acquire(sizes[number % len(sizes)])
                served += sizes[number % len(sizes)]

    async def all_of_them(clock: Clock) -> None:
        storage = Noted()  # each door to it has a bell of its own
        buckets = [AsyncTokenBucket(Quota(10, 10, 1.0), key="k", storage=storage, clock=clock) for _ in range(doors)]
        await asyncio.gather(*(caller(buckets[number % doors], number) for number in range(round(1200 / size))))

    with virtual_loop() as loop:
        loop.run_until_complete(all_of_them(loop.clock))
    assert served >= 550


@SPARING
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=12), given_up=st.integers(0, 11))
def test_a_coroutine_that_gives_up_delays_nobody(sizes: list[int], given_up: int) -> None:
    """One of many is cancelled while it waits: all others come in their order, none later than it was told.

    Those directly behind who want as much come at the place before their own.
    """
    given_up %= len(sizes)

    def arrivals(*, cancel: bool) -> list[tuple[int, int]]:
        clock = ManualClock()
        bucket = AsyncTokenBucket(Quota(4, 1, 1.0, initial=0), clock=clock)
        came: list[tuple[int, int]] = []

        async def worker(number: int) -> None:
            await bucket.acquire(sizes[number])
            came.append((number, clock.now_us()))

        async def main() -> None:
            tasks = [asyncio.create_task(worker(number)) for number in range(len(sizes))]
            await asyncio.sleep(0)
            if cancel:
                tasks[given_up].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())
        return came

    undisturbed = [arrival for arrival in arrivals(cancel=False) if arrival[0] != given_up]
    alike = len(list(takewhile(lambda size: size == sizes[given_up], sizes[given_up:])))
    instants = [at for _, at in arrivals(cancel=False)]
    del instants[given_up + alike - 1]
    assert arrivals(cancel=True) == [(number, at) for (number, _), at in zip(undisturbed, instants, strict=True)]


@pytest.mark.filterwarnings("ignore")
def test_a_coroutine_thrown_away_with_its_loop_gives_its_place_back() -> None:
    """A bucket that outlives the loop keeps nobody who waited there."""
    bucket, loop = AsyncTokenBucket(Quota(1, 1, 100.0, initial=0)), asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # asyncio tells of a task that is thrown away
    waiting = loop.create_task(bucket.acquire())
    loop.run_until_complete(asyncio.sleep(0))
    assert asyncio.run(bucket.peek()).balance == -1
    loop.close()
    del waiting
    gc.collect()
    assert asyncio.run(bucket.peek()).balance == 0
