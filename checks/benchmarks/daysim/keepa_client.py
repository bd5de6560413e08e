"""The `keepa` client's own `wait=True`, one client a worker: a model that `checks/tests/test_day.py` holds equal to it.

A refused request sleeps until the next refill and a second more, and a minute for each token of debt at a token a
minute; then it tries again. Nobody knows of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from checks.benchmarks.daysim.world import Contender, World

EPOCH: Final = 1_780_000_000.0
"""The Unix time at the start of the day, of the server and the workers alike."""

Get = Callable[[str, int], Awaitable[tuple[int, Mapping[str, Any] | None]]]
"""Sends a request to a path, which costs that much; answers with the status, and the body, None where it is no JSON."""


class KeepaClient:
    """What `keepa.Keepa` does about tokens. time: the worker's clock."""

    def __init__(self, get: Get, time: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._get, self._time, self._sleep = get, time, sleep
        self._told: dict[str, int] = {}

    async def query(self, cost: int) -> None:
        """Make one product query of up to 100 items, as `Keepa.query(..., wait=True)`. Raises RuntimeError as that."""
        if not {"refillRate", "refillIn"} <= self._told.keys():
            await self._request("/token", 0)
        while await self._request("/product", cost) == 429:
            await self._sleep(self._time_to_refill())

    async def _request(self, path: str, cost: int) -> int:
        status, body = await self._get(path, cost)
        if body is None:
            raise RuntimeError("Invalid JSON from Keepa API")
        names = ("tokensLeft", "refillIn", "refillRate", "timestamp")
        self._told |= {name: body[name] for name in names if isinstance(body.get(name), int)}
        if status not in {200, 429} or (status == 429 and path == "/token"):
            raise RuntimeError(f"status {status}: {body}")
        return status

    def _time_to_refill(self) -> float:
        """Return the seconds to sleep after a refusal."""
        wait_ms: float = max(0, self._told["timestamp"] + self._told["refillIn"] - int(self._time() * 1000) + 1000)
        if self._told["tokensLeft"] < 0:
            wait_ms += abs(self._told["tokensLeft"]) / self._told["refillRate"] * 60000
        return wait_ms / 1000.0


class KeepaClients(Contender):
    """One client a worker, sharing nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._clients = [self._client(worker) for worker in range(world.row.workers)]

    def _client(self, worker: int) -> KeepaClient:
        async def get(path: str, cost: int) -> tuple[int, Mapping[str, Any] | None]:
            going = self._world.token(worker) if path == "/token" else self._world.send(worker, cost)
            response = await going
            return response.status, response.body

        return KeepaClient(get, lambda: EPOCH + self._world.loop.time(), asyncio.sleep)

    async def call(self, worker: int, cost: int, estimate: int) -> None:  # noqa: ARG002 - the client has no estimates
        """Make one query; an error other than a refusal ends it, and the worker goes on to the next."""
        try:
            await self._clients[worker].query(cost)
        except RuntimeError:
            await asyncio.sleep(1.0)

    def restart(self, worker: int) -> None:
        """Begin with a new client."""
        self._clients[worker] = self._client(worker)
