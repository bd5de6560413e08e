"""The machines on each storage of this project."""

from __future__ import annotations

from checks.models.suite import MachinesOnAStorage
from tests.storages import InMemory, OnAFake, OnAFakeByCoroutines, OnAServer, OnAServerByCoroutines, OnSqlite


class TestMemoryStorage(InMemory, MachinesOnAStorage):
    pass


class TestSqliteStorage(OnSqlite, MachinesOnAStorage):
    pass


class TestRedisStorage(OnAServer, MachinesOnAStorage):
    pass


class TestAsyncRedisStorage(OnAServerByCoroutines, MachinesOnAStorage):
    pass


class TestRedisStorageOnTheFake(OnAFake, MachinesOnAStorage):
    pass


class TestAsyncRedisStorageOnTheFake(OnAFakeByCoroutines, MachinesOnAStorage):
    pass
