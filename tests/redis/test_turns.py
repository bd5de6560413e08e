"""Who must decide gets through, however many write; and answers that are another's are nobody's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import redis

from keepa_tokens import ConfigError, Quota, Reading, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, ClaimProbe, Peek, Reconcile, Reserve
from keepa_tokens.storage import _wire
from keepa_tokens.storage._keyspace import PATIENCE_S
from keepa_tokens.storage.redis import RedisStorage
from tests.helpers import in_a_child
from tests.redis.common import NAME, NOW, PLAIN, SECOND, stored, time_of
from tests.servers import Server

SYNCED = Quota(10**9, 10**6, 1.0, synced=True)
EMPTY = Quota(1, 0, 1.0)


def test_a_reading_gets_through_among_many_who_take(storage: RedisStorage) -> None:
    """While eight threads take as fast as they can, readings are taken each time, and nobody is left waiting."""
    storage.apply("k", SYNCED, Reconcile(Reading(10**9)))
    ended, taken = threading.Event(), [0] * 8

    def take(number: int) -> None:
        while not ended.is_set():
            taken[number] += storage.apply("k", SYNCED, Acquire(1)).granted

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    readings = [Reconcile(Reading(10**9, server_time=1e9 + number)) for number in range(20)]
    verdicts = [storage.apply("k", SYNCED, reading).reading.name for reading in readings]
    ended.set()
    for thread in threads:
        thread.join()
    assert verdicts == ["TAKEN"] * 20
    assert all(taken)


def test_a_turn_keeps_others_out_and_ends_by_itself(storage: RedisStorage, client: redis.Redis) -> None:
    """While somebody has a turn neither an attempt nor a storing of others goes on; a moment later both do."""
    storage.apply("k", PLAIN, Acquire(1))
    before = int(stored(client)["version"])
    client.hset(NAME, "turn", f"{time_of(client) + 15_000} somebody")
    began = time.monotonic()
    storage.apply("k", PLAIN, Acquire(1))
    assert time.monotonic() - began > 0.005
    assert int(stored(client)["version"]) == before + 1


class Overtaken(RedisStorage):
    """Before what was decided here is stored, somebody whose clock is behind opens a hold."""

    async def _send(self, arguments: list[_wire.Argument]) -> object:
        if "store" in arguments and self.overtakes:
            self.overtakes = False
            self.other.apply("k", PLAIN, Reserve("a", 1, SECOND), now_us=SECOND)
        return await super()._send(arguments)

    overtakes = True
    other: RedisStorage


def test_who_lost_to_another_writer_sees_the_holds_that_are_due(server: Server, storage: RedisStorage) -> None:
    """What is handed over then has a hold that is due already by the time of who decides: it runs out, and is gone."""
    storage.apply("k", PLAIN, Peek(), now_us=SECOND)
    storage.apply("k", PLAIN, Reserve("z", 2, 60 * SECOND), now_us=SECOND)
    others = Quota(900, 1, 1.0)
    with Overtaken.from_url(server.url) as overtaken:
        overtaken.other = storage
        outcome = overtaken.apply("k", others, Acquire(1), now_us=3 * SECOND)
    assert not overtaken.overtakes
    assert (outcome.held, outcome.open, len(outcome.ran_out)) == (2, 1, 1)
    left = storage.apply("k", others, Peek(), now_us=3 * SECOND).snapshot
    assert left is not None
    assert (left.held, left.holds) == (2, 1)


@pytest.mark.parametrize("turn", ["9999999999999999 somebody", "0 somebody", "nonsense", "", "-5 x", "1e300 x"])
def test_a_turn_that_is_damaged_keeps_nobody_out(storage: RedisStorage, client: redis.Redis, turn: str) -> None:
    """A turn that ends later than any could, or is none, is no turn; whoever stores next removes it."""
    storage.apply("k", PLAIN, Acquire(1))
    client.hset(NAME, "turn", turn)
    assert storage.apply("k", PLAIN, Acquire(1)).granted
    assert storage.apply("k", PLAIN, Reserve("a", 1, SECOND)).granted
    client.hset(NAME, "refilled_at", "NaN")
    assert storage.apply("k", PLAIN, Peek()).repaired == ("refilled_at",)
    assert "turn" not in stored(client)


def test_whoever_loses_gets_the_next_turn(storage: RedisStorage, client: redis.Redis) -> None:
    """A storing that comes too late is answered with the bucket as it is now, and the loser is alone for a moment."""
    storage.apply("k", SYNCED, Reconcile(Reading(100)))
    nonce_of, late = storage._nonce, {"before": True}

    class Rival(RedisStorage):
        """Writes between another's look and its storing."""

        async def _ask(self, key: str, arguments: list[_wire.Argument], command: Any) -> _wire.Answer:
            if arguments[0] == "store" and late.pop("before", False):
                storage.apply("k", SYNCED, Acquire(7))
            now = time_of(client)
            answer = await super()._ask(key, arguments, command)
            if isinstance(answer, _wire.Handed) and arguments[0] == "store":
                till, whose = stored(client)["turn"].split(" ")
                late["turn"] = whose == arguments[5] and int(till) >= now + 20_000
            return answer

    outcome = Rival(storage._client).apply("k", SYNCED, ClaimProbe())
    assert outcome.probe
    assert late == {"turn": True}
    shown = storage.inspect("k")
    assert shown is not None
    assert 93 <= (shown.balance or 0) < 10**9
    assert "turn" not in stored(client)
    assert nonce_of() != nonce_of()


def test_a_finalizer_in_the_midst_of_a_step_does_not_wait_for_its_own_thread(storage: RedisStorage) -> None:
    """It steps in between at once, and the step that it interrupted decides anew."""
    storage.apply("k", SYNCED, Reconcile(Reading(100)))
    took = list[float]()

    class Interrupted(RedisStorage):
        async def _ask(self, key: str, arguments: list[_wire.Argument], command: Any) -> _wire.Answer:
            if arguments[0] == "store" and not took:
                began = time.monotonic()
                took.append(0)
                assert self.apply("k", SYNCED, ClaimProbe()).probe
                took[0] = time.monotonic() - began
            return await super()._ask(key, arguments, command)

    assert not Interrupted(storage._client).apply("k", SYNCED, ClaimProbe()).probe
    assert took[0] < PATIENCE_S


def test_who_never_gets_through_says_so(storage: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If others write without a pause for too long, the command was certainly not carried out, and says so."""
    monkeypatch.setattr("keepa_tokens.storage._keyspace.PATIENCE_S", 0.05)
    storage.apply("k", SYNCED, Reconcile(Reading(100)))

    class Unlucky(RedisStorage):
        async def _ask(self, key: str, arguments: list[_wire.Argument], command: Any) -> _wire.Answer:
            if arguments[0] == "store":
                arguments[3] = b"another version"
            return await super()._ask(key, arguments, command)

    with pytest.raises(StorageUnavailable, match=r"without a pause .* certainly not carried out"):
        Unlucky(storage._client).apply("k", SYNCED, ClaimProbe())


def test_a_store_of_thousands_of_fields_is_written_in_pieces(storage: RedisStorage, client: redis.Redis) -> None:
    """More fields than the script may pass in one call are all set, and all removed."""
    quota = Quota(10**6, 0, 1.0, synced=True)
    storage.apply("k", quota, Reconcile(Reading(10**6)), now_us=NOW)
    for number in range(2000):
        storage.apply("k", quota, Reserve(f"h{number}", 1, 60 * SECOND), now_us=NOW)
    assert len(storage.apply("k", quota, Peek(), now_us=NOW + 61 * SECOND).ran_out) == 2000
    holds = [text for name, text in stored(client).items() if name.startswith("hold:")]
    assert len(holds) == 2000
    assert not any(text.endswith(" 0") for text in holds)
    storage.apply("k", quota, Peek(), now_us=NOW + 200 * SECOND)
    assert not any(name.startswith("hold:") for name in stored(client))


# --- answers that are another's


@pytest.fixture(params=["redis", "valkey"])
def library(request: pytest.FixtureRequest) -> Any:
    return import_module(request.param)


@pytest.fixture(params=["ConnectionPool", "BlockingConnectionPool", "one connection"])
def pooled(request: pytest.FixtureRequest, server: Server, library: Any) -> Iterator[RedisStorage]:
    """A storage over a client with each kind of pool, or with one connection, and with two buckets."""
    kind: Any = getattr(library, library.__name__.capitalize())
    if request.param == "one connection":
        client = kind(port=server.port, single_connection_client=True)
    else:
        client = kind.from_pool(getattr(library, request.param)(port=server.port))
    with client:
        storage = RedisStorage(client)
        assert storage.apply("k", EMPTY, Acquire(1)).granted
        assert storage.apply("full", PLAIN, Acquire(1)).granted
        yield storage


def test_an_answer_left_on_the_connection_is_nobodys(pooled: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between sending and reading, a client's next answer is another's: it is known, and dropped."""
    client: Any = pooled._client
    connection = client.connection_pool.connection_class
    call = pooled._call("full", _wire.attempt(PLAIN, Acquire(1), None))
    with patch.object(connection, "read_response", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        client.execute_command(*call)
    monkeypatch.setattr(connection, "can_read", lambda *_, **__: False)  # as long as the answer is still on its way
    with pytest.raises(StorageUnavailable, match=r"earlier command.*[Nn]obody knows"):
        pooled.apply("k", EMPTY, Acquire(1))
    assert not pooled.apply("k", EMPTY, Acquire(1)).granted


def test_an_interrupt_between_sending_and_reading_leaves_nothing_behind(pooled: RedisStorage) -> None:
    """What interrupts is what is raised, and the next command gets its own answer."""
    client: Any = pooled._client
    connection = client.connection_pool.connection_class
    with patch.object(connection, "read_response", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        pooled.apply("full", PLAIN, Acquire(1))
    assert not pooled.apply("k", EMPTY, Acquire(1)).granted


def test_a_single_connection_over_a_fork_is_refused(server: Server) -> None:
    """A client with one connection, in use before the fork, is a ConfigError in the child, and the parent goes on."""
    with redis.Redis(port=server.port, single_connection_client=True) as client:
        storage = RedisStorage(client)
        storage.apply("k", PLAIN, Acquire(1))
        child = os.fork()
        if child == 0:
            try:
                storage.apply("k", PLAIN, Acquire(1))
            except ConfigError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert storage.apply("k", PLAIN, Acquire(1)).granted


def test_a_fork_while_a_thread_is_in_the_clients_pool_stops_no_child(storage: RedisStorage, server: Server) -> None:
    """The child has no such thread, which would give its place in the pool back: it goes on all the same."""
    made, forked = threading.Event(), threading.Event()

    class Slow(redis.Connection):
        """Takes until the fork to be made, which happens inside the pool."""

        def __init__(self, **options: Any) -> None:
            made.set()
            assert forked.wait(20)
            super().__init__(**options)  # type: ignore[no-untyped-call] # redis-py's

    with redis.Redis(connection_pool=redis.ConnectionPool(Slow, port=server.port)) as client:
        slow = RedisStorage(client)
        thread = threading.Thread(target=slow.apply, args=("k", PLAIN, Acquire(1)))
        thread.start()
        assert made.wait(20)

        def work() -> int:
            forked.set()
            return int(slow.apply("k", PLAIN, Acquire(1)).granted)

        ended = in_a_child(work)
        forked.set()
        thread.join()
        assert ended() == 1
    assert storage.apply("k", PLAIN, Peek()).balance == PLAIN.capacity - 2
