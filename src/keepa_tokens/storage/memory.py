"""States in this process: a working copy of each bucket, and one lock."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import currentframe
from math import inf
from time import monotonic_ns, sleep
from traceback import walk_stack
from types import FrameType
from typing import Final
from weakref import WeakSet

from .._arguments import NotCopied, instance, whole
from .._bell import Bell
from .._interrupts import Lock
from ..errors import StorageUnavailable
from ..quota import Quota
from ..rules.commands import Command, Outcome
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..rules.transition import Read, carry_out, inspected, lifetime_us, read_as
from ..units import YEAR_US
from ._memory_bucket import Bucket, bucket_of, new_bucket, serves, step
from .base import IN_ITS_MIDST, AsyncClosing, Closing

__all__ = ["MemoryStorage"]

_SWEPT_PER_STEP: Final = 2
_MOST_TIMES: Final = 100
"""How often a thread gives way before it waits at the lock."""
_METHODS: Final = {f"MemoryStorage.{name}" for name in ("apply", "inspect", "keys", "delete", "dump", "load")}
"""The methods that take the lock."""

_storages = WeakSet["MemoryStorage"]()


def _forked() -> None:
    """Give each storage a new lock in a forked child: the thread that had the old one may not exist here.

    Only `with` takes one, so that a signal's exception can't leave it held.
    """
    for storage in _storages:
        storage.lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@dataclass(slots=True)
class _Loaded:
    """A state from `load`: the next command mends whatever is wrong with it. The other fields are as in `Bucket`."""

    brought: BucketState
    quota: Quota | None = None
    until: int = 0
    touched: int = 0
    own: bool = True
    ends: int | None = None

    def state(self) -> BucketState:
        return self.brought


class MemoryStorage(Closing, AsyncClosing, NotCopied):
    """Buckets in this process's memory, for threads and coroutines alike. Its own time is the monotonic clock.

    A bucket that would be full again is dropped as others are used (rule 9). Buckets used with a caller's clock are
    dropped by that clock, so give one storage one such clock. A forked child goes on with a copy of its own, as it was
    at the fork; if another thread was in the middle of a step, the child may see a part of that.
    """

    _instead = "its buckets are one process's; `dump` and `load` move one, SQLiteStorage and RedisStorage are shared"

    def __init__(self) -> None:
        self.lock = Lock()
        self.bell = Bell()  # wakes who waits, whichever of its doors gives back
        self._buckets: dict[str, Bucket | _Loaded] = {}
        self._own, self._callers = _Deadlines(), _Deadlines()
        _storages.add(self)

    def give_way(self) -> None:
        """Let the thread that has the lock go on, a short while at most.

        Threads that wait at the lock itself get it, and the interpreter with it, at every single step; each step then
        takes five times as long. A thread that gives way here waits for its turn with the interpreter instead.

        Raises StorageUnavailable if this very thread has the lock: it would wait for itself for ever.
        """
        for _ in range(_MOST_TIMES):
            sleep(0)
            if not self.lock.locked():
                return
        # To note whose the lock is would cost each step time, so the thread's stack tells. One step on it is this one.
        if sum(_is_step(frame, self) for frame, _ in walk_stack(currentframe())) > 1:
            raise StorageUnavailable(IN_ITS_MIDST)

    def _in_turn(self) -> Lock:
        """Return the lock, to be taken now."""
        if self.lock.locked():
            self.give_way()
        return self.lock

    def served(self, key: str, quota: Quota, now: int, *, own: bool) -> Bucket | None:
        """Return the bucket that the fast path may serve up to its `until`; None: the rules must decide.

        For a door of this library that has taken the lock. now: microseconds. own: by the storage's own time, not a
        caller's.
        """
        bucket = self._buckets.get(key)
        if not isinstance(bucket, Bucket) or bucket.quota is not quota or bucket.own is not own:
            return None
        return bucket if bucket.refilled_at <= now < bucket.until else None

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` at `now_us` (None: monotonic time) and return the outcome."""
        if now_us is not None:
            now_us = whole("now_us", now_us)
        if self.lock.locked():  # as `_in_turn`, which would cost a call in each step
            self.give_way()
        with self.lock:
            outcome = self._apply(key, quota, command, now_us)
        return outcome  # noqa: RET504 - `struck_outcome` looks for it

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the terms stored with it, writing nothing; None if there is none.

        Without `now_us` a bucket used with a caller's clock is shown as at that clock's last step.
        """
        with self._in_turn():
            bucket = self._buckets.get(key)
            if bucket is None:
                return None
            state = bucket.state()
            if now_us is None and not bucket.own:
                now_us = self._callers.seen
        return inspected(state, monotonic_ns() // 1000 if now_us is None else whole("now_us", now_us))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets, as they were at the call."""
        with self._in_turn():
            return iter(list(self._buckets))

    def delete(self, key: str) -> None:
        """Forget the bucket `key`: the next command finds a new one. Holds in flight are forgotten with it."""
        with self._in_turn():
            self._stop_serving(key)
            self._buckets.pop(key, None)

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    async def aclose(self) -> None:
        """Do nothing, likewise."""

    def dump(self, key: str) -> BucketState | None:
        """Return the stored state of `key`, to move it elsewhere."""
        with self._in_turn():
            bucket = self._buckets.get(key)
            return None if bucket is None else bucket.state()

    def load(self, key: str, state: BucketState) -> None:
        """Store `state` under `key` as it is: whatever is wrong with it is mended at the next command."""
        instance("state", state, BucketState)
        with self._in_turn():
            self._stop_serving(key)
            self._buckets[key] = _Loaded(state)

    def _apply(self, key: str, quota: Quota, command: Command, now_us: int | None) -> Outcome:
        own = now_us is None
        now = monotonic_ns() // 1000 if now_us is None else now_us
        deadlines = self._own if own else self._callers
        deadlines.seen = now
        if now >= deadlines.next:
            self._drop(deadlines, now)
        bucket = self._buckets.get(key)
        if bucket is None:
            return self._begin(key, quota, command, now, own=own)
        if not isinstance(bucket, _Loaded) and bucket.own is own:
            if serves(bucket, quota, now):
                outcome = step(bucket, command, now)
                if outcome is not None:
                    return outcome
            # A sound state stays sound while its clock goes on: only after a step back, or a year, is there damage to
            # mend. `read_as` also bounds places ahead, and refuses callers of the other kind.
            refilled_at = bucket.level[1]
            on_time = max(bucket.touched, refilled_at) <= now < refilled_at + YEAR_US
            if on_time and bucket.last_place <= now and bucket.quota.synced is quota.synced:
                return self._decide(key, quota, command, now, Read(bucket.sound()), own=own)
        return self._decide(key, quota, command, now, read_as(quota, bucket.state(), now), own=own)

    def _begin(self, key: str, quota: Quota, command: Command, now: int, *, own: bool) -> Outcome:
        bucket = new_bucket(quota, now, own=own)
        outcome = None if bucket is None else step(bucket, command, now)
        if bucket is None or outcome is None:
            return self._decide(key, quota, command, now, read_as(quota, None, now), own=own)
        self._keep(key, bucket)
        return outcome

    def _decide(self, key: str, quota: Quota, command: Command, now: int, read: Read, *, own: bool) -> Outcome:
        """Let the rules decide."""
        changed, outcome = carry_out(quota, read, now, command)
        if changed:
            self._keep(key, bucket_of(read.sound, now, own=own))
        return outcome

    def _keep(self, key: str, bucket: Bucket) -> None:
        before, quota = self._buckets.get(key), bucket.quota
        if before is not None and before.own is bucket.own and (before.quota is quota or before.quota == quota):
            # The key waits for its end already, and the bucket is looked at anew when that has come.
            bucket.ends = before.ends
        else:
            bucket.ends = _forgotten_at(bucket)
            if bucket.ends is not None:
                (self._own if bucket.own else self._callers).add(bucket.ends, key)
        self._stop_serving(key)
        # Last, and by one assignment: whenever a signal strikes, a step is done whole or not at all.
        self._buckets[key] = bucket

    def _stop_serving(self, key: str) -> None:
        """Let no door serve a bucket that is about to go. This comes first, since a signal may strike in between."""
        before = self._buckets.get(key)
        if before is not None:
            before.until = 0

    def _drop(self, deadlines: _Deadlines, now: int) -> None:
        """Forget buckets whose time has come, a few at each step: so it needs no thread, and no step pays for all."""
        for _ in range(_SWEPT_PER_STEP):
            due = deadlines.first(now)
            if due is None:
                return
            at, key = due
            bucket, ends = self._buckets.get(key), None
            if bucket is not None and bucket.ends == at and bucket.own is (deadlines is self._own):
                ends = _forgotten_at(bucket)
                if ends is not None and ends <= now:
                    bucket.until = 0
                    del self._buckets[key]
                elif ends is not None:
                    deadlines.add(ends, key)
                bucket.ends = ends
            deadlines.drop(due)


class _Deadlines:
    """When to look whether buckets may be forgotten, by one clock."""

    __slots__ = ("_queue", "next", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.next: float = inf
        self._queue: list[tuple[int, str]] = []

    def add(self, at: int, key: str) -> None:
        self.next = min(self.next, at)
        heapq.heappush(self._queue, (at, key))

    def first(self, now: int) -> tuple[int, str] | None:
        """Return what is due at `now`, if anything is."""
        self.next = self._queue[0][0] if self._queue else inf
        return self._queue[0] if self.next <= now else None

    def drop(self, due: tuple[int, str]) -> None:
        """Drop what was due, if it is still the first."""
        if self._queue[0] == due:
            heapq.heappop(self._queue)


def _is_step(frame: FrameType, storage: MemoryStorage) -> bool:
    """Whether a frame is of a step that has the lock of `storage`, or is about to take it."""
    name, named = frame.f_code.co_qualname, frame.f_locals
    if name == "Door.at_once":
        # Once it has `balance` it has let go of the lock, and tells its listener, which may use the bucket.
        return named.get("memory") is storage and "balance" not in named
    return name in _METHODS and named.get("self") is storage


def _forgotten_at(bucket: Bucket | _Loaded) -> int | None:
    """Return when a bucket that nobody touches may be forgotten; None: never."""
    lifetime = lifetime_us(bucket.state(), bucket.touched)
    return None if lifetime is None else bucket.touched + lifetime
