"""The httpx guards' own side: what goes through the inner transport and back; test_guards_http.py has the rest."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import pytest

from keepa_tokens import AsyncKeepaSync, AsyncTokenBucket, KeepaSync, MemoryStorage, TokenBucket, keepa_quota
from keepa_tokens.guards.httpx import AsyncKeepaTransport, KeepaTransport
from keepa_tokens.testing import ManualClock, virtual_loop

from tests.http_guards import SETTLES_ALL, KEY, Kind, asins, running  # isort: skip

# A guard leaves no call behind without having said that nobody knows what became of it.
pytestmark = SETTLES_ALL

ENVELOPE = {"timestamp": 1_780_000_000_000, "tokensLeft": 77, "refillIn": 5000, "refillRate": 5, "tokensConsumed": 3}
URL = "https://api.keepa.com/product?asin=B1"


def bucket() -> KeepaSync:
    sync = KeepaSync(TokenBucket(keepa_quota(5), clock=ManualClock()))
    sync.observe(ENVELOPE | {"tokensLeft": 100, "timestamp": 1})
    return sync


def twin(sync: KeepaSync) -> AsyncKeepaSync:
    storage = sync.bucket.storage
    assert isinstance(storage, MemoryStorage)
    return AsyncKeepaSync(AsyncTokenBucket(keepa_quota(5), key="default", storage=storage, clock=sync.bucket.clock))


PACKED = gzip.compress(json.dumps(ENVELOPE).encode())


@pytest.mark.parametrize(
    "body, read, got, balance",
    [
        (PACKED, lambda response: json.loads(response.read()), ENVELOPE, 77),
        (PACKED, lambda response: b"".join(response.iter_raw()), PACKED, 77),
        (b"no gzip at all", lambda response: b"".join(response.iter_raw()), b"no gzip at all", 99),
    ],
    ids=["decoded", "raw", "no gzip"],  # each worker packs it at another second
)
def test_a_compressed_answer_is_read_once_and_understood(body: bytes, read: Any, got: object, balance: int) -> None:
    """The client gets the bytes that came over the wire, or decoded ones, as it likes; the bucket reads the JSON.

    A body that isn't what its headers say ends the hold at the estimate.
    """
    sync, headers = bucket(), {"Content-Encoding": "gzip"}
    inner = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=iter([body[:10], body[10:]])))
    with httpx.Client(transport=KeepaTransport(sync, inner)) as client, client.stream("GET", URL) as response:
        assert read(response) == got
    assert (sync.bucket.peek().balance, sync.bucket.peek().held) == (balance, 0)


def test_an_async_connection_that_breaks_in_the_body_leaves_the_hold() -> None:
    """Half an answer tells no cost: the error surfaces, the estimate stays held; and so a cancelled reader's."""
    sync = bucket()

    async def half() -> AsyncIterator[bytes]:
        yield b'{"tokens'
        raise httpx.ReadError("gone")

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    bodies = [half, endless]
    inner = httpx.MockTransport(lambda request: httpx.Response(200, content=bodies.pop(0)()))

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncKeepaTransport(twin(sync), inner)) as client:
            with pytest.raises(httpx.ReadError):
                await client.get(URL)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get(URL), 5)

    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        runner.run(main())
    assert (sync.bucket.peek().balance, sync.bucket.peek().held) == (100, 2)


def test_an_error_that_streams_share_ends_none_of_them_but_the_one_that_raised_it() -> None:
    """The streams of HTTP/2 raise one exception of their connection: who is still closing his ends in his own time."""
    broken, gone = httpx.RemoteProtocolError("gone"), asyncio.Event()

    class Shared(httpx.AsyncBaseTransport):
        """Who asks for one product is busy closing its stream until the other has raised."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            try:
                raise broken
            finally:
                if len(request.url.params["asin"]) == len("B000000000"):
                    await gone.wait()

    async def main() -> list[BaseException | httpx.Response]:
        async with httpx.AsyncClient(transport=AsyncKeepaTransport(twin(bucket()), Shared())) as client:

            async def get(count: int) -> httpx.Response:
                try:
                    return await client.get("https://api.keepa.com/product", params=asins(count))
                finally:
                    gone.set()

            async with asyncio.timeout(5):
                return list(await asyncio.gather(get(1), get(2), return_exceptions=True))

    assert asyncio.run(main()) == [broken, broken]


def test_the_client_still_knows_how_the_answer_came() -> None:
    """Status, headers, protocol and time taken are the inner transport's."""
    with running("httpx", initial=100) as world:
        response = world.client().native.get(world.server.url + "/product", params=asins(1))
        assert response.http_version == "HTTP/1.1"
        assert response.headers["Content-Type"] == "application/json;charset=UTF-8"
        assert response.elapsed.total_seconds() > 0


def test_a_redirect_is_paid_for_by_each_of_its_requests() -> None:
    """Every request that reaches Keepa has a hold of its own."""
    sync = bucket()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/product":
            return httpx.Response(302, headers={"Location": "/product2"}, json=ENVELOPE)
        return httpx.Response(200, json=ENVELOPE | {"timestamp": ENVELOPE["timestamp"] + 1, "tokensLeft": 70})

    inner = httpx.MockTransport(answer)
    with httpx.Client(transport=KeepaTransport(sync, inner), follow_redirects=True) as client:
        client.get(URL)
    assert (sync.bucket.peek().balance, sync.bucket.peek().held) == (70, 0)


def test_closing_the_client_closes_the_inner_transport() -> None:
    """The guard owns what it was given, as httpx owns its transport."""
    closed: list[str] = []

    class Inner(httpx.BaseTransport):
        def close(self) -> None:
            closed.append("sync")

    class AsyncInner(httpx.AsyncBaseTransport):
        async def aclose(self) -> None:
            closed.append("async")

    httpx.Client(transport=KeepaTransport(bucket(), Inner())).close()
    with asyncio.Runner() as runner:
        runner.run(httpx.AsyncClient(transport=AsyncKeepaTransport(twin(bucket()), AsyncInner())).aclose())
    assert closed == ["sync", "async"]


@pytest.mark.parametrize(
    "url, gets_it",
    [
        ("https://api.keepa.com/product", True),
        ("https://API.KEEPA.com:443/product", True),
        ("http://api.keepa.com/product", False),
        ("http://api.keepa.com:443/product", False),
        ("https://api.keepa.com:8443/product", False),
        ("https://api.keepa.com.example.org/product", False),
        ("https://example.org/api.keepa.com", False),
        ("https://api.keepa.com@example.org/product", False),
        ("https://127.0.0.1/product", False),
    ],
)
@pytest.mark.parametrize("redirected", [False, True])
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_the_key_goes_by_https_to_the_api_alone(library: Any, url: str, gets_it: bool, redirected: bool) -> None:
    """No other scheme, port or host gets the key, by a redirect neither; what goes to the API's host is paid for."""
    seen: list[str] = []
    sync = bucket()

    def answer(request: Any) -> Any:
        if request.url.path == "/first":
            return library.Response(302, headers={"Location": url}, json=ENVELOPE)
        seen.append(str(request.url))
        return library.Response(200, json=ENVELOPE)

    transport = KeepaTransport(sync, library.MockTransport(answer), api_key="SECRET")
    with library.Client(transport=transport, follow_redirects=True) as client:
        client.get("https://api.keepa.com/first" if redirected else url)
    assert ["key=SECRET" in each for each in seen] == [gets_it]
    is_paid = redirected or httpx.URL(url).host == "api.keepa.com"
    assert sync.bucket.peek().balance == (77 if is_paid else 100)


ALONE = """
import sys
sys.modules["{absent}"] = None
import {present} as library
from keepa_tokens import KeepaSync, TokenBucket, keepa_quota
from keepa_tokens.guards.httpx import KeepaTransport
sync = KeepaSync(TokenBucket(keepa_quota(5, initial=100)))
inner = library.MockTransport(lambda request: library.Response(200, json={{"tokensLeft": 77, "refillRate": 5}}))
with library.Client(transport=KeepaTransport(sync, inner)) as client:
    client.get("https://api.keepa.com/product?asin=B1").raise_for_status()
print(sync.bucket.peek().balance)
"""


@pytest.mark.parametrize("present, absent", [("httpx", "httpx2"), ("httpx2", "httpx")])
def test_either_library_alone_is_enough(present: str, absent: str) -> None:
    """Where only one of the two is installed, the transport works with that one."""
    program = ALONE.format(present=present, absent=absent)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "77\n"


@pytest.mark.parametrize("kind", ["httpx", "httpx-async", "httpx2", "httpx2-async"])
def test_a_proxy_from_the_environment_is_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an inner transport requests go by the proxy that HTTP_PROXY names, but not where NO_PROXY says so."""
    nowhere = "http://127.0.0.1:9"
    with running(kind, initial=100) as world:
        monkeypatch.setenv("HTTP_PROXY", world.server.url.removeprefix("http://"))
        monkeypatch.setenv("http_proxy", world.server.url.removeprefix("http://"))
        made: Any = AsyncKeepaTransport if world.is_async else KeepaTransport
        guard = made(world.asynch if world.is_async else world.sync, api_key=KEY, host="127.0.0.1")
        client = world.client(guard=guard)
        assert client.get("/product", asins(2), base=nowhere).status == 200
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
            client.get("/product", asins(2), base=nowhere)
        assert world.fake.spent == 2


def test_a_request_that_is_closed_in_the_middle_leaves_no_call_open() -> None:
    """A coroutine that is thrown away while the server works: its hold runs out, and nobody is blamed for it."""

    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError(request)

    async def main() -> None:
        bucket = AsyncTokenBucket(keepa_quota(initial=100), clock=ManualClock(1.0))
        transport = AsyncKeepaTransport(AsyncKeepaSync(bucket), Hanging(), api_key=KEY)
        under_way = transport.handle_async_request(
            httpx.Request("GET", "https://api.keepa.com/product", params=asins(5))
        )
        under_way.send(None)
        under_way.close()
        assert (await bucket.peek()).held == 5

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [each for each in told if "without settle" in str(each.message)] == []
