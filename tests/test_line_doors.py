"""The line from a user's side: tasks that come back, calls that wait, big ones among small ones."""

from __future__ import annotations

import asyncio
import heapq
import random
from dataclasses import replace

import pytest

from keepa_tokens import (
    AcquireTimeout,
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    KeepaSync,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    Reading,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.rules.commands import Cancel, Command, Outcome, Reconcile, Reserve
from keepa_tokens.testing import FakeKeepa, ManualClock, VirtualLoop, virtual_loop
from tests.helpers import Noted
from tests.keepa_world import asins

LONGEST_COUNTDOWN = 900.0


def test_tasks_that_come_back_ask_twice_and_keep_their_order() -> None:
    """86 tasks of 6 to 12 tokens at 5 a minute: each asks for its place, once each quarter of an hour, and is done."""
    clock, draw = ManualClock(), random.Random(1)
    keepa = FakeKeepa(initial=0, refill_rate=5, clock=clock)
    sync = KeepaSync(TokenBucket(keepa_quota(5), key="plan", clock=clock), probe=keepa.probe)
    sync.refresh()
    began = clock.now_us()
    tasks = [(0.0, number, draw.randint(6, 12)) for number in range(86)]
    attempts, done = dict.fromkeys(range(86), 0), dict[int, float]()
    while tasks:
        at, number, cost = heapq.heappop(tasks)
        clock.advance(max(0.0, at - (clock.now_us() - began) / 1e6))
        now = (clock.now_us() - began) / 1e6
        attempts[number] += 1
        try:
            call = sync.try_request(cost, place=f"task {number}")
        except NotEnoughTokens as refused:
            # A worker picks a task up a moment late.
            again = now + min(refused.retry_after, LONGEST_COUNTDOWN) + draw.random() * 0.3
            heapq.heappush(tasks, (again, number, cost))
            continue
        with call:
            answer = keepa.request("/product", asins(cost))
            call.settle(answer.content, status=answer.status)
        done[number] = now
    assert keepa.refused == 0
    assert list(done) == sorted(done)
    for number, at in done.items():
        assert attempts[number] <= 2 + 1.1 * (at // LONGEST_COUNTDOWN), (number, attempts[number], at)


@pytest.mark.deep
def test_a_big_call_is_not_starved_by_small_ones() -> None:
    """Beside twenty workers whose small calls take half a minute, a call of 50 waits for what is before it alone."""
    waits: list[float] = []

    async def day(loop: VirtualLoop, keepa: FakeKeepa) -> None:
        draw = random.Random(3)
        bucket = AsyncTokenBucket(keepa_quota(20), key="plan", clock=keepa.clock)
        sync = AsyncKeepaSync(bucket, probe=keepa.aprobe)

        async def call(cost: int) -> None:
            async with sync.request(cost) as under_way:
                await asyncio.sleep(draw.uniform(20, 40))
                answer = keepa.request("/product", asins(cost))
                await under_way.settle(answer.content, status=answer.status)

        async def small() -> None:
            while loop.time() < 3_600:
                await call(draw.randint(1, 5))

        async def big() -> None:
            await asyncio.sleep(600)
            for _ in range(5):
                asked = loop.time()
                async with sync.request(50) as under_way:
                    waits.append(loop.time() - asked)
                    answer = keepa.request("/product", asins(50))
                    await under_way.settle(answer.content, status=answer.status)
                await asyncio.sleep(60)

        await asyncio.gather(*(small() for _ in range(20)), big())
        assert keepa.refused == 0

    with virtual_loop() as loop:
        loop.run_until_complete(day(loop, FakeKeepa(initial=40, refill_rate=20, clock=loop.clock)))
    # At most twenty small calls of 5 are before it, at 20 a minute, and one hold of 120 s.
    assert max(waits) <= (20 * 5 + 50) / 20 * 60.5 + 120


def test_who_waits_beside_a_call_in_flight_notices_that_it_cost_nothing() -> None:
    """Told a later turn, it looks again within two seconds of the end of the call before it, another process's."""

    async def wait(loop: VirtualLoop) -> float:
        storage, quota = MemoryStorage(), Quota(10, 5, 60.0, synced=True, initial=0)

        def elsewhere(command: Command) -> Outcome:
            return storage.apply("plan", quota, command, now_us=loop.clock.now_us())

        first = Reserve("first", 5, 90_000_000, ticket="first")
        elsewhere(first)
        bucket = AsyncTokenBucket(quota, key="plan", storage=storage, clock=loop.clock)
        waiting = asyncio.ensure_future(bucket.acquire(5))
        await asyncio.sleep(30)
        elsewhere(Reconcile(Reading(5)))
        assert elsewhere(first).granted
        await asyncio.sleep(31)
        elsewhere(Cancel("first"))
        return (await waiting).waited

    with virtual_loop() as loop:
        assert loop.run_until_complete(wait(loop)) < 63


def test_who_waits_at_one_door_hears_what_comes_back_through_another() -> None:
    """Doors of either kind, made apart on one memory: who waits for ten seconds goes when a thread gives it back."""

    async def wait(loop: VirtualLoop) -> float:
        storage, quota = MemoryStorage(), Quota(10, 1, 1.0)
        taken = TokenBucket(quota, storage=storage, clock=loop.clock).reserve(10)
        waiting = asyncio.ensure_future(AsyncTokenBucket(quota, storage=storage, clock=loop.clock).reserve(10))
        await asyncio.sleep(1)
        taken.cancel()
        granted = await waiting
        await granted.cancel()
        return granted.decision.waited

    with virtual_loop() as loop:
        assert loop.run_until_complete(wait(loop)) == 1


def test_what_comes_back_wakes_who_came_first_and_as_many_as_it_serves() -> None:
    """However often they have looked since; a caller that is cancelled as it is woken passes it on."""

    async def main(loop: VirtualLoop) -> None:
        bucket = AsyncTokenBucket(Quota(10, 1, 3600.0, initial=1), clock=loop.clock)
        waiting = []
        for _ in range(5):
            waiting.append(asyncio.ensure_future(bucket.acquire(1, keep=1)))
            await asyncio.sleep(100)
        first, second, *others = waiting
        await bucket.refund(1)
        assert (await first).waited == 500
        await bucket.refund(1)
        second.cancel()
        assert (await others[0]).waited == 300
        await bucket.refund(2)
        assert [(await each).waited for each in others[1:]] == [200, 100]

    with virtual_loop() as loop:
        loop.run_until_complete(main(loop))


def test_a_place_comes_within_what_is_left_of_the_timeout() -> None:
    """A call before it costs more than it reserved, so the place would come 11 s after the call with 10 s to wait."""

    async def main(loop: VirtualLoop) -> None:
        bucket = AsyncTokenBucket(Quota(10, 1, 1.0), clock=loop.clock)
        held = await bucket.reserve(10)
        before = asyncio.ensure_future(bucket.reserve(2))
        waiting = asyncio.ensure_future(bucket.acquire(8, timeout=10))
        await asyncio.sleep(1)
        before.cancel()
        await held.settle(13)
        with pytest.raises(AcquireTimeout):
            await waiting
        assert (await bucket.peek()).balance == -2

    with virtual_loop() as loop:
        loop.run_until_complete(main(loop))


def test_a_thread_in_a_place_is_not_woken_before_it_comes() -> None:
    """Its instant never changes: it sleeps by the clock, and not until something comes back."""
    bucket, clock = TokenBucket(Quota(1, 1, 0.1)), ManualClock()
    bucket._door.sleeper = clock
    assert bucket.acquire()
    bucket.acquire()
    assert 0 < clock.slept <= 0.1


def test_who_waits_for_longer_than_a_day_keeps_its_place() -> None:
    """A call of 40 at one a day goes before a call of one that comes when 30 are there."""
    days: dict[int, float] = {}

    async def call(loop: VirtualLoop, bucket: AsyncTokenBucket, after: int, tokens: int) -> None:
        await asyncio.sleep(after * 86_400)
        await bucket.reserve(tokens)
        days[tokens] = round(loop.time() / 86_400, 9)

    async def both(loop: VirtualLoop) -> None:
        bucket = AsyncTokenBucket(Quota(50, 1, 86_400.0, initial=0), clock=loop.clock)
        began = round(loop.time() / 86_400, 9)
        await asyncio.gather(call(loop, bucket, 0, 40), call(loop, bucket, 30, 1))
        assert {tokens: at - began for tokens, at in days.items()} == {40: 40, 1: 41}

    with virtual_loop() as loop:
        loop.run_until_complete(both(loop))


@pytest.mark.parametrize("apart", [False, True])
def test_plain_reservations_that_cost_less_use_the_refill(apart: bool) -> None:
    """Twenty workers reserve 40 and spend 6 on a bucket of 100 at 10 a second: at least 90% of the refill is used.

    Apart, as in processes, nobody hears that another one's call cost less.
    """
    spent = 0

    async def work(loop: VirtualLoop, bucket: AsyncTokenBucket) -> None:
        nonlocal spent
        while loop.time() < 120:
            async with bucket.reserve(40) as reservation:
                await asyncio.sleep(0.2)
                await reservation.settle(6)
                spent += 6 if loop.time() <= 120 else 0

    async def all_of_them(loop: VirtualLoop) -> None:
        storage = MemoryStorage()
        buckets = [AsyncTokenBucket(Quota(100, 10, 1.0), key="k", storage=storage, clock=loop.clock) for _ in range(20)]
        await asyncio.gather(*(work(loop, bucket if apart else buckets[0]) for bucket in buckets))

    with virtual_loop() as loop:
        loop.run_until_complete(all_of_them(loop))
    assert spent - 100 >= 0.9 * 120 * 10


def test_a_crowd_behind_the_full_line_looks_seldom() -> None:
    """Of two thousand that reserve, each looks every three seconds on average, not twice as often; the refill
    is used, and the line stays long.
    """
    looks = list[Event]()

    async def crowd(loop: VirtualLoop) -> None:
        bucket = AsyncTokenBucket(Quota(20, 20, 1.0), clock=loop.clock, listener=looks.append)

        async def one() -> None:
            async with bucket.reserve() as reservation:
                await reservation.settle(1)

        callers = [asyncio.create_task(one()) for _ in range(2000)]
        await asyncio.sleep(2.01)
        looks.clear()
        await asyncio.sleep(6)
        assert sum(event.kind is EventKind.GRANTED for event in looks) == 6 * 20
        assert sum(event.kind is EventKind.REFUSED for event in looks) < 6 * 2000 / 3
        assert (await bucket.peek()).waiting > 200
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        assert (await bucket.peek()).waiting == 0

    with virtual_loop() as loop:
        loop.run_until_complete(crowd(loop))


class Counting(Noted):
    """Without a line it takes no tickets."""

    def __init__(self, *, line: bool) -> None:
        super().__init__()
        self.line = line

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if not self.line and isinstance(command, Reserve):
            command = replace(command, ticket=None)
        return super().apply(key, quota, command, now_us=now_us)


def test_a_lone_worker_gives_no_command_more() -> None:
    """One that waits for each of its calls gives the commands that it would give without a line, no more, no other."""

    def commands(*, line: bool) -> list[str]:
        random.seed(1)  # the random part of each wait decides now and then whether one more look is needed
        keepa, storage = FakeKeepa(initial=0, refill_rate=5, clock=ManualClock()), Counting(line=line)
        sync = KeepaSync(TokenBucket(keepa_quota(5), key="plan", storage=storage, clock=keepa.clock), probe=keepa.probe)
        sync.refresh()
        for cost in (5, 12, 1, 30, 8, 3):
            with sync.request(cost) as call:
                answer = keepa.request("/product", asins(cost))
                call.settle(answer.content, status=answer.status)
        assert keepa.refused == 0
        return [type(command).__name__ for command in storage.commands]

    assert commands(line=True) == commands(line=False)
    assert commands(line=True).count("Reserve") > 6


@pytest.mark.parametrize("initial, spent_at", [(0, 30), (10, 3.5)], ids=["it waited", "it went at once"])
def test_who_is_refused_by_the_server_at_its_turn_keeps_its_place(initial: int, spent_at: float) -> None:
    """Somebody else spends what the first of four was let go for; refused, it is the first to be served next."""
    served: list[int] = []

    async def one(sync: AsyncKeepaSync, keepa: FakeKeepa, number: int) -> None:
        await asyncio.sleep(number)
        async for call in sync.attempts(10):
            async with call:
                await asyncio.sleep(4)
                answer = keepa.request("/product", asins(10))
                await call.settle(answer.content, status=answer.status)
        served.append(number)

    async def all_four(loop: VirtualLoop, keepa: FakeKeepa) -> None:
        bucket = AsyncTokenBucket(keepa_quota(5), key="plan", clock=keepa.clock)
        sync = AsyncKeepaSync(bucket, probe=keepa.aprobe)
        await sync.refresh()
        loop.call_later(spent_at, keepa.spend_outside, 15)
        await asyncio.gather(*(one(sync, keepa, number) for number in range(4)))
        assert keepa.refused == 1

    with virtual_loop() as loop:
        loop.run_until_complete(all_four(loop, FakeKeepa(initial=initial, refill_rate=5, clock=loop.clock)))
    assert served == [0, 1, 2, 3]
