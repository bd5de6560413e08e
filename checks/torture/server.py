"""The API's side: its own ledger against what the workers logged. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from checks.torture.steps import Finding, Story
from checks.torture.story import Answered, Asked, Charged, Failed, Fault, Killed, Total
from checks.torture.terms import CALL_WITHIN, HOLD_FOR, KEEPA, SECOND

DISTURBED_US = round((HOLD_FOR[KEEPA] + CALL_WITHIN + 1.0) * SECOND)
"""How long a disturbance may show: until the holds of that time are over, the calls in flight, and a refill."""


@dataclass(slots=True)
class Served:
    """What came of the check, and how many calls were charged, refused, and lost on their way."""

    findings: list[Finding]
    charged: int
    refused: int
    lost: int
    tokens: int


def audit(story: Story) -> Served:
    """Hold the API's ledger against the workers' logs, call by call."""
    tokens = sum(entry.cost for entry in story.of(Charged))
    findings = [*_calls(story), *_answers(story), *_refusals(story)]
    for total in story.of(Total):
        if total.spent != tokens:
            text = f"the API's calls cost {tokens} tokens, its books say {total.spent}"
            findings.append(Finding("ledger", total.at, text))
    return Served(
        findings,
        charged=sum(entry.cost > 0 for entry in story.of(Charged)),
        refused=sum(entry.refused for entry in story.of(Charged)),
        lost=len(story.of(Asked)) - len(story.of(Answered)),
        tokens=tokens,
    )


def _calls(story: Story) -> Iterator[Finding]:
    """Find calls that were made without a grant, and those that were served twice or to nobody."""
    granted = {step.sent.id: told.at for step, told in story.told(KEEPA) if told.granted}
    asked = {entry.id for entry in story.of(Asked)}
    for call in story.of(Asked):
        if granted.get(call.id, call.at + 1) > call.at:
            yield Finding("ledger", call.at, f"{call.who} made the call {call.id} without a grant")
    times = Counter(entry.id for entry in story.of(Charged))
    for entry in story.of(Charged):
        if entry.id not in asked:
            yield Finding("ledger", entry.at, f"the API served the call {entry.id}, which nobody made")
        elif times[entry.id] > 1:
            yield Finding("ledger", entry.at, f"the API served the call {entry.id} {times[entry.id]} times")


def _answers(story: Story) -> Iterator[Finding]:
    """Find answers that the API did not give, and costs that were not its costs."""
    served = {entry.id: entry for entry in story.of(Charged)}
    for answer in story.of(Answered):
        truth = served.get(answer.id)
        if truth is None:
            yield Finding(
                "ledger", answer.at, f"the API never served the call {answer.id}, but {answer.who} was answered"
            )
        elif answer.consumed is not None and answer.consumed != truth.cost:
            text = f"the call {answer.id} cost {truth.cost}, {answer.who} was told {answer.consumed}"
            yield Finding("ledger", answer.at, text)


def _refusals(story: Story) -> Iterator[Finding]:
    """Find refused calls that nothing explains."""
    disturbed = disturbances(story)
    for entry in story.of(Charged):
        if entry.refused and not any(begin <= entry.at <= end + DISTURBED_US for begin, end in disturbed):
            yield Finding("refused", entry.at, f"the API refused the call {entry.id} with nothing to explain it")


def disturbances(story: Story) -> list[tuple[int, int]]:
    """Return from when to when something was wrong: faults, calls lost, failed or costlier than estimated."""
    estimates = {entry.id: entry.estimate for entry in story.of(Asked)}
    answered = {entry.id for entry in story.of(Answered)}
    return [
        *((fault.at, fault.until) for fault in story.of(Fault)),
        *((entry.at, entry.at) for entry in story.of(Killed)),
        *((entry.at, entry.at) for entry in story.of(Failed)),
        *((call.at, call.at + round(CALL_WITHIN * SECOND)) for call in story.of(Asked) if call.id not in answered),
        *(
            (entry.at, entry.at)
            for entry in story.of(Charged)
            if entry.fault or entry.cost > estimates.get(entry.id, entry.cost)
        ),
    ]
