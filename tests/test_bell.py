"""The bell: who is woken when tokens come back, and that many who wait cost little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from keepa_tokens._bell import Bell
from keepa_tokens._places import Waiter
from keepa_tokens.testing.crews import hurried
from tests.helpers import in_threads


def test_a_ring_looks_at_those_alone_who_wait_at_its_bucket() -> None:
    """A thousand wait at other buckets, whose names nobody compares; it took milliseconds of each grant once."""

    class Name(str):
        compared = 0
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return super().__eq__(other)

    bell, woken = Bell(), list[str]()
    for number in range(1000):
        bell.wait(Name("another" if number % 2 else f"k{number}"), lambda: woken.append("another"), 0, number)
    bell.wait("mine", lambda: woken.append("mine"), 0, 1000)
    bell.wait("mine", lambda: woken.append("another"), 0, 1001)
    Name.compared = 0
    bell.ring("mine")
    assert woken == ["mine"]
    assert Name.compared < 10


@pytest.mark.parametrize("step", ["setdefault", "pop"])
def test_who_comes_while_the_last_one_leaves_is_woken(step: str) -> None:
    """In another thread, in the midst of a step: the line that is taken away takes nobody with it."""

    class Lines(dict[Any, Any]):
        meanwhile: list[Callable[[], object]]

        def _struck(self, name: str) -> None:
            if name == step and self.meanwhile:
                self.meanwhile.pop()()

        def setdefault(self, *arguments: Any) -> Any:
            line = super().setdefault(*arguments)
            self._struck("setdefault")
            return line

        def pop(self, *arguments: Any) -> Any:
            self._struck("pop")
            return super().pop(*arguments)

    bell, woken, lines = Bell(), list[str](), Lines()
    bell._waiting, lines.meanwhile = lines, []
    last = bell.wait("key", lambda: woken.append("the last one"), 0, bell.rank())

    def come() -> None:
        bell.wait("key", lambda: woken.append("who came"), 0, bell.rank())

    def leave() -> None:
        bell.leave(last)

    first, second = (come, leave) if step == "setdefault" else (leave, come)
    lines.meanwhile.append(second)
    first()
    for _ in range(2):
        bell.ring("key")
    assert woken == ["who came"]
    assert not bell


def test_a_place_before_the_last_one_begins_another_line() -> None:
    """Behind who gives up each moves up to the next place, so those of one line come one after the other."""
    bell = Bell()
    places = bell.places(1, 20, "key")
    places.wait(Waiter(20))
    assert bell.places(1, 20, "key") is places
    assert bell.places(1, 10, "key") is not places


def test_threads_find_their_own_places_while_others_come_and_go() -> None:
    """Each thread begins places of its own all the time, and finds the same ones as long as it waits there."""
    bell = Bell()

    def begin(thread: int) -> None:
        for number in range(4000):
            places = bell.places(1, number, f"key{number % 50}", thread)
            assert bell.places(1, number, f"key{number % 50}", thread) is places

    with hurried():
        in_threads(3, begin)
