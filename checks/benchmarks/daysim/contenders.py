"""Who takes part, and how one day of one of them is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from checks.benchmarks.daysim.keepa_client import KeepaClients
from checks.benchmarks.daysim.old_manager import OldManager
from checks.benchmarks.daysim.ours import Ours
from checks.benchmarks.daysim.rows import Row
from checks.benchmarks.daysim.world import Contender, Result, World
from keepa_tokens.testing import virtual_loop

OURS: Final = "keepa_tokens"
CLIENT: Final = "keepa client"
OLD: Final = "old manager"
ALL: Final = (OURS, CLIENT, "limits", "pyrate-limiter", "throttled-py", OLD)
WITHOUT_PEERS: Final[dict[str, Callable[[World], Contender]]] = {OURS: Ours, CLIENT: KeepaClients, OLD: OldManager}


def run(name: str, row: Row, hours: float) -> Result:
    """Run one day (or the first hours of one) and return what was counted."""
    with virtual_loop() as loop:
        world = World(row, hours, loop)
        if name in WITHOUT_PEERS:
            return loop.run_until_complete(world.run(WITHOUT_PEERS[name](world)))
        # Only here, so that what needs no peers runs without them.
        from checks.benchmarks.daysim import peers  # noqa: PLC0415

        with peers.virtual_time(loop.time):
            return loop.run_until_complete(world.run(peers.Peer(world, name)))
