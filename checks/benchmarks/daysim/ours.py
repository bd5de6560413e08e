"""`AsyncKeepaSync`, one door a worker as in a process of its own, all on one storage."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from checks.benchmarks.daysim.world import World
from keepa_tokens import AsyncKeepaSync, AsyncTokenBucket, Event, MemoryStorage, Quota, Snapshot, keepa_quota
from keepa_tokens.rules.commands import Command, Outcome

KEY = "day"


class Shared:
    """The storage of all workers, which can lose everything at once, as a Redis does on FLUSHALL."""

    def __init__(self) -> None:
        self.memory = MemoryStorage()

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key`."""
        return self.memory.apply(key, quota, command, now_us=now_us)

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket `key` as it stands."""
        return self.memory.inspect(key, now_us=now_us)

    async def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all buckets."""
        for key in self.memory.keys():  # noqa: SIM118 - a storage is no dict
            yield key

    async def aclose(self) -> None:
        """Let go of nothing."""


class Ours:
    """The library, as a user would use it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._storage = Shared()
        random.seed(world.row.seed)  # the jitter of those who wait
        self._doors = [self._door(worker) for worker in range(world.row.workers)]

    def _door(self, worker: int) -> AsyncKeepaSync:
        row = self._world.row
        rate = row.rate if row.other_rate is None or worker % 2 == 0 else row.other_rate
        bucket = AsyncTokenBucket(
            keepa_quota(rate, recharge_to=row.recharge_to),
            key=KEY,
            storage=self._storage,
            clock=self._world.loop.clock,
            listener=_deaf,
        )
        probe: Callable[[], Awaitable[tuple[int, Mapping[str, object] | None]]] = partial(self._probe, worker)
        return AsyncKeepaSync(bucket, probe=probe)

    async def _probe(self, worker: int) -> tuple[int, Mapping[str, object] | None]:
        response = await self._world.token(worker)
        return response.status, response.body

    async def call(self, worker: int, cost: int, estimate: int) -> None:
        """Make one call, by `attempts`."""
        async for call in self._doors[worker].attempts(estimate, keep=self._world.row.keep):
            async with call:
                response = await self._world.send(worker, cost)
                await call.settle(response.content, status=response.status)

    def restart(self, worker: int) -> None:
        """Begin with a new door."""
        self._doors[worker] = self._door(worker)

    def lose_timestamp(self, balance: int) -> None:
        """Take `refilled_at` out of the stored state."""
        state = self._storage.memory.dump(KEY)
        if state is None:
            raise LookupError("there is no state to damage")
        self._storage.memory.load(KEY, replace(state, balance=balance, refilled_at=None))

    def flush(self) -> None:
        """Lose the state."""
        self._storage.memory = MemoryStorage()


def _deaf(_: Event) -> None:
    """Count nothing: the server's counters are the measure."""
