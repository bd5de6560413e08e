"""The conformance kit on Redis and Valkey, blocking and asyncio, on real servers and on fakeredis."""

from __future__ import annotations

from keepa_tokens.testing.conformance import SharedStorageConformance, StorageConformance
from tests.storages import OnAFake, OnAFakeByCoroutines, OnAServer, OnAServerByCoroutines


class TestRedisStorage(OnAServer, SharedStorageConformance):
    pass


class TestAsyncRedisStorage(OnAServerByCoroutines, SharedStorageConformance):
    pass


class TestRedisStorageOnTheFake(OnAFake, StorageConformance):
    pass


class TestAsyncRedisStorageOnTheFake(OnAFakeByCoroutines, StorageConformance):
    pass
