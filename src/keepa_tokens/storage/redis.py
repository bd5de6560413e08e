"""States in Redis or Valkey, shared by processes and machines: one script call a command, one hash a bucket."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from importlib import import_module, resources
from importlib.util import find_spec
from inspect import signature
from typing import Any, Final, Protocol, Self

from .._arguments import checked_key, instance
from ..errors import ConfigError, KeepaTokensError, StorageUnavailable
from ..quota import Quota
from ..rules.commands import Command, Outcome, Peek
from ..rules.decision import Snapshot
from ..rules.state import FORMAT
from ..rules.transition import transition
from . import _wire

__all__ = ["AsyncRedisClient", "AsyncRedisStorage", "RedisClient", "RedisStorage"]

DEFAULT_PREFIX: Final = "keepa_tokens:"

TIMEOUT_S: Final = 2.0
"""How long `from_url` lets a connection or an answer take, unless the URL says otherwise."""

_CLIENTS: Final = ("redis", "valkey")
_MISSING: Final = "RedisStorage needs a client for Redis or Valkey: pip install 'keepa-tokens[redis]', or [valkey]"
_SCANNED_AT_ONCE: Final = 500

_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}
"""What a URL may begin with, and how redis-py calls it."""

if not any(find_spec(name) for name in _CLIENTS):
    raise ImportError(_MISSING)


class RedisClient(Protocol):
    """What is used of a client: redis-py's and valkey-py's `Redis`, `RedisCluster`, Sentinel's masters have it."""

    def execute_command(self, *args: bytes | str | int) -> object:
        """Send one command and return its answer."""
        ...

    def scan_iter(
        self, match: bytes | str | None = None, count: int | None = None, _type: str | None = None
    ) -> Iterator[object]:
        """Yield the names of keys."""
        ...

    def close(self) -> object:
        """Close the connections."""
        ...


class AsyncRedisClient(Protocol):
    """The same for the asyncio clients."""

    def execute_command(self, *args: bytes | str | int) -> Awaitable[object]:
        """Send one command and return its answer."""
        ...

    def scan_iter(
        self, match: bytes | str | None = None, count: int | None = None, _type: str | None = None
    ) -> AsyncIterator[object]:
        """Yield the names of keys."""
        ...

    def aclose(self) -> Awaitable[object]:
        """Close the connections."""
        ...


class _Keyspace:
    """What both storages know without a connection: the names of their keys, the script, what an error means."""

    def __init__(self, prefix: str) -> None:
        self.prefix = instance("prefix", prefix, str)
        self._script = resources.files("keepa_tokens.storage").joinpath("bucket.lua").read_bytes()
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()

    def _by_digest(self, key: str, arguments: list[str]) -> list[bytes | str | int]:
        return ["EVALSHA", self._digest, *self._for_key(key, arguments)]

    def _by_text(self, key: str, arguments: list[str]) -> list[bytes | str | int]:
        return ["EVAL", self._script, *self._for_key(key, arguments)]

    def _for_key(self, key: str, arguments: list[str]) -> list[bytes | str | int]:
        name = _wire.as_bytes(self.prefix + checked_key(key))
        return [1, name, *(_wire.as_bytes(argument) for argument in arguments)]

    def _pattern(self) -> bytes:
        """Return the SCAN pattern of this prefix, which may itself contain what patterns are made of."""
        return _wire.as_bytes(re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "*")

    def _key_of(self, name: object) -> str:
        return _wire.as_text(name).removeprefix(self.prefix)

    def __repr__(self) -> str:
        # Not the client: its repr may show a password.
        return f"{type(self).__name__}(prefix={self.prefix!r})"


class RedisStorage(_Keyspace):
    """Buckets in Redis (6.2 or newer) or Valkey. Its own time is the server's. Safe to share between threads.

    client: a client of redis-py or valkey-py, used as it is: standalone, Sentinel's master, Cluster, pooled, either
    protocol, decoding or not. prefix: stands before every key. A client that re-sends commands after a dropped
    connection may run a plain `acquire` twice, which charges twice; `from_url` makes one that does not.

    Raises StorageUnavailable when Redis can't be reached or can't carry a command out, within the client's own
    timeouts; ConfigError for a key that holds something else, or the state of a newer release.
    """

    def __init__(self, client: RedisClient, *, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__(prefix)
        if hasattr(client, "aclose"):
            msg = (
                f"{type(client).__module__}.{type(client).__name__} is an asyncio client: give it to AsyncRedisStorage"
            )
            raise ConfigError(msg)
        self._client = client
        self._opened = False

    @classmethod
    def from_url(cls, url: str, *, prefix: str = DEFAULT_PREFIX) -> Self:
        """Return a storage with a client of its own, which `close` closes and which never re-sends a command.

        url: redis://, rediss:// (TLS), valkey://, valkeys:// or unix://, as redis-py and valkey-py read it.
        """
        client: RedisClient = _client_from_url(url, "")
        storage = cls(client, prefix=prefix)
        storage._opened = True
        return storage

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key` in one round trip and return what it came to."""
        return _wire.decode(self._run(key, _wire.encode(quota, command, now_us)), quota, command)

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the quota last used on it, writing nothing; None if there is none.

        A bucket that is used with a caller's clock needs that clock's time as `now_us`.
        """
        return _inspected(self._run(key, _wire.encode_inspection(now_us)))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets with this prefix, once each, as SCAN finds them."""
        seen: set[str] = set()
        try:
            for name in self._client.scan_iter(self._pattern(), _SCANNED_AT_ONCE, "hash"):
                key = self._key_of(name)
                if key not in seen:
                    seen.add(key)
                    yield key
        except Exception as error:
            meaning = _meaning(error)
            if meaning is None:
                raise
            raise meaning from error

    def close(self) -> None:
        """Close the client if `from_url` made it."""
        if self._opened:
            self._client.close()

    def _run(self, key: str, arguments: list[str]) -> object:
        try:
            try:
                return self._client.execute_command(*self._by_digest(key, arguments))
            except Exception as error:
                if not _is_script_lost(error):
                    raise
                return self._client.execute_command(*self._by_text(key, arguments))
        except Exception as error:
            meaning = _meaning(error, key)
            if meaning is None:
                raise
            raise meaning from error


class AsyncRedisStorage(_Keyspace):
    """`RedisStorage` for coroutines, on an asyncio client.

    Once used it belongs to its process and its event loop: in a process that was forked later it raises ConfigError,
    in another loop too, unless `aclose` came in between.
    """

    def __init__(self, client: AsyncRedisClient, *, prefix: str = DEFAULT_PREFIX) -> None:
        super().__init__(prefix)
        if not hasattr(client, "aclose"):
            msg = f"{type(client).__module__}.{type(client).__name__} blocks: give AsyncRedisStorage an asyncio client"
            raise ConfigError(msg)
        self._client = client
        self._opened = False
        self._process: int | None = None

    @classmethod
    def from_url(cls, url: str, *, prefix: str = DEFAULT_PREFIX) -> Self:
        """Return a storage with a client of its own; as `RedisStorage.from_url`."""
        client: AsyncRedisClient = _client_from_url(url, ".asyncio")
        storage = cls(client, prefix=prefix)
        storage._opened = True
        return storage

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key` in one round trip and return what it came to."""
        return _wire.decode(await self._run(key, _wire.encode(quota, command, now_us)), quota, command)

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands; as `RedisStorage.inspect`."""
        return _inspected(await self._run(key, _wire.encode_inspection(now_us)))

    async def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all buckets with this prefix, once each, as SCAN finds them."""
        self._check_process()
        seen: set[str] = set()
        try:
            async for name in self._client.scan_iter(self._pattern(), _SCANNED_AT_ONCE, "hash"):
                key = self._key_of(name)
                if key not in seen:
                    seen.add(key)
                    yield key
        except Exception as error:
            meaning = _meaning(error)
            if meaning is None:
                raise
            raise meaning from error

    async def aclose(self) -> None:
        """Close the client if `from_url` made it."""
        if self._opened and not self._is_forked():
            await self._client.aclose()

    def _is_forked(self) -> bool:
        return self._process not in {None, os.getpid()}

    def _check_process(self) -> None:
        """Raise ConfigError in a forked child: asyncio clients don't notice, and would read each other's answers."""
        if self._is_forked():
            raise ConfigError(
                "this AsyncRedisStorage was in use before the process was forked: make one in each process."
                " Nothing was sent."
            )
        self._process = os.getpid()

    async def _run(self, key: str, arguments: list[str]) -> object:
        self._check_process()
        try:
            try:
                return await self._client.execute_command(*self._by_digest(key, arguments))
            except Exception as error:
                if not _is_script_lost(error):
                    raise
                return await self._client.execute_command(*self._by_text(key, arguments))
        except Exception as error:
            meaning = _meaning(error, key)
            if meaning is None:
                raise
            raise meaning from error


def _inspected(reply: object) -> Snapshot | None:
    now, state = _wire.decode_inspection(reply)
    if state is None or state.quota is None:
        return None
    return transition(state.quota, state, now, Peek())[1].snapshot


def _is_script_lost(error: Exception) -> bool:
    return type(error).__name__ == "NoScriptError" and _is_clients(error)


def _is_clients(error: Exception) -> bool:
    """Whether a client raised it: redis-py's and valkey-py's errors have no base in common, and not even one each."""
    roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not roots.isdisjoint(_CLIENTS)


def _meaning(error: Exception, key: str = "") -> KeepaTokensError | None:
    """Return what a client's error means here; None: it is none of a client's."""
    if type(error) is RuntimeError and "loop" in str(error):
        return ConfigError(
            f"this storage was in use in another event loop ({error}): make one in each, or aclose() it before its loop"
            " ends. Nobody knows whether the command counted."
        )
    if not _is_clients(error):
        return None
    text = str(error)
    if "KEEPATOKENS type" in text:
        return ConfigError(
            f"the key of bucket {key!r} holds something that is no bucket: use another key or prefix."
            " Nothing was changed."
        )
    if type(error).__name__ == "MovedError" or text.startswith("MOVED "):
        return ConfigError(
            f"this Redis is a node of a cluster, and the bucket {key!r} lives on another: give the storage the"
            " library's cluster client. Nothing was changed."
        )
    newer = re.search(r"KEEPATOKENS format ([0-9]+)", text)
    if newer:
        return ConfigError(
            f"the state of bucket {key!r} has format {newer[1]}, this release knows format {FORMAT}:"
            " it was written by a newer release. Upgrade this one; nothing was changed."
        )
    return StorageUnavailable(
        f"Redis did not carry the command out ({type(error).__name__}: {text}); nobody knows whether it counted"
    )


def _client_from_url(url: str, asynchronous: str) -> Any:  # noqa: ANN401 - either library's client; named by the caller
    """Return a client by the library that goes with the URL, or by the other one if that is what is installed."""
    scheme, colon, rest = instance("url", url, str).partition("://")
    if scheme not in _SCHEMES or not colon:
        # Not the URL itself: it may hold a password.
        raise ConfigError(f"the URL must begin with one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    wanted = "valkey" if scheme.startswith("valkey") else "redis"
    library = next(name for name in (wanted, *_CLIENTS) if find_spec(name))
    if library == "redis":
        scheme = _SCHEMES[scheme]
    kind = getattr(import_module(library + asynchronous), library.capitalize())
    options: dict[str, object] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": import_module(f"{library}{asynchronous}.retry").Retry(
            import_module(f"{library}.backoff").NoBackoff(), 0
        ),
    }
    if "maint_notifications_config" in signature(kind).parameters:
        # While it listens for these, redis-py's asyncio client hands out idle connections that the server has closed.
        off = import_module(f"{library}.maint_notifications").MaintNotificationsConfig(enabled=False)
        options["maint_notifications_config"] = off
    try:
        return kind.from_url(f"{scheme}://{rest}", **options)
    except ValueError as error:
        raise ConfigError(f"the URL can't be used: {error}") from error
