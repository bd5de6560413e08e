"""TLS and users by URL. Only Debian's server speaks TLS; users are on every one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import quote

import pytest
import redis
import trustme

from keepa_tokens import ConfigError, Quota, Reading, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Command, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.common import NOW, PLAIN, SECOND
from tests.redis.conftest import KINDS
from tests.redis.flavours import FLAVOURS, Flavour, Opened
from tests.servers import HOST, SYSTEM, Server, free_port, running

PASSWORD = "s3cr/t:@?#"
LOGIN = f"worker:{quote(PASSWORD, safe='')}@"


@dataclass(frozen=True)
class Secured:
    """A server that speaks TLS, and a folder with certificates: by whom to trust, by a stranger, and a client's."""

    server: Server
    port: int
    folder: Path

    def url(self, trusted: str = "", login: str = "") -> str:
        """Return its address for those who trust in a certificate of the folder."""
        mine = self.folder / "worker.pem"
        options = f"&ssl_ca_certs={self.folder / trusted}" if trusted else ""
        return f"rediss://{login}{HOST}:{self.port}?ssl_certfile={mine}&ssl_keyfile={mine}{options}"


@pytest.fixture(scope="module", params=["no", "yes"], ids=["server's certificate", "both certificates"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Debian's Redis with a certificate for the loopback address; with `yes` it wants one of the client too."""
    folder = tmp_path_factory.mktemp("tls")
    authority, port = trustme.CA(), free_port()
    authority.cert_pem.write_to_path(folder / "trusted.pem")
    trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
    for name, whose in (("worker.pem", "worker"), ("server.pem", HOST)):
        authority.issue_cert(whose).private_key_and_cert_chain_pem.write_to_path(folder / name)
    own = str(folder / "server.pem")
    files = ("--tls-cert-file", own, "--tls-key-file", own, "--tls-ca-cert-file", str(folder / "trusted.pem"))
    with running(SYSTEM, "--tls-port", str(port), "--tls-auth-clients", request.param, *files) as server:
        yield Secured(server, port, folder)


@pytest.mark.system_redis
def test_tls_by_url(secured: Secured, flavour: Flavour) -> None:
    """A rediss:// or valkeys:// URL is an encrypted connection of its user; the server's certificate is checked."""
    with secured.server.client() as client:
        client.flushall()
        client.acl_setuser("worker", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], categories=["+@all"])
        with flavour.at(secured.url("trusted.pem", LOGIN)) as opened:
            assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999
            assert list(opened.keys()) == ["k"]
            names = [entry["user"] for entry in client.client_list() if int(entry["id"]) != client.client_id()]
            assert "worker" in names


@pytest.mark.system_redis
@pytest.mark.parametrize("how", ["stranger", "nobody", "plain"])
def test_a_server_that_is_not_trusted_is_not_used(secured: Secured, flavour: Flavour, how: str) -> None:
    """A certificate by an authority that is not trusted, and no TLS at all, are StorageUnavailable."""
    url = secured.url("stranger.pem" if how == "stranger" else "")
    with flavour.at(url if how != "plain" else f"redis://{HOST}:{secured.port}") as opened:
        with pytest.raises(StorageUnavailable) as refused:
            opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        assert refused.value.__cause__ is not None
        assert ("CERTIFICATE_VERIFY_FAILED" in str(refused.value)) == (how != "plain")


NEEDED = (
    *("evalsha", "eval", "time", "hlen", "hmget", "hgetall", "hset", "hdel", "pexpire", "pttl", "persist"),
    *("scan", "del"),
)
"""The commands that a user of a bucket needs, `scan` for `keys()` alone, `del` for `delete()`."""

COMMANDS: list[Command] = [
    *(Peek(), Acquire(1), Reserve("x", 1, 60 * SECOND), Settle("x", 2), Refund("y", 1)),
    *(Reconcile(Reading(5)), Acquire(1)),
]


@pytest.fixture
def worker(client: redis.Redis) -> Iterator[str]:
    """The name of a user who may do with buckets what is needed, and nothing else."""
    name = "worker"
    client.acl_setuser(
        name,
        enabled=True,
        reset=True,
        passwords=[f"+{PASSWORD}"],
        keys=["keepa_tokens:*"],
        commands=[f"+{command}" for command in NEEDED],
    )
    yield name
    client.acl_deluser(name)


def use(opened: Opened) -> None:
    """Do all that a storage does, by the server's time and by a caller's."""
    quota = Quota(300, 5, 60.0, synced=True)
    for now in (None, NOW):
        for command in COMMANDS:
            opened.apply(f"k{now}", quota, command, now_us=now)
    assert opened.inspect("kNone") is not None
    assert sorted(opened.keys()) == [f"k{NOW}", "kNone"]
    opened.delete("kNone")
    assert opened.inspect("kNone") is None


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("protocol", [2, 3], ids=["resp2", "resp3"])
def test_a_user_by_url_with_the_least_rights(server: Server, flavour: Flavour, protocol: int) -> None:
    """A user named in the URL, allowed those commands and the prefix's keys, can do all that a storage does."""
    with flavour.at(f"redis://{LOGIN}{HOST}:{server.port}?protocol={protocol}") as opened:
        use(opened)


@pytest.mark.parametrize("command", NEEDED)
def test_each_right_is_needed(server: Server, client: redis.Redis, worker: str, command: str) -> None:
    """Without any one of those commands something is refused, by a ConfigError that says what to allow."""
    client.acl_setuser(worker, enabled=True, commands=[f"-{command}"])
    client.script_flush()
    with (
        FLAVOURS[0].at(f"redis://{LOGIN}{HOST}:{server.port}") as opened,
        pytest.raises(ConfigError, match=r"may not do all that a bucket needs .* allow evalsha"),
    ):
        use(opened)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["evalsha", "hset"])
def test_a_server_that_lacks_a_command(kind: str, command: str) -> None:
    """Where a command was renamed, or never was, as on a Sentinel, a ConfigError names what must be there."""
    with (
        running(kind, "--rename-command", command, "") as server,
        RedisStorage.from_url(server.url) as storage,
        pytest.raises(ConfigError, match=r"lacks a command that a bucket needs .* give one that has evalsha"),
    ):
        storage.apply("k", PLAIN, Acquire(1))


@pytest.mark.usefixtures("worker")
def test_a_key_that_a_user_may_not_touch(server: Server, flavour: Flavour) -> None:
    """A bucket outside the user's keys, and a wrong password, are a ConfigError; no message has the password."""
    url = f"redis://{LOGIN}{HOST}:{server.port}"
    with (
        flavour.over(lambda: flavour.named("Client").from_url(url), prefix="other:") as opened,
        pytest.raises(ConfigError, match="may not do all"),
    ):
        opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
    with flavour.at(url.replace("s3cr", "secret")) as opened:
        with pytest.raises(ConfigError, match="password") as refused:
            opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        for secret in ("secret", LOGIN, quote(PASSWORD, safe="")):
            assert secret not in str(refused.value)
            assert secret not in repr(opened.storage)


def test_a_socket_that_a_user_may_not_use(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to write to the server's socket, it is a ConfigError that names it: no outage that passes."""
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(socket.socket, "connect", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    client = partial(flavour.named("Client"), unix_socket_path="/run/s", retry=flavour.retry(0))
    with flavour.over(client) as opened, pytest.raises(ConfigError, match=r"may not use .* /run/s"):
        opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
