"""A worker of the demo as a process of its own: what it is sent, what it sends, and its main function.

Each worker has two pipes to the demo and shares nothing else with it, so that no worker can take a lock along when it
dies. When the demo itself dies the pipes end, and the workers with them; each clears the bucket away then, so the last
one does it for good: on the demo's clock its key would never expire.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Final, TypeAlias

from ..errors import StorageUnavailable
from ..testing.clock import ScaledClock
from .demo_storage import DemoStorage
from .demo_worker import Note, Signals, Stopped, Terms, work

TOLERANCE_NS: Final = 1_000_000_000
"""By how much the wall clock and the monotonic clock may disagree and still be two clocks of one machine."""


class Order(StrEnum):
    """What the demo tells a worker that is at work."""

    OPEN = "open the gate"
    CLOSE = "close the gate"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says once it has loaded what it needs."""

    process: int


@dataclass(frozen=True, slots=True)
class Died:
    """What a worker says last, if something went wrong. storage: the storage was away."""

    text: str
    storage: bool


Word: TypeAlias = Hello | Note | Died
"""What a worker sends."""


@dataclass(frozen=True, slots=True)
class SharedTime:
    """The demo's clock on its way to another process: by the machine's monotonic clock, with the time of sending."""

    clock: ScaledClock
    monotonic_ns: int
    wall_ns: int

    @classmethod
    def of(cls, clock: ScaledClock) -> SharedTime:
        """Return the clock, ready to be sent now."""
        return cls(clock, time.monotonic_ns(), time.time_ns())

    def here(self) -> ScaledClock:
        """Return the clock for this process.

        Where the monotonic clock is the machine's, as on Linux, it is the same to the nanosecond. Where each process
        has one of its own, the wall clock says how far they are apart.
        """
        ahead_ns = (time.time_ns() - self.wall_ns) - (time.monotonic_ns() - self.monotonic_ns)
        return self.clock if abs(ahead_ns) < TOLERANCE_NS else ShiftedClock(self.clock, ahead_ns)


class ShiftedClock(ScaledClock):
    """Another process's clock, from this process's monotonic clock that is behind by `ahead_ns`."""

    __slots__ = ("_ahead_us", "_clock")

    def __init__(self, clock: ScaledClock, ahead_ns: int) -> None:
        super().__init__(clock.speed)
        self._clock = clock
        self._ahead_us = int(ahead_ns * clock.speed) // 1000

    def now_us(self) -> int:
        """Return the scaled microseconds since the other clock was made."""
        return max(0, self._clock.now_us() + self._ahead_us)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker has to do, and where. url: the server's; redis_url, prefix: where the bucket lives."""

    worker: int
    seed: int
    url: str
    redis_url: str = field(repr=False)  # may hold a password
    prefix: str
    time: SharedTime


def main(orders: Connection, words: Connection) -> None:
    """Say hello, take an assignment, and work until told to stop, or until the demo is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which then says stop
    try:
        words.send(Hello(os.getpid()))
        assignment = orders.recv()
        if isinstance(assignment, Assignment):
            _work(assignment, orders, words)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the demo is gone
        return


def _work(assignment: Assignment, orders: Connection, words: Connection) -> None:
    stop, gate, alone = threading.Event(), threading.Event(), threading.Event()
    gate.set()
    threading.Thread(target=_follow, args=(orders, stop, gate, alone), daemon=True).start()
    storage = DemoStorage.from_url(assignment.redis_url, prefix=assignment.prefix)
    terms = Terms(assignment.url, lambda: storage)
    signals = Signals(assignment.time.here(), stop, gate)
    try:
        _work_or_say_why_not(assignment, terms, signals, words)
    except (BrokenPipeError, ConnectionResetError):
        alone.set()
    finally:
        if alone.is_set():
            with suppress(StorageUnavailable):
                storage.delete()
        storage.close()


def _work_or_say_why_not(assignment: Assignment, terms: Terms, signals: Signals, words: Connection) -> None:
    try:
        work(assignment.worker, assignment.seed, terms, signals, words.send)
    except Stopped:
        return
    except (BrokenPipeError, ConnectionResetError):
        raise
    except StorageUnavailable as error:
        words.send(Died(str(error), storage=True))
    except Exception:  # noqa: BLE001 - whatever it was, the demo is to know
        words.send(Died(traceback.format_exc(), storage=False))


def _follow(orders: Connection, stop: threading.Event, gate: threading.Event, alone: threading.Event) -> None:
    """Do as the demo says; if it is gone, say so and stop."""
    order: object = None
    while order is not Order.STOP:
        try:
            order = orders.recv()
        except (EOFError, OSError):
            alone.set()
            order = Order.STOP
        if order is Order.CLOSE:
            gate.clear()
        else:
            if order is Order.STOP:
                stop.set()
            gate.set()
