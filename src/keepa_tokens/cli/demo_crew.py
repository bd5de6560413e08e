"""Who works in the demo, and what they share: threads of this process, on a bucket in its memory.

`demo_redis` has the same for processes, on a bucket in Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from ..rules.state import BucketState
from ..storage.base import Storage
from ..storage.memory import MemoryStorage
from ..testing.clock import ScaledClock
from .demo_worker import BUCKET, Signals, Tell, Terms, work


class GaveUpError(Exception):
    """Something that should have come did not, or somebody left who should have stayed."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Where processes share the bucket. redis: its address without secrets. demo, workers: process ids."""

    redis: str
    key: str
    demo: int
    workers: tuple[int, ...]


class Crew(Protocol):
    """The workers, and the storage that they share with the demo."""

    @property
    def storage(self) -> Storage:
        """The storage, for the demo's own use."""
        ...

    @property
    def shared(self) -> Shared | None:
        """Where the workers share the bucket; None: in this process."""
        ...

    def stored(self) -> BucketState | None:
        """Return the bucket's state as it is stored."""
        ...

    def lose_timestamp(self) -> None:
        """Do to the stored state what broke the old system."""
        ...

    def start(self, url: str, clock: ScaledClock, tell: Tell) -> None:
        """Let the workers work by `clock` on the server at `url`, and tell of it."""
        ...

    def open_gate(self) -> None:
        """Let the workers go on."""
        ...

    def close_gate(self) -> None:
        """Let the workers pause, each once it has its answer."""
        ...

    def check(self) -> None:
        """Pass on what the workers told; raise if one of them has died."""
        ...

    def stop(self) -> None:
        """End the workers, and wait until they have ended."""
        ...


class Threads:
    """Workers that are threads of this process."""

    def __init__(self, workers: int, seed: int) -> None:
        self._workers, self._seed = workers, seed
        self._memory = MemoryStorage()
        self._stop, self._gate = threading.Event(), threading.Event()
        self._gate.set()
        self._pool = ThreadPoolExecutor(workers, "demo-worker")
        self._futures: list[Future[None]] = []

    @property
    def storage(self) -> Storage:
        """The storage, for the demo's own use."""
        return self._memory

    @property
    def shared(self) -> Shared | None:
        """None: the bucket is in this process."""
        return None

    def stored(self) -> BucketState | None:
        """Return the bucket's state as it is stored."""
        return self._memory.dump(BUCKET)

    def lose_timestamp(self) -> None:
        """Do to the stored state what broke the old system."""
        state = self._memory.dump(BUCKET)
        if state is not None:
            self._memory.load(BUCKET, replace(state, refilled_at=None))

    def start(self, url: str, clock: ScaledClock, tell: Tell) -> None:
        """Let the workers work by `clock` on the server at `url`, and tell of it."""
        terms, signals = Terms(url, lambda: self._memory), Signals(clock, self._stop, self._gate)
        self._futures += [
            self._pool.submit(work, worker, self._seed, terms, signals, tell) for worker in range(self._workers)
        ]

    def open_gate(self) -> None:
        """Let the workers go on."""
        self._gate.set()

    def close_gate(self) -> None:
        """Let the workers pause, each once it has its answer."""
        self._gate.clear()

    def check(self) -> None:
        """Raise what a worker died of, if one did."""
        for future in self._futures:
            if future.done():
                future.result()

    def stop(self) -> None:
        """End the workers, and wait until they have ended."""
        self._stop.set()
        self._gate.set()
        self._pool.shutdown()


@contextmanager
def threads(workers: int, seed: int) -> Generator[Crew]:
    """Have a crew of threads; they have ended afterwards."""
    crew = Threads(workers, seed)
    try:
        yield crew
    finally:
        crew.stop()
