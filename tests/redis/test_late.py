"""Interrupted while a real server's answer is on its way: the tokens are back, and the interrupt is what is seen."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import redis

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    KeepaSync,
    Quota,
    RedisStorage,
    TokenBucket,
    _interrupts,
)
from keepa_tokens.storage.redis import AsyncRedisStorage
from keepa_tokens.testing import ManualClock
from tests.redis.proxy import Proxy

PLAIN: Final = Quota(100, 1, 1.0)
SYNCED: Final = Quota(100, 1, 1.0, synced=True, initial=100)
LATE_S: Final = 0.15
"""How much later a question arrives, and an answer."""

DOORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "acquire": lambda bucket, _: bucket.acquire(10),
    "try_acquire": lambda bucket, _: bucket.try_acquire(10),
    "take_up_to": lambda bucket, _: bucket.take_up_to(10),
    "reserve": lambda bucket, _: bucket.reserve(10),
    "try_reserve": lambda bucket, _: bucket.try_reserve(10),
    "request": lambda _, sync: sync.request(10),
    "try_request": lambda _, sync: sync.try_request(10),
    "attempts": lambda _, sync: next(iter(sync.attempts(10))),
}

WHEN: Final = (pytest.param(LATE_S / 2, marks=pytest.mark.deep), LATE_S * 3 / 2)
"""While the question is on its way, and while the answer is."""


class TimeLimit(Exception):  # as Celery's soft time limit
    """Raised by the handler of a signal."""


def strike(*_: object) -> None:
    raise TimeLimit


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seen(storage: RedisStorage, quota: Quota) -> tuple[int | None, int, int]:
    """Return what is there, past the proxy."""
    shown = TokenBucket(quota, key="default", storage=storage, clock=ManualClock(100.0)).peek()
    return shown.available, shown.held, shown.waiting


@pytest.mark.parametrize("struck_after", WHEN)
@pytest.mark.parametrize("door", DOORS)
def test_a_thread_struck_by_a_signal_has_taken_nothing(
    storage: RedisStorage, proxy: Proxy, door: str, struck_after: float
) -> None:
    """The time limit is what is seen, once the answer is there; everything is available, and the storage goes on."""
    quota = SYNCED if "request" in door or door == "attempts" else PLAIN
    with RedisStorage.from_url(proxy.url) as late:
        bucket = TokenBucket(quota, key="default", storage=late, clock=ManualClock(100.0))
        bucket.peek()
        proxy.delay_s = LATE_S
        with limited(struck_after), pytest.raises(TimeLimit):
            DOORS[door](bucket, KeepaSync(bucket) if quota.synced else None)
        proxy.delay_s = 0
        assert seen(storage, quota) == (100, 0, 0)
        assert bucket.try_acquire(100)


@pytest.mark.parametrize("struck_after", WHEN)
@pytest.mark.parametrize("door", [name for name in DOORS if name != "attempts"])
def test_a_coroutine_that_runs_out_of_time_has_taken_nothing(
    storage: RedisStorage, proxy: Proxy, door: str, struck_after: float
) -> None:
    """TimeoutError is what is seen; everything is available, and the storage goes on."""
    quota = SYNCED if "request" in door else PLAIN

    async def main() -> None:
        async with AsyncRedisStorage.from_url(proxy.url) as late:
            bucket = AsyncTokenBucket(quota, key="default", storage=late, clock=ManualClock(100.0))
            await bucket.peek()
            proxy.delay_s = LATE_S
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(struck_after):
                    await DOORS[door](bucket, AsyncKeepaSync(bucket) if quota.synced else None)
            proxy.delay_s = 0
            await bucket.aclose()
            assert seen(storage, quota) == (100, 0, 0)
            assert await bucket.try_acquire(100)

    asyncio.run(main())


@pytest.mark.parametrize("door", ["acquire", "reserve"])
def test_a_signal_strikes_though_the_server_never_answers(
    proxy: Proxy, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a client without timeouts too: after a while the signal strikes, and what may be left taken is told."""
    monkeypatch.setattr(_interrupts, "LONGEST_PUT_OFF_S", 0.1)
    events: list[Event] = []
    with redis.Redis(host="127.0.0.1", port=proxy.port, socket_timeout=None) as client:
        bucket = TokenBucket(
            PLAIN, key="default", storage=RedisStorage(client), clock=ManualClock(100.0), listener=events.append
        )
        bucket.peek()
        proxy.deaf = True
        begun = time.monotonic()
        with limited(0.05), pytest.raises(TimeLimit):
            getattr(bucket, door)(10)
        assert time.monotonic() - begun < 5
        proxy.drop()
    assert [event.tokens for event in events if event.kind is EventKind.NOT_GIVEN_BACK] == [10]
