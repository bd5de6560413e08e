"""`AsyncKeepaSync`, one door a worker as in a process of its own, all on one storage."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from checks.benchmarks.daysim.world import Contender, World
from keepa_tokens import AsyncKeepaSync, AsyncTokenBucket, MemoryStorage, keepa_quota

KEY = "day"


class Ours(Contender):
    """The library, as a user would use it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._storage = MemoryStorage()
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
            listener=lambda _: None,  # the server's counters are the measure
        )
        return AsyncKeepaSync(bucket, probe=partial(self._probe, worker))

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
        state = self._storage.dump(KEY)
        if state is None:
            raise LookupError("there is no state to damage")
        self._storage.load(KEY, replace(state, balance=balance, refilled_at=None))

    def flush(self) -> None:
        """Lose the state."""
        self._storage.delete(KEY)
