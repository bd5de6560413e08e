"""What the demo knows at a moment: what its views draw and its report sums up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from ..rules.decision import Reason
from . import old_rule
from .demo_measure import Meter, Sample
from .demo_worker import REFILL_RATE, Note, NoteKind, worker_name

DEBT = -79
"""The balance at which the old system lost its timestamp."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run the demo. seconds: real ones, about. speed: server seconds in a real one.

    redis_url: where the workers, as processes, share the bucket; None: threads, in memory.
    """

    seconds: float
    workers: int
    speed: float
    seed: int
    redis_url: str | None = field(default=None, repr=False)  # may hold a password


class Chapter(StrEnum):
    """Where the story is."""

    INGESTING = "ingesting"
    LARGE_CALL = "large call"
    LOST = "timestamp lost"
    RECOVERED = "recovered"
    OVER = "over"


class Doing(StrEnum):
    """What a worker is at."""

    RESTING = "resting"
    WAITING = "waiting"
    CALLING = "calling"


@dataclass(slots=True)
class Row:
    """One worker. Times are microseconds of the server's clock; job, wanted: its call and that call's tokens."""

    name: str
    doing: Doing = Doing.RESTING
    job: str = ""
    wanted: int = 0
    reason: str = ""
    since_us: int = 0
    due_us: int | None = None
    calls: int = 0
    spent: int = 0
    waited_us: int = 0


@dataclass(slots=True)
class Fault:
    """What was done at half-way, and what came of it.

    truth, balance: as the server and the storage had them. promised: seconds to the next grant, as `peek()` said.
    repaired: what it mended. old: what the old rule stores. old_*: what it said to the same requests.
    """

    at_us: int
    truth: int
    balance: int
    promised: float
    repaired: str
    old: old_rule.OldState
    probed_at_us: int | None = None
    recovered_at_us: int | None = None
    old_refused: int = 0
    old_granted: int = 0
    old_asked: int = 0

    @property
    def took(self) -> float | None:
        """The seconds of server time from the fault to the next grant."""
        return None if self.recovered_at_us is None else (self.recovered_at_us - self.at_us) / 1_000_000

    @property
    def asked_after(self) -> float | None:
        """The seconds of server time from the fault until the server was asked; None: it was not needed."""
        return None if self.probed_at_us is None else (self.probed_at_us - self.at_us) / 1_000_000


@dataclass(frozen=True, slots=True)
class Moment:
    """One point of the chart. old: the balance that the old rule sees."""

    at_us: int
    projection: int | None
    truth: int
    old: int | None


@dataclass(slots=True)
class Scene:
    """All there is to show."""

    settings: Settings
    meter: Meter
    rows: list[Row]
    chapter: Chapter = Chapter.INGESTING
    now_us: int = 0
    real_seconds: float = 0.0
    next_refill: float = 0.0
    latest: Sample | None = None
    history: list[Moment] = field(default_factory=list[Moment])
    waits: Counter[str] = field(default_factory=Counter[str])
    grants: int = 0
    answers: int = 0
    spent: int = 0
    refused: int = 0
    failed: int = 0
    probes: int = 0
    fault: Fault | None = None

    @classmethod
    def at_start(cls, settings: Settings, meter: Meter) -> Scene:
        """Return the scene before anything happened."""
        return cls(settings, meter, [Row(worker_name(worker)) for worker in range(settings.workers)])

    def row(self, note: Note) -> Row | None:
        """Return the row of the worker who tells; None for the demo itself."""
        return self.rows[note.worker] if 0 <= note.worker < len(self.rows) else None

    def take(self, note: Note) -> bool:
        """Take notice of `note`; return whether it says something new, which a poll doesn't."""
        self._count(note)
        row = self.row(note)
        new = True if row is None else _follow(row, note)
        if new and note.kind is NoteKind.REFUSED:
            self.waits[note.text] += 1
        if self.fault is not None and note.at_us > self.fault.at_us:
            _compare(self.fault, note)
        return new

    def remember(self) -> None:
        """Add this moment to the chart."""
        if self.latest is None:
            return
        old = None if self.fault is None else old_rule.balance_seen(self.fault.old, REFILL_RATE, self.now_us)
        self.history.append(Moment(self.now_us, self.latest.projection, self.latest.truth, old))

    def old_balance(self) -> int | None:
        """Return what the old rule takes for the balance now; None before the fault."""
        return None if self.fault is None else old_rule.balance_seen(self.fault.old, REFILL_RATE, self.now_us)

    def _count(self, note: Note) -> None:
        match note.kind:
            case NoteKind.GRANTED:
                self.grants += 1
            case NoteKind.ANSWERED:
                self.answers += 1
                self.spent += note.tokens
                self.refused += note.text == "429"
            case NoteKind.FAILED:
                self.failed += 1
            case _:
                pass


def _follow(row: Row, note: Note) -> bool:
    match note.kind:
        case NoteKind.WANTS:
            row.job, row.wanted, row.doing = note.text, note.tokens, Doing.RESTING
            row.since_us, row.due_us = note.at_us, None
            return False
        case NoteKind.REFUSED:
            again = row.doing is Doing.WAITING and row.reason == note.text
            if not again:
                row.since_us = note.at_us
            row.doing, row.reason = Doing.WAITING, note.text
            # While nothing is known, the time is that of the worst case: the probe under way will end it sooner.
            known = note.text != Reason.UNKNOWN and note.seconds < float("inf")
            row.due_us = note.at_us + round(note.seconds * 1_000_000) if known else None
            return not again
        case NoteKind.GRANTED:
            if row.doing is Doing.WAITING:
                row.waited_us += note.at_us - row.since_us
            row.doing, row.since_us, row.due_us = Doing.CALLING, note.at_us, None
            return True
        case NoteKind.ANSWERED | NoteKind.FAILED:
            row.doing, row.since_us, row.due_us = Doing.RESTING, note.at_us, None
            row.calls += 1
            row.spent += note.tokens
            return True
        case NoteKind.PROBED | NoteKind.PROBE_FAILED | NoteKind.REPAIRED:
            return True


def _compare(fault: Fault, note: Note) -> None:
    """Put the same request to the old rule, and see whether the new one has recovered."""
    if note.kind is NoteKind.PROBED and fault.probed_at_us is None and fault.recovered_at_us is None:
        fault.probed_at_us = note.at_us
    if note.kind not in {NoteKind.GRANTED, NoteKind.REFUSED}:
        return
    if note.kind is NoteKind.GRANTED and fault.recovered_at_us is None:
        fault.recovered_at_us = note.at_us
    fault.old, verdict = old_rule.attempt(fault.old, note.tokens, REFILL_RATE, note.at_us)
    fault.old_refused += verdict is old_rule.Verdict.REFUSED
    fault.old_granted += verdict is old_rule.Verdict.GRANTED
    fault.old_asked += verdict is old_rule.Verdict.ASKED
