"""Wakes who waits in this process when tokens come back, so that nobody sleeps to the end of a wait that is over."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from os import getpid
from typing import TypeAlias
from weakref import WeakValueDictionary

from ._places import Places

Rank: TypeAlias = tuple[int, int]
"""What a caller leaves to others, and when it began to wait."""
Stand: TypeAlias = tuple[tuple[int, str], Rank]
"""Where a caller waits: the process and the bucket, and its rank there."""


class Bell:
    """Callers that wait on the buckets of one memory storage, or one family of doors.

    It wakes one at a time; a caller that it woke rings again once granted, so that what came back reaches as many as it
    can serve. It has no lock that a fork could leave held; in a child it passes over the callers of the parent. At each
    grant it is rung, so it looks only at the callers that wait at the same bucket.
    """

    __slots__ = ("_places", "_ranks", "_waiting")

    def __init__(self) -> None:
        # The last ones begun; whoever waits there keeps them.
        self._places = WeakValueDictionary[tuple[object, ...], Places]()
        self._waiting: dict[tuple[int, str], dict[Rank, Callable[[], object]]] = {}
        self._ranks = count()

    def rank(self) -> int:
        """Return the rank of a call that begins to wait; it keeps it, however often it looks in between."""
        return next(self._ranks)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def crowd(self, key: str) -> int:
        """Return how many wait at bucket `key`."""
        return len(self._waiting.get((getpid(), key), ()))

    def wait(self, key: str, wake: Callable[[], object], keep: int, rank: int) -> Stand:
        """Let a caller wait at bucket `key`; return what `leave` takes. wake: RuntimeError if its loop is closed."""
        at = getpid(), key
        while True:
            line = self._waiting.setdefault(at, {})
            line[keep, rank] = wake
            if self._waiting.get(at) is line:  # else the last one there has just left, and taken it away
                return at, (keep, rank)

    def leave(self, stand: Stand) -> bool:
        """Take a caller out; False if the bell has woken it already."""
        return self._taken(*stand) is not None

    def ring(self, key: str) -> None:
        """Wake the caller that stands first in line at bucket `key`: the smallest `keep`, then who came first."""
        at = getpid(), key
        while ranks := list(self._waiting.get(at, ())):
            wake = self._taken(at, min(ranks))
            if wake is not None:
                with suppress(RuntimeError):
                    wake()
                    return

    def places(self, tokens: int, place: int, *of: object) -> Places:
        """Return where to wait for a place `of` one bucket and one thread: nobody else changes it."""
        kind = getpid(), *of
        places = self._places.get(kind)
        if places is None or not places.go_on_with(tokens, place):
            places = self._places[kind] = Places(tokens)
        return places

    def _taken(self, at: tuple[int, str], rank: Rank) -> Callable[[], object] | None:
        """Take somebody off and return what wakes them; None: nobody is there any more."""
        line = self._waiting.get(at, {})
        wake = line.pop(rank, None)
        if not line and (came := self._waiting.pop(at, None)):  # in between
            self._waiting.setdefault(at, {}).update(came)
        return wake
