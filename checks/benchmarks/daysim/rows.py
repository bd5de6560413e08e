"""The days that are simulated: each a named row, with what must hold of `KeepaSync` on it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Event = Literal[
    "timestamp lost",
    "flush",
    "crash",
    "upgrade",
    "downgrade",
    "token down",
    "token down, flush",
    "server clock",
    "no refill",
]
ESTIMATES: Final[Mapping[str, Callable[[int, float], int]]] = {
    "good": lambda cost, _: cost,
    "2x high": lambda cost, _: 2 * cost,
    "5x high": lambda cost, _: 5 * cost,
    "5x low": lambda cost, _: math.ceil(cost / 5),
    "5x either way": lambda cost, drawn: max(1, round(cost * 5 ** (2 * drawn - 1))),
}
"""What workers believe that a call will take, by its cost and a number drawn from [0, 1)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One day.

    rate: tokens a minute of the plan. outside: tokens that another program spends at a time, every ten minutes on
    average. event: what goes wrong a quarter into the day. timeouts: share of calls whose answer is lost, half of them
    charged. charge: when the server takes the cost. keep: tokens left to others by each request. recharge_to: as
    of KeepaSync. other_rate: the plan that every second worker believes in.
    refused_at_most: the share of paid calls that KeepaSync may have refused; None: nothing is promised.
    steady: answers keep coming, so KeepaSync asks `/token` for the first balance and never again.
    """

    name: str
    workers: int = 8
    rate: int = 5
    estimates: str = "good"
    outside: int = 0
    event: Event | None = None
    timeouts: float = 0.0
    charge: Literal["completion", "admission"] = "completion"
    keep: int = 0
    recharge_to: int | None = None
    other_rate: int | None = None
    refused_at_most: float | None = 0.0
    steady: bool = True
    seed: int = 1

    @property
    def start(self) -> int:
        """The server's first balance: six minutes of refill, so that nothing is lost before the first call."""
        return 6 * self.rate

    def estimate(self, cost: int, chance: random.Random) -> int:
        """Return what a worker believes that a call of `cost` will take."""
        return ESTIMATES[self.estimates](cost, chance.random())


ROWS: Final[tuple[Row, ...]] = (
    *(
        Row(f"{who}, {rate}/min", workers, rate)
        for rate in (5, 20, 60)
        for workers, who in ((1, "1 worker"), (8, "8 workers"), (64, "64 workers"))
    ),
    Row("outside spender", outside=30, steady=False, refused_at_most=0.01),
    Row("outside spender, 1 worker", 1, outside=30, steady=False, refused_at_most=0.01),
    Row("outside spender, 64 workers", 64, outside=30, steady=False, refused_at_most=0.01),
    Row("outside spender, 20/min", rate=20, outside=30, steady=False, refused_at_most=0.01),
    Row("outside spender, 60/min", rate=60, outside=30, steady=False, refused_at_most=0.01),
    Row("outside spender, keep 90", outside=30, keep=90, steady=False, refused_at_most=0.01),
    Row("estimates 2x high", estimates="2x high", refused_at_most=0.03),
    Row("estimates 5x high", estimates="5x high", refused_at_most=0.03),
    Row("estimates 5x low", estimates="5x low", refused_at_most=0.03),
    Row("estimates 5x low, 64 workers", 64, estimates="5x low", steady=False, refused_at_most=0.03),
    Row("estimates 5x low, 20/min", rate=20, estimates="5x low", refused_at_most=0.03),
    Row("estimates 5x either way", estimates="5x either way", refused_at_most=0.03),
    Row("cost taken at admission", charge="admission"),
    Row("recharge to 40", recharge_to=40, steady=False),
    Row("two versions of the quota", other_rate=20),
    Row("2% of answers lost", timeouts=0.02, refused_at_most=0.03),
    Row("timestamp lost at -79", event="timestamp lost", steady=False),
    Row("timestamp lost at -79, 64 workers", 64, event="timestamp lost", steady=False),
    Row("state flushed", event="flush", steady=False),
    Row("crash with a hold", event="crash", refused_at_most=0.03, steady=False),
    Row("plan 5 to 20", event="upgrade", steady=False),
    Row("plan 20 to 5", rate=20, event="downgrade", refused_at_most=0.03, steady=False),
    Row("/token down for an hour", event="token down", steady=False),
    Row("/token down, state flushed", event="token down, flush", refused_at_most=0.03, steady=False),
    Row("server clock steps", event="server clock", steady=False),
    Row("no refill for two hours", event="no refill", refused_at_most=None, steady=False),
)
