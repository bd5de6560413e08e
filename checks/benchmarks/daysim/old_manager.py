"""A model of a home-made manager, written from the description of how it stood still for days.

The rule is `keepa_tokens.cli.old_rule`, with its three faults: a missing time means now, a refusal writes nothing, and
the server isn't asked where little is there (6, 7 in the list of failures met in the wild). Around it:

- The constructor asks `/token` and waits for it; a balance that isn't there is guessed at 100 (2).
- An answer's balance replaces the stored one, whatever is in flight (13), in whatever order they come (14), unless it
  is 0 (18). A refusal is raised before its body is read (18), and tried again a minute later.
- Who was refused asks again after half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from checks.benchmarks.daysim.world import Contender, World
from keepa_tokens.cli.old_rule import OldState, Verdict, attempt

GUESS: Final = 100
ASK_AGAIN: Final = 30.0
AFTER_REFUSAL: Final = 60.0


class OldManager(Contender):
    """All workers of the old manager and the state they share."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._state: OldState | None = None
        self._begun: set[int] = set()

    async def call(self, worker: int, cost: int, estimate: int) -> None:
        """Take the estimate, make the call, and again if it is refused."""
        if worker not in self._begun:
            self._begun.add(worker)
            await self._ask(worker)
        while True:
            while not await self._take(worker, estimate):
                await self._world.pause(ASK_AGAIN)
            response = await self._world.send(worker, cost)
            if response.status != 429:
                self._store(response.body)
                return
            await self._world.pause(AFTER_REFUSAL)

    async def _take(self, worker: int, estimate: int) -> bool:
        state = self._state or OldState(GUESS, self._now_us())
        self._state, verdict = attempt(state, estimate, self._world.row.rate, self._now_us())
        if verdict is Verdict.ASKED:
            await self._ask(worker)
        return verdict is Verdict.GRANTED

    async def _ask(self, worker: int) -> None:
        self._store((await self._world.token(worker)).body)

    def _store(self, body: Mapping[str, object] | None) -> None:
        left = None if body is None else body.get("tokensLeft")
        if isinstance(left, int) and left:
            self._state = OldState(left, self._now_us())

    def _now_us(self) -> int:
        return round(self._world.loop.time() * 1_000_000)

    def restart(self, worker: int) -> None:
        """Begin with a new manager: its constructor asks."""
        self._begun.discard(worker)

    def lose_timestamp(self, balance: int) -> None:
        """Lose the time of the last refill."""
        self._state = OldState(balance, None)

    def flush(self) -> None:
        """Lose the state."""
        self._state = None
