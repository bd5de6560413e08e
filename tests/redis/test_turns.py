"""Who must decide gets through, however many write; and clients, URLs and answers that mislead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keepa_tokens import ConfigError, Quota, Reading, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, ClaimProbe, Peek, Reconcile, Reserve
from keepa_tokens.storage import _wire
from keepa_tokens.storage.redis import RedisStorage
from tests.servers import Server

SECOND = 1_000_000
SYNCED = Quota(10**9, 10**6, 1.0, synced=True)
PLAIN = Quota(1000, 1, 1.0)
NAME = "keepa_tokens:k"


@pytest.fixture
def storage(server: Server) -> Iterator[RedisStorage]:
    """A storage with a client of its own."""
    made = RedisStorage.from_url(server.url)
    yield made
    made.close()


def test_a_reading_gets_through_among_many_who_take(server: Server, storage: RedisStorage) -> None:
    """While eight threads take as fast as they can, readings are taken each time, and nobody is left waiting."""
    storage.apply("k", SYNCED, Reconcile(Reading(10**9)))
    ended, taken = threading.Event(), [0] * 8

    def take(number: int) -> None:
        while not ended.is_set():
            taken[number] += storage.apply("k", SYNCED, Acquire(1)).granted

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    verdicts = [
        storage.apply("k", SYNCED, Reconcile(Reading(10**9, server_time=1e9 + number))).reading.name
        for number in range(20)
    ]
    ended.set()
    for thread in threads:
        thread.join()
    assert verdicts == ["TAKEN"] * 20
    assert all(taken)


def test_a_turn_keeps_others_out_and_ends_by_itself(storage: RedisStorage, client: redis.Redis) -> None:
    """While somebody has a turn neither an attempt nor a storing of others goes on; a moment later both do."""
    storage.apply("k", PLAIN, Acquire(1))
    before: Any = client.hget(NAME, "version")
    seconds, micro = client.time()
    client.hset(NAME, "turn", f"{seconds * SECOND + micro + 15_000} somebody")
    began = time.monotonic()
    storage.apply("k", PLAIN, Acquire(1))
    assert time.monotonic() - began > 0.005
    assert client.hget(NAME, "version") == str(int(before) + 1).encode()


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
    assert not client.hexists(NAME, "turn")


def test_whoever_loses_gets_the_next_turn(storage: RedisStorage, client: redis.Redis) -> None:
    """A storing that comes too late is answered with the bucket as it is now, and the loser is alone for a moment."""
    storage.apply("k", SYNCED, Reconcile(Reading(100)))
    nonce_of, late = storage._nonce, {"before": True}

    class Rival(RedisStorage):
        """Writes between another's look and its storing."""

        async def _ask(self, key: str, arguments: list[_wire.Argument], command: Any) -> _wire.Answer:
            if arguments[0] == "store" and late.pop("before", False):
                storage.apply("k", SYNCED, Acquire(7))
            seconds, micro = client.time()
            answer = await super()._ask(key, arguments, command)
            if isinstance(answer, _wire.Handed) and arguments[0] == "store":
                turn: Any = client.hget(NAME, "turn")
                till, whose = turn.decode().split(" ")
                late["turn"] = whose == arguments[5] and int(till) >= int(seconds) * SECOND + int(micro) + 20_000
            return answer

    rival = Rival(storage._client)
    outcome = rival.apply("k", SYNCED, ClaimProbe())
    assert outcome.probe
    assert late == {"turn": True}
    shown = storage.inspect("k")
    assert shown is not None
    assert 93 <= (shown.balance or 0) < 10**9
    assert not client.hexists(NAME, "turn")
    assert nonce_of() != nonce_of()


def test_who_never_gets_through_says_so(storage: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """If others write without a pause for too long, the command was certainly not carried out, and says so."""
    monkeypatch.setattr("keepa_tokens.storage.redis._PATIENCE_S", 0.05)
    storage.apply("k", SYNCED, Reconcile(Reading(100)))

    class Unlucky(RedisStorage):
        """Somebody always writes first."""

        async def _ask(self, key: str, arguments: list[_wire.Argument], command: Any) -> _wire.Answer:
            if arguments[0] == "store":
                arguments[3] = b"another version"
            return await super()._ask(key, arguments, command)

    with pytest.raises(StorageUnavailable, match=r"without a pause .* certainly not carried out"):
        Unlucky(storage._client).apply("k", SYNCED, ClaimProbe())


def test_a_store_of_thousands_of_fields_is_written_in_pieces(storage: RedisStorage, client: redis.Redis) -> None:
    """More fields than the script may pass in one call are all set, and all removed."""
    quota, now = Quota(10**6, 0, 1.0, synced=True), 1_780_000_000 * SECOND
    storage.apply("k", quota, Reconcile(Reading(10**6)), now_us=now)
    for number in range(2000):
        storage.apply("k", quota, Reserve(f"h{number}", 1, 60 * SECOND), now_us=now)
    assert len(storage.apply("k", quota, Peek(), now_us=now + 61 * SECOND).ran_out) == 2000
    fields: Any = client.hgetall(NAME)
    holds = [text for name, text in fields.items() if name.startswith(b"hold:")]
    assert len(holds) == 2000
    assert not any(text.endswith(b" 0") for text in holds)
    storage.apply("k", quota, Peek(), now_us=now + 200 * SECOND)
    left: Any = client.hkeys(NAME)
    assert not any(name.startswith(b"hold:") for name in left)


# --- clients that mislead


@pytest.mark.parametrize(
    "client",
    ["redis://user:secret@h", b"redis://h", None, 7, object()],
    ids=["url", "bytes", "none", "number", "object"],
)
def test_what_is_no_client_is_refused(client: Any) -> None:
    """A URL, or anything without commands, is refused at once with what to give, and never shown if it is a URL."""
    with pytest.raises(ConfigError, match=r"RedisStorage takes a client|from_url") as refused:
        RedisStorage(client)
    assert "secret" not in str(refused.value)


URLS = {
    "redis://{at}?ssl_cert_reqs=CERT_NONE": "there is no option",
    "rediss://{at}?ssl_cert_reqs=CERT_NONE": "ssl_cert_reqs must be one of",
    "redis://{at}?protocol=4": "protocol must be 2 or 3",
    "redis://{at}?ssl=true": "no option 'ssl'",
    "redis://{at}?max_connection=5": "no option 'max_connection'",
    "redis://{at}?sockettimeout=1": "no option 'sockettimeout'",
    "redis://{at}?socket_timeout=soon": "socket_timeout",
    "redis://{at}/x": "number of a database",
    "redis://user:secret/x@{at}": "percent codes",
    "redis://user:se#cret@{at}": "percent codes",
    "redis://user:se?cret@{at}": "percent codes",
    "redis://user:12/3@{at}": "percent codes",
    "redis://h:0": "port 0",
}


@pytest.mark.parametrize("url", URLS)
def test_a_mistake_in_a_url_is_said_at_once(url: str) -> None:
    """Nothing is sent for it; the error says what is wrong, and shows neither the password nor a part of it."""
    with pytest.raises(ConfigError, match=URLS[url]) as refused:
        RedisStorage.from_url(url.format(at="localhost:6379"))
    for part in ("secret", "cret", "12/3"):
        assert part not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_database_that_is_not_there_is_a_mistake(server: Server) -> None:
    """A number beyond the server's databases is a ConfigError, not an outage."""
    storage = RedisStorage.from_url(f"{server.url}/99")
    with pytest.raises(ConfigError, match="no database of that number"):
        storage.apply("k", PLAIN, Acquire(1))
    storage.close()


def test_an_answer_left_on_the_connection_is_nobodys(server: Server) -> None:
    """Interrupted between sending and reading, a client's next answer is another's: it is known, and dropped."""
    storage = RedisStorage.from_url(server.url)
    client: Any = storage._client
    empty = Quota(1, 0, 1.0)
    assert storage.apply("k", empty, Acquire(1)).granted
    assert storage.apply("full", PLAIN, Acquire(1)).granted
    (connection,) = client.connection_pool._available_connections
    connection.can_read = lambda *_, **__: False  # as long as the answer is still on its way
    connection.send_command(*storage._call("full", _wire.attempt(PLAIN, Acquire(1), None)))
    with pytest.raises(StorageUnavailable, match=r"earlier command.*[Nn]obody knows"):
        storage.apply("k", empty, Acquire(1))
    assert not storage.apply("k", empty, Acquire(1)).granted
    storage.close()


def test_an_interrupt_between_sending_and_reading_leaves_nothing_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What interrupts is what is raised, and the next command gets its own answer."""
    storage = RedisStorage.from_url(server.url)
    client: Any = storage._client
    empty = Quota(1, 0, 1.0)
    storage.apply("k", empty, Acquire(1))
    storage.apply("full", PLAIN, Acquire(1))
    kind = type(client.connection_pool._available_connections[0])
    read = kind.read_response

    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "read_response", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.apply("full", PLAIN, Acquire(1))
    monkeypatch.setattr(kind, "read_response", read)
    assert not storage.apply("k", empty, Acquire(1)).granted
    storage.close()


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
