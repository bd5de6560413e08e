"""When Redis is away: an error within the client's timeouts, never a silent pass, and back by itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import redis

from keepa_tokens import Quota, Reading, StorageUnavailable, TokenBucket
from keepa_tokens.rules.commands import Acquire, Cancel, ClaimProbe, Command, Peek, Reconcile, Refund, Reserve, Settle
from tests.redis.common import NOW, PLAIN, SECOND, SYNCED, script_runs, unavailable
from tests.redis.flavours import FLAVOURS, Flavour, Opened
from tests.redis.proxy import Proxy, proxied
from tests.servers import HOST, Server, wait_until

SHORT_S = 0.05
"""The timeout for an answer, and for a connection."""

COMMANDS: list[Command] = [
    *(Acquire(1), Reserve("x", 1, SECOND), Settle("x", 1), Cancel("x"), Refund("y", 1)),
    *(Reconcile(Reading(5)), ClaimProbe(), Peek()),
]


def verbs(opened: Opened) -> list[Callable[[], object]]:
    """Everything that a storage can be asked."""
    applied = [lambda command=command: opened.apply("k", SYNCED, command) for command in COMMANDS]
    return [*applied, lambda: opened.inspect("k"), lambda: list(opened.keys())]


def test_a_redis_that_never_answers(client: redis.Redis, proxy: Proxy, flavour: Flavour) -> None:
    """Every verb ends in StorageUnavailable within the timeout, nothing runs, and all is well once it answers again."""
    with flavour.at(f"{proxy.url}?socket_timeout={SHORT_S}") as opened:
        wait_until("it answers", partial(opened.answers, "k", SYNCED))
        client.config_resetstat()
        proxy.mute = True
        for verb in verbs(opened):
            with unavailable(within_s=SHORT_S):
                verb()
        assert script_runs(client) == 0
        proxy.mute = False
        wait_until("it answers again", partial(opened.answers, "k", SYNCED))


def test_a_redis_that_never_answered(proxy: Proxy, flavour: Flavour) -> None:
    """The same where the first connection is accepted and never greeted."""
    proxy.mute = True
    with flavour.at(f"{proxy.url}?socket_timeout={SHORT_S}&socket_connect_timeout={SHORT_S}") as opened:
        for _ in range(2):
            with unavailable(within_s=2 * SHORT_S):
                opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        proxy.mute = False
        wait_until("it answers", partial(opened.answers, "k", PLAIN))


def test_a_machine_that_is_gone(flavour: Flavour) -> None:
    """Where nobody even takes the connection, it is StorageUnavailable within the timeout for connecting."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind((HOST, 0))
        listener.listen(0)
        # Two fill the queue, which nobody empties: a third gets no answer at all.
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"redis://{HOST}:{listener.getsockname()[1]}?socket_connect_timeout={SHORT_S}"
        with flavour.at(url) as opened, unavailable(within_s=SHORT_S):
            opened.apply("k", PLAIN, Acquire(1))


def test_a_client_brought_along_tries_as_often_as_it_likes(proxy: Proxy) -> None:
    """By default redis-py waits for eleven timeouts of its own before it gives up; then it is StorageUnavailable."""
    flavour = FLAVOURS[0]
    proxy.mute = True
    with flavour.over(lambda: flavour.client(proxy.port, socket_timeout=0.02, socket_connect_timeout=5)) as opened:
        opened.client.get_retry()._backoff = flavour.retry(0)._backoff  # as often, but without the pauses
        with unavailable(within_s=11 * 0.02):
            opened.apply("k", PLAIN, Acquire(1))
    # The proxy may accept a connection after its client has given it up.
    wait_until("all have been accepted", lambda: proxy.connections >= 11)
    assert proxy.connections == 11
    with flavour.over(lambda: flavour.client(proxy.port)) as opened:
        assert opened.client.get_connection_kwargs()["socket_timeout"] == 5


def test_a_connection_closed_meanwhile_is_replaced(server: Server, client: redis.Redis, flavour: Flavour) -> None:
    """An idle connection that the server closed costs nobody an error, though `from_url` sends nothing twice."""
    with flavour.at(server.url) as opened:
        opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        client.client_kill_filter(_type="normal", skipme=True)
        opened.idle()
        assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 998


def test_a_server_that_goes_and_comes_back(own_server: Server, flavour: Flavour) -> None:
    """A restart goes unnoticed; while the server is down every verb is StorageUnavailable, and then all is well."""
    with flavour.at(own_server.url) as opened:
        assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999
        own_server.stop()
        own_server.start()
        opened.idle()
        assert opened.apply("k", PLAIN, Acquire(10), now_us=NOW).balance == 990
        own_server.stop()
        for verb in verbs(opened):
            with unavailable(within_s=SHORT_S, cause="ConnectionError"):
                verb()
        own_server.start()
        assert opened.apply("k", PLAIN, Acquire(10), now_us=NOW).balance == 990


@pytest.mark.deep
def test_no_door_passes_silently(own_server: Server) -> None:
    """While Redis is stopped every method of TokenBucket and Reservation raises; a hold is settled once it is back."""
    patience_s = 0.3  # enough for a busy machine
    with proxied(own_server.port) as proxy, FLAVOURS[0].at(f"{proxy.url}?socket_timeout={patience_s}") as opened:
        bucket = TokenBucket(Quota(1000, 1, 3600.0), key="k", storage=opened)  # so slow that no refill shows
        reservation, another = bucket.reserve(100), bucket.reserve(10)
        attempts: list[Callable[[], object]] = [
            *(bucket.try_acquire, bucket.acquire, lambda: bucket.acquire(timeout=5)),
            *(bucket.try_reserve, bucket.reserve, lambda: bucket.refund(1), bucket.peek),
            lambda: TokenBucket(SYNCED, key="default", storage=opened).reconcile(Reading(1)),
            *(lambda: another.settle(1), another.cancel),
        ]
        proxy.mute = True
        for attempt in attempts:
            with unavailable(within_s=patience_s):
                attempt()
        with unavailable(within_s=patience_s), reservation:
            pass
        proxy.mute = False
        reservation.settle(40)
        shown = bucket.peek()
        assert (shown.balance, shown.holds) == (950, 1)

        own_server.stop()
        for attempt in attempts:
            with unavailable(within_s=SHORT_S):
                attempt()


def test_a_redis_busy_with_somebody_elses_script(server: Server, client: redis.Redis) -> None:
    """While another script runs on and on, Redis says BUSY: StorageUnavailable, and fine once that script is killed."""
    client.config_set("lua-time-limit", 20)
    with ThreadPoolExecutor(1) as pool, server.client() as endless, FLAVOURS[0].at(server.url) as opened:
        opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        running = pool.submit(endless.eval, "while true do end", 0)
        try:
            wait_until("Redis is busy", lambda: is_busy(client))
            with pytest.raises(StorageUnavailable, match="BUSY"):
                opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        finally:
            client.script_kill()
        assert isinstance(running.exception(10), redis.ResponseError)
        assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 998
    client.config_set("lua-time-limit", 5000)


def is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_a_pool_that_is_used_up(server: Server, flavour: Flavour) -> None:
    """A pool with no connection left is StorageUnavailable too, and fine when one comes back."""
    with flavour.at(f"{server.url}?max_connections=1") as opened:
        pool = opened.client.connection_pool
        taken = opened.done(pool.get_connection(*([] if flavour.library == "redis" else ["PING"])))
        with unavailable(within_s=SHORT_S):
            opened.apply("k", PLAIN, Acquire(1))
        opened.done(pool.release(taken))
        assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999


@pytest.mark.parametrize("library", ["redis", "valkey"])
def test_threads_wait_for_a_blocking_pool(server: Server, library: str) -> None:
    """Eight threads on a pool of two connections take what they take, each once."""
    flavour = Flavour(library, asynchronous=False)
    pool = flavour.named("BlockingConnectionPool")(host=HOST, port=server.port, max_connections=2)
    with flavour.over(lambda: flavour.named("Client").from_pool(pool)) as opened, ThreadPoolExecutor(8) as threads:
        balances = list(threads.map(lambda _: opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance, range(400)))
    assert sorted(balance for balance in balances if balance is not None) == list(range(600, 1000))
