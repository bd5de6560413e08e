"""TLS and users by URL. Only Debian's server speaks TLS; users are on every one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import trustme

from keepa_tokens import ConfigError, Quota, Reading, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Command, Peek, Reconcile, Refund, Reserve, Settle
from tests.redis.flavours import FLAVOURS, Flavour, Opened
from tests.servers import HOST, SYSTEM, Server, free_port, running

PLAIN = Quota(1000, 1, 1.0)
NOW = 1_780_000_000_000_000
SECOND = 1_000_000
PASSWORD = "s3cr/t:@?#"


@dataclass(frozen=True)
class Secured:
    """A server that speaks TLS, whom to trust for it, whom not, and a client's certificate."""

    server: Server
    port: int
    trusted: Path
    stranger: Path
    certificate: Path


@pytest.fixture(scope="module", params=["no", "yes"], ids=["server's certificate", "both certificates"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Debian's Redis with a certificate for the loopback address; with `yes` it wants one of the client too."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "trusted.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "stranger.pem"))
    authority.issue_cert("worker").private_key_and_cert_chain_pem.write_to_path(str(folder / "worker.pem"))
    own = authority.issue_cert(HOST)
    own.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", request.param]
    for option in ("--tls-cert-file", "--tls-key-file"):
        options += [option, str(folder / "server.pem")]
    options += ["--tls-ca-cert-file", str(folder / "trusted.pem")]
    with running(SYSTEM, *options) as server:
        yield Secured(server, port, folder / "trusted.pem", folder / "stranger.pem", folder / "worker.pem")


def tls_url(secured: Secured, trusted: Path | None, *, login: str = "", scheme: str = "rediss") -> str:
    options = "" if trusted is None else f"&ssl_ca_certs={trusted}"
    certificate = f"ssl_certfile={secured.certificate}&ssl_keyfile={secured.certificate}"
    return f"{scheme}://{login}{HOST}:{secured.port}?{certificate}{options}"


@pytest.mark.system_redis
@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_tls_by_url(secured: Secured, flavour: Flavour) -> None:
    """A rediss:// or valkeys:// URL is an encrypted connection of its user; the server's certificate is checked."""
    with secured.server.client() as client:
        client.flushall()
        client.acl_setuser("worker", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], categories=["+@all"])
        with flavour.at(tls_url(secured, secured.trusted, login=f"worker:{quote(PASSWORD, safe='')}@")) as opened:
            assert opened.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == 999
            assert list(opened.keys()) == ["k"]
            names = [entry["user"] for entry in client.client_list() if int(entry["id"]) != client.client_id()]
            assert "worker" in names


@pytest.mark.system_redis
@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@pytest.mark.parametrize("how", ["stranger", "nobody", "plain"])
def test_a_server_that_is_not_trusted_is_not_used(secured: Secured, flavour: Flavour, how: str) -> None:
    """A certificate by an authority that is not trusted, and no TLS at all, are StorageUnavailable."""
    trusted = secured.stranger if how == "stranger" else None
    url = tls_url(secured, trusted) if how != "plain" else f"redis://{HOST}:{secured.port}"
    with flavour.at(url) as opened:
        with pytest.raises(StorageUnavailable) as refused:
            opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        assert refused.value.__cause__ is not None
        assert ("CERTIFICATE_VERIFY_FAILED" in str(refused.value)) == (how != "plain")


NEEDED = (
    *(
        "evalsha",
        "eval",
        "time",
        "hlen",
        "hmget",
        "hgetall",
        "hset",
        "hdel",
        "pexpire",
        "pttl",
        "persist",
        "scan",
        "del",
    ),
)
"""The commands that a user of a bucket needs, `scan` for `keys()` alone, `del` for `delete()`."""

COMMANDS: list[Command] = [
    Peek(),
    Acquire(1),
    Reserve("x", 1, 60 * SECOND),
    Settle("x", 2),
    Refund("y", 1),
    Reconcile(Reading(5)),
    Acquire(1),
]


@pytest.fixture
def login(client: redis.Redis) -> Iterator[str]:
    """A user who may do with buckets what is needed, and nothing else; how he logs in."""
    client.acl_setuser(
        "worker",
        enabled=True,
        reset=True,
        passwords=[f"+{PASSWORD}"],
        keys=["keepa_tokens:*"],
        commands=[f"+{command}" for command in NEEDED],
    )
    yield f"worker:{quote(PASSWORD, safe='')}@"
    client.acl_deluser("worker")


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


@pytest.mark.parametrize("protocol", [2, 3], ids=["resp2", "resp3"])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_a_user_by_url_with_the_least_rights(server: Server, login: str, flavour: Flavour, protocol: int) -> None:
    """A user named in the URL, allowed twelve commands and the prefix's keys, can do all that a storage does."""
    with flavour.at(f"redis://{login}{HOST}:{server.port}?protocol={protocol}") as opened:
        use(opened)


@pytest.mark.parametrize("command", NEEDED)
def test_each_right_is_needed(server: Server, client: redis.Redis, login: str, command: str) -> None:
    """Without any one of the twelve commands something is refused, by a ConfigError that says what to allow."""
    client.acl_setuser("worker", enabled=True, commands=[f"-{command}"])
    client.script_flush()
    with (
        FLAVOURS[0].at(f"redis://{login}{HOST}:{server.port}") as opened,
        pytest.raises(ConfigError, match=r"may not do all that a bucket needs .* allow evalsha"),
    ):
        use(opened)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_a_key_that_a_user_may_not_touch(server: Server, login: str, flavour: Flavour) -> None:
    """A bucket outside the user's keys, and a wrong password, are a ConfigError; no message has the password."""
    address = f"{HOST}:{server.port}"
    made = flavour.named("Client").from_url
    with (
        flavour.over(lambda: made(f"redis://{login}{address}"), prefix="other:") as opened,
        pytest.raises(ConfigError, match="may not do all"),
    ):
        opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
    with flavour.at(f"redis://{login.replace('s3cr', 'secret')}{address}") as opened:
        with pytest.raises(ConfigError, match="password") as refused:
            opened.apply("k", PLAIN, Acquire(1), now_us=NOW)
        for secret in ("secret", login, quote(PASSWORD, safe="")):
            assert secret not in str(refused.value)
            assert secret not in repr(opened.storage)
