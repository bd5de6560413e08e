"""KeepaSync beside FakeKeepa: the bucket follows the server, and asks `/token` only when nothing else can tell."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final, cast

import httpx
import httpx2
import pytest

from keepa_tokens import (
    AcquireTimeout,
    AsyncKeepaSync,
    AsyncTokenBucket,
    BucketState,
    Decision,
    Event,
    EventKind,
    KeepaSync,
    NotEnoughTokens,
    Reason,
    keepa_quota,
)
from keepa_tokens.keepa._door import PLACE
from keepa_tokens.keepa.backoff import TRIES, retry_after
from keepa_tokens.keepa.reading import Body
from keepa_tokens.rules.line import Ticket
from keepa_tokens.testing import FakeKeepa, virtual_loop
from keepa_tokens.testing.fake_keepa import Response
from tests.helpers import in_threads
from tests.keepa_stories import Told
from tests.keepa_world import PRODUCT, World, asins
from tests.stories import Story, each_story

STORIES: Final = """
without a probe one request goes ahead as the scout, the next waits for its answer: initial=-30 probe=0
    try a 4 -> probe; try x 4 -> NotEnoughTokens reason=UNKNOWN; answer a 4 -> status=429 balance=-30 in_step
a timeout shorter than the wait is raised before any wait, and nothing is held: initial=-12
    refresh; request a 1 timeout=30 -> AcquireTimeout slept=0 holds=0
while a probe fails the wait isn't known: it is bounded by the timeout: initial=20
    down 1; request a 1 timeout=5 -> AcquireTimeout reason=UNKNOWN slept>=4.9 slept<=5.3 token_calls=1
a probe that fails starts the unknown balance at 0, a grant comes one claim and one step later: initial=100
    down 1; call 3 -> status=200 slept<85.5 balance=102 in_step PROBE_FAILED=1
refill and capacity follow the next envelope, a recharge target above the new capacity shrinks with it: \
initial=100 refill_rate=20 recharge_to=1100
    call 1 -> capacity=1200 refill=20; plan 5; call 1 -> capacity=300 refill=5; outside 200; refresh
    try x 1 -> NotEnoughTokens reason=RECHARGING retry_after<=4924
who has no time for a probe goes ahead as the scout, its answer tells, and the rest follow: initial=6
    request a 1 timeout=(0|0.001|0.4); request b 1 timeout=0 -> AcquireTimeout token_calls=0
    answer a 1; request c 1 timeout=0; cancel c -> balance=5 in_step
where only the probe is refused one of the calls brings the truth, and the rest follow: \
initial=50 probe=(400|401|402|403|404|405)
    call 3; call 3; call 3; call 3; call 3 -> balance=35 in_step slept=0 PROBE_CLAIMED=1
an answer that says nothing of the key or the path is a failed probe: initial=50 probe=(200|408|429|500|502|503)
    try a 3 -> NotEnoughTokens
who runs out of time beside a call in flight leaves the line, and nobody is kept back for it: initial=8
    request a 6; request b 5 timeout=3 -> AcquireTimeout waiting=0; cancel a
an envelope seen elsewhere is taken if the server's time is later, whatever order they arrive in: initial=100
    ask a 10; pass 1; ask b 10; hear b; hear a; garbage 502 -> balance=80 READING_STALE=1 READING_BAD=1
# The answer of the second call was lost: it is charged when its hold runs out.
a call settled again minutes later changes nothing, what was spent since stays spent: initial=50
    request a 5; ask a 5; tell a -> balance=45; request b 20; settle b; pass 130; peek -> balance=35
    tell a -> balance=35
what is in flight is told and ends a wait soon: initial=8
    request a 6; try b 5 -> NotEnoughTokens reason=IN_FLIGHT held=6 holds=1 retry_after>=1 retry_after<=2
    cancel a; try c 5; cancel c
where tracking takes all the refill the wait is inf, and a probe within the interval notices its end: initial=-3
    flow 5; refresh; try x 1 -> NotEnoughTokens retry_after=inf bound<=600; flow 0; call 1 -> status=200 slept<692
"""


@each_story(STORIES)
def test_a_story_of_keepa_comes_out_as_told(story: Story) -> None:
    """Each title says what its steps show."""
    Told(story).goes()


def test_a_refused_call_is_settled_at_nothing_and_tried_again_by_attempts() -> None:
    """An outside spender gets the first attempt refused; `attempts` waits through the bucket and succeeds."""
    world = World(initial=10)
    world.sync.refresh()
    world.fake.spend_outside(15)
    statuses = []
    for call in world.sync.attempts(2):
        with call:
            statuses.append(world.answer(call, 2))
    assert statuses == [429, 200]
    assert world.fake.refused == 1
    assert world.clock.slept > 60
    assert world.bucket.peek().balance == world.fake.balance
    drift = [event.drift for event in world.kinds(EventKind.READING_TAKEN)]
    assert -15 in drift


def test_who_asks_while_a_refused_call_waits_again_does_not_stand_where_that_stood() -> None:
    """A listener's own request, made within the wait of the other, is behind it in line."""
    world, line = World(initial=10), list[Ticket]()
    world.sync.refresh()
    world.fake.spend_outside(15)

    def listen(event: Event) -> None:
        if event.kind is EventKind.WAITING and not line:
            with suppress(NotEnoughTokens):
                world.sync.try_request(2, place="another")
            line.extend(cast("BucketState", world.storage.dump("k")).line)

    world.bucket.listener = listen
    for call in world.sync.attempts(2):
        with call:
            world.answer(call, 2)
    assert line[0].arrived < line[1].arrived
    assert line[1].id == "another"


def test_an_answer_without_a_reading_is_charged_at_what_it_says_or_at_the_estimate() -> None:
    """A bad body settles the hold all the same, is ignored as a reading, and the event says why."""
    world = World(initial=50)
    for body, charged in (
        (b"<html>", 5),
        ("", 5),
        ({}, 5),
        ({"tokensConsumed": 2}, 2),
        ({"tokensLeft": float("nan"), "tokensConsumed": 3}, 3),
    ):
        world.sync.refresh()
        before = world.bucket.peek().balance
        assert before is not None
        world.events.clear()
        with world.sync.request(5) as call:
            call.settle(body, status=502)
        assert world.bucket.peek().balance == before - charged
        assert world.bucket.peek().holds == 0
        assert world.kinds(EventKind.READING_BAD)
        world.clock.advance(121)


def test_a_bad_key_shows_with_the_first_call() -> None:
    """Where the server refuses the probe, the request goes ahead and its own answer says why, without any wait."""
    world = World(initial=50)
    world.fake.key = "another"
    sync = KeepaSync(world.bucket, probe=lambda: probed(world.fake.request("/token", {"key": "wrong"})))
    call = sync.request(3, timeout=1)
    response = world.fake.request(PRODUCT, {**asins(3), "key": "wrong"})
    call.settle(response.content, status=response.status)
    assert response.status == 400
    assert call.decision == Decision(granted=True, reason=Reason.GRANTED, balance=None, probe=True)
    assert world.clock.slept == 0
    assert next(event.why for event in world.kinds(EventKind.PROBE_FAILED)) == (
        "status 400: the server refuses to tell: is the API key good, and the address right?"
    )
    snapshot = world.bucket.peek()
    assert (snapshot.balance, snapshot.holds) == (None, 0)
    # One call at a time finds out: who comes next is told to come back.
    with pytest.raises(NotEnoughTokens) as refused:
        sync.try_request(3)
    assert refused.value.reason == Reason.UNKNOWN


def test_who_goes_ahead_in_place_of_the_probe_leaves_the_line() -> None:
    """Its call is made, so nobody behind it keeps tokens for it: the next one finds what the answer told."""
    world = World(initial=-100)
    world.sync.refresh()
    world.clock.advance(601)
    world.fake.spend_outside(-100)
    sync = KeepaSync(world.bucket, probe=lambda: (403, None))
    world.call(5, estimate=60, by=sync)
    assert world.bucket.peek().waiting == 0
    assert sync.try_request(10).tokens == 10


def test_a_task_that_would_wait_for_too_long_keeps_its_place() -> None:
    """A queue's task has a timeout of its own: the one that comes first is first still, though it is bigger."""
    world = World(initial=-10)
    world.sync.refresh()

    def told(place: str, tokens: int) -> float:
        stands = PLACE.set(place)
        with pytest.raises(AcquireTimeout) as refused:
            world.sync.request(tokens, timeout=5)
        PLACE.reset(stands)
        return refused.value.retry_after

    assert told("big", 20) < told("small", 1)
    world.clock.advance(told("big", 20))
    with pytest.raises(NotEnoughTokens):
        world.sync.try_request(1, place="small")
    world.sync.try_request(20, place="big").cancel()


def probed(response: Response) -> tuple[int, Mapping[str, object] | None]:
    return response.status, response.body


def test_refresh_asks_now_and_leaves_an_ongoing_probe_alone() -> None:
    """Two who refresh at once cause one probe; later a refresh sees what an outside spender did."""
    world = World(initial=50)
    inside = threading.Event()

    def probe() -> tuple[int, Mapping[str, object] | None]:
        inside.set()
        assert KeepaSync(world.bucket, probe=world.fake.probe).refresh().balance is None
        return world.fake.probe()

    assert KeepaSync(world.bucket, probe=probe).refresh().balance == 50
    assert inside.is_set()
    assert world.fake.token_calls == 1
    world.fake.spend_outside(30)
    assert world.sync.refresh().balance == 20


def test_eight_threads_share_one_balance() -> None:
    """Threads on one bucket: nothing refused, all settled, the projection at the truth in the end."""
    world = World(initial=200)
    assert in_threads(8, lambda _: [world.call(4) for _ in range(5)]) == [[200] * 5] * 8
    assert world.fake.refused == 0
    snapshot = world.bucket.peek()
    assert (snapshot.balance, snapshot.holds) == (world.fake.balance, 0)
    assert world.fake.token_calls == 1


def test_fifty_coroutines_share_one_balance() -> None:
    """Coroutines in virtual time, with latency: nothing refused, one probe, the projection never above the truth."""
    with virtual_loop() as loop:
        fake = FakeKeepa(refill_rate=20, initial=300, clock=loop.clock, latency=(0.2, 2.0))
        bucket = AsyncTokenBucket(keepa_quota(20), clock=loop.clock)
        sync = AsyncKeepaSync(bucket, probe=fake.aprobe)

        async def work() -> None:
            for _ in range(4):
                async with sync.request(6) as call:
                    response = await fake.arequest(PRODUCT, asins(6))
                    await call.settle(response.content, status=response.status)
                    available = (await bucket.peek()).available
                    assert available is not None
                    assert available <= fake.balance

        async def main() -> int | None:
            await asyncio.gather(*(work() for _ in range(50)))
            return (await bucket.peek()).balance

        assert loop.run_until_complete(main()) == fake.balance
        assert (fake.refused, fake.token_calls) == (0, 1)


def test_async_attempts_and_refusals_are_those_of_the_sync_twin() -> None:
    """The async twin waits, refuses, observes and refreshes by the same plans."""
    with virtual_loop() as loop:
        fake = FakeKeepa(initial=10, clock=loop.clock)
        bucket = AsyncTokenBucket(keepa_quota(), clock=loop.clock)
        sync = AsyncKeepaSync(bucket, probe=fake.aprobe)

        async def main() -> list[int]:
            assert (await sync.refresh()).balance == 10
            fake.spend_outside(15)
            statuses = []
            async for call in sync.attempts(2):
                async with call:
                    response = await fake.arequest(PRODUCT, asins(2))
                    await call.settle(response.content, status=response.status)
                    statuses.append(response.status)
            fake.spend_outside(50)
            await sync.observe((await fake.arequest("/token")).content)
            with pytest.raises(NotEnoughTokens):
                await sync.try_request(1)
            await sync.observe({"tokensLeft": 250, "refillRate": 5, "timestamp": 4e12})
            begun = loop.time()
            async for call in sync.attempts(1):
                statuses.append(1)
                await call.settle(REFUSING, status=429)
            assert loop.time() >= begun + 1 + 2 + 4 + 8
            return statuses

        assert loop.run_until_complete(main()) == [429, 200] + [1] * TRIES


def test_doors_of_one_key_share_a_bucket() -> None:
    """from_key names the bucket by a digest of the key, the same for threads and coroutines; another key's isn't it."""
    one, two, twin = KeepaSync.from_key("key"), KeepaSync.from_key("key"), AsyncKeepaSync.from_key("key")
    assert one.bucket.key == two.bucket.key == twin.bucket.key
    assert one.bucket.key != KeepaSync.from_key("key" + "x").bucket.key


# --- refusals that tokens don't explain


REFUSING: Final = b'{"tokensLeft": 250, "tokensConsumed": 0, "refillRate": 5, "refillIn": 1000}'
"""The body of a refusal, although it says that there are tokens."""


def attempted(world: World, answer: Any, behind: int = 0, **status: int) -> list[float]:
    """Answer all attempts alike; return when they were made, in seconds from now. behind: what somebody waits for."""
    begun, at = world.clock.now_us(), []
    for call in world.sync.attempts(1):
        at.append((world.clock.now_us() - begun) / 1e6)
        with suppress(NotEnoughTokens):
            world.sync.try_request(behind, place="behind").cancel()
        call.settle(answer, **status)
        assert call.refused
        assert len(at) <= 2 * TRIES
    return at


@pytest.mark.parametrize("behind", [0, 300])
@pytest.mark.parametrize("body", [b"", b"<html>", None, {"tokensLeft": 250, "refillRate": 5}])
def test_attempts_that_tokens_do_not_explain_wait_and_end(body: Body, behind: int) -> None:
    """Refused again and again with tokens there, or without an envelope: a handful of tries, each later, and an end.

    Somebody who comes behind and waits explains nothing.
    """
    world = World(initial=250)
    world.sync.refresh()
    at = attempted(world, body, behind, status=429)
    assert len(at) == TRIES or body in (b"", b"<html>", None)
    assert len(at) <= TRIES + 1
    assert all(after - before >= 1 for before, after in pairwise(at))


@pytest.mark.parametrize("timeout", [0, 0.5, 1.0, 2.0])
def test_attempts_end_in_time(timeout: float) -> None:
    """With no time left for the next one NotEnoughTokens comes, and nothing is made again meanwhile."""
    world = World(initial=250)
    world.sync.refresh()
    made = 0

    def go_on() -> None:
        nonlocal made
        for call in world.sync.attempts(1, timeout=timeout):
            made += 1
            call.settle(REFUSING, status=429)

    with pytest.raises(NotEnoughTokens) as refused:
        go_on()
    assert refused.value.reason == "REFUSED"  # there are tokens: it is the server that refuses
    assert made <= 2
    assert world.clock.slept <= timeout


@pytest.mark.parametrize(
    "library, asked, seconds",
    [
        (httpx, "30", 30),
        (httpx2, "30 ", 30),
        (httpx, "100000", 3600),
        (httpx, "Sat, 28 Nov 2026 12:00:30 GMT", 30),
        (httpx, "Sat, 28 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_attempts_wait_as_long_as_a_response_asks(library: Any, asked: str, seconds: int) -> None:
    """Settled with the response itself, its `Retry-After` is obeyed, an hour at most: five tries, so far apart."""
    world = World(initial=250)
    world.sync.refresh()
    headers = {"Retry-After": asked, "Date": "Sat, 28 Nov 2026 12:00:00 GMT"}
    at = attempted(world, library.Response(429, content=REFUSING, headers=headers))
    assert len(at) == TRIES
    assert all(seconds <= after - before <= seconds + 1 for before, after in pairwise(at))


@pytest.mark.parametrize("asked", ["soon", "", "-5", "Sat, 28 Nov 2026 12:00:30 +99999999999999"])
def test_a_retry_after_that_can_not_be_read_is_none(asked: str) -> None:
    """Whatever a server writes there."""
    assert retry_after({"Retry-After": asked, "Date": "Sat, 28 Nov 2026 12:00:00 GMT"}) is None


def test_who_has_no_time_for_what_a_response_asks_is_told_when_there_are_tokens() -> None:
    """The longer of both waits: for the server's, and for the bucket's own."""
    world = World(initial=0)
    attempts = world.sync.attempts(1, timeout=1)
    with pytest.raises(AcquireTimeout):
        next(attempts)
    world.clock.advance(61)
    attempts = world.sync.attempts(1, timeout=1)
    body = {"tokensLeft": -100, "refillRate": 5, "refillIn": 1000}
    next(attempts).settle(cast("Any", httpx.Response(429, json=body, headers={"Retry-After": "5"})))
    with pytest.raises(AcquireTimeout) as refused:
        next(attempts)
    assert refused.value.retry_after > 1000


# --- wall clock


def test_the_time_in_a_probe_counts() -> None:
    """A probe that takes 8 of 10 seconds leaves 2 for the wait; one that takes `timeout` is told what is left."""
    world = World(initial=-4)
    told: list[float] = []

    def slow(*, timeout: float) -> tuple[int, Mapping[str, object] | None]:
        told.append(timeout)
        world.clock.advance(8)
        return world.fake.probe()

    with pytest.raises(AcquireTimeout):
        KeepaSync(world.bucket, probe=slow).request(1, timeout=10.0)
    assert told == [10.0]
    assert world.clock.slept <= 2
    sync = KeepaSync(World().bucket, probe=slow)
    with pytest.raises(NotEnoughTokens):
        sync.request(1, timeout=3.5)
    assert told[1:] == [3.5]
    sync = KeepaSync(World().bucket, probe=slow)
    with pytest.raises(NotEnoughTokens):
        sync.try_request(1)
    assert told[2:] == [10.0]


# --- large answers


def test_a_large_answer_does_not_hold_up_the_event_loop() -> None:
    """21 MB are settled in pieces of a few milliseconds, by the same reading as a small one."""
    product = {"asin": "B0", "title": 'a "[{" b', "csv": [list(range(30_000))] * 9}
    envelope = {"tokensLeft": 41, "tokensConsumed": 9, "refillRate": 5, "refillIn": 1000, "timestamp": 1778384542514}
    body = json.dumps({"products": [product] * 14, **envelope}).encode()
    assert len(body) > 21_000_000
    sync = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(initial=50)))

    async def main() -> float:
        call = await sync.request(9)
        settling = asyncio.ensure_future(call.settle(body, status=200))
        longest, last = 0.0, time.thread_time()
        while not settling.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
        await settling
        assert call.consumed == 9
        assert (await sync.bucket.peek()).balance == 41
        return longest

    assert asyncio.run(main()) < 0.05


def test_a_call_is_open_until_it_is_settled_or_cancelled() -> None:
    """`open` says whether its end has yet to come; a settle behind a cancel changes nothing."""
    world = World(initial=100)
    settled, cancelled = world.sync.request(10), world.sync.request(20)
    assert (settled.open, cancelled.open) == (True, True)
    world.answer(settled, 10)
    cancelled.cancel()
    assert (settled.open, cancelled.open) == (False, False)
    cancelled.settle({"timestamp": 1_780_000_000_000, "tokensLeft": 1}, status=200)
    assert (world.bucket.peek().balance, world.bucket.peek().holds) == (90, 0)
