"""Places on a plain bucket: first come, first served; one step a grant; a place given up gives its tokens back."""

from __future__ import annotations

import asyncio
import heapq
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, MINUTE, SECOND, quotas
from keepa_tokens import AsyncTokenBucket, Quota, TokenBucket
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Reason
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import LIMIT
from tests.helpers import Noted
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


@pytest.mark.parametrize(
    "quota, command",
    [
        (Quota(3, 1, 1.0), Acquire(1, keep=1, wait_us=WAITS)),
        (Quota(3, 1, 1.0, recharge_to=3), Acquire(1, wait_us=WAITS)),
        (Quota(3, 1, 1.0, synced=True, initial=0), Acquire(1, wait_us=WAITS)),
        (Quota(3, 1, 1.0), Acquire(1)),
        (Quota(3, 0, 1.0), Acquire(1, wait_us=WAITS)),
    ],
)
def test_who_gets_no_place(quota: Quota, command: Acquire) -> None:
    """With keep, with recharge, on a synced bucket, without patience or refill nothing is taken in advance."""
    bucket = Direct(quota)
    bucket.apply(Acquire(3), EPOCH)
    before = bucket.state
    outcome = bucket.apply(command, EPOCH)
    assert not outcome.granted
    assert before is not None
    assert bucket.stored.balance == before.balance


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


@pytest.mark.parametrize("given_up, next_place", [(0, 9), (1, 9), (2, 6)])
def test_a_place_given_up_gives_back_what_the_places_behind_it_leave(given_up: int, next_place: int) -> None:
    """Those behind keep their places, told for good; only of the last one, all comes back."""
    bucket = Direct(Quota(3, 1, 1.0))
    places = [placed(bucket, 3, EPOCH) for _ in range(4)][1:]
    bucket.apply(Refund("r", 3, places[given_up]), EPOCH)
    assert placed(bucket, 3, EPOCH) == EPOCH + (next_place + 3) * SECOND


@pytest.mark.parametrize(
    "tokens, own, back", [(10, 4, 6), (10, 0, 2), (8, 0, 0), (10, 8, 10), (10, 9, 10), (3, None, 0)]
)
def test_what_exceeds_the_refill_up_to_the_last_place_comes_back(tokens: int, own: int | None, back: int) -> None:
    """With a place 8 s ahead, of tokens for the instant `own` what the refill from there to the place leaves."""
    bucket = Direct(Quota(100, 1, 1.0))
    bucket.apply(Acquire(100), EPOCH)
    assert placed(bucket, 8, EPOCH) == EPOCH + 8 * SECOND
    refund = Refund("r", tokens, None if own is None else EPOCH + own * SECOND)
    assert bucket.apply(refund, EPOCH).balance == -8 + back


def test_with_no_place_ahead_everything_comes_back() -> None:
    """Once the last place has come, an unused grant comes back whole, of whatever instant it was."""
    bucket = Direct(Quota(100, 1, 1.0))
    bucket.apply(Acquire(100), EPOCH)
    placed(bucket, 8, EPOCH)
    assert bucket.apply(Refund("r", 10, EPOCH), EPOCH + 8 * SECOND - 1).balance == 8
    assert bucket.apply(Refund("s", 10, EPOCH), EPOCH + 8 * SECOND).balance == 19


def test_what_exceeds_the_refill_comes_back_at_the_beginning_of_time_too() -> None:
    """At a token a microsecond, where a microsecond more or less would show."""
    bucket = Direct(Quota(10, 1, 1e-6))
    bucket.apply(Acquire(10), 0)
    assert placed(bucket, 4, 0) == 4
    assert bucket.apply(Refund("r", 10), 0).balance == -4 + 6


@pytest.mark.parametrize("ending", [Settle("a", 0), Cancel("a")])
def test_by_a_clock_that_stands_behind_a_hold_comes_back_as_of_its_opening(ending: Command) -> None:
    """Opened at 1 s and ended at 0: of 10 the refill from 1 s to the place at 4 s stays."""
    bucket = Direct(Quota(10, 1, 1.0))
    assert bucket.apply(Reserve("a", 10, MINUTE), EPOCH + SECOND).granted
    assert placed(bucket, 3, EPOCH + SECOND) == EPOCH + 4 * SECOND
    assert bucket.apply(ending, EPOCH).balance == -3 + 7


@pytest.mark.parametrize("first", ["last", "middle"])
def test_the_last_place_is_not_freed_behind_one_before_which_tokens_came_back(first: str) -> None:
    """After a give-back in the middle the balance alone tells no more where the last place is: it stays firm."""
    bucket = Direct(Quota(10, 1, 1.0))
    bucket.apply(Acquire(10), EPOCH)
    places = {"middle": placed(bucket, 10, EPOCH), "rest": placed(bucket, 4, EPOCH), "last": placed(bucket, 4, EPOCH)}
    assert [at and (at - EPOCH) // SECOND for at in places.values()] == [10, 14, 18]
    sizes = {"middle": 10, "last": 4}
    for name in sorted(sizes, reverse=first == "middle"):
        bucket.apply(Refund(name, sizes[name], places[name]), EPOCH)
    bucket.apply(Refund("rest", 4, places["rest"]), EPOCH)
    # Freed first, the last place is gone, so 6 of 10 come back, and then the rest; else 2 of 10, 4, and no more.
    assert placed(bucket, 1, EPOCH) == EPOCH + (5 if first == "last" else 13) * SECOND


# --- beside holds


@either_way
def test_places_never_look_ahead_over_holds(make: Make) -> None:
    """What is reserved is taken: places behind it are 2 s apart, and nobody goes before who asked earlier."""
    bucket = make(Quota(20, 10, 1.0))
    assert bucket.apply(Reserve("a", 20, 2 * MINUTE), EPOCH).granted
    assert [placed(bucket, 20, EPOCH) for _ in range(5)] == [EPOCH + n * 2 * SECOND for n in range(1, 6)]
    bucket = make(Quota(20, 10, 1.0))
    assert bucket.apply(Reserve("a", 10, 2 * MINUTE), EPOCH).granted
    assert placed(bucket, 16, EPOCH) == EPOCH + 600_000
    assert placed(bucket, 14, EPOCH) == EPOCH + 2 * SECOND


@either_way
def test_who_reserves_waits_for_the_refill_and_never_for_a_hold(make: Make) -> None:
    """A third hold of 10 beside two: told 1 s, and granted then, though the two are still open."""
    bucket = make(Quota(20, 10, 1.0))
    for name in "ab":
        assert bucket.apply(Reserve(name, 10, 2 * MINUTE), EPOCH).granted
    told = bucket.apply(Reserve("c", 10, 2 * MINUTE), EPOCH)
    assert (told.granted, told.reason, told.retry_after_us) == (False, Reason.EMPTY, SECOND)
    assert not bucket.apply(Reserve("c", 10, 2 * MINUTE), EPOCH + SECOND - 1).granted
    assert bucket.apply(Reserve("c", 10, 2 * MINUTE), EPOCH + SECOND).granted


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


# --- through the doors


async def test_waiting_takes_one_storage_call_a_grant_however_many_wait() -> None:
    """Fifty coroutines wait on one bucket: fifty commands, and they come in the order in which they asked."""
    storage, clock = Noted(), ManualClock()
    bucket = AsyncTokenBucket(Quota(2, 1, 1.0), storage=storage, clock=clock)
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
    bucket = TokenBucket(Quota(2, 1, 1.0), storage=storage, clock=clock)
    bucket.acquire(2)
    assert bucket.acquire(2).waited == clock.slept == clock.now_us() / SECOND == 2.0
    assert len(storage.commands) == 2


@SPARING
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=12), given_up=st.integers(0, 11))
def test_a_coroutine_that_gives_up_delays_nobody(sizes: list[int], given_up: int) -> None:
    """One of many is cancelled while it waits: all others come when they were told, in their order, none later."""
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
    came = arrivals(cancel=True)
    assert came == undisturbed
    assert all(first[0] < second[0] for first, second in pairwise(came))
