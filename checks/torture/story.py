"""What is logged: one line an entry, one file a process, written before anything else goes on.

All instants are microseconds since 1970. The server under torture runs on the same machine, so its time and a
process's own are one clock, whatever is restarted meanwhile.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from keepa_tokens import Reading
from keepa_tokens.rules.commands import Command, Outcome


@dataclass(frozen=True)
class Entry:
    """Something that `who` logged, of the instant `at`."""

    who: str
    at: int


@dataclass(frozen=True)
class Sent(Entry):
    """`who` is about to send the command number `step` to `bucket`; `reading` is the balance that it carries.

    server_time: of that reading, in seconds. ticket: its place in line; it stands there from the first refusal on.
    """

    step: int
    bucket: str
    verb: str
    id: str = ""
    tokens: int = 0
    keep: int = 0
    hold_for: int = 0
    reading: int | None = None
    next_refill_in: int | None = None
    server_time: float | None = None
    ticket: str = ""


@dataclass(frozen=True)
class Told(Entry):
    """What became of it, `at` the storage's time; the caller was told at `heard`.

    bound: what a look said, microseconds; None: it was no look. retry_after: microseconds.
    """

    step: int
    granted: bool = False
    place: int = 0
    probe: bool = False
    found: bool = True
    taken: bool = False
    balance: int | None = None
    bound: int | None = None
    repaired: str = ""
    heard: int = 0
    held: int = 0
    reason: str = ""
    retry_after: int = 0


@dataclass(frozen=True)
class Failed(Entry):
    """It raised `error`, the name of an exception: nobody knows whether it counted."""

    step: int
    error: str


@dataclass(frozen=True)
class Asked(Entry):
    """`who` is about to make the call `id` to the API."""

    id: str
    estimate: int


@dataclass(frozen=True)
class Answered(Entry):
    """The call `id` was answered. consumed: by its envelope; None: there was none."""

    id: str
    status: int
    consumed: int | None


@dataclass(frozen=True)
class Charged(Entry):
    """The API's own ledger: it finished the call `id`, refused or not, for `cost` tokens. fault: how it went wrong."""

    id: str
    refused: bool
    cost: int
    fault: str = ""


@dataclass(frozen=True)
class Fault(Entry):
    """A fault, `at` its beginning, `until` its end. target: a process or a bucket. lost: the buckets that it wiped."""

    kind: str
    target: str
    until: int
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calm(Entry):
    """From now on there are no faults for a while; `last`: none any more."""

    last: bool = False


@dataclass(frozen=True)
class Killed(Entry):
    """The process `target` was killed: of what it had sent without an answer, nobody knows whether it counted."""

    target: str


@dataclass(frozen=True)
class Left(Entry):
    """`who` ended as it was told to."""


@dataclass(frozen=True)
class Broke(Entry):
    """`who` got an error that nothing documents."""

    error: str


@dataclass(frozen=True)
class Remains(Entry):
    """A bucket at the end, nothing in flight, every hold's lifetime over."""

    bucket: str
    held: int
    holds: int
    balance: int | None


@dataclass(frozen=True)
class Total(Entry):
    """What the API says that all calls cost together."""

    spent: int


_KINDS: Final = {kind.__name__: kind for kind in Entry.__subclasses__()}


def machine_us() -> int:
    """Return the machine's time."""
    return time.time_ns() // 1000


class Journal:
    """The file of one process. A line is with the operating system when `write` returns: a kill can't take it back."""

    def __init__(self, folder: Path, who: str) -> None:
        self.who = who
        self._file = os.open(folder / f"{who}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._steps = itertools.count(1)

    def write(self, entry: Entry) -> None:
        """Add a line."""
        line = json.dumps([type(entry).__name__, asdict(entry)], separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    @contextmanager
    def step(self, bucket: str, command: Command) -> Iterator[Callable[[Outcome], Outcome]]:
        """Write that a command is about to be sent, and what became of it: the outcome that is told, or an error."""
        step = next(self._steps)
        self.write(sent(self.who, machine_us(), step, bucket, command))

        def tell(outcome: Outcome) -> Outcome:
            self.write(told(self.who, step, outcome, machine_us()))
            return outcome

        try:
            yield tell
        except BaseException as error:
            self.write(Failed(self.who, machine_us(), step, type(error).__name__))
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def sent(who: str, at: int, step: int, bucket: str, command: Command) -> Sent:
    """Return the entry of a command that is about to be sent."""
    says: dict[str, Any] = {field.name: getattr(command, field.name) for field in fields(command)}
    # A settle has -1 where it is at what was set aside.
    tokens = says.get("tokens", -1 if says.get("actual", 0) is None else says.get("actual", 0))
    reading: Reading | None = says.get("reading")
    return Sent(
        *(who, at, step, bucket, type(command).__name__.lower()),
        id=says.get("id", ""),
        tokens=tokens,
        keep=says.get("keep", 0),
        hold_for=says.get("hold_for_us", 0),
        reading=None if reading is None else reading.balance,
        next_refill_in=None if reading is None else reading.next_refill_in_us,
        server_time=None if reading is None else reading.server_time,
        ticket=says.get("ticket") or "",
    )


def told(who: str, step: int, outcome: Outcome, heard: int) -> Told:
    """Return the entry of a command's outcome."""
    shown = outcome.snapshot
    return Told(
        who,
        outcome.now_us,
        step,
        granted=outcome.granted,
        place=outcome.place_us,
        probe=outcome.probe,
        found=outcome.found,
        taken=outcome.reading == "TAKEN",
        balance=outcome.balance,
        bound=None if shown is None else round(min(shown.bound, 1e9) * 1_000_000),
        repaired=",".join(outcome.repaired),
        heard=heard,
        held=outcome.held,
        reason=outcome.reason.name,
        retry_after=outcome.retry_after_us,
    )


def entry_of(line: str) -> Entry:
    """Return the entry that a line holds."""
    kind, told = json.loads(line)
    if "lost" in told:
        told["lost"] = tuple(told["lost"])
    return _KINDS[kind](**told)


def read(folder: Path) -> Iterator[Entry]:
    """Yield the entries of all files in a folder. A last line without an end is none."""
    for path in sorted(folder.glob("*.log")):
        yield from map(entry_of, path.read_text().split("\n")[:-1])
