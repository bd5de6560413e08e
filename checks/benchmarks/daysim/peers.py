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
from typing import Final, Protocol
from unittest.mock import patch

import limits.storage.memory
import throttled.utils
from limits import RateLimitItemPerHour
from limits.strategies import MovingWindowRateLimiter
from pyrate_limiter import AbstractClock, Duration, InMemoryStateStore, Rate, RateItem, StateBucket, TokenBucket
from throttled import MemoryStore, RateLimiterType, Throttled
from throttled.rate_limiter import per_duration

from checks.benchmarks.daysim.keepa_client import EPOCH
from checks.benchmarks.daysim.world import World

HOUR: Final = 60
KEY: Final = "day"
SHORTEST_WAIT: Final = 1.0
"""Seconds: where a limiter's hint is shorter, nobody asks again sooner."""


class Limiter(Protocol):
    """One library's shared bucket."""

    def take(self, tokens: int) -> float | None:
        """Take `tokens`, or return how many seconds to wait before asking again."""
        ...


class Limits:
    """`limits` has windows, no bucket that refills: an hour's moving window of an hour's tokens is the nearest."""

    def __init__(self, rate: int, now: Callable[[], float]) -> None:
        self._now = now
        self._item = RateLimitItemPerHour(HOUR * rate)
        self._limiter = MovingWindowRateLimiter(limits.storage.memory.MemoryStorage())

    def take(self, tokens: int) -> float | None:
        """Hit the window; else wait until its oldest entry leaves."""
        if self._limiter.hit(self._item, KEY, cost=tokens):
            return None
        return self._limiter.get_window_stats(self._item, KEY).reset_time - EPOCH - self._now()


class _Clock(AbstractClock):
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def now(self) -> int:
        return int(self._now() * 1000)


class Pyrate:
    """`pyrate-limiter`'s token bucket, and its own rule for waiting: what the bucket says and 50 ms more."""

    def __init__(self, rate: int, now: Callable[[], float]) -> None:
        self._clock = _Clock(now)
        self._bucket = StateBucket(
            [Rate(rate, Duration.MINUTE, burst=HOUR * rate)], TokenBucket(), InMemoryStateStore(), self._clock
        )

    def take(self, tokens: int) -> float | None:
        """Put an item of that weight."""
        item = RateItem(KEY, self._clock.now(), tokens)
        if self._bucket.put(item):
            return None
        wait = self._bucket.waiting(item)
        if not isinstance(wait, int):
            raise TypeError(wait)
        return (wait + 50) / 1000


class ThrottledPy:
    """`throttled-py`'s token bucket."""

    def __init__(self, rate: int, now: Callable[[], float]) -> None:  # noqa: ARG002 - it reads the replaced module
        quota = per_duration(timedelta(minutes=1), rate, HOUR * rate)
        using = RateLimiterType.TOKEN_BUCKET.value
        self._throttle = Throttled(key=KEY, using=using, quota=quota, store=MemoryStore())

    def take(self, tokens: int) -> float | None:
        """Ask without waiting."""
        result = self._throttle.limit(cost=tokens)
        return result.state.retry_after if result.limited else None


LIBRARIES: Final[dict[str, Callable[[int, Callable[[], float]], Limiter]]] = {
    "limits": Limits,
    "pyrate-limiter": Pyrate,
    "throttled-py": ThrottledPy,
}


class Peer:
    """All workers on one library's bucket."""

    def __init__(self, world: World, library: str) -> None:
        self._world = world
        self._make = LIBRARIES[library]
        self._limiter = self._full()
        spent_before = HOUR * world.row.rate - world.row.start
        if self._limiter.take(spent_before) is not None:
            raise ValueError(f"{library}: a full bucket refuses its own capacity")

    def _full(self) -> Limiter:
        return self._make(self._world.row.rate, self._world.loop.time)

    async def call(self, worker: int, cost: int, estimate: int) -> None:
        """Take the estimate, make the call, and both again if it is refused."""
        while True:
            while (wait := self._limiter.take(estimate)) is not None:
                await self._world.pause(max(SHORTEST_WAIT, wait))
            if (await self._world.send(worker, cost)).status != 429:
                return

    def restart(self, worker: int) -> None:
        """Begin again: the bucket is shared."""

    def lose_timestamp(self, balance: int) -> None:
        """Lose nothing: the limiter's own time is no separate field."""

    def flush(self) -> None:
        """Begin with a new, full bucket."""
        self._limiter = self._full()


class _Time:
    """What the libraries use of the module `time`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def time(self) -> float:
        return EPOCH + self._now()

    def monotonic(self) -> float:
        return EPOCH + self._now()


class _Timer:
    """Instead of a thread that drops what has expired: it changes no answer, and a day has room for it all."""

    def __init__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    def is_alive(self) -> bool:
        return True


@contextmanager
def virtual_time(now: Callable[[], float]) -> Iterator[None]:
    """Let the libraries that read the module `time` read `now` instead."""
    shim = _Time(now)
    with (
        patch.object(limits.storage.memory, "time", shim),
        patch.object(throttled.utils, "time", shim),
        patch.object(threading, "Timer", _Timer),
    ):
        yield
