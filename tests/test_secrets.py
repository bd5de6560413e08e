"""The API key is on the wire alone: in no log, exception, repr, event, metric or storage, whoever makes the call."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import httpx
import keepa
import pytest
import redis
import requests
from prometheus_client import CollectorRegistry, generate_latest

from keepa_tokens import (
    AsyncKeepaSync,
    ConfigError,
    Event,
    KeepaSync,
    LoggingListener,
    MemoryStorage,
    NotEnoughTokens,
    TokenBucket,
    async_http_probe,
    http_probe,
    keepa_quota,
)
from keepa_tokens.guards.keepa import guard
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.keepa.estimates import Estimator
from keepa_tokens.keepa.quota import bucket_key
from keepa_tokens.metrics import PrometheusListener
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock
from tests.celery_worker import MARKS, PATIENCE, worker
from tests.servers import running as server_running

from tests.http_guards import HOST, HTTP_KINDS, KEEPA_KINDS, KEY, Kind, asins, running  # isort: skip
from tests.test_examples import send_to  # isort: skip

NEEDLE = "sEcReTsEcReT"  # no quoting and no cut leaves the key without it
FAULTS: tuple[Any, ...] = ("500", "html", "empty", "zero_envelope", "timeout_charged", "disconnect_charged")


class Ear:
    """Takes down all that is said, and is asked once whether the key was among it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.said: list[str] = []
        self.failed = 0
        self.caplog = caplog
        caplog.set_level(logging.DEBUG)  # every library's loggers too
        self.registry = CollectorRegistry()
        self.log = LoggingListener(logging.getLogger("keepa_tokens.test"))
        self.metrics = PrometheusListener(self.registry, then=self.log)

    def listener(self, event: Event, /) -> None:
        self.hear(event)
        self.metrics(event)

    def hear(self, *things: object) -> None:
        for thing in things:
            self.said += [str(thing), repr(thing)]

    def fails(self, action: Callable[[], object]) -> None:
        """Do what may fail, and take down all that its exception says, with those behind it."""
        try:
            self.hear(type(action()))
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody logs it
            self.failed += 1
            self.said += traceback.format_exception(error)
            seen: list[BaseException] = [error]
            for link in seen:
                self.hear(link, link.args, getattr(link, "request", None), getattr(link, "response", None))
                behind = (link.__cause__, link.__context__, *link.args, getattr(link, "reason", None))
                seen += [each for each in behind if isinstance(each, BaseException) and each not in seen]

    def everything(self) -> str:
        logged = [self.caplog.text] + [f"{record.getMessage()} {record.args!r}" for record in self.caplog.records]
        return "\n".join([*self.said, *logged, generate_latest(self.registry).decode()])

    def heard_it(self) -> bool:
        return NEEDLE in self.everything()


@pytest.fixture
def ear(caplog: pytest.LogCaptureFixture) -> Ear:
    return Ear(caplog)


@pytest.fixture
def fake() -> FakeKeepa:
    return FakeKeepa(clock=ManualClock(1000.0), key=KEY, refill_rate=20)


def stored(storage: MemoryStorage) -> Iterator[object]:
    yield vars(storage)
    for key in storage.keys():  # noqa: SIM118 - a storage is no dict
        yield (key, storage.inspect(key))


def contents(client: Any, name: bytes) -> object:
    """Return what a key of Redis holds; not its dump, which is compressed."""
    match client.type(name):
        case b"string":
            return client.get(name)
        case b"hash":
            return client.hgetall(name)
        case b"list":
            return client.lrange(name, 0, -1)
        case b"zset":
            return client.zrange(name, 0, -1)
        case _:
            return client.smembers(name)


@pytest.mark.parametrize("kind", HTTP_KINDS)
def test_the_http_guards_keep_the_key(kind: Kind, ear: Ear) -> None:
    """Answers, faults, refusals, broken connections and misuse behind a guard that adds the key: nobody says it."""
    with running(kind, initial=300) as world:
        world.sync.bucket.listener = world.asynch.bucket.listener = ear.listener
        client = world.client(estimator=(estimator := Estimator()))
        client.get("/token")
        for fault in FAULTS:
            world.fake.fail_next(1, fault, path="/product")
            ear.fails(lambda: ear.hear(vars(client.get("/product", asins(2)).raw)))
        answer = client.get("/product", asins(3))
        ear.hear(answer, answer.raw, answer.raw.headers, answer.raw.request, vars(answer.raw.request))
        ear.fails(lambda: client.get("/product", asins(1), base=f"http://{HOST}:1"))
        ear.fails(lambda: client.get("/product", asins(1), base=f"http://localhost:{world.server.port}"))
        world.fake.spend_outside(600)
        refused = client.get("/product", asins(1))
        assert refused.status == 429
        ear.fails(refused.raw.raise_for_status)
        ear.fails(lambda: world.client(timeout=0).get("/product", asins(1)))
        ear.hear(world.guard(), client.native, world.sync, world.asynch, estimator, vars(estimator))
        ear.hear(*stored(world.storage), world.bucket(), *world.events)
    assert ear.failed >= 5
    assert "/product?domain=1&asin=B000000000" in ear.everything().replace("%2C", ",")  # URLs are said, without it
    assert not ear.heard_it()


def test_the_search_finds_a_key_that_is_said(ear: Ear) -> None:
    """The tests here are not blind: what httpx, urllib3 and requests say of a key in the parameters is found."""
    with running("httpx", initial=300) as world:
        url = world.server.url + "/product"
        with httpx.Client(transport=world.guard(api_key=None)) as client:
            client.get(url, params=asins(1, key=KEY))
    assert ear.heard_it()
    ear.caplog.clear()
    assert not ear.heard_it()
    ear.fails(lambda: requests.get(url, params=asins(1, key=KEY), timeout=1))  # the server is gone
    assert NEEDLE in "".join(ear.said)


def test_the_doors_and_the_ready_probes_keep_the_key(
    ear: Ear, fake: FakeKeepa, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from_key`, its probe through httpx, a probe that fails and the bucket's name in a storage: none has the key."""
    storage = MemoryStorage()
    options: dict[str, Any] = {"storage": storage, "clock": fake.clock, "listener": ear.listener}
    with FakeKeepaServer(fake, speed=None) as server:
        send_to(server.url, monkeypatch)
        sync = KeepaSync.from_key(KEY, **options)
        with sync.request(5) as call:
            call.settle(b"<html>", status=502)
        ear.hear(call, call.decision, sync.refresh(), sync, sync.bucket)
        fake.token_down = True
        fake.clock.sleep(700)
        ear.hear(sync.refresh())
        fake.spend_outside(5000)
        ear.fails(lambda: sync.request(5, timeout=0))

        async def asynchronously() -> None:
            twin = AsyncKeepaSync.from_key(KEY, **options)
            async with twin.request(5) as call:
                await call.settle(None)
            ear.hear(call, await twin.refresh(), twin, twin.bucket)

        asyncio.run(asynchronously())
        ear.hear(http_probe(KEY), async_http_probe(KEY), bucket_key(KEY))

        def talkative() -> tuple[int, None]:
            raise ConnectionError(f"no answer from /token?key={KEY}")

        ear.hear(KeepaSync(sync.bucket.with_key("another"), probe=talkative).refresh())
    monkeypatch.undo()
    nobody = f"http://{HOST}:1"
    ear.fails(http_probe(KEY, base_url=nobody))
    ear.fails(lambda: asyncio.run(async_http_probe(KEY, base_url=nobody)()))
    ear.hear(*stored(storage))
    assert ear.failed >= 2
    assert "the probe raised ConnectionError" in ear.everything()
    assert not ear.heard_it()


def test_redis_never_sees_the_key(ear: Ear, fake: FakeKeepa) -> None:
    """No name, no field, no command: all that a real server was sent by both kinds of storage, without the key."""
    with server_running("valkey") as server:
        watched: Any = server.client()
        with ExitStack() as stack:
            monitor = stack.enter_context(watched.monitor())
            storage = RedisStorage.from_url(server.url)
            sync = KeepaSync.from_key(KEY, storage=storage, listener=ear.listener)
            sync.observe(fake.request("/token", {"key": KEY}).content)
            with sync.request(5) as call:
                call.settle(fake.request("/product", asins(5, key=KEY)).content, status=200)

            async def asynchronously() -> None:
                other = AsyncRedisStorage.from_url(server.url)
                twin = AsyncKeepaSync.from_key(KEY, storage=other, listener=ear.listener)
                async with twin.request(5):
                    pass
                ear.hear(other, twin)
                await other.aclose()

            asyncio.run(asynchronously())
            ear.hear(storage, sync, *storage.keys())
            client = server.client()
            for name in client.scan_iter():
                ear.hear(name, contents(client, name))
            client.echo("the end")
            for command in monitor.listen():
                ear.hear(command["command"])
                if "the end" in command["command"]:
                    break
            client.close()
            storage.close()
        watched.close()
    assert bucket_key(KEY) in ear.everything()
    assert not ear.heard_it()


@pytest.mark.parametrize("kind", KEEPA_KINDS)
def test_the_guard_of_the_keepa_client_keeps_the_key(kind: Kind, ear: Ear) -> None:
    """Its exceptions, events and reprs have no key. The client puts it into its URLs, which urllib3 says at DEBUG."""
    ear.caplog.set_level(logging.INFO, "urllib3")
    with running(kind, initial=300) as world:
        world.sync.bucket.listener = world.asynch.bucket.listener = ear.listener
        client = world.client(timeout=600)
        api, api._timeout = client.native, 0.2

        def query() -> object:
            return client.await_(api.query("B000000001", progress_bar=False, history=False))

        query()
        ear.hear(api._request, api._request.__self__, api.status)
        for fault in FAULTS:
            world.fake.fail_next(world.tries if fault.startswith("dis") else 1, fault, path="/product")
            ear.fails(query)
        world.base = "http://127.0.0.1:9"
        ear.fails(query)
        ear.fails(lambda: client.await_(api.download_graph_image("B000000001", "never-written.png")))
        ear.hear(*stored(world.storage))
    assert ear.failed >= 6
    assert not ear.heard_it()


class TestCelery:
    """In a class for its marks."""

    pytestmark = MARKS

    def test_a_worker_keeps_the_key(self, ear: Ear, fake: FakeKeepa) -> None:
        """One task is sent back, one fails for good: the worker logs both; log, broker and results lack it."""
        with worker(loglevel="DEBUG") as tasks, FakeKeepaServer(fake, speed=None) as server:
            storage = MemoryStorage()
            sync = KeepaSync(
                TokenBucket(keepa_quota(20), key="default", storage=storage, clock=fake.clock, listener=ear.listener),
                probe=fake.probe,
            )
            runs: list[int] = []
            with requests.Session() as session:
                session.mount(server.url, KeepaAdapter(sync, api_key=KEY, host=HOST, timeout=0, retry_refused=True))

                def work(*, fails: bool = False) -> int:
                    runs.append(1)
                    if fails:
                        raise NotEnoughTokens(5, retry_after=float("inf"), reason="EMPTY")
                    if len(runs) == 1:
                        raise NotEnoughTokens(5, retry_after=0.01, reason="EMPTY")
                    return session.get(server.url + "/product", params=asins(2), timeout=5).status_code

                tasks.work = work
                assert tasks.plain.delay().get(timeout=PATIENCE) == 200
                ear.fails(lambda: tasks.plain.delay(fails=True).get(timeout=PATIENCE))
            for database in (0, 1):  # the broker's and the results'
                with redis.Redis.from_url(f"{tasks.url}/{database}") as client:
                    for name in client.scan_iter():
                        ear.hear(name, contents(client, name))
            ear.hear(tasks.plain, *stored(storage))
        assert ear.failed == 1
        assert "retry" in ear.caplog.text.lower()
        assert not ear.heard_it()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: KeepaSync.from_key(KEY, refill_rate=0),
        lambda: KeepaSync.from_key(KEY, probe_interval=0),
        lambda: KeepaSync.from_key(KEY, recharge_to=-1),
        lambda: KeepaAdapter(KeepaSync.from_key(KEY), api_key=KEY, keep=-1),
        lambda: guard(*cast("Any", (keepa.Keepa(KEY), AsyncKeepaSync.from_key(KEY)))),
    ],
)
def test_misuse_is_explained_without_the_key(misuse: Callable[[], object], ear: Ear) -> None:
    """An error about the arguments names what is wrong, not the key that stood beside it."""
    with pytest.raises(ConfigError):
        misuse()
    ear.fails(misuse)
    assert not ear.heard_it()
