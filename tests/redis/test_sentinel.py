"""A primary, its replica and a Sentinel: clients of every kind, failover, no primary at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import redis

from keepa_tokens import StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Outcome, Reserve, Settle
from tests.redis.common import NAME, NOW, PLAIN, SECOND, sendings, unavailable
from tests.redis.flavours import CLIENTS, FLAVOURS, SENT_BY_DEFAULT, Flavour, Opened
from tests.redis.proxy import proxied
from tests.servers import BINARIES, HOST, MASTER, SYSTEM, Replicated, replicated, running, wait_until, watching

pytestmark = pytest.mark.deep  # each failover takes the Sentinel's patience

KINDS = [*sorted(BINARIES), pytest.param(SYSTEM, marks=pytest.mark.system_redis)]


@pytest.fixture(scope="module", params=KINDS)
def shared_topology(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    """A primary with its replica and Sentinel for all tests of this file that harm none of them."""
    with replicated(request.param) as topology:
        yield topology


@pytest.fixture
def topology(shared_topology: Replicated) -> Replicated:
    """The same, emptied."""
    with shared_topology.primary.client() as client:
        client.flushall()
    return shared_topology


@contextmanager
def on_master(flavour: Flavour, sentinel_port: int, **options: Any) -> Iterator[Opened]:
    timeouts = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
    sentinels: list[Any] = []

    def made() -> Any:
        asking = {**timeouts, "retry": flavour.retry(0)}
        sentinels.append(flavour.named("Sentinel")([(HOST, sentinel_port)], sentinel_kwargs=asking))
        return sentinels[0].master_for(MASTER, **timeouts, **options)

    with flavour.over(made) as opened:
        try:
            yield opened
        finally:
            for asked in sentinels[0].sentinels:
                opened.done(asked.aclose() if flavour.asynchronous else asked.close())


@pytest.mark.parametrize("options", CLIENTS, ids=str)
def test_every_sentinel_client_will_do(topology: Replicated, flavour: Flavour, options: dict[str, Any]) -> None:
    """The master clients of both libraries' Sentinels write to the primary, and the replica gets it."""
    with on_master(flavour, topology.sentinel.port, **options) as opened:
        assert opened.apply("k", PLAIN, Reserve("x", 10, 60 * SECOND), now_us=NOW).granted
        assert opened.apply("k", PLAIN, Settle("x", 4), now_us=NOW).balance == 996
        shown = opened.inspect("k", now_us=NOW)
        assert shown is not None
        assert shown.balance == 996
        assert list(opened.keys()) == ["k"]
    with topology.primary.client() as primary, topology.replica.client() as replica:
        primary.set("last", "1")  # WAIT waits for what its own connection wrote
        assert primary.wait(1, 5000) == 1
        assert replica.hget(NAME, "balance") == b"996"


@pytest.mark.parametrize("kind", KINDS)
def test_a_failover_goes_on_with_the_replica(kind: str) -> None:
    """When the primary is killed the buckets go on on the promoted replica, which had no script, from their balance."""
    with ExitStack() as stack:
        topology = stack.enter_context(replicated(kind))
        opened = [stack.enter_context(on_master(flavour, topology.sentinel.port)) for flavour in FLAVOURS]
        for flavour, each in zip(FLAVOURS, opened, strict=True):
            assert each.apply(str(flavour), PLAIN, Acquire(300), now_us=NOW).balance == 700
        with topology.primary.client() as primary, topology.replica.client() as replica:
            assert primary.wait(1, 5000) == 1
            digest = opened[0].storage._digest
            assert list(primary.script_exists(digest)) == [True]
            assert list(replica.script_exists(digest)) == [False]

        topology.sentinel.be_patient(300)
        topology.primary.stop()
        outcomes: list[Outcome] = []
        for flavour, each in zip(FLAVOURS, opened, strict=True):
            wait_until("the client finds the new primary", partial(took, each, str(flavour), outcomes))
        assert topology.promoted()
        assert [outcome.balance for outcome in outcomes] == [600] * len(FLAVOURS)


def took(opened: Opened, key: str, outcomes: list[Outcome]) -> bool:
    """Take 100 tokens; while there is no primary, every attempt must say so, and why."""
    try:
        outcomes.append(opened.apply(key, PLAIN, Acquire(100), now_us=NOW))
    except StorageUnavailable as away:
        return away.__cause__ is None
    return True


def test_no_primary_and_no_sentinel(flavour: Flavour) -> None:
    """A Sentinel that finds its primary dead, and a Sentinel that is away itself, are StorageUnavailable in time."""
    with running("valkey") as primary, watching("valkey", primary.port) as sentinel:
        with on_master(flavour, sentinel.port) as opened:
            assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).granted
            primary.stop()
            sentinel.be_patient(300)
            wait_until("the Sentinel notices", lambda: not has_primary(sentinel.url))
            with unavailable(within_s=2):  # of the old connection, or of none
                opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
            with unavailable(within_s=2, cause="MasterNotFoundError"):
                opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
            primary.start()
            sentinel.be_patient(10_000)
            wait_until("the Sentinel sees it again", lambda: has_primary(sentinel.url))
            assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999
        sentinel.stop()
        with on_master(flavour, sentinel.port) as opened, unavailable(within_s=2, cause="MasterNotFoundError"):
            opened.apply("k", PLAIN, Acquire(1), now_us=NOW)


def has_primary(sentinel_url: str) -> bool:
    with redis.Redis.from_url(sentinel_url) as client:
        told: Any = client.info("sentinel")
        return bool(told["master0"]["status"] == "ok")


def test_a_sentinel_client_sends_as_often_as_it_likes(flavour: Flavour) -> None:
    """By default the master clients of both libraries run the script once; told to, more often."""
    with (
        running("valkey") as primary,
        proxied(primary.port) as proxy,
        watching("valkey", proxy.port) as sentinel,
        primary.client() as client,
    ):
        for options, runs in (({}, SENT_BY_DEFAULT["Sentinel's primary"][flavour.library]), (flavour.resending(2), 3)):
            with on_master(flavour, sentinel.port, **options) as opened:
                assert sendings(opened, proxy, client) == runs
