"""Wakes who waits in this process when tokens come back, so that nobody sleeps to the end of a wait that is over."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from operator import attrgetter
from os import getpid


class Bell:
    """Who waits on the buckets of one memory, or one family of doors, in the order in which their calls began to wait.

    It wakes one at a time; who is granted rings again, so that what came back reaches as many as it can serve. It has
    no lock that a fork could leave held; in a child it passes over those who waited in the parent.
    """

    __slots__ = ("_places", "_ranks", "_waiting")

    def __init__(self) -> None:
        self._places: dict[tuple[object, ...], Places] = {}
        self._waiting: dict[object, tuple[int, tuple[int, str], Callable[[], object]]] = {}
        self._ranks = count()

    def rank(self) -> int:
        """Return the rank of a call that begins to wait; it keeps it, however often it looks in between."""
        return next(self._ranks)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, key: str, wake: Callable[[], object], rank: int) -> object:
        """Wait to be woken at bucket `key`; return what `leave` takes. wake: a RuntimeError if its loop is closed."""
        place = object()
        self._waiting[place] = rank, (getpid(), key), wake
        return place

    def leave(self, place: object) -> bool:
        """Leave the line; False if it was rung for this place."""
        return self._waiting.pop(place, None) is not None

    def ring(self, key: str) -> None:
        """Wake the first who waits at bucket `key`: whoever stands first in the bucket's line, too."""
        here = getpid(), key
        waiting = [(rank, place, wake) for place, (rank, at, wake) in list(self._waiting.items()) if at == here]
        for _, place, wake in sorted(waiting, key=lambda each: each[0]):
            if self.leave(place):
                with suppress(RuntimeError):
                    wake()
                    return

    def places(self, *of: object) -> Places:
        """Return who waits for places, `of` one bucket and one thread: nobody else changes it."""
        kind = getpid(), *of
        if kind not in self._places:
            self._places = {each: places for each, places in self._places.items() if places}
            self._places[kind] = Places()
        return self._places[kind]


class Waiter:
    """Who waits for a place of so many tokens. place: its instant, by the waiter's clock and by the bucket's."""

    __slots__ = ("place", "tokens", "wake")

    def __init__(self, tokens: int, place: tuple[int, int]) -> None:
        self.tokens = tokens
        self.place = place
        self.wake: Callable[[], object] = bool

    def woken_by(self, wake: Callable[[], object]) -> None:
        """Take what wakes it up: its place may be nearer than when it fell asleep."""
        self.wake = wake


class Places:
    """Who waits for places, in their order: behind one who gives up each moves up, as far as all want as much.

    So it is the last of them that is given back, and more of its tokens come back (rule 6).
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Waiter] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, waiter: Waiter) -> None:
        """Wait for a place. Who has become the first is woken; nobody else need be awake before."""
        insort(self._waiting, waiter, key=attrgetter("place"))

    def give_up(self, waiter: Waiter) -> None:
        """Leave; `waiter` is left with the place that is free now."""
        for behind in self._waiting[self._waiting.index(waiter) + 1 :]:
            if behind.tokens != waiter.tokens:
                break
            behind.place, waiter.place = waiter.place, behind.place
        self.leave(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Leave, at its place."""
        was_first = self._waiting[0] is waiter
        self._waiting.remove(waiter)
        if was_first and self._waiting:
            with suppress(RuntimeError):  # its loop is closed
                self._waiting[0].wake()
