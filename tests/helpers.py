"""What the core's tests have in common: a storage that notes what it is asked, threads and children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from keepa_tokens import MemoryStorage, Outcome, Quota, StorageUnavailable
from keepa_tokens.rules.commands import Command
from keepa_tokens.testing import ManualClock

T = TypeVar("T")


class Noted(MemoryStorage):
    """Memory storage that notes what it is asked, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[Command] = []
        self.away = False

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        self.commands.append(command)
        if self.away:
            raise StorageUnavailable("no answer in 5 s")
        return super().apply(key, quota, command, now_us=now_us)


class Napping(ManualClock):
    """A clock that notes each sleep, and does something after it."""

    def __init__(self, start: float, then: Callable[[], object] = lambda: None) -> None:
        super().__init__(start)
        self.naps: list[float] = []
        self.then = then

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        self.naps.append(seconds)
        self.then()


def in_threads(number: int, work: Callable[[int], T]) -> Sequence[T]:
    """Run `work` in so many threads at once, each with its number; return what they returned, and raise as they did."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number), timeout=30))


def in_a_child(work: Callable[[], int]) -> Callable[[], int]:
    """Fork a child that does `work`; return how to wait for it, and for what `work` returned there.

    One that hangs ends after 20 s, and one whose `work` raises returns 99.
    """
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        signal.alarm(20)
        with suppress(BaseException):
            os._exit(work())
        os._exit(99)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
