"""This project's storages as the conformance kit needs them, for its tests and for the machines under `checks`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import fakeredis
import pytest
import redis
from hypothesis import settings

from keepa_tokens.rules.state import BucketState
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.storage.sqlite import AsyncSQLiteStorage, SQLiteStorage
from keepa_tokens.testing.conformance import StorageUnderTest
from tests.servers import Server

PART: Final = min(1.0, settings().max_examples / 200)
"""How much of the kit's effort a profile takes: a tenth by `default`, all of it by `ci`."""


class InMemory(StorageUnderTest):
    """Memory storage keeps states, not texts: they are written as `from_fields` reads them."""

    def make_storage(self) -> MemoryStorage:
        self.storage = MemoryStorage()
        return self.storage

    def read_fields(self, key: str) -> Mapping[str, str]:
        state = self.storage.dump(key)
        return {} if state is None else state.to_fields()

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        self.storage.load(key, BucketState.from_fields(fields))


class OnSqlite(StorageUnderTest):
    @pytest.fixture(autouse=True)
    def _in(self, tmp_path: Path) -> None:
        self.path = tmp_path / "buckets.sqlite"

    def make_storage(self) -> SQLiteStorage:
        return SQLiteStorage(self.path)

    def elsewhere(self) -> Callable[[], SQLiteStorage]:
        return partial(SQLiteStorage, self.path)

    def read_fields(self, key: str) -> Mapping[str, str]:
        with closing(sqlite3.connect(self.path)) as db:
            row = db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone()
        fields: Mapping[str, str] = {} if row is None else json.loads(row[0])
        return fields

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        write_row(self.path, key, json.dumps(fields))

    def forget(self, key: str) -> None:
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("DELETE FROM buckets WHERE key = ?", (key,))


class OnSqliteByCoroutines(OnSqlite):
    async def make_storage(self) -> AsyncSQLiteStorage:  # type: ignore[override]
        return AsyncSQLiteStorage(self.path)

    def elsewhere(self) -> Callable[[], AsyncSQLiteStorage]:  # type: ignore[override]
        return partial(AsyncSQLiteStorage, self.path)


def write_row(path: Path, key: str, text: str | bytes) -> None:
    """Put a text in place of a bucket's fields, or bytes that are none."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT OR REPLACE INTO buckets (key, fields) VALUES (?, CAST(? AS TEXT))", (key, text))


class Hashes(StorageUnderTest):
    """What a plain client does to the hashes of a server."""

    reads_all = False  # the script serves a bucket by what it reads of it
    client: redis.Redis

    def read_fields(self, key: str) -> Mapping[str, str]:
        stored: Any = self.client.hgetall(DEFAULT_PREFIX + key)
        return {name.decode(): text.decode() for name, text in stored.items()}

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        self.forget(key)
        self.client.hset(DEFAULT_PREFIX + key, items=[part for field in fields.items() for part in field])

    def forget(self, key: str) -> None:
        self.client.delete(DEFAULT_PREFIX + key)


class OnAServer(Hashes):
    """A real server, which several tests share."""

    @pytest.fixture(autouse=True)
    def _on(self, shared_server: Server) -> Iterator[None]:
        self.url = shared_server.url
        with shared_server.client() as self.client:
            yield

    def make_storage(self) -> RedisStorage | AsyncRedisStorage:
        return RedisStorage.from_url(self.url)

    def elsewhere(self) -> Callable[[], RedisStorage | AsyncRedisStorage]:
        return partial(RedisStorage.from_url, self.url)


class OnAServerByCoroutines(OnAServer):
    def make_storage(self) -> AsyncRedisStorage:
        return AsyncRedisStorage.from_url(self.url)

    def elsewhere(self) -> Callable[[], AsyncRedisStorage]:
        return partial(AsyncRedisStorage.from_url, self.url)


class OnAFake(Hashes):
    """A fake server of each test's own. The fake starts a new interpreter for every call."""

    effort = 0.1

    @pytest.fixture(autouse=True)
    def _on(self) -> Iterator[None]:
        self.server = fakeredis.FakeServer()
        with fakeredis.FakeRedis(server=self.server) as self.client:
            # Threads whose connections are the first ones could each get a database of its own from the fake.
            self.client.ping()
            yield

    def make_storage(self) -> RedisStorage | AsyncRedisStorage:
        return RedisStorage(self.client)


class OnAFakeByCoroutines(OnAFake):
    def make_storage(self) -> AsyncRedisStorage:
        return AsyncRedisStorage(fakeredis.FakeAsyncRedis(server=self.server))
