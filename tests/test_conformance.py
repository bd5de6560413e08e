"""The conformance kit, run on memory storage; tests/redis/test_conformance_redis.py runs it on servers."""

from __future__ import annotations

import pytest

from keepa_tokens.testing.conformance import StorageConformance
from tests.storages import PART, InMemory


@pytest.mark.drawn
class TestMemoryStorage(InMemory, StorageConformance):
    effort = PART
