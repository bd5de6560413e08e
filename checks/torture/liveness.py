"""Liveness: what a look promised comes true, and everybody goes on after the last fault. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate

from checks.torture.steps import Finding, Step, Story
from checks.torture.story import Broke, Calm, Failed, Fault, Killed, Left, Remains, Sent
from keepa_tokens import Quota
from keepa_tokens.rules.line import LATE_US

FOREVER_US = 10**15
"""A bound beyond this is none."""

ASKS = ("acquire", "reserve")


@dataclass(frozen=True, slots=True)
class Recovery:
    """The first grant or probe of a bucket after a fault. took, bound: microseconds from the end of the fault."""

    kind: str
    bucket: str
    took: int
    bound: int


@dataclass(slots=True)
class Liveness:
    """What came of the check. looks: bounds that were put to the test. kept: those that a grant or a probe kept."""

    findings: list[Finding] = field(default_factory=list[Finding])
    recoveries: list[Recovery] = field(default_factory=list[Recovery])
    looks: int = 0
    kept: int = 0


@dataclass(slots=True)
class _Watch:
    """A bound that a look stated, until it is kept, broken, or void."""

    at: int
    due: int

    @property
    def at_once(self) -> bool:
        """Whether the bucket was open, and the request that the look asked about would have been granted there."""
        return self.due == self.at


def watch(bucket: str, quota: Quota, story: Story) -> Liveness:  # noqa: C901 - a case for each kind of step
    """Hold every bound that a look at a bucket stated against what came after it.

    At the latest the first request for one token at or after the bound is granted, or gets the probe. It is void if
    the state was lost meanwhile, if a command may have counted whose answer was lost, or if the server itself spoke;
    if the look found the bucket open, and then somebody else was refused so much that a recharge began; and if the look
    may not have seen a request that was decided before it: what Python decides is stored a moment after its instant.
    """
    result = Liveness()
    unsure = [(step.sent.at, step.until) for step in story.steps[bucket] if step.lost]
    unseen = _Unseen(story.steps[bucket])
    pending: list[_Watch] = []
    recovery = _Recoveries(bucket, story.of(Fault))
    for at, event in story.history(bucket):
        if event is None:
            pending = []
            continue
        sent, told = event.sent, event.told
        if told is None:
            continue
        if sent.verb in ASKS and (told.granted or told.probe):
            result.kept += len(pending)
            pending = []
            recovery.came(at)
        elif sent.verb in ASKS and sent.tokens == 1 and not sent.keep:
            broken = [bound for bound in pending if bound.due <= at]
            surely = [bound for bound in broken if not any(a <= at and bound.at <= b for a, b in unsure)]
            for bound in surely[:1]:
                text = (
                    f"{bucket}: refused {at - bound.due} us after the bound that a look {at - bound.at} us ago stated"
                )
                result.findings.append(Finding("stand-still", at, text))
            pending = [_behind(quota, sent, bound) for bound in pending if bound not in broken]
        elif sent.verb in ASKS:
            pending = [
                _behind(quota, sent, bound) for bound in pending if quota.recharge_to is None or not bound.at_once
            ]
        elif sent.verb == "peek" and told.bound is not None and told.bound < FOREVER_US:
            recovery.looked(at, at + told.bound)
            if not unseen.by(event):
                result.looks += 1
                pending.append(_Watch(at, at + told.bound))
        elif quota.synced and sent.verb in {"settle", "reconcile"}:
            pending = []
    result.recoveries = recovery.done
    return result


def _behind(quota: Quota, refused: Sent, bound: _Watch) -> _Watch:
    """Return the bound with who was refused in line before whoever only looks: served first, or late a second on."""
    if not refused.ticket:
        return bound
    return replace(bound, due=bound.due + -(-refused.tokens * quota.period_us // quota.refill) + LATE_US)


class _Unseen:
    """Requests that a look may not have seen: decided before it, and not yet answered when it was sent."""

    def __init__(self, steps: Iterable[Step]) -> None:
        asks = [(step.at, step.told.heard) for step in steps if step.told is not None and step.sent.verb in ASKS]
        self._decided = [at for at, _ in asks]
        self._heard = list(accumulate((heard for _, heard in asks), max))

    def by(self, look: Step) -> bool:
        """Return whether there is any. The steps are in order of the instants at which they were decided."""
        before = bisect_right(self._decided, look.at)
        return before > 0 and self._heard[before - 1] >= look.sent.at


class _Recoveries:
    """Takes the time from the end of each fault to the next grant, and what the first look in between stated."""

    def __init__(self, bucket: str, faults: Iterable[Fault]) -> None:
        self.done: list[Recovery] = []
        self._bucket = bucket
        self._faults = sorted(faults, key=lambda fault: fault.until)
        self._due: int | None = None

    def looked(self, at: int, due: int) -> None:
        if self._due is None and self._faults and at >= self._faults[0].until:
            self._due = due

    def came(self, at: int) -> None:
        over = [fault for fault in self._faults if fault.until <= at]
        for fault in over:
            if self._due is not None:
                self.done.append(Recovery(fault.kind, self._bucket, at - fault.until, self._due - fault.until))
        self._faults = [fault for fault in self._faults if fault.until > at]
        self._due = None


def everybody_goes_on(story: Story) -> Iterator[Finding]:
    """Find workers that hung, were not granted anything after the last fault, or did not end; and buckets likewise."""
    last = next((calm.at for calm in story.of(Calm) if calm.last), None)
    if last is None:
        yield Finding("no end", 0, "the log has no end: nothing says when the faults were over")
        return
    for sent in story.unanswered:
        yield Finding("hung", sent.at, f"{sent.who} was never told what became of its {sent.verb} on {sent.bucket}")
    dead = {entry.target for entry in story.of(Killed)}
    left = {entry.who for entry in story.of(Left)}
    asked = {step.sent.who for steps in story.steps.values() for step in steps}
    going = {
        name
        for bucket in story.steps
        for step, told in story.told(bucket)
        if told.granted and step.sent.verb in ASKS and told.at > last
        for name in (step.sent.who, bucket)
    }
    for who in sorted(asked - dead):
        if who not in going:
            yield Finding("no progress", last, f"{who} got nothing after the last fault")
        if who not in left:
            yield Finding("hung", last, f"{who} did not end when it was told to")
    for bucket in sorted(set(story.steps) - going):
        yield Finding("no progress", last, f"{bucket} granted nothing after the last fault")


def nothing_remains(story: Story, capacities: dict[str, int]) -> Iterator[Finding]:
    """Find what is still held when every lifetime is over, and buckets that did not refill."""
    for left in story.of(Remains):
        if left.held or left.holds:
            yield Finding("leak", left.at, f"{left.bucket}: {left.held} tokens held by {left.holds} holds")
        if left.balance != capacities.get(left.bucket, left.balance):
            text = f"{left.bucket}: {left.balance} tokens instead of {capacities[left.bucket]}"
            yield Finding("leak", left.at, text)
    for bucket in sorted(set(capacities) - {left.bucket for left in story.of(Remains)}):
        yield Finding("no end", 0, f"nobody looked at {bucket} in the end")


def only_documented_errors(story: Story) -> Iterator[Finding]:
    """Find errors of the storage that are none of the library's, and whatever a worker could not explain."""
    for failed in story.of(Failed):
        if failed.error not in {"StorageUnavailable", "CancelledError"}:
            yield Finding("error", failed.at, f"{failed.who}: a command raised {failed.error}")
    for broke in story.of(Broke):
        yield Finding("error", broke.at, f"{broke.who}: {broke.error}")
    for bucket in story.steps:
        for step, told in story.told(bucket):
            if told.repaired:
                text = f"{bucket}: {told.repaired} had to be repaired, found {step.sent.who}"
                yield Finding("damage", told.at, text)
