"""Logs of a run of `make torture`, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from checks.torture import liveness, plan, spending, story
from checks.torture.steps import Finding, story_of
from checks.torture.story import (
    Entry,
    Failed,
    Fault,
    Told,
)
from checks.torture.terms import HELD, HOLD_FOR, KEEPA, PLAIN, QUOTAS, SECOND
from keepa_tokens.rules.commands import Acquire, Command, Reserve

NOW = 1_780_000_000 * SECOND
TENTH = SECOND // 10
PLAIN_QUOTA, HELD_QUOTA, KEEPA_QUOTA = (QUOTAS[bucket] for bucket in (PLAIN, HELD, KEEPA))
LIFETIME = round(HOLD_FOR[HELD] * SECOND)


class Log:
    """A log made by hand: each line is a command, and what its caller was told."""

    def __init__(self, bucket: str = PLAIN) -> None:
        self.bucket = bucket
        self.entries: list[Entry] = []
        self.steps = 0

    def sent(self, at: int, command: Command) -> int:
        """Send a command that nobody is told of, yet."""
        self.steps += 1
        self.entries.append(story.sent("w", at, self.steps, self.bucket, command))
        return self.steps

    def told(self, at: int, command: Command, **outcome: Any) -> Log:
        """Send a command whose outcome is known."""
        told = Told("w", at, self.sent(at, command), granted=isinstance(command, Acquire | Reserve))
        self.entries.append(replace(told, **outcome))
        return self

    def lost(self, at: int, command: Command) -> Log:
        """Send a command of which nobody knows whether it counted."""
        self.entries.append(Failed("w", at + TENTH, self.sent(at, command), "StorageUnavailable"))
        return self

    def add(self, *entries: Entry) -> Log:
        """Add other lines."""
        self.entries += entries
        return self

    def copy(self) -> Log:
        """Return another log that begins alike."""
        other = Log(self.bucket)
        other.entries, other.steps = list(self.entries), self.steps
        return other

    def spending(self) -> list[str]:
        """Return the rules that the spending broke."""
        told = story_of(self.entries)
        found = spending.count(self.bucket, QUOTAS[self.bucket], told).findings
        found += spending.lost_holds(self.bucket, told) + spending.counted_twice(self.bucket, told)
        return rules(found)

    def liveness(self) -> list[str]:
        """Return the bounds that were not kept."""
        found = liveness.watch(self.bucket, QUOTAS[self.bucket], story_of(self.entries))
        return rules(found.findings)


def rules(findings: Sequence[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def wiped(at: int, *buckets: str) -> Fault:
    return Fault("director", at, plan.FLUSH, "", at, buckets)
