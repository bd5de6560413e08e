"""One bucket, as a door holds it: its terms, its key, its storage, its clock, and who is told."""

from __future__ import annotations

import os
import random
import time
from math import inf
from typing import Generic, TypeVar

from ._arguments import checked_key, instance
from .clock import Clock, SystemClock
from .events import Contained, Event, EventKind, Listener, LoggingListener, events_of
from .quota import Quota
from .rules.commands import Acquire, Command, Outcome
from .rules.decision import Decision, Reason
from .units import MICROSECONDS, NEVER, seconds

S_co = TypeVar("S_co", covariant=True)


class Door(Generic[S_co]):
    """What both doors have in common. Stateless but for its listener; the state is in the storage."""

    __slots__ = ("_hears", "_listener", "_log", "clock", "key", "quota", "sleeper", "storage")

    def __init__(self, quota: Quota, key: str, storage: S_co, clock: Clock | None, listener: Listener | None) -> None:
        self.quota = instance("quota", quota, Quota)
        self.key = checked_key(key)
        self.storage = storage
        self.clock = clock
        self.sleeper: Clock = SystemClock() if clock is None else clock
        self.listener = LoggingListener() if listener is None else listener

    @property
    def listener(self) -> Listener:
        """Who is told what happens."""
        return self._listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._listener = listener
        self._hears = Contained(listener)
        self._log = listener if type(listener) is LoggingListener else None

    def now_us(self) -> int | None:
        """Return the caller's time, or None: the storage's own."""
        return None if self.clock is None else self.clock.now_us()

    def elapsed_us(self) -> int:
        """Return the time by which timeouts are measured: the caller's clock, else the monotonic one."""
        return time.monotonic_ns() // 1000 if self.clock is None else self.clock.now_us()

    def tell(self, command: Command, outcome: Outcome) -> None:
        """Tell the listener what an applied command amounts to."""
        if self._log is not None and not self._log.has_news(self.key, outcome):
            return
        for event in events_of(self.key, command, outcome):
            self._hears(event)

    def decided(self, tokens: int, decision: Decision) -> None:
        """Tell the listener of a decision that was taken without a command."""
        if self._log is not None and not self._log.is_news(self.key, decision):
            return
        retry_after_us = min(NEVER, round(decision.retry_after * MICROSECONDS)) if decision.retry_after < inf else NEVER
        outcome = Outcome(0, decision.balance, decision.granted, decision.reason, retry_after_us)
        for event in events_of(self.key, Acquire(tokens), outcome):
            self._hears(event)

    def say(self, kind: EventKind, why: str, tokens: int = 0) -> None:
        """Tell the listener of something that no command brought about."""
        self._hears(Event(kind, self.key, tokens, why=why))

    def not_given_back(self, tokens: int, why: str) -> None:
        """Tell the listener that an interrupted call may have left something behind; a hold runs out by itself."""
        self.say(
            EventKind.NOT_GIVEN_BACK, f"an interrupted call may have left up to {tokens} tokens taken: {why}", tokens
        )

    def pause(self, duration_us: int, spread_us: int, reason: Reason) -> float:
        """Return how long to sleep, in seconds, having told the listener."""
        duration = seconds(duration_us)
        if self._log is None:
            self._hears(Event(EventKind.WAITING, self.key, seconds=duration, why=str(reason)))
        # Never minus: a microsecond early is a refusal. Nobody's secret hangs on this randomness.
        return duration + random.random() * seconds(spread_us)  # noqa: S311

    def described(self, kind: str) -> str:
        """Return the repr of the bucket of class `kind` that holds this door."""
        return f"{kind}({self.quota!r}, key={self.key!r})"


def new_id() -> str:
    """Return an id for a hold or a refund that nobody else has."""
    return os.urandom(16).hex()
