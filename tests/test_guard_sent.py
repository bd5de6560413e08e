"""Whether a request can have reached the server: what certainly never did frees its tokens, in every guard alike.

The servers are real ones, on the loopback interface, and what goes wrong with them really does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx
import pytest
import trustme

from keepa_tokens.guards.httpx import KeepaTransport
from tests.odd_servers import Serve, listening, says, tls

from tests.http_guards import HOST, KEEPA_KINDS, KINDS, NETWORK_ERRORS, Kind, World, asins, running  # isort: skip

# A client that fails on its way to a connection leaves the socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

HELD: Final = 20
FULL: Final = {"timestamp": 1_780_000_000_000, "tokensLeft": 100, "refillIn": 5000, "refillRate": 5}

ERRORS: Final = (*NETWORK_ERRORS, OSError, ValueError)
"""The latter two are a client's own checks."""


def hangs_up(connection: socket.socket) -> None:
    """Say nothing at all."""


def never_answers(connection: socket.socket) -> None:
    """Read and say nothing until the client has gone."""
    while connection.recv(65536):
        pass


def interrupts_and_never_answers(connection: socket.socket) -> None:
    """Send this process a signal as soon as something has come, and say nothing."""
    connection.recv(65536)
    os.kill(os.getpid(), signal.SIGALRM)
    never_answers(connection)


read_and_go = says(b"")  # it may have been carried out
half_an_answer = says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
speaks_no_tls = says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
makes_no_sense = says(b"nonsense\r\n\r\n")
refuses_the_tunnel = says(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
PLAIN: Final = (hangs_up, never_answers, read_and_go, half_an_answer, speaks_no_tls, makes_no_sense, refuses_the_tunnel)
"""These need no authority."""


def get(
    world: World,
    url: str,
    *,
    timeout: float = 0.3,
    headers: dict[str, str] | None = None,
    proxy: str | None = None,
    certificates: str | None = None,
) -> None:
    """Ask for 20 products, of a hundred tokens."""
    world.sync.observe(FULL)
    client = world.client(proxy=proxy, certificates=certificates)
    client.patience = timeout
    client.get("/product", asins(HELD), base=url, headers=headers)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    which: Kind = request.param
    return which


@pytest.fixture
def world(kind: Kind) -> Iterator[World]:
    with running(kind) as world:
        yield world


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="module")
def tidied() -> Iterator[None]:
    """Collect the sockets that clients left, before another module's tests do."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


def secure(authority: trustme.CA, then: Serve = read_and_go, *, name: str = HOST, strict: bool = False) -> Serve:
    """Return a server that has a certificate for `name`. strict: it breaks the handshake off with who brings none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    if strict:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return tls(context, then)


def tunnel(authority: trustme.CA) -> Serve:
    """Return a proxy, and behind it a server that hangs up on the request."""
    return says(b"HTTP/1.1 200 OK\r\n\r\n", secure(authority))


@pytest.mark.parametrize(
    "where, serve, trusts, held",
    [
        # Broken off, hanging or answered in plain HTTP: without TLS nothing was sent.
        *(("https", serve, False, 0) for serve in (hangs_up, never_answers, speaks_no_tls)),
        # The client breaks the handshake off over the certificate; the server does, as it wants one.
        ("https", secure, False, 0),
        ("https", partial(secure, name="example.org"), True, 0),
        ("https", partial(secure, strict=True), True, 0),
        # It refuses, hangs, hangs up or babbles: the request would have gone through the tunnel, which there is not.
        *(("proxy", serve, False, 0) for serve in (refuses_the_tunnel, never_answers, read_and_go, makes_no_sense)),
        # The tunnel is there, and a server that read the request may have charged it, whatever became of the answer.
        ("proxy", tunnel, True, HELD),
        *(("http", serve, False, HELD) for serve in (read_and_go, half_an_answer, never_answers)),
        *(("https", partial(secure, then=serve), True, HELD) for serve in (read_and_go, half_an_answer, never_answers)),
    ],
)
def test_only_what_certainly_never_reached_the_server_frees_its_tokens(
    world: World, authority: trustme.CA, certificates: str, where: str, serve: Any, trusts: bool, held: int
) -> None:
    """Whatever the client calls its error: what can't have been charged is free, all else stays held."""
    made = serve if serve in PLAIN else serve(authority)
    with listening(made) as port, pytest.raises(ERRORS):
        get(
            world,
            f"https://{HOST}:9" if where == "proxy" else f"{where}://{HOST}:{port}",
            proxy=f"http://{HOST}:{port}" if where == "proxy" else None,
            certificates=certificates if trusts else None,
        )
    assert world.bucket().held == held


@pytest.mark.parametrize("proxied", [True, False])
def test_where_nobody_listens_the_tokens_are_free_again(world: World, proxied: bool) -> None:
    """For the server or for a proxy: no connection was made, so nothing was sent."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    proxy = f"http://{HOST}:{port}" if proxied else None
    with pytest.raises(ERRORS):
        get(world, f"https://{HOST}:9" if proxied else f"http://{HOST}:{port}", proxy=proxy)
    assert world.bucket().held == 0


def test_a_full_queue_of_connections_frees_the_tokens(world: World) -> None:
    """A server that accepts no connection in time was sent nothing."""
    with socket.create_server((HOST, 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        with pytest.raises(ERRORS):
            get(world, f"https://{HOST}:{listener.getsockname()[1]}")
        for each in waiting:
            each.close()
    assert world.bucket().held == 0


def test_a_timeout_of_nothing_frees_the_tokens(world: World) -> None:
    """`timeout=0.0` never gets as far as a connection; aiohttp takes it for none at all, so it is left out here."""
    if world.kind == "keepa-async":
        return
    with listening(never_answers) as port:
        for _ in range(3):
            with pytest.raises(ERRORS):
                get(world, f"http://{HOST}:{port}", timeout=0.0)
    assert world.bucket().held == 0


@pytest.mark.parametrize("header", ["a\nb", "a\r\nX: b", "\N{SNOWMAN}"])
def test_a_header_that_can_not_be_sent_frees_the_tokens(world: World, header: str) -> None:
    """A header with a line break, or with what no header may have, is refused before it is written."""
    if world.kind.startswith("keepa"):
        return  # it takes no headers
    with listening(never_answers) as port, pytest.raises(ERRORS):
        get(world, f"http://{HOST}:{port}", headers={"X-Note": header})
    assert world.bucket().held == 0


class TimeIsUp(Exception):
    """As Celery's SoftTimeLimitExceeded: raised by a signal, in the middle of anything."""


@contextmanager
def interrupted(kind: str) -> Iterator[type[BaseException]]:
    """Let a signal interrupt what is done inside: it strikes a blocking client, an async one is cancelled by it."""

    def limit(*_: object) -> None:
        if kind.endswith("async"):
            for task in asyncio.all_tasks():
                task.get_loop().call_soon_threadsafe(task.cancel)  # a loop that waits is not woken by a signal
        else:
            raise TimeIsUp

    before = signal.signal(signal.SIGALRM, limit)
    try:
        yield asyncio.CancelledError if kind.endswith("async") else TimeIsUp
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("scheme, held", [("https", 0), ("http", HELD)])
def test_an_interrupt_passes_through_and_frees_the_tokens_without_a_connection(
    world: World, scheme: str, held: int
) -> None:
    """A time limit and a cancellation, in the handshake: nothing stays held. While the server works: nobody knows."""
    serve = interrupts_and_never_answers
    with listening(serve) as port, interrupted(world.kind) as interrupt, pytest.raises(interrupt):
        get(world, f"{scheme}://{HOST}:{port}", timeout=5)
    assert world.bucket().held == held


@pytest.mark.parametrize("kind", ["requests", "keepa"], indirect=True)
def test_missing_certificates_free_the_tokens(world: World) -> None:
    """Requests looks for the file only when it is to send; the other clients when they are made."""
    with pytest.raises(OSError, match="certificate bundle"):
        get(world, f"https://{HOST}:9", certificates="/there/is/no.pem")
    assert world.bucket().held == 0


@pytest.mark.parametrize("kind", ["keepa-async"], indirect=True)
def test_a_second_try_that_finds_nobody_may_have_been_sent_the_first_time(world: World) -> None:
    """Aiohttp sends a GET again by itself after a broken connection: that nobody listens then frees nothing."""
    with socket.create_server((HOST, 0)) as listener:

        def once() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            listener.close()
            connection.close()

        thread = threading.Thread(target=once)
        thread.start()
        with pytest.raises(aiohttp.ClientError):
            get(world, f"http://{HOST}:{listener.getsockname()[1]}")
        thread.join(10)
    assert world.bucket().held == HELD


@pytest.mark.parametrize("kind", KEEPA_KINDS, indirect=True)
def test_a_redirect_to_where_nobody_listens_was_sent(world: World) -> None:
    """The clients follow it by themselves: the server has had the request, so nobody knows what it cost."""
    away = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with listening(says(away)) as port, pytest.raises(NETWORK_ERRORS):
        get(world, f"http://{HOST}:{port}")
    assert world.bucket().held == HELD


def an_error_while_another_was_handled() -> None:
    error = httpx.ReadError("gone while reading")
    error.__context__ = httpx.ConnectError("no connection")  # as where it is raised in an `except`
    raise error


@pytest.mark.parametrize("kind", ["httpx"], indirect=True)
@pytest.mark.parametrize("fails", [an_error_while_another_was_handled, b"\xff".decode])
def test_what_was_handled_before_and_what_comes_of_reading_an_answer_decide_nothing(
    world: World, fails: Callable[[], Any]
) -> None:
    """The second try's broken answer counts, not the first one's connection, and only a client's own checks."""
    world.sync.observe(FULL)
    client = httpx.Client(transport=KeepaTransport(world.sync, httpx.MockTransport(lambda request: fails())))
    with client, pytest.raises((httpx.ReadError, UnicodeDecodeError)):
        client.get("https://api.keepa.com/product?asin=B1")
    assert world.bucket().held == 1
