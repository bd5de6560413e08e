"""The conformance kit on Redis and Valkey, blocking and asyncio, on real servers and on fakeredis."""

from __future__ import annotations

import pytest

from keepa_tokens.testing.conformance import SharedStorageConformance, StorageConformance
from tests.storages import PART, OnAFake, OnAFakeByCoroutines, OnAServer, OnAServerByCoroutines


@pytest.mark.drawn
class TestRedisStorage(OnAServer, SharedStorageConformance):
    effort = PART


@pytest.mark.drawn
class TestAsyncRedisStorage(OnAServerByCoroutines, SharedStorageConformance):
    effort = PART


@pytest.mark.deep
@pytest.mark.drawn
class TestRedisStorageOnTheFake(OnAFake, StorageConformance):
    effort = PART * OnAFake.effort


@pytest.mark.deep
@pytest.mark.drawn
class TestAsyncRedisStorageOnTheFake(OnAFakeByCoroutines, StorageConformance):
    effort = PART * OnAFake.effort
