"""Where time comes from.

The core never reads a clock: time is an argument. A bucket that is given no clock uses its storage's own time
and sleeps with `SystemClock`; one that is given a clock asks it for both.
"""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from . import _loops


@runtime_checkable
class Clock(Protocol):
    """A source of time and of waiting."""

    def now_us(self) -> int:
        """Return the time in whole microseconds, at least 0; the origin is the clock's own."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Block the calling thread for `seconds`."""
        ...

    async def asleep(self, seconds: float, /) -> None:
        """Suspend the calling coroutine for `seconds`, leaving the event loop free."""
        ...


class SystemClock:
    """The machine's wall clock: microseconds since the epoch, so that processes on one machine agree."""

    __slots__ = ()

    def now_us(self) -> int:
        """Return the microseconds since the epoch."""
        return time.time_ns() // 1000

    def sleep(self, seconds: float, /) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)

    async def asleep(self, seconds: float, /) -> None:
        """Suspend the calling coroutine for `seconds`, on asyncio or trio."""
        await _loops.sleep(seconds)

    def __repr__(self) -> str:
        return "SystemClock()"
