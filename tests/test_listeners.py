"""Listeners that raise, call back or are told of many buckets: whoever calls the bucket notices nothing of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry

from keepa_tokens import (
    AcquireTimeout,
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    KeepaSync,
    LoggingListener,
    NotEnoughTokens,
    Quota,
    Reading,
    StorageUnavailable,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.events import MOST_KEYS
from keepa_tokens.metrics import PrometheusListener
from keepa_tokens.testing import ManualClock
from tests.helpers import Noted, in_a_child, in_threads
from tests.http_guards import KINDS, Kind, asins, running
from tests.keepa_world import World

pytestmark = pytest.mark.anyio

PLAIN: Final = Quota(4, 1, 1.0)

RAISED: Final = [
    StorageUnavailable("the listener's own Redis is away"),
    NotEnoughTokens(5, 9.0, "EMPTY"),
    AcquireTimeout(5, 9.0, "EMPTY"),
    TimeoutError(),
    StopIteration(),
    StopAsyncIteration(),
    RecursionError(),
    MemoryError(),
    ExceptionGroup("several", [ValueError(1), OSError(2)]),
]
"""Errors that the library itself raises, catches or gives a meaning, were they not a listener's."""


@pytest.fixture(params=RAISED, ids=lambda error: type(error).__name__)
def broken(request: pytest.FixtureRequest) -> Callable[[Event], None]:
    """A listener that raises at whatever it is told."""

    def listen(event: Event, /) -> None:
        raise request.param

    return listen


# --- what a listener raises


def test_a_thread_notices_nothing_of_what_a_listener_raises(
    broken: Callable[[Event], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Granted, refused, waited, settled, run out, given back: as without a listener, and one line in the log."""
    clock = ManualClock(100.0)
    bucket = TokenBucket(PLAIN, clock=clock, listener=broken)
    assert bucket.try_acquire(4).granted
    assert not bucket.try_acquire(1).granted
    assert bucket.acquire(2).waited == 2.0
    with pytest.raises(AcquireTimeout):
        bucket.acquire(3, timeout=1)
    bucket.reserve(1, timeout=5).settle(0)
    with pytest.raises(OSError, match="mine"), bucket.reserve(1):
        raise OSError("mine")
    bucket.refund(1)
    left = bucket.try_reserve(1, hold_for=1.0)
    clock.advance(10.0)
    assert (bucket.peek().balance, bucket.peek().holds) == (4, 0)
    left.settle(1)
    assert [record.exc_info is None for record in caplog.records] == [False]


async def test_a_coroutine_notices_nothing_of_it_either(
    broken: Callable[[Event], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting, settling, a refresh, a probe that fails: the caller gets what the bucket says."""
    clock = ManualClock(100.0)
    answers = iter([(503, None), (200, {"tokensLeft": 9})])

    async def probe() -> Any:
        return next(answers)

    plain = AsyncTokenBucket(PLAIN, clock=clock, listener=broken)
    await plain.acquire(4)
    assert (await plain.acquire(2)).waited == 2.0
    await (await plain.reserve(1)).settle(1)
    door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(), clock=clock, listener=broken), probe=probe)
    with pytest.raises(NotEnoughTokens):
        await door.try_request(1)
    clock.advance(30.0)
    async with door.request(2) as call:
        await call.settle(b"<html>", status=502)
    assert call.consumed is None
    assert (await door.refresh()).balance == 9
    assert len(caplog.records) == 2  # of two buckets


@pytest.mark.parametrize("kind", EventKind)
def test_whatever_it_is_told_of_a_listener_may_raise(kind: EventKind) -> None:
    """One that knows all kinds but one: a day with a failed probe, a refusal, bad answers and damage goes on."""

    def listen(event: Event) -> None:
        if event.kind is kind:
            raise KeyError(event.kind)

    world = World(initial=-3, listener=listen)
    world.fake.token_down = True
    world.refused()
    world.fake.token_down = False
    world.clock.advance(21)
    world.call(2)
    world.damage(refilled_at=None)
    world.sync.observe(b"", status=502)
    world.sync.try_request(0)
    world.clock.advance(600)
    world.call(3)
    assert world.bucket.peek().balance == world.fake.balance


@pytest.mark.parametrize("kind", KINDS)
def test_a_guards_pause_notices_nothing_of_what_a_listener_raises(kind: Kind) -> None:
    """A 429 that nothing explains is waited out though the listener raises when it is told of the pause."""

    def listen(event: Event) -> None:
        raise BrokenPipeError(event.kind)

    with running(kind, initial=250) as world:
        world.sync.bucket.listener = world.asynch.bucket.listener = listen
        client = world.client(retry_refused=True)
        client.get("/token")
        world.fake.fail_next(1, "429", path="/product")
        assert client.get("/product", asins(5)).status == 200
        assert world.in_step()


# --- logs that raise


class Full(logging.Handler):
    """A handler whose disk is full."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def full() -> Iterator[None]:
    """The library's log goes to a full disk."""
    log, handler = logging.getLogger("keepa_tokens"), Full()
    log.addHandler(handler)
    yield
    log.removeHandler(handler)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("listener", [None, LoggingListener(), PrometheusListener(CollectorRegistry(), then=print)])
def test_a_log_that_raises_harms_nobody(listener: Any) -> None:
    """The error of the log can't be logged; refusals, probes and paid answers are as ever."""
    chosen = {} if listener is None else {"listener": listener}
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0), **chosen)
    sync = KeepaSync(bucket, probe=lambda: (503, None))
    for _ in range(3):
        with pytest.raises(NotEnoughTokens):
            sync.try_request(4)
    sync.observe({"tokensLeft": 9})
    call = sync.request(4)
    call.settle({"tokensLeft": 6, "tokensConsumed": 3})
    assert (call.consumed, sync.bucket.peek().balance) == (3, 6)


def test_who_listens_behind_the_metrics_may_raise_and_all_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """`then=` raises at each event: the counters have each all the same, and the log has one line."""

    def then(event: Event) -> None:
        raise UnicodeEncodeError("ascii", "\u20ac", 0, 1, event.kind)

    registry = CollectorRegistry()
    bucket = TokenBucket(PLAIN, key="k", clock=ManualClock(), listener=PrometheusListener(registry, then=then))
    for _ in range(4):
        assert bucket.try_acquire(1).granted
    assert not bucket.try_acquire(1).granted
    assert registry.get_sample_value("keepa_tokens_grants_total", {"bucket": "k"}) == 4
    assert registry.get_sample_value("keepa_tokens_refusals_total", {"bucket": "k", "reason": "EMPTY"}) == 1
    assert len(caplog.records) == 1


def test_a_listener_may_use_the_bucket_it_listens_to() -> None:
    """It looks, takes and gives back while it is told: no lock is held then."""
    seen: list[int | None] = []

    def listen(event: Event) -> None:
        if event.tokens == 3:
            seen.append(bucket.peek().balance)
            bucket.try_reserve(1).cancel()

    bucket = TokenBucket(PLAIN, clock=ManualClock(100.0), listener=listen)
    bucket.try_acquire(3)
    assert (seen, bucket.peek().balance) == ([1], 1)


def test_a_listener_that_looks_at_a_bucket_whose_storage_is_away_is_told_of_that_once() -> None:
    """Told of its own look as well, it would look again, and again: two looks each time end in no lifetime."""
    heard: list[EventKind] = []

    def listen(event: Event) -> None:
        heard.append(event.kind)
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                bucket.peek()

    storage = Noted()
    storage.away = True
    bucket = TokenBucket(PLAIN, key="default", storage=storage, listener=listen)
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            bucket.try_acquire(keep=1)
    assert heard == [EventKind.STORAGE_AWAY] * 2


# --- many buckets, many threads, a fork


def test_outages_of_many_buckets_are_remembered_by_a_bounded_number() -> None:
    """A key for each address, and the storage away: the default listener doesn't grow with them."""
    log = LoggingListener()
    storage = Noted()
    storage.away = True
    bucket = TokenBucket(PLAIN, key="default", storage=storage, listener=log)
    for number in range(MOST_KEYS + 20):
        with pytest.raises(StorageUnavailable):
            bucket.with_key(f"visitor-{number}").try_acquire()
    assert len(log.refused) == MOST_KEYS


def test_threads_that_share_a_log_keep_it_bounded() -> None:
    """Four threads, each with buckets of its own that refuse: no error, and no more is kept than by one."""
    log = LoggingListener()

    def refuse(thread: int) -> None:
        for number in range(MOST_KEYS // 2):
            log(Event(EventKind.REFUSED, f"{thread}-{number}", 1, why="EMPTY"))

    in_threads(4, refuse)
    assert len(log.refused) <= MOST_KEYS


def test_who_gave_up_waiting_is_kept_nowhere() -> None:
    """After 100 waits that ended by their timeout, on as many keys, the bell of the process is empty."""

    async def main() -> tuple[int, int]:
        bucket = AsyncTokenBucket(Quota(5, 1, 3600.0, initial=0, synced=True))
        waiting = bucket._door.bell._waiting
        most = 0

        async def give_up(number: int) -> None:
            door = bucket.with_key(f"k{number}")
            await door.reconcile(Reading(0))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await door.reserve(1)

        tasks = [asyncio.ensure_future(give_up(number)) for number in range(100)]
        for _ in range(5):
            await asyncio.sleep(0)
            most = max(most, len(waiting))
        await asyncio.gather(*tasks)
        return most, len(waiting)

    assert asyncio.run(main()) == (100, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the case is this one
def test_what_comes_back_in_a_forked_child_wakes_nobody_of_the_parent() -> None:
    """But the child's own thread, which waits after them."""
    bucket = TokenBucket(Quota(5, 1, 3600.0))
    bucket.acquire(5)

    def wait() -> threading.Thread:
        before = len(bucket._door.bell._waiting)
        waiting = threading.Thread(target=lambda: bucket.reserve(1).settle(0))
        waiting.start()
        while len(bucket._door.bell._waiting) == before:
            threading.Event().wait(0.001)
        return waiting

    def refunds() -> int:
        own = wait()
        bucket.refund(5)
        own.join(5)
        return own.is_alive()

    waiting = wait()
    assert in_a_child(refunds)() == 0
    bucket.refund(5)
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the case is this one
def test_a_child_that_is_forked_while_a_thread_waits_goes_on() -> None:
    """The parent's thread is in line at a bucket in memory; the child, which has no such thread, takes and settles."""
    bucket, begun = TokenBucket(Quota(5, 1, 3600.0, synced=True)), threading.Event()
    bucket.listener = lambda event: begun.set() if event.kind is EventKind.WAITING else None
    KeepaSync(bucket).observe({"tokensLeft": 5})
    held = bucket.reserve(5)
    waiting = threading.Thread(target=lambda: bucket.reserve(1).settle(0))
    waiting.start()
    assert begun.wait(10)

    def settles() -> int:
        held.settle(0)
        return bucket.peek().held

    assert in_a_child(settles)() == 0
    held.settle(0)
    waiting.join(10)
    assert not waiting.is_alive()
