"""An async storage behind the door of a blocking one, so that one test serves both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import TypeVar, cast

from ..quota import Quota
from ..rules.commands import Command, Outcome
from ..rules.decision import Snapshot
from ..storage.base import AsyncStorage, Storage

T = TypeVar("T")


class Driven:
    """A storage for coroutines, each call of which runs the event loop until it is answered."""

    def __init__(self, storage: AsyncStorage, run: asyncio.Runner) -> None:
        self.storage = storage
        self._runner = run

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Run a coroutine on the loop to which the storage belongs."""
        return self._runner.run(work)

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


@contextmanager
def driven(make: Callable[[], Coroutine[object, object, AsyncStorage]]) -> Generator[Driven]:
    """Make an async storage on an event loop of its own, and close both at the end."""
    with asyncio.Runner() as runner:
        storage = Driven(runner.run(make()), runner)
        try:
            yield storage
        finally:
            storage.close()


@contextmanager
def opened(make: Callable[[], Storage | AsyncStorage]) -> Generator[Storage]:
    """Make a storage of either kind, and close it at the end."""
    storage = make()
    if not iscoroutinefunction(storage.apply):
        blocking = cast("Storage", storage)
        try:
            yield blocking
        finally:
            blocking.close()
        return

    async def made() -> AsyncStorage:
        return cast("AsyncStorage", storage)

    with driven(made) as waiting:
        yield waiting
