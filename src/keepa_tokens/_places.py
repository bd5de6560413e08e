"""Places that coroutines of one thread wait for: behind one that is given up, the others move up."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter


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
        """Wait for a place."""
        insort(self._waiting, waiter, key=attrgetter("place"))

    def give_up(self, waiter: Waiter) -> None:
        """Leave; `waiter` is left with the place that is free now."""
        for behind in self._waiting[self._waiting.index(waiter) + 1 :]:
            if behind.tokens != waiter.tokens:
                break
            behind.place, waiter.place = waiter.place, behind.place
        self.leave(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Leave, at its place. Whoever is the first now is woken; nobody else need be awake before."""
        was_first = self._waiting[0] is waiter
        self._waiting.remove(waiter)
        if was_first and self._waiting:
            with suppress(RuntimeError):  # its loop is closed
                self._waiting[0].wake()
