"""The fake server behind HTTP on the loopback interface, in real or accelerated time.

`python -m keepa_tokens.testing.fake_keepa --port 0 --speed 60` starts it: one server minute passes in a real second.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self, TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

from .clock import ScaledClock
from .fake_keepa import FakeKeepa, Response

LARGEST_BODY: Final = 10_000_000
POLL_SECONDS: Final = 0.05
LOOPBACK: Final = re.compile(r"localhost|127(?:\.\d{1,3}){3}", re.ASCII)

Request: TypeAlias = socket.socket | tuple[bytes, socket.socket]


class FakeKeepaServer:
    """Serve a `FakeKeepa` by HTTP/1.1 while the context is open; all its threads end with it.

    speed: how many server seconds pass in a real one; meanwhile the fake follows a `ScaledClock`, and latency passes
    in its time. None: the fake stays on its own clock. hang: real seconds after which a connection without an answer
    (a timeout fault) is closed.
    """

    def __init__(
        self, fake: FakeKeepa, port: int = 0, speed: float | None = 1.0, *, host: str = "127.0.0.1", hang: float = 30.0
    ) -> None:
        self.fake = fake
        self._address = (_loopback(host), port)
        self._speed = speed
        self._hang = hang
        self._own_clock = fake.clock
        self._http: _Http | None = None
        self._thread = threading.Thread()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._running().server_address[1])

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return f"http://{self._address[0]}:{self.port}"

    def _running(self) -> _Http:
        if self._http is None:
            raise RuntimeError("the server runs only inside its context")
        return self._http

    def __enter__(self) -> Self:
        self._http = _Http(self._address, self.fake, self._speed, self._hang)
        self._own_clock = self.fake.clock
        if self._speed is not None:
            self.fake.follow(ScaledClock(self._speed))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(POLL_SECONDS,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        http = self._running()
        http.shutdown()
        self._thread.join()
        http.end_connections()
        http.server_close()
        if self._speed is not None:
            self.fake.follow(self._own_clock)
        self._http = None


class _Http(ThreadingHTTPServer):
    """The listening socket, and the connections it has to end."""

    request_queue_size = 128
    daemon_threads = False  # so that `server_close` waits for them

    def __init__(self, address: tuple[str, int], fake: FakeKeepa, speed: float | None, hang: float) -> None:
        self.fake = fake
        self._speed = speed
        self._hang = hang
        self._ending = threading.Event()
        self._connections: set[Request] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Request, client_address: tuple[str, int]) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Request, client_address: tuple[str, int]) -> None:
        """Say nothing if the client has closed the connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in tuple(self._connections):
            with contextlib.suppress(OSError):  # the client may have been quicker
                cast("socket.socket", connection).shutdown(socket.SHUT_RDWR)
        self._ending.set()  # only now: a call whose latency is cut short must not be answered

    def pause(self) -> None:
        """Let the latency of one call pass."""
        seconds = self.fake.draw_latency()
        if self._speed is not None:
            self._ending.wait(seconds / self._speed)
        elif seconds > 0:  # an event loop's clock raises on a blocking sleep, even of 0 s
            self.fake.clock.sleep(seconds)

    def leave_hanging(self) -> None:
        """Keep a connection open without an answer, for the bounded time."""
        self._ending.wait(self._hang)


class _Handler(BaseHTTPRequestHandler):
    """One connection: HTTP in, the model's answer out."""

    protocol_version = "HTTP/1.1"
    server_version = "FakeKeepa"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one packet

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self.send_error(413)
            return
        body = self.rfile.read(int(length)).decode(errors="replace")
        if "form-urlencoded" in self.headers.get("Content-Type", ""):
            self._answer(dict(parse_qsl(body)))
        else:
            self._answer({"selection": body} if body else {})

    def _answer(self, posted: dict[str, str]) -> None:
        http = cast("_Http", self.server)
        asked = urlsplit(self.path)
        ticket = http.fake.begin(asked.path, posted | dict(parse_qsl(asked.query, keep_blank_values=True)))
        http.pause()
        try:
            response = http.fake.finish(ticket)
        except TimeoutError:
            http.leave_hanging()
            self.close_connection = True
        except ConnectionError:
            self.close_connection = True
        else:
            self._send(response)

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: each line would hold the API key, and a benchmark makes very many."""


def _loopback(host: str) -> str:
    """Return a host that is this machine's IPv4 loopback; ValueError for any other."""
    if not LOOPBACK.fullmatch(host):
        raise ValueError(f"host must be an IPv4 loopback address, not {host!r}")
    return host


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; print one line with the URL first."""
    options = vars(_parser().parse_args(arguments))
    place = {name: options.pop(name) for name in ("port", "speed", "host")}
    fake = FakeKeepa(epoch=time.time(), **options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with FakeKeepaServer(fake, **place) as server:
            sys.stdout.write(f"listening on {server.url}\n")
            sys.stdout.flush()
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fake_keepa", description="A fake Keepa server on the loopback interface.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="a loopback address")
    parser.add_argument("--refill-rate", type=int, default=5, help="tokens a minute")
    parser.add_argument("--speed", type=float, default=1.0, help="server seconds in a real one")
    parser.add_argument("--key", help="the only valid API key; without it any will do")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial", type=int, help="tokens at the start; a full bucket without it")
    parser.add_argument("--latency", type=float, default=0.0, help="server seconds a call takes")
    return parser
