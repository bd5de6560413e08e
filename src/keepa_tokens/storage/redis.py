"""States in Redis or Valkey, shared by processes and machines: one hash a bucket, one script (`bucket.lua`)."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from inspect import currentframe
from traceback import walk_stack
from typing import Final
from weakref import WeakSet

from .._blocking import run
from ..errors import ConfigError
from ..quota import Quota
from ..rules.commands import Acquire, Command, Outcome
from ..rules.decision import Snapshot
from . import _wire
from ._batch import Batches, copied
from ._clients import (
    CLIENTS,
    AsyncRedisClient,
    RedisClient,
    idle_closers,
    is_clients,
    is_single_connection,
    pools,
)
from ._keyspace import DEFAULT_PREFIX, PATIENCE_S, Keyspace, decided
from .base import AsyncClosing, Closing

__all__ = ["AsyncRedisClient", "AsyncRedisStorage", "RedisClient", "RedisStorage"]

_SCANNED_AT_ONCE: Final = 500

_RAW: Final = {"NEVER_DECODE": True}
"""Names of keys come as bytes: a client might decode them by another encoding, or fail."""

_WRITTEN_AT_ONCE: Final = 50
"""Commands in one write: so many that it is cheap, so few that the server works while the next is written."""

_ACQUIRED_AT_ONCE: Final = 100
"""Acquires in one call of the script: nobody else is served meanwhile."""

_MISSING: Final = "RedisStorage needs a client for Redis or Valkey: pip install 'keepa-tokens[redis]', or [valkey]"

if not any(find_spec(name) for name in CLIENTS):
    raise ImportError(_MISSING)

_DECIDES: Final = Keyspace[threading.Lock]._apply.__code__  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

_Group = tuple[str, Quota, int | None]

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


class RedisStorage(Closing, Keyspace[threading.Lock]):
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
        if lock.acquire(blocking=False):
            return True
        # A finalizer may run in the midst of a step of its own thread, which then can't let the lock go.
        steps = [frame for frame, _ in walk_stack(currentframe()) if frame.f_code is _DECIDES]
        is_own = sum(step.f_locals.get("lock") is lock for step in steps) > 1  # one of them is this one
        return not is_own and lock.acquire(timeout=PATIENCE_S)


class AsyncRedisStorage(AsyncClosing, Keyspace[asyncio.Lock]):
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
            found = [None if answer is None else decided(quota, command, answer) for command in rest]
            outcomes = [each for each in found if isinstance(each, Outcome)]
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
