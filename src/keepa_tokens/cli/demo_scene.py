"""What the demo knows at a moment, and the sentences that tell it. Pure: notes and samples go in."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from ..events import EventKind
from ..rules.decision import Reason
from ..units import MICROSECONDS
from . import old_rule
from .demo_measure import Meter, Sample
from .demo_worker import REFILL_RATE, Did, Note, worker_name
from .words import count, duration

DEBT: Final = -79
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


@dataclass(slots=True)
class Row:
    """One worker. job, wanted: its call and that call's tokens. latest: what it told last, new since `since_us`."""

    name: str
    job: str = ""
    wanted: int = 0
    latest: Note | None = None
    since_us: int = 0
    calls: int = 0
    spent: int = 0

    def follow(self, note: Note) -> bool:
        """Take notice of a note; return whether it is news, which asking again in the same wait isn't."""
        if note.kind is Did.WANTS:
            self.job, self.wanted = note.text, note.tokens
            return False
        if note.kind not in {EventKind.REFUSED, EventKind.GRANTED, Did.ANSWERED, Did.FAILED}:
            return True
        before, self.latest = self.latest, note
        if before is not None and (before.kind, before.text) == (note.kind, note.text) == (
            EventKind.REFUSED,
            note.text,
        ):
            return False
        self.since_us = note.at_us
        if isinstance(note.kind, Did):
            self.calls += 1
            self.spent += note.tokens
        return True

    def due_us(self) -> int | None:
        """Return when its wait should be over.

        While nothing is known, the time told is that of the worst case: the probe under way will end the wait sooner.
        """
        note = self.latest
        if note is None or note.text == Reason.UNKNOWN or note.seconds == math.inf:
            return None
        return note.at_us + round(note.seconds * MICROSECONDS)


@dataclass(slots=True)
class Fault:
    """What was done at half-way, and what came of it.

    truth, balance: as the server and the storage had them. promised: seconds to the next grant, as `peek()` said.
    repaired: what it mended. asked_after, recovered_after: seconds of server time until the server was asked, and until
    the next grant. old: what the old rule stores. verdicts: what it said to the same requests.
    """

    at_us: int
    truth: int
    balance: int
    promised: float
    repaired: str
    old: old_rule.OldState
    asked_after: float | None = None
    recovered_after: float | None = None
    verdicts: Counter[old_rule.Verdict] = field(default_factory=Counter[old_rule.Verdict])

    def since(self, at_us: int) -> float:
        """Return the seconds of server time since the fault."""
        return (at_us - self.at_us) / MICROSECONDS

    def compare(self, note: Note) -> None:
        """Put the same request to the old rule, and see whether the new one has recovered."""
        if self.recovered_after is None and note.kind is EventKind.PROBE_CLAIMED and self.asked_after is None:
            self.asked_after = self.since(note.at_us)
        if note.kind not in {EventKind.GRANTED, EventKind.REFUSED}:
            return
        if self.recovered_after is None and note.kind is EventKind.GRANTED:
            self.recovered_after = self.since(note.at_us)
        self.old, verdict = old_rule.attempt(self.old, note.tokens, REFILL_RATE, note.at_us)
        self.verdicts[verdict] += 1


Moment: TypeAlias = tuple[int, int | None, int, int | None]
"""One point of the chart: when, the projection, the server's balance, and the one that the old rule sees."""


@dataclass(slots=True)
class Counts:
    """What happened so far. waits: how often workers began to wait, by reason. refused: by the server."""

    grants: int = 0
    answers: int = 0
    tokens: int = 0
    waits: Counter[str] = field(default_factory=Counter[str])
    refused: int = 0
    probes: int = 0
    failed: int = 0

    def waits_say(self) -> str:
        """Return how often workers waited, and why."""
        return ", ".join(f"{times} {reason}" for reason, times in self.waits.most_common()) or "none"


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
    counts: Counts = field(default_factory=Counts)
    fault: Fault | None = None

    @classmethod
    def at_start(cls, settings: Settings, meter: Meter) -> Scene:
        """Return the scene before anything happened."""
        return cls(settings, meter, [Row(worker_name(worker)) for worker in range(settings.workers)])

    def take(self, note: Note) -> str:
        """Take notice of `note`; return a line about it if it is news."""
        # The demo itself is worker -1.
        row = self.rows[note.worker] if 0 <= note.worker < len(self.rows) else None
        news = row is None or row.follow(note)
        counts = self.counts
        counts.grants += note.kind is EventKind.GRANTED
        counts.answers += note.kind is Did.ANSWERED
        counts.tokens += note.tokens if note.kind is Did.ANSWERED else 0
        counts.refused += note.text == "429"
        counts.failed += note.kind is Did.FAILED
        if news and note.kind is EventKind.REFUSED:
            counts.waits[note.text] += 1
        if self.fault is not None and note.at_us > self.fault.at_us:
            self.fault.compare(note)
        words = _words(note, "" if row is None else row.job) if news else ""
        return words and line(note.at_us, row.name if row else "demo", words)

    def remember(self) -> None:
        """Add this moment to the chart."""
        if self.latest is not None:
            self.history.append((self.now_us, self.latest.projection, self.latest.truth, self.old_balance()))

    def old_balance(self) -> int | None:
        """Return what the old rule takes for the balance now; None before the fault."""
        return None if self.fault is None else old_rule.balance_seen(self.fault.old, REFILL_RATE, self.now_us)

    # --- in words

    def heading(self) -> str:
        """Return what is to be seen."""
        what = "worker" if self.settings.redis_url is None else "worker process"
        workers = count(self.settings.workers, what, "workers" if what == "worker" else "worker processes")
        return (
            f"{workers} on one key of {REFILL_RATE} tokens a minute;"
            f" a fake Keepa server over HTTP, {self.settings.speed:g} times as fast"
        )

    def story(self) -> str:
        """Return where the story is, in a sentence."""
        fault = self.fault
        match self.chapter:
            case Chapter.INGESTING:
                return "Workers ingest; each answer brings the server's balance."
            case Chapter.LARGE_CALL:
                return "All pause, for one call that costs more than there is."
            case Chapter.LOST if fault is not None:
                return (
                    f"The timestamp is lost at {fault.balance}. peek() promises a grant in {duration(fault.promised)}."
                )
            case Chapter.RECOVERED if fault is not None and fault.recovered_after is not None:
                return (
                    f"Recovered: a grant after {duration(fault.recovered_after)}, {duration(fault.promised)} promised."
                    f" The old rule stands at {self.old_balance()}."
                )
            case _:
                return "The workers have ended."

    def prologue(self) -> str:
        """Return what is said of the fault before it."""
        left = max(0, math.ceil(self.settings.seconds / 2 - self.real_seconds))
        when = f"In {left} s" if left else "Any moment"
        return (
            f"{when} one large call takes the balance to {DEBT}, and the stored time of the last refill is lost."
            " The old system took now for it, so nothing refilled; and below"
            f" {old_rule.THRESHOLD} tokens it didn't ask the server. It stood still for days."
        )

    def new_rule_says(self) -> str:
        """Return how this library took the fault."""
        fault = self.fault
        if fault is None:
            return ""
        asked = "" if fault.asked_after is None else f"server asked at {duration(fault.asked_after)}, "
        if fault.recovered_after is None:
            return f"{asked}a grant in {duration(fault.promised - fault.since(self.now_us))}"
        return f"{asked}granted at {duration(fault.recovered_after)} (promised {duration(fault.promised)})"

    def old_rule_says(self) -> str:
        """Return how the old rule took it, from the same requests."""
        fault = self.fault
        if fault is None:
            return ""
        granted, refused, asked = (fault.verdicts[verdict] for verdict in old_rule.Verdict)
        if granted or asked:
            return f"{granted} granted, {refused} refused; asked the server {count(asked, 'time')}"
        still = duration(fault.since(self.now_us))
        return f"unmoved for {still}, refused {count(refused, 'time')}, server never asked"


def line(at_us: int, who: str, words: str) -> str:
    """Return a line of the plain view."""
    return f"{duration(at_us / MICROSECONDS):>8}  {who:<10}  {words}"


def _words(note: Note, job: str) -> str:
    match note.kind:
        case EventKind.REFUSED:
            how_long = "until the server says" if note.text == Reason.UNKNOWN else f"{duration(note.seconds)} to go"
            return f"waits for {note.tokens}: {note.text}, {how_long}"
        case EventKind.GRANTED:
            return f"granted {note.tokens}{f' for {job}' * bool(job)}; balance {note.balance}"
        case Did.ANSWERED if note.text == "429":
            return f"refused by the server; balance {note.balance}"
        case Did.ANSWERED:
            return f"answered, cost {note.tokens}; balance {note.balance}"
        case Did.FAILED:
            return f"no answer ({note.text}); its tokens stay set aside"
        case EventKind.PROBE_CLAIMED:
            return "asks the server for the balance, for all"
        case EventKind.PROBE_FAILED:
            return f"the server did not say: {note.text}"
        case EventKind.REPAIRED:
            return f"mended {note.text}; balance {note.balance}"
        case _:
            return ""
