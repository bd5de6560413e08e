"""A client of each kind behind its guard, its bucket and the fake server, all in one time that a test moves by hand."""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
import httpx
import httpx2
import keepa
import pytest
import requests
from keepa.constants import SCODES

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    KeepaSync,
    MemoryStorage,
    Outcome,
    Quota,
    Snapshot,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.guards.httpx import AsyncKeepaTransport, KeepaTransport
from keepa_tokens.guards.keepa import guard
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.rules.commands import Command, Peek, Reserve
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock

HttpKind = Literal["httpx", "httpx-async", "httpx2", "httpx2-async", "requests"]
KeepaKind = Literal["keepa", "keepa-async"]
Kind = HttpKind | KeepaKind
HTTP_KINDS: Final[tuple[HttpKind, ...]] = ("httpx", "httpx-async", "httpx2", "httpx2-async", "requests")
KEEPA_KINDS: Final[tuple[KeepaKind, ...]] = ("keepa", "keepa-async")
KINDS: Final[tuple[Kind, ...]] = (*HTTP_KINDS, *KEEPA_KINDS)
NETWORK_ERRORS: Final = (
    *(httpx.TransportError, httpx2.TransportError, requests.RequestException, aiohttp.ClientError, TimeoutError),
)
Trusts = str | Literal[False] | None
"""The file of certificates to trust; None: the system's. False: none are looked at, as loading them takes longer than a
test; the clients other than httpx and httpx2 take it for None."""
SETTLES_ALL: Final = [
    pytest.mark.usefixtures("alone"),
    pytest.mark.filterwarnings("error:.* was left without settle:ResourceWarning"),
]
"""For files in whose tests no call may be left behind."""
KEY: Final = "sEcReT" * 10 + "+/&"
HOST: Final = "127.0.0.1"
KEEPA_URL: Final = "https://api.keepa.com"


def asins(count: int, **more: object) -> dict[str, Any]:
    return {"domain": 1, "asin": ",".join(f"B{place:09d}" for place in range(count)), **more}


@dataclass
class Answer:
    """What a client of any kind got; of the keepa client, whose errors tell the status, parsed or as its error."""

    status: int
    content: bytes
    url: str
    raw: Any


class CallsFirst(ManualClock):
    """A clock that can stand still while a call is in flight: a busy machine must not let its hold run out."""

    in_flight: Callable[[], int] = staticmethod(lambda: 0)

    def sleep(self, seconds: float, /) -> None:
        while self.in_flight():
            time.sleep(0)
        super().sleep(seconds)

    async def asleep(self, seconds: float, /) -> None:
        while self.in_flight():  # noqa: ASYNC110 - what ends it is a number in the bucket
            await asyncio.sleep(0)
        await super().asleep(seconds)


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
        self.is_keepa = kind in KEEPA_KINDS
        self.tries = 2 if kind == "keepa-async" else 1  # aiohttp sends a GET again after a broken connection
        self.clock: Any = clock or CallsFirst(1000.0)
        self.fake = FakeKeepa(clock=self.clock, key=KEY, refill_rate=refill_rate, initial=initial, **fake)
        self.server = FakeKeepaServer(self.fake, speed=None, hang=hang)
        self.events: list[Event] = []
        self.commands: list[Command] = []
        self.urls: list[str] = []
        self.base = ""
        self.way: dict[str, Any] = {}
        self.storage: Any = storage or MemoryStorage()
        self.runner = asyncio.Runner()
        self._note_commands()
        self.sync, self.asynch = self.doors(keepa_quota(5), probe=probe)

    def _note_commands(self) -> None:
        apply: Callable[..., Outcome] = self.storage.apply

        def noted(key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
            outcome = apply(key, quota, command, now_us=now_us)
            if not isinstance(command, Peek) and (outcome.granted or not isinstance(command, Reserve)):
                self.commands.append(command)
            return outcome

        self.storage.apply = noted

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the commands of one kind that the bucket carried out; requests for tokens if they were granted."""
        return [command for command in self.commands if isinstance(command, kind)]

    def doors(self, quota: Quota, *, probe: bool = True) -> tuple[KeepaSync, AsyncKeepaSync]:
        options = {"storage": self.storage, "clock": self.clock, "listener": self.events.append}
        common: dict[str, Any] = {"key": "default", **options}
        return (
            KeepaSync(TokenBucket(quota, **common), probe=self.fake.probe if probe else None),
            AsyncKeepaSync(AsyncTokenBucket(quota, **common), probe=self.fake.aprobe if probe else None),
        )

    def guard(self, *, proxy: str | None = None, certificates: Trusts = False, **options: Any) -> Any:
        """Return the guard of an HTTP client alone: a transport or an adapter."""
        options = {"host": HOST, "api_key": KEY, **options}
        if self.kind == "requests":
            return KeepaAdapter(self.sync, **options)
        verify = certificates is not False and ssl.create_default_context(cafile=certificates)
        if self.is_async:
            inner = self.library.AsyncHTTPTransport(verify=verify, proxy=proxy)
            return AsyncKeepaTransport(self.asynch, inner, **options)
        return KeepaTransport(self.sync, self.library.HTTPTransport(verify=verify, proxy=proxy), **options)

    def client(self, **options: Any) -> Client:
        return KeepaClient(self, **options) if self.is_keepa else Client(self, **options)

    def bare_api(self, key: str = KEY) -> Any:
        return asyncio.run(keepa.AsyncKeepa.create(key, timeout=5)) if self.is_async else keepa.Keepa(key, timeout=5)

    def bucket(self) -> Snapshot:
        return self.sync.bucket.peek()

    def count(self, kind: EventKind) -> int:
        return sum(event.kind is kind for event in self.events)

    def in_step(self) -> bool:
        """Return whether the bucket knows the server's balance, and holds nothing."""
        return (self.bucket().balance, self.bucket().held) == (self.fake.balance, 0)


class Client:
    """A client behind a guard. proxy, certificates: by which it goes; other options are the guard's."""

    patience = 30.0
    """Seconds to wait for an answer: plenty on a busy machine. A test of timeouts sets less."""

    def __init__(
        self, world: World, *, guard: Any = None, proxy: str | None = None, certificates: Trusts = False, **options: Any
    ) -> None:
        self.world = world
        self.proxies = {"http": proxy, "https": proxy} if proxy else {}
        self.certificates = certificates
        guard = guard or world.guard(proxy=proxy, certificates=certificates, **options)
        self.native: Any
        if world.kind == "requests":
            self.native = requests.Session()
            self.native.mount(f"http://{HOST}", guard)
            self.native.mount(f"https://{HOST}", guard)
        else:
            self.native = (world.library.AsyncClient if world.is_async else world.library.Client)(transport=guard)

    def get(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        base: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        return self.send("GET", path, params, base=base, headers=headers)

    def send(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        base: str | None = None,
        body: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        url = (base or self.world.server.url) + path
        if self.world.kind == "requests":
            request = self.native.prepare_request(requests.Request(method, url, params=params, data=body))
            request.headers.update(headers or {})  # past its own checks
            got = self.native.send(
                request, timeout=self.patience, verify=self.certificates or True, proxies=self.proxies
            )
        else:
            options = {"params": params, "content": body, "headers": headers, "timeout": self.patience}
            got = self.await_(self.native.request(method, url, **options))
        return Answer(got.status_code, got.content, str(got.url), got)

    def sent(self, path: str, params: Mapping[str, object]) -> Any:
        """Make a GET; for an async client what is to be awaited."""
        return self.native.get(self.world.server.url + path, params=params, timeout=self.patience)

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
        return self.world.runner.run(result) if asyncio.iscoroutine(result) else result

    def close(self) -> None:
        self.await_(self.native.aclose() if self.world.is_async else self.native.close())


class KeepaClient(Client):
    """The keepa client behind its guard, for which there is but one way with a refusal: `retry_refused`."""

    def __init__(
        self,
        world: World,
        *,
        proxy: str | None = None,
        certificates: Trusts = False,
        retry_refused: bool = True,
        **options: Any,
    ) -> None:
        self.world = world
        world.way = {"verify": certificates or True, "proxies": {"https": proxy} if proxy else {}}
        if world.is_async:
            trusted = {"ssl": ssl.create_default_context(cafile=certificates)} if certificates else {}
            world.way = {"proxy": proxy, **trusted}
        door: Any = world.asynch if world.is_async else world.sync
        self.native = guard(world.bare_api(), door, **options)

    def send(self, method: str, path: str, params: Any = None, *, base: Any = None, **more: Any) -> Answer:
        """Make a request as the client makes all of its own."""
        self.world.base = base or self.world.server.url
        posted = {"selection": more["body"]} if more.get("body") else {}
        try:
            found = self.await_(self.sent(path, {**(params or {}), **posted}))
        except (RuntimeError, TypeError) as error:  # an empty answer is a TypeError of the async one's
            statuses = {name: status for status, name in SCODES.items()}
            status = statuses.get(str(error)) or "".join(filter(str.isdigit, str(error))) or 200
            return Answer(int(status), b"", "", error)
        return Answer(200, json.dumps(found, default=repr).encode(), "", found)

    def sent(self, path: str, params: Mapping[str, object]) -> Any:
        self.native._timeout = self.patience
        return self.native._request(path.strip("/"), dict(params), is_json=path != "/graphimage")

    def close(self) -> None:
        """It leaves nothing open."""


def send_to_server(world: World, patch: pytest.MonkeyPatch) -> None:
    """Send the keepa clients' calls, whose host is fixed, to the world's `base`, its own way, and note their URLs."""
    sync_request: Any = requests.Session.request
    async_request: Any = aiohttp.ClientSession._request

    def moved(url: Any) -> str:
        world.urls.append(str(url))
        return str(url).replace(KEEPA_URL, world.base or world.server.url)

    def request(self: Any, method: str, url: Any, **options: Any) -> Any:
        return sync_request(self, method, moved(url), **{**options, **world.way})

    def coroutine(self: Any, method: str, url: Any, **options: Any) -> Any:
        return async_request(self, method, moved(url), **{**options, **world.way})

    patch.setattr(requests.Session, "request", request)
    patch.setattr(aiohttp.ClientSession, "_request", coroutine)


@contextmanager
def running(kind: Kind, of: Any = World, **options: Any) -> Iterator[Any]:
    world: World = of(kind, **options)
    with ExitStack() as stack:
        stack.callback(world.runner.close)
        stack.enter_context(world.server)
        if world.is_keepa:
            send_to_server(world, stack.enter_context(pytest.MonkeyPatch.context()))
        make = world.client

        def client(**more: Any) -> Client:
            made = make(**more)
            stack.callback(made.close)  # before the server and the runner
            return made

        world.client = client  # type: ignore[method-assign] # to close them all in the end
        yield world


def shown(error: BaseException) -> str:
    """Return what error reports show of an exception and those behind it: the local variables of all frames below."""
    links, frames = [error], []
    for link in links:
        links += [each for each in (link.__cause__, link.__context__) if each is not None and each not in links]
        frames += [frame for frame, _ in traceback.walk_tb(link.__traceback__)]
    return "".join(repr(frame.f_locals) for frame in frames if "tests" not in frame.f_code.co_filename)


def together(world: World, client: Client, calls: int, params: Callable[[int], Mapping[str, object]]) -> list[int]:
    """Make calls for products all at once and return their statuses; the keepa client returns what is good alone."""
    world.clock.in_flight = lambda: world.bucket().holds
    if world.is_async:

        async def all_of_them() -> Any:
            return await asyncio.gather(*(client.sent("/product", params(place)) for place in range(calls)))

        found = world.runner.run(all_of_them())
    else:
        with ThreadPoolExecutor(calls) as pool:
            found = list(pool.map(lambda place: client.sent("/product", params(place)), range(calls)))
    return [getattr(each, "status_code", 200) for each in found]
