"""The examples do what they say: each one's `main` runs against the fake server, with nothing changed but the host.

To add one: write a test that calls `load("its_name").main(...)`, and looks at what it printed and at what was charged.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from keepa_tokens.testing import FakeKeepa, FakeKeepaServer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HOST = "https://api.keepa.com"
KEY = "k" * 64
ASINS = [f"B{place:09d}" for place in range(300)]


def load(name: str) -> ModuleType:
    """Import an example by its name, without running it."""
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def send_to(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send whatever requests, aiohttp and httpx would send to Keepa to `base`."""
    sync_request: Any = requests.Session.request
    async_request: Any = aiohttp.ClientSession._request
    transport: Any = httpx.HTTPTransport.handle_request
    async_transport: Any = httpx.AsyncHTTPTransport.handle_async_request

    def moved(request: httpx.Request) -> httpx.Request:
        request.url = httpx.URL(str(request.url).replace(HOST, base))
        return request

    monkeypatch.setattr(
        requests.Session,
        "request",
        lambda self, method, url, **options: sync_request(self, method, url.replace(HOST, base), **options),
    )
    monkeypatch.setattr(
        aiohttp.ClientSession,
        "_request",
        lambda self, method, url, **options: async_request(self, method, str(url).replace(HOST, base), **options),
    )
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda self, request: transport(self, moved(request)))
    monkeypatch.setattr(
        httpx.AsyncHTTPTransport,
        "handle_async_request",
        lambda self, request: async_transport(self, moved(request)),
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeepa]:
    """Keepa as the examples meet it: a full bucket of 1200 tokens, and a key in the environment."""
    monkeypatch.setenv("KEEPA_KEY", KEY)
    fake = FakeKeepa(refill_rate=20, key=KEY)
    with FakeKeepaServer(fake) as server:
        send_to(server.url, monkeypatch)
        yield fake


def test_keepa_client(fake: FakeKeepa, capsys: pytest.CaptureFixture[str]) -> None:
    """300 products are three requests, and the bucket ends at what the server has left."""
    load("keepa_client").main(ASINS)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ASINS
    assert lines[-1] == f"{fake.balance} of 1200 tokens left"
    assert (fake.admitted, fake.spent, fake.token_calls) == (3, 300, 1)


def test_keepa_client_async(fake: FakeKeepa, capsys: pytest.CaptureFixture[str]) -> None:
    """300 products and the deals are four requests, two at a time, and the bucket ends at what the server has left."""
    asyncio.run(load("keepa_client_async").main(ASINS))

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == ASINS
    assert lines[-2:] == ["10 deals", f"{fake.balance} of 1200 tokens left"]
    assert (fake.admitted, fake.spent, fake.token_calls) == (4, 305, 1)
