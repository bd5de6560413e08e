"""Order: a grant passes those who surely stand in line before it only if enough is left for them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from checks.torture.liveness import ASKS
from checks.torture.steps import Finding, Step, Story
from checks.torture.story import Sent
from keepa_tokens import Quota
from keepa_tokens.rules.line import LATE_US

STANDS = frozenset({"EMPTY", "IN_FLIGHT", "RECHARGING", "PAUSED"})
"""Refusals with which one stands in line."""


@dataclass(frozen=True, slots=True)
class _Stands:
    """Who surely stands in line. since: the first refusal. late_at: from then on others may pass."""

    tokens: int
    keep: int
    since: int
    late_at: int


def kept(bucket: str, quota: Quota, story: Story) -> Iterator[Finding]:
    """Hold every grant against rule 11: what it left is enough for the tickets that were surely before it."""
    first_sent = _first_sent(story.steps[bucket])
    line: dict[str, _Stands] = {}
    unsure: set[str] = set()
    for at, step in story.history(bucket):
        if step is None:
            line.clear()
            continue
        sent, told = step.sent, step.told
        if told is None:
            unsure.add(sent.id)
        elif sent.verb in ASKS and told.granted and told.balance is not None and not told.probe:
            ahead = sum(each.tokens for each in line.values() if _is_before(each, sent, at, first_sent))
            left = told.balance - (told.held if quota.synced else 0)
            # Sent again after a lost answer, it may have been granted before the others came.
            if ahead > max(left, 0) and not (sent.verb == "reserve" and sent.id in unsure):
                text = (
                    f"{bucket}: {sent.who} was granted {sent.tokens} (step {sent.step}); {left} were left for {ahead}"
                )
                yield Finding("passed in line", at, text)
        _note(line, step)


def _note(line: dict[str, _Stands], step: Step) -> None:
    """Keep who stands in line. After a lost command nobody knows."""
    sent, told = step.sent, step.told
    before = line.pop(sent.ticket or sent.id, None)
    if told is None or not sent.ticket or sent.verb not in ASKS or told.granted or told.reason not in STANDS:
        return
    stands = _Stands(sent.tokens, sent.keep, told.at, told.at + told.retry_after + LATE_US)
    line[sent.ticket] = stands if before is None else replace(stands, since=before.since)


def _is_before(each: _Stands, sent: Sent, at: int, first_sent: dict[str, int]) -> bool:
    if each.late_at < at or each.keep > sent.keep:
        return False
    return each.keep < sent.keep or each.since < first_sent.get(sent.ticket, at)


def _first_sent(steps: Iterable[Step]) -> dict[str, int]:
    """Return when each ticket was sent first: it stands in line from then on at the earliest."""
    first: dict[str, int] = {}
    for step in steps:
        if step.sent.ticket:
            first[step.sent.ticket] = min(step.sent.at, first.get(step.sent.ticket, step.sent.at))
    return first
