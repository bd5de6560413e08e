"""How `KeepaSync` uses a bucket, written once for threads and coroutines; see `keepa_tokens._plans`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from .._plans import Grant, Patience, Steps, granted, pause, snapshot_of, ticket_for
from ..errors import AcquireTimeout, ConfigError
from ..events import EventKind
from ..quota import Quota
from ..rules.commands import Cancel, ClaimProbe, Command, Outcome, Peek, Reconcile, Reserve, Settle, Unclaim
from ..rules.decision import Reason, Snapshot
from ..units import LIMIT, MICROSECONDS
from .backoff import SERVER_REFUSES, Refusals
from .reading import REFUSED, Body, Envelope

__all__ = ["SERVER_REFUSED", "Answer", "KeepaSteps", "Request", "observe", "refresh", "request", "settle"]

SERVER_REFUSED: Final = "the server refused the call (429)"
"""Why a call was settled at nothing, as the event of it says."""

WITHHELD: Final = frozenset({400, 401, 402, 403, 404, 405})
"""Statuses with which a server that works refuses the question itself: a wrong key, or `/token` out of reach."""


LONGEST_PROBE_US: Final = 10 * MICROSECONDS
"""How long a probe may take: shorter than its claim (20 s), so that nobody else is sent while it is still out."""

SHORTEST_PROBE_US: Final = MICROSECONDS // 2
"""Who has less time than this doesn't probe."""


class Probed(Enum):
    """What came of a probe."""

    TOLD = auto()
    FAILED = auto()
    WITHHELD = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe brought: a status and a body, or why it failed."""

    status: int | None
    body: Mapping[str, object] | None
    why: str = ""


class KeepaSteps(Steps, Protocol):
    """What a plan of this module may do beside the steps of a bucket."""

    claimed: int | None

    async def finish(self, command: Command) -> Outcome:
        """Carry out a command that counts once however often it is sent; interrupted in it, let it end."""
        ...

    async def probe(self, limit_us: int) -> Answer:
        """Ask the server for its balance; a probe that takes a `timeout` is given `limit_us`."""
        ...

    async def envelope(self, body: Body) -> Envelope:
        """Return what a body says, without holding up others for long."""
        ...

    def say(self, kind: EventKind, why: str) -> None:
        """Tell the listener of something that no command brought about."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What a call needs: `tokens` as estimated, `keep` for others, a hold of `hold_for_us` under `id`.

    probe_after_us: how old a reading may be before a refusal asks for a new one. scout: there is no probe, so a request
    with the claim goes ahead: a refusal is free, and either answer carries the truth. waits: it stands in line while it
    waits. place: it stands there under this id, of a task that comes back. label: whose call it is, for people.
    """

    id: str
    tokens: int
    keep: int
    hold_for_us: int
    probe_after_us: int
    scout: bool
    waits: bool
    place: str | None = None
    label: str = ""

    def command(self, left_us: int) -> Reserve:
        """Return the command that asks for the hold.

        Who has no time for a probe goes ahead as the scout: callers who all have none would else never learn anything.
        """
        return Reserve(
            self.id,
            self.tokens,
            self.hold_for_us,
            self.keep,
            probe_after_us=self.probe_after_us,
            scout=self.scout or left_us < SHORTEST_PROBE_US,
            label=self.label,
            ticket=self.place or (ticket_for(self.id, left_us) if self.waits else None),
        )


async def request(steps: KeepaSteps, quota: Quota, wanted: Request, patience: Patience) -> Grant:
    """Set the estimate aside, waiting for it. Probes on the way if told to."""
    slept = 0
    while True:
        command = wanted.command(patience.left_us())
        outcome = await _ask(steps, command, patience.left_us())
        if outcome.granted:
            steps.went(wanted.tokens, slept)
            return Grant(wanted.id, wanted.tokens, outcome.decision(slept), outcome.claimed_until_us, wanted.label)
        slept += await pause(steps, quota, outcome, command, patience.left_us())


async def try_request(steps: KeepaSteps, wanted: Request) -> Grant:
    """Set the estimate aside now, after a probe at most, or raise NotEnoughTokens."""
    command = wanted.command(LIMIT)
    return granted(command, await _ask(steps, command, LIMIT))


async def before_next(
    steps: KeepaSteps,
    refusals: Refusals,
    tokens: int,
    keep: int,
    left_us: int,
    *,
    told: bool,
    retry_after: float | None = None,
) -> bool:
    """Wait after a call that the server refused, where the bucket alone would not; False: make no other.

    told: the refusal brought a reading, so that the bucket knows. retry_after: what the server asked for. Raises
    AcquireTimeout where that would be longer than `left_us`.
    """
    seen = snapshot_of(await steps.apply(Peek(tokens, keep)))
    wait = seen.retry_after if told and retry_after is None else 0.0
    reason = Reason.EMPTY if wait else SERVER_REFUSES
    seconds = refusals.pause(wait, retry_after=retry_after)
    if seconds is None:
        return False
    pause_us = round(seconds * MICROSECONDS)
    if pause_us > left_us:
        raise AcquireTimeout(tokens, max(seconds, seen.retry_after), reason, seen.balance)
    if pause_us:
        spread_us = pause_us // 2 if retry_after is None else MICROSECONDS
        await steps.sleep(pause_us, min(spread_us, left_us - pause_us), reason, alert=False)
    return True


async def cancel(steps: KeepaSteps, hold_id: str, claimed: int | None) -> None:
    """End a call that was never sent; a scout's claim on the probe is free again too."""
    await steps.finish(Cancel(hold_id))
    if claimed is not None:
        await steps.finish(Unclaim(claimed))


async def settle(steps: KeepaSteps, hold: Grant, body: Body, status: int | None) -> Envelope:
    """End a call's hold by its answer and return what that said; consumed: what it cost, None where nobody knows.

    Without an answer the hold is left to run out: charged or not, nobody knows.
    """
    if body is None and status != REFUSED:
        return Envelope(None)
    said = Envelope(None) if body is None else await steps.envelope(body)
    if said.reading is None and body is not None:
        steps.say(EventKind.READING_BAD, said.why)
    refused = status == REFUSED
    consumed = 0 if refused else said.consumed
    cost = hold.tokens if consumed is None else consumed
    found = (await steps.finish(Settle(hold.id, cost, said.reading, refused=refused, label=hold.label))).found
    if refused and found:
        # The bucket's own event of a settle doesn't know why.
        steps.say(EventKind.SETTLED, SERVER_REFUSED)
    return replace(said, consumed=consumed)


async def observe(steps: KeepaSteps, body: Body, status: int) -> None:
    """Take an envelope seen elsewhere, if it is fresh. A refusal is no different: it carries the true balance."""
    said = await steps.envelope(body)
    if said.reading is None:
        steps.say(EventKind.READING_BAD, f"status {status}: {said.why}")
        return
    await steps.finish(Reconcile(said.reading))


async def refresh(steps: KeepaSteps) -> Snapshot:
    """Probe now, unless somebody is at it, and return the bucket."""
    if (await steps.apply(ClaimProbe())).probe:
        await _probe(steps, LIMIT)
    return snapshot_of(await steps.apply(Peek()))


def checked_synced(quota: Quota) -> Quota:
    """Return `quota` if its bucket follows a server; ConfigError else."""
    if not quota.synced:
        raise ConfigError(
            "KeepaSync needs a bucket that follows the server: make its quota with keepa_quota(), or with synced=True"
        )
    return quota


async def _ask(steps: KeepaSteps, command: Reserve, left_us: int) -> Outcome:
    """Ask for the hold; if that brings the claim on the probe, probe and ask once more.

    Where the server refuses the probe, the request goes ahead in its place, as the scout does where there is no probe:
    so its own answer tells the caller at once what is wrong. It has no hold, as nothing is known that it could be held
    from, and the claim keeps everybody else back meanwhile.
    """
    outcome = await steps.apply(command)
    if outcome.granted or not outcome.probe:
        return outcome
    match await _probe(steps, left_us):
        case Probed.TOLD:
            return await steps.apply(command)
        case Probed.WITHHELD:
            return replace(outcome, granted=True, scout=True, reason=Reason.GRANTED, retry_after_us=0)
        case Probed.FAILED:
            return outcome


async def _probe(steps: KeepaSteps, left_us: int) -> Probed:
    """Ask the server and return what came of it. A failure needs no note: the claim runs out."""
    limit_us, begun = min(left_us, LONGEST_PROBE_US), steps.elapsed_us()
    answer = await steps.probe(limit_us)
    # However it ended, it was a probe: a claim is given back only where none was made.
    claimed, steps.claimed = steps.claimed, None
    if answer.why:
        steps.say(EventKind.PROBE_FAILED, answer.why)
        if claimed is not None and limit_us < LONGEST_PROBE_US and steps.elapsed_us() - begun >= limit_us:
            # Its caller had too little time: that says nothing of the server.
            await steps.apply(Unclaim(claimed))
        return Probed.FAILED
    said = await steps.envelope(answer.body)
    if said.reading is None:
        steps.say(EventKind.PROBE_FAILED, f"status {answer.status}: {said.why}")
        return Probed.WITHHELD if answer.status in WITHHELD else Probed.FAILED
    await steps.finish(Reconcile(said.reading))
    return Probed.TOLD
