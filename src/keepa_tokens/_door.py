"""One bucket, as a door holds it: its terms, its key, its storage, its clock, and who is told."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction
from math import inf
from time import monotonic_ns
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast
from weakref import ref

from ._arguments import NotCopied, checked_key, checked_label, hold_for_us, instance, shown, whole
from ._bell import Bell
from ._interrupts import interrupt_in
from ._plans import Grant, Patience, Taken, ticket_for
from .clock import Clock, SystemClock
from .errors import ConfigError, StorageUnavailable
from .events import Contained, Event, EventKind, Listener, LoggingListener, events_of
from .quota import Quota
from .rules.commands import Acquire, Command, Outcome, Reserve, Settle
from .rules.decision import Decision, Reason
from .rules.fast_path import take
from .rules.reading import Reading
from .storage._working import Bucket
from .storage.base import AsyncStorage, Storage
from .storage.memory import MemoryStorage
from .units import LIMIT, MICROSECONDS, NEVER, seconds

P = ParamSpec("P")
T = TypeVar("T")
S_co = TypeVar("S_co", covariant=True)

_NONE: Final = 0
_ONE: Final = 1
"""The `keep` and the cost of most calls. To be this very object is what proves it an int and its value at once."""

_GRANTED: Final = Reason.GRANTED  # here, because a member of an enumeration is looked up slowly
_EMPTY: Final = Reason.EMPTY
_EMPTY_TEXT: Final = str(Reason.EMPTY)
_new: Final = object.__new__


class Door(Generic[S_co]):
    """What both doors have in common. Its state is in the storage; in memory it remembers where."""

    __slots__ = (
        "_bucket",
        "_empty",
        "_hears",
        "_listener",
        "_log",
        "_memory",
        "_refused",
        "bell",
        "clock",
        "key",
        "quota",
        "sleeper",
        "storage",
        "under_way",
    )

    def __init__(self, quota: Quota, key: str, storage: S_co, clock: Clock | None, listener: Listener | None) -> None:
        self.quota = instance("quota", quota, Quota)
        self.key = checked_key(key)
        self.storage = storage
        self.clock = None if clock is None else _checked_clock(clock)
        self.sleeper: Clock = SystemClock() if clock is None else clock
        self.listener = LoggingListener() if listener is None else listener
        self.bell = Bell()
        # The clean-up that still goes on after calls of coroutines that were interrupted: tasks.
        self.under_way: set[Any] = set()
        # Most buckets live in memory, and most calls there need no command, no outcome and no event.
        where: object = storage
        self._memory = where if type(where) is MemoryStorage else None
        self._bucket: Bucket | None = None
        # Of the last refusal of one token: the level that it found at 0, and the instant at which the token comes.
        self._empty: tuple[tuple[int, int, int], int] | None = None

    @property
    def listener(self) -> Listener:
        """Who is told what happens."""
        return self._listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        if not callable(listener):
            raise TypeError(f"listener must be callable with an Event, not {shown(listener)}")
        if iscoroutinefunction(listener) or iscoroutinefunction(type(listener).__call__):
            raise TypeError(f"listener is called, never awaited: give a plain function, not {shown(listener)}")
        self._listener = listener
        self._hears = Contained(listener)
        self._log = listener if type(listener) is LoggingListener else None
        self._refused = None if self._log is None else self._log.refused

    def now_us(self) -> int | None:
        """Return the caller's time, or None: the storage's own."""
        if self.clock is None:
            return None
        now = self.clock.now_us()
        return now if type(now) is int and 0 <= now < LIMIT else whole("clock.now_us()", now)

    def elapsed_us(self) -> int:
        """Return the time by which timeouts are measured: the caller's clock, else the monotonic one."""
        now = self.now_us()
        return time.monotonic_ns() // 1000 if now is None else now

    def tell(self, command: Command, outcome: Outcome) -> None:
        """Tell the listener what a command that was carried out amounts to."""
        if self._log is not None and not self._log.has_news(self.key, outcome):
            return
        for event in events_of(self.key, command, outcome):
            self._hears(event)

    def at_once(self, tokens: int, keep: int, wait_us: int) -> Decision | None:  # noqa: C901, PLR0912 - each call costs a tenth
        """Take from memory what is there, tell the listener, and return the decision.

        None: nothing was done, and nothing was checked. wait_us: how long the caller waits; one who does is not refused
        here.
        """
        memory = self._memory
        if memory is None or keep is not _NONE:
            return None
        if tokens is not _ONE and (type(tokens) is not int or not 0 < tokens <= self.quota.capacity):
            return None
        callers = None if self.clock is None else self.now_us()
        if memory.lock.locked():
            memory.give_way()
        with memory.lock:
            now = monotonic_ns() // 1000 if callers is None else callers
            bucket = self._bucket
            if bucket is None or now >= bucket.until:
                bucket = memory.served(self.key, self.quota, now, own=callers is None)
                if bucket is None:
                    return None
                if callers is None:
                    self._bucket = bucket
            refusal: tuple[int, int] | None
            known = self._empty
            if known is not None and known[0] is bucket.level and now < known[1] and tokens is _ONE:
                refusal = _NONE, known[1] - now
            else:
                refusal = take(bucket, now, tokens, 0)
                if refusal is None:
                    bucket.version += 1
                    bucket.touched = now
                elif tokens is _ONE and bucket.level[0] == refusal[0] == _NONE and refusal[1] < NEVER:
                    self._empty = bucket.level, now + refusal[1]
            balance = bucket.level[0]
        # Filled in by hand: to call the class would cost a tenth of the step.
        decision = _new(Decision)
        if refusal is None:
            decision.granted = True
            decision.reason = _GRANTED
            decision.retry_after = 0.0
        else:
            balance, wait = refusal
            if wait_us or wait >= NEVER:
                return None
            decision.granted = False
            decision.reason = _EMPTY
            decision.retry_after = wait / MICROSECONDS
        decision.balance = balance
        decision.waited = 0.0
        decision.repaired = ()
        decision.probe = False
        refused = self._refused
        if refusal is None:
            if refused is None or (refused and self.key in refused):
                self._decided(tokens, decision)
        elif refused is None or refused.get(self.key) != _EMPTY_TEXT:
            self._decided(tokens, decision)
        return decision

    def _decided(self, tokens: int, decision: Decision) -> None:
        retry_after_us = min(NEVER, round(decision.retry_after * MICROSECONDS)) if decision.retry_after < inf else NEVER
        outcome = Outcome(0, decision.balance, decision.granted, decision.reason, retry_after_us)
        for event in events_of(self.key, Acquire(tokens), outcome):
            self._hears(event)

    def waited(self, tokens: int, duration_us: int) -> None:
        """Tell the listener that somebody who had to wait goes now."""
        if duration_us and self._log is None:
            self._hears(Event(EventKind.WAITED, self.key, tokens, seconds=seconds(duration_us)))

    def away(self, error: StorageUnavailable) -> None:
        """Tell the listener that the storage did not answer."""
        self.say(EventKind.STORAGE_AWAY, str(error))

    def say(self, kind: EventKind, why: str, tokens: int = 0) -> None:
        """Tell the listener of something that no command brought about."""
        self._hears(Event(kind, self.key, tokens, why=why))

    def not_given_back(self, tokens: int, why: str) -> None:
        """Tell the listener that an interrupted call may have left something behind; a hold runs out by itself."""
        if tokens == 0:
            # Only a place in line, which lapses by itself.
            return
        self.say(
            EventKind.NOT_GIVEN_BACK, f"an interrupted call may have left up to {tokens} tokens taken: {why}", tokens
        )

    def pause(self, duration_us: int, spread_us: int, reason: str) -> float:
        """Return how long to sleep, in seconds, having told the listener."""
        duration = seconds(duration_us)
        if self._log is None:
            self._hears(Event(EventKind.WAITING, self.key, seconds=duration, why=str(reason)))
        # Never minus: a microsecond early is a refusal. Nobody's secret hangs on this randomness.
        return duration + random.random() * seconds(spread_us)  # noqa: S311

    def reservation(
        self, tokens: int, keep: int, hold_for: float, label: str, patience: Patience | None = None
    ) -> Reserve:
        """Return the command that sets tokens aside; raises for what makes none. patience: of who stands in line."""
        tokens, keep = cost(self.quota, tokens, keep)
        hold_id = new_id()
        ticket = None if patience is None else ticket_for(hold_id, patience.left_us())
        return Reserve(hold_id, tokens, hold_for_us(hold_for), keep, label=checked_label(label), ticket=ticket)


class BucketBase(NotCopied, Generic[S_co]):
    """What `TokenBucket` and `AsyncTokenBucket` have in common. Stateless; the state is in the storage."""

    _door: Door[S_co]

    @property
    def quota(self) -> Quota:
        """The terms."""
        return self._door.quota

    @property
    def key(self) -> str:
        """The bucket's name in the storage."""
        return self._door.key

    @property
    def storage(self) -> S_co:
        """Where the bucket lives."""
        return self._door.storage

    @property
    def clock(self) -> Clock | None:
        """Whose time it runs by; None: the storage's own."""
        return self._door.clock

    @property
    def listener(self) -> Listener:
        """Who is told what happens and why."""
        return self._door.listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._door.listener = listener

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.quota!r}, key={self.key!r})"


class DoorSteps(Taken, Generic[S_co]):
    """What the steps of one call have in common, for a thread and for a coroutine."""

    __slots__ = ("door",)

    def __init__(self, door: Door[S_co], taking: Acquire | None = None) -> None:
        super().__init__(taking)
        self.door = door

    def ended(self, command: Command, outcome: Outcome) -> Outcome:
        """Take note of what a command came to, wake who may be served now, and tell the listener."""
        self.told(command, outcome)
        if self.door.bell and self.brings(command, outcome):
            self.door.bell.ring(self.door.key)
        self.door.tell(command, outcome)
        return outcome

    def is_probes(self, error: BaseException) -> bool:
        """Whether a mistake is a probe's, of the wrong kind, or hides an interrupt; a command's own takes nothing."""
        return isinstance(error, ConfigError) and (self.sent is None or interrupt_in(error) is not None)

    def went(self, tokens: int, waited_us: int) -> None:
        """Tell the listener that a call goes."""
        self.door.waited(tokens, waited_us)

    def elapsed_us(self) -> int:
        """Return the time by which timeouts are measured."""
        return self.door.elapsed_us()


class Reserved(NotCopied, Generic[S_co]):
    """What `Reservation` and `AsyncReservation` have in common."""

    def __init__(self, door: Door[S_co], grant: Grant) -> None:
        self._door = door
        self._label = grant.label
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.open = True
        self._watch: object = watched(self, door, "reservation", RESERVATION_ADVICE, self.tokens)

    def _settling(self, actual: int, reading: Reading | None) -> Settle:
        if reading is not None:
            instance("reading", reading, Reading)
        return Settle(self.id, whole("actual", actual), reading, label=self._label)

    def _ended(self) -> None:
        self.open, self._watch = False, None

    def _left(self, kind: type[BaseException] | None) -> Settle | None:
        """Return what ends the hold where its block ends; None: nothing.

        Left unsettled, its estimate stays charged. On a synced bucket nothing is done yet: the call may still be under
        way at the server, and the hold must outlive readings that don't know its cost. It is charged when it runs out.
        """
        if not self.open:
            return None
        if not self._door.quota.synced:
            return self._settling(self.tokens, None)
        if kind is None:
            left_unsettled(self._door, "reservation", self.tokens, RESERVATION_ADVICE)
        self._watch = None
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, tokens={self.tokens}, open={self.open})"


def blocking(storage: object) -> Storage:
    """Return `storage` if it is one for threads; ConfigError says what to give instead."""
    apply = _apply_of(storage)
    if iscoroutinefunction(apply):
        raise ConfigError(
            f"{_named(storage)} is a storage for coroutines: give it to an AsyncTokenBucket, and a TokenBucket a"
            " blocking one, e.g. RedisStorage"
        )
    return cast("Storage", storage)


def awaited(storage: object) -> AsyncStorage | MemoryStorage:
    """Return `storage` if it is one for coroutines; ConfigError says what to give instead."""
    apply = _apply_of(storage)
    if isinstance(storage, MemoryStorage):
        return storage
    if not iscoroutinefunction(apply):
        raise ConfigError(
            f"{_named(storage)} blocks: give it to a TokenBucket, and an AsyncTokenBucket an async storage, e.g."
            " AsyncRedisStorage, or MemoryStorage"
        )
    return cast("AsyncStorage", storage)


def came_to(error: BaseException, sent: Command | None) -> Outcome | None:
    """Return what `sent` came to, if a signal's exception struck its step after it had counted; None: it didn't count.

    A step in memory that is struck before its end has changed nothing. Between its end and whoever asked lie the lock's
    release and the listener.
    """
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code is MemoryStorage.apply.__code__ and frame.f_locals["command"] is sent:
            return frame.f_locals.get("outcome")
        if frame.f_code is Door[object].at_once.__code__ and "refusal" in frame.f_locals:
            return Outcome(frame.f_locals["now"], None, granted=frame.f_locals["refusal"] is None)
    return None


def _apply_of(storage: object) -> object:
    """Return the method that makes a storage. What a wrong argument is, is named, not shown: a URL holds a password."""
    if isinstance(storage, (str, bytes)):
        raise ConfigError(
            "storage is a text: for the place that a URL names give RedisStorage.from_url(url), or for coroutines"
            " AsyncRedisStorage.from_url(url)"
        )
    if isinstance(storage, type):
        raise ConfigError(f"storage is the class {storage.__name__}: give an instance of it, e.g. {storage.__name__}()")
    if hasattr(storage, "execute_command"):
        raise ConfigError(
            f"{_named(storage)} is a client: give RedisStorage(client), or for coroutines AsyncRedisStorage(client)"
        )
    apply: object = getattr(storage, "apply", None)
    if not callable(apply):
        raise ConfigError(
            f"{_named(storage)} is no storage: give MemoryStorage(), RedisStorage.from_url(url), or one of your own"
        )
    return apply


def _named(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__name__}"


def _checked_clock(clock: Clock) -> Clock:
    lacking = [name for name in ("now_us", "sleep", "asleep") if not callable(getattr(clock, name, None))]
    if lacking or isinstance(clock, type):
        raise TypeError(f"clock must be a Clock, not {shown(clock)}: it needs now_us(), sleep() and asleep()")
    return clock


def decorated(function: Callable[P, T], *, suspends: bool) -> Callable[P, T]:
    """Return `function` if a bucket can stand before it; ConfigError for one of the other door's kind."""
    given = cast("object", function)  # nobody may have checked
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"limit() decorates a function, not {shown(given)}: write @bucket.limit() above its def")
    name = getattr(given, "__qualname__", type(given).__qualname__)
    coroutine = iscoroutinefunction(given) or iscoroutinefunction(type(given).__call__)
    if suspends and not coroutine:
        raise ConfigError(f"{name} is no coroutine function: decorate it by a TokenBucket, or write async def")
    if not suspends and (coroutine or isasyncgenfunction(function)):
        raise ConfigError(
            f"{name} is a coroutine function: a TokenBucket would block its loop; use an AsyncTokenBucket"
        )
    return function


def cost(quota: Quota, tokens: int, keep: int, name: str = "tokens") -> tuple[int, int]:
    """Return what is asked for and what is to be left, as ints; raises as `Quota.check_cost`."""
    if type(tokens) is int and type(keep) is int and keep == 0 and 0 <= tokens <= quota.capacity:
        return tokens, keep
    tokens, keep = whole(name, tokens), whole("keep", keep)
    quota.check_cost(tokens, keep)
    return tokens, keep


def left_unsettled(door: Door[object], what: str, tokens: int, then: str, _: object = None) -> None:
    """Warn of tokens that were set aside and not settled, and say what to do."""
    message = f"a {what} of {tokens} tokens was left without settle() or cancel(): {then}"
    door.say(EventKind.LEFT_UNSETTLED, message, tokens)
    warnings.warn(message, ResourceWarning, stacklevel=3)


def watched(owner: object, door: Door[object], what: str, then: str, tokens: int) -> object:
    """Warn when `owner` is thrown away, for as long as what this returns is kept.

    A `__del__` would run for each, settled or not, and a signal's exception that is raised in one is lost.
    """
    return ref(owner, partial(left_unsettled, door, what, tokens, then))


CALL_ADVICE: Final = (
    "it is charged in full when its hold runs out. Give it the answer, call.settle(answer.content, status=...), or"
    " call.settle() where none came"
)

RESERVATION_ADVICE: Final = "it stays charged in full. Settle it at what it cost"


def new_id() -> str:
    """Return an id for a hold or a refund that nobody else has."""
    return os.urandom(16).hex()
