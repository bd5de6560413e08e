"""The `keepa` client's own `wait=True`, one client a worker: a model that `checks/tests/test_day.py` holds equal to it.

A refused request sleeps until the next refill and a second more, and a minute for each token of debt at a token a
minute; then it tries again. Nobody knows of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Final

from checks.benchmarks.daysim.world import World

EPOCH: Final = 1_780_000_000.0
"""The Unix time at the start of the day, of the server and the workers alike."""


@dataclass(frozen=True, slots=True)
class Get:
    """Send a request; answered with the status and the parsed body, or None where that is no JSON object."""

    path: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep for so many seconds."""

    seconds: float


Answer = tuple[int, Mapping[str, object] | None]
Doing = Generator[Get | Sleep, Answer | None, None]


class KeepaClient:
    """What `keepa.Keepa` does about tokens. now_ms: the worker's clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self.tokens_left = 0
        self._refill_in: int | None = None
        self._refill_rate: int | None = None
        self._timestamp: int | None = None

    def query(self) -> Doing:
        """Make one product query of up to 100 items, as `Keepa.query(..., wait=True)`. Raises RuntimeError as that."""
        if self._refill_rate is None or self._refill_in is None:
            yield from self._request("token", wait=False)
        yield from self._request("product", wait=True)

    def _request(self, path: str, *, wait: bool) -> Doing:
        while True:
            answer = yield Get(path)
            if answer is None or answer[1] is None:
                raise RuntimeError("Invalid JSON from Keepa API")
            status, body = answer
            self._read(answer[1])
            if status == 200:
                return
            if status == 429 and wait:
                yield Sleep(self.time_to_refill())
                continue
            raise RuntimeError(f"status {status}: {body}")

    def _read(self, body: Mapping[str, object]) -> None:
        tokens_left = _whole(body, "tokensLeft")
        self.tokens_left = self.tokens_left if tokens_left is None else tokens_left
        self._refill_in = _whole(body, "refillIn")
        self._refill_rate = _whole(body, "refillRate")
        self._timestamp = _whole(body, "timestamp")

    def time_to_refill(self) -> float:
        """Return the seconds to sleep after a refusal."""
        if self._timestamp is None or self._refill_in is None or self._refill_rate is None:
            raise RuntimeError("a refusal carries an envelope")
        wait_ms: float = max(0, self._timestamp + self._refill_in - self._now_ms() + 1000)
        if self.tokens_left < 0:
            wait_ms += (abs(self.tokens_left) / self._refill_rate) * 60000
        return wait_ms / 1000.0


def _whole(body: Mapping[str, object], name: str) -> int | None:
    value = body.get(name)
    return value if isinstance(value, int) else None


class KeepaClients:
    """One client a worker, sharing nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._clients = [KeepaClient(self._now_ms) for _ in range(world.row.workers)]

    def _now_ms(self) -> int:
        return int((EPOCH + self._world.loop.time()) * 1000)

    async def call(self, worker: int, cost: int, estimate: int) -> None:  # noqa: ARG002 - the client has no estimates
        """Make one query; an error other than a refusal ends it, and the worker goes on to the next."""
        doing = self._clients[worker].query()
        answer: Answer | None = None
        while True:
            try:
                verb = doing.send(answer)
            except StopIteration:
                return
            except RuntimeError:
                await self._world.pause(1.0)
                return
            answer = await self._do(worker, cost, verb)

    async def _do(self, worker: int, cost: int, verb: Get | Sleep) -> Answer | None:
        if isinstance(verb, Sleep):
            await self._world.pause(verb.seconds)
            return None
        going = self._world.token(worker) if verb.path == "token" else self._world.send(worker, cost)
        response = await going
        return response.status, response.body

    def restart(self, worker: int) -> None:
        """Begin with a new client."""
        self._clients[worker] = KeepaClient(self._now_ms)

    def lose_timestamp(self, balance: int) -> None:
        """Lose nothing: there is no shared state."""

    def flush(self) -> None:
        """Lose nothing: there is no shared state."""
