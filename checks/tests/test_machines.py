"""The machines on each storage of this project."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from checks.models.broken import KitWithFields
from checks.models.machine import Bench, PlainMachine, ReadingMachine, Word
from checks.models.strategies import DAY, MINUTE
from checks.models.suite import MachinesOnAStorage
from checks.models.synced_machine import LATER, SyncedMachine
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Pause, Reserve
from tests.storages import InMemory, OnAFake, OnAFakeByCoroutines, OnAServer, OnAServerByCoroutines, OnSqlite


class TestMemoryStorage(InMemory, MachinesOnAStorage):
    own_storage = True


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


# --- histories in which a machine once demanded what no rule promises, and what it still demands there


@pytest.fixture
def bench() -> Bench:
    """A bucket whose fields may be damaged."""
    kit = KitWithFields()
    return kit.bench(kit.make_storage(), ExitStack())


def test_beside_a_garbled_server_time_the_lower_balance_counts_once(bench: Bench) -> None:
    """A word that nobody can put in order is taken where it is lower; with the next one the order is known again."""
    machine = SyncedMachine(bench)
    machine.begin(5, 100, MINUTE)
    machine.look_at_the_server(later=False)
    machine.damage("server_time", LATER)
    machine.somebody_else_spends(-7)
    machine.look_at_the_server(later=False)
    assert machine.shown(0).balance == 100
    machine.look_at_the_server(later=False)
    assert machine.shown(0).balance == machine.balance == 107


def test_a_bucket_whose_reading_lies_ahead_may_have_no_balance(bench: Bench) -> None:
    """After clocks went back a day the reading is what is mended; without it an unknown balance is no damage."""
    machine = ReadingMachine(bench)
    machine.begin(Quota(300, 5, 60.0, synced=True), (0, 0, 0))
    machine.hear(0, Word(None, 50, 0, None, None, None))
    machine.clocks_are_set(-DAY)
    machine.lose(0, "balance", None)
    machine.both_show_the_same()
    assert machine.shown(0).balance is None


def test_who_wants_more_than_the_capacity_is_told_no_instant(bench: Bench) -> None:
    """In a pause it stands in line; afterwards nobody promises it that its turn comes."""
    machine = PlainMachine(bench)
    machine.begin(Quota(1, 0, 1.0), (0, 0, 0))
    machine.do(0, Pause(MINUTE))
    machine.do(0, Reserve("b", 2, MINUTE, ticket="a"))
    machine.do(0, Pause(0))
    machine.the_first_comes(0)


def test_a_bucket_may_be_forgotten_by_one_clock_and_not_by_another(bench: Bench) -> None:
    """The one that is ahead of the others is looked at first: what it finds gone is gone for all."""
    machine = ReadingMachine(bench)
    machine.begin(Quota(10, 1, 60.0, synced=True), (0, 0, 10))
    machine.hear(0, Word(None, 0, 0, None, None, None))
    machine.time_passes(DAY - 5)
    machine.both_show_the_same()
    machine.do(2, Pause(MINUTE))
    machine.both_show_the_same()
