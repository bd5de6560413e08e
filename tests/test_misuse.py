"""Mistakes are told at once, by name and with what to do; they are no outage, and no secret is shown."""

from __future__ import annotations

import asyncio
import copy
import http
import pickle
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, Final, cast

import httpx
import numpy as np
import pytest
import redis
import redis.asyncio
import requests
import trio

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncRedisStorage,
    AsyncSQLiteStorage,
    AsyncTokenBucket,
    BucketState,
    ConfigError,
    CostTooLarge,
    Event,
    EventKind,
    Hold,
    KeepaSync,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    Reading,
    RedisStorage,
    SQLiteStorage,
    TokenBucket,
    async_http_probe,
    http_probe,
    keepa_quota,
)
from keepa_tokens.guards.httpx import KeepaTransport
from keepa_tokens.keepa.estimates import Estimator
from keepa_tokens.rules.commands import Command, Outcome
from keepa_tokens.testing import ManualClock

PLAIN: Final = Quota(10, 1, 1.0)
SYNCED: Final = TokenBucket(keepa_quota(5, initial=300), clock=ManualClock(1.0))
NOTHING: Final[Any] = None
WRONG: Final[Any] = "n"
URL: Final = "redis://user:a-password@localhost:6379"


class AsyncStorage:
    """A storage for coroutines."""

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        raise AssertionError


class BlockingStorage:
    """A storage for threads."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        raise AssertionError


class Client:
    """A client of a server, as redis-py's."""

    def execute_command(self, *args: object) -> object:
        raise AssertionError


def sync(**changes: Any) -> KeepaSync:
    """Return a Keepa door to a bucket with 10 tokens."""
    return KeepaSync(TokenBucket(keepa_quota(initial=10), clock=ManualClock(100.0), **changes))


# --- storages, clocks, listeners, buckets, keys


@pytest.mark.parametrize(
    "make, storage, says",
    [
        (TokenBucket, AsyncStorage(), "AsyncTokenBucket"),
        (TokenBucket, URL, "from_url"),
        (TokenBucket, URL.encode(), "from_url"),
        (TokenBucket, Client(), r"RedisStorage\(client\)"),
        (TokenBucket, MemoryStorage, "instance"),
        (TokenBucket, 5, "no storage"),
        (TokenBucket, object(), "no storage"),
        (AsyncTokenBucket, BlockingStorage(), "blocks"),
        (AsyncTokenBucket, URL, "from_url"),
        (AsyncTokenBucket, Client(), r"RedisStorage\(client\)"),
        (AsyncTokenBucket, [], "no storage"),
    ],
)
def test_a_storage_of_the_wrong_kind_is_named_at_once(make: Any, storage: Any, says: str) -> None:
    """Async for sync and back, a URL, a client, a class, anything: a ConfigError says what to give, and no password."""
    with pytest.raises(ConfigError, match=says) as caught:
        make(PLAIN, storage=storage)
    assert "a-password" not in str(caught.value)


@pytest.mark.parametrize("make", [TokenBucket, AsyncTokenBucket])
@pytest.mark.parametrize("clock", [time.time, "now", ManualClock, 5])
def test_a_clock_that_is_none_is_named(make: Any, clock: Any) -> None:
    """What can't tell the time and sleep is a TypeError at once."""
    with pytest.raises(TypeError, match="clock must be a Clock"):
        make(PLAIN, clock=clock)


@pytest.mark.parametrize("now", [1.5e15, -1, 2**52, "1", True, None])
def test_a_clock_that_tells_no_time_is_an_error_and_takes_nothing(now: Any) -> None:
    """A float, a negative or an absurd instant at the door: nothing is stored by it."""

    class Odd(ManualClock):
        """A clock that tells something else."""

        def now_us(self) -> int:
            told: int = now
            return told

    storage = MemoryStorage()
    with pytest.raises((TypeError, ConfigError), match="now_us"):
        TokenBucket(PLAIN, storage=storage, clock=Odd()).try_acquire()
    assert list(storage.keys()) == []


def test_a_listener_must_be_callable() -> None:
    """A list instead of its `append` is a TypeError at once."""
    with pytest.raises(TypeError, match="listener must be callable"):
        TokenBucket(PLAIN, listener=[])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "make, bucket, says",
    [
        (KeepaSync, AsyncTokenBucket(keepa_quota()), "AsyncKeepaSync"),
        (AsyncKeepaSync, TokenBucket(keepa_quota()), "KeepaSync"),
        (KeepaSync, "an-api-key", "from_key"),
        (AsyncKeepaSync, "an-api-key", "from_key"),
        (KeepaSync, None, "NoneType"),
        (KeepaSync, keepa_quota(), "Quota"),
    ],
)
def test_a_bucket_of_the_wrong_kind_is_named(make: Any, bucket: Any, says: str) -> None:
    """An async bucket for threads, the reverse, an API key: what goes with what is said, and no key is shown."""
    with pytest.raises(ConfigError, match=says) as caught:
        make(bucket)
    assert "an-api-key" not in str(caught.value)


@pytest.mark.parametrize("make", [KeepaSync, AsyncKeepaSync])
@pytest.mark.parametrize("key", [None, "", 5, b"key", "with space", "line\n", "k\u00e9y"])
def test_what_is_no_api_key_is_told_without_showing_it(make: Any, key: Any) -> None:
    """None, as from a variable that isn't set, empty, with a line break: at once, and never in the text."""
    with pytest.raises((TypeError, ConfigError), match="api_key") as caught:
        make.from_key(key)
    assert not key or str(key) not in str(caught.value)


def test_from_key_takes_what_the_parts_take() -> None:
    """A probe of one's own, the bucket's name, how long a hold lives, where the server is."""
    clock = ManualClock(100.0)
    made = KeepaSync.from_key(
        "key", probe=lambda: (200, {"tokensLeft": 5}), hold_for=7.0, key="mine", clock=clock, refill_rate=20
    )
    assert (made.bucket.key, made.bucket.quota.refill) == ("mine", 20)
    made.try_request(5)
    clock.advance(7.0)
    assert (made.bucket.peek().held, made.bucket.peek().balance) == (0, 0)
    for make in (KeepaSync.from_key, AsyncKeepaSync.from_key):
        assert "http://127.0.0.1:1" in repr(vars(make("key", base_url="http://127.0.0.1:1"))["_probe"])
        for address in ("api.keepa.com", "ftp://x", ""):
            with pytest.raises(ConfigError, match="base_url"):
                make("key", base_url=address)
        with pytest.raises(ConfigError, match="hold_for"):
            make("key", hold_for=0)
        with pytest.raises(ConfigError, match="key"):
            make("key", key="a b")


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_any_kind_are_counts(kind: type) -> None:
    """What `operator.index` accepts is a count, and is stored as an int; bools are none."""
    storage = MemoryStorage()
    bucket = TokenBucket(PLAIN, storage=storage, clock=ManualClock(1.0))
    assert bucket.try_acquire(kind(3), keep=kind(1)).granted
    bucket.try_reserve(kind(2)).settle(kind(1))
    bucket.refund(kind(1))
    assert bucket.acquire(1, timeout=kind(1)).granted
    state = storage.dump("default")
    assert state is not None
    assert (state.balance, type(state.balance)) == (6, int)
    for door in (bucket.try_acquire, bucket.try_reserve):
        with pytest.raises(TypeError, match="tokens"):
            door(np.bool_(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "make, instead",
    [
        (lambda _: TokenBucket(PLAIN), "a storage that they share"),
        (lambda _: AsyncTokenBucket(PLAIN), "a storage that they share"),
        (lambda _: sync(), "a storage that they share"),
        (lambda _: sync().try_request(1), "make one in each process"),
        (lambda _: TokenBucket(PLAIN).try_reserve(1), "make one in each process"),
        (lambda _: AsyncKeepaSync(AsyncTokenBucket(keepa_quota())), "a storage that they share"),
        (lambda _: http_probe("key"), "with the same API key"),
        (lambda _: async_http_probe("key"), "with the same API key"),
        (lambda _: Estimator(), "it learns in its process"),
        (lambda _: KeepaTransport(sync()), "of the same bucket"),
        (lambda _: MemoryStorage(), "`dump` and `load`"),
        (lambda _: RedisStorage(redis.Redis()), "of the same URL"),
        (lambda _: AsyncRedisStorage(redis.asyncio.Redis()), "of the same URL"),
        (lambda path: SQLiteStorage(path / "b"), "of the same path"),
        (lambda path: AsyncSQLiteStorage(path / "b"), "of the same path"),
    ],
)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_cannot_be_copied_says_what_to_make(make: Any, instead: str, copied: Any, tmp_path: Path) -> None:
    """Doors, calls, probes, guards, storages, alone or in a task's arguments: refused at once, with what to do."""
    made = make(tmp_path)
    for given in (made,) if copied is copy.copy else (made, {"args": [made]}):
        with pytest.raises(TypeError, match=f"can't be pickled or copied: .*{instead}"):
            copied(given)


@pytest.mark.parametrize(
    "value",
    [
        keepa_quota(20, recharge_to=40),
        BucketState(balance=4, refilled_at=7, holds={"a": Hold(1, 2, 3, 4)}),
        Reading(4),
        Event(EventKind.REFUSED, "k", 4, None, 1.5, None, "EMPTY"),
        TokenBucket(PLAIN, clock=ManualClock(1.0)).try_acquire(3),
        TokenBucket(PLAIN, clock=ManualClock(1.0)).peek(3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_what_a_bucket_says_can_be_sent_to_another_process(value: object, copied: Any) -> None:
    """Terms, readings, events, decisions and snapshots come out of a pickle or a copy as they went in."""
    assert copied(value) == value
    assert type(copied(value)) is type(value)


# --- probes


async def async_probe() -> tuple[int, Mapping[str, object] | None]:
    return 200, {"tokensLeft": 5}


@pytest.mark.parametrize(
    "probe, says",
    [
        (async_probe, "coroutine function"),
        (async_http_probe("key"), "coroutine function"),
        (lambda: asyncio.sleep(0), "coroutine"),
        (lambda: httpx.Response(200), "Response"),
        (lambda: {"tokensLeft": 5}, "dict"),
        (lambda: ("200", None), "tuple"),
        (lambda: None, "NoneType"),
    ],
)
def test_a_probe_that_is_none_is_told_by_name(probe: Any, says: str) -> None:
    """An async one for threads, one that returns a response or a body alone: a ConfigError, and no failed probe."""
    events: list[Event] = []
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0), listener=events.append)
    with pytest.raises(ConfigError, match=says):
        KeepaSync(bucket, probe=probe).try_request(1)
    assert not [event for event in events if event.kind is EventKind.PROBE_FAILED]


@pytest.mark.parametrize(
    "probe, says",
    [
        (lambda: (200, {"tokensLeft": 5}), "goes with KeepaSync"),
        (http_probe("key", transport=httpx.MockTransport(lambda _: httpx.Response(200))), "goes with KeepaSync"),
        (lambda: 5, "int"),
        (lambda: asyncio.sleep(0, httpx.Response(200)), "Response"),
    ],
)
def test_an_async_door_says_the_same_of_its_probe(probe: Any, says: str) -> None:
    """One that blocks, one that returns no pair."""
    door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(), clock=ManualClock(100.0)), probe=probe)

    async def main() -> None:
        await door.try_request(1)

    with pytest.raises(ConfigError, match=says):
        asyncio.run(main())


@pytest.mark.parametrize("probe", ["https://api.keepa.com/token", 5, http_probe])
def test_what_cannot_be_called_is_no_probe(probe: Any) -> None:
    """A URL, or the class of the ready one instead of one that was made with the key."""
    for make in (KeepaSync, AsyncKeepaSync):
        bucket: Any = TokenBucket(keepa_quota()) if make is KeepaSync else AsyncTokenBucket(keepa_quota())
        with pytest.raises(TypeError, match="probe must be callable"):
            make(bucket, probe=probe)


@pytest.mark.parametrize(
    "text, secret",
    [
        ("no answer from https://api.keepa.com/token?key=abc123&domain=1", "abc123"),
        ("the proxy http://me:hunter2@proxy:3128 refused", "hunter2"),
        ("bad header " + "k3y" * 21 + "z", "k3yk3yk3y"),
    ],
)
def test_a_probes_own_words_are_kept_without_what_is_secret(text: str, secret: str) -> None:
    """What a probe raised is told with its text; keys and passwords in it are not."""

    def probe() -> tuple[int, Mapping[str, object] | None]:
        raise OSError(text)

    events: list[Event] = []
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0), listener=events.append)
    with pytest.raises(NotEnoughTokens):
        KeepaSync(bucket, probe=probe).try_request(1)
    [failed] = [event.why for event in events if event.kind is EventKind.PROBE_FAILED]
    assert failed.startswith(f"the probe raised OSError: {text[:8]}")
    assert secret not in failed


# --- answers


ENVELOPE: Final = b'{"tokensLeft": 7, "tokensConsumed": 3}'


def of_requests(status: int) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer._content = status, ENVELOPE
    return answer


@pytest.mark.parametrize("answer", [httpx.Response(200, content=ENVELOPE), of_requests(200)])
def test_a_response_is_understood_as_it_is(answer: Any) -> None:
    """`settle(response)`: its body and its status."""
    door = sync()
    door.observe(b'{"tokensLeft": 10}')
    call = door.try_request(5)
    call.settle(answer)
    assert (call.consumed, call.refused, door.bucket.peek().balance) == (3, False, 7)
    refused = door.try_request(5)
    refused.settle(cast("Any", of_requests(429)))
    assert refused.refused
    door.observe(answer)


@pytest.mark.parametrize("status", ["429", http.HTTPStatus.TOO_MANY_REQUESTS, np.int64(429), 429])
def test_a_refusal_is_one_whatever_its_status_is_written_as(status: Any) -> None:
    """A text of digits, an enum, numpy's number: all are 429."""
    call = sync().try_request(5)
    call.settle(None, status=status)
    assert call.refused
    assert call.consumed == 0


@pytest.mark.parametrize("status", ["refused", 429.0, True, [], b"429"])
def test_what_is_no_status_is_a_type_error_and_the_call_stays_open(status: Any) -> None:
    """The right one can still be given."""
    door = sync()
    call = door.try_request(5)
    with pytest.raises(TypeError, match="status"):
        call.settle(ENVELOPE, status=status)
    assert door.bucket.peek().held == 5
    call.settle(ENVELOPE, status=200)
    assert door.bucket.peek().held == 0


# --- what is left


def test_a_call_that_is_left_unsettled_is_warned_of() -> None:
    """`with sync.request(40): pass` says what is missing, as a ResourceWarning and as an event."""
    events: list[Event] = []
    door = sync(listener=events.append)
    with pytest.warns(ResourceWarning, match=r"a call of 4 tokens was left without settle\(\)"), door.request(4):
        pass
    [left] = [event for event in events if event.kind is EventKind.LEFT_UNSETTLED]
    assert left.tokens == 4
    assert "call.settle(" in left.why


@pytest.mark.parametrize(
    "make",
    [lambda: sync().try_request(4), lambda: TokenBucket(PLAIN).try_reserve(4), lambda: next(iter(sync().attempts(4)))],
)
def test_what_is_thrown_away_unsettled_is_warned_of(make: Callable[[], object]) -> None:
    """A call or a reservation that nobody keeps: the warning names the tokens."""
    with pytest.warns(ResourceWarning, match="of 4 tokens was left without"):
        make()


def test_what_was_settled_or_failed_is_not() -> None:
    """Settled, cancelled, told that nobody knows, left by an exception, charged by leaving: no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        door, bucket = sync(), TokenBucket(PLAIN)
        door.try_request(1).settle()
        door.try_request(1).cancel()
        bucket.try_reserve(1).settle(1)
        with bucket.try_reserve(1):
            pass
        with pytest.raises(OSError, match="gone"), door.request(1):
            raise OSError("gone")
        with pytest.raises(OSError, match="gone"), bucket.reserve(1):
            raise OSError("gone")


# --- coroutines and loops


def forgotten(bucket: AsyncTokenBucket) -> None:
    """Reserve, and await nothing."""
    _ = bucket.reserve(1)


def test_what_is_pending_can_be_a_task_is_used_once_and_not_forgotten_silently() -> None:
    """TaskGroup.create_task takes it; awaited twice it says so; forgotten, Python's own warning names it."""
    bucket = AsyncTokenBucket(PLAIN, clock=ManualClock(100.0))

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bucket.reserve(1))
        await task.result().settle(1)
        pending = bucket.try_reserve(1)
        await (await pending).cancel()
        with pytest.raises(RuntimeError, match="already awaited"):
            await pending
        with pytest.warns(RuntimeWarning, match=r"AsyncTokenBucket\._reserve.* was never awaited"):
            forgotten(bucket)
        assert (await bucket.peek()).holds == 0

    asyncio.run(main())


def test_a_bucket_in_memory_works_on_trio() -> None:
    """Waiting, reserving, a scope that cancels a wait: as on asyncio."""

    async def main() -> None:
        async with AsyncTokenBucket(Quota(2, 100, 1.0)) as bucket:
            await bucket.acquire(2)
            assert (await bucket.acquire(1)).waited > 0
            async with bucket.reserve(1) as held:
                await held.settle(0)
            held_back = await bucket.try_acquire(0)
            with trio.move_on_after(0.001) as scope:
                await bucket.acquire(2, keep=0)
            assert scope.cancelled_caught or held_back.granted
            assert (await bucket.peek()).holds == 0
        door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota()), probe=async_probe)
        await (await door.request(3)).settle(ENVELOPE, status=200)
        assert (await door.bucket.peek()).balance == 7

    trio.run(main)


def test_a_reading_wakes_who_waits_in_this_process() -> None:
    """On the machine's own time: what a settle of the same process brings ends the wait of another at once."""
    quota = Quota(10, 1, 3600.0, synced=True)

    async def main() -> float:
        bucket = AsyncTokenBucket(quota)
        await bucket.reconcile(Reading(4))
        held = await bucket.reserve(4)
        waiting = asyncio.ensure_future(bucket.reserve(3))
        await asyncio.sleep(0)
        begun = time.monotonic()
        await held.settle(0)
        await (await waiting).settle(0)
        return time.monotonic() - begun

    assert asyncio.run(main()) < 1.0


def test_a_settle_wakes_a_thread_that_waits() -> None:
    """For threads alike, by the machine's time: the one that stands first is woken, and passes it on."""
    bucket = TokenBucket(Quota(10, 1, 3600.0, synced=True))
    bucket.reconcile(Reading(4))
    held, done = bucket.reserve(4), threading.Barrier(3)

    def wait() -> None:
        bucket.reserve(2).settle(0)
        done.wait(10)

    for _ in range(2):
        threading.Thread(target=wait).start()
    while len(vars_of(bucket)) < 2:
        threading.Event().wait(0.001)
    begun = time.monotonic()
    held.settle(0)
    done.wait(10)
    assert time.monotonic() - begun < 5.0


def vars_of(bucket: TokenBucket) -> Sized:
    """Return who waits at a bucket."""
    return bucket._door.bell._waiting


Q: Final[Any] = Quota
"""For what a type checker would refuse."""


@pytest.mark.parametrize(
    "make, given, told",
    [
        (Q.per_second, (0.5,), "n must be a whole number (int), not 0.5: write Quota.per_minute(30)"),
        (Q.per_second, (1.0,), "write Quota.per_second(1)"),
        (Q.per_second, (2.5,), "write Quota.per_minute(150)"),
        (Q.per_second, (1 / 3,), "write Quota.per_minute(20)"),
        (Q.per_minute, (0.25,), "write Quota.per_hour(15)"),
        (Q.per_minute, (1 / 90,), "write Quota.per_day(16)"),
        (Q.per_day, (0.5,), "write Quota(capacity, 1, 172800)"),
        (Q, (10, 0.5, 1.0), "refill must be a whole number (int), not 0.5: write Quota.per_minute(30)"),
        (Q, (10, 0.5, 86_400), "write Quota(capacity, 1, 172800)"),
        (Q.per_second, (float("nan"),), "must be a whole number (int), not nan"),
        (Q.per_second, (-0.5,), "must be a whole number (int), not -0.5"),
        (Q.per_second, ("5",), "must be a whole number (int), not '5'"),
        (Q.per_second, (True,), "must be a whole number (int), not True"),
        (Q.per_second, (0.0,), "must be a whole number (int), not 0.0"),
        (Q.per_second, (2.0**52,), "must be a whole number (int), not 4503599627370496.0"),
        (Q, (10, 2.0**51, 0.5), "write Quota(capacity, 2251799813685248, 0.5)"),
    ],
)
def test_a_rate_below_a_token_is_refused_with_what_to_write(make: Any, given: tuple[object, ...], told: str) -> None:
    """A fraction of a token a second is a TypeError that says the same in whole numbers, by a longer unit."""
    with pytest.raises(TypeError) as refused:
        make(*given)
    assert str(refused.value).endswith(told)


@pytest.mark.parametrize(
    "make, seconds",
    [(Quota.per_second, 1.0), (Quota.per_minute, 60.0), (Quota.per_hour, 3_600.0), (Quota.per_day, 86_400.0)],
)
def test_a_quota_by_a_unit_is_the_one_that_is_spelled_out(make: Callable[..., Quota], seconds: float) -> None:
    """So many a unit, as many as that at most unless said otherwise, and all other terms as they are given."""
    assert make(5) == Quota(5, 5, seconds)
    assert make(5, capacity=7, overdraft=2) == Quota(7, 5, seconds, overdraft=2)


def test_numbers_of_other_libraries_are_plain_ones_in_a_quota() -> None:
    """A numpy integer in a quota can't overflow later, since it becomes an int."""
    quota = Q(np.int64(300), np.int32(5), 60.0, overdraft=np.int8(3), initial=np.int64(-4))
    assert {type(each) for each in (quota.capacity, quota.refill, quota.overdraft, quota.initial)} == {int}
    assert keepa_quota(np.uint8(5)) == keepa_quota(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64])
def test_numbers_of_other_libraries_overflow_nowhere(kind: Any) -> None:
    """An estimate, a cost beside what is kept, a reading: what is computed with them is computed with ints."""
    bucket = TokenBucket(keepa_quota(5, initial=300), clock=ManualClock(1.0))
    with KeepaSync(bucket).request(kind(5)) as call:
        call.settle({"tokensLeft": 5, "tokensConsumed": 5})
    with pytest.raises(CostTooLarge, match="tokens=100 with keep=100 can never be admitted"):
        TokenBucket(Q(100, 1, 1.0)).try_acquire(kind(100), keep=kind(100))
    reading = Reading(kind(5), capacity=kind(100), refill=kind(2), next_refill_in=kind(3))
    assert {type(each) for each in (reading.balance, reading.capacity, reading.refill_tokens)} == {int}
    assert bucket.reconcile(reading).balance == 5


@pytest.mark.parametrize(
    "misused, named",
    [
        (lambda: KeepaSync(SYNCED).request(NOTHING), "estimate must be a whole number (int), not None"),
        (lambda: KeepaSync(SYNCED).try_request(-1), "estimate=-1 is out of range"),
        (lambda: SYNCED.try_reserve(1).settle(1, WRONG), "reading must be a Reading, not 'n'"),
        (lambda: TokenBucket(PLAIN).try_reserve(1).settle(1, WRONG), "reading must be a Reading, not 'n'"),
        (lambda: BucketState.from_fields(WRONG), "texts must be a Mapping, not 'n'"),
        (lambda: MemoryStorage().load("k", WRONG), "state must be a BucketState, not 'n'"),
        (lambda: http_probe(NOTHING), "api_key must be the API key, a text, not NoneType"),
        (lambda: async_http_probe(""), "api_key is empty"),
        (lambda: http_probe("key", transport=WRONG), "transport must be"),
        (lambda: async_http_probe("key", transport=httpx.HTTPTransport()), "transport must be"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: SQLiteStorage("x.sqlite", timeout=-1), "timeout=-1 is out of range"),
        (lambda: SQLiteStorage("x" * 300), "can't be a file"),
        (lambda: SQLiteStorage("\ud800"), "can't be a file"),
        (lambda: Q(1, 1, 1.0, stepped=10**5000), "stepped must be True or False, not a whole number of 16610 bits"),
        (lambda: keepa_quota(10**15), "refill_rate=1000000000000000 is out of range"),
    ],
)
def test_what_is_wrong_is_named_at_once(misused: Callable[[], object], named: str) -> None:
    """An error of a kind that says so, which names the argument and shows what came."""
    with pytest.raises((TypeError, ConfigError), match=re.escape(named)):
        misused()


@pytest.mark.parametrize(
    "url", ["unix://", "redis://h?retry=3", "valkey://h?credential_provider=x", "redis://h?cache="]
)
def test_what_a_url_can_not_name_is_told_at_once(url: str) -> None:
    """No socket, or an option that is an object and would fail at its first use: ConfigError."""
    with pytest.raises(ConfigError):
        RedisStorage.from_url(url)


def test_a_url_or_a_pool_of_the_wrong_kind_is_not_shown() -> None:
    """What may hold a password is named by its type, in the error of a wrong argument as well."""
    wrong: Any = (b"redis://user:s3cret@h", redis.ConnectionPool.from_url("redis://user:s3cret@h"))
    doors: tuple[Callable[[Any], object], ...] = (RedisStorage.from_url, RedisStorage)
    for make, given in zip(doors, wrong, strict=True):
        with pytest.raises((TypeError, ConfigError)) as refused:
            make(given)
        assert "s3cret" not in str(refused.value)
        assert "user" not in str(refused.value)
