"""How `KeepaSync` uses a bucket, written once for threads and coroutines; see `keepa_tokens.plans`.

Two more verbs touch the world: `Probe` asks the server, `Tell` tells the listener.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from ..errors import ConfigError, NotEnoughTokens
from ..events import EventKind
from ..plans import Grant, Plan, apply, pause, peek, refusal, time_left
from ..quota import Quota
from ..rules.commands import ClaimProbe, Command, Outcome, Reconcile, Reserve, Settle
from ..rules.decision import Reason, Snapshot
from .reading import REFUSED, Body, Envelope, envelope

__all__ = ["SERVER_REFUSED", "Answer", "Probe", "Request", "Tell", "observe", "refresh", "request", "settle"]

SERVER_REFUSED: Final = "the server refused the call (429)"
"""Why a call was settled at nothing, as the event of it says."""

WITHHELD: Final = frozenset({400, 401, 402, 403, 404, 405})
"""Statuses with which a server that works refuses the question itself: a wrong key, or `/token` out of reach."""


class Probed(Enum):
    """What came of a probe."""

    TOLD = auto()
    FAILED = auto()
    WITHHELD = auto()


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the server for its balance; answered with an Answer."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the listener of something that no command brought about."""

    kind: EventKind
    why: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe brought: a status and a body, or why it failed."""

    status: int | None
    body: Mapping[str, object] | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What a call needs: `tokens` as estimated, `keep` for others, a hold of `hold_for_us` under `id`.

    probe_after_us: how old a reading may be before a refusal asks for a new one. scout: there is no probe, so a request
    with the claim goes ahead: a refusal is free, and either answer carries the truth.
    """

    id: str
    tokens: int
    keep: int
    hold_for_us: int
    probe_after_us: int
    scout: bool


def request(quota: Quota, wanted: Request, timeout_us: int | None) -> Plan[Grant]:
    """Set the estimate aside, waiting for it; None: as long as it takes. Probes on the way if told to."""
    quota.check_cost(wanted.tokens, wanted.keep)
    slept = 0
    while True:
        outcome = yield from _ask(wanted)
        if outcome.granted:
            return Grant(wanted.id, wanted.tokens, outcome.decision(slept))
        slept += yield from pause(quota, outcome, wanted.tokens, time_left(timeout_us, slept))


def try_request(quota: Quota, wanted: Request) -> Plan[Grant]:
    """Set the estimate aside now, after a probe at most, or raise NotEnoughTokens."""
    quota.check_cost(wanted.tokens, wanted.keep)
    outcome = yield from _ask(wanted)
    if not outcome.granted:
        raise refusal(NotEnoughTokens, outcome, wanted.tokens)
    return Grant(wanted.id, wanted.tokens, outcome.decision())


def settle(hold_id: str, body: Body, status: int | None) -> Plan[int | None]:
    """End a call's hold by its answer and return what it cost, None where nobody knows.

    Without an answer the hold is left to run out: charged or not, nobody knows.
    """
    if body is None and status != REFUSED:
        return None
    said = Envelope(None) if body is None else envelope(body)
    if said.reading is None and body is not None:
        yield Tell(EventKind.READING_BAD, said.why)
    refused = status == REFUSED
    consumed = 0 if refused else said.consumed
    found = (yield from apply(Settle(hold_id, consumed, said.reading, refused=refused))).found
    if refused and found:
        # The bucket's own event of a settle doesn't know why.
        yield Tell(EventKind.SETTLED, SERVER_REFUSED)
    return consumed


def observe(body: Body, status: int) -> Plan[None]:
    """Take an envelope seen elsewhere, if it is fresh. A refusal is no different: it carries the true balance."""
    said = envelope(body)
    if said.reading is None:
        yield Tell(EventKind.READING_BAD, f"status {status}: {said.why}")
        return
    yield from apply(Reconcile(said.reading))


def refresh() -> Plan[Snapshot]:
    """Probe now, unless somebody is at it, and return the bucket."""
    if (yield from apply(ClaimProbe())).probe:
        yield from _probe()
    return (yield from peek(1, 0))


def checked_synced(quota: Quota) -> Quota:
    """Return `quota` if its bucket follows a server; ConfigError else."""
    if not quota.synced:
        msg = "KeepaSync needs a bucket that follows the server: make its quota with keepa_quota(), or with synced=True"
        raise ConfigError(msg)
    return quota


def _ask(wanted: Request) -> Plan[Outcome]:
    """Ask for the hold; if that brings the claim on the probe, probe and ask once more.

    Where the server refuses the probe, the request goes ahead in its place, as the scout does where there is no probe:
    so its own answer tells the caller at once what is wrong. It has no hold, as nothing is known that it could be held
    from, and the claim keeps everybody else back meanwhile.
    """
    command: Command = Reserve(
        wanted.id,
        wanted.tokens,
        wanted.hold_for_us,
        wanted.keep,
        probe_after_us=wanted.probe_after_us,
        scout=wanted.scout,
    )
    outcome = yield from apply(command)
    if outcome.granted or not outcome.probe:
        return outcome
    match (yield from _probe()):
        case Probed.TOLD:
            return (yield from apply(command))
        case Probed.WITHHELD:
            return replace(outcome, granted=True, scout=True, reason=Reason.GRANTED, retry_after_us=0)
        case Probed.FAILED:
            return outcome


def _probe() -> Plan[Probed]:
    """Ask the server and return what came of it. A failure needs no note: the claim runs out."""
    answer = yield Probe()
    if not isinstance(answer, Answer):
        msg = f"a driver must answer Probe with an Answer, not {answer!r}"
        raise TypeError(msg)
    if answer.why:
        yield Tell(EventKind.PROBE_FAILED, answer.why)
        return Probed.FAILED
    said = envelope(answer.body)
    if said.reading is None:
        yield Tell(EventKind.PROBE_FAILED, f"status {answer.status}: {said.why}")
        return Probed.WITHHELD if answer.status in WITHHELD else Probed.FAILED
    yield from apply(Reconcile(said.reading))
    return Probed.TOLD
