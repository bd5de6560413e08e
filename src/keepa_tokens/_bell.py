"""Wakes who waits in this process when tokens come back, so that nobody sleeps to the end of a wait that is over."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from os import getpid


class Bell:
    """Callers that wait on the buckets of one memory storage, or one family of doors.

    It wakes one at a time; a caller that it woke rings again once granted, so that what came back reaches as many as it
    can serve. It has no lock that a fork could leave held; in a child it passes over the callers of the parent.
    """

    __slots__ = ("_ranks", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[object, tuple[tuple[int, int], tuple[int, str], Callable[[], object]]] = {}
        self._ranks = count()

    def rank(self) -> int:
        """Return the rank of a call that begins to wait; it keeps it, however often it looks in between."""
        return next(self._ranks)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, key: str, wake: Callable[[], object], keep: int, rank: int) -> object:
        """Let a caller wait at bucket `key`; return what `leave` takes. wake: RuntimeError if its loop is closed."""
        place = object()
        self._waiting[place] = (keep, rank), (getpid(), key), wake
        return place

    def leave(self, place: object) -> bool:
        """Take a caller out; False if the bell has woken it already."""
        return self._waiting.pop(place, None) is not None

    def ring(self, key: str) -> None:
        """Wake the caller that stands first in line at bucket `key`: the smallest `keep`, then who came first."""
        here = getpid(), key
        waiting = [(rank, place, wake) for place, (rank, at, wake) in list(self._waiting.items()) if at == here]
        for _, place, wake in sorted(waiting, key=lambda each: each[0]):
            if self.leave(place):
                with suppress(RuntimeError):
                    wake()
                    return
