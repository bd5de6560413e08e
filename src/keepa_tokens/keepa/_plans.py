"""How `KeepaSync` uses a bucket, written once for threads and coroutines; see `keepa_tokens._plans`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from enum import Enum, auto
from typing import Final, Generic, Protocol, TypeVar

from .._door import Door
from .._plans import Grant, Patience, Steps, granted, pause, snapshot_of, ticket_for
from ..errors import AcquireTimeout, ConfigError
from ..events import EventKind
from ..rules.commands import Cancel, ClaimProbe, Command, Outcome, Peek, Reconcile, Reserve, Settle, Unclaim
from ..rules.decision import Reason, Snapshot
from ..units import LIMIT, MICROSECONDS
from ._asking import ask
from .backoff import SERVER_REFUSES, Refusals
from .reading import REFUSED, Body, Envelope, envelope_of, unpacked

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


class KeepaSteps(Steps, Protocol):
    """What a plan of this module needs beside the steps of a bucket. waits: it is for threads."""

    claimed: int | None
    waits: bool

    @property
    def door(self) -> Door[object]:
        """The bucket's."""
        ...

    @property
    def ask(self) -> Callable[..., object] | None:
        """What asks the server for its balance."""
        ...

    async def finish(self, command: Command) -> Outcome:
        """Carry out a command that counts once however often it is sent; interrupted in it, let it end."""
        ...

    async def turn(self) -> None:
        """Let others have their turn, within a long computation."""
        ...


class _Call(Protocol):
    @property
    def told(self) -> bool: ...
    @property
    def retry_after(self) -> float | None: ...


C = TypeVar("C")
Called = TypeVar("Called", bound=_Call)


async def request(steps: KeepaSteps, wanted: Reserve, timeout_us: int | None, call: Callable[[Grant], C]) -> C:
    """Set the estimate aside, waiting for it in line, and return the call. Probes on the way if told to."""
    patience, slept = Patience(steps, timeout_us), 0
    while True:
        left_us = patience.left_us()
        # Who has no time for a probe goes ahead as the scout: if all have none, they would else never learn.
        scouts = wanted.scout or left_us < SHORTEST_PROBE_US
        command = replace(wanted, scout=scouts, ticket=wanted.ticket or ticket_for(wanted.id, left_us))
        outcome = await _ask(steps, command, left_us)
        if outcome.granted:
            steps.went(wanted.tokens, slept)
            grant = granted(command, outcome)
            return call(replace(grant, decision=outcome.decision(slept)))
        slept += await pause(steps, steps.door.quota, outcome, command, patience.left_us())


async def try_request(steps: KeepaSteps, wanted: Reserve, call: Callable[[Grant], C]) -> C:
    """Set the estimate aside now, after a probe at most, or raise NotEnoughTokens."""
    return call(granted(wanted, await _ask(steps, wanted, LIMIT)))


class Attempts(Generic[Called]):
    """Calls that the server refuses, one after the other. ask: sets tokens aside within so many microseconds.

    The time that the caller takes in between counts for no timeout.
    """

    def __init__(
        self,
        tokens: int,
        keep: int,
        timeout_us: int | None,
        ask: Callable[[KeepaSteps, int | None], Awaitable[Called]],
    ) -> None:
        self._tokens, self._keep, self._left_us, self._ask = tokens, keep, timeout_us, ask
        self._refusals = Refusals()
        self._refused: Called | None = None

    async def next(self, steps: KeepaSteps) -> Called | None:
        """Return the next call, its estimate set aside; None: make no other, the last answer stands.

        Where the storage is away it may be called again, and goes on where it was.
        """
        patience = Patience(steps, self._left_us)
        if self._refused is not None and not await self._goes_on(steps, self._refused, patience.left_us()):
            return None
        self._refused = None
        call = await self._ask(steps, None if self._left_us is None else max(0, patience.left_us()))
        self._left_us = None if self._left_us is None else patience.left_us()
        self._refused = call
        return call

    async def _goes_on(self, steps: KeepaSteps, last: Called, left_us: int) -> bool:
        """Wait after a call that the server refused, where the bucket alone would not; False: make no other.

        AcquireTimeout where that would be too long.
        """
        seen = snapshot_of(await steps.apply(Peek(self._tokens, self._keep)))
        wait = seen.retry_after if last.told and last.retry_after is None else 0.0
        seconds = self._refusals.pause(wait, retry_after=last.retry_after)
        if seconds is None:
            return False
        pause_us = round(seconds * MICROSECONDS)
        if pause_us > left_us:
            if not wait:
                raise AcquireTimeout(self._tokens, max(seconds, seen.retry_after), SERVER_REFUSES, seen.balance)
            pause_us = left_us  # the bucket says it better
        if pause_us:
            spread_us = pause_us // 2 if last.retry_after is None else MICROSECONDS
            reason = Reason.EMPTY if wait else SERVER_REFUSES
            await steps.sleep(pause_us, min(spread_us, left_us - pause_us), reason, alert=False)
        return True


async def cancel(steps: KeepaSteps, hold: Grant) -> None:
    """End a call that was never sent; a scout's claim on the probe is free again too."""
    await steps.finish(Cancel(hold.id))
    if hold.claimed is not None:
        await steps.finish(Unclaim(hold.claimed))


async def settle(steps: KeepaSteps, hold: Grant, body: Body, status: int | None) -> Envelope:
    """End a call's hold by its answer and return what that said; consumed: what it cost, None where nobody knows.

    Without an answer the hold is left to run out: charged or not, nobody knows.
    """
    refused = status == REFUSED
    if body is None and not refused:
        return Envelope(None)
    said = Envelope(None) if body is None else await envelope_of(body, steps.turn)
    if said.reading is None and body is not None:
        steps.door.say(EventKind.READING_BAD, said.why)
    consumed = 0 if refused else said.consumed
    cost = hold.tokens if consumed is None else consumed
    found = (await steps.finish(Settle(hold.id, cost, said.reading, refused=refused, label=hold.label))).found
    if refused and found:
        # The bucket's own event of a settle doesn't know why.
        steps.door.say(EventKind.SETTLED, SERVER_REFUSED)
    return replace(said, consumed=consumed)


async def observe(steps: KeepaSteps, body: Body, status: int) -> None:
    """Take an envelope seen elsewhere, if it is fresh. A refusal is no different: it carries the true balance."""
    seen, number = unpacked(body, status)
    said = await envelope_of(seen, steps.turn)
    if said.reading is None:
        steps.door.say(EventKind.READING_BAD, f"status {number or 200}: {said.why}")
        return
    await steps.finish(Reconcile(said.reading))


async def refresh(steps: KeepaSteps) -> Snapshot:
    """Probe now, unless somebody is at it, and return the bucket."""
    if steps.ask is None:
        raise ConfigError("refresh() needs a probe: give KeepaSync one, e.g. probe=http_probe(api_key)")
    if (await steps.apply(ClaimProbe())).probe:
        await _probe(steps, LIMIT)
    return snapshot_of(await steps.apply(Peek()))


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
    answer = await ask(steps.ask, limit_us, waits=steps.waits)
    # However it ended, it was a probe: a claim is given back only where none was made.
    claimed, steps.claimed = steps.claimed, None
    if answer.why:
        steps.door.say(EventKind.PROBE_FAILED, answer.why)
        if claimed is not None and limit_us < LONGEST_PROBE_US and steps.elapsed_us() - begun >= limit_us:
            # Its caller had too little time: that says nothing of the server.
            await steps.apply(Unclaim(claimed))
        return Probed.FAILED
    said = await envelope_of(answer.body, steps.turn)
    if said.reading is None:
        steps.door.say(EventKind.PROBE_FAILED, f"status {answer.status}: {said.why}")
        return Probed.WITHHELD if answer.status in WITHHELD else Probed.FAILED
    await steps.finish(Reconcile(said.reading))
    return Probed.TOLD
