"""The demo's workers: threads on a bucket in memory, or processes on one in Redis. Told by pipes either way."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from ..errors import StorageUnavailable
from ..rules.state import BucketState
from ..testing.clock import ScaledClock
from .demo_worker import BUCKET, End, Note, Order, Task, Tell, main, worker_name
from .place import MemoryPlace, Place, address

PREFIX: Final = "keepa_tokens:demo:"

ENDED_WITHIN: Final = 5.0
"""Real seconds that the workers may take to end. Then they are ended."""


class GaveUpError(Exception):
    """Something that should have come did not, or somebody left who should have stayed."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Where processes share the bucket. redis: its address without secrets. demo, workers: process ids."""

    redis: str
    key: str
    demo: int
    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One worker, and this end of its pipe."""

    name: str
    body: threading.Thread | BaseProcess
    pipe: Connection

    def order(self, order: Order) -> None:
        """Send an order; one that has ended needs none."""
        with suppress(OSError):
            self.pipe.send(order)


class Crew:
    """The workers, and the place of the bucket that they share with the demo."""

    def __init__(self, redis_url: str | None) -> None:
        self._redis_url = redis_url
        self._prefix = f"{PREFIX}{secrets.token_hex(4)}:"
        self._open_place = _opener(redis_url, self._prefix)
        self.place = self._open_place()
        self._members: list[Member] = []
        self._tell: Tell = lambda _: None

    def stored(self) -> BucketState | None:
        """Return the bucket's state as it is stored."""
        fields = self.place.fields(BUCKET)
        return None if fields is None else BucketState.from_fields(fields)

    @property
    def shared(self) -> Shared | None:
        """Where the workers share the bucket; None: in this process."""
        if self._redis_url is None:
            return None
        ids = [member.body.pid or 0 for member in self._members if isinstance(member.body, BaseProcess)]
        return Shared(address(self._redis_url), self._prefix + BUCKET, os.getpid(), tuple(ids))

    def start(self, workers: int, seed: int, url: str, clock: ScaledClock, tell: Tell) -> None:
        """Let the workers work by `clock` on the server at `url`, and tell of it."""
        self._tell = tell
        with _interrupts_ignored():  # and so by processes started meanwhile: Ctrl-C is for the demo alone
            for worker in range(workers):
                self._members.append(self._member(Task(worker, seed, url, clock, self._open_place)))

    def _member(self, task: Task) -> Member:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        kind = threading.Thread if self._redis_url is None else context.Process
        body = kind(target=main, args=(task, theirs), name=f"demo: {worker_name(task.worker)}", daemon=True)
        body.start()
        if isinstance(body, BaseProcess):
            theirs.close()  # theirs alone now, so that each side learns when the other is gone
        return Member(worker_name(task.worker), body, ours)

    def order(self, order: Order) -> None:
        """Tell all workers to go on, to pause once they have their answer, or to stop."""
        for member in self._members:
            member.order(order)

    def check(self) -> None:
        """Pass on what the workers told, in the order of their times; raise if one of them has died."""
        self._pass_on([note for member in self._members for note in _told(member, 0.0)])

    def stop(self) -> None:
        """End the workers, wait until they have ended, and pass on what they told last."""
        members, self._members = self._members, []
        deadline = time.monotonic() + ENDED_WITHIN
        for member in members:
            member.order(Order.STOP)
        try:
            self._pass_on([note for member in members for note in _told(member, deadline)])
        finally:
            for member in members:
                member.body.join(max(0.1, deadline - time.monotonic()))
                if isinstance(member.body, BaseProcess):
                    member.body.kill()  # nothing, if it has ended
                    member.body.join()
                member.pipe.close()

    def _pass_on(self, notes: list[Note]) -> None:
        for note in sorted(notes, key=lambda note: note.at_us):
            self._tell(note)


@contextmanager
def crew(redis_url: str | None) -> Generator[Crew]:
    """Have a crew; its workers have ended afterwards, and the bucket is gone.

    Raises StorageUnavailable if Redis can't be reached, ConfigError if the URL can't be used.
    """
    crew = Crew(redis_url)
    try:
        crew.place.fields(BUCKET)  # is it there?
        yield crew
    finally:
        try:
            crew.stop()
        finally:
            with suppress(StorageUnavailable):  # one small key stays behind then
                crew.place.delete(BUCKET)
            crew.place.close()


def _opener(redis_url: str | None, prefix: str) -> Callable[[], Place]:
    if redis_url is None:
        memory = MemoryPlace()
        return lambda: memory
    from .redis_place import RedisPlace  # noqa: PLC0415 - the client it needs is another extra

    return partial(RedisPlace.at, redis_url, prefix)


@contextmanager
def _interrupts_ignored() -> Generator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _told(member: Member, deadline: float) -> Generator[Note]:
    """Yield what a worker told: so far, or by the deadline up to its end. Its death is raised."""
    while member.pipe.poll(max(0.0, deadline - time.monotonic())):
        try:
            word = member.pipe.recv()
        except (EOFError, OSError):
            raise GaveUpError(f"{member.name} ended without a word") from None
        if isinstance(word, Note):
            yield word
            continue
        if isinstance(word, End) and word.storage:
            raise StorageUnavailable(word.text)
        if isinstance(word, End) and word.text:
            raise GaveUpError(f"{member.name} failed: {word.text}")
        return
