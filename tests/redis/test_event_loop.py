"""No async path blocks its loop: the server answers nothing, the loop goes on, and it is the loop that thaws it."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httpx
import keepa
import pytest

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    Quota,
    Reading,
    SystemClock,
    TokenBucket,
    async_http_probe,
    keepa_quota,
)
from keepa_tokens.guards.httpx import AsyncKeepaTransport
from keepa_tokens.guards.keepa import guard
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer
from keepa_tokens.units import UNLIMITED
from tests.servers import HOST, Server

from tests.test_examples import send_to  # isort: skip

PLAIN: Final = Quota(1000, 100, 1.0)
SCARCE: Final = Quota(5, 100, 1.0)
SYNCED: Final = keepa_quota(5)
STEP: Final = 0.25
"""Seconds between the refills of a server by HTTP."""

TICKS: Final = 20
"""So often the loop must turn while the server is frozen, before it thaws it."""

Path = Callable[["Doors"], Awaitable[object]]
Run = Callable[[Awaitable[object]], None]


# --- a tripwire in the loop's thread


class BlockedError(BaseException):
    """Something would have blocked the loop. Not an Exception: nobody may catch it on the way."""


@pytest.fixture
def run_armed(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a coroutine, and raise where its thread would block: in a sleep, in a socket that waits, for a name."""
    armed: set[int] = set()

    def across(owner: Any, name: str, blocks: Callable[[tuple[Any, ...]], bool] = lambda _: True) -> None:
        original = getattr(owner, name)

        def guarded(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() in armed and blocks(arguments):
                raise BlockedError(f"{getattr(owner, '__name__', owner)}.{name} in the event loop")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, guarded)

    for name in ("recv", "recv_into", "send", "sendall", "connect", "accept"):
        across(socket.socket, name, lambda arguments: arguments[0].gettimeout() != 0)
    for owner, name in ((time, "sleep"), (select, "select"), (threading.Event, "wait")):
        across(owner, name)
    across(socket, "getaddrinfo")
    across(socket, "create_connection")

    async def watched(scenario: Awaitable[object]) -> None:
        armed.add(threading.get_ident())
        try:
            await scenario
        finally:
            armed.clear()

    return lambda scenario: asyncio.run(watched(scenario))


# --- every async path


class Doors:
    def __init__(self, server: Server, scheme: str) -> None:
        url = server.url.replace("redis", scheme) + "?socket_timeout=20&socket_connect_timeout=20"
        self.storage = AsyncRedisStorage.from_url(url)
        self.plain = AsyncTokenBucket(PLAIN, key="plain", storage=self.storage)
        self.scarce = AsyncTokenBucket(SCARCE, key="scarce", storage=self.storage)
        self.synced = AsyncTokenBucket(SYNCED, key="synced", storage=self.storage)
        self.sync = AsyncKeepaSync(AsyncTokenBucket(SYNCED, key="keepa", storage=self.storage), probe=self.probe)

    async def probe(self) -> tuple[int, Mapping[str, object]]:
        return 200, {"tokensLeft": 300, "refillIn": 1000, "refillRate": 5, "timestamp": 1_780_000_000_000}


async def reserve_and_settle(doors: Doors) -> None:
    async with doors.plain.reserve(2, hold_for=5) as call:
        await call.settle(1)


async def reserve_and_cancel(doors: Doors) -> None:
    call = await doors.plain.try_reserve(2)
    await call.cancel()


async def list_keys(doors: Doors) -> None:
    _ = [key async for key in doors.storage.keys()]  # noqa: SIM118 - a storage is no dict


async def request(doors: Doors) -> None:
    async with doors.sync.request(3) as call:
        await call.settle({"tokensLeft": 290, "refillIn": 500, "refillRate": 5, "timestamp": 1_780_000_001_000})


async def wait_for_a_place(doors: Doors) -> None:
    for _ in range(2):
        await doors.scarce.acquire(5)


PATHS: Final[dict[str, Path]] = {
    "try_acquire": lambda doors: doors.plain.try_acquire(),
    "acquire, waiting": wait_for_a_place,
    "reserve, settle": reserve_and_settle,
    "reserve, cancel": reserve_and_cancel,
    "refund": lambda doors: doors.plain.refund(1),
    "reconcile": lambda doors: doors.synced.reconcile(Reading(5)),
    "peek": lambda doors: doors.plain.peek(),
    "inspect": lambda doors: doors.storage.inspect("plain"),
    "keys": list_keys,
    "request": request,
    "refresh": lambda doors: doors.sync.refresh(),
    "observe": lambda doors: doors.sync.observe({"tokensLeft": 7, "refillIn": 1, "refillRate": 5, "timestamp": 2}),
}


async def through_a_freeze(server: Server, use: Callable[[], Awaitable[object]]) -> int:
    """Use the frozen server; return how often the loop turned before it thawed it.

    A path that blocks the loop would wait for a server that only the loop can thaw: it would fail by its timeout.
    """
    ticks = 0
    server.freeze()
    try:
        using = asyncio.ensure_future(use())
        while ticks < TICKS:
            await asyncio.sleep(0.001)
            ticks += 1
            assert not using.done(), f"it did not wait for the server: {using}"
    finally:
        server.thaw()
    await using
    return ticks


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_the_loop_goes_on_while_the_server_does_not(server: Server, run_armed: Run, scheme: str, name: str) -> None:
    """Each async path, on a new connection, on a used one and with its script lost, waits without blocking the loop."""

    async def scenario() -> None:
        doors = Doors(server, scheme)
        async with doors.storage:
            for _ in range(2):  # the first connects and loads the script
                assert await through_a_freeze(server, lambda: PATHS[name](doors)) == TICKS
            client: Any = doors.storage._client
            await client.script_flush()
            assert await through_a_freeze(server, lambda: PATHS[name](doors)) == TICKS

    run_armed(scenario())


def test_the_loop_goes_on_while_many_wait(server: Server, run_armed: Run) -> None:
    """Fifty coroutines that wait for tokens, with a server that pauses, don't keep the loop from turning."""

    async def scenario() -> None:
        doors = Doors(server, "redis")
        async with doors.storage:
            waiting = (doors.scarce.acquire() for _ in range(50))
            assert await through_a_freeze(server, lambda: asyncio.gather(*waiting)) == TICKS

    run_armed(scenario())


def test_the_guards_and_the_ready_probe_do_not_block_it(
    server: Server, run_armed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The httpx transport, whole and streaming, the keepa client's guard and the ready probe, on a starved bucket."""
    fake = FakeKeepa(initial=-5, period=STEP)
    params: dict[str, str | int] = {"domain": 1, "asin": "B000000001,B000000002"}
    quota = Quota(300, 5, STEP, stepped=True, overdraft=UNLIMITED, synced=True)
    events: list[Event] = []

    async def scenario(base: str, client_of_keepa: keepa.AsyncKeepa) -> None:
        storage = AsyncRedisStorage.from_url(server.url)
        bucket = AsyncTokenBucket(quota, key="http", storage=storage, listener=events.append)
        sync = AsyncKeepaSync(bucket, probe=async_http_probe("k", base_url=base))
        transport = AsyncKeepaTransport(sync, api_key="k", host=HOST, retry_refused=True)
        api: Any = guard(client_of_keepa, sync)
        async with storage, httpx.AsyncClient(base_url=base, transport=transport, timeout=30) as client:

            async def whole() -> None:
                (await client.get("/product", params=params)).raise_for_status()

            async def streamed() -> None:
                async with client.stream("GET", "/product", params=params) as response:
                    _ = [chunk async for chunk in response.aiter_bytes()]

            async def by_keepas_own() -> None:
                assert len(await api.query(["B000000001"], progress_bar=False, history=False)) == 1

            await asyncio.gather(*(path() for path in (whole, streamed, by_keepas_own) for _ in range(5)))
            assert (await bucket.peek()).holds == 0

    with FakeKeepaServer(fake) as http:
        send_to(http.url, monkeypatch)
        run_armed(scenario(http.url, asyncio.run(keepa.AsyncKeepa.create("k" * 64))))
    assert fake.spent == 5 * (2 + 2 + 1)
    assert EventKind.WAITING in {event.kind for event in events}


# --- the tests find what they look for


def test_a_path_that_blocks_is_found_by_the_tripwire(server: Server, run_armed: Run) -> None:
    """The sync door, used in a coroutine, trips the wire; so does a sleep."""

    async def scenario() -> None:
        bucket = TokenBucket(PLAIN, key="default", storage=RedisStorage.from_url(server.url))
        with pytest.raises(BlockedError, match="in the event loop"):
            bucket.try_acquire()
        with pytest.raises(BlockedError, match=r"time\.sleep"):
            SystemClock().sleep(0.001)

    run_armed(scenario())


def test_a_path_that_blocks_is_found_by_the_freeze(server: Server) -> None:
    """The sync door, used in a coroutine, keeps the loop from thawing the server, and runs into its timeout."""
    bucket = TokenBucket(PLAIN, key="default", storage=RedisStorage.from_url(server.url + "?socket_timeout=0.1"))

    async def use() -> None:
        bucket.try_acquire()

    with pytest.raises(AssertionError, match="did not wait for the server"):
        asyncio.run(through_a_freeze(server, use))
