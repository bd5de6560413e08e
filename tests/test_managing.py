"""Beside taking and giving back: a decorator and reset, on both doors and every storage."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest

from keepa_tokens import (
    AcquireTimeout,
    AsyncSQLiteStorage,
    AsyncTokenBucket,
    ConfigError,
    CostTooLarge,
    MemoryStorage,
    Outcome,
    Quota,
    Reading,
    SQLiteStorage,
    Storage,
    TokenBucket,
)
from keepa_tokens.rules.commands import Acquire, Command
from keepa_tokens.testing import ManualClock

QUOTA = Quota(5, 1, 2.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Storage, Any]]:
    """One storage as both doors want it."""
    if request.param == "memory":
        memory = MemoryStorage()
        yield memory, memory
        return
    with closing(SQLiteStorage(tmp_path / "buckets.sqlite")) as blocking:
        twin = AsyncSQLiteStorage(tmp_path / "buckets.sqlite")
        yield blocking, twin
        asyncio.run(twin.aclose())


@pytest.fixture(params=["threads", "coroutines"])
def bucket(request: pytest.FixtureRequest, storages: tuple[Storage, Any], clock: ManualClock) -> Any:
    if request.param == "threads":
        return TokenBucket(QUOTA, key="k", storage=storages[0], clock=clock)
    return AsyncTokenBucket(QUOTA, key="k", storage=storages[1], clock=clock)


def got(call: Callable[..., Any], *args: Any, **options: Any) -> Any:

    async def awaited() -> Any:
        result = call(*args, **options)
        return await result if isawaitable(result) else result

    return asyncio.run(awaited())


# --- the decorator


def decorated(bucket: TokenBucket | AsyncTokenBucket, ran: list[int], **options: Any) -> Callable[..., Any]:
    """Return a function, or a coroutine function, behind a bucket."""

    def work(number: int) -> int:
        """Work."""
        ran.append(number)
        return number * 2

    @functools.wraps(work)
    async def suspended_work(number: int) -> int:
        """Work."""
        return work(number)

    if isinstance(bucket, TokenBucket):
        return bucket.limit(**options)(work)
    return bucket.limit(**options)(suspended_work)


def test_a_decorated_function_takes_its_tokens_and_waits_for_them(bucket: Any, clock: ManualClock) -> None:
    """Each call takes its tokens first, and waits where there are too few; result, arguments and name stay."""
    ran: list[int] = []
    work = decorated(bucket, ran, tokens=2)
    assert [got(work, 1), got(work, 2), got(functools.partial(work, number=3))] == [2, 4, 6]
    assert ran == [1, 2, 3]
    assert clock.slept == 2.0
    assert got(bucket.peek).balance == 0
    assert (inspect.getdoc(work), "work" in work.__name__) == ("Work.", True)
    assert inspect.iscoroutinefunction(work) == isinstance(bucket, AsyncTokenBucket)


def test_where_the_wait_would_be_too_long_the_function_is_not_run(bucket: Any) -> None:
    """Beyond the timeout the call raises AcquireTimeout at once; keep leaves tokens for others."""
    ran: list[int] = []
    work = decorated(bucket, ran, tokens=2, keep=2, timeout=1)
    got(work, 1)
    with pytest.raises(AcquireTimeout):
        got(work, 2)
    assert ran == [1]
    assert got(bucket.peek).balance == 3


def test_what_can_never_be_granted_is_said_where_it_is_decorated(bucket: Any) -> None:
    """An impossible cost or timeout, and a forgotten pair of brackets, are errors at the decoration."""
    for options, error in (({"tokens": 6}, CostTooLarge), ({"timeout": -1}, ConfigError)):
        with pytest.raises(error):
            bucket.limit(**options)
    for wrong in (functools.partial(bucket.limit, len), functools.partial(bucket.limit(), 7)):
        with pytest.raises(TypeError, match=r"write @bucket\.limit\(\)"):
            wrong()


class Blocking:
    def __call__(self) -> None: ...


class Suspending:
    async def __call__(self) -> None: ...


def blocks() -> None: ...


async def suspends() -> None: ...


async def yields() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("other", [suspends, functools.partial(suspends), Suspending()])
def test_a_bucket_for_threads_decorates_no_coroutine_function(other: Any) -> None:
    """It would block the event loop, so it is refused, with what to use."""
    with pytest.raises(ConfigError, match="use an AsyncTokenBucket"):
        TokenBucket(QUOTA).limit()(other)
    TokenBucket(QUOTA).limit()(Blocking())()


@pytest.mark.parametrize("other", [blocks, functools.partial(blocks), Blocking()])
def test_a_bucket_for_coroutines_decorates_no_other_function(other: Any) -> None:
    """Nothing could be awaited in it, so it is refused, with what to use."""
    with pytest.raises(ConfigError, match="decorate it by a TokenBucket"):
        AsyncTokenBucket(QUOTA).limit()(other)
    asyncio.run(AsyncTokenBucket(QUOTA).limit()(Suspending())())


@pytest.mark.parametrize("bucket", [TokenBucket(QUOTA), AsyncTokenBucket(QUOTA)])
def test_neither_decorates_an_async_generator(bucket: Any) -> None:
    """Neither sends its owner to the other one: both say where the tokens are taken instead."""
    with pytest.raises(ConfigError, match=r"yields is an async generator.*await bucket\.acquire\(\) in it"):
        bucket.limit()(yields)


# --- as much as there is, reset


@pytest.mark.parametrize("keep, taken", [(0, 37), (20, 37), (40, 30), (70, 0)])
def test_as_much_as_there_is_beside_what_others_spend(keep: int, taken: int) -> None:
    """What is kept back for others counts with `keep` up to a third of the capacity, as in any request."""
    bucket = TokenBucket(Quota(100, 0, 60.0, synced=True), clock=ManualClock())
    for balance in (100, 40, 70):
        bucket.reconcile(Reading(balance))
    assert bucket.take_up_to(100, keep=keep) == taken
    assert not bucket.try_acquire(1, keep=keep)


@pytest.mark.parametrize("balance, taken", [(150, 90), (-5, 0)])
def test_as_much_as_there_is_above_capacity_and_below_zero(balance: int, taken: int) -> None:
    """No more at a time than a request may have, and nothing where there is a debt."""
    bucket = TokenBucket(Quota(100, 0, 60.0, synced=True), clock=ManualClock())
    bucket.reconcile(Reading(balance))
    assert bucket.take_up_to(200, keep=10) == taken
    assert bucket.peek().balance == balance - taken


def test_where_others_are_always_quicker_nothing_is_taken() -> None:
    """Each time that it has looked, somebody else takes what it saw: it gives up."""

    class Quicker(MemoryStorage):
        """A storage at which somebody else takes all before each acquire."""

        def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
            if isinstance(command, Acquire):
                command = replace(command, tokens=quota.capacity)
            return super().apply(key, quota, command, now_us=now_us)

    bucket = TokenBucket(Quota(10, 1, 1.0, initial=9), key="k", storage=Quicker(), clock=ManualClock())
    assert bucket.take_up_to(3) == 0


def test_a_reset_bucket_is_a_new_one(bucket: Any) -> None:
    """Reset forgets balance and holds, also where there is nothing; what was in flight changes nothing any more."""
    held = got(bucket.try_reserve, 5)
    for _ in range(2):
        got(bucket.reset)
    assert got(bucket.peek).balance == 5
    got(held.settle, 1)
    assert got(bucket.peek).balance == 5
    assert got(lambda: list(bucket.storage.keys())) == [] if isinstance(bucket, TokenBucket) else True


def test_a_storage_that_can_forget_nothing_is_said() -> None:
    """Reset on a storage without `delete` is a ConfigError that says what to give it."""

    class Keeps:
        apply = MemoryStorage.apply

    keeps: Any = Keeps()
    with pytest.raises(ConfigError, match="Keeps can't forget a bucket: give it a method delete"):
        TokenBucket(QUOTA, key="default", storage=keeps).reset()
