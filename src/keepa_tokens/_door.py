"""A door is how a program uses one bucket: by its terms, its key, its storage, its clock, and who is told."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from inspect import isasyncgenfunction
from time import monotonic_ns
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast

from ._arguments import LONGEST_LABEL, NotCopied, checked_key, hold_for_us, instance, printable, shown, suspends, whole
from ._bell import Bell
from .clock import Clock, SystemClock
from .errors import ConfigError, StorageUnavailable
from .events import Event, EventKind, Listener, LoggingListener, checked_listener, events_of, log_failed
from .quota import Quota
from .rules.commands import Acquire, Command, Outcome, Reserve
from .rules.decision import Decision, Reason
from .rules.fast_path import take
from .storage._memory_bucket import Bucket
from .storage.memory import MemoryStorage
from .units import LIMIT, MICROSECONDS, NEVER, seconds

P = ParamSpec("P")
T = TypeVar("T")
S_co = TypeVar("S_co", covariant=True)

_ZERO: Final = 0
_ONE: Final = 1
"""The `keep` and the cost of most calls. `is` asks for type and value at once: Python has each small int only once."""

_GRANTED: Final = Reason.GRANTED  # here, because a member of an enumeration is looked up slowly
_EMPTY: Final = Reason.EMPTY
_EMPTY_TEXT: Final = str(Reason.EMPTY)
_new: Final = object.__new__


class Door(Generic[S_co]):
    """What both doors have in common. The state is in the storage; in memory a door also remembers its bucket."""

    __slots__ = (
        "_bucket",
        "_empty",
        "_failed",
        "_listener",
        "_log",
        "_memory",
        "_refused",
        "_telling",
        "bell",
        "clock",
        "key",
        "quota",
        "sleeper",
        "storage",
        "under_way",
        "untold",
    )

    def __init__(
        self, quota: Quota, key: str | None, storage: S_co, clock: Clock | None, listener: Listener | None
    ) -> None:
        self.quota = instance("quota", quota, Quota)
        if key is None and not isinstance(cast("object", storage), MemoryStorage):
            # Two programs that leave it out would spend from one bucket, and not know it.
            raise ConfigError('key is missing: others can share this storage, so name the bucket, e.g. key="my-api"')
        self.key = checked_key("default" if key is None else key)
        self.storage = storage
        self.clock = None if clock is None else _checked_clock(clock)
        self.sleeper: Clock = SystemClock() if clock is None else clock
        self.listener = LoggingListener() if listener is None else listener
        # Tasks that still clean up after interrupted calls of coroutines.
        self.under_way: set[Any] = set()
        # Threads that just tell the listener that the storage is away; events to be told with the next command.
        self._telling: list[int] = []
        self.untold: list[Event] = []
        # Most buckets live in memory, and most calls there need no command, no outcome and no event.
        where: object = storage
        self._memory = where if type(where) is MemoryStorage else None
        self.bell = Bell() if self._memory is None else self._memory.bell
        self._bucket: Bucket | None = None
        # Of the last refusal of one token: the level that it found at 0, and the instant at which the token comes.
        self._empty: tuple[tuple[int, int, int], int] | None = None

    @property
    def listener(self) -> Listener:
        return self._listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._listener = checked_listener(listener)
        self._failed = False
        self._log = listener if type(listener) is LoggingListener else None
        self._refused = None if self._log is None else self._log.refused

    def _notify(self, event: Event) -> None:
        """Tell the listener, and log the first error that it raises.

        It harms nobody: what happened to the bucket has happened, and its caller must be told.
        """
        try:
            self._listener(event)
        except Exception as error:  # noqa: BLE001 - whatever another's code raises
            if not self._failed:
                self._failed = True
                log_failed(event, error)

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
        """Tell the listener the events of a command that was carried out."""
        while self.untold:
            with suppress(IndexError):  # another thread was quicker
                self._notify(self.untold.pop(0))
        if self._log is not None and not self._log.has_news(self.key, outcome):
            return
        for event in events_of(self.key, command, outcome):
            self._notify(event)

    def at_once(self, tokens: int, keep: int, wait_us: int) -> Decision | None:  # noqa: C901, PLR0912 - each call costs a tenth
        """Take from memory what is there, tell the listener, and return the decision.

        None: nothing was done, and nothing was checked. wait_us: how long the caller waits; a caller that waits is not
        refused here.
        """
        memory = self._memory
        if memory is None or keep is not _ZERO:
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
            refusal: tuple[int, int] | None  # the balance, and how long until the tokens are there
            known = self._empty
            if known is not None and known[0] is bucket.level and now < known[1] and tokens is _ONE:
                refusal = 0, known[1] - now
            else:
                refusal = take(bucket, now, tokens, 0)
                if refusal is None:
                    bucket.version += 1
                    bucket.touched = now
                elif tokens is _ONE and bucket.level[0] == refusal[0] == 0 and refusal[1] < NEVER:
                    self._empty = bucket.level, now + refusal[1]
            balance = bucket.level[0]
        # Filled in by hand: to call the class would cost a tenth of the step.
        decision = _new(Decision)
        decision.waited = 0.0
        decision.repaired = ()
        decision.probe = False
        # Most decisions are no news to the log, so no event is made for them.
        refused = self._refused
        if refusal is None:
            decision.granted = True
            decision.reason = _GRANTED
            decision.balance = balance
            decision.retry_after = 0.0
            if refused is None or (refused and self.key in refused):
                self.tell(Acquire(tokens), Outcome(now, balance, granted=True))
            return decision
        balance, wait = refusal
        if wait_us or wait >= NEVER:
            return None
        decision.granted = False
        decision.reason = _EMPTY
        decision.balance = balance
        decision.retry_after = wait / MICROSECONDS
        if refused is None or refused.get(self.key) != _EMPTY_TEXT:
            self.tell(Acquire(tokens), Outcome(now, balance, reason=_EMPTY, retry_after_us=wait))
        return decision

    def waited(self, tokens: int, duration_us: int) -> None:
        """Tell the listener that a caller that had to wait may go now."""
        if duration_us and self._log is None:
            self._notify(Event(EventKind.WAITED, self.key, tokens, seconds=seconds(duration_us)))

    def say(self, kind: EventKind, why: str, tokens: int = 0) -> None:
        """Tell the listener of something that no command brought about."""
        self._notify(Event(kind, self.key, tokens, why=why))

    def away(self, error: StorageUnavailable) -> None:
        """Tell the listener that the storage did not answer, unless it asked the storage itself while it is told so."""
        thread = threading.get_ident()
        if thread not in self._telling:
            self._telling.append(thread)
            try:
                self.say(EventKind.STORAGE_AWAY, str(error))
            finally:
                self._telling.remove(thread)

    def not_given_back(self, tokens: int, why: str) -> None:
        """Tell the listener that an interrupted call may have left something behind; a hold runs out by itself."""
        if tokens:  # else only a place in line, which lapses by itself
            why = f"an interrupted call may have left up to {tokens} tokens taken: {why}"
            self.say(EventKind.NOT_GIVEN_BACK, why, tokens)

    def sleep_seconds(self, duration_us: int, spread_us: int, reason: str) -> float:
        """Return how long to sleep, in seconds, having told the listener."""
        duration = seconds(duration_us)
        if self._log is None:
            self._notify(Event(EventKind.WAITING, self.key, seconds=duration, why=str(reason)))
        # Only ever longer: a microsecond too early is refused. No secret depends on this randomness.
        return duration + random.random() * seconds(spread_us)  # noqa: S311

    def reservation(self, tokens: int, keep: int, hold_for: float, label: str, *, waits: bool = False) -> Reserve:
        """Return the command that sets tokens aside; raises for wrong arguments. waits: the caller stands in line."""
        tokens, keep = cost(self.quota, tokens, keep)
        label = printable("label", label, 0, LONGEST_LABEL)
        hold_id = new_id()
        ticket = hold_id if waits else None
        return Reserve(hold_id, tokens, hold_for_us(hold_for), keep, label=label, ticket=ticket)


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


def door_of(bucket: BucketBase[S_co]) -> Door[S_co]:
    """Return the inside of a bucket, for the other doors of this library."""
    return bucket._door  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the library's own


def struck_outcome(error: BaseException, sent: Command | None) -> Outcome | None:
    """Return the outcome of `sent` if a signal's exception struck after its step had counted; None: it didn't count.

    A step in memory that is struck before its end has changed nothing. After its end a signal may still strike while
    the lock is let go or the listener is told: then the outcome is in the traceback.
    """
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code is MemoryStorage.apply.__code__ and frame.f_locals["command"] is sent:
            return frame.f_locals.get("outcome")
        if frame.f_code is Door[object].at_once.__code__ and "refusal" in frame.f_locals:
            return Outcome(frame.f_locals["now"], None, granted=frame.f_locals["refusal"] is None)
    return None


def checked_storage(storage: T, *, blocks: bool) -> T:
    """Return `storage` if it is one for threads (`blocks`), or for coroutines; ConfigError says what to give instead.

    The error names the type of a wrong argument and doesn't show it: a URL may hold a password.
    """
    if isinstance(storage, (str, bytes)):
        raise ConfigError(
            "storage is a text: for the place that a URL names give RedisStorage.from_url(url), or for coroutines"
            " AsyncRedisStorage.from_url(url)"
        )
    if isinstance(storage, type):
        raise ConfigError(f"storage is the class {storage.__name__}: give an instance of it, e.g. {storage.__name__}()")
    named = f"{type(storage).__module__}.{type(storage).__name__}"
    apply: object = getattr(storage, "apply", None)
    if hasattr(storage, "execute_command"):
        raise ConfigError(
            f"{named} is a client: give RedisStorage(client), or for coroutines AsyncRedisStorage(client)"
        )
    if not callable(apply):
        raise ConfigError(
            f"{named} is no storage: give MemoryStorage(), RedisStorage.from_url(url), or one of your own"
        )
    awaited = suspends(apply)
    if blocks and awaited:
        raise ConfigError(
            f"{named} is a storage for coroutines: give it to an AsyncTokenBucket, and a TokenBucket a blocking one,"
            " e.g. RedisStorage"
        )
    if not blocks and not awaited and not isinstance(storage, MemoryStorage):
        raise ConfigError(
            f"{named} blocks: give it to a TokenBucket, and an AsyncTokenBucket an async storage, e.g."
            " AsyncRedisStorage, or MemoryStorage"
        )
    return storage


def _checked_clock(clock: Clock) -> Clock:
    lacking = [name for name in ("now_us", "sleep", "asleep") if not callable(getattr(clock, name, None))]
    if lacking or isinstance(clock, type):
        raise TypeError(f"clock must be a Clock, not {shown(clock)}: it needs now_us(), sleep() and asleep()")
    return clock


def check_limit(quota: Quota, tokens: int, keep: int) -> None:
    """Raise now what this cost would raise at each call of the decorated function."""
    if callable(tokens):
        raise TypeError("write @bucket.limit(), with the parentheses")
    cost(quota, tokens, keep)


def decorated(function: Callable[P, T], *, awaited: bool) -> Callable[P, T]:
    """Return `function` if this door can decorate it; raises ConfigError for one that only the other door can."""
    given = cast("object", function)  # nobody may have checked
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"limit() decorates a function, not {shown(given)}: write @bucket.limit() above its def")
    name = getattr(given, "__qualname__", type(given).__qualname__)
    if isasyncgenfunction(function):
        raise ConfigError(f"{name} is an async generator, of which a call runs nothing: await bucket.acquire() in it")
    if awaited and not suspends(given):
        raise ConfigError(f"{name} is no coroutine function: decorate it by a TokenBucket, or write async def")
    if not awaited and suspends(given):
        raise ConfigError(
            f"{name} is a coroutine function: a TokenBucket would block its loop; use an AsyncTokenBucket"
        )
    return function


def cost(quota: Quota, tokens: int, keep: int, name: str = "tokens") -> tuple[int, int]:
    """Return `tokens` and `keep` as ints; raises as `Quota.check_cost`. name: of `tokens`, for the error."""
    if type(tokens) is int and type(keep) is int and keep == 0 and 0 <= tokens <= quota.capacity:
        return tokens, keep
    tokens, keep = whole(name, tokens), whole("keep", keep)
    quota.check_cost(tokens, keep)
    return tokens, keep


def new_id() -> str:
    """Return an id for a hold or a refund that nobody else has."""
    return os.urandom(16).hex()
