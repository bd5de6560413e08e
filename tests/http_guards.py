"""A client of each kind behind its guard, its bucket and the fake server, all in one time that a test moves by hand."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx
import httpx2
import requests

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    KeepaSync,
    MemoryStorage,
    Snapshot,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.guards.httpx import AsyncKeepaTransport, KeepaTransport
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock

Kind = Literal["httpx", "httpx-async", "httpx2", "httpx2-async", "requests"]
KINDS: Final[tuple[Kind, ...]] = ("httpx", "httpx-async", "httpx2", "httpx2-async", "requests")
KEY: Final = "sEcReT" * 10 + "+/&"
HOST: Final = "127.0.0.1"


def asins(count: int, **more: object) -> dict[str, Any]:
    """Return the parameters of a call for that many products."""
    return {"domain": 1, "asin": ",".join(f"B{place:09d}" for place in range(count)), **more}


@dataclass
class Answer:
    """What a client of any kind got."""

    status: int
    content: bytes
    url: str
    raw: Any


class World:
    """One client behind its guard. Sync or async makes no difference to who uses it."""

    def __init__(
        self,
        kind: Kind,
        *,
        initial: int | None = None,
        refill_rate: int = 5,
        probe: bool = True,
        hang: float = 0.5,
        storage: MemoryStorage | None = None,
        clock: Any = None,
        **fake: Any,
    ) -> None:
        self.kind = kind
        self.library: Any = httpx2 if kind.startswith("httpx2") else httpx
        self.is_async = kind.endswith("-async")
        self.clock: Any = clock or ManualClock(1000.0)
        self.fake = FakeKeepa(clock=self.clock, key=KEY, refill_rate=refill_rate, initial=initial, **fake)
        self.server = FakeKeepaServer(self.fake, speed=None, hang=hang)
        self.events: list[Event] = []
        self.storage: Any = storage or MemoryStorage()
        self.runner = asyncio.Runner()
        common: dict[str, Any] = {"storage": self.storage, "clock": self.clock, "listener": self.events.append}
        self.sync = KeepaSync(TokenBucket(keepa_quota(5), **common), probe=self.fake.probe if probe else None)
        self.asynch = AsyncKeepaSync(
            AsyncTokenBucket(keepa_quota(5), **common), probe=self.fake.aprobe if probe else None
        )

    def guard(self, **options: Any) -> Any:
        """Return the guard alone: a transport or an adapter."""
        options = {"host": HOST, "api_key": KEY, **options}
        if self.kind == "requests":
            return KeepaAdapter(self.sync, **options)
        # verify=False: loading certificates that nobody looks at takes longer than the tests themselves.
        if self.is_async:
            return AsyncKeepaTransport(self.asynch, self.library.AsyncHTTPTransport(verify=False), **options)
        return KeepaTransport(self.sync, self.library.HTTPTransport(verify=False), **options)

    def client(self, **options: Any) -> Client:
        """Return a client behind a guard."""
        return Client(self, self.guard(**options))

    def bucket(self) -> Snapshot:
        """Return the bucket as it is now."""
        return self.sync.bucket.peek()

    def count(self, kind: EventKind) -> int:
        """Return how many events of a kind there were."""
        return sum(event.kind is kind for event in self.events)

    def in_step(self) -> bool:
        """Return whether the bucket knows the server's balance, and holds nothing."""
        return (self.bucket().balance, self.bucket().held) == (self.fake.balance, 0)


class Client:
    """A client behind a guard."""

    def __init__(self, world: World, guard: Any) -> None:
        self.world = world
        self.native: Any
        if world.kind == "requests":
            self.native = requests.Session()
            self.native.mount(f"http://{HOST}", guard)
        else:
            client = world.library.AsyncClient if world.is_async else world.library.Client
            self.native = client(transport=guard, timeout=30)

    patience = 30.0
    """Seconds to wait for an answer: plenty on a busy machine. A test of timeouts sets less."""

    def get(self, path: str, params: Mapping[str, object] | None = None, *, base: str | None = None) -> Answer:
        """Make a GET and read all of it."""
        return self.send("GET", path, params, base=base)

    def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        base: str | None = None,
        body: str | None = None,
    ) -> Answer:
        """Make a request and read all of it."""
        url = (base or self.world.server.url) + path
        if self.world.kind == "requests":
            got = self.native.request(method, url, params=params, data=body, timeout=self.patience)
        else:
            got = self.await_(self.native.request(method, url, params=params, content=body, timeout=self.patience))
        return Answer(got.status_code, got.content, str(got.url), got)

    def stream(self, path: str, params: Mapping[str, object], read: Callable[[Any], Any]) -> Any:
        """Make a GET as a stream and let `read` have the open response; for an async client it may be awaited."""
        url = self.world.server.url + path
        if self.world.is_async:

            async def streamed() -> Any:
                async with self.native.stream("GET", url, params=params) as response:
                    found = read(response)
                    return await found if inspect.isawaitable(found) else found

            return self.await_(streamed())
        if self.world.kind == "requests":
            with self.native.get(url, params=params, stream=True) as response:
                return read(response)
        with self.native.stream("GET", url, params=params) as response:
            return read(response)

    def await_(self, result: Any) -> Any:
        """Return a result, awaited if need be."""
        return self.world.runner.run(result) if asyncio.iscoroutine(result) else result

    def close(self) -> None:
        """Close the client and its guard."""
        self.await_(self.native.aclose() if self.world.is_async else self.native.close())


@contextmanager
def running(kind: Kind, **options: Any) -> Iterator[World]:
    """Run a world of a kind; `options` as `World`."""
    world = World(kind, **options)
    with ExitStack() as stack:
        stack.callback(world.runner.close)
        stack.enter_context(world.server)
        clients: list[Client] = []
        make = world.client

        def client(**more: Any) -> Client:
            clients.append(make(**more))
            return clients[-1]

        world.client = client  # type: ignore[method-assign] # to close them all in the end
        yield world
        for each in clients:
            each.close()


def shown(error: BaseException) -> str:
    """Return what error reports show of an exception and those behind it: the local variables of all frames below."""
    links, frames = [error], []
    for link in links:
        links += [each for each in (link.__cause__, link.__context__) if each is not None and each not in links]
        frames += [frame for frame, _ in traceback.walk_tb(link.__traceback__)]
    return "".join(repr(frame.f_locals) for frame in frames if "tests" not in frame.f_code.co_filename)


def together(world: World, client: Client, calls: int, params: Callable[[int], Mapping[str, object]]) -> list[int]:
    """Make calls for products all at once and return their statuses."""
    url = world.server.url + "/product"
    statuses: list[int] = []
    if world.is_async:

        async def all_of_them() -> None:
            got = await asyncio.gather(
                *(client.native.get(url, params=params(place), timeout=20) for place in range(calls))
            )
            statuses.extend(each.status_code for each in got)

        client.await_(all_of_them())
        return statuses
    threads = [
        threading.Thread(
            target=lambda place=place: statuses.append(
                client.native.get(url, params=params(place), timeout=20).status_code
            )
        )
        for place in range(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return statuses
