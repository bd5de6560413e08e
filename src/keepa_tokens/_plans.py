"""How the doors use a bucket: each plan is written once, as a coroutine, for threads and for coroutines.

What touches the world is a step of `Steps`: the async door's steps are really awaited; the blocking door's never
suspend, so `_blocking.run` carries a whole plan out in one go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import ClassVar, Final, Generic, TypeAlias, TypeVar, cast

from ._arguments import instance, microseconds
from ._bell import Stand
from ._door import Door, new_id
from .errors import AcquireTimeout, ConfigError, KeepaTokensError, NotEnoughTokens
from .quota import Quota
from .rules.arithmetic import set_aside
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
from .rules.flow import has_places
from .rules.line import LONGEST_LINE
from .rules.reading import Reading
from .units import DAY_US, LIMIT, LOOK_AGAIN_US, MICROSECONDS, seconds

T = TypeVar("T")
R = TypeVar("R", Acquire, Reserve)
S_co = TypeVar("S_co", covariant=True)

LONGEST_PAUSE_US = 60 * MICROSECONDS
"""A caller that waits on a synced bucket asks again at least this often, and so notices a better or a worse balance."""

UNKNOWN_PAUSE_US = MICROSECONDS
"""How often to look while somebody else's probe is under way: its answer may come any moment."""

PARTS_OF_A_WAIT: Final = 8
"""A caller in a plain bucket's line looks again after the wait that it was told, divided by this."""

TRIES: Final = 8
"""How often `take_up_to` looks again when somebody else was faster."""


class Steps(Generic[S_co]):
    """The steps of one call, and what it has taken so far, to be given back if it is interrupted before it ends.

    request: the last command that takes tokens. outcome: its outcome; None: nobody knows it yet. claimed: the end of
    the claim on the probe that the call was given. woken: it was woken the last time that it slept, because tokens came
    back. sent: the command under way. answer: the storage's answer to it, put here at once, where no signal strikes in
    between; `outcome` and `claimed` follow. unsure: the storage may have carried the request out although its answer is
    lost.
    """

    __slots__ = ("_rank", "answer", "claimed", "door", "outcome", "request", "sent", "unsure", "woken")

    blocks: ClassVar[bool]
    """Whether the steps are for threads."""

    def __init__(self, door: Door[S_co], taking: Acquire | None = None) -> None:
        self.door = door
        self.unsure = False
        self.sent: Command | None = taking
        self.answer: Outcome | None = None
        self.request: Acquire | Reserve | None = taking
        self.outcome: Outcome | None = None
        self.claimed: int | None = None
        self._rank: int | None = None
        self.woken = False

    async def apply(self, command: Command) -> Outcome:
        """Apply `command` to the bucket, tell the listener, and return the outcome."""
        raise NotImplementedError

    async def finish(self, command: Command) -> Outcome:
        """Carry out a command that counts once however often it is sent; interrupted in it, let it end."""
        raise NotImplementedError

    async def sleep(self, duration_us: int, spread_us: int, reason: str, *, alert: bool = True) -> int:
        """Wait `duration_us`, plus a random part of `spread_us` so that those who wait alike don't all come at once.

        alert: wake up where tokens come back in this process. Return the time that it took, the random part aside.
        """
        raise NotImplementedError

    async def in_place(self, outcome: Outcome, tokens: int) -> int:  # noqa: ARG002 - for those who move up
        """Wait until the place has come that `tokens` were granted for; return the time that it took."""
        # The instant of a place never changes, so nothing that comes back need wake this caller.
        return await self.sleep(outcome.place_us, 0, Reason.EMPTY, alert=False)

    async def turn(self) -> None:
        """Let others have their turn, within a long computation."""

    def begin(self, command: Command) -> None:
        """Take note of a command that is about to be sent."""
        self.sent, self.answer = command, None
        if isinstance(command, Acquire | Reserve):
            self.request, self.outcome = command, None

    def ended(self, command: Command, outcome: Outcome) -> Outcome:
        """Take note of a command's outcome, wake a caller that may be served now, and tell the listener.

        Raises ConfigError if somebody's own storage returns anything else.
        """
        if not isinstance(cast("object", outcome), Outcome):
            where, given = type(self.door.storage).__name__, type(outcome).__name__
            raise ConfigError(f"apply() of a {where} must return an Outcome, not {given}")
        self._note(command, outcome)
        if self.door.bell and self._brings(command, outcome):
            self.door.bell.ring(self.door.key)
        self.door.tell(command, outcome)
        return outcome

    def catch_up(self, found: Outcome | None) -> None:
        """Take note of an answer that a signal kept the call from noting; found: the answer, out of the traceback."""
        answer = self.answer or found
        if self.sent is not None and answer is not None:
            self._note(self.sent, answer)

    def waits(self, wake: Callable[[], object]) -> Stand:
        """Ask to be woken when tokens come back; return what `Bell.leave` takes."""
        keep = 0 if self.request is None else self.request.keep
        return self.door.bell.wait(self.door.key, wake, keep, self.rank())

    def rank(self) -> int:
        """Return the number of this call among those that began to wait."""
        if self._rank is None:
            self._rank = self.door.bell.rank()
        return self._rank

    def undoing(self) -> list[Command]:
        """Return the commands that give everything back, the place in line and the claim on the probe included."""
        commands: list[Command] = []
        request, outcome = self.request, self.outcome
        ids: list[str | None] = []
        if isinstance(request, Reserve):
            # By id, so it does no harm where the hold was never opened.
            ids.append(request.id)
        if request is not None and (outcome is None or not outcome.granted):
            ids.append(request.ticket)
        commands += [Cancel(each) for each in dict.fromkeys(ids) if each is not None]
        if isinstance(request, Acquire) and outcome is not None and outcome.granted:
            commands.append(Refund(new_id(), request.tokens, outcome.now_us + outcome.place_us))
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

    def leaves_something(self, error: BaseException) -> bool:
        """Whether a call that ended in `error` may have something to give back.

        An interrupt may leave tokens, a ConfigError of the probe leaves the claim. Any other refusal leaves nothing.
        """
        return not isinstance(error, KeepaTokensError) or (isinstance(error, ConfigError) and self.sent is None)

    def _note(self, command: Command, outcome: Outcome) -> None:
        if command is self.request:
            self.outcome = outcome
        if outcome.probe:
            self.claimed = outcome.claimed_until_us
        self.sent = None

    def _brings(self, command: Command, outcome: Outcome) -> bool:
        """Whether somebody else who waits may be served now."""
        if outcome.granted and self.woken:
            return True
        if isinstance(command, Settle | Cancel | Refund):
            return outcome.found
        return outcome.reading is Verdict.TAKEN


Plan: TypeAlias = Callable[[Steps[object]], Coroutine[object, object, T]]
Ask: TypeAlias = Callable[[Steps[object], R, int], Awaitable[Outcome]]
"""Asks the bucket for tokens, for a caller who still waits so many microseconds."""
Made: TypeAlias = Callable[[Reserve, Outcome, int], T]
"""Makes what a caller is handed for a hold: from its command, the outcome, and the wait in microseconds."""


class Patience:
    """How long a caller still waits, by `Door.elapsed_us`: the time in storage, probe and sleeps together."""

    __slots__ = ("_door", "_until")

    def __init__(self, door: Door[object], timeout_us: int | None) -> None:
        self._door = door
        self._until = None if timeout_us is None else door.elapsed_us() + timeout_us

    def left_us(self) -> int:
        """Return what is left of it, 0 or less if nothing is; LIMIT: there is no end."""
        return LIMIT if self._until is None else self._until - self._door.elapsed_us()


async def ask_bucket(steps: Steps[object], command: Acquire | Reserve, _: int) -> Outcome:
    """Ask the bucket, and nobody else, for tokens."""
    return await steps.apply(command)


async def try_acquire(steps: Steps[object], command: Acquire) -> Decision:
    return (await steps.apply(command)).decision()


async def acquire(steps: Steps[object], tokens: int, keep: int, timeout_us: int | None) -> Decision:
    wait_us = LIMIT if timeout_us is None else timeout_us
    command = Acquire(tokens, keep, wait_us, ticket=new_id() if wait_us else None)
    outcome, waited_us = await _waited(steps, command, timeout_us, ask_bucket)
    return outcome.decision(waited_us)


async def try_reserve(steps: Steps[object], command: Reserve, made: Made[T], ask: Ask[Reserve] = ask_bucket) -> T:
    """Set tokens aside now, or raise NotEnoughTokens."""
    outcome = await ask(steps, command, LIMIT)
    if not outcome.granted:
        raise _refusal(NotEnoughTokens, outcome, command.tokens)
    return made(command, outcome, 0)


async def reserve(
    steps: Steps[object], command: Reserve, timeout_us: int | None, made: Made[T], ask: Ask[Reserve] = ask_bucket
) -> T:
    return made(command, *await _waited(steps, command, timeout_us, ask))


async def take_up_to(steps: Steps[object], tokens: int, keep: int) -> int:
    for _ in range(TRIES):
        seen = snapshot_of(await steps.apply(Peek()))
        left = (seen.available or 0) - set_aside(keep, seen.kept_back, seen.capacity, 1)
        some = max(0, min(tokens, left, seen.capacity - keep))
        if some == 0 or (await steps.apply(Acquire(some, keep))).granted:
            return some
    return 0


def reconciliation(quota: Quota, reading: Reading) -> Reconcile:
    """Return the command that takes a reading; ConfigError for a plain bucket, which keeps its own books."""
    instance("reading", reading, Reading)
    if not quota.synced:
        raise ConfigError(
            "a plain bucket keeps its own books: make its quota with synced=True to follow a server's readings"
        )
    return Reconcile(reading)


def deletion(storage: object) -> Callable[[str], object]:
    """Return how a storage forgets a bucket; ConfigError for one that can't."""
    delete: object = getattr(storage, "delete", None)
    if not callable(delete):
        raise ConfigError(f"{type(storage).__name__} can't forget a bucket: give it a method delete(key)")
    return delete


def pausing(seconds: float) -> Pause:
    for_us = microseconds("seconds", seconds)
    if not 0 <= for_us <= DAY_US:
        raise ConfigError(f"seconds={seconds!r} is out of range: a bucket is paused for 0 to 86400 seconds (a day)")
    return Pause(for_us)


def snapshot_of(outcome: Outcome) -> Snapshot:
    if outcome.snapshot is None:
        raise TypeError("a storage must answer Peek and Reconcile with a snapshot")
    return outcome.snapshot


async def _waited(steps: Steps[object], command: R, timeout_us: int | None, ask: Ask[R]) -> tuple[Outcome, int]:
    """Ask for tokens until they are granted and the caller's place has come; return how long that took, too."""
    patience = Patience(steps.door, timeout_us)
    slept, outcome = 0, await ask(steps, command, patience.left_us())
    while not outcome.granted:
        slept += await _pause(steps, outcome, command, patience.left_us())
        left_us = patience.left_us()
        if isinstance(command, Acquire):
            command = replace(command, wait_us=left_us)
        outcome = await ask(steps, command, left_us)
    if outcome.place_us > 0:
        slept += await steps.in_place(outcome, command.tokens)
    steps.door.waited(command.tokens, slept)
    return outcome, slept


async def _pause(steps: Steps[object], outcome: Outcome, command: Acquire | Reserve, left_us: int) -> int:
    """Wait after a refusal and return for how long; if `left_us` can't be enough, leave the line and raise at once."""
    retry, synced = outcome.retry_after_us, steps.door.quota.synced
    if outcome.reason in _ANY_MOMENT:
        # The wait isn't known: a settle or a probe may end it.
        hopeless = left_us <= 0
    else:
        hopeless = retry > left_us or (retry >= LIMIT and (not synced or outcome.reason is Reason.TOO_LARGE))
    if hopeless:
        if command.ticket is not None and (isinstance(command, Acquire) or command.ticket == command.id):
            await steps.apply(Cancel(command.ticket))  # not a queue's task: it comes back, and keeps its place
        kind = NotEnoughTokens if outcome.reason is Reason.TOO_LARGE else AcquireTimeout
        raise _refusal(kind, outcome, command.tokens)
    if outcome.reason is Reason.UNKNOWN:
        retry = min(retry, UNKNOWN_PAUSE_US)
    elif outcome.reason is Reason.IN_FLIGHT:
        # In line it was told its turn as if calls in flight cost all that they hold. Most cost less.
        retry = min(retry, LOOK_AGAIN_US)
    longest = LONGEST_PAUSE_US if synced else DAY_US
    if has_places(steps.door.quota):
        if outcome.arrived is None:
            # The line is full, and it would be for longer if the crowd behind it stood there, too.
            retry *= 1 + steps.rank() % max(1, steps.door.bell.crowd(steps.door.key) // LONGEST_LINE)
        # It sees what other processes give back only if it looks. Not with a recharge: a look might begin one.
        longest = min(longest, max(LOOK_AGAIN_US, retry // PARTS_OF_A_WAIT))
    duration = max(1, min(retry, left_us, longest))
    # On a plain bucket each one in line is told an instant of its own; at a server's step many are told the same one.
    spread = max(0, min(duration // 20, MICROSECONDS // 4, left_us - duration)) if synced else 0
    return await steps.sleep(duration, spread, outcome.reason)


_ANY_MOMENT: Final = frozenset({Reason.UNKNOWN, Reason.IN_FLIGHT})


def _refusal(kind: type[NotEnoughTokens], outcome: Outcome, tokens: int) -> NotEnoughTokens:
    """Return a refusal as the error that a door raises."""
    return kind(
        tokens,
        retry_after=seconds(outcome.retry_after_us),
        reason=str(outcome.reason),
        balance=outcome.balance,
        held=outcome.held,
        holds=outcome.open,
    )
