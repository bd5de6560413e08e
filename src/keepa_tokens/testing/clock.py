"""Clocks for tests: time that a test moves by hand, time that jumps with an event loop, time that runs faster.

`ManualClock` is the one for most tests. `virtual_loop` runs whole programs that call `asyncio.sleep` or set timeouts.
`ScaledClock` follows the real clock, only faster: it is for servers and processes that no test can drive step by step.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from concurrent.futures import Executor

    Events = list[tuple[selectors.SelectorKey, int]]

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

# A woken task may pass a lock or a queue on before the next one sleeps; each hand-over takes a pass of the loop.
SETTLING_PASSES: Final = 5


def _microseconds(seconds: float) -> int:
    """Return whole microseconds, rounded; NaN and infinity raise."""
    return round(seconds * 1_000_000)


class _Sleepers(dict[tuple[int, int], asyncio.Future[None]]):
    """The futures that wake the coroutines of one event loop, by deadline in microseconds, then by order of arrival."""

    quiet_passes = 0
    """Passes of the loop since a sleeper last came or was woken."""


class ManualClock:
    """A clock that stands still until somebody sleeps on it or moves it; it reads `start` seconds at first.

    A sleeper moves the clock to its own deadline, never backwards, and goes on at once. Of several sleepers the one
    with the earliest deadline goes first, ties in order of arrival. This order holds among the coroutines of one event
    loop and among threads, as far as they are asleep already. No sleeper waits for one that can't run, so there is no
    deadlock.
    """

    __slots__ = ("_arrivals", "_changed", "_loops", "_now_us", "_slept_us", "_threads")

    def __init__(self, start: float = 0.0) -> None:
        if _microseconds(start) < 0:
            raise ValueError(f"start={start!r} must be at least 0 seconds")
        self._now_us = _microseconds(start)
        self._slept_us = 0
        self._arrivals = itertools.count()
        self._changed = threading.Condition()
        self._threads: set[tuple[int, int]] = set()
        self._loops: dict[asyncio.AbstractEventLoop, _Sleepers] = {}

    def now_us(self) -> int:
        """Return the time in whole microseconds."""
        with self._changed:
            return self._now_us

    @property
    def slept(self) -> float:
        """The seconds slept so far, all sleepers added up; an interrupted sleep counts for nothing."""
        with self._changed:
            return self._slept_us / 1_000_000

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`, rounded to microseconds; a negative step goes back, but not below 0."""
        with self._changed:
            self._now_us = max(0, self._now_us + _microseconds(seconds))

    def set(self, seconds: float) -> None:
        """Set the clock to `seconds`, forwards or backwards, but not below 0."""
        with self._changed:
            self._now_us = max(0, _microseconds(seconds))

    def sleep(self, seconds: float, /) -> None:
        """Move the clock `seconds` ahead, after the threads whose deadline is earlier."""
        wait_us = max(0, _microseconds(seconds))
        with self._changed:
            place = (self._now_us + wait_us, next(self._arrivals))
            self._threads.add(place)
        try:
            time.sleep(0)  # no wait: other threads that are about to sleep get their turn to say so
            with self._changed:
                self._changed.wait_for(lambda: min(self._threads) == place)
                self._now_us = max(self._now_us, place[0])
                self._slept_us += wait_us
        finally:
            with self._changed:
                self._threads.remove(place)
                self._changed.notify_all()

    async def asleep(self, seconds: float, /) -> None:
        """Move the clock `seconds` ahead, after the coroutines of this event loop whose deadline is earlier."""
        wait_us = max(0, _microseconds(seconds))
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        with self._changed:
            if loop not in self._loops:
                sleepers = self._loops[loop] = _Sleepers()
                loop.call_soon(self._drive, loop, sleepers)
            sleepers = self._loops[loop]
            place = (self._now_us + wait_us, next(self._arrivals))
            sleepers[place] = woken
            sleepers.quiet_passes = 0
        try:
            await woken
        finally:
            self._leave(loop, place)
        with self._changed:
            self._slept_us += wait_us

    def _leave(self, loop: asyncio.AbstractEventLoop, place: tuple[int, int]) -> None:
        """Remove a sleeper, woken or cancelled; with the last one also its loop, so that no closed loop is kept."""
        with self._changed:
            sleepers = self._loops.get(loop)
            if sleepers is None:
                return
            sleepers.pop(place, None)
            if not sleepers:
                del self._loops[loop]

    def _drive(self, loop: asyncio.AbstractEventLoop, sleepers: _Sleepers) -> None:
        """Wake the first sleeper once a few passes of the loop brought no new one. Each loop has one such driver."""
        with self._changed:
            if self._loops.get(loop) is not sleepers:
                return
            sleepers.quiet_passes += 1
            if sleepers.quiet_passes >= SETTLING_PASSES:
                self._wake_first(sleepers)
        loop.call_soon(self._drive, loop, sleepers)

    def _wake_first(self, sleepers: _Sleepers) -> None:
        sleepers.quiet_passes = 0
        for place in sorted(sleepers):
            woken = sleepers.pop(place)
            if not woken.done():  # a cancelled one must not move the clock
                self._now_us = max(self._now_us, place[0])
                woken.set_result(None)
                return

    def __repr__(self) -> str:
        return f"ManualClock({self.now_us() / 1_000_000})"


class ScaledClock:
    """The machine's monotonic clock, `speed` times as fast, from 0 at its creation."""

    __slots__ = ("_speed", "_started_ns")

    def __init__(self, speed: float = 1.0) -> None:
        if not 0 < speed < float("inf"):
            raise ValueError(f"speed={speed!r} must be above 0 and finite")
        self._speed = speed
        self._started_ns = time.monotonic_ns()

    @property
    def speed(self) -> float:
        """How many seconds of this clock pass in a real one."""
        return self._speed

    def now_us(self) -> int:
        """Return the scaled microseconds since the clock was made."""
        return int((time.monotonic_ns() - self._started_ns) * self._speed) // 1000

    def sleep(self, seconds: float, /) -> None:
        """Block the thread for `seconds` of this clock."""
        time.sleep(max(0.0, seconds) / self._speed)

    async def asleep(self, seconds: float, /) -> None:
        """Suspend the coroutine for `seconds` of this clock."""
        await asyncio.sleep(max(0.0, seconds) / self._speed)

    def __repr__(self) -> str:
        return f"ScaledClock({self._speed})"


class LoopClock:
    """The time of one event loop as a `Clock`."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_us(self) -> int:
        """Return the loop's time in microseconds."""
        return _microseconds(self._loop.time())

    def sleep(self, seconds: float, /) -> None:
        """Raise RuntimeError: a blocking sleep would stop every coroutine of the loop, and its time with them."""
        raise RuntimeError(f"a blocking sleep of {seconds} s on an event loop's clock; await asleep() instead")

    async def asleep(self, seconds: float, /) -> None:
        """Suspend the coroutine for `seconds` of the loop's time."""
        await asyncio.sleep(seconds)

    def __repr__(self) -> str:
        return f"LoopClock({self._loop.time()})"


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that lets the time jump instead of waiting, whenever there is no real event."""

    def __init__(self, io_grace: float, patience: float, waiting: Callable[[], str]) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs = 0
        self._io_grace = io_grace
        self._patience = patience
        self._waiting = waiting

    def select(self, timeout: float | None = None) -> Events:
        """Return the real events; without any, jump `timeout` seconds, or wait for an event when there is no timer."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None:
            return self._wait_for_an_event()
        if self._expects_events():
            ready = super().select(self._io_grace)
        if not ready:
            self.now += timeout
        return ready

    def _expects_events(self) -> bool:
        # One entry is always there: the pipe by which other threads wake the loop.
        return self.jobs > 0 or len(self.get_map()) > 1

    def _wait_for_an_event(self) -> Events:
        if self._expects_events():
            return super().select(None)
        # Another thread may still call the loop, and nothing shows which one will: wait in real time, with an end.
        if threading.active_count() > 1 and (ready := super().select(self._patience)):
            return ready
        raise RuntimeError(f"deadlock: nothing is ready, no timer is set, no I/O is open; {self._waiting()}")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: it starts at 0 and jumps to the next timer when nothing is ready.

    Real I/O and threads still work. While a socket is open or an executor has a job, the loop gives them `io_grace`
    real seconds before each jump, so that a time limit around a real call doesn't expire at once. Without a timer it
    waits for them. If nothing can ever happen any more, the loop raises RuntimeError; while other threads are alive,
    only after `patience` real seconds, since one of them might call the loop.
    """

    def __init__(self, *, io_grace: float = 0.02, patience: float = 5.0) -> None:
        self._jumping = _JumpingSelector(io_grace, patience, self._waiting)
        super().__init__(self._jumping)
        self._clock = LoopClock(self)

    @property
    def clock(self) -> LoopClock:
        """The loop's time as a Clock; its blocking `sleep` raises."""
        return self._clock

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._jumping.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Arguments], Result], *args: *Arguments
    ) -> asyncio.Future[Result]:
        """Run `func` in a thread; the time doesn't jump meanwhile if that takes less than `io_grace`."""
        future = super().run_in_executor(executor, func, *args)
        self._jumping.jobs += 1
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, _: asyncio.Future[Result]) -> None:
        self._jumping.jobs -= 1

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002
        """End the default executor's threads, without the limit: virtual time would reach it before they end."""
        self._jumping.jobs += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jumping.jobs -= 1

    def _waiting(self) -> str:
        names = sorted(task.get_name() for task in asyncio.all_tasks(self))
        return f"waiting for ever: {', '.join(names) or 'no task'}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what still runs, end the executor's threads, close the loop."""
        if not self.is_closed():
            with asyncio.Runner(loop_factory=lambda: self):
                pass  # the end of a Runner does all of this


def virtual_loop(*, io_grace: float = 0.02, patience: float = 5.0) -> VirtualLoop:
    """Return a new event loop in virtual time, e.g. `with asyncio.Runner(loop_factory=virtual_loop) as runner: ...`."""
    return VirtualLoop(io_grace=io_grace, patience=patience)
