"""A storage of texts in a dict, whose parts can each be broken, and the ways in which it is broken beside a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from checks.models.suite import MachinesOnAStorage
from keepa_tokens import BucketState, Quota, Snapshot
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Peek, Reconcile, Reserve, Settle, Verdict
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.transition import transition
from keepa_tokens.testing.conformance import SharedStorageConformance
from keepa_tokens.units import CLAIM_US


class Place:
    """Where texts are kept, for all storages that are made on it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.rows: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Step:
    """A step as it would rightly be: what was stored, the command, what is to be stored and what it came to."""

    before: BucketState | None
    command: Command
    after: BucketState
    outcome: Outcome


@dataclass(frozen=True)
class Fault:
    """What a storage does wrong between a bucket and its server; nothing, if nothing is said.

    stored: with the state that a command finds. sent: with the command. kept: with the state that is kept. told: with
    the outcome. shown: with a look.
    """

    stored: Callable[[BucketState, Command, int], BucketState] = lambda state, _command, _now: state
    sent: Callable[[Command], Command] = lambda command: command
    kept: Callable[[Step], BucketState] = lambda step: step.after
    told: Callable[[Outcome], Outcome] = lambda outcome: outcome
    shown: Callable[[Snapshot], Snapshot] = lambda shown: shown


class Simple:
    """A storage that is sound but for its fault."""

    def __init__(self, place: Place, fault: Fault | None = None) -> None:
        self.place, self.fault = place, fault or Fault()

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key`."""
        with self.place.lock:
            return self.step(key, quota, command, self.now(now_us))

    def step(self, key: str, quota: Quota, command: Command, now: int) -> Outcome:
        """Read, decide, write."""
        stored = self.load(key)
        before = None if stored is None else self.fault.stored(stored, command, now)
        state, outcome = transition(quota, before, now, self.fault.sent(command))
        kept = None if state is None else self.fault.kept(Step(stored, command, state, outcome))
        if kept is not None and kept is not stored:
            self.save(key, kept, outcome)
        return self.fault.told(outcome)

    def now(self, now_us: int | None) -> int:
        """Return the time of a step."""
        return time.time_ns() // 1000 if now_us is None else now_us

    def named(self, key: str) -> str:
        """Return the name under which a bucket is kept."""
        return key

    def load(self, key: str) -> BucketState | None:
        """Read."""
        row = self.place.rows.get(self.named(key))
        return None if row is None else BucketState.from_fields(row)

    def save(self, key: str, state: BucketState, outcome: Outcome) -> None:  # noqa: ARG002 - some broken ones use it
        """Write."""
        self.place.rows[self.named(key)] = state.to_fields()

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands."""
        state = self.load(key)
        if state is None or state.quota is None:
            return None
        shown = transition(state.quota, state, self.now(now_us), Peek())[1].snapshot
        return None if shown is None else self.fault.shown(shown)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets."""
        return iter(list(self.place.rows))

    def close(self) -> None:
        """Nothing is open."""


Make = Callable[[Place], Simple]


class Kit(SharedStorageConformance, MachinesOnAStorage):
    """The kit, and the machines, on a storage whose fields they can't see: what is found is found in its answers."""

    def __init__(self, made: Make = Simple) -> None:
        self.made = made
        self.place = Place()

    def make_storage(self) -> Simple:
        """Open one more storage on the same place."""
        return self.made(self.place)


class KitWithFields(Kit):
    """The same on a storage whose fields it can damage."""

    def read_fields(self, key: str) -> Mapping[str, str]:
        """Return what is stored."""
        return self.place.rows.get(key, {})

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        """Store something else."""
        self.place.rows[key] = dict(fields)


def keeping(**fields: object) -> Fault:
    """Return the fault of keeping these fields wrong."""
    return Fault(kept=lambda step: replace(step.after, **fields))  # type: ignore[arg-type] # each a field of its own type


def mishearing(**fields: object) -> Fault:
    """Return the fault of taking these for what the server says."""

    def sent(command: Command) -> Command:
        if not isinstance(command, Settle | Reconcile) or command.reading is None:
            return command
        return replace(command, reading=replace(command.reading, **fields))  # type: ignore[arg-type] # as above

    return Fault(sent=sent)


def _deaf(state: BucketState, command: Command, now: int) -> BucketState:
    heard = isinstance(command, Reconcile) and state.reading_at is not None
    return replace(state, reading_at=now) if heard else state


def _out_of_order(state: BucketState, command: Command, _now: int) -> BucketState:
    late = isinstance(command, Settle) and command.reading is not None and command.id in state.holds
    return replace(state, server_time=None) if late and state.reading_at is not None else state


def when_asked(changed: Callable[[BucketState, Acquire | Reserve], BucketState]) -> Fault:
    """Return the fault of taking the bucket for another one where tokens are asked for."""
    return Fault(lambda state, command, _: changed(state, command) if isinstance(command, Acquire | Reserve) else state)


def standing(state: BucketState, stays: Callable[[Ticket], bool]) -> BucketState:
    """Return the bucket with some of those who stand in line."""
    return replace(state, line=tuple(filter(stays, state.line)))


def _full(state: BucketState, _: object) -> BucketState:
    unknown = state.quota is not None and state.balance is None
    return replace(state, balance=state.quota.capacity) if unknown and state.quota is not None else state


def _waiting(state: BucketState, _command: Command, now: int) -> BucketState:
    gone = state.balance is None and state.probe_until is not None and state.probe_until <= now
    return replace(state, probe_until=None) if gone else state


def _alone(state: BucketState, _: object) -> BucketState:
    """Take what is in flight for charged already: then nothing is in flight."""
    if state.balance is None:
        return state
    charged = {name: replace(hold, charged=max(1, hold.charged)) for name, hold in state.holds.items()}
    return replace(state, balance=state.balance - _in_flight(state), holds=charged)


def _beside_others(step: Step) -> BucketState:
    before, after = step.before, step.after
    if not isinstance(step.command, Acquire | Reserve) or before is None or None in {before.balance, after.balance}:
        return after
    return replace(after, balance=(after.balance or 0) + _in_flight(before), holds={**after.holds, **before.holds})


def _in_flight(state: BucketState) -> int:
    return sum(hold.tokens for hold in state.holds.values() if hold.in_flight)


def _settled_again(step: Step) -> BucketState:
    if not isinstance(step.command, Settle) or step.outcome.found:
        return step.after
    return _with(step.after, -(step.command.actual or 0))


def _given_back(step: Step) -> BucketState:
    late = isinstance(step.command, Settle) and step.outcome.found and step.outcome.reading is Verdict.STALE
    return _with(step.after, 5) if late else step.after


def _with(state: BucketState, tokens: int) -> BucketState:
    return state if state.balance is None else replace(state, balance=state.balance + tokens)


def _uncharged(state: BucketState, _command: Command, now: int) -> BucketState:
    left = {name: hold for name, hold in state.holds.items() if not (hold.in_flight and hold.expires_at <= now)}
    return replace(state, holds=left)


def _never_late(state: BucketState, _command: Command, now: int) -> BucketState:
    """Take whoever stands in line for one who was told to come now."""
    return replace(state, line=tuple(replace(ticket, told_at=max(now, ticket.told_at)) for ticket in state.line))


def _passed(step: Step) -> BucketState:
    """Put back whoever else stood in line."""
    if not isinstance(step.command, Acquire | Reserve) or step.before is None:
        return step.after
    others = tuple(ticket for ticket in step.before.line if ticket.id != step.command.ticket)
    return replace(step.after, line=(*others, *step.after.line))


def _staying(step: Step) -> BucketState:
    """Let who was granted its tokens stay where it stood."""
    asked = isinstance(step.command, Acquire | Reserve) and step.outcome.granted
    return replace(step.after, line=step.before.line) if asked and step.before is not None else step.after


def _free_again(step: Step) -> BucketState:
    """Leave a place that somebody got free for the next one."""
    granted = isinstance(step.command, Acquire) and step.outcome.granted
    return replace(step.after, free=step.before.free) if granted and step.before is not None else step.after


def _always_sent(outcome: Outcome) -> Outcome:
    unknown = not outcome.granted and outcome.reason == "UNKNOWN"
    return replace(outcome, claimed_until_us=outcome.now_us + CLAIM_US) if unknown else outcome


FAULTS: Final = {
    "whatever the server says last to arrive is the latest": Fault(lambda state, *_: replace(state, server_time=None)),
    "no older reading is taken outside a call, however long ago the last one was": Fault(_deaf),
    "a call's cost is charged, though a newer reading had it": Fault(_out_of_order, mishearing(server_time=None).sent),
    "what a reading has replaced is corrected by the difference": Fault(
        kept=lambda step: replace(step.after, reading_sequence=min(1, step.after.reading_sequence or 0))
    ),
    "more is given back than a late answer's call had set aside": Fault(kept=_given_back),
    "a reading drops what is in flight": Fault(
        kept=lambda step: replace(step.after, holds={}) if step.outcome.reading == "TAKEN" else step.after
    ),
    "nobody remembers who was sent to ask the server": keeping(probe_until=None),
    "everybody is sent to ask the server": Fault(told=_always_sent),
    "nobody is sent to ask the server": Fault(
        told=lambda outcome: outcome if outcome.granted else replace(outcome, claimed_until_us=None)
    ),
    "the next one is sent as soon as the last one failed": keeping(probe_failures=0),
    "nothing begins when the server can't be asked": Fault(_waiting),
    "a bucket of which nothing is known is full": when_asked(_full),
    "each call is admitted as if it were alone": replace(when_asked(_alone), kept=_beside_others),
    "nothing is kept back for others": keeping(kept_back=None),
    "all is kept back for others": Fault(shown=lambda shown: replace(shown, kept_back=shown.capacity)),
    "what is kept back never halves": keeping(kept_back_at=None),
    "the server's plan is not heard": mishearing(capacity=None, refill=None),
    "the time of the server's next step is not heard": mishearing(next_refill_in=None),
    "the server's step is believed to come at once": mishearing(next_refill_in=1.0),
    "a refusal by the server is not heard": Fault(
        sent=lambda command: replace(command, refused=False) if isinstance(command, Settle) else command
    ),
    "a call that is settled again is charged again": Fault(kept=_settled_again),
    "a hold that runs out is given back": Fault(_uncharged),
    "a ticket is never late, and never lapses": Fault(_never_late),
    "whoever asks passes those before it in line": replace(
        when_asked(lambda state, ask: standing(state, lambda ticket: ticket.id == ask.ticket)), kept=_passed
    ),
    "whoever asks again goes to the end of the line": when_asked(
        lambda state, ask: standing(state, lambda ticket: ticket.id != ask.ticket)
    ),
    "a place that was given up is had twice": Fault(kept=_free_again),
    "nobody gets a place that was given up": keeping(free=()),
    "nobody remembers who stands in line": keeping(line=()),
    "whom the server refused comes back as the last": Fault(
        sent=lambda command: replace(command, arrived=None) if isinstance(command, Reserve) else command
    ),
    "whoever is granted its tokens stays in line": Fault(kept=_staying),
    "whoever asks takes now for the last refill": Fault(
        lambda state, command, _: replace(state, refilled_at=None) if isinstance(command, Reserve) else state
    ),
}
"""The faults, by what the storage does wrong."""
