"""`RedisStorage` and its async twin on real servers: clients of every kind, script life, errors, keys, lifetimes."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from keepa_tokens import (
    AsyncTokenBucket,
    BucketState,
    ConfigError,
    Quota,
    Reading,
    StorageUnavailable,
    TokenBucket,
)
from keepa_tokens.rules.commands import Acquire, Command, Pause, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.rules.transition import lifetime_us
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing import ManualClock
from tests.redis.flavours import FLAVOURS, Flavour
from tests.servers import HOST, Server

PLAIN = Quota.per_minute(60)
SYNCED = Quota(300, 5, 60.0, stepped=True, synced=True)
NOW = 1_780_000_000_000_000
SECOND = 1_000_000

OPTIONS = [{"protocol": protocol, "decode_responses": decoding} for protocol in (2, 3) for decoding in (False, True)]


@pytest.fixture
def storage(server: Server) -> Iterator[RedisStorage]:
    """A storage with a client of its own."""
    made = RedisStorage.from_url(server.url)
    yield made
    made.close()


def fields(client: redis.Redis, key: str = "k", prefix: str = "keepa_tokens:") -> dict[str, str]:
    """Return what is stored of a bucket."""
    stored: Any = client.hgetall(prefix + key)
    return {name.decode(): text.decode() for name, text in stored.items()}


def calls(client: redis.Redis) -> dict[str, int]:
    """Return how often the script has been called, and how, since the counters were reset."""
    stats = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in client.info("commandstats").items()}
    return {name: count for name, count in stats.items() if name in {"eval", "evalsha", "script|load", "script"}}


# --- clients


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
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


def test_bytes_that_are_no_text_do_no_harm(server: Server, client: redis.Redis) -> None:
    """Foreign bytes in a bucket's hash are mended and named, with a decoding client too, which could not read them."""
    client.hset("keepa_tokens:k", mapping={b"hold:\xff\xfe": b"\xff", b"balance": b"\xfe", b"\xfdnote": b"\xfc"})
    with redis.Redis(HOST, server.port, decode_responses=True) as decoding:
        storage = RedisStorage(decoding)
        assert storage.inspect("k") is None
        outcome = storage.apply("k", PLAIN, Acquire(1), now_us=NOW)

    assert outcome.repaired[:2] == ("balance", "hold:\\udcff\\udcfe")
    assert client.hget("keepa_tokens:k", b"\xfdnote") == b"\xfc"
    assert not client.hexists("keepa_tokens:k", b"hold:\xff\xfe")


@pytest.mark.parametrize(
    "url",
    ["redis://{host}:{port}/0", "valkey://{host}:{port}/0", "unix://{socket}?db=0"],
    ids=["redis", "valkey", "unix"],
)
def test_from_url_opens_every_kind_of_url(server: Server, url: str) -> None:
    """`from_url` reads redis://, valkey:// and unix:// addresses, and `close` closes what it opened."""
    filled_in = url.format(host=HOST, port=server.port, socket=server.socket_path)
    storage = RedisStorage.from_url(filled_in)
    assert storage.apply("k", PLAIN, Acquire(1)).balance == 59
    storage.close()

    async def scenario() -> int | None:
        waiting = AsyncRedisStorage.from_url(filled_in)
        try:
            return (await waiting.apply("k", PLAIN, Acquire(1))).balance
        finally:
            await waiting.aclose()

    assert asyncio.run(scenario()) in {58, 59}


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_from_url_never_sends_a_command_twice(server: Server, scheme: str) -> None:
    """The clients that `from_url` makes have no retries and short timeouts; those in the URL win."""
    for url, timeout in (
        (f"{scheme}://{HOST}:{server.port}", 2.0),
        (f"{scheme}://{HOST}:{server.port}?socket_timeout=7", 7.0),
    ):
        for storage in (RedisStorage.from_url(url), AsyncRedisStorage.from_url(url)):
            client: Any = storage._client
            pool = client.connection_pool
            made = pool.connection_class(**pool.connection_kwargs)
            assert made.retry._retries == 0
            assert not made.retry_on_error
            assert (made.socket_timeout, made.socket_connect_timeout) == (timeout, 2.0)


@pytest.mark.parametrize("url", ["http://h", "redis:/h", "localhost:6379", "", "redis://h?socket_timeout=soon"])
def test_a_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    """A URL of another kind is a ConfigError that names the kinds, and never the URL, which may hold a password."""
    with pytest.raises(ConfigError) as refused:
        RedisStorage.from_url(url.replace("//", "//user:secret@"))
    assert "secret" not in str(refused.value)


def test_a_client_of_the_wrong_color_is_refused(server: Server, client: redis.Redis) -> None:
    """An asyncio client for the sync storage and a blocking one for the async storage are refused at once."""
    blocking: Any = client
    waiting: Any = redis.asyncio.Redis(host=HOST, port=server.port)
    with pytest.raises(ConfigError, match="AsyncRedisStorage"):
        RedisStorage(waiting)
    with pytest.raises(ConfigError, match="blocks"):
        AsyncRedisStorage(blocking)


def test_a_client_brought_along_is_not_closed(client: redis.Redis) -> None:
    """`close` leaves a client that was brought along open, and its pool as it was."""
    storage = RedisStorage(client)
    storage.apply("k", PLAIN, Peek())
    pool: Any = client.connection_pool
    (connection,) = pool._available_connections
    storage.close()
    assert connection.is_connected
    assert "secret" not in repr(RedisStorage.from_url("redis://user:secret@nowhere"))


# --- buckets


def test_the_coroutines_door_shares_the_same_balance(server: Server, storage: RedisStorage) -> None:
    """An AsyncTokenBucket on Redis takes from the bucket that a TokenBucket sees."""
    clock = ManualClock(1000.0)

    async def scenario() -> None:
        waiting = AsyncRedisStorage.from_url(server.url)
        bucket = AsyncTokenBucket(PLAIN, key="k", storage=waiting, clock=clock)
        assert (await bucket.try_acquire(40)).balance == 20
        async with bucket.reserve(20) as reservation:
            await reservation.settle(5)
        assert (await bucket.acquire(25)).waited == 10.0
        await waiting.aclose()

    asyncio.run(scenario())
    assert TokenBucket(PLAIN, key="k", storage=storage, clock=clock).peek().balance == 0


def test_a_grant_is_one_call(client: redis.Redis) -> None:
    """A grant, a wait for a place and a refusal are one EVALSHA each; only the first ever is preceded by the script."""
    clock = ManualClock(1000.0)
    bucket = TokenBucket(PLAIN, key="k", storage=RedisStorage(client), clock=clock)
    bucket.peek()
    client.config_resetstat()

    bucket.try_acquire(60)
    bucket.acquire(5)
    assert not bucket.try_acquire(60)

    assert calls(client) == {"evalsha": 3}


def test_the_servers_time_rules_without_a_clock(storage: RedisStorage, client: redis.Redis) -> None:
    """Without a caller's clock the step is at the server's TIME, and the key ends by rule 9 in its milliseconds."""
    quota = Quota(1000, 1, 1.0)
    before = client.time()
    outcome = storage.apply("k", quota, Acquire(500))
    after = client.time()
    left_ms = client.pttl("keepa_tokens:k")

    assert before[0] * SECOND + before[1] <= outcome.now_us <= after[0] * SECOND + after[1]
    lifetime = lifetime_us(BucketState.from_fields(fields(client)), outcome.now_us)
    assert lifetime == 510 * SECOND
    now = client.time()
    passed_ms = (now[0] * SECOND + now[1] - outcome.now_us) // 1000 + 1
    assert lifetime // 1000 - passed_ms <= left_ms <= lifetime // 1000


def test_lifetimes_by_rule_9(storage: RedisStorage, client: redis.Redis) -> None:
    """A bucket nearly full is kept a minute, one at refill 0 and a synced one a day, a hold keeps it to its end;
    with a small `initial` or a caller's clock for ever.
    """

    def left_after(key: str, quota: Quota, command: Command, now_us: int | None = None) -> int:
        storage.apply(key, quota, command, now_us=now_us)
        return -(-client.pttl(f"keepa_tokens:{key}") // 1000)

    assert left_after("k", PLAIN, Acquire(1)) == 60
    assert left_after("never", Quota(10, 0, 1.0), Acquire(1)) == 86_400
    assert left_after("low", Quota(10, 1, 1.0, initial=5), Acquire(1)) == 0
    assert left_after("k", PLAIN, Acquire(1), client.time()[0] * SECOND) == 0
    assert left_after("k", PLAIN, Acquire(1)) == 60
    assert left_after("half", Quota(100, 1, 60.0), Acquire(50)) == 50 * 60 + 10
    assert left_after("synced", SYNCED, Acquire(1)) == 86_400
    assert left_after("synced", SYNCED, Reconcile(Reading(5))) == 86_400
    assert left_after("synced", SYNCED, Acquire(1)) == 86_400

    assert left_after("held", PLAIN, Reserve("x", 1, 600 * SECOND)) == 610
    # Whoever takes later, by the fast path and by the rules, keeps it for as long.
    assert left_after("held", PLAIN, Acquire(1)) == 610
    assert left_after("held", PLAIN, Pause(0)) == 610
    assert left_after("held", PLAIN, Refund("y", 1)) == 610


def test_the_hash_reads_like_a_sentence(storage: RedisStorage, client: redis.Redis) -> None:
    """The hash is what `BucketState.to_fields` writes and `from_fields` reads: names and whole numbers, in order."""
    storage.apply("k", SYNCED, Reconcile(Reading(-3, server_time=1.5)), now_us=NOW)
    storage.apply("k", SYNCED, Reserve("x", 2, SECOND), now_us=NOW)
    stored = fields(client)
    assert BucketState.from_fields(stored).to_fields() == stored
    assert list(stored)[:3] == ["version", "balance", "refilled_at"]
    assert stored["server_time"] == "1500000"


# --- script life


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
    stats: Any = client.info("commandstats")
    assert (stats["cmdstat_evalsha"]["calls"], "cmdstat_hgetall" in stats) == (4, False)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_a_lost_script_is_loaded_in_the_same_call(server: Server, client: redis.Redis, flavour: Flavour) -> None:
    """After SCRIPT FLUSH the next command works as ever; nobody loads anything by hand."""
    with flavour.at(server.url) as storage:
        for left in (50, 40):
            client.script_flush()
            assert storage.apply("k", PLAIN, Acquire(10), now_us=NOW).balance == left


PUT: dict[str, Callable[[redis.Redis], object]] = {
    "string": lambda client: client.set("keepa_tokens:k", "mine"),
    "list": lambda client: client.rpush("keepa_tokens:k", "mine"),
    "set": lambda client: client.sadd("keepa_tokens:k", "mine"),
    "zset": lambda client: client.zadd("keepa_tokens:k", {"mine": 1}),
    "stream": lambda client: client.xadd("keepa_tokens:k", {"mine": "1"}),
}


@pytest.mark.parametrize("kind", PUT)
def test_a_key_of_another_type_is_left_alone(storage: RedisStorage, client: redis.Redis, kind: str) -> None:
    """A key that holds something else is somebody else's: a ConfigError, the value as it was, and no bucket's name."""
    PUT[kind](client)
    dump = client.dump("keepa_tokens:k")
    for attempt in (lambda: storage.apply("k", PLAIN, Acquire(1)), lambda: storage.inspect("k")):
        with pytest.raises(ConfigError, match="no bucket") as refused:
            attempt()
        assert isinstance(refused.value.__cause__, redis.ResponseError)
    assert client.dump("keepa_tokens:k") == dump
    assert list(storage.keys()) == []


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_an_async_storage_that_was_let_go_works_in_the_next_loop(server: Server, scheme: str) -> None:
    """Closed at the end of each `asyncio.run`, an async storage serves one after the other."""
    storage = AsyncRedisStorage.from_url(server.url.replace("redis", scheme))

    async def once() -> int | None:
        outcome = await storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
        await storage.aclose()
        return outcome.balance

    assert [asyncio.run(once()) for _ in range(3)] == [59, 58, 57]


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


# --- Redis is away


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_a_server_that_is_down_is_said_and_found_again(own_server: Server, flavour: Flavour) -> None:
    """While the server is down all is StorageUnavailable with its cause; once it is back, so is the storage."""
    with flavour.at(own_server.url) as storage:
        assert storage.apply("k", PLAIN, Acquire(10)).granted
        own_server.stop()
        for attempt in (
            lambda: storage.apply("k", PLAIN, Acquire(10)),
            lambda: storage.apply("k", PLAIN, Peek()),
            lambda: storage.inspect("k"),
            lambda: list(storage.keys()),
        ):
            with pytest.raises(StorageUnavailable) as away:
                attempt()
            assert type(away.value.__cause__).__name__ == "ConnectionError"
        own_server.start()
        assert storage.apply("k", PLAIN, Acquire(10)).balance == 50


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_server_that_hangs_is_said_within_the_timeout(own_server: Server, scheme: str) -> None:
    """A server that keeps its connections and answers nothing is StorageUnavailable within the URL's timeout."""
    url = own_server.url.replace("redis", scheme) + "?socket_timeout=0.05"
    storage = RedisStorage.from_url(url)
    storage.apply("k", PLAIN, Acquire(1))
    own_server.freeze()
    try:
        with pytest.raises(StorageUnavailable, match="TimeoutError"):
            storage.apply("k", PLAIN, Acquire(1))
    finally:
        own_server.thaw()
    assert storage.apply("k", PLAIN, Acquire(0)).granted
    storage.close()


def test_a_replica_is_said(own_server: Server) -> None:
    """A read-only replica refuses a write: StorageUnavailable, nothing written."""
    storage = RedisStorage.from_url(own_server.url)
    storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
    with own_server.client() as client:
        stored = fields(client)
        client.config_set("replica-serve-stale-data", "yes")
        client.replicaof(HOST, own_server.port)  # of itself: it never gets in step, and stays read-only
        with pytest.raises(StorageUnavailable, match=r"(?i)read.?only"):
            storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
        assert fields(client) == stored
        client.replicaof("NO", "ONE")
        assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 58
    storage.close()


def test_a_wrong_password_is_said_and_not_shown(own_server: Server) -> None:
    """A refused login is a ConfigError that says what to give, and the password is in no message."""
    with own_server.client() as client:
        client.config_set("requirepass", "right")
    for scheme in ("redis", "valkey"):
        for login in (":wrong-secret@", ""):
            storage = RedisStorage.from_url(own_server.url.replace("redis://", f"{scheme}://{login}"))
            with pytest.raises(ConfigError, match="password") as refused:
                storage.apply("k", PLAIN, Acquire(1))
            assert "secret" not in str(refused.value)


# --- keys


def test_prefixes_are_kept_apart(server: Server, client: redis.Redis) -> None:
    """A storage sees its own prefix only, even where one is the beginning of another or is made of pattern signs."""
    prefixes = ["", "a:", "a:*", "a:[b]", "a:?", "a:\\", "a:{tag}:", "é"]
    for number, prefix in enumerate(prefixes):
        RedisStorage(client, prefix=prefix).apply(f"k{number}", PLAIN, Acquire(number), now_us=NOW)

    assert set(RedisStorage(client, prefix="a:*").keys()) == {"k2"}
    assert set(RedisStorage(client, prefix="a:[b]").keys()) == {"k3"}
    assert set(RedisStorage(client, prefix="a:?").keys()) == {"k4"}
    assert set(RedisStorage(client, prefix="a:\\").keys()) == {"k5"}
    assert set(RedisStorage(client, prefix="a:").keys()) == {"k1", "*k2", "[b]k3", "?k4", "\\k5", "{tag}:k6"}
    shown = RedisStorage(client, prefix="é").inspect("k7", now_us=NOW)
    assert shown is not None
    assert shown.balance == 53


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


def test_numbers_that_lua_could_not_hold_are_refused(storage: RedisStorage, client: redis.Redis) -> None:
    """A number beyond 2**52 is refused before it is sent, not rounded."""
    for command in (Acquire(2**52), Acquire(1, keep=2**60), Reserve("x", -1, 1), Settle("x", 2**52)):
        with pytest.raises(ConfigError):
            storage.apply("k", PLAIN, command)
    with pytest.raises(ConfigError, match="now_us"):
        storage.apply("k", PLAIN, Acquire(1), now_us=-1)
    assert client.keys() == []
