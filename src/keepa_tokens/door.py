"""What the sync and the async door have in common: which bucket, by whose clock, who is told."""

from __future__ import annotations

import random
import uuid

from .clock import Clock, SystemClock
from .events import Event, EventKind, Listener, LoggingListener, events_of
from .plans import Sleep, checked_key
from .quota import Quota
from .rules.commands import Command, Outcome
from .units import instance, seconds

__all__ = ["Door"]


class Door:
    """One bucket, as a caller holds it: its terms, its key, its clock, its listener. No state of its own."""

    def __init__(self, quota: Quota, key: str, clock: Clock | None, listener: Listener | None) -> None:
        self.quota = instance("quota", quota, Quota)
        self.key = checked_key(key)
        self.clock = clock
        self.listener: Listener = LoggingListener() if listener is None else listener
        self.sleeper: Clock = SystemClock() if clock is None else clock

    def now_us(self) -> int | None:
        """Return the caller's time, or None: the storage's own."""
        return None if self.clock is None else self.clock.now_us()

    def tell(self, command: Command, outcome: Outcome) -> None:
        """Tell the listener what an applied command amounts to."""
        for event in events_of(self.key, command, outcome):
            self.listener(event)

    def pause(self, sleep: Sleep) -> float:
        """Return how long to sleep, in seconds, having told the listener."""
        duration = seconds(sleep.duration_us)
        self.listener(Event(EventKind.WAITING, self.key, seconds=duration, why=str(sleep.reason)))
        # Never minus: a microsecond early is a refusal. Nobody's secret hangs on this randomness.
        return duration + random.random() * seconds(sleep.spread_us)  # noqa: S311

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.quota!r}, key={self.key!r})"


def new_id() -> str:
    """Return an id for a hold or a refund that nobody else has."""
    return uuid.uuid4().hex
