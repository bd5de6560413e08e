"""How the doors use a bucket: each plan is written once, as a coroutine, for threads and for coroutines.

What touches the world is a step of `Steps`: the async door's steps are really awaited; the blocking door's never
suspend, so `_blocking.run` carries a whole plan out in one go. A door takes its first step by itself, since most calls
need no second one, and then goes on with a plan. When a call is interrupted, its door gives back what `Taken` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ._arguments import instance, microseconds, whole
from ._bell import Bell
from .errors import AcquireTimeout, ConfigError, NotEnoughTokens
from .quota import Quota
from .rules.commands import (
    Acquire,
    Cancel,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
    Verdict,
)
from .rules.decision import Decision, Reason, Snapshot
from .rules.reading import Reading
from .units import DAY_US, LIMIT, MICROSECONDS, seconds

LONGEST_PAUSE_US = 60 * MICROSECONDS
"""Who waits on a synced bucket asks again at least this often, and so notices a better or a worse balance."""

UNKNOWN_PAUSE_US = MICROSECONDS
"""How often to look while somebody else's probe is under way: its answer may come any moment."""


class Steps(Protocol):
    """What a plan may do to the world, for one call of a door."""

    async def apply(self, command: Command) -> Outcome:
        """Carry `command` to the bucket, tell the listener, and return what it came to."""
        ...

    async def sleep(self, duration_us: int, spread_us: int, reason: str, *, alert: bool = True) -> int:
        """Wait `duration_us`, plus a random part of `spread_us` so that those who wait alike don't all come at once.

        alert: wake up where tokens come back in this process. Return the time that it took, the random part aside.
        """
        ...

    def went(self, tokens: int, waited_us: int) -> None:
        """Tell the listener that a call goes, after a wait or none."""
        ...

    def elapsed_us(self) -> int:
        """Return the time since an instant of the steps' own, to measure waits by."""
        ...


class Taken:
    """What one call has taken so far, to be given back if it is interrupted before its caller knows.

    request: the last command that takes. outcome: what came of it; None: it was interrupted before anybody knew.
    claimed: it was given the claim on the probe, and no probe has ended since. woken: it was woken because tokens came
    back, and has not been granted since. sent: the command that is under way; came: what it came to, until that is
    taken note of. Whoever sends it puts that there at once, where no signal strikes in between. unsure: it is with a
    storage that may have carried it out although its answer is lost.
    """

    __slots__ = ("_rank", "came", "claimed", "outcome", "request", "sent", "unsure", "woken")

    def __init__(self, taking: Acquire | None = None) -> None:
        self.unsure = False
        self.sent: Command | None = None
        self.came: Outcome | None = None
        self.request: Acquire | Reserve | None = None
        self.outcome: Outcome | None = None
        self.claimed: int | None = None
        self._rank: int | None = None
        self.woken = False
        if taking is not None:
            self.sends(taking)

    def sends(self, command: Command) -> None:
        """Take note of a command that is about to be sent."""
        self.sent, self.came = command, None
        if isinstance(command, Acquire | Reserve):
            self.request, self.outcome = command, None

    def told(self, command: Command, outcome: Outcome) -> None:
        """Take note of what a command came to."""
        if command is self.request:
            self.outcome = outcome
        if outcome.probe:
            self.claimed = outcome.claimed_until_us
        if outcome.reading is Verdict.TAKEN:
            self.claimed = None
        self.sent = None

    def recall(self, found: Outcome | None) -> None:
        """Take note of what a command came to whose caller was struck before it could; found: by the storage."""
        came = self.came or found
        if self.sent is not None and came is not None:
            self.told(self.sent, came)

    def rank(self, bell: Bell) -> int:
        """Return the rank by which this call is woken."""
        if self._rank is None:
            self._rank = bell.rank()
        return self._rank

    def brings(self, command: Command, outcome: Outcome) -> bool:
        """Whether somebody else who waits may be served now."""
        if outcome.granted and self.woken:
            self.woken = False
            return True
        if isinstance(command, Settle | Cancel | Refund):
            return outcome.found
        return outcome.reading is Verdict.TAKEN

    def undoing(self, refund_id: str) -> list[Command]:
        """Return the commands that give everything back, the place in line and the claim on the probe included."""
        commands: list[Command] = []
        request, outcome = self.request, self.outcome
        if isinstance(request, Reserve) and (outcome is None or outcome.granted or request.ticket == request.id):
            # By id, so it does no harm where the hold was never opened.
            commands.append(Cancel(request.id))
        if isinstance(request, Acquire):
            if outcome is not None and outcome.granted:
                commands.append(Refund(refund_id, request.tokens, outcome.now_us + outcome.place_us))
            elif request.ticket is not None:
                commands.append(Cancel(request.ticket))
        if self.claimed is not None:
            commands.append(Unclaim(self.claimed))
        return commands

    def asked(self) -> int:
        """Return the tokens that were asked for, and may have been taken."""
        refused = self.outcome is not None and not self.outcome.granted
        return 0 if self.request is None or refused else self.request.tokens

    def lost(self) -> int:
        """Return the tokens that may have been taken although nobody can tell: of an `Acquire` without an answer."""
        return self.request.tokens if self.unsure and isinstance(self.request, Acquire) and self.outcome is None else 0


class Patience:
    """How long a caller still waits, by the wall clock: the time in storage, probe and sleeps together."""

    __slots__ = ("_steps", "_until")

    def __init__(self, steps: Steps, timeout_us: int | None) -> None:
        self._steps = steps
        self._until = None if timeout_us is None else steps.elapsed_us() + timeout_us

    def left_us(self) -> int:
        """Return what is left of it, 0 or less if nothing is; LIMIT: there is no end."""
        return LIMIT if self._until is None else self._until - self._steps.elapsed_us()


@dataclass(frozen=True, slots=True)
class Grant:
    """A hold that was opened, and the decision that opened it."""

    id: str
    tokens: int
    decision: Decision
    claimed: int | None = None
    """Until when it has the claim on the probe, being the scout."""
    label: str = ""

    @classmethod
    def of(cls, command: Reserve, decision: Decision) -> Grant:
        """Return the hold that `command` opened, by `decision`."""
        return cls(command.id, command.tokens, decision, label=command.label)


def granted(command: Reserve, outcome: Outcome) -> Grant:
    """Return the hold that `outcome` granted, or raise NotEnoughTokens."""
    if not outcome.granted:
        raise refusal(NotEnoughTokens, outcome, command.tokens)
    return Grant(command.id, command.tokens, outcome.decision(), outcome.claimed_until_us, command.label)


async def wait(
    steps: Steps, quota: Quota, patience: Patience, command: Acquire | Reserve, outcome: Outcome
) -> Decision:
    """Go on after the first step of a door that waits, until it is granted and its place has come."""
    slept = 0
    while not outcome.granted:
        slept += await pause(steps, quota, outcome, command, patience.left_us())
        if isinstance(command, Acquire):
            command = replace(command, wait_us=patience.left_us())
        outcome = await steps.apply(command)
    if outcome.place_us > 0:
        # The instant of a place stands, whatever comes back.
        await steps.sleep(outcome.place_us, 0, Reason.EMPTY, alert=False)
    steps.went(command.tokens, slept + outcome.place_us)
    return outcome.decision(slept + outcome.place_us)


def reconciliation(quota: Quota, reading: Reading) -> Reconcile:
    """Return the command that takes a reading; ConfigError for a plain bucket, which keeps its own books."""
    instance("reading", reading, Reading)
    if not quota.synced:
        raise ConfigError(
            "a plain bucket keeps its own books: make its quota with synced=True to follow a server's readings"
        )
    return Reconcile(reading)


TRIES: Final = 8
"""How often `take_up_to` looks again when somebody else was faster."""


def there(seen: Snapshot, tokens: int, keep: int) -> int:
    """Return how many of `tokens` can be taken beside `keep` from a bucket as it was seen."""
    return max(0, min(tokens, (seen.available or 0) - keep - seen.kept_back, seen.capacity - keep))


def deletion(storage: object) -> Callable[[str], object]:
    """Return how a storage forgets a bucket; ConfigError for one that can't."""
    delete: object = getattr(storage, "delete", None)
    if not callable(delete):
        raise ConfigError(f"{type(storage).__name__} can't forget a bucket: give it a method delete(key)")
    return delete


def pausing(seconds: float) -> Pause:
    """Return the command that pauses a bucket for so many seconds."""
    for_us = microseconds("seconds", seconds)
    if not 0 <= for_us <= DAY_US:
        raise ConfigError(f"seconds={seconds!r} is out of range: a bucket is paused for 0 to 86400 seconds (a day)")
    return Pause(for_us)


def look(tokens: int, keep: int) -> Peek:
    """Return the command that looks as a request for `tokens` beside `keep` would."""
    return Peek(whole("tokens", tokens), whole("keep", keep))


def snapshot_of(outcome: Outcome) -> Snapshot:
    """Return the snapshot that came with an outcome."""
    if outcome.snapshot is None:
        raise TypeError("a storage must answer Peek and Reconcile with a snapshot")
    return outcome.snapshot


async def pause(steps: Steps, quota: Quota, outcome: Outcome, command: Acquire | Reserve, left_us: int) -> int:
    """Wait after a refusal and return for how long; raise at once, out of the line, if it can't end in `left_us`."""
    retry = outcome.retry_after_us
    if outcome.reason in _ANY_MOMENT:
        # The wait isn't known: a settle or a probe may end it.
        hopeless = left_us <= 0
    else:
        hopeless = retry > left_us or (retry >= LIMIT and (not quota.synced or outcome.reason is Reason.TOO_LARGE))
    if hopeless:
        if command.ticket is not None:
            await steps.apply(Cancel(command.ticket))
        kind = NotEnoughTokens if outcome.reason is Reason.TOO_LARGE else AcquireTimeout
        raise refusal(kind, outcome, command.tokens)
    if outcome.reason is Reason.UNKNOWN:
        retry = min(retry, UNKNOWN_PAUSE_US)
    duration = max(1, min(retry, left_us, LONGEST_PAUSE_US if quota.synced else LIMIT))
    # On a plain bucket each one in line is told an instant of its own; at a server's step many are told the same one.
    spread = max(0, min(duration // 20, MICROSECONDS // 4, left_us - duration)) if quota.synced else 0
    return await steps.sleep(duration, spread, outcome.reason)


_ANY_MOMENT: Final = frozenset({Reason.UNKNOWN, Reason.IN_FLIGHT})


def ticket_for(call_id: str, left_us: int) -> str | None:
    """Return the ticket of a call that waits; None for one that has no time to stand in line."""
    return call_id if left_us > 0 else None


def refusal(kind: type[NotEnoughTokens], outcome: Outcome, tokens: int) -> NotEnoughTokens:
    """Return a refusal as the error that a door raises."""
    return kind(
        tokens,
        retry_after=seconds(outcome.retry_after_us),
        reason=str(outcome.reason),
        balance=outcome.balance,
        held=outcome.held,
        holds=outcome.open,
    )
