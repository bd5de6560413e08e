"""Logs of a run of `make torture`, made by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from checks.torture import liveness, plan, spending, story
from checks.torture.steps import Finding, story_of
from checks.torture.story import Entry, Failed, Fault, Told
from checks.torture.terms import HELD, HOLD_FOR, PLAIN, QUOTAS, SECOND
from keepa_tokens.rules.commands import Acquire, Command, Reserve
from tests.stories import command, fields, number, steps, stories

NOW = 1_780_000_000 * SECOND
TENTH = SECOND // 10
LIFETIME = round(HOLD_FOR[HELD] * SECOND)


class Log:
    """A log made by hand: each line is a command, and what its caller was told."""

    def __init__(self, bucket: str = PLAIN) -> None:
        self.bucket = bucket
        self.entries: list[Entry] = []
        self.steps = 0

    def sent(self, at: int, sending: Command) -> int:
        """Send a command that nobody is told of, yet."""
        self.steps += 1
        self.entries.append(story.sent("w", at, self.steps, self.bucket, sending))
        return self.steps

    def tell(self, text: str) -> Log:
        """Add what is told as in `tests/stories.py`, from NOW on. After `->` stands what the caller was told.

        lost: he wasn't told; sent: when the command was, if earlier. `wiped 1s` is a loss at some moment of a second.
        """
        for after, what, comes in steps(text):
            at, told = NOW + after, fields(comes, NOW)
            if what.startswith("wiped"):
                self.add(wiped(at, self.bucket, lasts=number(what.removeprefix("wiped").strip())))
            elif told.pop("lost", False):
                self.lost(at, command(what, NOW))
            else:
                self.told(at, command(what, NOW), **told)
        return self

    def told(self, at: int, sending: Command, sent: int | None = None, **outcome: Any) -> Log:
        step = self.sent(at if sent is None else sent, sending)
        told = Told("w", at, step, granted=isinstance(sending, Acquire | Reserve))
        self.entries.append(replace(told, **outcome))
        return self

    def lost(self, at: int, sending: Command) -> Log:
        """Send a command of which nobody knows whether it counted."""
        self.entries.append(Failed("w", at + TENTH, self.sent(at, sending), "StorageUnavailable"))
        return self

    def add(self, *entries: Entry) -> Log:
        self.entries += entries
        return self

    def spending(self) -> list[str]:
        told = story_of(self.entries)
        found = spending.count(self.bucket, QUOTAS[self.bucket], told).findings
        return rules([*found, *spending.lost_holds(self.bucket, told), *spending.counted_twice(self.bucket, told)])

    def liveness(self) -> list[str]:
        found = liveness.watch(self.bucket, QUOTAS[self.bucket], story_of(self.entries))
        return rules(found.findings)


def rules(findings: Iterable[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def wiped(at: int, *buckets: str, lasts: int = 0) -> Fault:
    return Fault("director", at, plan.FLUSH, "", at + lasts, buckets)


def each_log(text: str) -> pytest.MarkDecorator:
    """Return what gives a test each log that is told in a text, and the rules that are broken there.

    The first line of each has a title, the bucket, and the rule; where none is broken, `nothing`.
    """
    told = []
    for title, tale in stories(text, {}):
        bucket, _, rule = tale.bucket.partition(" ")
        found = [] if rule == "nothing" else [rule]
        told.append(pytest.param(Log(bucket).tell(tale.text), found, id=f"{title}: {rule}"))
    return pytest.mark.parametrize("log, found", told)
