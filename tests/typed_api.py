"""How the public names are used, for type checkers: nothing here runs. mypy, pyright and ty must agree with each line.

`tests/test_typed_api.py` holds that each public name is here.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import assert_type

import httpx

from keepa_tokens import (
    UNLIMITED,
    AcquireTimeout,
    AsyncCall,
    AsyncKeepaSync,
    AsyncRedisStorage,
    AsyncReservation,
    AsyncSQLiteStorage,
    AsyncStorage,
    AsyncTokenBucket,
    BadReading,
    BucketState,
    Call,
    Clock,
    ConfigError,
    CostTooLarge,
    Decision,
    Event,
    EventKind,
    Hold,
    KeepaSync,
    KeepaTokensError,
    Listener,
    LoggingListener,
    MemoryStorage,
    NotEnoughTokens,
    Outcome,
    Quota,
    Reading,
    Reason,
    RedisStorage,
    Reservation,
    Snapshot,
    SQLiteStorage,
    Storage,
    StorageUnavailable,
    SystemClock,
    TokenBucket,
    async_http_probe,
    async_storage_from_url,
    http_probe,
    keepa_quota,
    storage_from_url,
)
from keepa_tokens.guards.httpx import AsyncKeepaTransport, KeepaTransport
from keepa_tokens.testing import FakeKeepa, ManualClock


def quotas() -> None:
    assert_type(Quota(300, 5, 60.5, stepped=True, overdraft=UNLIMITED, recharge_to=40, initial=0, synced=True), Quota)
    assert_type(Quota.per_second(10, capacity=100), Quota)
    assert_type([Quota.per_minute(60, overdraft=3), Quota.per_hour(1), Quota.per_day(1)], list[Quota])
    assert_type(keepa_quota(20, recharge_to=40), Quota)


def buckets(storage: Storage, clock: Clock, listener: Listener) -> None:
    bucket = TokenBucket(Quota.per_second(1), key="k", storage=storage, clock=clock, listener=listener)
    decision = bucket.try_acquire(2, keep=1)
    assert_type(decision, Decision)
    assert_type(bool(decision), bool)
    assert_type(decision.granted, bool)
    assert_type(decision.reason, Reason)
    assert_type(decision.balance, int | None)
    assert_type(decision.retry_after, float)
    assert_type(decision.repaired, tuple[str, ...])
    assert_type(bucket.acquire(2, keep=1, timeout=3.0), Decision)
    with bucket.reserve(2, timeout=1, hold_for=60) as reservation:
        assert_type(reservation, Reservation)
        assert_type(reservation.tokens, int)
        reservation.settle(1, Reading(5, next_refill_in=1.0, refill=2, period=60, capacity=300, server_time=1.0))
    bucket.try_reserve(2, keep=1).cancel()
    bucket.refund(1)
    assert_type(bucket.take_up_to(3, keep=1), int)
    bucket.pause(60)
    bucket.reset()

    @bucket.limit(2, keep=1, timeout=3.0)
    def fetch(url: str, *, tries: int = 1) -> bytes:
        return url.encode() * tries

    assert_type(fetch("x", tries=2), bytes)
    snapshot = bucket.peek(2, keep=1)
    assert_type(snapshot, Snapshot)
    assert_type(snapshot.available, int | None)
    assert_type(snapshot.bound, float)
    assert_type(bucket.reconcile(Reading(3)), Snapshot)
    assert_type(bucket.with_key("other"), TokenBucket)


async def async_buckets(storage: AsyncStorage) -> None:
    bucket = AsyncTokenBucket(Quota.per_second(1), key="k", storage=storage)
    assert_type(await bucket.try_acquire(), Decision)
    assert_type(await bucket.acquire(timeout=1.0), Decision)
    assert_type(await bucket.try_reserve(2), AsyncReservation)
    async with bucket.reserve(2) as reservation:
        assert_type(reservation, AsyncReservation)
        await reservation.settle(1)
    assert_type(await bucket.take_up_to(3), int)
    await bucket.pause(60)
    await bucket.reset()

    @bucket.limit(2)
    async def fetch(url: str) -> bytes:
        return url.encode()

    assert_type(await fetch("x"), bytes)
    assert_type(await bucket.peek(), Snapshot)
    assert_type(await bucket.reconcile(Reading(3)), Snapshot)
    assert_type(bucket.with_key("other"), AsyncTokenBucket)


def keepa(body: Mapping[str, object], storage: Storage) -> None:
    """Meter calls to Keepa from a thread."""
    sync = KeepaSync.from_key("key", refill_rate=20, storage=storage, probe_interval=600.0, recharge_to=40)
    with sync.request(6, keep=10, timeout=5.0) as call:
        assert_type(call, Call)
        call.settle(body, status=200)
        call.settle(b"{}")
        call.settle("{}", status=429)
        call.settle()
    assert_type(call.consumed, int | None)
    assert_type(call.refused, bool)
    assert_type(call.waited, float)
    sync.try_request(6, place="task", label="who").cancel()
    assert_type(sync.attempts(6), Generator[Call, None, None])
    sync.observe(body, status=200)
    assert_type(sync.refresh(), Snapshot)
    assert_type(sync.bucket, TokenBucket)
    assert_type(KeepaSync(sync.bucket, probe=http_probe("key")), KeepaSync)
    httpx.Client(transport=KeepaTransport(sync, api_key="key", timeout=0, retry_refused=True))


async def async_keepa(body: bytes, storage: AsyncStorage) -> None:
    sync = AsyncKeepaSync.from_key("key", storage=storage)
    async with sync.request(6) as call:
        assert_type(call, AsyncCall)
        await call.settle(body, status=200)
    await (await sync.try_request(6)).cancel()
    async for attempt in sync.attempts(6):
        assert_type(attempt, AsyncCall)
    await sync.observe(body)
    assert_type(await sync.refresh(), Snapshot)
    assert_type(sync.bucket, AsyncTokenBucket)
    assert_type(AsyncKeepaSync(sync.bucket, probe=async_http_probe("key")), AsyncKeepaSync)
    httpx.AsyncClient(transport=AsyncKeepaTransport(sync, api_key="key"))


def storages(url: str) -> list[Storage]:
    """Whatever is a storage may stand where one is wanted, and a block closes it."""
    with SQLiteStorage(url) as file, MemoryStorage() as memory, RedisStorage.from_url(url) as server:
        assert_type(file, SQLiteStorage)
        assert_type(memory, MemoryStorage)
        assert_type(server, RedisStorage)
    return [MemoryStorage(), SQLiteStorage(url), RedisStorage.from_url(url), storage_from_url(url)]


async def async_storages(url: str) -> list[AsyncStorage]:
    async with AsyncSQLiteStorage(url) as file, AsyncRedisStorage.from_url(url) as server:
        assert_type(file, AsyncSQLiteStorage)
        assert_type(server, AsyncRedisStorage)
    assert_type(async_storage_from_url(url), MemoryStorage | AsyncSQLiteStorage | AsyncRedisStorage)
    assert_type(storage_from_url(url), MemoryStorage | SQLiteStorage | RedisStorage)
    return [AsyncRedisStorage.from_url(url), AsyncSQLiteStorage(url)]


def clocks() -> list[Clock]:
    """Whatever is a clock may stand where one is wanted."""
    return [SystemClock(), ManualClock(), FakeKeepa().clock]


def listeners(events: list[Event]) -> list[Listener]:
    """A function of an event is a listener, and so is the one that logs."""
    return [LoggingListener(), events.append, lambda event: events.clear() if event.kind is EventKind.GRANTED else None]


def own_storage(quota: Quota, fields: dict[str, str]) -> tuple[Hold, ...]:
    """Read and write a state, as a storage does."""
    state = BucketState.from_fields(fields)
    assert_type(state.to_fields(), dict[str, str])
    assert_type(MemoryStorage().inspect("k"), Snapshot | None)
    assert_type(quota.starts_at, int | None)
    return tuple(state.holds.values())


def told(outcome: Outcome) -> Decision:
    return outcome.decision()


def errors(error: KeepaTokensError) -> str:
    match error:
        case AcquireTimeout() | NotEnoughTokens():
            assert_type(error.retry_after, float)
            return f"in {error.retry_after} s"
        case CostTooLarge():
            return f"at most {error.largest}"
        case ConfigError() | BadReading() | StorageUnavailable():
            return str(error)
        case _:
            raise error
