"""`RedisStorage` and its async twin on real servers: clients and URLs of every kind, what they send, errors, keys."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from keepa_tokens import ConfigError, Quota, Reading, StorageUnavailable, TokenBucket
from keepa_tokens.rules.commands import Acquire, Cancel, ClaimProbe, Command, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from tests.redis.common import NAME, NOW, PLAIN, SECOND, SYNCED, calls, script_runs, stored
from tests.redis.flavours import CLIENTS, FLAVOURS, Flavour
from tests.redis.proxy import proxied
from tests.servers import HOST, Server, running

# --- clients and URLs


@pytest.mark.parametrize("options", CLIENTS, ids=str)
def test_every_client_gives_the_same_answers(server: Server, flavour: Flavour, options: dict[str, Any]) -> None:
    """redis-py and valkey-py, blocking and asyncio, RESP2 and RESP3, bytes and str: any client will do."""
    with flavour.over(lambda: flavour.client(server.port, **options), prefix="é:") as storage:
        told = [storage.apply("k", SYNCED, command, now_us=NOW) for command in (Acquire(1), Reconcile(Reading(5)))]
        granted = storage.apply("k", SYNCED, Reserve("hold é", 2, SECOND), now_us=NOW)
        shown = storage.inspect("k", now_us=NOW)
        keys = list(storage.keys())
    assert [outcome.balance for outcome in told] == [None, 5]
    assert told[1].snapshot is not None
    assert granted.granted
    assert shown is not None
    assert (shown.balance, shown.held, shown.holds, shown.quota) == (5, 2, 1, SYNCED)
    assert keys == ["k"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_bytes_that_are_no_text_do_no_harm(server: Server, client: redis.Redis, encoding: str) -> None:
    """Foreign bytes in a bucket's hash are mended and named, and those in a key are found, with a client too that could
    not decode them, or does it otherwise.
    """
    client.hset(NAME, mapping={b"hold:\xff\xfe": b"\xff", b"balance": b"\xfe", b"\xfdnote": b"\xfc"})
    client.hset(b"keepa_tokens:\xc3\xa9\xff", "balance", "1")
    with redis.Redis(HOST, server.port, decode_responses=True, encoding=encoding) as decoding:
        storage = RedisStorage(decoding)
        assert set(storage.keys()) == {"k", "é\udcff"}
        assert storage.inspect("k") is None
        outcome = storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
    assert outcome.repaired[:2] == ("balance", "hold:\\udcff\\udcfe")
    assert client.hget(NAME, b"\xfdnote") == b"\xfc"
    assert not client.hexists(NAME, b"hold:\xff\xfe")


@pytest.mark.parametrize("url", ["redis://{host}:{port}/0", "valkey://{host}:{port}/0", "unix://{socket}?db=0"])
def test_from_url_opens_every_kind_of_url(server: Server, url: str) -> None:
    """`from_url` reads redis://, valkey:// and unix:// addresses, and `close` closes what it opened."""
    filled_in = url.format(host=HOST, port=server.port, socket=server.socket_path)
    with RedisStorage.from_url(filled_in, prefix="mine:") as storage:
        assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999
    with RedisStorage.from_url(filled_in) as storage:
        assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999

    async def scenario() -> int | None:
        async with AsyncRedisStorage.from_url(filled_in) as waiting:
            return (await waiting.apply("k", PLAIN, Acquire(1), now_us=NOW)).balance

    assert asyncio.run(scenario()) == 998


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
@pytest.mark.parametrize("options, timeout", [("", 2.0), ("?socket_timeout=7", 7.0)])
def test_from_url_never_sends_a_command_twice(scheme: str, options: str, timeout: float) -> None:
    """The clients that `from_url` makes have no retries and short timeouts; those in the URL win."""
    for kind in (RedisStorage, AsyncRedisStorage):
        client: Any = kind.from_url(f"{scheme}://{HOST}{options}")._client
        pool = client.connection_pool
        made = pool.connection_class(**pool.connection_kwargs)
        assert made.retry._retries == 0
        assert not made.retry_on_error
        assert (made.socket_timeout, made.socket_connect_timeout) == (timeout, 2.0)


def test_a_client_brought_along_is_not_closed(client: redis.Redis) -> None:
    """`close` leaves a client that was brought along open, and its pool as it was."""
    storage = RedisStorage(client)
    storage.apply("k", PLAIN, Peek())
    pool: Any = client.connection_pool
    (connection,) = pool._available_connections
    storage.close()
    assert connection.is_connected
    assert "secret" not in repr(RedisStorage.from_url("redis://user:secret@nowhere"))


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_an_async_storage_that_was_let_go_works_in_the_next_loop(server: Server, scheme: str) -> None:
    """Closed at the end of each `asyncio.run`, an async storage serves one after the other."""
    storage = AsyncRedisStorage.from_url(server.url.replace("redis", scheme))

    async def once() -> int | None:
        async with storage:
            return (await storage.apply("k", PLAIN, Acquire(1), now_us=NOW)).balance

    assert [asyncio.run(once()) for _ in range(3)] == [999, 998, 997]


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_an_async_storage_left_open_names_the_loop_that_is_gone(server: Server, scheme: str) -> None:
    """Not closed at the end of one `asyncio.run`, it says in the next one what was forgotten."""
    storages = [AsyncRedisStorage.from_url(server.url.replace("redis", scheme))]

    async def once() -> None:
        await storages[0].apply("k", PLAIN, Acquire(1))

    asyncio.run(once())
    with pytest.raises(ConfigError, match=r"in use in another event loop .* aclose\(\) it before its loop ends"):
        asyncio.run(once())
    with warnings.catch_warnings():
        # The connection that the loop left behind can't be closed any more, only let go.
        warnings.simplefilter("ignore", ResourceWarning)
        storages.clear()
        gc.collect()


def test_an_async_storage_that_another_running_loop_uses_says_so_at_once(server: Server) -> None:
    """Used in two loops at once, in threads of their own, no call of the second one waits for the first one's."""
    storage = AsyncRedisStorage.from_url(server.url)

    async def in_another() -> None:
        for command in (Acquire(1), Peek()):
            with pytest.raises(ConfigError, match=r"another event loop that still runs.* Nothing was sent"):
                await storage.apply("k", PLAIN, command)
        with pytest.raises(ConfigError, match="another event loop"):
            await storage.inspect("k")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            mine = [group.create_task(storage.apply("k", PLAIN, Acquire(1))) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.to_thread(asyncio.run, in_another())
        assert all(task.result().granted for task in mine)
        await storage.aclose()

    asyncio.run(both())
    asyncio.run(both())


# --- buckets


ONE_CALL: list[Command] = [
    *(Acquire(1), Acquire(1001), Reserve("a", 1, 60 * SECOND), Settle("a", 1), Reserve("b", 1, 60 * SECOND)),
    *(Cancel("b"), Refund("r", 1)),
]
"""What the fast path takes, and what changes nothing."""

CALLS: dict[Quota, list[tuple[Command, int]]] = {
    PLAIN: [
        *(
            (command, 1)
            for command in (*ONE_CALL, Acquire(990), Acquire(99, wait_us=SECOND), Acquire(99, wait_us=99 * SECOND))
        ),
        (Reserve("x", 99, SECOND, ticket="t"), 2),
    ],
    SYNCED: [*((command, 1) for command in ONE_CALL), (Reconcile(Reading(250)), 2), (ClaimProbe(), 2)],
}
"""What is done after a first step, and how many calls of the script that takes."""


@pytest.mark.parametrize("quota", CALLS, ids=["plain", "synced"])
def test_a_grant_is_one_call(storage: RedisStorage, client: redis.Redis, quota: Quota) -> None:
    """A grant, a place, the end of a hold and a refusal are one EVALSHA each; a ticket, a reading and a claim two."""
    storage.apply("k", quota, Reconcile(Reading(300)) if quota.synced else Acquire(1), now_us=NOW)
    for command, sent in CALLS[quota]:
        client.config_resetstat()
        storage.apply("k", quota, command, now_us=NOW)
        assert calls(client, "evalsha") == sent, command
        assert not calls(client, "eval") + calls(client, "script|load")


@pytest.mark.parametrize("quota", [Quota(10_000, 1, 1.0), Quota(10_000, 1, 1.0, synced=True, initial=10_000)])
def test_a_thousand_holds_and_refunds_cost_a_command_nothing(client: redis.Redis, quota: Quota) -> None:
    """What takes and gives reads the fields that it needs, and never the whole bucket: as with none."""
    bucket = TokenBucket(quota, key="k", storage=RedisStorage(client))
    for _ in range(1000):
        bucket.try_reserve(2)
        bucket.refund(1)
    client.config_resetstat()
    bucket.try_acquire(5)
    bucket.try_reserve(5).settle(3)
    bucket.refund(1)
    assert (calls(client, "evalsha"), calls(client, "hgetall")) == (4, 0)


# --- script life, and what is not ours


def as_release(storage: Any, comment: bytes) -> None:
    """Make a storage send another text of the script, as another release would."""
    storage._script += b"\n-- " + comment
    storage._digest = hashlib.sha1(storage._script, usedforsecurity=False).hexdigest()


def test_two_releases_share_a_bucket(server: Server, client: redis.Redis, flavour: Flavour) -> None:
    """Two texts of the script share a bucket, each loaded once, and again when lost; one settles the other's holds."""
    with flavour.at(server.url) as old, flavour.at(server.url) as new:
        as_release(new.storage, b"the next release")
        client.config_resetstat()
        for number in range(10):
            old.apply("k", PLAIN, Reserve(f"x{number}", 10, 60 * SECOND), now_us=NOW)
            new.apply("k", PLAIN, Settle(f"x{number}", 3), now_us=NOW)
        assert new.apply("k", PLAIN, Acquire(0), now_us=NOW).balance == 970
        assert (calls(client, "eval"), script_runs(client)) == (2, 21)
        for left, release in ((969, old), (968, new)):
            client.script_flush()
            assert release.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == left


def test_the_field_of_a_later_release_is_left_alone(storage: RedisStorage, client: redis.Redis) -> None:
    """A field that this release doesn't know, in a state of its own format, is neither read nor removed."""
    storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
    client.hset(NAME, "mood", "sunny")
    assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).repaired == ()
    assert stored(client)["mood"] == "sunny"


@pytest.mark.parametrize("name", ["valkey", pytest.param("redis", marks=pytest.mark.deep)])
def test_a_killed_server_with_an_append_only_file_remembers(name: str) -> None:
    """With `appendonly yes` a server that was killed has the bucket as it was, and the script is loaded anew."""
    # By itself it writes a busy disk's last second late.
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running(name, *options) as server, FLAVOURS[0].at(server.url) as opened:
        for _ in range(5):
            opened.apply("k", PLAIN, Acquire(10))
        opened.apply("k", PLAIN, Reserve("x", 10, 60 * SECOND))
        before = opened.inspect("k")
        server.stop()
        server.start()
        after = opened.inspect("k")
        assert before is not None
        assert after is not None
        assert (after.held, after.holds) == (before.held, before.holds) == (10, 1)
        assert 940 <= (before.balance or 0) <= (after.balance or 0) < 950
        with server.client() as client:
            assert client.pttl(NAME) > 0


PUT: dict[str, Callable[[redis.Redis], object]] = {
    "string": lambda client: client.set(NAME, "mine"),
    "list": lambda client: client.rpush(NAME, "mine"),
    "set": lambda client: client.sadd(NAME, "mine"),
    "zset": lambda client: client.zadd(NAME, {"mine": 1}),
    "stream": lambda client: client.xadd(NAME, {"mine": "1"}),
}


@pytest.mark.parametrize("kind", PUT)
def test_a_key_of_another_type_is_left_alone(storage: RedisStorage, client: redis.Redis, kind: str) -> None:
    """A key that holds something else is somebody else's: a ConfigError, the value as it was, and no bucket's name."""
    PUT[kind](client)
    dump = client.dump(NAME)
    for attempt in (lambda: storage.apply("k", PLAIN, Acquire(1)), lambda: storage.inspect("k")):
        with pytest.raises(ConfigError, match="no bucket") as refused:
            attempt()
        assert isinstance(refused.value.__cause__, redis.ResponseError)
    assert client.dump(NAME) == dump
    assert list(storage.keys()) == []


# --- a server that refuses


def test_a_replica_is_said(own_server: Server) -> None:
    """A read-only replica refuses a write: StorageUnavailable, nothing written."""
    with RedisStorage.from_url(own_server.url) as storage, own_server.client() as client:
        storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
        before = stored(client)
        client.config_set("replica-serve-stale-data", "yes")
        client.replicaof(HOST, own_server.port)  # of itself: it never gets in step, and stays read-only
        with pytest.raises(StorageUnavailable, match=r"(?i)read.?only"):
            storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
        assert stored(client) == before
        client.replicaof("NO", "ONE")
        assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 998


def test_an_address_that_leads_to_the_new_primary_is_followed(own_server: Server, flavour: Flavour) -> None:
    """A connection to what became a replica is closed, so that the next command goes where the name leads by then."""
    with running(own_server.name) as new, proxied(own_server.port) as proxy, flavour.at(proxy.url) as opened:
        opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        with own_server.client() as client:
            client.replicaof(HOST, own_server.port)  # of itself: it never gets in step, and stays read-only
        proxy.server_port = new.port
        with pytest.raises(StorageUnavailable, match="certainly not"):
            opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).granted


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
@pytest.mark.parametrize("login", [":wrong-secret@", ""])
def test_a_wrong_password_is_said_and_not_shown(client: redis.Redis, server: Server, scheme: str, login: str) -> None:
    """A refused login is a ConfigError that says what to give, and the password is in no message."""
    client.config_set("requirepass", "right")
    try:
        with RedisStorage.from_url(f"{scheme}://{login}{HOST}:{server.port}") as storage:
            with pytest.raises(ConfigError, match="password") as refused:
                storage.apply("k", PLAIN, Acquire(1))
            assert "secret" not in str(refused.value)
    finally:
        client.config_set("requirepass", "")


def test_a_database_that_is_not_there_is_a_mistake(server: Server) -> None:
    """A number beyond the server's databases is a ConfigError, not an outage."""
    with (
        RedisStorage.from_url(f"{server.url}/99") as storage,
        pytest.raises(ConfigError, match="no database of that number"),
    ):
        storage.apply("k", PLAIN, Acquire(1))


# --- keys


def test_prefixes_are_kept_apart(client: redis.Redis) -> None:
    """A storage sees its own prefix only, even where one is the beginning of another or is made of pattern signs."""
    prefixes = ["", "a:", "a:*", "a:[b]", "a:?", "a:\\", "a:{tag}:", "é"]
    for number, prefix in enumerate(prefixes):
        RedisStorage(client, prefix=prefix).apply(f"k{number}", PLAIN, Acquire(number), now_us=NOW)
    for number in (2, 3, 4, 5):
        assert set(RedisStorage(client, prefix=prefixes[number]).keys()) == {f"k{number}"}
    assert set(RedisStorage(client, prefix="a:").keys()) == {"k1", "*k2", "[b]k3", "?k4", "\\k5", "{tag}:k6"}
    shown = RedisStorage(client, prefix="é").inspect("k7", now_us=NOW)
    assert shown is not None
    assert shown.balance == 993


def test_many_keys_are_each_found_once(storage: RedisStorage, client: redis.Redis) -> None:
    """`keys` finds every one of many buckets once, among many other keys."""
    with client.pipeline() as pipe:
        for number in range(3000):
            pipe.hset(f"keepa_tokens:{number}", "balance", "1")
            pipe.set(f"keepa_tokens:other:{number}", "1")
        pipe.execute()
    found = list(storage.keys())
    assert sorted(found, key=int) == [str(number) for number in range(3000)]


@pytest.mark.parametrize("key", ["", " ", "a b", "a\nb", "a\0b", "x" * 257, "\udcff"])
def test_keys_that_name_nothing_are_refused(storage: RedisStorage, client: redis.Redis, key: str) -> None:
    """A key that can't name a bucket is refused before anything is sent."""
    with pytest.raises(ConfigError, match="key"):
        storage.apply(key, PLAIN, Acquire(1))
    with pytest.raises(ConfigError, match="key"):
        storage.inspect(key)
    assert client.keys() == []


def test_an_error_of_ours_is_raised_as_it_is(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client says is told in our words, with its own error as the cause; what we say ourselves has none."""

    def mistaken(*_: object, **__: object) -> None:
        raise ConfigError("a mistake")

    storage = RedisStorage(client)
    monkeypatch.setattr(client, "execute_command", mistaken)
    with pytest.raises(ConfigError, match="a mistake") as raised:
        storage.apply("k", PLAIN, Acquire(1))
    assert raised.value.__cause__ is None
