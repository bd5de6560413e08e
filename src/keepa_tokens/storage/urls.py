"""A storage by its URL, for configuration files."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._arguments import instance
from ..errors import ConfigError
from .memory import MemoryStorage
from .sqlite import AsyncSQLiteStorage, SQLiteStorage

if TYPE_CHECKING:
    from .redis import AsyncRedisStorage, RedisStorage

__all__ = ["async_storage_from_url", "storage_from_url"]


def storage_from_url(url: str) -> MemoryStorage | SQLiteStorage | RedisStorage:
    """Return the storage that a URL names.

    `memory://`, `sqlite:///file` (four slashes: from the root), or one of `RedisStorage.from_url`: `redis://`,
    `rediss://`, `valkey://`, `valkeys://`, `unix://`. Raises ConfigError for any other, and for one that can't be used.
    """
    storage: MemoryStorage | SQLiteStorage | RedisStorage = _opened(url, SQLiteStorage, "RedisStorage")
    return storage


def async_storage_from_url(url: str) -> MemoryStorage | AsyncSQLiteStorage | AsyncRedisStorage:
    """Return the storage for coroutines that a URL names; as `storage_from_url`. Memory storage is for both."""
    storage: MemoryStorage | AsyncSQLiteStorage | AsyncRedisStorage
    storage = _opened(url, AsyncSQLiteStorage, "AsyncRedisStorage")
    return storage


def _opened(url: str, sqlite: Callable[[str], object], redis: str) -> Any:  # noqa: ANN401 - for either door
    scheme, colon, rest = instance("url", url, str).partition("://")
    if scheme == "memory" and rest:
        raise ConfigError("memory:// takes nothing behind it")
    if scheme == "sqlite" and not rest.startswith("/"):
        raise ConfigError("a SQLite URL is sqlite:///file.sqlite, or with four slashes from the root")
    if scheme == "sqlite" and {"?", "#"} & {*rest}:
        raise ConfigError("a SQLite URL takes no options: give SQLiteStorage the path, and timeout= beside it")
    if not colon or scheme not in {"memory", "sqlite", "redis", "rediss", "valkey", "valkeys", "unix"}:
        # Not the URL itself: it may hold a password.
        raise ConfigError("the URL must begin with memory://, sqlite://, redis://, rediss://, valkey:// or unix://")
    if scheme == "memory":
        return MemoryStorage()
    if scheme == "sqlite":
        return sqlite(rest.removeprefix("/"))
    # Imported only where it is wanted: the client it needs is an extra.
    return getattr(import_module(".redis", __package__), redis).from_url(url)
