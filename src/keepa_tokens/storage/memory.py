"""States in this process: one lock around `transition`."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterator

from ..quota import Quota
from ..rules.commands import Command, Outcome, Peek
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..rules.transition import lifetime_us, transition

__all__ = ["MemoryStorage"]

_SWEPT_PER_STEP = 2


class MemoryStorage:
    """Buckets in this process's memory, for threads and coroutines alike. Its own time is the monotonic clock.

    A bucket that would be full again is dropped as others are used (rule 9). Buckets used with a caller's clock
    are dropped by that clock, so give one storage one such clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, BucketState] = {}
        self._by_own_time, self._by_callers_time = _Deadlines(), _Deadlines()

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key` at `now_us` (None: monotonic time) and return what it came to."""
        with self._lock:
            deadlines, other, now = self._timed(now_us)
            stored = self._states.get(key)
            state, outcome = transition(quota, stored, now, command)
            if state is not None and state is not stored:
                self._states[key] = state
                other.remove(key)
                lifetime = lifetime_us(state, now)
                deadlines.set(key, None if lifetime is None else now + lifetime)
            for due in deadlines.due(now):
                del self._states[due]
            return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the quota last used on it, writing nothing; None if there is none.

        Without `now_us` a bucket used with a caller's clock is shown as at that clock's last step.
        """
        with self._lock:
            state = self._states.get(key)
            if state is None or state.quota is None:
                return None
            if now_us is None and key in self._by_callers_time:
                now_us = self._by_callers_time.seen
            return transition(state.quota, state, self._timed(now_us)[2], Peek())[1].snapshot

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets, as they were at the call."""
        with self._lock:
            return iter(list(self._states))

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def dump(self, key: str) -> BucketState | None:
        """Return the stored state of `key`, to move it elsewhere."""
        with self._lock:
            return self._states.get(key)

    def load(self, key: str, state: BucketState) -> None:
        """Store `state` under `key` as it is: whatever is wrong with it is mended at the next command."""
        with self._lock:
            self._states[key] = state

    def _timed(self, now_us: int | None) -> tuple[_Deadlines, _Deadlines, int]:
        if now_us is None:
            return self._by_own_time, self._by_callers_time, time.monotonic_ns() // 1000
        return self._by_callers_time, self._by_own_time, now_us


class _Deadlines:
    """When each bucket may be dropped, by one clock. A key is queued once and requeued when its time has moved on."""

    def __init__(self) -> None:
        self.seen = 0
        self._at: dict[str, int | None] = {}
        self._queue: list[tuple[int, str]] = []
        self._queued: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def set(self, key: str, at: int | None) -> None:
        self._at[key] = at
        if at is not None and key not in self._queued:
            self._queued.add(key)
            heapq.heappush(self._queue, (at, key))

    def remove(self, key: str) -> None:
        self._at.pop(key, None)

    def due(self, now: int) -> Iterator[str]:
        """Yield keys whose time has come, a few at each step: no thread, and no step pays for all."""
        self.seen = now
        for _ in range(_SWEPT_PER_STEP):
            if not self._queue or self._queue[0][0] > now:
                return
            _, key = heapq.heappop(self._queue)
            self._queued.discard(key)
            at = self._at.get(key)
            if at is None:
                continue
            if at > now:
                self.set(key, at)
            else:
                del self._at[key]
                yield key
