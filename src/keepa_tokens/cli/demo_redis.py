"""The demo's workers as separate processes, with the bucket that they share in Redis or Valkey."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final, cast
from urllib.parse import urlsplit

from ..errors import StorageUnavailable
from ..rules.state import BucketState
from ..storage.base import Storage
from ..testing.clock import ScaledClock
from .demo_crew import Crew, GaveUpError, Shared
from .demo_process import Assignment, Died, Hello, Order, SharedTime, Word, main
from .demo_storage import DemoStorage
from .demo_worker import BUCKET, Note, Tell, worker_name

PREFIX: Final = "keepa_tokens:demo:"

LOADED_WITHIN: Final = 30.0
"""Real seconds that the processes may take to load what they need."""

ENDED_WITHIN: Final = 5.0
"""Real seconds that they may take to end. Then they are ended."""

GONE: Final = (BrokenPipeError, ConnectionResetError)


@dataclass(frozen=True, slots=True)
class Member:
    """One worker's process, and this end of its pipes."""

    name: str
    process: BaseProcess
    orders: Connection
    words: Connection

    def order(self, order: Order | Assignment) -> None:
        """Send an order; one that has ended needs none."""
        with suppress(*GONE):
            self.orders.send(order)


class Processes:
    """Workers that are processes of their own."""

    def __init__(self, workers: int, seed: int, redis_url: str, storage: DemoStorage) -> None:
        self._workers, self._seed, self._redis_url, self._storage = workers, seed, redis_url, storage
        self._crew: list[Member] = []
        self._ids: list[int] = []
        self._tell: Tell = _to_nobody

    @property
    def storage(self) -> Storage:
        """The storage, for the demo's own use."""
        return self._storage

    @property
    def shared(self) -> Shared | None:
        """Where the workers share the bucket."""
        key = self._storage.prefix + BUCKET
        return Shared(address(self._redis_url), key, os.getpid(), tuple(self._ids))

    def stored(self) -> BucketState | None:
        """Return the bucket's state as it is stored."""
        return self._storage.stored()

    def lose_timestamp(self) -> None:
        """Do to the stored state what broke the old system."""
        self._storage.lose_timestamp()

    def gather(self) -> None:
        """Start the processes and wait until each has loaded what it needs, which would be minutes of server time."""
        with _interrupts_later():
            for worker in range(self._workers):
                self._crew.append(_member(worker))
        deadline = time.monotonic() + LOADED_WITHIN
        for member in self._crew:
            if not member.words.poll(max(0.0, deadline - time.monotonic())):
                raise GaveUpError(f"the process of {member.name} did not start within {LOADED_WITHIN:g} s")
            word = _next_word(member)
            if isinstance(word, Hello):
                self._ids.append(word.process)

    def start(self, url: str, clock: ScaledClock, tell: Tell) -> None:
        """Let the workers work by `clock` on the server at `url`, and tell of it."""
        self._tell = tell
        for worker, member in enumerate(self._crew):
            shared_time = SharedTime.of(clock)
            member.order(Assignment(worker, self._seed, url, self._redis_url, self._storage.prefix, shared_time))

    def open_gate(self) -> None:
        """Let the workers go on."""
        for member in self._crew:
            member.order(Order.OPEN)

    def close_gate(self) -> None:
        """Let the workers pause, each once it has its answer."""
        for member in self._crew:
            member.order(Order.CLOSE)

    def check(self) -> None:
        """Pass on what the workers told, in the order of their times; raise if one of them has died."""
        self._pass_on([word for member in self._crew for word in _words(member)])

    def stop(self) -> None:
        """End the workers, wait until they have ended, and pass on what they told last."""
        crew, self._crew = self._crew, []
        try:
            for member in crew:
                member.order(Order.STOP)
            self._pass_on(_last_words(crew))
        finally:
            for member in crew:
                member.process.join(0.1)
                member.process.kill()  # nothing, if it has ended
                member.process.join()
                member.process.close()
                member.orders.close()
                member.words.close()

    def _pass_on(self, words: list[Note]) -> None:
        for note in sorted(words, key=lambda note: note.at_us):
            self._tell(note)


@contextmanager
def processes(workers: int, seed: int, redis_url: str) -> Generator[Crew]:
    """Have a crew of processes on the Redis at `redis_url`; they have ended afterwards, and the bucket is gone.

    Raises StorageUnavailable if Redis can't be reached, ConfigError if the URL can't be used.
    """
    with closing(DemoStorage.from_url(redis_url, prefix=f"{PREFIX}{secrets.token_hex(4)}:")) as storage:
        storage.stored()  # is it there?
        crew = Processes(workers, seed, redis_url, storage)
        try:
            crew.gather()
            yield crew
        finally:
            crew.stop()
            with suppress(StorageUnavailable):  # one small key stays behind then
                storage.delete()


def address(url: str) -> str:
    """Return a URL without a password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _member(worker: int) -> Member:
    """Start a worker's process. It is told nothing yet."""
    context = multiprocessing.get_context("spawn")
    (their_orders, orders), (words, their_words) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    name = worker_name(worker)
    process = context.Process(target=main, args=(their_orders, their_words), name=f"demo: {name}", daemon=True)
    process.start()
    # Its ends are its own: so each side learns when the other is gone.
    their_orders.close()
    their_words.close()
    return Member(name, process, orders, words)


@contextmanager
def _interrupts_later() -> Generator[None]:
    """Keep Ctrl-C back meanwhile, and for good from processes started meanwhile: it is for the demo alone."""
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # or the first process would start it, and it lets Ctrl-C through again
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _words(member: Member) -> Generator[Note]:
    """Yield what a worker told so far."""
    while member.words.poll():
        word = _next_word(member)
        if isinstance(word, Note):
            yield word


def _next_word(member: Member) -> Word:
    """Return the next word of a worker, whose last one is raised."""
    try:
        word: Word = member.words.recv()
    except (EOFError, OSError):
        member.process.join(1)
        raise GaveUpError(f"the process of {member.name} ended, exit code {member.process.exitcode}") from None
    if isinstance(word, Died):
        if word.storage:
            raise StorageUnavailable(word.text)
        raise GaveUpError(f"{member.name} failed: {word.text}")
    return word


def _last_words(crew: list[Member]) -> list[Note]:
    """Return what the workers told before they ended, in the time they have for it."""
    notes: list[Note] = []
    speaking = {id(member.words): member for member in crew}
    deadline = time.monotonic() + ENDED_WITHIN
    while speaking and time.monotonic() < deadline:
        for pipe in connection.wait([member.words for member in speaking.values()], deadline - time.monotonic()):
            try:
                word: object = cast("Connection", pipe).recv()
            except (EOFError, OSError):
                del speaking[id(pipe)]
                continue
            if isinstance(word, Note):
                notes.append(word)
    return notes


def _to_nobody(_: Note) -> None:
    """Tell nobody: nothing has started yet."""
