"""Small servers on the loopback interface that do exactly one thing with each connection."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.http_guards import HOST

Serve = Callable[[socket.socket], None]


@contextmanager
def listening(serve: Serve) -> Iterator[int]:
    """Run a server that does one thing with each connection; its port."""
    with socket.create_server((HOST, 0)) as listener:
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    if not ended.is_set():
                        serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        socket.create_connection((HOST, listener.getsockname()[1])).close()
        thread.join(10)


def tls(context: ssl.SSLContext, then: Serve) -> Serve:
    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            then(secure)

    return serve


def says(answer: bytes, then: Serve = lambda connection: None) -> Serve:
    """Return a server that reads a request and answers so, whatever was asked, and then does something else."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)
        then(connection)

    return serve


def answers(asked: list[str], answer: Callable[[str], bytes]) -> Serve:
    """Return a server that notes what it is asked for, and answers with these headers, an empty line and a body."""

    def serve(connection: socket.socket) -> None:
        asked.append(connection.recv(65536).split(b" ")[1].decode())
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + answer(asked[-1]))

    return serve
