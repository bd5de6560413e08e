"""No async path blocks its loop: the server answers nothing, the loop goes on, and it is the loop that thaws it."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
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


# --- a tripwire in the loop's thread


class BlockedError(BaseException):
    """Something would have blocked the loop. Not an Exception: nobody may catch it on the way."""


class Tripwire:
    """Raises where this thread would block: in a sleep, in a socket that waits, in a look-up of a name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._thread = threading.get_ident()
        self.armed = False

    def lay(self) -> None:
        """Put the wire across everything that blocks."""
        for name in ("recv", "recv_into", "send", "sendall", "connect", "accept"):
            self._across(socket.socket, name, lambda arguments: arguments[0].gettimeout() != 0)
        self._across(time, "sleep", lambda arguments: True)
        self._across(socket, "getaddrinfo", lambda arguments: True)
        self._across(socket, "create_connection", lambda arguments: True)
        self._across(select, "select", lambda arguments: True)
        self._across(threading.Event, "wait", lambda arguments: True)

    def _across(self, owner: Any, name: str, blocks: Callable[[tuple[Any, ...]], bool]) -> None:
        original = getattr(owner, name)

        def guarded(*arguments: Any, **options: Any) -> Any:
            if self.armed and threading.get_ident() == self._thread and blocks(arguments):
                raise BlockedError(f"{getattr(owner, '__name__', owner)}.{name} in the event loop")
            return original(*arguments, **options)

        self._patch.setattr(owner, name, guarded)


@pytest.fixture
def tripwire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tripwire]:
    """A tripwire in this thread, armed by the test once its loop runs."""
    wire = Tripwire(monkeypatch)
    wire.lay()
    yield wire
    wire.armed = False


# --- every async path


class Doors:
    """The async doors to one server, and a probe that answers at once."""

    def __init__(self, server: Server, scheme: str) -> None:
        url = server.url.replace("redis", scheme) + "?socket_timeout=20&socket_connect_timeout=20"
        self.storage = AsyncRedisStorage.from_url(url)
        self.plain = AsyncTokenBucket(PLAIN, key="plain", storage=self.storage)
        self.scarce = AsyncTokenBucket(SCARCE, key="scarce", storage=self.storage)
        self.synced = AsyncTokenBucket(SYNCED, key="synced", storage=self.storage)
        self.sync = AsyncKeepaSync(AsyncTokenBucket(SYNCED, key="keepa", storage=self.storage), probe=self.probe)

    async def probe(self) -> tuple[int, Mapping[str, object]]:
        """Answer as Keepa's `/token` does."""
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
def test_the_loop_goes_on_while_the_server_does_not(server: Server, tripwire: Tripwire, scheme: str, name: str) -> None:
    """Each async path, on a new connection, on a used one and with its script lost, waits without blocking the loop."""

    async def scenario() -> None:
        doors = Doors(server, scheme)
        tripwire.armed = True
        for _ in range(2):  # the first connects and loads the script
            assert await through_a_freeze(server, lambda: PATHS[name](doors)) == TICKS
        tripwire.armed = False
        with server.client() as client:
            client.script_flush()
        tripwire.armed = True
        assert await through_a_freeze(server, lambda: PATHS[name](doors)) == TICKS
        await doors.storage.aclose()
        tripwire.armed = False

    asyncio.run(scenario())


def test_the_loop_goes_on_while_many_wait(server: Server, tripwire: Tripwire) -> None:
    """Fifty coroutines that wait for tokens, with a server that pauses, don't keep the loop from turning."""

    async def scenario() -> int:
        doors = Doors(server, "redis")
        tripwire.armed = True
        turns = await through_a_freeze(server, lambda: asyncio.gather(*(doors.scarce.acquire() for _ in range(50))))
        await doors.storage.aclose()
        tripwire.armed = False
        return turns

    assert asyncio.run(scenario()) == TICKS


def test_the_guards_and_the_ready_probe_do_not_block_it(
    server: Server, tripwire: Tripwire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport for httpx, whole and streaming, the guard of the `keepa` client and the ready probe, over HTTP and
    on a starved bucket, whose waits are real: none of them blocks the loop.
    """
    fake = FakeKeepa(initial=-5, period=STEP)
    params: dict[str, str | int] = {"domain": 1, "asin": "B000000001,B000000002"}

    async def scenario(base: str) -> None:
        storage = AsyncRedisStorage.from_url(server.url)
        quota = Quota(300, 5, STEP, stepped=True, overdraft=UNLIMITED, synced=True)
        waits: list[Event] = []

        def listen(event: Event) -> None:
            if event.kind is EventKind.WAITING:
                waits.append(event)

        bucket = AsyncTokenBucket(quota, key="http", storage=storage, listener=listen)
        sync = AsyncKeepaSync(bucket, probe=async_http_probe("k", base_url=base))
        transport = AsyncKeepaTransport(sync, api_key="k", host=HOST, retry_refused=True)
        api: Any = guard(await keepa.AsyncKeepa.create("k" * 64), sync)
        tripwire.armed = True
        async with httpx.AsyncClient(base_url=base, transport=transport, timeout=30) as client:

            async def whole() -> None:
                (await client.get("/product", params=params)).raise_for_status()

            async def streamed() -> None:
                async with client.stream("GET", "/product", params=params) as response:
                    _ = [chunk async for chunk in response.aiter_bytes()]

            async def by_keepas_own() -> None:
                assert len(await api.query(["B000000001"], progress_bar=False, history=False)) == 1

            await asyncio.gather(*(path() for path in (whole, streamed, by_keepas_own) for _ in range(5)))
        assert (await bucket.peek()).holds == 0
        await storage.aclose()
        tripwire.armed = False
        assert waits

    with FakeKeepaServer(fake) as http:
        send_to(http.url, monkeypatch)
        asyncio.run(scenario(http.url))
    assert fake.spent == 5 * (2 + 2 + 1)


# --- the tests find what they look for


def test_a_path_that_blocks_is_found_by_the_tripwire(server: Server, tripwire: Tripwire) -> None:
    """The sync door, used in a coroutine, trips the wire; so does a sleep."""

    async def scenario() -> None:
        bucket = TokenBucket(PLAIN, storage=RedisStorage.from_url(server.url))
        tripwire.armed = True
        with pytest.raises(BlockedError, match="in the event loop"):
            bucket.try_acquire()
        with pytest.raises(BlockedError, match=r"time\.sleep"):
            SystemClock().sleep(0.001)
        tripwire.armed = False

    asyncio.run(scenario())


def test_a_path_that_blocks_is_found_by_the_freeze(server: Server) -> None:
    """The sync door, used in a coroutine, keeps the loop from thawing the server, and runs into its timeout."""

    async def scenario() -> None:
        bucket = TokenBucket(PLAIN, storage=RedisStorage.from_url(server.url + "?socket_timeout=0.1"))

        async def use() -> None:
            bucket.try_acquire()

        with pytest.raises(AssertionError, match="did not wait for the server"):
            await through_a_freeze(server, use)

    asyncio.run(scenario())
