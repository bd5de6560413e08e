"""The ready probes, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
import trustme

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    ConfigError,
    KeepaSync,
    NotEnoughTokens,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.guards.httpx import KeepaTransport
from keepa_tokens.keepa.probe import _Deadline, async_http_probe, http_probe
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer
from tests.odd_servers import answers, listening, says, tls

from tests.http_guards import HOST, shown  # isort: skip

KEY = "a-secret-key-0123456789-abcdefghij"


def told(waits: bool, key: str = KEY, **options: Any) -> tuple[int, Mapping[str, object] | None]:
    """Ask by the blocking probe or by the other one."""

    async def ask() -> tuple[int, Mapping[str, object] | None]:
        # A client of its own for each probe: nothing is left open.
        return await async_http_probe(key, **options)()

    return http_probe(key, **options)() if waits else asyncio.run(ask())


@pytest.mark.parametrize("waits", [True, False])
def test_the_probes_ask_token_with_the_key_and_return_the_envelope(waits: bool) -> None:
    """Sync and async: status 200 and the envelope that the server made, for the key that it knows."""
    with FakeKeepaServer(FakeKeepa(initial=-31, key=KEY)) as server:
        status, body = told(waits, base_url=server.url)
        assert (status, body and body["tokensLeft"], server.fake.token_calls) == (200, -31, 1)
        assert told(waits, "another", base_url=server.url)[0] == 400


def test_a_body_that_is_no_json_object_is_none() -> None:
    """A proxy's page, an empty body: the status, and no body."""
    with FakeKeepaServer(FakeKeepa()) as server:
        probe = http_probe(KEY, base_url=server.url)
        for kind in ("html", "empty"):
            server.fake.fail_next(1, kind)
            assert probe()[1] is None
    answers = iter(["[1, 2]", "null"])
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=next(answers)))
    for _ in range(2):
        assert http_probe(KEY, transport=transport)() == (200, None)


def test_keepa_sync_probes_over_http_and_a_dead_server_is_a_failed_probe() -> None:
    """The first request asks over HTTP; with nobody listening it is refused, and nothing is raised but the refusal."""
    with FakeKeepaServer(FakeKeepa(initial=7, key=KEY)) as server:
        sync = KeepaSync(TokenBucket(keepa_quota()), probe=http_probe(KEY, base_url=server.url))
        with sync.try_request(3):
            assert sync.bucket.peek().balance == 7
        url = server.url
        twin = AsyncKeepaSync(AsyncTokenBucket(keepa_quota()), probe=async_http_probe(KEY, base_url=url))
        assert asyncio.run(_balance(twin)) == 7
    with pytest.raises(NotEnoughTokens):
        KeepaSync(TokenBucket(keepa_quota()), probe=http_probe(KEY, base_url=url)).try_request(1)


async def _balance(sync: AsyncKeepaSync) -> int | None:
    return (await sync.refresh()).balance


def test_from_key_probes_if_httpx_is_there_and_scouts_if_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without httpx the first request goes ahead as the scout; with it the adapter has a probe. Neither asks yet."""
    for make in (KeepaSync.from_key, AsyncKeepaSync.from_key):
        assert vars(make(KEY))["_probe"] is not None
    monkeypatch.setitem(sys.modules, "keepa_tokens.keepa.probe", None)
    sync = KeepaSync.from_key(KEY)
    assert sync.try_request(1).decision.probe
    assert vars(AsyncKeepaSync.from_key(KEY))["_probe"] is None


# --- either library


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_either_library_will_do(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With only one of httpx and httpx2 installed it is the one used; a transport brought along says which."""
    from keepa_tokens.keepa import probe as module

    def answer(request: Any) -> Any:
        assert isinstance(request, library.Request)
        assert request.url.params["key"] == KEY
        return library.Response(200, json={"tokensLeft": 3})

    for waits in (True, False):
        assert told(waits, transport=library.MockTransport(answer)) == (200, {"tokensLeft": 3})
    monkeypatch.setattr(module, "find_spec", lambda name: name == library.__name__)
    with FakeKeepaServer(FakeKeepa(initial=7, key=KEY)) as server:
        probe = http_probe(KEY, base_url=server.url)
        assert vars(probe)["_http"] is library
        status, body = probe()
        assert (status, body and body["tokensLeft"]) == (200, 7)


# --- how long it takes


def drips(connection: socket.socket) -> None:
    """Answer a byte at a time, as if it would never end."""
    connection.recv(4096)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Slow: " + b"x" * 10_000:
        threading.Event().wait(0.05)
        connection.sendall(bytes((byte,)))


@contextmanager
def dripping() -> Iterator[str]:
    with listening(drips) as port:
        yield f"http://{HOST}:{port}"


@pytest.mark.parametrize("waits", [True, False])
def test_a_probe_ends_in_time_however_slowly_the_server_answers(waits: bool) -> None:
    """A byte now and then keeps no probe going: it ends after its `timeout` in all."""
    with dripping() as url:
        begun = time.monotonic()
        twin = async_http_probe(KEY, base_url=url)
        with pytest.raises(TimeoutError):
            _ = http_probe(KEY, base_url=url)(timeout=0.4) if waits else asyncio.run(twin(timeout=0.4))
        assert 0.3 < time.monotonic() - begun < 3.0


@pytest.mark.parametrize(
    "given, waits_s", [({}, 10), ({"timeout": None}, 10), ({"timeout": 60}, 10), ({"timeout": 2}, 2)]
)
def test_each_wait_of_a_connection_is_cut_to_what_is_left(given: dict[str, Any], waits_s: int) -> None:
    """Its client names the time of a wait, gives it by its place, or leaves it out."""
    stream: Any = SimpleNamespace(
        read=lambda _, timeout=None: timeout, start_tls=lambda _context, _host=None, timeout=None: timeout
    )
    _Deadline(10).watch("connection.connect_tcp.complete", {"return_value": stream})
    for told in (stream.read(5, **given), stream.read(5, *given.values()), stream.start_tls("", "", *given.values())):
        assert told == pytest.approx(waits_s, abs=1)
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        _Deadline(0).watch("http11.receive_response_body.started", {})


def test_who_waits_a_second_is_done_after_a_second_though_token_hangs() -> None:
    """The probe is given what is left of its caller's timeout; with none the request is the scout, at once."""
    with dripping() as url:
        sync = KeepaSync(TokenBucket(keepa_quota()), probe=http_probe(KEY, base_url=url))
        begun = time.monotonic()
        with pytest.raises(NotEnoughTokens):
            sync.request(5, timeout=1)
        assert 0.9 < time.monotonic() - begun < 4.0
    with dripping() as url:
        sync = KeepaSync(TokenBucket(keepa_quota()), probe=http_probe(KEY, base_url=url))
        begun = time.monotonic()
        assert sync.request(5, timeout=0).decision.probe
        assert time.monotonic() - begun < 0.5


# --- the environment


@contextmanager
def proxy(context: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """Run a proxy for http that answers by itself, by TLS with a `context`, and list what it was asked for."""
    asked: list[str] = []
    serve = answers(asked, lambda _: b'Content-Length: 18\r\n\r\n{"tokensLeft": 12}')
    with listening(serve if context is None else tls(context, serve)) as port:
        yield f"{HOST}:{port}", asked


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_the_environments_proxy_is_used(name: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the client itself finds it; and not for hosts that NO_PROXY names."""
    for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with proxy() as (address, asked), FakeKeepaServer(FakeKeepa(initial=3, key=KEY)) as server:
        monkeypatch.setenv(name, f"http://{address}" if waits else address)
        assert told(waits, base_url="http://keepa.invalid") == (200, {"tokensLeft": 12})
        assert asked == [f"http://keepa.invalid/token?key={KEY}"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        told(waits, base_url=server.url)
        assert (len(asked), server.fake.token_calls) == (1, 1)


@pytest.mark.parametrize("proxy", ["http://me:hunter2/x@127.0.0.1:1", "me:hunter2#@127.0.0.1:1", "http://h:hunter2"])
def test_a_proxy_that_can_not_be_read_is_told_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A special character in its password tears the URL apart: a ConfigError says what to do, and shows none of it."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.delenv("https_proxy", raising=False)
    with httpx.Client(transport=KeepaTransport(KeepaSync(TokenBucket(keepa_quota())))) as client:
        asks: list[Callable[[], object]] = [
            http_probe(KEY),
            lambda: client.get("https://api.keepa.com/product?asin=B1"),
        ]
        for ask in asks:
            with pytest.raises(ConfigError, match="percent codes") as refused:
                ask()
            assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("waits", [True, False])
def test_a_server_whose_authority_the_environment_names_is_trusted(
    waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's own authority in SSL_CERT_FILE: the door of an API key learns the balance, and without it doesn't."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def balance(url: str) -> int | None:
        if waits:
            return KeepaSync.from_key(KEY, base_url=url).refresh().balance

        async def told() -> int | None:
            return (await AsyncKeepaSync.from_key(KEY, base_url=url).refresh()).balance

        return asyncio.run(told())

    with proxy(context) as (address, _):
        assert balance(f"https://{address}") is None
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert balance(f"https://{address}") == 12


@pytest.mark.parametrize("waits", [True, False])
def test_a_probe_goes_by_https_through_a_proxy(waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy opens a tunnel, the server behind it is asked by TLS."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("keepa.invalid").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for name in ("HTTPS_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    behind = tls(context, answers([], lambda _: b'Content-Length: 18\r\n\r\n{"tokensLeft": 12}'))
    with listening(says(b"HTTP/1.1 200 OK\r\n\r\n", behind)) as port:
        monkeypatch.setenv("https_proxy", f"http://{HOST}:{port}")
        assert told(waits, base_url="https://keepa.invalid") == (200, {"tokensLeft": 12})


@pytest.mark.parametrize("waits", [True, False])
def test_an_error_hides_nothing_that_has_the_key(waits: bool) -> None:
    """No frame below and no error behind it: there the keyed URL would stand."""
    with pytest.raises(httpx.HTTPError) as caught:
        told(waits, base_url="http://127.0.0.1:1")
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert KEY not in shown(error)


def test_a_time_limit_that_strikes_in_a_probe_is_no_failed_probe() -> None:
    """A signal handler's exception comes out as it is, whatever the client makes of it."""

    def strike(*_: object) -> None:
        raise ZeroDivisionError

    def answer(_: httpx.Request) -> httpx.Response:
        try:
            signal.raise_signal(signal.SIGUSR1)
        except ZeroDivisionError as error:
            raise httpx.ReadError("broken off") from error
        return httpx.Response(200)

    probe = http_probe(KEY, transport=httpx.MockTransport(answer))
    before = signal.signal(signal.SIGUSR1, strike)
    try:
        with pytest.raises(ZeroDivisionError):
            KeepaSync(TokenBucket(keepa_quota()), probe=probe).refresh()
    finally:
        signal.signal(signal.SIGUSR1, before)
