"""How the doors use a bucket, written once for threads and coroutines.

A plan is a generator that yields the few things that touch the world (`Apply`, `Sleep`) and returns the answer.
`drive` and `adrive` carry the verbs out; an interrupt or a cancellation in the middle of one is thrown into the
plan, which gives back what it had taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from .errors import AcquireTimeout, ConfigError, NotEnoughTokens, StorageUnavailable
from .quota import Quota
from .rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle
from .rules.decision import Decision, Reason, Snapshot
from .rules.reading import Reading
from .units import LIMIT, MAX_HOLD_US, MICROSECONDS, instance, microseconds, seconds, whole

T = TypeVar("T")

LONGEST_PAUSE_US = 60 * MICROSECONDS
"""Who waits on a synced bucket asks again at least this often, and so notices a better or a worse balance."""

UNKNOWN_PAUSE_US = MICROSECONDS
"""While somebody else's probe is under way the truth is a moment off."""

LONGEST_KEY = 256


@dataclass(frozen=True, slots=True)
class Apply:
    """Carry a command to the bucket; answered with its Outcome."""

    command: Command


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait `duration_us`, plus a random part of `spread_us` so that those who wait alike don't all come at once."""

    duration_us: int
    spread_us: int
    reason: Reason


Verb: TypeAlias = object
Plan: TypeAlias = Generator[Verb, object, T]


@dataclass(frozen=True, slots=True)
class Grant:
    """A hold that was opened, and the decision that opened it."""

    id: str
    tokens: int
    decision: Decision


def drive(plan: Plan[T], do: Callable[[Verb], object]) -> T:
    """Run `plan`, carrying each verb out with `do`."""
    resume: Callable[[object], Verb] = plan.send
    value: object = None
    while True:
        try:
            verb = resume(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return] # the plan's T
        try:
            value = do(verb)
            resume = plan.send
        except BaseException as error:  # noqa: BLE001 - an interrupt too: the plan gives back what it took, and raises it again
            resume, value = _throw(plan), error


async def adrive(plan: Plan[T], do: Callable[[Verb], Awaitable[object]]) -> T:
    """Run `plan`, carrying each verb out with `await do`."""
    resume: Callable[[object], Verb] = plan.send
    value: object = None
    while True:
        try:
            verb = resume(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return] # the plan's T
        try:
            value = await do(verb)
            resume = plan.send
        except BaseException as error:  # noqa: BLE001 - a cancellation too: the plan gives back what it took, and raises it again
            resume, value = _throw(plan), error


def _throw(plan: Plan[T]) -> Callable[[object], Verb]:
    def throw(error: object) -> Verb:
        if not isinstance(error, BaseException):
            raise TypeError(error)
        return plan.throw(error)

    return throw


def apply(command: Command) -> Plan[Outcome]:
    """Carry `command` to the bucket and return its outcome."""
    outcome = yield Apply(command)
    if not isinstance(outcome, Outcome):
        msg = f"a storage must answer a command with an Outcome, not {outcome!r}"
        raise TypeError(msg)
    return outcome


def try_acquire(quota: Quota, tokens: int, keep: int) -> Plan[Decision]:
    """Take tokens now or be told why not."""
    quota.check_cost(tokens, keep)
    outcome = yield from apply(Acquire(tokens, keep))
    return outcome.decision()


def acquire(quota: Quota, tokens: int, keep: int, timeout_us: int | None, refund_id: str) -> Plan[Decision]:
    """Take tokens, waiting for them. A place that is given up, by a cancellation too, gives its tokens back."""
    quota.check_cost(tokens, keep)
    slept = 0
    while True:
        outcome = yield from apply(Acquire(tokens, keep, wait_us=time_left(timeout_us, slept)))
        if outcome.granted:
            try:
                yield from _wait_for_place(outcome)
            except BaseException:
                yield from refund(tokens, refund_id)
                raise
            return outcome.decision(slept + outcome.place_us)
        slept += yield from pause(quota, outcome, tokens, time_left(timeout_us, slept))


def try_reserve(quota: Quota, tokens: int, keep: int, hold_for_us: int, hold_id: str) -> Plan[Grant]:
    """Set tokens aside now, or raise NotEnoughTokens."""
    quota.check_cost(tokens, keep)
    outcome = yield from apply(Reserve(hold_id, tokens, hold_for_us, keep))
    if not outcome.granted:
        raise refusal(NotEnoughTokens, outcome, tokens)
    return Grant(hold_id, tokens, outcome.decision())


def reserve(
    quota: Quota, tokens: int, keep: int, timeout_us: int | None, hold_for_us: int, hold_id: str
) -> Plan[Grant]:
    """Set tokens aside, waiting for them. Given up in the middle, the hold goes."""
    quota.check_cost(tokens, keep)
    slept = 0
    while True:
        command = Reserve(hold_id, tokens, hold_for_us, keep, wait_us=time_left(timeout_us, slept))
        try:
            outcome = yield from apply(command)
            if outcome.granted:
                yield from _wait_for_place(outcome)
        except StorageUnavailable:
            # Nothing can be undone now; a hold that was opened all the same runs out by itself.
            raise
        except BaseException:
            # By id, so it does no harm where the hold was never opened.
            yield from apply(Cancel(hold_id))
            raise
        if outcome.granted:
            return Grant(hold_id, tokens, outcome.decision(slept + outcome.place_us))
        slept += yield from pause(quota, outcome, tokens, time_left(timeout_us, slept))


def reconciliation(quota: Quota, reading: Reading) -> Reconcile:
    """Return the command that takes a reading; ConfigError for a plain bucket, which keeps its own books."""
    instance("reading", reading, Reading)
    if not quota.synced:
        msg = "a plain bucket keeps its own books: make its quota with synced=True to follow a server's readings"
        raise ConfigError(msg)
    return Reconcile(reading)


def on_leaving(quota: Quota, hold_id: str) -> Settle | None:
    """Return what ends a hold that was left unsettled: its estimate stays charged.

    On a synced bucket nothing yet: the call may still be under way at the server, and the hold must outlive
    readings that don't know its cost. It runs out and is charged then.
    """
    return None if quota.synced else Settle(hold_id)


def refund(tokens: int, refund_id: str) -> Plan[bool]:
    """Give tokens back, once; False if the refund did not count."""
    whole("tokens", tokens)
    # The bucket's own time of issue tells a late repeat from a first sending.
    issued = (yield from apply(Peek())).now_us
    return (yield from apply(Refund(refund_id, tokens, issued))).found


def peek(tokens: int, keep: int) -> Plan[Snapshot]:
    """Look, writing nothing but repairs."""
    whole("tokens", tokens)
    whole("keep", keep)
    return snapshot_of((yield from apply(Peek(tokens, keep))))


def snapshot_of(outcome: Outcome) -> Snapshot:
    """Return the snapshot that came with an outcome."""
    if outcome.snapshot is None:
        msg = "a storage must answer Peek and Reconcile with a snapshot"
        raise TypeError(msg)
    return outcome.snapshot


def pause(quota: Quota, outcome: Outcome, tokens: int, left_us: int) -> Plan[int]:
    """Wait after a refusal and return for how long; or raise at once if it can't end within `left_us`."""
    retry = outcome.retry_after_us
    if outcome.reason is Reason.TOO_LARGE:
        raise refusal(NotEnoughTokens, outcome, tokens)
    if outcome.reason is Reason.UNKNOWN:
        # The wait isn't known: a probe may end it any moment.
        if left_us <= 0:
            raise refusal(AcquireTimeout, outcome, tokens)
        duration = min(retry, UNKNOWN_PAUSE_US, left_us)
    elif retry > left_us or (retry >= LIMIT and not quota.synced):
        raise refusal(AcquireTimeout, outcome, tokens)
    else:
        duration = min(retry, LONGEST_PAUSE_US) if quota.synced else retry
    duration = max(1, duration)
    spread = max(0, min(duration // 20, MICROSECONDS // 4, left_us - duration))
    yield Sleep(duration, spread, outcome.reason)
    return duration


def refusal(kind: type[NotEnoughTokens], outcome: Outcome, tokens: int) -> NotEnoughTokens:
    """Return a refusal as the error that a door raises."""
    return kind(
        tokens, retry_after=seconds(outcome.retry_after_us), reason=str(outcome.reason), balance=outcome.balance
    )


def timeout_us(timeout: float | None) -> int | None:
    """Return a timeout in microseconds; None and inf: none."""
    if timeout is None or timeout == float("inf"):
        return None
    value = microseconds("timeout", timeout)
    if value < 0:
        msg = f"timeout={timeout!r} is out of range: give seconds from 0, or None to wait for as long as it takes"
        raise ConfigError(msg)
    return value


def hold_for_us(hold_for: float) -> int:
    """Return the lifetime of a hold in microseconds: more than 0, a day at most."""
    value = microseconds("hold_for", hold_for)
    if not 0 < value <= MAX_HOLD_US:
        msg = f"hold_for={hold_for!r} is out of range: give seconds above 0, up to 86400 (a day)"
        raise ConfigError(msg)
    return value


def checked_key(key: str) -> str:
    """Return `key` if it can name a bucket: 1 to 256 printable characters without spaces."""
    instance("key", key, str)
    if not key or len(key) > LONGEST_KEY or not key.isprintable() or any(letter.isspace() for letter in key):
        msg = f"key={key[:60]!r} can't name a bucket: give 1 to {LONGEST_KEY} printable characters without spaces"
        raise ConfigError(msg)
    return key


def unknown_verb(verb: Verb) -> TypeError:
    """Return the error for a verb that a driver doesn't know."""
    return TypeError(f"a plan may only ask for what its driver can do, not {verb!r}")


def time_left(timeout_us: int | None, slept_us: int) -> int:
    """Return what is left of a timeout; LIMIT: there is none."""
    return LIMIT if timeout_us is None else timeout_us - slept_us


def _wait_for_place(outcome: Outcome) -> Plan[None]:
    if outcome.place_us > 0:
        yield Sleep(outcome.place_us, 0, Reason.EMPTY)
