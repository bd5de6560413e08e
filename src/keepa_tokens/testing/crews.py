"""Workers that use one bucket at the same time: threads, coroutines, processes, and one that is killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Barrier
from typing import Final, Protocol

from ..quota import Quota
from ..rules.commands import Command, Outcome
from ..storage.base import AsyncStorage, Storage
from .driven import opened

PATIENCE_S: Final = 60.0
"""How long processes may take to start, and to end, on a busy machine."""

STEPS_BEFORE_A_KILL: Final = 20
MOST_STEPS: Final = 100_000
"""After so many steps a worker that nobody kills ends by itself."""

Opener = Callable[[], Storage | AsyncStorage]


@dataclass(frozen=True)
class Work:
    """Commands that one worker gives to one bucket, in this order."""

    key: str
    quota: Quota
    commands: tuple[Command, ...]
    now_us: int | None = None

    def done_on(self, storage: Storage) -> list[Outcome]:
        """Give all commands."""
        return [storage.apply(self.key, self.quota, command, now_us=self.now_us) for command in self.commands]

    async def adone_on(self, storage: AsyncStorage) -> list[Outcome]:
        """Give all commands."""
        return [await storage.apply(self.key, self.quota, command, now_us=self.now_us) for command in self.commands]


def threads(storages: Sequence[Storage], works: Sequence[Work]) -> list[list[Outcome]]:
    """Let threads do the works, all of them together, each on a storage."""
    gate = Barrier(len(works), timeout=PATIENCE_S)

    def one(storage: Storage, work: Work) -> list[Outcome]:
        gate.wait()
        return work.done_on(storage)

    with _hurried(), ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, storages, works))


async def coroutines(storage: AsyncStorage, works: Sequence[Work]) -> list[list[Outcome]]:
    """Let coroutines do the works, all of them together, on one storage."""
    return await asyncio.gather(*(work.adone_on(storage) for work in works))


def processes(opener: Opener, works: Sequence[Work]) -> list[list[Outcome]]:
    """Let processes do the works, all of them together, each on a storage that it opens."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(len(works), timeout=PATIENCE_S)
    with ExitStack() as stack:
        answers: list[Connection] = []
        for work in works:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(opener, work, gate, sender))
            process.start()
            stack.callback(process.join, PATIENCE_S)
            sender.close()  # so that the end of a process is the end of its answers
            answers.append(receiver)
        return [answer.recv() for answer in answers]


def killed(opener: Opener, work: Work) -> int:
    """Let a process do the work again and again, kill it in the middle, and return how many steps it told of.

    It may have done one more.
    """
    context = multiprocessing.get_context("spawn")
    steps, warm = context.RawValue("q", 0), context.Event()
    process = context.Process(target=_work_on, args=(opener, work, steps, warm))
    process.start()
    try:
        assert warm.wait(PATIENCE_S), "the process did not come to work"
    finally:
        process.kill()
        process.join(PATIENCE_S)
    told: int = steps.value
    return told


class _Gate(Protocol):
    def wait(self) -> int: ...


class _Counter(Protocol):
    value: int


class _Flag(Protocol):
    def set(self) -> None: ...


def _work(opener: Opener, work: Work, gate: _Gate, answer: Connection) -> None:
    with opened(opener) as storage:
        gate.wait()
        answer.send(work.done_on(storage))


def _work_on(opener: Opener, work: Work, steps: _Counter, warm: _Flag) -> None:
    with opened(opener) as storage:
        for step in range(1, MOST_STEPS):
            work.done_on(storage)
            steps.value = step
            if step == STEPS_BEFORE_A_KILL:
                warm.set()


@contextmanager
def _hurried() -> Generator[None]:
    """Let the interpreter change threads as often as it can: what isn't atomic comes apart much sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
