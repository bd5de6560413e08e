"""Places that coroutines of one thread wait for: behind one that is given up, the others move up."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress


class Waiter:
    """Who waits for a place. place: its instant by the bucket's clock; once woken, it may have a nearer one."""

    __slots__ = ("place", "wake")

    def __init__(self, place: int) -> None:
        self.place = place
        self.wake: Callable[[], object] = bool

    def woken_by(self, wake: Callable[[], object]) -> None:
        """Take what wakes it up: its place may be nearer than when it fell asleep."""
        self.wake = wake


class Places:
    """Who waits for places of so many tokens, one behind the other: behind one who gives up each moves up.

    So it is the last of the places that is given back, and more of its tokens come back (rule 6).
    """

    __slots__ = ("__weakref__", "_instants", "_waiting", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._instants = deque[int]()
        self._waiting = OrderedDict[Waiter, None]()

    def go_on_with(self, tokens: int, place: int) -> bool:
        """Whether a place is one of these: of as many tokens, and none of them comes after it."""
        return tokens == self.tokens and (not self._instants or self._instants[-1] <= place)

    def wait(self, waiter: Waiter) -> None:
        self._instants.append(waiter.place)
        self._waiting[waiter] = None

    def give_up(self, waiter: Waiter) -> None:
        """Leave; `waiter` is left with the place that is free now. No more than that if it doesn't wait yet."""
        if waiter in self._waiting:
            waiter.place = self._instants.pop()
            self._go(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Leave, at its place."""
        self._instants.popleft()
        self._go(waiter)

    def _go(self, waiter: Waiter) -> None:
        """Leave. Whoever is the first now is woken at its place; nobody else need be awake before."""
        was_first = next(iter(self._waiting)) is waiter
        del self._waiting[waiter]
        if was_first and self._waiting:
            first = next(iter(self._waiting))
            first.place = self._instants[0]
            with suppress(RuntimeError):  # its loop is closed
                first.wake()
