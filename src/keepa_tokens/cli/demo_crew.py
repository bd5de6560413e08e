"""The demo's workers: threads on a bucket in memory, or processes on one in Redis. Told by pipes either way."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final, NamedTuple, Self

from ..errors import StorageUnavailable
from ..rules.state import BucketState
from ..testing.clock import ScaledClock
from .demo_worker import BUCKET, READY, STOP, GaveUpError, Note, Tell, main, worker_name
from .place import MemoryPlace, Place, address

PREFIX: Final = "keepa_tokens:demo:"

LOADED_WITHIN: Final = 30.0  # real seconds that the workers may take to load what they need
ENDED_WITHIN: Final = 5.0  # real seconds that the workers may take to end. Then they are ended


class Member(NamedTuple):
    """One worker, and this end of its pipe."""

    name: str
    body: threading.Thread | BaseProcess
    pipe: Connection


class Crew:
    """The workers, and the place of the bucket that they share with the demo.

    As a context manager: its workers have ended afterwards, and the bucket is gone. Entering raises StorageUnavailable
    if Redis can't be reached; making one, ConfigError if the URL can't be used.
    """

    def __init__(self, workers: int, seed: int, redis_url: str | None) -> None:
        self._workers, self._seed, self._redis_url = workers, seed, redis_url
        self._prefix = f"{PREFIX}{secrets.token_hex(4)}:"
        self._open_place = _opener(redis_url, self._prefix)
        self.place = self._open_place()
        self._members: list[Member] = []
        self._tell: Tell = lambda _: None

    def __enter__(self) -> Self:
        try:
            self.place.fields(BUCKET)  # is it there?
            self._gather()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            with suppress(StorageUnavailable):  # one small key stays behind then
                self.place.delete(BUCKET)
            self.place.close()

    def stored(self) -> BucketState | None:
        """Return the bucket's state as it is stored."""
        fields = self.place.fields(BUCKET)
        return None if fields is None else BucketState.from_fields(fields)

    def shared(self) -> dict[str, object] | None:
        """Return where processes share the bucket, without secrets; None: it is in this process."""
        if self._redis_url is None:
            return None
        ids = [member.body.pid for member in self._members if isinstance(member.body, BaseProcess)]
        processes = {"demo": os.getpid(), "workers": ids}
        return {"url": address(self._redis_url), "key": self._prefix + BUCKET, "processes": processes}

    def _gather(self) -> None:
        """Start the workers and wait until each has loaded what it needs, which would be minutes of server time."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # and so in processes started now: Ctrl-C is the demo's
        try:
            self._members += [self._member(worker) for worker in range(self._workers)]
        finally:
            signal.signal(signal.SIGINT, before)
        deadline = time.monotonic() + LOADED_WITHIN
        for member in self._members:
            with suppress(EOFError, OSError):
                if member.pipe.poll(max(0.0, deadline - time.monotonic())) and member.pipe.recv() == READY:
                    continue
            raise GaveUpError(f"{member.name} did not start within {LOADED_WITHIN:g} s")

    def _member(self, worker: int) -> Member:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        kind = threading.Thread if self._redis_url is None else context.Process
        task = (worker, self._seed, self._open_place, theirs)
        body = kind(target=main, args=task, name=f"demo: {worker_name(worker)}", daemon=True)
        body.start()
        if isinstance(body, BaseProcess):
            theirs.close()  # theirs alone now, so that each side learns when the other is gone
        return Member(worker_name(worker), body, ours)

    def start(self, url: str, clock: ScaledClock, tell: Tell) -> None:
        """Let the workers work by `clock` on the server at `url`, and tell of it."""
        self._tell = tell
        self.order((url, clock))

    def order(self, order: str | tuple[str, ScaledClock]) -> None:
        """Tell all workers to go on, to pause once they have their answer, or to stop."""
        for member in self._members:
            with suppress(OSError):  # one that has ended needs none
                member.pipe.send(order)

    def check(self) -> None:
        """Pass on what the workers told, in the order of their times; raise if one of them has died."""
        self._pass_on([note for member in self._members for note in _told(member, 0.0)])

    def stop(self) -> None:
        """End the workers, wait until they have ended, and pass on what they told last."""
        self.order(STOP)
        members, self._members = self._members, []
        deadline = time.monotonic() + ENDED_WITHIN
        try:
            self._pass_on([note for member in members for note in _last_told(member, deadline)])
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


def _opener(redis_url: str | None, prefix: str) -> Callable[[], Place]:
    if redis_url is None:
        memory = MemoryPlace()
        return lambda: memory
    from .redis_place import RedisPlace  # noqa: PLC0415 - the client it needs is another extra

    return partial(RedisPlace.at, redis_url, prefix)


def _told(member: Member, deadline: float) -> Generator[Note]:
    """Yield what a worker told: so far, or by the deadline up to its end. Its death is raised."""
    while member.pipe.poll(max(0.0, deadline - time.monotonic())):
        try:
            word: Note | Exception | None = member.pipe.recv()
        except (EOFError, OSError):
            raise GaveUpError(f"{member.name} ended without a word") from None
        if isinstance(word, Exception):
            raise word
        if word is None:
            return
        yield word


def _last_told(member: Member, deadline: float) -> Generator[Note]:
    """Yield what a worker told before it ended, however it did: that was said before, or doesn't matter any more."""
    with suppress(GaveUpError, StorageUnavailable):
        yield from _told(member, deadline)
