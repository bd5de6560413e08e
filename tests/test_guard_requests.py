"""The requests guard's own side: falsy responses, raw streams, proxies. test_guards_http.py has the rest."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests

from keepa_tokens import KeepaSync, TokenBucket, keepa_quota
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.testing import ManualClock
from tests.odd_servers import answers, listening

from tests.http_guards import SETTLES_ALL, HOST, KEY, asins, running  # isort: skip

# A guard leaves no call behind without having said that nobody knows what became of it.
pytestmark = SETTLES_ALL

ENVELOPE = {"timestamp": 1_780_000_000_000, "tokensLeft": 77, "refillIn": 5000, "refillRate": 5, "tokensConsumed": 3}
BODY = json.dumps(ENVELOPE | {"products": list(range(500))}).encode()


def packed(path: str) -> bytes:
    """Return an answer in gzip, in chunks if asked to."""
    body = gzip.compress(BODY)
    head = b"Content-Encoding: gzip\r\nContent-Type: application/json\r\n"
    if "chunked" in path:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:50], body[50:], b""))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def packing() -> Iterator[tuple[str, list[str]]]:
    """Run a server that answers gzip; its base URL and what it was asked for."""
    asked: list[str] = []
    with listening(answers(asked, packed)) as port:
        yield f"http://{HOST}:{port}", asked


@pytest.fixture
def sync() -> KeepaSync:
    made = KeepaSync(TokenBucket(keepa_quota(5), clock=ManualClock()))
    made.observe(ENVELOPE | {"tokensLeft": 100, "timestamp": 1})
    return made


def session(sync: KeepaSync, **options: Any) -> requests.Session:
    made = requests.Session()
    made.mount(f"http://{HOST}", KeepaAdapter(sync, host=HOST, **options))
    return made


def in_step(sync: KeepaSync) -> bool:
    return (sync.bucket.peek().balance, sync.bucket.peek().held) == (77, 0)


READERS: dict[str, Any] = {
    "content": lambda response: response.content,
    "iter_content": lambda response: b"".join(response.iter_content(100)),
    "iter_lines": lambda response: b"".join(response.iter_lines()),
    "iteration": b"".join,
    "raw.read": lambda response: response.raw.read(decode_content=True),
    "raw.read in parts": lambda response: b"".join(iter(lambda: response.raw.read(100, decode_content=True), b"")),
    "raw.read1": lambda response: b"".join(iter(lambda: response.raw.read1(100, decode_content=True), b"")),
    "raw lines": lambda response: b"".join(response.raw),
    "packed": lambda response: gzip.decompress(response.raw.read()),
    "packed in parts": lambda response: gzip.decompress(b"".join(iter(lambda: response.raw.read(100), b""))),
    "packed file": lambda response: gzip.GzipFile(fileobj=io.BytesIO(response.raw.read())).read(),
    "packed readinto": lambda response: gzip.decompress(into(response.raw)),
}


def into(raw: Any) -> bytes:
    found = b""
    while size := raw.readinto(buffer := bytearray(100)):
        found += buffer[:size]
    return found


@pytest.mark.parametrize("path, held", [("/product?asin=B1", 1), ("/product?asin=B1&chunked=1", 1), ("/token", 0)])
@pytest.mark.parametrize("how", READERS)
def test_however_a_stream_is_read_the_reader_gets_it_and_the_bucket_too(
    packing: tuple[str, list[str]], sync: KeepaSync, how: str, path: str, held: int
) -> None:
    """Decoded or as it came, whole or in parts: the body is read once, whole, and settled, be it at once."""
    base, _ = packing
    with session(sync) as client, client.get(base + path, stream=True, timeout=5) as response:
        assert sync.bucket.peek().held == held
        assert READERS[how](response) == BODY
        assert in_step(sync)


def test_a_stream_that_is_closed_early_gives_its_connection_back() -> None:
    """What the pool has lent comes back to it, so that a pool that blocks keeps nobody waiting."""
    with running("requests", initial=300) as world:
        client = world.client()
        for _ in range(2):
            client.stream("/product", asins(50), lambda response: response.raw.read(1))
        pools = client.native.get_adapter(world.server.url).poolmanager.pools
        assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118 - it can't be iterated
        assert world.bucket().held == 100


def test_no_request_is_sent_twice_on_one_hold(packing: tuple[str, list[str]], sync: KeepaSync) -> None:
    """The adapter retries nothing by itself, and takes no option to."""
    assert KeepaAdapter(sync).max_retries.total == 0
    retrying: dict[str, Any] = {"max_retries": 3}
    with pytest.raises(TypeError):
        KeepaAdapter(sync, **retrying)


def test_a_proxys_connections_add_the_key_too(packing: tuple[str, list[str]], sync: KeepaSync) -> None:
    """Through a proxy the key is in the request line alone, once, and the response's URL has none."""
    base, asked = packing
    with session(sync, api_key=KEY) as client:
        for _ in range(2):
            response = client.get(f"http://{HOST}:9/product?asin=B1", proxies={"http": base}, timeout=5)
            assert response.status_code == 200
            assert "key" not in response.url
    assert asked == [f"http://{HOST}:9/product?asin=B1&key={quote(KEY, safe='')}"] * 2


def test_a_key_is_not_added_to_connections_without_one(packing: tuple[str, list[str]], sync: KeepaSync) -> None:
    """Without api_key the request goes out as it is, also where it has no query."""
    base, asked = packing
    with session(sync) as client:
        client.get(base + "/product", timeout=5)
    with session(sync, api_key="k") as client:
        client.get(base + "/product", timeout=5)
    assert asked == ["/product", "/product?key=k"]


def test_a_body_that_can_be_sent_but_once_is_not_sent_again() -> None:
    """With retry_refused a request whose body is read from somewhere gets its 429 handed out."""
    with running("requests", initial=10) as world:
        client = world.client(retry_refused=True)
        client.get("/product", asins(1))
        world.fake.spend_outside(50)
        response = client.native.post(world.server.url + "/query", data=io.BytesIO(b"{}"), timeout=5)
        assert response.status_code == 429
        assert world.clock.slept == 0
