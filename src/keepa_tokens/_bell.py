"""Wakes who waits in this process when tokens come back, so that nobody sleeps to the end of a wait that is over."""

from __future__ import annotations

from collections.abc import Callable


class Bell:
    """Who waits on the buckets of one family of doors, in the order in which they came.

    It wakes one at a time; who is granted rings again, so that what came back reaches as many as it can serve. It has
    no lock that a fork could leave held.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[object, tuple[str, Callable[[], None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, key: str, wake: Callable[[], None]) -> object:
        """Stand in line at bucket `key`; return what `leave` takes."""
        place = object()
        self._waiting[place] = key, wake
        return place

    def leave(self, place: object) -> bool:
        """Leave the line; False if it was rung for this place."""
        return self._waiting.pop(place, None) is not None

    def ring(self, key: str) -> None:
        """Wake the first who waits at bucket `key`."""
        for place, (waits_at, wake) in list(self._waiting.items()):
            if waits_at == key and self.leave(place):
                wake()
                return
