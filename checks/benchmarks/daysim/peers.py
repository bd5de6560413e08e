"""General rate limiters, each as one shared bucket of the plan's rate: `limits`, `pyrate-limiter`, `throttled-py`.

A worker takes the estimate, makes the call, and after a refusal takes the estimate again: what a plain limiter can do
about a balance it doesn't know. All start with what the server has. Their memory storages run in virtual time:
`pyrate-limiter` takes a clock as an argument; the other two read `time` as a module, which is replaced while they run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final
from unittest.mock import Mock, patch

import limits.storage.memory
import throttled.utils
from limits import RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter
from pyrate_limiter import AbstractClock, Duration, InMemoryStateStore, Rate, RateItem, StateBucket, TokenBucket
from throttled import MemoryStore, RateLimiterType, Throttled
from throttled.rate_limiter import per_duration

from checks.benchmarks.daysim.keepa_client import EPOCH
from checks.benchmarks.daysim.world import Contender, World

HOUR: Final = 60
KEY: Final = "day"
SHORTEST_WAIT: Final = 1.0
"""Seconds: where a limiter's hint is shorter, nobody asks again sooner."""


Take = Callable[[int], float | None]
"""Takes tokens from a library's shared bucket, or says how many seconds to wait before asking again."""


def of_limits(rate: int, now: Callable[[], float]) -> Take:
    """`limits` has windows, no bucket that refills: an hour's moving window of an hour's tokens is the nearest."""
    item = RateLimitItemPerHour(HOUR * rate)
    limiter = MovingWindowRateLimiter(limits.storage.memory.MemoryStorage())

    def take(tokens: int) -> float | None:
        if limiter.hit(item, KEY, cost=tokens):
            return None
        return limiter.get_window_stats(item, KEY).reset_time - EPOCH - now()  # its oldest entry leaves

    return take


class _Clock(AbstractClock):
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def now(self) -> int:
        return int(self._now() * 1000)


def of_pyrate(rate: int, now: Callable[[], float]) -> Take:
    """`pyrate-limiter`'s token bucket, and its own rule for waiting: what the bucket says and 50 ms more."""
    clock = _Clock(now)
    bucket = StateBucket([Rate(rate, Duration.MINUTE, burst=HOUR * rate)], TokenBucket(), InMemoryStateStore(), clock)

    def take(tokens: int) -> float | None:
        item = RateItem(KEY, clock.now(), tokens)
        if bucket.put(item):
            return None
        wait = bucket.waiting(item)
        if not isinstance(wait, int):
            raise TypeError(wait)
        return (wait + 50) / 1000

    return take


def of_throttled(rate: int, now: Callable[[], float]) -> Take:  # noqa: ARG001 - it reads the replaced module
    """`throttled-py`'s token bucket."""
    quota = per_duration(timedelta(minutes=1), rate, HOUR * rate)
    throttle = Throttled(key=KEY, using=RateLimiterType.TOKEN_BUCKET.value, quota=quota, store=MemoryStore())

    def take(tokens: int) -> float | None:
        result = throttle.limit(cost=tokens)
        return result.state.retry_after if result.limited else None

    return take


LIBRARIES: Final = {"limits": of_limits, "pyrate-limiter": of_pyrate, "throttled-py": of_throttled}


class Peer(Contender):
    """All workers on one library's bucket."""

    def __init__(self, world: World, library: str) -> None:
        self._world, self._library = world, library
        self.flush()
        if self._take(HOUR * world.row.rate - world.row.start) is not None:
            raise ValueError(f"{library}: a full bucket refuses its own capacity")

    async def call(self, worker: int, cost: int, estimate: int) -> None:
        """Take the estimate, make the call, and both again if it is refused."""
        while True:
            while (wait := self._take(estimate)) is not None:
                await self._world.pause(max(SHORTEST_WAIT, wait))
            if (await self._world.send(worker, cost)).status != 429:
                return

    def flush(self) -> None:
        """Begin with a new, full bucket."""
        self._take = LIBRARIES[self._library](self._world.row.rate, self._world.loop.time)


@contextmanager
def virtual_time(now: Callable[[], float]) -> Iterator[None]:
    """Let the libraries that read the module `time` read `now` instead."""
    clock = Mock(time=lambda: EPOCH + now(), monotonic=lambda: EPOCH + now())
    # Instead of a thread that drops what has expired: it changes no answer, and a day has room for it all.
    with (
        patch.object(limits.storage.memory, "time", clock),
        patch.object(throttled.utils, "time", clock),
        patch.object(threading, "Timer", Mock()),
    ):
        yield
