"""Storages of either kind behind one door, and workers that use one bucket at the same time.

Workers are threads, coroutines, or processes, one of which may be killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from multiprocessing.connection import Connection
from threading import Barrier
from typing import Final, TypeAlias, TypeVar, cast

from ..quota import Quota
from ..rules.commands import Command, Outcome
from ..rules.decision import Snapshot
from ..storage.base import AsyncStorage, Storage

T = TypeVar("T")

PATIENCE_S: Final = 60.0
"""How long processes may take to start, and to end, on a busy machine."""

STEPS_BEFORE_A_KILL: Final = 20
MOST_STEPS: Final = 100_000
"""After so many steps a worker that nobody kills ends by itself."""

Made: TypeAlias = Storage | AsyncStorage | Awaitable[AsyncStorage]
Opener: TypeAlias = Callable[[], Made]


class Driven:
    """An async storage behind the door of a blocking one: each call runs an event loop until it is answered."""

    def __init__(self, storage: AsyncStorage, runner: asyncio.Runner) -> None:
        self.storage = storage
        self._runner = runner

    def run(self, work: Awaitable[T]) -> T:
        """Run an awaitable on the event loop to which the storage belongs."""
        return self._runner.run(_awaited(work))

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key`."""
        return self.run(self.storage.apply(key, quota, command, now_us=now_us))

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands."""
        return self.run(self.storage.inspect(key, now_us=now_us))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets."""

        async def collected() -> list[str]:
            return [key async for key in self.storage.keys()]  # noqa: SIM118 - a storage is no dict

        return iter(self.run(collected()))

    def close(self) -> None:
        """Let go of what the storage itself opened."""
        self.run(self.storage.aclose())


async def _awaited(work: Awaitable[T]) -> T:
    return await work


@contextmanager
def opened(make: Opener) -> Generator[Storage]:
    """Make a storage of either kind, and close it at the end."""
    with asyncio.Runner() as runner:
        made = make()
        either = runner.run(_awaited(made)) if isawaitable(made) else made
        waiting = iscoroutinefunction(either.apply)
        storage = Driven(cast("AsyncStorage", either), runner) if waiting else cast("Storage", either)
        try:
            yield storage
        finally:
            storage.close()


@dataclass(frozen=True)
class Work:
    """Commands that one worker gives to one bucket, in this order."""

    key: str
    quota: Quota
    commands: tuple[Command, ...]
    now_us: int | None = None

    def done_on(self, storage: Storage) -> list[Outcome]:
        """Give all commands."""
        return [storage.apply(self.key, self.quota, command, now_us=self.now_us) for command in self.commands]

    async def adone_on(self, storage: AsyncStorage) -> list[Outcome]:
        """Give all commands."""
        return [await storage.apply(self.key, self.quota, command, now_us=self.now_us) for command in self.commands]


def at_once(storage: Storage, works: Sequence[Work]) -> list[list[Outcome]]:
    """Let workers of the storage's own kind do the works, all of them together."""
    if isinstance(storage, Driven):
        return storage.run(asyncio.gather(*(work.adone_on(storage.storage) for work in works)))
    return threads([storage] * len(works), works)


def threads(storages: Sequence[Storage], works: Sequence[Work]) -> list[list[Outcome]]:
    """Let threads do the works, all of them together, each on a storage."""
    gate = Barrier(len(works), timeout=PATIENCE_S)

    def one(storage: Storage, work: Work) -> list[Outcome]:
        gate.wait()
        return work.done_on(storage)

    with hurried(), ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, storages, works))


def processes(opener: Opener, works: Sequence[Work]) -> list[list[Outcome]]:
    """Let processes do the works, all of them together, each on a storage that it opens."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(len(works), timeout=PATIENCE_S)
    with ProcessPoolExecutor(len(works), context, _share, (opener, gate)) as pool:
        return list(pool.map(_work, works))


def killed(opener: Opener, work: Work) -> int:
    """Let a process do the work again and again, kill it in the middle, and return how many steps it reported.

    It may have done one more.
    """
    context = multiprocessing.get_context("spawn")
    told, telling = context.Pipe(duplex=False)
    process = context.Process(target=_work_on, args=(opener, work, telling))
    process.start()
    telling.close()  # so that `told` ends when the process does
    steps = 0
    try:
        while steps < STEPS_BEFORE_A_KILL:
            assert told.poll(PATIENCE_S), "the process did not come to work"
            steps = told.recv()
    finally:
        process.kill()
        process.join(PATIENCE_S)
    with suppress(EOFError, OSError):
        while True:
            steps = told.recv()
    return steps


_shared: tuple[Opener, Barrier]
"""What each process of `processes` gets at its start."""


def _share(opener: Opener, gate: Barrier) -> None:
    global _shared  # noqa: PLW0603 - the only way by which a pool hands a barrier on
    _shared = opener, gate


def _work(work: Work) -> list[Outcome]:
    opener, gate = _shared
    with opened(opener) as storage:
        gate.wait()
        return work.done_on(storage)


def _work_on(opener: Opener, work: Work, telling: Connection) -> None:
    with opened(opener) as storage:
        for step in range(1, MOST_STEPS):
            work.done_on(storage)
            telling.send(step)


@contextmanager
def hurried() -> Generator[None]:
    """Let the interpreter change threads as often as it can, so that a step that isn't atomic fails much sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
