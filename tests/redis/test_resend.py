"""A call that is repeated: the connection is lost between the script and its answer, and the client sends it again."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keepa_tokens import Quota, Reading, StorageUnavailable, TokenBucket
from keepa_tokens.rules.commands import Acquire, Cancel, ClaimProbe, Command, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing import ManualClock
from tests.redis.common import NOW, PLAIN, SECOND, SYNCED, script_runs, sendings, state_of
from tests.redis.flavours import FLAVOURS, SENT_BY_DEFAULT, Flavour
from tests.redis.proxy import Proxy
from tests.servers import Server, wait_until


def test_from_url_runs_a_script_once(client: redis.Redis, proxy: Proxy, flavour: Flavour) -> None:
    """A storage that `from_url` made sends nothing again: the script ran once, and nobody is told that it counted."""
    with flavour.at(f"{proxy.url}?retry_on_timeout=yes") as opened:
        assert sendings(opened, proxy, client) == SENT_BY_DEFAULT["by `from_url`"][flavour.library]


def test_a_client_brought_along_sends_as_often_as_it_likes(client: redis.Redis, proxy: Proxy, flavour: Flavour) -> None:
    """By default redis-py runs the script up to 11 times, valkey-py once; a plain acquire is charged for each run."""
    with flavour.over(lambda: flavour.client(proxy.port)) as opened:
        retry = opened.client.connection_pool.connection_kwargs.get("retry")
        if retry is not None:
            retry._backoff = flavour.retry(0)._backoff  # as often, but without the pauses
        runs = SENT_BY_DEFAULT["standalone"][flavour.library]
        assert sendings(opened, proxy, client) == runs
        client.config_resetstat()
        proxy.cuts = runs - 1
        assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).granted
        assert script_runs(client) == runs


def test_a_client_that_sends_again_is_told_of_and_what_to_change(caplog: pytest.LogCaptureFixture) -> None:
    """In the log, once for each storage; one that sends once is no news."""
    RedisStorage(redis.Redis(retry=Retry(NoBackoff(), 0)))
    assert not caplog.records
    RedisStorage(redis.Redis())
    [said] = caplog.messages
    assert said.startswith("Redis sends commands again by itself")
    assert said.endswith("Give it retry=Retry(NoBackoff(), 0), or use RedisStorage.from_url")


ONCE: dict[str, tuple[Quota, Command]] = {
    "reserve": (PLAIN, Reserve("new", 20, 60 * SECOND)),
    "settle": (PLAIN, Settle("open", 7)),
    "settle for more": (PLAIN, Settle("open", 50)),
    "settle with a reading": (SYNCED, Settle("open", 7, Reading(33, server_time=1.5))),
    "settle with a reading without a time": (SYNCED, Settle("open", 7, Reading(33))),
    "settle that was refused": (SYNCED, Settle("open", 0, Reading(-2, server_time=1.5), refused=True)),
    "settle late": (PLAIN, Settle("late", 3)),
    "cancel": (PLAIN, Cancel("open")),
    "cancel late": (PLAIN, Cancel("late")),
    "refund": (PLAIN, Refund("back", 4)),
    "claim of the probe": (SYNCED, ClaimProbe()),
    "reading": (SYNCED, Reconcile(Reading(33, server_time=1.5))),
}


@pytest.mark.parametrize("spared", [0, 1], ids=["the attempt", "the storing"])
@pytest.mark.parametrize("what", ONCE)
def test_what_carries_an_id_counts_once(client: redis.Redis, proxy: Proxy, what: str, spared: int) -> None:
    """Run four times it leaves the very state of once, and is told the very outcome, whichever answers are lost."""
    quota, command = ONCE[what]
    flavour = FLAVOURS[0]
    with flavour.over(lambda: flavour.client(proxy.port, **flavour.resending(3))) as opened:
        for key in ("once", "often"):
            if quota.synced:
                opened.apply(key, quota, Reconcile(Reading(50, server_time=1.0)), now_us=NOW - 30 * SECOND)
            opened.apply(key, quota, Reserve("open", 10, 60 * SECOND), now_us=NOW - 20 * SECOND)
            opened.apply(key, quota, Reserve("late", 10, 15 * SECOND), now_us=NOW - 20 * SECOND)
        outcome = opened.apply("once", quota, command, now_us=NOW)
        assert state_of(client, "once") != state_of(client, "often")
        client.config_resetstat()
        proxy.spared, proxy.cuts = spared, 3
        assert opened.apply("often", quota, command, now_us=NOW) == outcome
        assert proxy.cuts == 0

    assert script_runs(client) == 5
    once, often = state_of(client, "once"), state_of(client, "often")
    assert often.to_fields() == once.to_fields()


def test_the_doors_count_once(client: redis.Redis, proxy: Proxy, flavour: Flavour) -> None:
    """Each step of a reservation and a refund count once when sent four times, by each library."""
    with flavour.over(lambda: flavour.client(proxy.port, **flavour.resending(3))) as opened:
        opened.apply("k", PLAIN, Peek(), now_us=NOW)
        client.config_resetstat()
        opened.before = lambda: setattr(proxy, "cuts", 3)
        bucket = TokenBucket(PLAIN, key="k", storage=opened, clock=ManualClock(NOW / SECOND))
        first = bucket.reserve(30)
        second = bucket.try_reserve(40)
        first.settle(10)
        second.cancel()
        bucket.refund(2)
        assert script_runs(client) == 4 * 5
        shown = bucket.peek()
        assert (shown.balance, shown.held) == (992, 0)


def test_a_late_answer_is_nobody_elses(server: Server, flavour: Flavour) -> None:
    """The answer to a call that ran into its timeout is not taken for the answer to the next one."""
    with flavour.at(f"{server.url}?socket_timeout=0.3&max_connections=1") as opened:
        opened.apply("k", PLAIN, Peek(), now_us=NOW)
        server.freeze()
        try:
            with pytest.raises(StorageUnavailable, match="TimeoutError"):
                opened.apply("k", PLAIN, Acquire(400), now_us=NOW)
        finally:
            server.thaw()
        assert opened.apply("other", PLAIN, Acquire(1), now_us=NOW).balance == 999
        # It had been sent, and counts: that is why nobody knows.
        assert opened.apply("k", PLAIN, Peek(), now_us=NOW).balance == 600


@pytest.mark.parametrize("flavour", [flavour for flavour in FLAVOURS if flavour.asynchronous], ids=str)
def test_the_answer_to_a_cancelled_call_is_nobody_elses(server: Server, proxy: Proxy, flavour: Flavour) -> None:
    """A coroutine cancelled while it waits for Redis leaves no answer behind for the next one on its connection."""

    async def scenario() -> tuple[int | None, int | None]:
        storage = AsyncRedisStorage.from_url(flavour.url(f"{proxy.url}?max_connections=1"))
        await storage.apply("k", PLAIN, Peek(), now_us=NOW)
        seen = proxy.scripts
        server.freeze()
        try:
            call = asyncio.create_task(storage.apply("k", PLAIN, Acquire(400), now_us=NOW))
            # Python 3.11 loses a cancellation that comes as the sending ends: until then, and some turns of the loop.
            await asyncio.to_thread(wait_until, "the script is sent", lambda: proxy.scripts > seen)
            for _ in range(10):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            server.thaw()
        other = await storage.apply("other", PLAIN, Acquire(1), now_us=NOW)
        cancelled = await storage.apply("k", PLAIN, Peek(), now_us=NOW)
        await storage.aclose()
        return other.balance, cancelled.balance

    assert asyncio.run(scenario()) == (999, 600)
