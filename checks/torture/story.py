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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

from keepa_tokens import Reading
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle


@dataclass(frozen=True, slots=True)
class Sent:
    """`who` is about to send the command number `step` to `bucket`; `reading` is the balance that it carries.

    ticket: its place in line; it stands there from the first refusal on.
    """

    who: str
    at: int
    step: int
    bucket: str
    verb: str
    id: str = ""
    tokens: int = 0
    keep: int = 0
    hold_for: int = 0
    reading: int | None = None
    next_refill_in: int | None = None
    ticket: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of it, `at` the storage's time; the caller was told at `heard`.

    bound: what a look said, microseconds; None: it was no look. retry_after: microseconds.
    """

    who: str
    at: int
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


@dataclass(frozen=True, slots=True)
class Failed:
    """It raised `error`, the name of an exception: nobody knows whether it counted."""

    who: str
    at: int
    step: int
    error: str


@dataclass(frozen=True, slots=True)
class Asked:
    """`who` is about to make the call `id` to the API."""

    who: str
    at: int
    id: str
    estimate: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The call `id` was answered. consumed: by its envelope; None: there was none."""

    who: str
    at: int
    id: str
    status: int
    consumed: int | None


@dataclass(frozen=True, slots=True)
class Charged:
    """The API's own ledger: it finished the call `id`, refused or not, for `cost` tokens. fault: how it went wrong."""

    who: str
    at: int
    id: str
    refused: bool
    cost: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, `at` its beginning, `until` its end. target: a process or a bucket. lost: the buckets that it wiped."""

    who: str
    at: int
    kind: str
    target: str
    until: int
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Calm:
    """From now on there are no faults for a while; `last`: none any more."""

    who: str
    at: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Killed:
    """The process `target` was killed: of what it had sent without an answer, nobody knows whether it counted."""

    who: str
    at: int
    target: str


@dataclass(frozen=True, slots=True)
class Left:
    """`who` ended as it was told to."""

    who: str
    at: int


@dataclass(frozen=True, slots=True)
class Broke:
    """`who` got an error that nothing documents."""

    who: str
    at: int
    error: str


@dataclass(frozen=True, slots=True)
class Remains:
    """A bucket at the end, nothing in flight, every hold's lifetime over."""

    who: str
    at: int
    bucket: str
    held: int
    holds: int
    balance: int | None


@dataclass(frozen=True, slots=True)
class Total:
    """What the API says that all calls cost together."""

    who: str
    at: int
    spent: int


Entry: TypeAlias = (
    Sent | Told | Failed | Asked | Answered | Charged | Fault | Calm | Killed | Left | Broke | Remains | Total
)

_KINDS: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in get_args(Entry)}


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
    verb = type(command).__name__.lower()
    match command:
        case Acquire():
            ticket = command.ticket or ""
            return Sent(who, at, step, bucket, verb, tokens=command.tokens, keep=command.keep, ticket=ticket)
        case Reserve():
            entry = Sent(who, at, step, bucket, verb, command.id, command.tokens, command.keep, command.hold_for_us)
            return replace(entry, ticket=command.ticket or "")
        case Settle():
            # -1: what was set aside.
            actual = -1 if command.actual is None else command.actual
            return _with_reading(Sent(who, at, step, bucket, verb, command.id, actual), command.reading)
        case Cancel():
            return Sent(who, at, step, bucket, verb, command.id)
        case Refund():
            return Sent(who, at, step, bucket, verb, command.id, command.tokens)
        case Reconcile():
            return _with_reading(Sent(who, at, step, bucket, verb), command.reading)
        case Peek():
            return Sent(who, at, step, bucket, verb, tokens=command.tokens, keep=command.keep)
        case _:
            return Sent(who, at, step, bucket, verb)


def _with_reading(entry: Sent, reading: Reading | None) -> Sent:
    if reading is None:
        return entry
    fields = asdict(entry) | {"reading": reading.balance, "next_refill_in": reading.next_refill_in_us}
    return Sent(**fields)


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
    kind, fields = json.loads(line)
    if "lost" in fields:
        fields["lost"] = tuple(fields["lost"])
    entry: Entry = _KINDS[kind](**fields)
    return entry


def read(folder: Path) -> Iterator[Entry]:
    """Yield the entries of all files in a folder. A last line without an end is none."""
    for path in sorted(folder.glob("*.log")):
        yield from map(entry_of, path.read_text().split("\n")[:-1])
