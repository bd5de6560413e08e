"""The log, put together: each command with what became of it, and what disturbed it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from checks.torture.story import Entry, Failed, Fault, Killed, Sent, Told
from checks.torture.terms import SECOND

E = TypeVar("E", bound=Entry)

FREEZE = "freeze the server"
"""The fault that lets commands lie in the server's socket after their callers gave up."""

MARGIN_US = 2_000
"""By how much the time of a step may lie beside the time at which it was carried out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that breaks the promise."""

    rule: str
    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """A command. told: what became of it; None: nobody knows. until: then, the last moment at which it may count."""

    sent: Sent
    told: Told | None
    until: int

    @property
    def at(self) -> int:
        """When it counted, if that is known; else when it was sent."""
        return self.sent.at if self.told is None else self.told.at

    @property
    def lost(self) -> bool:
        """Whether nobody knows if it counted."""
        return self.told is None


@dataclass(slots=True)
class Story:
    """All that was logged in a run, in order of time."""

    steps: dict[str, list[Step]] = field(default_factory=lambda: defaultdict[str, list[Step]](list))
    unanswered: list[Sent] = field(default_factory=list[Sent])
    others: dict[type[Entry], list[Any]] = field(default_factory=lambda: defaultdict[type[Entry], list[Any]](list))

    def of(self, kind: type[E]) -> list[E]:
        """Return all entries of a kind other than commands and what became of them."""
        return self.others[kind]

    def losses(self, bucket: str) -> list[tuple[int, int]]:
        """Return when the bucket's state was lost: between two instants each time, in order."""
        return [(fault.at - MARGIN_US, fault.until + MARGIN_US) for fault in self.of(Fault) if bucket in fault.lost]

    def history(self, bucket: str) -> list[tuple[int, Step | None]]:
        """Return the steps on a bucket, and None where its state may have been lost, in order of time."""
        losses = [(at, None) for span in self.losses(bucket) for at in span]
        return sorted([*((step.at, step) for step in self.steps[bucket]), *losses], key=lambda item: item[0])

    def told(self, bucket: str) -> list[tuple[Step, Told]]:
        """Return the steps on a bucket of which it is known what became of them, in their order."""
        return [(step, step.told) for step in self.steps[bucket] if step.told is not None]


def story_of(entries: Iterable[Entry]) -> Story:
    """Put the entries of all processes together."""
    story = Story()
    sent: list[Sent] = []
    told: dict[tuple[str, int], Told] = {}
    for entry in entries:
        if isinstance(entry, Sent):
            sent.append(entry)
        elif isinstance(entry, Told):
            told[entry.who, entry.step] = entry
        else:
            story.others[type(entry)].append(entry)
    for others in story.others.values():
        others.sort(key=lambda entry: entry.at)
    _join(story, sent, told)
    return story


def _join(story: Story, sent: list[Sent], told: dict[tuple[str, int], Told]) -> None:
    gave_up = {(entry.who, entry.step): entry.at for entry in story.of(Failed)}
    died = {entry.target: entry.at for entry in story.of(Killed)}
    freezes = [fault for fault in story.of(Fault) if fault.kind == FREEZE]
    for command in sent:
        key = command.who, command.step
        outcome = told.get(key)
        over_at = gave_up.get(key, died.get(command.who))
        if outcome is None and over_at is None:
            story.unanswered.append(command)
            continue
        until = 0 if over_at is None else lurks_until(command.at, over_at, freezes)
        story.steps[command.bucket].append(Step(command, outcome, until))
    for steps in story.steps.values():
        steps.sort(key=lambda step: step.at)


def lurks_until(sent_at: int, over_at: int, freezes: Sequence[Fault]) -> int:
    """Return the last moment at which a command may be carried out whose caller gave up at `over_at`.

    It may lie in the socket of a frozen server until that goes on. The proxy drops what its client doesn't wait for.
    """
    until = over_at + SECOND
    for freeze in freezes:
        if freeze.at <= until and freeze.until >= sent_at:
            until = max(until, freeze.until + SECOND)
    return until
