"""Mistakes are told at once, by name and with what to do; they are no outage, no leak, and no secret is shown."""

from __future__ import annotations

import asyncio
import copy
import gc
import http
import inspect
import io
import logging
import pickle
import re
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import MagicMock, Mock, create_autospec
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import redis
import redis.asyncio
import requests
import trio
from prometheus_client import CollectorRegistry

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncRedisStorage,
    AsyncSQLiteStorage,
    AsyncTokenBucket,
    BucketState,
    ConfigError,
    CostTooLarge,
    Event,
    EventKind,
    Hold,
    KeepaSync,
    LoggingListener,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    Reading,
    RedisStorage,
    SQLiteStorage,
    TokenBucket,
    async_http_probe,
    async_storage_from_url,
    http_probe,
    keepa_quota,
    storage_from_url,
)
from keepa_tokens._door import door_of
from keepa_tokens.guards.celery import LONGEST_COUNTDOWN, TokenTask, _countdown
from keepa_tokens.guards.httpx import KeepaTransport
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.keepa.estimates import Estimator
from keepa_tokens.metrics import BucketCollector, PrometheusListener
from keepa_tokens.testing import ManualClock
from tests.helpers import Noted

pytestmark = pytest.mark.anyio

PLAIN: Final = Quota(10, 1, 1.0)
SYNCED: Final = Quota(10, 1, 1.0, synced=True, initial=10)
SECRET: Final = "sEcReT" * 11
URL: Final = f"redis://user:{SECRET}@localhost:6379"

# What is given wrongly, a type checker would refuse.
plain: Any = TokenBucket
plain_async: Any = AsyncTokenBucket
keepa: Any = KeepaSync
keepa_async: Any = AsyncKeepaSync
quota: Any = Quota
on_redis: Any = RedisStorage
client_of: Any = redis.Redis
file_at: Any = SQLiteStorage
estimator: Any = Estimator
check_cost: Any = PLAIN.check_cost
memory: Any = MemoryStorage
stored: Any = BucketState
logging_to: Any = LoggingListener
counting: Any = PrometheusListener
looking: Any = BucketCollector
probe: Any = http_probe
async_probe_of: Any = async_http_probe
BUCKETS: Final = (plain, plain_async)
KEYED: Final = (partial(plain, PLAIN), plain(PLAIN).with_key)
KEEPA: Final = (keepa, keepa_async)
GUARDS: Final[tuple[Any, ...]] = (KeepaTransport, KeepaAdapter)


class AsyncStorage:
    async def apply(self, *args: object, **options: object) -> Any: ...


class BlockingStorage:
    def apply(self, *args: object, **options: object) -> Any: ...


class Client:
    def execute_command(self, *args: object) -> object: ...


def sync(**changes: Any) -> KeepaSync:
    return KeepaSync(TokenBucket(keepa_quota(initial=10), clock=ManualClock(100.0), **changes))


def door_to_nothing(make: Any, **options: Any) -> Any:
    return make((TokenBucket if make is KeepaSync else AsyncTokenBucket)(keepa_quota()), **options)


async def hear(_: object) -> None: ...


async def async_probe() -> tuple[int, Mapping[str, object] | None]:
    return 200, {"tokensLeft": 5}


def takes_more(url: str) -> tuple[int, None]:
    raise AssertionError(url)


# --- arguments

WRONG_TYPES: Final[list[tuple[Callable[[], object], str]]] = [
    *(
        (partial(make, PLAIN, clock=clock), "clock must be a Clock")
        for make in BUCKETS
        for clock in (time.time, "x", 5)
    ),
    *((partial(make, PLAIN, clock=ManualClock), "clock must be a Clock") for make in BUCKETS),
    # The class would take each event for its logger.
    *(
        (partial(make, PLAIN, listener=no), "listener must be callable")
        for make in BUCKETS
        for no in ("x", LoggingListener)
    ),
    *((partial(make, PLAIN, listener=hear), "never awaited") for make in BUCKETS),
    *((partial(logging_to, no), "logger must be a logging.Logger") for no in ("text", 20, logging.getLogger("x").info)),
    *((partial(counting, CollectorRegistry(), then=no), "then must be callable") for no in ("x", LoggingListener)),
    (partial(counting, then=hear), "then is called, never awaited"),
    *((partial(make, registry=SECRET), "registry must be a CollectorRegistry") for make in (counting, looking)),
    *((partial(looking, no), "a bucket must be a TokenBucket") for no in ("x", AsyncTokenBucket(PLAIN))),
    *((partial(plain, no), "quota must be a Quota") for no in (SECRET, None, 5, (10, 1, 1.0))),
    *((partial(make, key=no), "key must be") for make in KEYED for no in (7, b"k")),
    *((partial(make(PLAIN).with_key, None), "key must be") for make in BUCKETS),
    (partial(check_cost, "5", 0), "tokens must be"),
    (partial(check_cost, 5, "5"), "keep must be"),
    (partial(plain(keepa_quota()).reconcile, {"tokensLeft": 5}), "reading must be a Reading"),
    *((partial(type, "Mine", (TokenTask,), {"most_times": no}), "most_times must be") for no in ("3", 1.5, True)),
    *((partial(make.from_key, key), "api_key") for make in KEEPA for key in (None, 5, SECRET.encode())),
    *((partial(make.from_key, "key", base_url=url), "base_url") for make in KEEPA for url in (httpx.URL("x"), b"x")),
    *((partial(make.from_key, "key", probe=False), "probe") for make in KEEPA),
    (partial(keepa.from_key, "key", refill_rate=SECRET), "refill_rate"),
    (partial(keepa.from_key, "key", clock=SECRET), "clock"),
    # A URL, the class of the ready one; one that wants more would fail at each call, as if the server were away.
    *(
        (partial(door_to_nothing, make, probe=probe), "probe must be callable")
        for make in KEEPA
        for probe in ("https://api.keepa.com/token", 5, SECRET, http_probe)
    ),
    *(
        (partial(door_to_nothing, make, probe=probe), "probe is called with nothing")
        for make in KEEPA
        for probe in (takes_more, lambda *, key: (200, key), lambda timeout, more: (timeout, more))
    ),
    *(
        (partial(make, sync(), **wrong), next(iter(wrong)))
        for make in GUARDS
        for wrong in ({"estimate": "5"}, {"estimator": 5}, {"api_key": 5}, {"host": None})
    ),
    (partial(on_redis.from_url, URL.encode()), "url must be a str"),
    (partial(keepa(TokenBucket(keepa_quota())).try_request, 1.5), "estimate must be a whole number (int), not 1.5"),
    (partial(keepa(TokenBucket(keepa_quota())).request, None), "estimate must be a whole number (int), not None"),
    (partial(plain(PLAIN).take_up_to, 1.5), "tokens must be a whole number (int), not 1.5"),
    (lambda: asyncio.run(plain_async(PLAIN).take_up_to(1, keep="2")), "keep must be a whole number (int), not '2'"),
    (partial(plain(keepa_quota(initial=9)).try_reserve(1).settle, 1, "n"), "reading must be a Reading, not 'n'"),
    (partial(plain(PLAIN).try_reserve(1).settle, 1, "n"), "reading must be a Reading, not 'n'"),
    (partial(stored.from_fields, "n"), "texts must be a Mapping, not 'n'"),
    (partial(memory().load, "k", "n"), "state must be a BucketState, not 'n'"),
    (partial(probe, None), "api_key must be the API key, a text, not NoneType"),
    (partial(probe, "key", transport="n"), "transport must be"),
    (partial(async_probe_of, "key", transport=httpx.HTTPTransport()), "transport must be"),
    (partial(quota, 1, 1, 1.0, stepped=10**5000), "stepped must be True or False, not a whole number of 16610 bits"),
]
"""What is given, and what the error says."""

WRONG_VALUES: Final[list[tuple[Callable[[], object], str]]] = [
    (partial(type, "Mine", (TokenTask,), {"dont_autoretry_for": (KeyError,)}), "(*TokenTask.dont_autoretry_for, ...)"),
    (partial(looking, plain(PLAIN, key="k"), plain(PLAIN, key="k"), registry=CollectorRegistry()), "have one key"),
    (partial(plain, PLAIN, storage=AsyncStorage()), "AsyncTokenBucket"),
    (partial(plain_async, PLAIN, storage=BlockingStorage()), "blocks"),
    *((partial(make, PLAIN, storage=URL), "from_url") for make in BUCKETS),
    (partial(plain, PLAIN, storage=URL.encode()), "from_url"),
    *((partial(make, PLAIN, storage=Client()), "RedisStorage(client)") for make in BUCKETS),
    (partial(plain, PLAIN, storage=MemoryStorage), "instance"),
    *(
        (getattr(plain(PLAIN, key="k", storage=BlockingStorage()), door), "return an Outcome")
        for door in ("peek", "try_reserve")
    ),
    (
        lambda: asyncio.run(plain_async(PLAIN, key="k", storage=AsyncStorage()).acquire()),
        "return an Outcome, not NoneType",
    ),
    (partial(plain, PLAIN, storage=BlockingStorage()), "key is missing"),
    (partial(plain_async, PLAIN, storage=AsyncStorage()), "key is missing"),
    *((partial(make, PLAIN, storage=none), "no storage") for make in BUCKETS for none in (5, object(), [])),
    *((partial(make, key=key), "key") for make in KEYED for key in (f"a b {SECRET}", "", " ", "a\n", "\0", "k" * 257)),
    (partial(plain(PLAIN).reconcile, Reading(5)), "plain bucket"),
    *((partial(estimator, **{name: 0}), f"{name}=0 is out of range") for name in ("window", "kinds")),
    (partial(keepa, AsyncTokenBucket(keepa_quota())), "AsyncKeepaSync"),
    (partial(keepa_async, TokenBucket(keepa_quota())), "KeepaSync"),
    *((partial(make, SECRET), "from_key") for make in KEEPA),
    (partial(keepa, None), "NoneType"),
    (partial(sync().try_request, -1), "estimate=-1 is out of range"),
    (partial(async_probe_of, ""), "api_key is empty"),
    (partial(keepa_quota, 10**15), "refill_rate=1000000000000000 is out of range"),
    (partial(SQLiteStorage, "x.sqlite", timeout=-1), "timeout=-1 is out of range"),
    *((partial(SQLiteStorage, path), "can't be a file") for path in ("x" * 300, "\ud800", f"/nowhere/{SECRET}")),
    *((partial(file_at, path), "use MemoryStorage") for path in ("", ":memory:", 7, None)),
    (partial(keepa, TokenBucket(PLAIN)), "synced"),
    (partial(keepa, TokenBucket(keepa_quota()), probe_interval=0), "probe_interval"),
    (keepa(TokenBucket(keepa_quota())).refresh, "probe"),
    (partial(keepa, keepa_quota()), "Quota"),
    *(
        (partial(make.from_key, key), "api_key")
        for make in KEEPA
        for key in ("", *(SECRET + odd for odd in (" ", "\n", "é")))
    ),
    *(
        (partial(make.from_key, "key", base_url=url), "base_url")
        for make in KEEPA
        for url in (
            *("api.keepa.com", "ftp://x", "", " https://h"),
            *(f"https://{rest}" for rest in ("h:0", "h:99999", "a..b", "h\n", "[::1", "h?x=1", "h#x")),
            *(f"https://{rest}" for rest in (f"u:{SECRET}/x@h", f"h:{SECRET}")),
        )
    ),
    *((partial(make.from_key, "key", hold_for=0), "hold_for") for make in KEEPA),
    *((partial(make.from_key, "key", key="a b"), "key") for make in KEEPA),
    *((partial(make, none), "needs a KeepaSync") for make in GUARDS for none in (SECRET, [SECRET])),
    *(
        (partial(make, sync(), **wrong), next(iter(wrong)))
        for make in GUARDS
        for wrong in (
            *({"api_key": no} for no in ("", "k\n")),
            *({"host": no} for no in ("", "https://api.keepa.com", "api.keepa.com:443", "api.keepa.com/", "a b", URL)),
        )
    ),
    *(
        (partial(KeepaTransport, sync(), no), "must have handle_request()")
        for no in (URL, httpx.AsyncHTTPTransport(), httpx.Client)
    ),
    *(
        (partial(make, client), says)
        for make, client, says in (
            (on_redis, redis.Redis, "class Redis"),
            (on_redis, redis.asyncio.Redis(), "AsyncRedisStorage"),
            (on_redis, redis.Redis().pipeline(), "is a pipeline"),
            (AsyncRedisStorage, redis.Redis(), "blocks"),
            *((on_redis, url, "from_url") for url in (URL, URL.encode())),
            *((on_redis, none, "RedisStorage takes a client") for none in (None, 7, object())),
        )
    ),
    *((partial(on_redis, redis.Redis(), prefix=no), "prefix") for no in ("\ud800", "a\n", "\x1b[31m", "x" * 201)),
    *(
        (partial(on_redis, client_of(**wrong)), says)
        for wrong, says in (
            ({"encoding": "utf-16"}, "encoding"),
            ({"db": "x"}, "database"),
            ({"db": True}, "database"),
            ({"port": "x"}, "port"),
            ({"port": -1}, "port"),
            ({"host": "a..b"}, "host"),
            ({"socket_timeout": "5"}, "socket_timeout"),
        )
    ),
    (partial(on_redis, redis.ConnectionPool.from_url(URL)), "takes a client"),
    # What can't be stored as text, or would break a line, is no id of a task.
    *((partial(sync().try_request, 1, place=place), "place") for place in ("a\nb", "\ud800", "", "x" * 201)),
]


@pytest.mark.parametrize(
    "error, mistake, says",
    [
        *((TypeError, *row) for row in WRONG_TYPES),
        *((ConfigError, *row) for row in WRONG_VALUES),
        (CostTooLarge, partial(sync().try_request, 1, keep=300), "keep=300"),
    ],
)
def test_a_wrong_argument_is_told_at_once_by_name(
    error: type[Exception], mistake: Callable[[], object], says: str
) -> None:
    """Another kind of storage, clock, listener, bucket, probe, client, URL, key: what to give is said, no secret is."""
    with pytest.raises(error, match=re.escape(says)) as caught:
        mistake()
    assert SECRET[:6] not in str(caught.value)


URLS: Final = (
    ("must begin with", "", "redis:/u:{p}@h", "u:{p}@h:6379", "sqlite:x"),
    ("redis://, rediss://, valkey://", "http://u:{p}@h", "mysql://u:{p}@h"),
    ("takes nothing", "memory://x"),
    ("a SQLite URL is sqlite:///file.sqlite", "sqlite://x"),
    ("no options", "sqlite:///file.sqlite?timeout=5"),
    ("directory", "sqlite:////nowhere/file.sqlite", "sqlite:////tmp"),
    ("can't be a file", "sqlite:////tmp/a\0b"),
    ("no socket", "unix://"),
    ("percent codes", "redis://u:{p}/x@h", "redis://u:{p}#{p}@h", "redis://u:{p}?{p}@h", "redis://u:12/3{p}@h"),
    ("percent codes", "redis://:{p}@h:{p}", "redis://:{p} [@h"),
    ("host must be", *(f"redis://{host}:6379" for host in ("a..b", "x" * 64, "127.0.0.1 ", "a b"))),
    ("port 0", "redis://h:0"),
    ("port must be", *(f"redis://h?port={port}" for port in ("0", "99999", "-5"))),
    ("must be a number", "redis://h?port=x", "redis://h?port=1.5", "valkey://h?max_connections=-1"),
    ("number of a database", "redis://h/x"),
    ("database", "redis://h/99999999999", "redis://h?db=-1"),
    ("the value of the option 'socket_timeout' is not valid", "redis://u:{p}@h?socket_timeout=soon"),
    ("socket_timeout", *(f"redis://h?socket_timeout={seconds}" for seconds in ("-1", "0", "nan", "inf"))),
    ("socket_connect_timeout", "redis://h?socket_connect_timeout=-1"),
    ("encoding", "redis://h?encoding=klingon", "valkey://h?encoding=utf-16"),
    ("protocol must be 2 or 3", "redis://h?protocol=4"),
    ("no option 'ssl'", "redis://h?ssl=true"),
    ("no option 'ssl_cert_reqs'", "redis://h?ssl_cert_reqs=CERT_NONE"),
    ("no option 'max_connection'", "redis://h?max_connection=5"),
    ("no option 'sockettimeout'", "redis://h?sockettimeout=1"),
    ("socket_type", "redis://h?socket_type=1"),
    ("ssl_cert_reqs must be one of", "rediss://h?ssl_cert_reqs=CERT_NONE"),
    ("ssl_ca_certs", "rediss://h?ssl_ca_certs=/nowhere.pem"),
    ("ssl_certfile", "rediss://h?ssl_certfile=/nowhere.pem"),
    ("ssl_keyfile", "rediss://h?ssl_keyfile=/etc/hostname"),
    ("can't be given as text", "redis://h?retry=3", "valkey://h?credential_provider=x", "redis://h?cache="),
)
"""What is said, at once and not at the first use as of an outage, of which URLs; `{p}` is a password."""


@pytest.mark.parametrize("says, url", [(says, url) for says, *urls in URLS for url in urls])
def test_a_mistake_in_a_url_is_told_at_once(says: str, url: str) -> None:
    """By the error's text; neither that nor what Python keeps behind it, which tools show too, has the password."""
    of_redis = () if url.startswith(("memory:", "sqlite:")) else (RedisStorage.from_url, AsyncRedisStorage.from_url)
    for opened in (storage_from_url, async_storage_from_url, *of_redis):
        with pytest.raises(ConfigError, match=re.escape(says)) as caught:
            opened(url.replace("{p}", SECRET))
        assert caught.value.__context__ is None or "{p}" not in url
        assert SECRET[:6] not in str(caught.value)


@pytest.mark.parametrize("kind", [KeepaSync, AsyncKeepaSync])
def test_from_key_hands_on_what_it_is_given(kind: type[KeepaSync | AsyncKeepaSync]) -> None:
    """The storage, the clock and the listener are the bucket's, the age of a reading the door's."""
    storage, clock, events = MemoryStorage(), ManualClock(100.0), list[Event]()
    made = kind.from_key("key", storage=storage, clock=clock, listener=events.append, probe_interval=7.0)
    door = door_of(made.bucket)
    assert (door.storage, door.clock, vars(made)["_probe_after_us"]) == (storage, clock, 7_000_000)
    door.say(EventKind.PROBE_FAILED, "heard")
    assert [event.why for event in events] == ["heard"]


def test_from_key_takes_what_the_parts_take() -> None:
    """A probe of one's own, the bucket's name, how long a hold lives, where the server is."""
    clock = ManualClock(100.0)
    made = KeepaSync.from_key(
        "key", probe=lambda: (200, {"tokensLeft": 5}), hold_for=7.0, key="mine", clock=clock, refill_rate=20
    )
    assert (made.bucket.key, made.bucket.quota.refill) == ("mine", 20)
    made.try_request(5)
    clock.advance(7.0)
    assert (made.bucket.peek().held, made.bucket.peek().balance) == (0, 0)
    for make in (KeepaSync.from_key, AsyncKeepaSync.from_key):
        assert "http://127.0.0.1:1" in repr(vars(make("key", base_url="http://127.0.0.1:1"))["_probe"])
    assert SECRET not in repr(http_probe("key", base_url=f"http://me:{SECRET}@127.0.0.1:1"))


# --- numbers


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_any_kind_are_counts(kind: type) -> None:
    """What `operator.index` accepts is a count, and is stored as an int; bools are none."""
    storage = MemoryStorage()
    bucket = TokenBucket(PLAIN, key="default", storage=storage, clock=ManualClock(1.0))
    assert bucket.try_acquire(kind(3), keep=kind(1)).granted
    bucket.try_reserve(kind(2)).settle(kind(1))
    bucket.refund(kind(1))
    assert bucket.acquire(1, timeout=kind(1)).granted
    state = storage.dump("default")
    assert state is not None
    assert (state.balance, type(state.balance)) == (6, int)
    for door in (bucket.try_acquire, bucket.try_reserve):
        with pytest.raises(TypeError, match="tokens"):
            door(np.bool_(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "make, given, told",
    [
        (quota.per_second, (0.5,), "n must be a whole number (int), not 0.5: write Quota.per_minute(30)"),
        (quota.per_second, (1.0,), "write Quota.per_second(1)"),
        (quota.per_second, (2.5,), "write Quota.per_minute(150)"),
        (quota.per_second, (1 / 3,), "write Quota.per_minute(20)"),
        (quota.per_minute, (0.25,), "write Quota.per_hour(15)"),
        (quota.per_minute, (1 / 90,), "write Quota.per_day(16)"),
        (quota.per_day, (0.5,), "write Quota(capacity, 1, 172800)"),
        (quota, (10, 0.5, 1.0), "refill must be a whole number (int), not 0.5: write Quota.per_minute(30)"),
        (quota, (10, 0.5, 86_400), "write Quota(capacity, 1, 172800)"),
        (quota.per_second, (float("nan"),), "must be a whole number (int), not nan"),
        (quota.per_second, (-0.5,), "must be a whole number (int), not -0.5"),
        (quota.per_second, ("5",), "must be a whole number (int), not '5'"),
        (quota.per_second, (True,), "must be a whole number (int), not True"),
        (quota.per_second, (0.0,), "must be a whole number (int), not 0.0"),
        (quota.per_second, (2.0**52,), "must be a whole number (int), not 4503599627370496.0"),
        (quota, (10, 2.0**51, 0.5), "write Quota(capacity, 2251799813685248, 0.5)"),
    ],
)
def test_a_rate_below_a_token_is_refused_with_what_to_write(make: Any, given: tuple[object, ...], told: str) -> None:
    """A fraction of a token a second is a TypeError that says the same in whole numbers, by a longer unit."""
    with pytest.raises(TypeError) as refused:
        make(*given)
    assert str(refused.value).endswith(told)


@pytest.mark.parametrize(
    "make, seconds",
    [(Quota.per_second, 1.0), (Quota.per_minute, 60.0), (Quota.per_hour, 3_600.0), (Quota.per_day, 86_400.0)],
)
def test_a_quota_by_a_unit_is_the_one_that_is_spelled_out(make: Callable[..., Quota], seconds: float) -> None:
    """So many a unit, as many as that at most unless said otherwise, and all other terms as they are given."""
    assert make(5) == Quota(5, 5, seconds)
    assert make(5, capacity=7, overdraft=2) == Quota(7, 5, seconds, overdraft=2)


def test_numbers_of_other_libraries_are_plain_ones_in_a_quota() -> None:
    """A numpy integer in a quota can't overflow later, since it becomes an int."""
    made = quota(np.int64(300), np.int32(5), 60.0, overdraft=np.int8(3), initial=np.int64(-4))
    assert {type(each) for each in (made.capacity, made.refill, made.overdraft, made.initial)} == {int}
    of_keepa: Any = keepa_quota
    assert of_keepa(np.uint8(5)) == keepa_quota(5)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64])
def test_numbers_of_other_libraries_overflow_nowhere(kind: Any) -> None:
    """An estimate, a cost beside what is kept, a reading: what is computed with them is computed with ints."""
    bucket = TokenBucket(keepa_quota(5, initial=300), clock=ManualClock(1.0))
    with KeepaSync(bucket).request(kind(5)) as call:
        call.settle({"tokensLeft": 5, "tokensConsumed": 5})
    with pytest.raises(CostTooLarge, match="tokens=100 with keep=100 can never be admitted"):
        TokenBucket(Quota(100, 1, 1.0)).try_acquire(kind(100), keep=kind(100))
    reading = Reading(kind(5), capacity=kind(100), refill=kind(2), next_refill_in=kind(3))
    assert {type(each) for each in (reading.balance, reading.capacity, reading.refill_tokens)} == {int}
    assert bucket.reconcile(reading).balance == 5


# --- copies


@pytest.mark.parametrize(
    "make, instead",
    [
        (lambda _: TokenBucket(PLAIN), "a storage that they share"),
        (lambda _: AsyncTokenBucket(PLAIN), "a storage that they share"),
        (lambda _: sync(), "a storage that they share"),
        (lambda _: sync().try_request(1), "make one in each process"),
        (lambda _: TokenBucket(PLAIN).try_reserve(1), "make one in each process"),
        (lambda _: AsyncKeepaSync(AsyncTokenBucket(keepa_quota())), "a storage that they share"),
        (lambda _: http_probe("key"), "with the same API key"),
        (lambda _: async_http_probe("key"), "with the same API key"),
        (lambda _: Estimator(), "it learns in its process"),
        (lambda _: KeepaTransport(sync()), "of the same bucket"),
        (lambda _: MemoryStorage(), "`dump` and `load`"),
        (lambda _: RedisStorage(redis.Redis()), "of the same URL"),
        (lambda _: AsyncRedisStorage(redis.asyncio.Redis()), "of the same URL"),
        (lambda path: SQLiteStorage(path / "b"), "of the same path"),
        (lambda path: AsyncSQLiteStorage(path / "b"), "of the same path"),
    ],
)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_cannot_be_copied_says_what_to_make(make: Any, instead: str, copied: Any, tmp_path: Path) -> None:
    """Doors, calls, probes, guards, storages, alone or in a task's arguments: refused at once, with what to do."""
    made = make(tmp_path)
    for given in (made,) if copied is copy.copy else (made, {"args": [made]}):
        with pytest.raises(TypeError, match=f"can't be pickled or copied: .*{instead}"):
            copied(given)


@pytest.mark.parametrize(
    "value",
    [
        keepa_quota(20, recharge_to=40),
        BucketState(balance=4, refilled_at=7, holds={"a": Hold(1, 2, 3, 4)}),
        Reading(4),
        Event(EventKind.REFUSED, "k", 4, None, 1.5, None, "EMPTY"),
        TokenBucket(PLAIN, clock=ManualClock(1.0)).try_acquire(3),
        TokenBucket(PLAIN, clock=ManualClock(1.0)).peek(3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_what_a_bucket_says_can_be_sent_to_another_process(value: object, copied: Any) -> None:
    """Terms, readings, events, decisions and snapshots come out of a pickle or a copy as they went in."""
    assert copied(value) == value
    assert type(copied(value)) is type(value)


# --- probes


async def _reserved(bucket: AsyncTokenBucket) -> None:
    await bucket.try_reserve(2)


def test_a_command_that_is_a_mistake_leaves_nothing_to_give_back(tmp_path: Path) -> None:
    """A storage that was closed, a clock of the wrong kind take nothing, so nobody is told of tokens left behind."""
    told: list[Event] = []
    blocking, awaited = SQLiteStorage(tmp_path / "a"), AsyncSQLiteStorage(tmp_path / "a")
    door = AsyncTokenBucket(PLAIN, key="default", storage=awaited, listener=told.append)

    async def by_coroutine() -> None:
        await awaited.aclose()
        with pytest.raises(ConfigError, match="is closed"):
            await door.try_reserve(2)

    asyncio.run(by_coroutine())
    blocking.close()
    with pytest.raises(ConfigError, match="is closed"):
        TokenBucket(PLAIN, key="default", storage=blocking, listener=told.append).try_reserve(2)
    assert told == []
    wrong: Any = Mock(now_us=time.time)
    with pytest.raises(TypeError, match="now_us"):
        TokenBucket(PLAIN, clock=wrong, listener=told.append).try_reserve(2)
    with pytest.raises(TypeError, match="now_us"):
        asyncio.run(_reserved(AsyncTokenBucket(PLAIN, clock=wrong, listener=told.append)))
    assert told == []


@pytest.mark.parametrize(
    "probe, says",
    [
        (async_probe, "coroutine function"),
        (async_http_probe("key"), "coroutine function"),
        (lambda: asyncio.sleep(0), "coroutine"),
        (lambda: httpx.Response(200), "Response"),
        (lambda: {"tokensLeft": 5}, "dict"),
        (lambda: ("200", None), "tuple"),
        (lambda: ({"tokensLeft": 5}, 200), r"not tuple \(dict, int\)"),
        (lambda: (200, '{"tokensLeft": 5}'), r"not tuple \(int, str\)"),
        (lambda: (200, None, "a header"), r"not tuple \(int, NoneType, str\)"),
        (lambda: None, "NoneType"),
    ],
)
def test_a_probe_that_is_none_is_told_by_name(probe: Any, says: str) -> None:
    """An async one for threads, one that returns a response or a body alone: a ConfigError, and no failed probe."""
    events: list[Event] = []
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0), listener=events.append)
    with pytest.raises(ConfigError, match=says):
        KeepaSync(bucket, probe=probe).try_request(1)
    assert not [event for event in events if event.kind is EventKind.PROBE_FAILED]


def test_a_mock_of_what_blocks_blocks() -> None:
    """A storage and a listener with the specs of such are used, though Python takes their calls for coroutines."""
    storage, listener = create_autospec(MemoryStorage, instance=True), MagicMock(spec=lambda _: None)
    storage.apply.side_effect = MemoryStorage().apply
    assert TokenBucket(PLAIN, key="k", storage=storage, listener=listener).try_acquire()
    listener.assert_called_once()


@pytest.mark.parametrize(
    "probe, says",
    [
        (lambda: (200, {"tokensLeft": 5}), "goes with KeepaSync"),
        (http_probe("key", transport=httpx.MockTransport(lambda _: httpx.Response(200))), "goes with KeepaSync"),
        (lambda: 5, "int"),
        (lambda: asyncio.sleep(0, httpx.Response(200)), "Response"),
    ],
)
async def test_an_async_door_says_the_same_of_its_probe(probe: Any, says: str) -> None:
    """One that blocks, one that returns no pair."""
    with pytest.raises(ConfigError, match=says):
        await door_to_nothing(AsyncKeepaSync, probe=probe).try_request(1)


def test_a_probe_may_hide_its_arguments() -> None:
    """Of what is written in C, Python doesn't always know them: it is called with nothing."""
    hidden = partial(getattr, SimpleNamespace(answer=(200, {"tokensLeft": 5})), "answer")
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(hidden)
    assert KeepaSync(TokenBucket(keepa_quota()), probe=hidden).refresh().balance == 5


@pytest.mark.parametrize("timeout, takes_s", [(None, 0.0), (None, 11.0), (5.0, 0.0)])
def test_a_probe_that_raises_uses_up_its_claim(timeout: float | None, takes_s: float) -> None:
    """At once or late: it had the time that a probe needs, so the next caller doesn't probe again at once."""
    clock, events = ManualClock(100.0), list[Event]()

    def probe() -> tuple[int, None]:
        clock.advance(takes_s)
        raise OSError

    door = KeepaSync(TokenBucket(keepa_quota(), clock=clock, listener=events.append), probe=probe)
    with pytest.raises(NotEnoughTokens):
        _ = door.try_request(1) if timeout is None else door.request(1, timeout=timeout)
    with pytest.raises(NotEnoughTokens):
        door.try_request(1)
    assert [event.why for event in events if event.kind is EventKind.PROBE_FAILED] == ["the probe raised OSError"]


async def test_the_right_to_ask_the_server_is_one_callers() -> None:
    """Who has no probe may claim it, ask, and observe the answer; nobody else claims it meanwhile."""
    blocking = KeepaSync(TokenBucket(keepa_quota()))
    awaited = AsyncKeepaSync(AsyncTokenBucket(keepa_quota()))
    assert [blocking.claim_probe(), blocking.claim_probe()] == [True, False]
    assert [await awaited.claim_probe(), await awaited.claim_probe()] == [True, False]


@pytest.mark.parametrize("status", [np.int64(200), http.HTTPStatus.OK])
def test_a_probes_status_is_any_whole_number(status: Any) -> None:
    """A number of numpy's too."""
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0))
    KeepaSync(bucket, probe=lambda: (status, {"tokensLeft": 5})).try_request(1).cancel()
    assert bucket.peek().balance == 5


def raising(text: str) -> Callable[[], tuple[int, None]]:
    def probe() -> tuple[int, None]:
        raise OSError(text)

    return probe


@pytest.mark.parametrize(
    "text, secret",
    [
        ("no answer from https://api.keepa.com/token?key=abc123&domain=1", "abc123"),
        ("the proxy http://me:hunter2@proxy:3128 refused", "hunter2"),
        ("bad header " + "k3y" * 21 + "z", "k3yk3yk3y"),
    ],
)
def test_a_probes_own_words_are_kept_without_what_is_secret(text: str, secret: str) -> None:
    """What a probe raised is told with its text; keys and passwords in it are not."""
    events: list[Event] = []
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0), listener=events.append)
    with pytest.raises(NotEnoughTokens):
        KeepaSync(bucket, probe=raising(text)).try_request(1)
    [failed] = [event.why for event in events if event.kind is EventKind.PROBE_FAILED]
    assert failed.startswith(f"the probe raised OSError: {text[:8]}")
    assert secret not in failed


# --- answers

ENVELOPE: Final = b'{"tokensLeft": 7, "tokensConsumed": 3}'


def of_requests(status: int) -> Any:
    answer = requests.Response()
    answer.status_code, answer._content = status, ENVELOPE
    return answer


@pytest.mark.parametrize("answer", [httpx.Response(200, content=ENVELOPE), of_requests(200), memoryview(ENVELOPE)])
def test_a_response_is_understood_as_it_is(answer: Any) -> None:
    """`settle(response)`: its body and its status."""
    door = sync()
    door.observe(b'{"tokensLeft": 10}')
    call = door.try_request(5)
    call.settle(answer)
    assert (call.consumed, call.refused, door.bucket.peek().balance) == (3, False, 7)
    refused = door.try_request(5)
    refused.settle(of_requests(429))
    assert refused.refused
    door.observe(answer)


def test_a_response_that_is_observed_brings_its_status_too() -> None:
    """`observe(response)`: where it is no reading, the event names its status."""
    events: list[Event] = []
    answer: Any = httpx.Response(502, content=b"<html>")
    sync(listener=events.append).observe(answer)
    assert events[-1].why.startswith("status 502: ")


@pytest.mark.parametrize("status", ["429", http.HTTPStatus.TOO_MANY_REQUESTS, np.int64(429), 429])
def test_a_refusal_is_one_whatever_its_status_is_written_as(status: Any) -> None:
    """A text of digits, an enum, numpy's number: all are 429, which says even without a body that nothing is left."""
    door = sync()
    call = door.try_request(5)
    call.settle(None, status=status)
    assert (call.refused, call.consumed) == (True, 0)
    assert (door.bucket.peek().balance, door.bucket.peek().held) == (0, 0)


class StillToBeRead:
    """A response as aiohttp's: a status, and a body that has to be awaited."""

    status = 429
    headers: Mapping[str, str] = {}


UNREAD: Final[tuple[Any, ...]] = (
    *(StillToBeRead(), asyncio.Future[bytes](loop=asyncio.new_event_loop()), io.BytesIO(b"{}"), (200, {})),
    httpx.Response,
)


WRONG_STATUS: Final[tuple[Any, ...]] = ("refused", 429.0, True, [], b"429")


@pytest.mark.parametrize(
    "answer, status, says",
    [
        *((answer, None, f"not {type(answer).__name__}: read it first") for answer in UNREAD),
        *((ENVELOPE, status, "status") for status in WRONG_STATUS),
    ],
)
def test_what_can_be_no_answer_is_a_type_error_and_the_call_stays_open(answer: Any, status: Any, says: str) -> None:
    """Not yet read, not yet awaited, a file, no status: the right answer can still be given."""
    door = sync()
    call = door.try_request(5)
    for give in (call.settle, door.observe):
        with pytest.raises(TypeError, match=says):
            give(answer, status=status)
    assert door.bucket.peek().held == 5
    call.settle(ENVELOPE, status=200)
    assert (door.bucket.peek().held, door.bucket.peek().balance) == (0, 7)


@pytest.mark.parametrize("odd", [[1], 5, 1.5, True, "nonsense", b"\x1f\x8b", {1: 2}])
def test_whatever_a_server_may_say_is_no_mistake(odd: Any) -> None:
    """What JSON can come to never raises: the server said it, not the caller."""
    door = sync()
    door.try_request(5).settle(odd)
    assert door.bucket.peek().held == 0


@pytest.mark.parametrize("hold_id", ["x\nFAKE LINE", "x\r\nFAKE LINE", "\x1b[31mFAKE", "y" * 10_000, "\u2028FAKE"])
def test_what_is_stored_writes_no_lines_of_its_own(hold_id: str, caplog: pytest.LogCaptureFixture) -> None:
    """An id or a label with line breaks or a terminal's codes in it, or without an end, is one short line."""
    storage = MemoryStorage()
    bucket = TokenBucket(Quota(10, 1, 1.0), key="default", storage=storage, clock=ManualClock(100.0))
    fields = {"format": "1", "balance": "9", "refilled_at": "100000000", f"hold:{hold_id}": "garbage"}
    storage.load("default", BucketState.from_fields(fields))
    assert bucket.try_acquire(1).repaired
    fields = {**fields, f"hold:{hold_id}": f"3 0 1000000 1000000 0 {quote(hold_id)}"}
    storage.load("default", BucketState.from_fields(fields))
    bucket.try_acquire(1)
    with suppress(NotEnoughTokens):
        KeepaSync(
            TokenBucket(keepa_quota(), clock=ManualClock(1.0)), probe=raising(f"no answer: {hold_id}")
        ).try_request(1)
    assert len(caplog.messages) >= 3
    assert all(message.isprintable() and len(message) < 1100 for message in caplog.messages)


# --- what is left


def test_a_call_that_is_left_unsettled_is_warned_of() -> None:
    """`with sync.request(40): pass` says what is missing, by an event and a ResourceWarning, which may be an error."""
    events: list[Event] = []
    door = sync(listener=events.append)
    with pytest.warns(ResourceWarning, match=r"a call of 4 tokens was left without settle\(\)"), door.request(4):
        pass
    with warnings.catch_warnings(action="error"), pytest.raises(ResourceWarning), door.request(4):
        pass
    gc.collect()
    door.bucket.peek()
    lefts = [event for event in events if event.kind is EventKind.LEFT_UNSETTLED]
    assert [left.tokens for left in lefts] == [4, 4]
    assert "call.settle(" in lefts[0].why


async def test_a_call_of_a_coroutine_that_is_left_unsettled_is_warned_of() -> None:
    """By the end of its block too, not only once it is thrown away."""
    door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(initial=10), clock=ManualClock(100.0)))
    with pytest.warns(ResourceWarning, match=r"a call of 4 tokens was left without settle\(\)"):
        async with door.request(4) as call:
            pass
    assert call.open


def in_a_cycle() -> None:
    """Keep a call where only itself is kept, as an exception does with the frames that it went through."""
    kept: list[object] = [sync().try_request(4)]
    kept.append(kept)
    del kept
    gc.collect()


def half_open() -> Iterator[object]:
    with sync().request(4) as call:
        yield call


async def half_open_too() -> AsyncIterator[object]:
    async with AsyncKeepaSync(AsyncTokenBucket(keepa_quota(initial=10))).request(4) as call:
        yield call


def half_open_as_the_loop_ends() -> None:
    calls = half_open_too()

    async def first() -> None:
        await anext(calls)

    asyncio.run(first())


@pytest.mark.parametrize(
    "make",
    [
        lambda: sync().try_request(4),
        lambda: TokenBucket(PLAIN).try_reserve(4),
        lambda: next(iter(sync().attempts(4))),
        in_a_cycle,
        lambda: next(half_open()),
        half_open_as_the_loop_ends,
    ],
)
def test_what_is_thrown_away_unsettled_is_warned_of(make: Callable[[], object]) -> None:
    """A call or a reservation that nobody keeps: the warning names the tokens."""
    with pytest.warns(ResourceWarning, match="of 4 tokens was left without"):
        make()


def test_a_listener_in_whose_midst_a_call_is_thrown_away_is_told_by_the_next_command() -> None:
    """The garbage collector comes anywhere, with a listener's lock held too, as those of Prometheus' counters are."""
    lock, told, kept = threading.Lock(), list[EventKind](), list[object]()

    def listen(event: Event) -> None:
        assert lock.acquire(blocking=False)
        kept.clear()
        told.append(event.kind)
        lock.release()

    bucket = TokenBucket(PLAIN, listener=listen)
    kept.append(bucket.try_reserve(4))
    with pytest.warns(ResourceWarning):
        bucket.try_acquire()
    bucket.refund(1)
    assert told == [EventKind.GRANTED, EventKind.GRANTED, EventKind.LEFT_UNSETTLED]


def test_the_warning_points_to_the_line_that_threw_it_away() -> None:
    """Not to that line's caller."""

    def forgetful() -> None:
        TokenBucket(PLAIN).try_reserve(4)

    with pytest.warns(ResourceWarning) as warned:
        forgetful()
    assert (warned[0].filename, warned[0].lineno) == (__file__, forgetful.__code__.co_firstlineno + 1)


def struck() -> None:
    def strike(event: Event) -> None:
        if event.kind is EventKind.SETTLED:
            raise KeyboardInterrupt

    TokenBucket(PLAIN, listener=strike).try_reserve(4).settle(1)


async def ended() -> None:
    for quota in (PLAIN, SYNCED):
        bucket = AsyncTokenBucket(quota)
        await (await bucket.try_reserve(1)).settle(1)
        await (await bucket.try_reserve(1)).cancel()
        with pytest.raises(OSError, match="gone"):
            async with bucket.reserve(1):
                raise OSError("gone")


def test_what_was_settled_or_failed_is_not() -> None:
    """Settled, cancelled, told that nobody knows, left by an exception, charged by leaving: no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        door, bucket = sync(), TokenBucket(PLAIN)
        with pytest.raises(KeyboardInterrupt):
            struck()  # interrupted after it was settled
        gc.collect()
        door.try_request(1).settle()
        door.try_request(1).cancel()
        bucket.try_reserve(1).settle(1)
        with bucket.try_reserve(1):
            pass
        with pytest.raises(OSError, match="gone"), door.request(1):
            raise OSError("gone")
        for quota in (PLAIN, SYNCED):
            with pytest.raises(OSError, match="gone"), TokenBucket(quota).reserve(1):
                raise OSError("gone")
        asyncio.run(ended())


# --- coroutines and loops


def forgotten(bucket: AsyncTokenBucket) -> None:
    _ = bucket.reserve(1)


async def test_what_is_pending_can_be_a_task_is_used_once_and_not_forgotten_silently() -> None:
    """TaskGroup.create_task takes it, and shows it; awaited twice it says so; forgotten, Python's warning names it."""
    bucket = AsyncTokenBucket(PLAIN, clock=ManualClock(100.0))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bucket.reserve(1))
        assert "coro=<AsyncTokenBucket.reserve() running at " in repr(task)
        assert task.get_stack()
    await task.result().settle(1)
    pending = bucket.try_reserve(1)
    await (await pending).cancel()
    with pytest.raises(RuntimeError, match="already awaited"):
        await pending
    with pytest.warns(RuntimeWarning, match=r"'AsyncTokenBucket\.reserve' was never awaited"):
        forgotten(bucket)
    assert (await bucket.peek()).holds == 0


@pytest.mark.parametrize("make", [lambda _: MemoryStorage(), lambda path: AsyncSQLiteStorage(path / "a")])
def test_a_bucket_works_on_trio(make: Any, tmp_path: Path) -> None:
    """In memory and in a file: waiting, reserving, a scope that cancels a wait, as on asyncio."""
    storage = make(tmp_path)

    async def main() -> None:
        async with AsyncTokenBucket(Quota(2, 4, 1.0), key="default", storage=storage) as bucket:
            await bucket.acquire(2)
            assert (await bucket.acquire(1)).waited > 0
            async with bucket.reserve(1) as held:
                await held.settle(0)
            assert (await bucket.peek()).holds == 0
        async with AsyncTokenBucket(Quota(1, 1, 3600.0), key="slow", storage=storage) as bucket:
            await bucket.acquire()
            with trio.move_on_after(0.001) as scope:
                await bucket.acquire()
            assert scope.cancelled_caught
            assert (await bucket.peek()).balance == 0
            await bucket.refund(1)
            with trio.CancelScope() as scope:
                scope.cancel()
                await bucket.try_acquire()
            assert not scope.cancelled_caught  # a step is done whole
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bucket.reserve, 1)
                    while not bucket._door.bell:  # it isn't asleep yet
                        await trio.lowlevel.checkpoint()
                    await bucket.refund(1)  # wakes it; else it would sleep for minutes
        door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(), key="keepa", storage=storage), probe=async_probe)
        await (await door.request(3)).settle(ENVELOPE, status=200)
        assert (await door.bucket.peek()).balance == 7
        await storage.aclose()

    trio.run(main)


async def _acquired(storage: Any) -> None:
    await AsyncTokenBucket(PLAIN, key="default", storage=storage).acquire()


def test_a_client_of_asyncio_says_so_on_trio() -> None:
    """AsyncRedisStorage on trio is a ConfigError that says what works there."""
    with pytest.raises(ConfigError, match=r"on trio use AsyncSQLiteStorage"):
        trio.run(_acquired, AsyncRedisStorage.from_url("redis://127.0.0.1:1"))


async def test_a_reading_wakes_who_waits_in_this_process() -> None:
    """On the machine's own time: what a settle of the same process brings ends the wait of another at once."""
    bucket = AsyncTokenBucket(Quota(10, 1, 3600.0, synced=True))
    await bucket.reconcile(Reading(4))
    held = await bucket.reserve(4)
    waiting = asyncio.ensure_future(bucket.reserve(3))
    await asyncio.sleep(0)
    begun = time.monotonic()
    await held.settle(0)
    await (await waiting).settle(0)
    assert time.monotonic() - begun < 1.0


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_who_is_woken_after_its_clock_was_set_waited_no_such_time(step: int) -> None:
    """Not minus an hour, which a histogram takes for a restart, nor longer than it meant to sleep."""

    class Sleepless(ManualClock):
        async def asleep(self, _: float, /) -> None:
            await asyncio.sleep(60)

    clock, events = Sleepless(7200.0), list[Event]()
    bucket = AsyncTokenBucket(Quota(10, 1, 60.0), clock=clock, listener=events.append)
    held = await bucket.reserve(10, hold_for=7200.0)
    waiting = asyncio.ensure_future(bucket.reserve(1))
    await asyncio.sleep(0)
    clock.advance(step)
    await held.settle(0)
    got = await waiting
    await got.settle(1)
    assert 0 <= got.decision.waited <= 60
    assert all(event.seconds >= 0 for event in events)


async def test_who_stands_first_in_line_is_woken_first() -> None:
    """Not who began to wait first: it leaves more to others, and what comes back is not for it yet."""
    bucket = AsyncTokenBucket(Quota(10, 1, 3600.0, initial=0))
    behind = asyncio.ensure_future(bucket.reserve(1, keep=5))
    await asyncio.sleep(0)
    first = asyncio.ensure_future(bucket.reserve(1))
    await asyncio.sleep(0)
    await bucket.refund(1)
    await (await asyncio.wait_for(first, 5)).settle(1)
    assert behind.cancel()


def test_a_settle_wakes_a_thread_that_waits() -> None:
    """For threads alike, by the machine's time: the one that stands first is woken, and passes it on."""
    storage, besides = Noted(), list[float]()
    bucket = TokenBucket(Quota(10, 1, 3600.0, initial=4), key="k", storage=storage)
    held, done = bucket.reserve(4), threading.Barrier(3)

    def wait() -> None:
        began = time.monotonic()
        woken = bucket.reserve(2)
        besides.append(time.monotonic() - began - woken.decision.waited)
        woken.settle(0)
        done.wait(10)

    for _ in range(2):
        threading.Thread(target=wait).start()
    while waiting_at(bucket) < 2:
        threading.Event().wait(0.001)
    held.settle(0)
    done.wait(10)  # unwoken, they would sleep for minutes
    assert min(besides) >= 0  # `waited` is how long it was, and not how long it might have been
    assert len(storage.commands) < 20  # none of them asked again and again


def test_a_thread_whose_time_has_come_waits_no_more() -> None:
    """The bell has nobody left whom it might wake in another's place."""
    bucket = TokenBucket(Quota(1, 1, 0.01))
    bucket.acquire()
    bucket.reserve().settle(1)
    assert waiting_at(bucket) == 0


def waiting_at(bucket: TokenBucket) -> int:
    return sum(map(len, bucket._door.bell._waiting.values()))


# --- refusals without an end


@pytest.mark.parametrize("refill_in", [0, 1, 400, 999])
def test_a_server_that_promises_tokens_at_once_and_gives_none_is_asked_five_times(refill_in: int) -> None:
    """429 with 0 left and the refill a moment away, each time: growing pauses, and the fifth answer is the last."""
    body = {"tokensLeft": 0, "refillIn": refill_in, "refillRate": 5}
    clock = ManualClock(100.0)
    door = KeepaSync(TokenBucket(keepa_quota(initial=100), clock=clock))
    asked: list[float] = []
    for call in door.attempts(5):
        asked.append(clock.slept)
        call.settle(body, status=429)
    assert len(asked) == 5
    assert [later - earlier >= 1 for earlier, later in pairwise(asked)] == [True] * 4

    def refuse(_: httpx.Request) -> httpx.Response:
        sent.append(clock.slept)
        return httpx.Response(429, json=body)

    sent: list[float] = []
    door = KeepaSync(TokenBucket(keepa_quota(initial=100), clock=clock))
    with httpx.Client(transport=KeepaTransport(door, httpx.MockTransport(refuse), retry_refused=True)) as client:
        assert client.get("https://api.keepa.com/product?domain=1&asin=B1").status_code == 429
    assert len(sent) == 5
    assert sent[-1] - sent[0] >= 10


def test_a_countdown_is_no_longer_than_a_broker_keeps_a_message() -> None:
    """A `Retry-After` of an hour too: a countdown beyond the visibility timeout would be run twice."""
    assert _countdown(NotEnoughTokens(5, 3600.5, "REFUSED"), 3) == LONGEST_COUNTDOWN


# --- a client's own timeout is no interrupt


async def inner_timeout() -> tuple[int, None]:
    async with asyncio.timeout(0):
        await asyncio.sleep(60)
    raise AssertionError


async def waited_for() -> tuple[int, None]:
    await asyncio.wait_for(asyncio.sleep(60), 0.001)
    raise AssertionError


async def of_httpx() -> tuple[int, None]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with httpx.AsyncClient(timeout=0.05, trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{silent.getsockname()[1]}")
    raise AssertionError


@pytest.mark.parametrize("probe", [inner_timeout, waited_for, of_httpx])
async def test_a_probes_own_timeout_is_a_failed_probe(probe: Any) -> None:
    """It is a cancellation inside, taken back: the caller is told that nothing is known, not cancelled."""
    events: list[Any] = []
    door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(), clock=ManualClock(1.0), listener=events.append), probe=probe)
    with pytest.raises(NotEnoughTokens):
        await door.try_request(5)
    assert any("the probe raised" in event.why for event in events)


async def test_the_ready_probe_that_takes_too_long_leaves_a_timeout() -> None:
    """`/token` hangs: who waits half a second is told so after that, and not by a CancelledError."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        door = AsyncKeepaSync.from_key("key", base_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(NotEnoughTokens):
            await door.request(5, timeout=0.6)


@pytest.mark.parametrize("probe", [inner_timeout, of_httpx])
async def test_a_task_that_is_cancelled_in_a_probe_is_cancelled(probe: Any) -> None:
    """Though the probe makes an error of its own of it."""

    async def hiding() -> tuple[int, None]:
        with suppress(Exception):
            await probe()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError("gone") from None
        raise AssertionError

    with pytest.raises(TimeoutError) as late:
        async with asyncio.timeout(0.3):
            await door_to_nothing(AsyncKeepaSync, probe=hiding).try_request(5)
    assert not isinstance(late.value, NotEnoughTokens)
