"""States in Redis or Valkey, shared by processes and machines: one hash a bucket, one script (`bucket.lua`).

A command takes one call of the script if its fast path serves it, or if there is nothing to store. Else it takes two:
the rules decide here, and the script stores what they decided if nobody has written meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import random
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from importlib.util import find_spec
from typing import Any, Final, Generic, Self, TypeVar
from weakref import WeakSet, WeakValueDictionary

from .._arguments import LONGEST_NAME, NotCopied, printable
from .._blocking import run
from ..errors import ConfigError, StorageUnavailable
from ..quota import Quota
from ..rules.commands import Acquire, Command, Outcome, Peek
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..rules.transition import inspected, transition
from . import _wire
from ._batch import Batches, copied
from ._clients import (
    CLIENTS,
    AsyncRedisClient,
    RedisClient,
    checked,
    client_from_url,
    idle_closers,
    is_clients,
    is_of_a_replica,
    is_script_lost,
    is_single_connection,
    meaning,
    pools,
    resends,
)
from .base import AsyncClosing, Closing

__all__ = ["AsyncRedisClient", "AsyncRedisStorage", "RedisClient", "RedisStorage"]

DEFAULT_PREFIX: Final = "keepa_tokens:"

_SCANNED_AT_ONCE: Final = 500

_RAW: Final = {"NEVER_DECODE": True}
"""Names of keys come as bytes: a client might decode them by another encoding, or fail."""

_WRITTEN_AT_ONCE: Final = 50
"""Commands in one write: so many that it is cheap, so few that the server works while the next is written."""

_ACQUIRED_AT_ONCE: Final = 100
"""Acquires in one call of the script: nobody else is served meanwhile."""

_PATIENCE_S: Final = 2.0
"""How long a command that loses to other writers tries again."""

_CROWDED_S: Final = 1.0
"""How long after a lost try commands that the rules decide ask for a turn beforehand."""

_PAUSE_S: Final = 0.001
"""The longest pause while another has its turn: random, so that processes meet less often."""

_MISSING: Final = "RedisStorage needs a client for Redis or Valkey: pip install 'keepa-tokens[redis]', or [valkey]"

if not any(find_spec(name) for name in CLIENTS):
    raise ImportError(_MISSING)

_log = logging.getLogger("keepa_tokens")

LockT = TypeVar("LockT", bound="threading.Lock | asyncio.Lock")


class _Keyspace(NotCopied, Generic[LockT]):
    """What both storages do alike: names of keys, the script, and a command's way through it."""

    _instead = "make one in each process, of the same URL"
    _library = ""
    """Where the client's library has its clients of this kind."""

    def __init__(self, client: Any, *, prefix: str = DEFAULT_PREFIX) -> None:  # noqa: ANN401 - of either kind
        checked(client, asynchronous=bool(self._library))
        self.prefix = printable("prefix", prefix, 0, LONGEST_NAME)
        self._client = client
        self._opened = False
        self._process: int | None = None
        self._script = _wire.named_fields(resources.files("keepa_tokens.storage").joinpath("bucket.lua").read_bytes())
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()
        self._salt = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._locks = WeakValueDictionary[tuple[int, str], LockT]()
        self._crowded_until = 0.0
        to_change = resends(client)
        self._sent_once = to_change is None
        if to_change:
            _log.warning(
                "%s sends commands again by itself when a connection is lost: a plain acquire may be charged each time."
                " Give it %s, or use %s.from_url",
                type(client).__name__,
                to_change,
                type(self).__name__,
            )

    @classmethod
    def from_url(cls, url: str, *, prefix: str = DEFAULT_PREFIX) -> Self:
        """Return a storage with a client of its own, which closing it closes, and which never re-sends a command.

        url: redis://, rediss:// (TLS), valkey://, valkeys:// or unix://, as redis-py and valkey-py read it. Raises
        ConfigError for one that can't be used.
        """
        storage = cls(client_from_url(url, cls._library), prefix=prefix)
        storage._opened = True
        return storage

    # what differs: a blocking client, and one that is awaited

    async def _send(self, arguments: list[_wire.Argument]) -> object:
        raise NotImplementedError

    async def _drop_idle(self) -> None:
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        raise NotImplementedError

    def _new_lock(self) -> LockT:
        raise NotImplementedError

    async def _entered(self, lock: LockT) -> bool:
        """Wait for the lock, and return whether the caller has it."""
        raise NotImplementedError

    # a command's way

    async def _apply(self, key: str, quota: Quota, command: Command, now_us: int | None) -> Outcome:
        """Let the script carry the command out, or decide what it hands over."""
        answer: _wire.Answer | None = None
        if not (self._is_deciding(key) or _wire.is_for_the_rules(command)):
            answer = await self._attempt(key, quota, command, now_us)
            decided = _decided(quota, command, answer)
            if isinstance(decided, Outcome):
                return decided
        # One lock for each key, while somebody needs it; by process, as in a forked child nobody would let it go.
        lock = self._locks.setdefault((os.getpid(), key), self._new_lock())
        had_to_wait = lock.locked()
        # A caller that can't get it goes on without: it only saves tries, and nothing is wrong without it.
        has_it = await self._entered(lock)
        try:
            return await self._decide(key, quota, command, now_us, None if had_to_wait else answer)
        finally:
            if has_it:
                lock.release()

    def _is_deciding(self, key: str) -> bool:
        """Whether a caller in this process decides for this bucket now: another would be in its way."""
        lock = self._locks.get((os.getpid(), key))
        return lock is not None and lock.locked()

    async def _decide(
        self, key: str, quota: Quota, command: Command, now_us: int | None, answer: _wire.Answer | None
    ) -> Outcome:
        """Decide what was handed over, and store it; again if somebody else has written meanwhile."""
        began, token = time.monotonic(), secrets.token_hex(8)  # random: forked children count alike
        while True:
            if answer is None or answer is _wire.Sign.BUSY:
                # Where many write, ask for a turn before deciding.
                turn = token if began < self._crowded_until else ""
                answer = await self._attempt(key, quota, command, now_us, turn)
            decided = _decided(quota, command, answer)
            if isinstance(decided, Outcome):
                return decided
            if decided is not None:
                before, after, outcome = decided
                storing = _wire.store(before, after, command, now_us, token, sent_once=self._sent_once)
                # Refused, it hands the bucket over anew. A hold may be due by now: others' clocks may be behind.
                answer = await self._complete(key, storing, command, now_us)
                if answer is _wire.Sign.STORED:
                    return outcome
                self._crowded_until = time.monotonic() + _CROWDED_S
            if time.monotonic() > began + _PATIENCE_S:
                raise StorageUnavailable(
                    f"others wrote to the bucket {key!r} without a pause for {_PATIENCE_S:g} s."
                    " The command was certainly not carried out."
                )
            if answer is _wire.Sign.BUSY:
                await self._pause(random.uniform(0, _PAUSE_S))  # noqa: S311 - no secret

    async def _attempt(
        self, key: str, quota: Quota, command: Command, now_us: int | None, turn: str = ""
    ) -> _wire.Answer:
        return await self._complete(key, _wire.attempt(quota, command, now_us, turn), command, now_us)

    async def _complete(
        self, key: str, arguments: list[_wire.Argument], command: Command, now_us: int | None
    ) -> _wire.Answer:
        """Run the script; where it hands over less than the rules need, look at all of the bucket."""
        answer = await self._ask(key, arguments, command)
        if isinstance(answer, _wire.Handed) and answer.needs_all:
            return await self._ask(key, _wire.look(now_us), command)
        return answer

    async def _ask(self, key: str, arguments: list[_wire.Argument], command: Command | None) -> _wire.Answer:
        """Run the script and return its answer to this very call, which is for `command`; None: for many acquires."""
        call = self._call(key, arguments)
        try:
            try:
                reply = await self._send(call)
            except Exception as error:
                if not is_script_lost(error):
                    raise
                call = self._call(key, arguments, by_text=True)
                reply = await self._send(call)
        except Exception as error:
            if is_of_a_replica(error):
                await self._drop_idle()
            raise self._meant(error, key) from error
        answer = _wire.understood(reply, command, str(call[_NONCE]))
        if answer is not None:
            return answer
        await self._drop_idle()
        raise _confused(reply)

    def _call(self, key: str, arguments: list[_wire.Argument], *, by_text: bool = False) -> list[_wire.Argument]:
        """Return the words of one call of the script, each with a nonce of its own."""
        name = _wire.name_of(self.prefix, key)
        script: tuple[_wire.Argument, ...] = ("EVAL", self._script) if by_text else ("EVALSHA", self._digest)
        return [*script, 1, name, arguments[0], self._nonce(), *arguments[2:]]

    def _nonce(self) -> str:
        return f"{self._salt}{next(self._numbers)}"

    def _meant(self, error: Exception, key: str = "") -> Exception:
        """Return what a client's error means; raise any other one as it is."""
        meant = meaning(error, key, sent_once=self._sent_once)
        if meant is None:
            raise error
        return meant

    async def _inspect(self, key: str, now_us: int | None) -> Snapshot | None:
        answer = await self._ask(key, _wire.look(now_us), Peek())
        return inspected(answer.state, answer.now_us) if isinstance(answer, _wire.Handed) else None

    async def _delete(self, key: str) -> None:
        name = _wire.name_of(self.prefix, key)
        try:
            await self._send(["DEL", name])
        except Exception as error:
            raise self._meant(error, key) from error

    def _check_process(self, told: str) -> None:
        """Raise ConfigError in a forked child: clients don't notice, and would read each other's answers."""
        if self._is_forked():
            raise ConfigError(f"{told} Nothing was sent.")
        self._process = os.getpid()

    def _is_forked(self) -> bool:
        return self._process not in {None, os.getpid()}

    # keys

    def _pattern(self) -> bytes:
        """Return the SCAN pattern of this prefix, with the prefix's own special characters escaped."""
        return _wire.as_bytes(re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "*")

    def _key_of(self, name: object) -> str:
        return _wire.as_text(name).removeprefix(self.prefix)

    def __repr__(self) -> str:
        # Not the client: its repr may show a password.
        return f"{type(self).__name__}(prefix={self.prefix!r})"


_NONCE: Final = 5
"""Where the nonce stands in a call."""

_Group = tuple[str, Quota, int | None]
_Decided = tuple[_wire.Handed, BucketState, Outcome]


def _decided(quota: Quota, command: Command, answer: _wire.Answer) -> Outcome | _Decided | None:
    """Return the outcome; if something must be stored first, that and the outcome; None: the answer decides nothing."""
    if isinstance(answer, Outcome):
        return answer
    if not isinstance(answer, _wire.Handed):
        return None
    stored = answer.state
    after, outcome = transition(quota, stored, answer.now_us, command)
    return outcome if after is None or after is stored else (answer, after, outcome)


def _confused(reply: object) -> Exception:
    if reply is not None and not isinstance(reply, bytes | str | int | float | list | tuple | dict | set):
        return ConfigError(
            f"the client answered the script with {str(reply)[:60]!r}: give the storage a plain client, not a pipeline"
        )
    return StorageUnavailable(
        "the connection held the answer to an earlier command, which was interrupted before it was read: idle"
        " connections were closed. Nobody knows whether this command was carried out."
    )


_storages = WeakSet["RedisStorage"]()


def _forked() -> None:
    """Give clients' pools new locks in a forked child: the thread that had an old one may not exist here.

    redis-py 8 keeps the old lock, and waits for it in the child.
    """
    for storage in _storages:
        for pool in pools(storage._client):  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            if "_lock" in vars(pool):
                pool._lock = threading.RLock()  # noqa: SLF001 - as the pool makes it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class RedisStorage(Closing, _Keyspace[threading.Lock]):
    """Buckets in Redis (6.2 or newer) or Valkey. Its own time is the server's. Safe to share between threads.

    client: a client of redis-py or valkey-py, used as it is: standalone, Sentinel's master, Cluster, pooled, either
    protocol, decoding or not. One that re-sends commands after a dropped connection may run a plain `acquire` twice,
    which charges twice; `from_url` makes one that does not. prefix: stands before every key.

    Raises StorageUnavailable when Redis can't be reached or can't carry a command out, within the client's own
    timeouts; ConfigError for what the next try would only repeat: a key that holds something else, the state of a newer
    release, a refused login, a right or a command that is missing.
    """

    def __init__(self, client: RedisClient, *, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__(client, prefix=prefix)
        _storages.add(self)

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` and return the outcome."""
        return run(lambda: self._apply(key, quota, command, now_us))

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the terms stored with it, writing nothing; None if there is none.

        A bucket that is used with a caller's clock needs that clock's time as `now_us`.
        """
        return run(lambda: self._inspect(key, now_us))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets with this prefix, once each, as SCAN finds them."""
        seen: set[str] = set()
        try:
            for name in self._client.scan_iter(self._pattern(), _SCANNED_AT_ONCE, "hash", **_RAW):
                key = self._key_of(name)
                if key not in seen:
                    seen.add(key)
                    yield key
        except Exception as error:
            raise self._meant(error) from error

    def delete(self, key: str) -> None:
        """Forget the bucket `key`: the next command finds a new one. Holds in flight are forgotten with it."""
        run(lambda: self._delete(key))

    def close(self) -> None:
        """Close the client if `from_url` made it."""
        if self._opened:
            self._client.close()

    async def _send(self, arguments: list[_wire.Argument]) -> object:
        if is_single_connection(self._client):
            self._check_process(
                "this client has one single connection, which was in use before the process was forked: make a client"
                " in each process, or leave out single_connection_client=True."
            )
        try:
            return self._client.execute_command(*arguments)
        except BaseException as error:
            if not is_clients(error):
                # Interrupted between sending and reading, the client pools a connection with an unread answer.
                await self._drop_idle()
            raise

    async def _drop_idle(self) -> None:
        for close in idle_closers(self._client):
            close()

    async def _pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - a blocking door: this coroutine never suspends

    def _new_lock(self) -> threading.Lock:
        return threading.Lock()

    async def _entered(self, lock: threading.Lock) -> bool:
        return lock.acquire(timeout=_PATIENCE_S)


class AsyncRedisStorage(AsyncClosing, _Keyspace[asyncio.Lock]):
    """`RedisStorage` for coroutines, on an asyncio client.

    Once used it belongs to its process and its event loop: in a process that was forked later it raises ConfigError,
    in another loop too, unless `aclose` came in between.
    """

    _library = ".asyncio"

    def __init__(self, client: AsyncRedisClient, *, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__(client, prefix=prefix)
        self._begin()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` and return the outcome."""
        self._check_place()
        if not isinstance(command, Acquire):
            return await self._apply(key, quota, command, now_us)
        _wire.numbers_of(command)  # checked alone: what is wrong with one must not be the others' error
        return await self._acquires.send((key, quota, now_us), command)

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands; as `RedisStorage.inspect`."""
        return await self._inspect(key, now_us)

    async def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all buckets with this prefix, once each, as SCAN finds them."""
        self._check_place()
        seen: set[str] = set()
        try:
            async for name in self._client.scan_iter(self._pattern(), _SCANNED_AT_ONCE, "hash", **_RAW):
                key = self._key_of(name)
                if key not in seen:
                    seen.add(key)
                    yield key
        except Exception as error:
            raise self._meant(error) from error

    async def delete(self, key: str) -> None:
        """Forget the bucket `key`; as `RedisStorage.delete`."""
        await self._delete(key)

    async def aclose(self) -> None:
        """Close the client if `from_url` made it."""
        if self._is_forked():
            return
        await self._acquires.aclose()
        await self._writes.aclose()
        if self._opened:
            try:
                await self._client.aclose()
            except RuntimeError as error:
                # Its connections are another loop's, which is gone.
                raise self._meant(error) from error
        self._loop = None

    async def _send(self, arguments: list[_wire.Argument]) -> object:
        self._check_place()
        return await self._writes.send(None, arguments)

    async def _written(self, _: None, arguments: list[_wire.Argument]) -> object:
        return await self._client.execute_command(*arguments)

    async def _written_together(self, _: None, commands: list[list[_wire.Argument]]) -> list[object | BaseException]:
        pipeline = self._client.pipeline(transaction=False)
        for arguments in commands:
            pipeline.execute_command(*arguments)
        answers: list[object | BaseException] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _acquired(self, group: _Group, command: Acquire) -> Outcome:
        key, quota, now_us = group
        return await self._apply(key, quota, command, now_us)

    async def _acquired_together(self, group: _Group, commands: list[Acquire]) -> list[Outcome | BaseException]:
        """Let the script carry out many acquires of one bucket, in order; those that it leaves go their own way."""
        key, quota, now_us = group
        told: list[Outcome | BaseException] = []
        while len(told) < len(commands):
            rest = commands[len(told) :]
            answer: _wire.Answer | None = None
            if len(rest) > 1 and not self._is_deciding(key):
                try:
                    answer = await self._ask(key, _wire.acquires(quota, rest, now_us), None)
                except Exception as error:  # noqa: BLE001 - each caller's own
                    return [*told, *(copied(error) for _ in rest)]
            if isinstance(answer, list):
                told += answer
                continue
            # None of them was served. If none changes anything, this answer decides all; else each goes its own way.
            decided = [None if answer is None else _decided(quota, command, answer) for command in rest]
            outcomes = [each for each in decided if isinstance(each, Outcome)]
            if len(outcomes) < len(rest):
                alone = (self._apply(key, quota, command, now_us) for command in rest)
                return [*told, *await asyncio.gather(*alone, return_exceptions=True)]
            told += outcomes
        return told

    async def _drop_idle(self) -> None:
        for close in idle_closers(self._client):
            await close()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _new_lock(self) -> asyncio.Lock:
        return asyncio.Lock()

    async def _entered(self, lock: asyncio.Lock) -> bool:
        return await lock.acquire()

    def _begin(self) -> None:
        self._writes = Batches(self._written, self._written_together, _WRITTEN_AT_ONCE)
        self._acquires = Batches(self._acquired, self._acquired_together, _ACQUIRED_AT_ONCE, by_turns=True)
        self._locks.clear()

    def _check_place(self) -> None:
        """Raise ConfigError in a forked child and in a second loop: who waits in one isn't woken from the other.

        Asyncio clients don't notice a fork, and would read each other's answers.
        """
        self._check_process(
            "this AsyncRedisStorage was in use before the process was forked: make one in each process."
        )
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise self._meant(error) from error
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise ConfigError(
                "this storage is in use in another event loop that still runs: make one in each, or aclose() it there"
                " first. Nothing was sent."
            )
        if self._loop is not None:
            # What waited there waits no more.
            self._begin()
        self._loop = loop
