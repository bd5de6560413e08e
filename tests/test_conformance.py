"""The conformance kit, run on memory storage; tests/redis/test_conformance_redis.py runs it on servers."""

from __future__ import annotations

from collections.abc import Mapping

from keepa_tokens.rules.state import BucketState
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.testing.conformance import StorageConformance


class TestMemoryStorage(StorageConformance):
    """Memory storage keeps states, not texts: they are written as `from_fields` reads them."""

    def make_storage(self) -> MemoryStorage:
        self.storage = MemoryStorage()
        return self.storage

    def read_fields(self, key: str) -> Mapping[str, str]:
        state = self.storage.dump(key)
        return {} if state is None else state.to_fields()

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        self.storage.load(key, BucketState.from_fields(fields))
