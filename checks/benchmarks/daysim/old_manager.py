"""A model of a home-made manager, written from the description of how it stood still for days.

The shared state is a balance, the time of its last refill, and a flag. Its rules, numbered as the failures in the list
of those met in the wild where they cause one:

- The constructor asks `/token` and waits for it; a balance that isn't there is guessed at 100 (2).
- Refill is smooth. A missing time means now, for every worker, every time, so elapsed is 0 (6).
- Below 10 it turns a flag on, and leaves without asking the server (7); the flag goes at 40 (5).
- Where there is enough it asks `/token` if this worker last did so five minutes ago, and then takes the estimate.
- An answer's balance replaces the stored one, whatever is in flight (13), in whatever order they come (14), unless it
  is 0 (18). A refusal is raised before its body is read (18), and tried again a minute later.
- Who was refused asks again after half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from checks.benchmarks.daysim.world import World

THRESHOLD: Final = 10
RECHARGE_TO: Final = 40
GUESS: Final = 100.0
SYNC_EVERY: Final = 300.0
ASK_AGAIN: Final = 30.0
AFTER_REFUSAL: Final = 60.0


class OldManager:
    """All workers of the old manager and the state they share."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rate = world.row.rate
        self._tokens: float | None = None
        self._updated_at: float | None = None
        self._recharging = False
        self._synced_at: dict[int, float] = {}

    async def call(self, worker: int, cost: int, estimate: int) -> None:
        """Take the estimate, make the call, and again if it is refused."""
        if worker not in self._synced_at:
            await self._sync(worker)
        while True:
            while not await self._take(worker, estimate):
                await self._world.pause(ASK_AGAIN)
            response = await self._world.send(worker, cost)
            if response.status != 429:
                self._store(response.body)
                return
            await self._world.pause(AFTER_REFUSAL)

    async def _take(self, worker: int, estimate: int) -> bool:
        tokens = self._refilled()
        if tokens < THRESHOLD:
            self._recharging = True
        if self._recharging and tokens < RECHARGE_TO:
            return False  # too low: don't bother the server
        self._recharging = False
        if self._world.loop.time() - self._synced_at[worker] >= SYNC_EVERY:
            await self._sync(worker)
            tokens = self._refilled()
        if tokens < estimate:
            return False
        self._tokens, self._updated_at = tokens - estimate, self._world.loop.time()
        return True

    def _refilled(self) -> float:
        now = self._world.loop.time()
        if self._tokens is None:
            self._tokens, self._updated_at = GUESS, now
        since = now if self._updated_at is None else self._updated_at
        return min(60.0 * self._rate, self._tokens + (now - since) * self._rate / 60)

    async def _sync(self, worker: int) -> None:
        self._synced_at[worker] = self._world.loop.time()
        self._store((await self._world.token(worker)).body)

    def _store(self, body: Mapping[str, object] | None) -> None:
        left = None if body is None else body.get("tokensLeft")
        if isinstance(left, int) and left:
            self._tokens, self._updated_at = float(left), self._world.loop.time()

    def restart(self, worker: int) -> None:
        """Begin with a new manager: its constructor asks."""
        self._synced_at.pop(worker, None)

    def lose_timestamp(self, balance: int) -> None:
        """Lose the time of the last refill."""
        self._tokens, self._updated_at = float(balance), None

    def flush(self) -> None:
        """Lose the state."""
        self._tokens, self._updated_at, self._recharging = None, None, False
