"""Wakes who waits in this process when tokens come back, so that nobody sleeps to the end of a wait that is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from os import getpid
from typing import TypeAlias

from .rules.commands import Outcome

Place: TypeAlias = tuple[tuple[int, str], int]
"""Where somebody waits: the process and the bucket, and the rank of the call there."""


class Standing:
    """Coroutines that took places of one size, one after the other, and those places: the first takes the first.

    Who gives up gives the last of them back, and all behind it move up. Its own would be lost: of a place before others
    nothing comes back (rule 6), so where many give up in time, all would. No one goes later than it was told.
    """

    __slots__ = ("_moved", "_places", "_tokens", "_wakes")

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._places: deque[tuple[int, Outcome]] = deque()
        self._wakes: dict[object, Callable[[], object]] = {}
        self._moved = False

    def __bool__(self) -> bool:
        return bool(self._places)

    def takes(self, tokens: int, outcome: Outcome) -> bool:
        """Whether the place that `outcome` gave for so many tokens is like the others, and behind them."""
        return tokens == self._tokens and (not self._places or _place(outcome) >= _place(self._places[-1][1]))

    def join(self, at: int, outcome: Outcome) -> None:
        """Stand here with a place of one's own; `at` is not before it by the clock that waits are measured by."""
        self._places.append((max(at, self._places[-1][0]) if self._places else at, outcome))

    def sleep(self, who: object, wake: Callable[[], object]) -> None:
        """Be woken where the first may have moved up."""
        self._wakes[who] = wake

    def first_at(self) -> int:
        """Return when the first may go."""
        return self._places[0][0]

    def go(self, who: object) -> None:
        """Leave in one's turn."""
        self._places.popleft()
        self._left(who)

    def give_up(self, who: object) -> Outcome:
        """Leave, and return the place that is to be given back."""
        self._moved = True
        _, outcome = self._places.pop()
        self._left(who)
        return outcome

    def _left(self, who: object) -> None:
        self._wakes.pop(who, None)
        if self._moved and self._wakes:
            with suppress(RuntimeError):  # the loop is closed
                next(iter(self._wakes.values()))()


def _place(outcome: Outcome) -> int:
    return outcome.now_us + outcome.place_us


class Bell:
    """Who waits on the buckets of one memory, or one family of doors, in the order in which their calls began to wait.

    It wakes one at a time; who is granted rings again, so that what came back reaches as many as it can serve. It has
    no lock that a fork could leave held; in a child it passes over those who waited in the parent. At each grant it is
    rung, so it looks at those alone who wait at the same bucket.

    standing: the coroutines that took places last, by loop, bucket and clock.
    """

    __slots__ = ("_ranks", "_waiting", "standing")

    def __init__(self) -> None:
        self.standing: dict[object, Standing] = {}
        self._waiting: dict[tuple[int, str], dict[int, Callable[[], object]]] = {}
        self._ranks = count()

    def rank(self) -> int:
        """Return the rank of a call that begins to wait; it keeps it, however often it looks in between."""
        return next(self._ranks)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def wait(self, key: str, wake: Callable[[], object], rank: int) -> Place:
        """Wait to be woken at bucket `key`; return what `leave` takes. wake: a RuntimeError if its loop is closed."""
        at = getpid(), key
        while True:
            line = self._waiting.setdefault(at, {})
            line[rank] = wake
            if self._waiting.get(at) is line:  # else the last one there has just left, and taken it away
                return at, rank

    def leave(self, place: Place) -> bool:
        """Leave the line; False if it was rung for this place."""
        return self._taken(*place) is not None

    def ring(self, key: str) -> None:
        """Wake the first who waits at bucket `key`: whoever stands first in the bucket's line, too."""
        at = getpid(), key
        while ranks := list(self._waiting.get(at, ())):
            wake = self._taken(at, min(ranks))
            if wake is not None:
                with suppress(RuntimeError):
                    wake()
                    return

    def _taken(self, at: tuple[int, str], rank: int) -> Callable[[], object] | None:
        """Take somebody off and return what wakes them; None: nobody is there any more."""
        line = self._waiting.get(at, {})
        wake = line.pop(rank, None)
        if not line and (came := self._waiting.pop(at, None)):  # in between
            self._waiting.setdefault(at, {}).update(came)
        return wake
