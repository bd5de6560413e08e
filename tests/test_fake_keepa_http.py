"""The fake server by real HTTP on the loopback interface, read by httpx and by the real `keepa` client."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock
from keepa_tokens.testing.fake_server import main
from tests.servers import wait_until
from tests.test_examples import send_to

KEY = "k" * 64


@pytest.fixture
def fake() -> FakeKeepa:
    return FakeKeepa(refill_rate=20, key=KEY)


@pytest.fixture
def server(fake: FakeKeepa) -> Iterator[FakeKeepaServer]:
    with FakeKeepaServer(fake) as running:
        yield running


@pytest.fixture
def client(server: FakeKeepaServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, params={"key": KEY}, timeout=5) as opened:
        yield opened


DEEP = "[" * 20_000


@pytest.mark.parametrize(
    "path, params, status",
    [
        ("/product", {"asin": "B000000001", "offers": "1" + "0" * 22}, 400),
        ("/product", {"asin": "B000000001", "offers": "9" * 5000}, 400),
        ("/product", {"asin": "B000000001", "offers": "1e22", "domain": "9" * 5000}, 200),
        ("/product", {"code": "1", "code-limit": "9" * 30}, 200),
        ("/query", {"selection": DEEP}, 400),
        ("/deal", {"selection": DEEP}, 400),
        ("/tracking", {"type": "add", "selection": DEEP}, 400),
        ("/query", {"selection": '{"perPage": 1' + "0" * 30 + "}"}, 200),
        ("/query", {"selection": '{"perPage": -1000000000}'}, 200),
        ("/category", {"category": "9" * 5000}, 200),
        ("/search", {"term": "x", "page": "9" * 30}, 200),
    ],
)
def test_what_no_client_would_send_is_answered(
    client: httpx.Client,
    fake: FakeKeepa,
    capsys: pytest.CaptureFixture[str],
    path: str,
    params: dict[str, str],
    status: int,
) -> None:
    """Numbers beyond all reason and a selection nested thousands deep are answered at once, and nothing breaks."""
    assert client.get(path, params=params).status_code == status
    assert 0 <= fake.spent <= 50
    assert client.get("/token").status_code == 200
    assert capsys.readouterr().err == ""


def test_answers_go_over_the_wire_as_they_are(client: httpx.Client, fake: FakeKeepa) -> None:
    """Status, JSON, PNG and errors arrive as the model makes them, over one connection that is kept alive."""
    token = client.get("/token")
    assert (token.status_code, token.json()["tokensLeft"], token.http_version) == (200, 1200, "HTTP/1.1")
    product = client.get("/product/", params={"key": KEY, "asin": "B000000001,B000000002", "domain": 1})
    assert [each["asin"] for each in product.json()["products"]] == ["B000000001", "B000000002"]
    assert product.headers["content-type"].startswith("application/json")
    image = client.get("/graphimage", params={"key": KEY, "asin": "B000000001"})
    assert image.content.startswith(b"\x89PNG")
    assert client.get("/nonsense").status_code == 404
    assert client.get("/token", params={"key": "wrong"}).json()["refillRate"] == 0
    assert len([each for each in threading.enumerate() if "process_request" in each.name]) == 1
    assert fake.spent == 3


def test_posts_are_read(client: httpx.Client, fake: FakeKeepa) -> None:
    """A query may come as a JSON body or as a form, and a tracking list as JSON."""
    assert client.post("/query", json={"perPage": 200}).json()["tokensConsumed"] == 12
    assert client.post("/query", data={"selection": '{"perPage": 200}'}).json()["tokensConsumed"] == 12
    added = client.post("/tracking", params={"key": KEY, "type": "add"}, json=[{"asin": "B1"}, {"asin": "B2"}])
    assert added.json()["tokensConsumed"] == 2
    assert fake.spent == 26


def test_refusals_and_faulty_answers_arrive(client: httpx.Client, fake: FakeKeepa) -> None:
    """A 429, a proxy's page and an empty body are what a client really gets to see."""
    fake.fail_next(1, "html")
    page = client.get("/product", params={"key": KEY, "asin": "B1"})
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html")
    fake.fail_next(1, "empty")
    assert client.get("/product", params={"key": KEY, "asin": "B1"}).content == b""
    fake.spend_outside(2000)
    refused = client.get("/product", params={"key": KEY, "asin": "B1"})
    assert (refused.status_code, refused.json()["tokensLeft"]) == (429, -801)


def test_a_disconnect_breaks_the_connection(client: httpx.Client, fake: FakeKeepa) -> None:
    """A disconnect closes the connection without an answer, after the charge, and the next call opens a new one."""
    fake.fail_next(1, "disconnect_charged")
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/product", params={"key": KEY, "asin": "B1"})
    assert fake.spent == 1
    assert client.get("/token").status_code == 200


def test_a_timeout_holds_the_connection(client: httpx.Client, fake: FakeKeepa) -> None:
    """A timeout fault leaves the client waiting until its own limit, after the charge."""
    fake.fail_next(1, "timeout_charged")
    with pytest.raises(httpx.ReadTimeout):
        client.get("/product", params={"key": KEY, "asin": "B1"}, timeout=httpx.Timeout(5, read=0.1))
    wait_until("the call is charged", lambda: fake.spent == 1)


def test_a_held_connection_is_closed_in_the_end(fake: FakeKeepa) -> None:
    """The wait of a timeout fault is bounded: a client without a limit of its own gets a closed connection."""
    fake.fail_next(1, "timeout_uncharged")
    with FakeKeepaServer(fake, hang=0.05) as server, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{server.url}/token", params={"key": KEY}, timeout=5)


def test_calls_in_flight_overlap(fake: FakeKeepa) -> None:
    """Eight calls at once are all admitted on one token, for each takes its time, and one server second is 1/60 s."""
    fake.spend_outside(1199)
    fake.latency = 24.0
    with FakeKeepaServer(fake, speed=60.0) as server, httpx.Client(timeout=5) as client, ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        answers = list(pool.map(client.get, [f"{server.url}/product?key={KEY}&asin=B1"] * 8))
        assert 0.4 <= time.monotonic() - started < 4
    assert {answer.status_code for answer in answers} == {200}
    assert min(answer.json()["tokensLeft"] for answer in answers) <= -7 + fake.minted


def test_accelerated_time_refills(fake: FakeKeepa) -> None:
    """At a speed of 6,000 a server minute passes in ten milliseconds, in the refill and in the timestamp."""
    fake.spend_outside(1200)
    with (
        FakeKeepaServer(fake, speed=6000.0) as server,
        httpx.Client(base_url=server.url, params={"key": KEY}) as client,
    ):
        before = client.get("/token").json()
        fake.clock.sleep(180.0)
        after = client.get("/token").json()
    assert after["tokensLeft"] >= before["tokensLeft"] + 40
    assert after["timestamp"] - before["timestamp"] >= 180_000


def test_the_fake_can_stay_on_its_own_clock() -> None:
    """With speed None a test moves the server's time by hand; otherwise the own clock is back after the context."""
    clock = ManualClock()
    fake = FakeKeepa(clock=clock, initial=0)
    with FakeKeepaServer(fake, speed=None) as server:
        clock.advance(fake.refill_in)
        assert httpx.get(f"{server.url}/token").json()["tokensLeft"] == 5
    with FakeKeepaServer(fake):
        assert fake.clock is not clock
    assert fake.clock is clock


def test_no_thread_outlives_the_context(fake: FakeKeepa) -> None:
    """Leaving the context ends idle connections, latencies and held connections at once, and all threads."""
    before = set(threading.enumerate())
    fake.fail_next(1, "timeout_charged", path="/query")
    with httpx.Client(params={"key": KEY}, timeout=5) as client, ThreadPoolExecutor(2) as pool:
        with FakeKeepaServer(fake) as server:
            client.get(f"{server.url}/token")
            fake.latency = 3600.0
            slow = [pool.submit(client.get, f"{server.url}{path}") for path in ("/query", "/deal")]
            while fake.in_flight < 2:
                threading.Event().wait(0.005)
            started = time.monotonic()
        assert time.monotonic() - started < 2
        for call in slow:
            assert isinstance(call.exception(), httpx.TransportError)
    assert set(threading.enumerate()) <= before
    with pytest.raises(RuntimeError, match="context"):
        _ = server.url


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.org", "::1", ""])
def test_only_the_loopback_is_served(host: str, fake: FakeKeepa, capsys: pytest.CaptureFixture[str]) -> None:
    """The server can't be opened to a network, neither in code nor on the command line."""
    with pytest.raises(ValueError, match="loopback"):
        FakeKeepaServer(fake, host=host)
    with pytest.raises(SystemExit):
        main(["--host", host])
    assert "loopback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_ends_cleanly(number: signal.Signals) -> None:
    """The command prints one line with its address, serves with its options, and ends with status 0 on a signal."""
    command = [sys.executable, "-m", "keepa_tokens.testing.fake_keepa"]
    options = ["--port", "0", "--speed", "60", "--refill-rate", "20", "--initial", "7", "--key", "secret"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert found is not None
        body = httpx.get(f"{found[1]}/token", params={"key": "secret"}).json()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
    assert (body["refillRate"], body["tokenFlowReduction"]) == (20, 0.0)
    assert abs(body["timestamp"] / 1000 - time.time()) < 3600


def test_the_real_keepa_client_reads_the_answers(
    server: FakeKeepaServer, fake: FakeKeepa, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client parses products with and without history, stats and offers, and all else, sync and async."""
    import keepa

    send_to(server.url, monkeypatch)
    api = keepa.Keepa(KEY, timeout=5)
    asins = ["B000000001", "B000000002"]
    options: dict[str, Any] = {"progress_bar": False, "wait": False}

    plain: Any = api.query(asins, history=False, **options)
    assert [each["asin"] for each in plain] == asins
    assert api.tokens_left == 1198
    full: Any = api.query(asins[0], stats=90, offers=20, rating=True, buybox=True, **options)
    assert full[0]["data"]["NEW"][-1] == full[0]["stats_parsed"]["current"]["NEW"]
    typed: Any = api.query(asins, typed=True, stats=90, offers=20, **options)
    assert typed[0].asin == asins[0]
    assert api.query("4006381333931", product_code_is_asin=False, history=False, **options)

    assert len(api.product_finder({"author": "x"}, wait=False)) == 50
    assert api.deals({"page": 0}, wait=False)
    best: Any = api.best_sellers_query("281052", wait=False)
    assert len(best) == 50
    assert list(api.seller_query(["A1", "A2"], wait=False)) == ["A1", "A2"]
    assert api.seller_query("A1", storefront=True, update=0, typed=True, wait=False)
    assert api.search_for_categories("books", wait=False)
    assert list(api.category_lookup(281052, wait=False)) == ["281052"]
    image = tmp_path / "graph.png"
    api.download_graph_image(asins[0], image, wait=False)
    assert image.stat().st_size > 50
    assert api.tokens_left == fake.balance + 1  # the image has no envelope

    async def main() -> None:
        api = await keepa.AsyncKeepa.create(KEY, timeout=5)
        products: Any = await api.query(asins, history=False, **options)
        assert [each["asin"] for each in products] == asins
        assert api.tokens_left == fake.balance
        assert len(await api.product_finder({"author": "x"}, wait=False)) == 50

    asyncio.run(main())

    fake.spend_outside(2000)
    with pytest.raises(RuntimeError, match="NOT_ENOUGH_TOKEN"):
        api.query(asins, history=False, **options)
    assert api.tokens_left == fake.balance < 0
