"""Safety: no grant beyond what the promise allows, each command counted once, no hold lost. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias

from checks.torture.ledger import Ledger
from checks.torture.steps import FREEZE, Finding, Step, Story
from checks.torture.story import Fault, Told
from checks.torture.terms import QUOTAS, SECOND
from keepa_tokens import Quota

CLAIM_US: Final = 20 * SECOND
"""The end of the first claim on a probe: from then on a balance that nobody knows counts as 0."""

STOPS_US: Final = SECOND // 20
"""How long a server may take to stand still."""

NEVER: Final = 2**62

Act: TypeAlias = Callable[[Ledger], int | None]
"""What a moment does to the ledger. Of a grant it returns by how many tokens it stayed within what was there."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that counts at an instant; what gives counts before what takes. text: for a finding."""

    at: int
    rank: int
    act: Act
    text: str = ""


@dataclass(slots=True)
class Spending:
    """What came of the count. spare: the fewest tokens that a grant left of what was allowed; None: no grant."""

    findings: list[Finding] = field(default_factory=list[Finding])
    granted: int = 0
    spare: int | None = None


def count(bucket: str, quota: Quota, story: Story) -> Spending:
    """Count every grant of a bucket against what was there."""
    steps, losses = story.steps[bucket], story.losses(bucket)
    result = Spending()
    if not steps:
        return result
    start = min(step.sent.at for step in steps)
    moments = [*_births(losses, steps), *_moments(quota, steps, losses)]
    ledger = Ledger(quota, start, starts_at=start + CLAIM_US)
    ledger.restart()
    for moment in sorted(moments, key=lambda moment: (moment.at, moment.rank)):
        ledger.advance(moment.at)
        spare = moment.act(ledger)
        if spare is None:
            continue
        result.granted += 1
        result.spare = spare if result.spare is None else min(result.spare, spare)
        if spare < 0:
            text = f"{bucket}: {moment.text}, {-spare} more than were there"
            result.findings.append(Finding("over-grant", moment.at, text))
    return result


def _births(losses: Sequence[tuple[int, int]], steps: Sequence[Step]) -> Iterator[Moment]:
    """Yield the beginnings of the bucket's lives: a state that is lost, at some moment of a span, is a new one."""
    for begin, end in losses:
        # The first command of the new life claims the probe. A restart is logged as over some time after its beginning,
        # and the new server may have carried out that command by then.
        carried_out = (max(begin, step.at) for step in steps if max(step.at, step.until) >= begin)
        first = min(carried_out, default=end)

        def maybe(ledger: Ledger, begin: int = begin) -> None:
            ledger.lost_since = begin

        def surely(ledger: Ledger, begin: int = begin, first: int = first) -> None:
            ledger.lose(begin, first + CLAIM_US)

        yield Moment(begin, 0, maybe)
        yield Moment(end, 0, surely)


def _moments(quota: Quota, steps: Sequence[Step], losses: Sequence[tuple[int, int]]) -> Iterator[Moment]:
    reserved, ended, refunded = (by_id(steps, *verbs) for verbs in (("reserve",), ("settle", "cancel"), ("refund",)))
    for step in steps:
        if step.told is not None and step.told.granted and step.sent.verb == "acquire":
            yield _grant(quota, step, step.told)
    for group in reserved.values():
        yield from _reserve(quota, group, losses)
    for name, group in ended.items():
        tokens = reserved[name][0].sent.tokens if name in reserved else 0
        yield from _end(name, tokens, group)
    for group in refunded.values():
        yield from _refund(group, losses)
    for step in steps:
        yield from _reading(step)


def by_id(steps: Sequence[Step], *verbs: str) -> dict[str, list[Step]]:
    """Return the steps of some verbs by the id that they carry, each in order of time."""
    groups: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        if step.sent.verb in verbs:
            groups[step.sent.id].append(step)
    return groups


def _grant(quota: Quota, step: Step, told: Told) -> Moment:
    sent = step.sent

    def act(ledger: Ledger) -> int | None:
        # A scout is let through to learn the balance: nothing is counted of what was there.
        spare = None if told.probe else _spare(ledger, quota, step, told)
        if spare is not None and spare < 0 and ledger.lost_since is not None:
            # In the span of a loss: what was there can't have brought it, so it is gone by now.
            ledger.lose(ledger.lost_since)
            spare = _spare(ledger, quota, step, told)
        if sent.verb == "acquire":
            ledger.take(sent.tokens)
        else:
            ledger.open(sent.id, sent.tokens, told.at + told.place + sent.hold_for)
        return spare

    return Moment(told.at, 1, act, f"{sent.who} was granted {sent.tokens} in {told.place} us (step {sent.step})")


def _spare(ledger: Ledger, quota: Quota, step: Step, told: Told) -> int:
    ahead = ledger
    if told.place:
        ahead = ledger.copy()
        ahead.allowed = [(NEVER, tokens) for _, tokens in ledger.allowed]
        ahead.advance(told.at + told.place)
    return ahead.room() - step.sent.keep - max(1, step.sent.tokens - quota.overdraft)


def _reserve(quota: Quota, group: Sequence[Step], losses: Sequence[tuple[int, int]]) -> Iterator[Moment]:
    granted = next(((step, step.told) for step in group if step.told is not None and step.told.granted), None)
    if granted is None:
        return  # nobody was told of a grant; if there was one, it only takes
    step, told = granted
    # What was opened before a loss went with it.
    born = max((begin for begin, end in losses if end <= told.at), default=0)
    sendings = (max(born, other.sent.at) for other in group if other.lost and other.until >= born)
    earliest = min((at for at in sendings if at < told.at), default=None)
    if earliest is None:
        yield _grant(quota, step, told)
        return
    sent = step.sent

    def open_early(ledger: Ledger) -> None:
        ledger.allow(told.at, sent.tokens)
        ledger.open(sent.id, sent.tokens, earliest + sent.hold_for)

    yield Moment(earliest, 1, open_early)
    yield Moment(told.at, 1, lambda ledger: ledger.see(sent.id))


def _end(name: str, tokens: int, group: Sequence[Step]) -> Iterator[Moment]:
    found = next((step for step in group if step.told is not None and step.told.found), None)
    if found is not None:
        yield Moment(found.at, 0, lambda ledger: ledger.end(name, _cost(found, tokens)))
        return
    lost = [step for step in group if step.lost]
    if lost:
        # It may have counted, at any moment: its tokens may be there from now on.
        told = [step.at for step in group if not step.lost and step.at > lost[0].at]
        until = min(told, default=max(step.until for step in lost))
        yield Moment(lost[0].at, 0, lambda ledger: ledger.allow(until, tokens))
        yield Moment(until, 0, lambda ledger: ledger.end(name, 0))


def _cost(step: Step, tokens: int) -> int:
    if step.sent.verb == "cancel" or step.sent.reading is not None:
        return 0  # a reading that is taken replaces the balance anyway; one that is stale may show that it had the cost
    return tokens if step.sent.tokens < 0 else step.sent.tokens


def _refund(group: Sequence[Step], losses: Sequence[tuple[int, int]]) -> Iterator[Moment]:
    """Give for each time that it counted: once in each life of the bucket, for a loss takes the memory of it along."""
    tokens = group[0].sent.tokens
    found = [step.at for step in group if step.told is not None and step.told.found]
    for at in found:
        yield Moment(at, 0, lambda ledger: ledger.give(tokens))
    lives = {_life(at, losses) for at in found if not any(begin <= at <= end for begin, end in losses)}
    may_count = (step for step in group if step.lost)
    lost = [step for step in may_count if set(range(_life(step.at, losses), _life(step.until, losses) + 1)) - lives]
    if lost:
        until = max(step.until for step in lost)
        yield Moment(lost[0].at, 0, lambda ledger: ledger.allow(until, tokens))
        yield Moment(until, 0, lambda ledger: ledger.give(tokens))


def _life(at: int, losses: Sequence[tuple[int, int]]) -> int:
    """Return which life of the bucket it is in at an instant."""
    return sum(end <= at for _, end in losses)


def _reading(step: Step) -> Iterator[Moment]:
    balance, next_refill_in = step.sent.reading, step.sent.next_refill_in
    if balance is None:
        return
    if step.lost:
        yield Moment(step.at, 0, lambda ledger: ledger.may_adopt(balance, step.until))
        yield Moment(step.until, 0, lambda _: None)  # its last moment counts too
    elif step.told is not None and step.told.taken:
        # After the end of the hold whose settle brought it.
        server_time = step.sent.server_time or 0
        yield Moment(step.at, 1, lambda ledger: ledger.adopt(balance, next_refill_in, server_time))


def counted_twice(bucket: str, story: Story) -> Iterator[Finding]:
    """Find ids that ended a hold or refunded more than once in one life of the bucket."""
    steps, losses = story.steps[bucket], story.losses(bucket)
    # A reserve that nobody was told of may open its hold again after it has ended.
    unsure = {step.sent.id for step in steps if step.lost and step.sent.verb == "reserve"}
    for verbs in (("settle", "cancel"), ("refund",)):
        for name, group in by_id(steps, *verbs).items():
            times = [step.at for step in group if step.told is not None and step.told.found]
            again = [at for before, at in pairwise(times) if not any(a <= at and before <= b for a, b in losses)]
            if again and name not in unsure:
                text = f"{bucket}: {group[0].sent.verb} of {name} counted {len(times)} times"
                yield Finding("counted twice", again[0], text)


def granted_by_nobody(bucket: str, story: Story) -> Iterator[Finding]:
    """Find grants at moments at which the server was frozen: whoever made them, it was not the server."""
    frozen = [(fault.at + STOPS_US, fault.until - STOPS_US) for fault in story.of(Fault) if fault.kind == FREEZE]
    for step, told in story.told(bucket):
        if told.granted and any(begin < told.at < end for begin, end in frozen):
            yield Finding("granted by nobody", told.at, f"{bucket}: {step.sent.who} was granted {step.sent.tokens}")


def lost_holds(bucket: str, story: Story) -> Iterator[Finding]:
    """Find holds that were gone when they were to be ended, in their lifetime and with nothing that ended them."""
    steps, losses = story.steps[bucket], story.losses(bucket)
    ended = by_id(steps, "settle", "cancel")
    for name, group in by_id(steps, "reserve").items():
        granted = [(step, step.told) for step in group if step.told is not None and step.told.granted]
        ends = ended.get(name, [])
        if not granted or not ends or ends[0].told is None or ends[0].told.found:
            continue
        step, told = granted[0]
        at = ends[0].told.at
        # A synced one is remembered for as long as it lived. Where an answer was lost it may be older than the last.
        opened = min((other.sent.at for other in group if other.lost), default=told.at + told.place)
        forgotten = opened + step.sent.hold_for * (2 if QUOTAS[bucket].synced else 1)
        wiped = any(begin <= at and end >= group[0].sent.at for begin, end in losses)
        if at < forgotten and not wiped:
            text = f"{bucket}: the hold {name} of {step.sent.tokens}, granted to {step.sent.who}, was gone"
            yield Finding("lost hold", at, text)
