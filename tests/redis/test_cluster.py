"""A cluster of three primaries: clients of every kind, keys over all nodes, slots that move, nodes that are away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
import redis
from redis.crc import key_slot

from keepa_tokens import ConfigError
from keepa_tokens.rules.commands import Acquire, Peek, Reserve, Settle
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from tests.redis.common import NOW, PLAIN, SECOND, script_runs, sendings, unavailable
from tests.redis.flavours import CLIENTS, FLAVOURS, SENT_BY_DEFAULT, Flavour, Opened
from tests.redis.proxy import Proxy, proxied
from tests.servers import HOST, SYSTEM, Server, cluster, cluster_info, sees_all, wait_until

T = TypeVar("T")
pytestmark = pytest.mark.deep  # three servers that have to find each other, some of them slowly

SLOTS = 16384


@dataclass(frozen=True)
class Cluster:
    """Three nodes, each behind a proxy that is all that clients see of it."""

    nodes: list[Server]
    proxies: list[Proxy]

    def owner(self, key: str) -> int:
        return slot_of(key) * len(self.nodes) // SLOTS

    def key_of(self, number: int) -> str:
        return next(key for key in map(str, range(100)) if self.owner(key) == number)

    def each(self, ask: Callable[[redis.Redis], T]) -> list[T]:
        """Return what each node says, past the proxies."""
        with ExitStack() as stack:
            return [ask(stack.enter_context(node.client())) for node in self.nodes]

    def heard(self) -> None:
        """Wait until all have heard of a slot's last move; else one that is moved back has two owners for a while."""
        epochs = partial(self.each, lambda client: cluster_info(client)["cluster_current_epoch"])
        wait_until("all nodes know of the slot's move", lambda: len(set(epochs())) == 1)

    def clear(self) -> None:
        self.each(lambda client: (client.flushall(), client.config_resetstat()))

    def runs(self) -> list[int]:
        return self.each(script_runs)


def slot_of(key: str) -> int:
    return key_slot((DEFAULT_PREFIX + key).encode())


@pytest.fixture(scope="module", params=["valkey", pytest.param(SYSTEM, marks=pytest.mark.system_redis)])
def shared_nodes(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with ExitStack() as stack:
        proxies = [stack.enter_context(proxied()) for _ in range(3)]
        nodes = stack.enter_context(cluster(request.param, [proxy.port for proxy in proxies]))
        for proxy, node in zip(proxies, nodes, strict=True):
            proxy.server_port = node.port
        yield Cluster(nodes, proxies)


@pytest.fixture
def nodes(shared_nodes: Cluster) -> Cluster:
    shared_nodes.clear()
    return shared_nodes


def sending_once(flavour: Flavour) -> dict[str, Any]:
    """Return the options of a cluster client that sends nothing again."""
    return {"retry": flavour.retry(0)} if flavour.library == "redis" else {"cluster_error_retry_attempts": 0}


@contextmanager
def on_cluster(flavour: Flavour, port: int, *, prefix: str = DEFAULT_PREFIX, **options: Any) -> Iterator[Opened]:
    with flavour.over(lambda: flavour.named("ClientCluster")(host=HOST, port=port, **options), prefix=prefix) as opened:
        yield opened


@pytest.mark.parametrize("options", CLIENTS, ids=str)
def test_every_cluster_client_will_do(nodes: Cluster, flavour: Flavour, options: dict[str, Any]) -> None:
    """The cluster clients of both libraries find each bucket on its node, and all of them by `keys`."""
    names = [str(number) for number in range(20)]
    with on_cluster(flavour, nodes.proxies[0].port, **options) as opened:
        for number, key in enumerate(names):
            assert opened.apply(key, PLAIN, Reserve("x", number, 60 * SECOND), now_us=NOW).granted
        for number, key in enumerate(names):
            assert opened.apply(key, PLAIN, Settle("x", 1), now_us=NOW).balance == 999, number
        shown = opened.inspect("0", now_us=NOW)
        found = list(opened.keys())

    assert shown is not None
    assert shown.balance == 999
    assert sorted(found) == sorted(names)
    owners = [nodes.owner(key) for key in names]
    assert nodes.each(lambda client: client.dbsize()) == [owners.count(number) for number in range(3)]
    assert set(owners) == {0, 1, 2}


def test_a_hash_tag_in_the_prefix_keeps_buckets_together(nodes: Cluster, flavour: Flavour) -> None:
    """With `{...}` in the prefix all buckets live on one node."""
    with on_cluster(flavour, nodes.proxies[0].port, prefix="{tokens}:") as opened:
        for key in map(str, range(20)):
            opened.apply(key, PLAIN, Acquire(1), now_us=NOW)
        assert len(list(opened.keys())) == 20
    assert sorted(nodes.each(lambda client: int(client.dbsize()))) == [0, 0, 20]


def test_each_node_loads_a_lost_script(nodes: Cluster, flavour: Flavour) -> None:
    """After SCRIPT FLUSH on every node the next command on each works, in the same call."""
    with on_cluster(flavour, nodes.proxies[0].port) as opened:
        for _ in range(2):
            nodes.each(lambda client: client.script_flush())
            for number in range(3):
                assert opened.apply(nodes.key_of(number), PLAIN, Acquire(1), now_us=NOW).granted
    assert nodes.runs() == [2, 2, 2]


def test_a_slot_that_moves_takes_its_bucket_along(nodes: Cluster, flavour: Flavour) -> None:
    """A bucket whose slot is under way (ASK), then has moved (MOVED), goes on, on a node that has no script yet."""
    key = nodes.key_of(0)
    slot, name = slot_of(key), DEFAULT_PREFIX + key
    with (
        nodes.nodes[0].client() as source,
        nodes.nodes[1].client() as target,
        nodes.nodes[2].client() as third,
        on_cluster(flavour, nodes.proxies[0].port) as opened,
    ):
        source_id, target_id = (identity(client) for client in (source, target))
        opened.apply(key, PLAIN, Acquire(1), now_us=NOW)
        target.script_flush()
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        source.execute_command("MIGRATE", HOST, nodes.nodes[1].port, name, 0, 5000)
        assert opened.apply(key, PLAIN, Acquire(1), now_us=NOW).balance == 998
        for client in (target, source, third):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        assert opened.apply(key, PLAIN, Acquire(1), now_us=NOW).balance == 997
        assert target.exists(name)
        nodes.heard()

        # Back as properly as there: who imports a slot has the last word on it.
        target.delete(name)
        source.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", target_id)
        target.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", source_id)
        for client in (source, target, third):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", source_id)
        nodes.heard()
        assert opened.apply(key, PLAIN, Acquire(1), now_us=NOW).balance == 999


def identity(client: redis.Redis) -> str:
    told: Any = client.execute_command("CLUSTER", "MYID")  # type: ignore[no-untyped-call]
    return str(told, "ascii")


def test_a_cluster_client_sends_as_often_as_it_likes(nodes: Cluster, flavour: Flavour) -> None:
    """By default redis-py runs the script up to 11 times, valkey-py up to 4; told to, each runs it once. The storage
    knows, though valkey-py doesn't go by its `retry`.
    """
    many = SENT_BY_DEFAULT["cluster"][flavour.library]
    by_retry = 1 if flavour.library == "redis" else many
    with nodes.nodes[2].client() as client:
        for options, runs in ((sending_once(flavour), 1), ({"retry": flavour.retry(0)}, by_retry), ({}, many)):
            with on_cluster(flavour, nodes.proxies[0].port, **options) as opened:
                assert sendings(opened, nodes.proxies[2], client, nodes.key_of(2)) == runs
                assert opened.storage._sent_once is (runs == 1)


def test_a_node_that_never_answers_holds_up_its_own_buckets_only(nodes: Cluster, flavour: Flavour) -> None:
    """A silent node's buckets are StorageUnavailable in time, the others' go on, and all do once it answers again."""
    options = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, **sending_once(flavour)}
    keys = [nodes.key_of(number) for number in range(3)]
    with on_cluster(flavour, nodes.proxies[0].port, **options) as opened:
        for key in keys:
            opened.apply(key, PLAIN, Acquire(1), now_us=NOW)
        nodes.proxies[2].mute = True
        try:
            with unavailable(within_s=3):
                opened.apply(keys[2], PLAIN, Acquire(1), now_us=NOW)
            for key in keys[:2]:
                # A client that looks for the cluster anew may ask the silent node first.
                wait_until("the others are found", partial(opened.answers, key, PLAIN))
                assert opened.apply(key, PLAIN, Acquire(1), now_us=NOW).balance == 998
        finally:
            nodes.proxies[2].mute = False
        wait_until("it answers", partial(opened.answers, keys[2], PLAIN))
        assert opened.apply(keys[2], PLAIN, Acquire(1), now_us=NOW).balance == 998


def test_from_url_at_a_node_says_what_to_do(nodes: Cluster) -> None:
    """A storage that `from_url` connected to one node works for that node's buckets; for others it names the cure."""
    for flavour in FLAVOURS:
        with flavour.at(nodes.proxies[0].url) as opened:
            assert opened.apply(nodes.key_of(0), PLAIN, Acquire(1), now_us=NOW).granted
            with pytest.raises(ConfigError, match="cluster client"):
                opened.apply(nodes.key_of(1), PLAIN, Acquire(1), now_us=NOW)
    assert nodes.runs() == [4, 0, 0]


def test_a_cluster_that_is_down_comes_back() -> None:
    """With a node stopped, then all, every bucket is StorageUnavailable; restarted, they work by the same clients."""
    with ExitStack() as stack:
        nodes = Cluster(stack.enter_context(cluster("valkey", patience_ms=1000)), [])
        servers = nodes.nodes
        opened = [
            stack.enter_context(on_cluster(flavour, servers[0].port, socket_timeout=2, **sending_once(flavour)))
            for flavour in FLAVOURS
        ]
        for each in opened:
            each.apply(nodes.key_of(2), PLAIN, Peek())

        servers[1].stop()
        wait_until("the others notice", lambda: not sees_all(servers[0], 3) and not sees_all(servers[2], 3))
        for each in opened:
            for number in (0, 1):
                with unavailable(within_s=10):
                    each.apply(nodes.key_of(number), PLAIN, Acquire(1))

        servers[0].stop()
        servers[2].stop()
        for each in opened:
            with unavailable(within_s=10):
                each.apply(nodes.key_of(2), PLAIN, Acquire(1))
            with unavailable(within_s=10):
                list(each.keys())

        for server in servers:
            server.start()
        wait_until("they are a cluster again", lambda: all(sees_all(server, 3) for server in servers))
        for each in opened:
            for number in range(3):
                wait_until("the client finds it", partial(each.answers, nodes.key_of(number), PLAIN))
                assert each.apply(nodes.key_of(number), PLAIN, Acquire(1)).granted
