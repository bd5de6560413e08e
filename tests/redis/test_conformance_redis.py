"""The conformance kit on Redis and Valkey, blocking and asyncio, on real servers and on fakeredis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import fakeredis
import pytest
import redis

from keepa_tokens.storage.redis import DEFAULT_PREFIX, AsyncRedisStorage, RedisStorage
from keepa_tokens.testing.conformance import (
    AsyncSharedStorageConformance,
    AsyncStorageConformance,
    SharedStorageConformance,
    StorageConformance,
)
from tests.servers import Server


def read(client: redis.Redis, key: str) -> Mapping[str, str]:
    """Return what a hash holds."""
    stored: Any = client.hgetall(DEFAULT_PREFIX + key)
    return {name.decode(): text.decode() for name, text in stored.items()}


def write(client: redis.Redis, key: str, fields: Mapping[str, str]) -> None:
    """Put a hash in place of what is there."""
    client.delete(DEFAULT_PREFIX + key)
    client.hset(DEFAULT_PREFIX + key, items=[part for field in fields.items() for part in field])


def forget(client: redis.Redis, key: str) -> None:
    """Take a hash away."""
    client.delete(DEFAULT_PREFIX + key)


class _OnAServer:
    """A test of the kit has a server, which several tests share, and a plain client of it."""

    @pytest.fixture(autouse=True)
    def _on(self, shared_server: Server) -> Iterator[None]:
        self.url = shared_server.url
        with shared_server.client() as self.client:
            yield


class TestRedisStorage(_OnAServer, SharedStorageConformance):
    def make_storage(self) -> RedisStorage:
        return RedisStorage.from_url(self.url)

    def elsewhere(self) -> Callable[[], RedisStorage]:
        return partial(RedisStorage.from_url, self.url)

    def read_fields(self, key: str) -> Mapping[str, str]:
        return read(self.client, key)

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        write(self.client, key, fields)

    def forget(self, key: str) -> None:
        forget(self.client, key)


class TestAsyncRedisStorage(_OnAServer, AsyncSharedStorageConformance):
    async def make_storage(self) -> AsyncRedisStorage:
        return AsyncRedisStorage.from_url(self.url)

    def elsewhere(self) -> Callable[[], AsyncRedisStorage]:
        return partial(AsyncRedisStorage.from_url, self.url)

    async def read_fields(self, key: str) -> Mapping[str, str]:
        return read(self.client, key)

    async def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        write(self.client, key, fields)

    async def forget(self, key: str) -> None:
        forget(self.client, key)


class _OnAFake:
    """A test of the kit has a fake server of its own. The fake starts a new interpreter for every call."""

    effort = 0.1

    @pytest.fixture(autouse=True)
    def _on(self) -> Iterator[None]:
        self.server = fakeredis.FakeServer()
        with fakeredis.FakeRedis(server=self.server) as self.client:
            yield


class TestRedisStorageOnTheFake(_OnAFake, StorageConformance):
    def make_storage(self) -> RedisStorage:
        return RedisStorage(self.client)

    def read_fields(self, key: str) -> Mapping[str, str]:
        return read(self.client, key)

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        write(self.client, key, fields)

    def forget(self, key: str) -> None:
        forget(self.client, key)


class TestAsyncRedisStorageOnTheFake(_OnAFake, AsyncStorageConformance):
    async def make_storage(self) -> AsyncRedisStorage:
        return AsyncRedisStorage(fakeredis.FakeAsyncRedis(server=self.server))

    async def read_fields(self, key: str) -> Mapping[str, str]:
        return read(self.client, key)

    async def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        write(self.client, key, fields)

    async def forget(self, key: str) -> None:
        forget(self.client, key)
