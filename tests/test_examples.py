"""The examples do what they say: each one's `main` runs against the fake server, with nothing changed but the host.

To add one: write a test that calls `load("its_name").main(...)`, and looks at what it printed and at what was charged.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import pytest
from prometheus_client import CollectorRegistry
from requests.adapters import HTTPAdapter

from keepa_tokens.testing import FakeKeepa, FakeKeepaServer
from tests.celery_worker import MARKS, PATIENCE, embedded
from tests.servers import running

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HOST = "https://api.keepa.com"
KEY = "k" * 64
ASINS = [f"B{place:09d}" for place in range(300)]


def load(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def send_to(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send what httpx, requests and aiohttp would send to Keepa to `base`, below the guards."""
    sync_transport: Any = httpx.HTTPTransport.handle_request
    async_transport: Any = httpx.AsyncHTTPTransport.handle_async_request
    adapter: Any = HTTPAdapter.send
    session: Any = aiohttp.ClientSession._request

    def moved(request: Any) -> Any:
        request.url = type(request.url)(str(request.url).replace(HOST, base))
        return request

    def handle(self: Any, request: Any) -> Any:
        return sync_transport(self, moved(request))

    async def ahandle(self: Any, request: Any) -> Any:
        return await async_transport(self, moved(request))

    def send(self: Any, request: Any, *args: Any, **options: Any) -> Any:
        return adapter(self, moved(request.copy()), *args, **options)

    def ask(self: Any, method: str, url: Any, **options: Any) -> Any:
        return session(self, method, str(url).replace(HOST, base), **options)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", ahandle)
    monkeypatch.setattr(HTTPAdapter, "send", send)
    monkeypatch.setattr(aiohttp.ClientSession, "_request", ask)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeepa]:
    """Keepa as the examples meet it: a full bucket of 1200 tokens, and a key in the environment."""
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    fake = FakeKeepa(refill_rate=20, key=KEY)
    with FakeKeepaServer(fake) as server:
        send_to(server.url, monkeypatch)
        yield fake


@pytest.mark.parametrize(
    "name, asins, more, requests, spent",
    [
        ("keepa_client", ASINS, [], 3, 300),
        ("keepa_client_async", ASINS, ["10 deals"], 4, 305),  # two at a time
        ("requests_client", ASINS[:120], [], 2, 120),
    ],
)
def test_a_client(
    fake: FakeKeepa,
    capsys: pytest.CaptureFixture[str],
    name: str,
    asins: list[str],
    more: list[str],
    requests: int,
    spent: int,
) -> None:
    """Each hundred products is a request, and the bucket ends at what the server has left."""
    if (coroutine := load(name).main(asins)) is not None:
        asyncio.run(coroutine)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(asins)]] == asins
    assert lines[len(asins) :] == [*more, f"{fake.balance} of 1200 tokens left"]
    assert (fake.admitted, fake.spent, fake.token_calls) == (requests, spent, 1)


def test_httpx_client(fake: FakeKeepa, capsys: pytest.CaptureFixture[str]) -> None:
    """Three products with offers are printed with what they cost, and the bucket ends at what the server has left."""
    load("httpx_client").main(ASINS[:3])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ASINS[:3]
    assert sum(int(line.split()[-2]) for line in lines[:-1]) == fake.spent
    assert lines[-1] == f"{fake.balance} of 1200 tokens left"
    assert (fake.admitted, fake.token_calls) == (3, 1)


def test_fifty_workers(fake: FakeKeepa, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty workers look each product up once, several at a time, and the bucket ends at what the server has left."""
    crowd = threading.Event()

    def until_six_are_there() -> float:
        if fake.in_flight > 5:
            crowd.set()
        assert not fake.admitted or crowd.wait(PATIENCE)  # the probe before them is alone
        return 0.0

    monkeypatch.setattr(fake, "draw_latency", until_six_are_there)

    asyncio.run(load("fifty_workers").main(ASINS[:120]))

    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines[:-1]) == ASINS[:120]
    assert lines[-1] == f"{fake.balance} of 1200 tokens left"
    assert (fake.admitted, fake.spent, fake.refused, fake.token_calls) == (120, 120, 0, 1)
    assert crowd.is_set()


def test_prometheus_metrics(fake: FakeKeepa, capsys: pytest.CaptureFixture[str]) -> None:
    """The metrics tell calls, the server's balance and what somebody else spent, the bucket named by a digest."""
    others = [7, 0, 0]  # what another program spends while each call is out, the last one first
    fake.cost = lambda path, params: fake.spend_outside(others.pop()) if path == "/product" else None
    load("prometheus_metrics").main(ASINS[:3], CollectorRegistry())

    lines = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name.partition("{")[0]: float(value) for name, value in lines.items()}.items() >= {
        "keepa_tokens_grants_total": 3,
        "keepa_tokens_settled_total": 3,
        "keepa_tokens_probes_total": 1,
        "keepa_tokens_balance": fake.balance,
        "keepa_tokens_drift": -7,
    }.items()
    assert [float(value) for name, value in lines.items() if 'direction="less"' in name] == [7]
    assert all('bucket="keepa-' in name for name in lines)
    assert KEY not in "".join(lines)


class TestCelery:
    """In a class for its marks."""

    pytestmark = MARKS

    def test_celery_tasks(
        self, fake: FakeKeepa, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A real worker looks five products up for the one who sent the tasks, the bucket in the broker's Redis."""
        with running("valkey") as server:
            monkeypatch.setenv("REDIS_URL", server.url)
            example = load("celery_tasks")
            with embedded(example.app):
                example.main(ASINS[:5])
            example.client.close()
            example.sync.bucket.storage.close()
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][-5:] == ASINS[:5]
        assert (fake.spent, fake.token_calls) == (5, 1)
