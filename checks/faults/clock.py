"""The clock of a server, stepped under a bucket that goes by it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from unittest.mock import patch

from checks.faults.measuring import Cell, Due, Limit, measured
from checks.faults.runs import HOUR, SETTLED_STEPS, START, STEPS, Bucket, Kind, Moment, OnServer, Place, Run, place_of
from keepa_tokens import BucketState
from keepa_tokens.rules.commands import Command, Outcome
from keepa_tokens.units import MICROSECONDS
from tests.redis.common import stored
from tests.servers import running

FAKETIME: Final = "libfaketime"
"""The package whose library stands between a server and its clock; it is preloaded, not imported."""


def faketime_library() -> Path:
    """Return the path of the library; an AssertionError says what to install."""
    spec = find_spec(FAKETIME)
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders for path in Path(folder).glob("vendor/libfaketime/src/libfaketime.so.1")]
    assert found, f"no library in the package {FAKETIME!r}: install the test group of pyproject.toml (make venv)"
    return found[0]


@dataclass(frozen=True)
class ServerClock:
    """The clock of a server, which stands still until it is moved."""

    file: Path

    def set(self, at: int) -> None:
        seconds, rest = divmod(at, MICROSECONDS)
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{rest:06}"
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)  # never half written

    @contextmanager
    def running(self, name: str) -> Iterator[Place]:
        self.set(START)
        library = {"LD_PRELOAD": str(faketime_library()), "FAKETIME_TIMESTAMP_FILE": str(self.file)}
        with ExitStack() as stack:
            with patch.dict(os.environ, {**library, "FAKETIME_NO_CACHE": "1", "TZ": "UTC"}):
                server = stack.enter_context(running(name))
            yield place_of(server)


def clock_cells(kind: Kind, place: Place, clock: ServerClock, times: int) -> Iterator[Cell]:
    """Let the server's clock jump by an hour during a run by the server's own time."""

    def by_the_clock(shift: int) -> OnServer:
        def set_clock(at: int) -> None:
            clock.set(at + shift)
            expected_time = divmod(at + shift, MICROSECONDS)
            for _ in range(1000):
                if place.client.time() == expected_time:
                    return
            raise AssertionError(f"the server's time is {place.client.time()}, not {expected_time}")

        return OnServer(place.storage, "run", kind.quota, set_clock)

    def until_the_fault(number: int) -> Moment:
        clock.set(START)
        place.client.flushall()
        rng = random.Random(f"clock {number} of a {kind.name} bucket")
        run = Run(kind, by_the_clock(0), rng)
        for _ in range(SETTLED_STEPS + rng.randrange(STEPS)):
            run.step()
        return run.moment(stored(place.client, "run"))

    for fault, shift in {"an hour ahead": HOUR, "an hour back": -HOUR}.items():
        for number in range(times):
            moment = until_the_fault(number)
            due = Due.at(kind, moment)
            refill = -(-HOUR // kind.quota.period_us) * kind.quota.refill
            # By a clock that went back a call is remembered for longer: who settles it late is given back the rest.
            holds = BucketState.from_fields(moment.fields).holds
            late = sum(tokens - tokens // 2 for name, tokens in moment.calls if name in holds)
            limit = Limit(late, "what is settled late and was not forgotten yet")
            if shift > 0:
                most = max(0, min(refill, kind.quota.capacity - due.available))
                limit = Limit(most, "the refill of the step, up to the capacity")
            greedy = _Again(by_the_clock(shift), partial(until_the_fault, number))
            yield measured(kind, ("the server's clock", fault), moment, by_the_clock(shift), greedy, due, limit)


@dataclass
class _Again:
    """A bucket whose past is repeated before it is used: one clock can't run for two at once."""

    bucket: Bucket
    repeat: Callable[[], object]
    repeated: bool = False

    def apply(self, command: Command, at: int) -> Outcome:
        if not self.repeated:
            self.repeat()
            self.repeated = True
        return self.bucket.apply(command, at)
