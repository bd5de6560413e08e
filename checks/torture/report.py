"""What came of a run: every check of the log, and a short table of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from checks.torture import liveness, order, server, spending
from checks.torture.liveness import Liveness
from checks.torture.server import Served
from checks.torture.spending import Spending
from checks.torture.steps import Finding, Story
from checks.torture.story import Fault, Killed
from checks.torture.terms import KEEPA, QUOTAS, SECOND

MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Result:
    """All that was found, and the figures for the table."""

    story: Story
    findings: list[Finding]
    spent: dict[str, Spending]
    alive: dict[str, Liveness]
    served: Served


def check(story: Story) -> Result:
    """Hold a log against everything that is promised."""
    spent = {bucket: spending.count(bucket, quota, story) for bucket, quota in QUOTAS.items()}
    alive = {bucket: liveness.watch(bucket, quota, story) for bucket, quota in QUOTAS.items()}
    served = server.audit(story)
    full = {bucket: quota.capacity for bucket, quota in QUOTAS.items() if not quota.synced}
    findings = [*served.findings, *liveness.everybody_goes_on(story), *liveness.only_documented_errors(story)]
    findings += liveness.nothing_remains(story, full)
    for bucket, quota in QUOTAS.items():
        findings += (*spent[bucket].findings, *alive[bucket].findings, *order.kept(bucket, quota, story))
        for rule in (spending.counted_twice, spending.lost_holds, spending.granted_by_nobody):
            findings += rule(bucket, story)
    return Result(story, sorted(findings, key=lambda finding: finding.at), spent, alive, served)


def table(result: Result) -> str:
    """Return the figures of a run, in a few lines."""
    return "\n".join([*_faults(result), "", *_buckets(result), "", *_api(result), "", *_findings(result)])


def _faults(result: Result) -> Iterator[str]:
    kinds = Counter(fault.kind for fault in result.story.of(Fault))
    yield f"{sum(kinds.values())} faults; the longest recovery after each, and the bound that a look stated for it"
    recoveries = [recovery for alive in result.alive.values() for recovery in alive.recoveries]
    for kind, times in kinds.most_common():
        longest = max((each for each in recoveries if each.kind == kind), key=lambda each: each.took, default=None)
        line = f"  {kind:<36}{times:>5} x"
        if longest is not None:
            line += f"{longest.took / SECOND:>9.2f} s of {max(longest.bound, 0) / SECOND:.2f} s ({longest.bucket})"
        yield line


def _buckets(result: Result) -> Iterator[str]:
    yield "  bucket    commands   granted   refused   no answer   least left of what was there      bounds kept"
    for bucket, spent in result.spent.items():
        told = result.story.told(bucket)
        asks = [outcome for step, outcome in told if step.sent.verb in liveness.ASKS]
        steps, alive = result.story.steps[bucket], result.alive[bucket]
        granted, lost = sum(outcome.granted for outcome in asks), sum(step.lost for step in steps)
        yield (
            f"  {bucket:<8}{len(steps):>10}{granted:>10}{len(asks) - granted:>10}{lost:>12}"
            f"{spent.spare if spent.spare is not None else '-':>31}{f'{alive.kept} of {alive.looks}':>17}"
        )


def _api(result: Result) -> Iterator[str]:
    served = result.served
    probes = sum(outcome.probe for _, outcome in result.story.told(KEEPA))
    yield f"the API charged {served.tokens} tokens for {served.charged} calls and refused {served.refused}"
    yield f"  {served.lost} calls were lost, {probes} probes claimed, {len(result.story.of(Killed))} workers killed"


def _findings(result: Result) -> Iterator[str]:
    if not result.findings:
        yield "nothing broke"
        return
    yield f"{len(result.findings)} findings"
    for rule, times in Counter(finding.rule for finding in result.findings).most_common():
        yield f"  {times} x {rule}"
    for finding in result.findings[:MOST_SHOWN]:
        yield f"  {finding.at} {finding.rule}: {finding.text}"
