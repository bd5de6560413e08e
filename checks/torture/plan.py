"""The faults of a run, drawn in advance: one seed, one schedule. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, TypeAlias, get_args

from checks.torture.steps import FREEZE
from checks.torture.terms import HELD, KEEPA, LONGEST_FREEZE, PLAIN
from keepa_tokens.testing.fake_keepa import Fault as FakeFault

STORM: Final = 9.0
"""Seconds of faults in a round."""

SHORTEST_STORM: Final = 3.0
"""Seconds of faults in the shortest run."""

CALM: Final = 6.5
"""Seconds without, in which what a fault left behind must end."""

LAST_CALM: Final = 23.0
"""Of the last one: who claimed the probe just before it and died keeps others from it for 20 s, and 1 s refills."""

CUT = "drop the connections"
LOSE = "lose answers"
SLOW = "be slow"
MUTE = "pass no commands on"
DEAF = "pass no answers on"
PAUSE = "pause a worker"
KILL = "kill a worker"
RESTART_KEPT = "restart, state kept"
RESTART_LOST = "restart, nothing kept"
FLUSH = "FLUSHALL"
EVICT = "evict"
DELETE = "delete a bucket"
SCRIPTS = "SCRIPT FLUSH"
API_FAILS = "the API fails"
API_DEARER = "the API takes more than estimated"
API_SILENT = "no probe is answered"


SERVER, WORKER, LINK, API = "server", "worker", "link", "api"
"""The lanes: in each one fault follows another; between them they overlap as they like."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come, `at` seconds from the start, for `length` seconds.

    target: the number of a worker or of its link, a bucket, what an API's fault is called. amount: how many, how long.
    lane: what it hits.
    """

    at: float
    length: float
    kind: str
    target: str = ""
    amount: float = 1.0
    lane: str = ""

    @property
    def until(self) -> float:
        """When it is over."""
        return self.at + self.length


Draw: TypeAlias = Callable[[random.Random, float], Planned]
"""Draws a fault that begins at an instant."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens when. calms: when each calm begins; `end`: when the last one ends, and the run with it."""

    faults: tuple[Planned, ...]
    calms: tuple[float, ...]
    end: float


def schedule(seed: int, seconds: float, workers: int) -> Schedule:
    """Draw the faults of a run of about `seconds`: storms, and a calm after each.

    On the server one fault follows another, likewise on each worker, on each worker's link, and at the API.
    """
    last = LAST_CALM - CALM
    rounds = max(1, round((seconds - last) / (STORM + CALM)))
    storm = max(SHORTEST_STORM, (seconds - last) / rounds - CALM)
    faults: list[Planned] = []
    for number in range(rounds):
        begin = number * (storm + CALM)
        for lane, target in [(SERVER, ""), (API, ""), *product((WORKER, LINK), map(str, range(workers)))]:
            chance = random.Random(f"{seed}/{number}/{lane}/{target}")
            drawn = _drawn(chance, lane, begin, begin + storm)
            faults += (replace(planned, lane=lane, target=planned.target or target) for planned in drawn)
    calms = tuple(number * (storm + CALM) + storm for number in range(rounds))
    return Schedule(tuple(sorted(faults, key=lambda planned: planned.at)), calms, rounds * (storm + CALM) + last)


def _drawn(chance: random.Random, lane: str, begin: float, end: float) -> Iterator[Planned]:
    draw, shortest, longest = LANES[lane]
    at = begin + chance.uniform(0.0, longest)
    while (planned := draw(chance, at)).until <= end:
        yield planned
        at = planned.until + chance.uniform(shortest, longest)


def _server(chance: random.Random, at: float) -> Planned:
    kind = chance.choice((FREEZE, RESTART_KEPT, RESTART_LOST, FLUSH, EVICT, DELETE, DELETE, SCRIPTS))
    if kind == FREEZE:
        return Planned(at, chance.uniform(0.2, LONGEST_FREEZE), kind)
    if kind == DELETE:
        return Planned(at, 0.0, kind, chance.choice((PLAIN, HELD, KEEPA)))
    if kind in {RESTART_KEPT, RESTART_LOST}:
        return Planned(at, chance.uniform(0.1, 1.0), kind)
    return Planned(at, 0.0, kind)


def _worker(chance: random.Random, at: float) -> Planned:
    if chance.random() < 0.4:
        return Planned(at, 0.0, KILL)
    return Planned(at, chance.choice((chance.uniform(0.1, 1.0), chance.uniform(1.0, 4.0))), PAUSE)


def _link(chance: random.Random, at: float) -> Planned:
    kind = chance.choice((CUT, LOSE, LOSE, SLOW, MUTE, DEAF))
    if kind == CUT:
        return Planned(at, 0.0, kind)
    if kind == LOSE:
        return Planned(at, 0.5, kind, amount=chance.randint(1, 4))
    if kind == SLOW:
        return Planned(at, chance.uniform(0.3, 2.0), kind, amount=chance.uniform(0.02, 0.4))
    return Planned(at, chance.uniform(0.2, 1.5), kind)


def _api(chance: random.Random, at: float) -> Planned:
    kind = chance.choice((API_FAILS, API_FAILS, API_DEARER, API_SILENT))
    if kind == API_FAILS:
        return Planned(at, 0.0, kind, chance.choice(get_args(FakeFault)), chance.randint(1, 4))
    return Planned(at, chance.uniform(0.3, 2.0), kind, amount=chance.randint(1, 9))


LANES: Final[Mapping[str, tuple[Draw, float, float]]] = {
    SERVER: (_server, 0.5, 2.2),
    WORKER: (_worker, 1.0, 5.0),
    LINK: (_link, 0.5, 3.0),
    API: (_api, 0.5, 2.5),
}
"""What draws a lane's faults, and the seconds between two of them."""
