"""A step of memory storage is done or not done, wherever an exception strikes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from types import FrameType
from typing import Any, Final

import pytest

from keepa_tokens import MemoryStorage, Quota, Reading, _door
from keepa_tokens._door import Door
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from keepa_tokens.rules.state import BucketState
from keepa_tokens.storage import memory
from keepa_tokens.testing import ManualClock

PLAIN: Final = Quota(10, 1, 1.0)
STEPPED: Final = Quota(10, 5, 5.0, stepped=True)
SYNCED: Final = Quota(10, 1, 1.0, synced=True, initial=10)
SECOND: Final = 10**6
START: Final = 100 * SECOND
AT: Final = START + 2 * SECOND + 345

FULL: Final[tuple[Command, ...]] = ()
SPENT: Final = (Acquire(10),)
HELD: Final = (Reserve("a", 3, 60 * SECOND), Reserve("b", 2, 90 * SECOND))
PLACES: Final = (Acquire(10), Acquire(4, wait_us=60 * SECOND), Acquire(3, wait_us=60 * SECOND))
IN_LINE: Final = (Acquire(10), Reserve("t", 5, 60 * SECOND, ticket="t"))

STEPS: Final[dict[str, tuple[Quota, tuple[Command, ...], Command]]] = {
    "acquire": (PLAIN, SPENT, Acquire(1)),
    "acquire, stepped": (STEPPED, SPENT, Acquire(1)),
    "acquire, the first": (PLAIN, FULL, Acquire(1)),
    "acquire, a place": (PLAIN, PLACES, Acquire(2, wait_us=60 * SECOND)),
    "acquire, refused": (PLAIN, SPENT, Acquire(9)),
    "acquire, in line": (PLAIN, IN_LINE, Acquire(4, wait_us=60 * SECOND, ticket="u")),
    "reserve": (PLAIN, HELD, Reserve("c", 1, 60 * SECOND)),
    "reserve, synced": (SYNCED, HELD, Reserve("c", 1, 60 * SECOND)),
    "reserve, the first": (SYNCED, FULL, Reserve("c", 1, 60 * SECOND)),
    "reserve, its turn": (PLAIN, IN_LINE, Reserve("t", 2, 60 * SECOND, ticket="t")),
    "settle": (SYNCED, HELD, Settle("a", 2)),
    "settle at more": (PLAIN, HELD, Settle("a", 5)),
    "settle, with a reading": (SYNCED, HELD, Settle("a", 2, Reading(4))),
    "settle, too late": (SYNCED, (Reserve("a", 3, SECOND), Reserve("b", 2, 90 * SECOND)), Settle("a", 2)),
    "cancel": (PLAIN, HELD, Cancel("b")),
    "cancel, behind a place": (PLAIN, (*HELD, *PLACES), Cancel("a")),
    "refund": (PLAIN, PLACES, Refund("r", 2)),
    "refund of a place": (PLAIN, PLACES, Refund("r", 3, AT + 5 * SECOND)),
    "refund, again": (PLAIN, (*SPENT, Refund("r", 2)), Refund("r", 2)),
    "reconcile": (SYNCED, HELD, Reconcile(Reading(6))),
    "claim": (SYNCED, HELD, ClaimProbe()),
    "unclaim": (SYNCED, (*HELD, ClaimProbe()), Unclaim(START + 20 * SECOND)),
    "pause": (PLAIN, HELD, Pause(SECOND)),
    "look": (SYNCED, (Reserve("a", 3, SECOND),), Peek()),
}


class Struck(BaseException):
    """What strikes."""


def struck_at(number: int, step: Callable[[], object], event: str) -> bool:
    """Run `step` and raise at its `number`-th line or opcode in the library; False: there are fewer."""
    left = number

    def trace(frame: FrameType, what: str, _: object) -> Any:
        nonlocal left
        if "keepa_tokens" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = event == "opcode"
        if what == event:
            left -= 1
            if left == 0:
                raise Struck
        return trace

    before = sys.gettrace()
    # From 3.12 on, tracing looks only when it begins whether any frame asks for opcodes.
    sys._getframe().f_trace_opcodes = event == "opcode"
    sys.settrace(trace)
    try:
        step()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False


def prepared(quota: Quota, commands: tuple[Command, ...]) -> MemoryStorage:
    storage = MemoryStorage()
    for command in commands:
        storage.apply("k", quota, command, now_us=START)
    return storage


def state(storage: MemoryStorage) -> BucketState | None:
    lock = storage.lock
    if lock.locked():
        # Struck within `with` itself, between its body and the release, where no signal strikes.
        lock.release()
    return storage.dump("k")


def holds_whole(
    quota: Quota, commands: tuple[Command, ...], step: Callable[[MemoryStorage], object], event: str
) -> int:
    """Assert that the step is whole wherever it is struck, and return at how many places that was."""
    before, done = state(prepared(quota, commands)), prepared(quota, commands)
    step(done)
    after = state(done)
    for number in count(1):
        storage = prepared(quota, commands)
        if not struck_at(number, partial(step, storage), event):
            return number
        assert state(storage) in (before, after), number
        storage.apply("k", quota, Peek(), now_us=AT)
    raise AssertionError


@pytest.mark.parametrize("event", ["line", pytest.param("opcode", marks=pytest.mark.deep)])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_before_or_after_and_never_between(step: str, event: str) -> None:
    """Struck at each line, or each opcode, of a command's step: the state is that before it or that after it."""
    quota, commands, command = STEPS[step]
    assert holds_whole(quota, commands, lambda storage: storage.apply("k", quota, command, now_us=AT), event) > 10


@pytest.mark.parametrize("quota", [PLAIN, STEPPED, SYNCED], ids=["plain", "stepped", "synced"])
@pytest.mark.parametrize("callers", [True, False], ids=["a caller's clock", "its own"])
def test_what_is_taken_without_a_command_is_before_or_after_too(
    quota: Quota, callers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Door.at_once`, struck at each opcode. Its version, which only others compare, may be the old one."""

    class Unversioned(MemoryStorage):
        """Shows no version."""

        def dump(self, key: str) -> BucketState | None:
            stored = super().dump(key)
            return None if stored is None else replace(stored, version=0)

    def fresh() -> Door[MemoryStorage]:
        door = Door(quota, "k", Unversioned(), ManualClock(AT / SECOND) if callers else None, None)
        door._memory = door.storage
        door.storage.apply("k", quota, Acquire(7), now_us=START if callers else None)
        return door

    monkeypatch.setattr(memory, "monotonic_ns", lambda: START * 1000)
    monkeypatch.setattr(_door, "monotonic_ns", lambda: AT * 1000)
    before, done = state(fresh().storage), fresh()
    assert done.at_once(2, 0, 0)
    after = state(done.storage)
    assert before != after
    for number in count(1):
        door = fresh()
        if not struck_at(number, partial(door.at_once, 2, 0, 0), "opcode"):
            assert number > 50
            return
        assert state(door.storage) in (before, after), number
