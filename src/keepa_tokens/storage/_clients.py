"""What the clients of Redis and Valkey have in common: how one is made of a URL, what it is, what its errors mean."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import parse_qsl, urlsplit

from ..errors import ConfigError, KeepaTokensError, StorageUnavailable

TIMEOUT_S: Final = 2.0
"""How long `from_url` lets a connection or an answer take, unless the URL says otherwise."""

CLIENTS: Final = ("redis", "valkey")

_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "unix": "unix",
}
"""What a URL may begin with, and redis-py's name for that."""

_OBJECTS: Final = frozenset(
    {
        *("retry", "retry_on_error", "credential_provider", "redis_connect_func", "connection_class", "parser_class"),
        *("encoder_class", "command_packer", "event_dispatcher", "socket_keepalive_options", "connection_pool"),
        *("maint_notifications_config", "cache", "cache_config", "driver_info", "ssl_ocsp_context"),
        *("socket_type", "socket_read_size"),
    }
)
"""Options that a client takes as objects. As texts of a URL some of them fail only when they are used."""

LONGEST_TIMEOUT_S: Final = 1e9
_SECONDS: Final = ("socket_timeout", "socket_connect_timeout")
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_LAST_DATABASE: Final = 2**31 - 1
_LAST_PORT: Final = 2**16 - 1

_NOT_CARRIED_OUT: Final = "The command was certainly not carried out."
_NOBODY_KNOWS: Final = "Nobody knows whether the command was carried out."


class RedisClient(Protocol):
    """What is used of a client: redis-py's and valkey-py's `Redis`, `RedisCluster`, Sentinel's masters have it."""

    def execute_command(self, *args: bytes | str | int) -> object:
        """Send one command and return its answer."""
        ...

    def scan_iter(
        self, match: bytes | str | None = None, count: int | None = None, _type: str | None = None, **options: bool
    ) -> Iterator[object]:
        """Yield the names of keys."""
        ...

    def close(self) -> object:
        """Close the connections."""
        ...


class AsyncRedisClient(Protocol):
    """The same for the asyncio clients."""

    def execute_command(self, *args: bytes | str | int) -> Awaitable[object]:
        """Send one command and return its answer."""
        ...

    def scan_iter(
        self, match: bytes | str | None = None, count: int | None = None, _type: str | None = None, **options: bool
    ) -> AsyncIterator[object]:
        """Yield the names of keys."""
        ...

    def aclose(self) -> Awaitable[object]:
        """Close the connections."""
        ...


def checked(client: object, *, asynchronous: bool) -> None:
    """Raise ConfigError for what is no client of this kind, with what to give instead."""
    storage = "AsyncRedisStorage" if asynchronous else "RedisStorage"
    if isinstance(client, str | bytes):
        # Not the text itself: it may hold a password.
        raise ConfigError(f"{storage} takes a client, not a URL: use {storage}.from_url(url)")
    if isinstance(client, type):
        raise ConfigError(f"{storage} takes a client, not the class {client.__name__}: give an instance of it")
    kind = f"{type(client).__module__}.{type(client).__name__}"
    if not (hasattr(client, "execute_command") and hasattr(client, "scan_iter")):
        raise ConfigError(f"{storage} takes a client of redis-py or valkey-py, not a {kind}")
    if hasattr(client, "command_stack"):
        raise ConfigError(f"{kind} is a pipeline: give {storage} a plain client")
    if hasattr(client, "aclose") and not asynchronous:
        raise ConfigError(f"{kind} is an asyncio client: give it to AsyncRedisStorage")
    if not hasattr(client, "aclose") and asynchronous:
        raise ConfigError(f"{kind} blocks: give AsyncRedisStorage an asyncio client")
    _check_options(getattr(getattr(client, "connection_pool", None), "connection_kwargs", {}))


def resends(client: Any) -> str | None:  # noqa: ANN401 - either library's client
    """Return how to stop a client that sends a command again after its connection was lost; None: it sends it once."""
    options = getattr(getattr(client, "connection_pool", None), "connection_kwargs", None)
    if options is None:
        # A cluster client sends again after what it takes for a move of slots. From redis-py 6 on `retry` says how
        # often.
        attempts = getattr(client, "cluster_error_retry_attempts", None)
        if attempts is not None:
            return "cluster_error_retry_attempts=0" if attempts else None
        options = {"retry": getattr(client, "retry", None)}
    retry = options.get("retry")
    if retry is None:
        again = options.get("retry_on_timeout") or options.get("retry_on_error")
    else:
        again = getattr(retry, "_retries", 0)
    return "retry=Retry(NoBackoff(), 0)" if again else None


def client_from_url(url: str, asynchronous: str) -> Any:  # noqa: ANN401 - either library's client; named by the caller
    """Return a client by the library that goes with the URL, or by the other one if that is what is installed."""
    if not isinstance(cast("object", url), str):
        # Not the URL itself: it may hold a password.
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    scheme, colon, rest = url.partition("://")
    if scheme not in _SCHEMES or not colon:
        # Not the URL itself: it may hold a password.
        raise ConfigError(f"the URL must begin with one of {', '.join(f'{known}://' for known in _SCHEMES)}")
    wanted = "valkey" if scheme.startswith("valkey") else "redis"
    library = next(name for name in (wanted, *CLIENTS) if find_spec(name))
    if library == "redis":
        scheme = _SCHEMES[scheme]
    _check_parts(f"{scheme}://{rest}")
    kind = getattr(import_module(library + asynchronous), library.capitalize())
    options: dict[str, object] = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "retry": import_module(f"{library}{asynchronous}.retry").Retry(
            import_module(f"{library}.backoff").NoBackoff(), 0
        ),
    }
    if "maint_notifications_config" in signature(kind).parameters:
        # While it listens for these, redis-py's asyncio client hands out idle connections that the server has closed.
        off = import_module(f"{library}.maint_notifications").MaintNotificationsConfig(enabled=False)
        options["maint_notifications_config"] = off
    try:
        client = kind.from_url(f"{scheme}://{rest}", **options)
        # An unknown option would otherwise show at the first command only.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except Exception as error:  # noqa: BLE001 - either library's errors, and whatever a connection raises for an option
        why = _without_secrets(error)
    else:
        return client
    # Raised outside the `except`, so that the library's error isn't chained: it may hold parts of the password.
    raise ConfigError(f"the URL can't be used: {why}")


def _check_options(options: Mapping[str, object]) -> None:
    """Raise ConfigError for wrong options that would only show at the first use, as if the server were away.

    The error shows the path of a file, which is no secret, and no other value.
    """
    for name in _SECONDS:
        value = options.get(name)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < LONGEST_TIMEOUT_S):
            raise ConfigError(f"{name} must be a number of seconds above 0; leave it out for the default")
    encoding = options.get("encoding", "utf-8")
    with suppress(LookupError, TypeError):
        encoding = "utf-8" if "0".encode(cast("str", encoding)) == b"0" else None
    if encoding != "utf-8":
        raise ConfigError("encoding must be one that writes digits as ASCII does, such as utf-8: leave it out")
    if not _is_number(options.get("db"), 0, _LAST_DATABASE):
        raise ConfigError("the server can have no database of that number: name another one")
    if not _is_number(options.get("port"), 1, _LAST_PORT):
        raise ConfigError(f"the port must be a number from 1 to {_LAST_PORT}")
    if not _is_host(options.get("host")):
        raise ConfigError("the host must be a name or an address, without spaces")
    for name in _FILES:
        path = options.get(name)
        if isinstance(path, str) and not Path(path).exists():
            raise ConfigError(f"{name}={path!r} is not there: give the path of the file")
    if options.get("ssl_keyfile") and not options.get("ssl_certfile"):
        raise ConfigError("ssl_keyfile goes with ssl_certfile: give both, or ssl_certfile alone")


def _is_number(value: object, least: int, most: int) -> bool:
    """Whether an option is left out, or a whole number in these bounds, as a text of a URL too."""
    return value is None or (str(value).isdecimal() and least <= int(str(value)) <= most)


def _is_host(host: object) -> bool:
    """Whether an option is left out, or can be looked up: what can't be encoded fails as a UnicodeError."""
    with suppress(UnicodeError):
        return not isinstance(host, str) or bool(host.encode("idna") and not re.search(r"\s", host))
    return False


def _check_parts(url: str) -> None:
    """Raise ConfigError where a password that was not quoted has torn the URL apart."""
    told = "write special characters of a user's name or password as percent codes (urllib.parse.quote)"
    parts = port = None
    with suppress(ValueError):  # its text has what should be the port: maybe a part of a password
        parts = urlsplit(url)
        port = parts.port or -1
    if parts is None or port is None:
        raise ConfigError(f"the URL has no port that is a number; {told}")
    torn = "@" in parts.path or ("@" in parts.query and not parts.username)
    if "#" in url or (torn and parts.scheme != "unix"):
        raise ConfigError(f"the URL's parts can't be told apart; {told}")
    if parts.scheme == "unix" and not parts.path:
        raise ConfigError("the URL names no socket: give its path, as in unix:///run/redis.sock")
    given = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} & _OBJECTS
    if given:
        raise ConfigError(f"the option {min(given)!r} can't be given as text: give RedisStorage a client that has it")
    if parts.port == 0:
        raise ConfigError("the URL names port 0: give the port that the server listens on")
    if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise ConfigError("the URL's path must be the number of a database, as in redis://localhost:6379/0")


def _without_secrets(error: Exception) -> str:
    """Return what a library says of a URL's options, where that is surely no secret."""
    text = str(error)
    option = re.search(r"unexpected keyword argument '(\w+)'", text)
    if option:
        return f"there is no option {option[1]!r}"
    value = re.search(r"Invalid value for '?(\w+)'? in connection URL", text)
    if value:
        return f"the value of the option {value[1]!r} is not valid"
    if "Certificate Requirements" in text:
        return "ssl_cert_reqs must be one of none, optional, required"
    if "invalid literal" in text or "positive integer" in text:
        return "an option that must be a number isn't one"
    if "protocol" in text.lower():
        return "protocol must be 2 or 3"
    return f"{type(error).__name__} while it was read"


def is_script_lost(error: Exception) -> bool:
    """Whether the server does not know the script any more."""
    return type(error).__name__ == "NoScriptError" and is_clients(error)


def is_of_a_replica(error: Exception) -> bool:
    """Whether the server answered that it is no primary: the address may lead to another one by now."""
    said = f"{type(error).__name__} {error}".lower()
    return is_clients(error) and ("readonly" in said or "masterdown" in said)


def is_clients(error: BaseException) -> bool:
    """Whether a client raised it: redis-py's and valkey-py's errors have no base in common, and not even one each."""
    roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or not roots.isdisjoint(CLIENTS)


NEEDED: Final = (
    "evalsha, eval, time, hlen, hmget, hgetall, hset, hdel, pexpire, pttl, persist; scan for keys(), del for delete()"
)
"""What a user of buckets must be allowed."""

_MISTAKES: Final = {
    "the key of bucket {key!r} holds something that is no bucket: use another key or prefix": ("WRONGTYPE",),
    "this Redis is a node of a cluster, and the bucket {key!r} lives on another: give the library's cluster client": (
        "MOVED ",
    ),
    "this user may not use the server's socket ({error}): allow it to write there": ("Error 13 connecting to",),
    "the server has no database of that number: name another one in the URL": ("DB index is out of range",),
    "client_name has spaces or special characters: give another one": ("Client names cannot contain",),
    "the server refuses the user's name or password: give those of a user that it knows": (
        *("WRONGPASS", "invalid username-password"),
    ),
    "the server refuses the password: give the right one": ("invalid password",),
    "the server wants a password: give it in the URL or to the client": (
        *("NOAUTH", "unauthenticated multibulk", "already authenticated", "Authentication required"),
    ),
    "the server has no password set: leave it out of the URL": ("without any password configured",),
    f"the user may not do all that a bucket needs ({{error}}): allow {NEEDED}, on the keys of the prefix": (
        *("NOPERM", "NoPermission", "no permissions", "can't run this command", "can't access at least one"),
    ),
    f"this server lacks a command that a bucket needs ({{error}}): give one that has {NEEDED}, and is no Sentinel": (
        *("nknown command", "nknown Redis command"),
    ),
}
"""Mistakes that the next try would only repeat: what to say, and words of the server that give them away."""


def meaning(error: Exception, key: str = "", *, sent_once: bool = True) -> KeepaTokensError | None:
    """Return an error of this library that says what a client's error means; None: no client raised it.

    sent_once: the client sends nothing again by itself, so that its error tells of the only sending.
    """
    if type(error) is RuntimeError and str(error) == "no running event loop":
        return ConfigError(
            "the clients of Redis for coroutines run on asyncio alone: on trio use AsyncSQLiteStorage, or a TokenBucket"
            f" with a RedisStorage in a thread. {_NOT_CARRIED_OUT}"
        )
    if type(error) is RuntimeError and "loop" in str(error):
        return ConfigError(
            f"this storage was in use in another event loop ({error}): make one in each, or aclose() it before its loop"
            f" ends. {_NOBODY_KNOWS}"
        )
    if not is_clients(error):
        return None
    text = str(error)
    said = f"MOVED {text}" if type(error).__name__ == "MovedError" else f"{type(error).__name__} {text}"
    for told, signs in _MISTAKES.items():
        if any(sign in said for sign in signs):
            return ConfigError(f"{told.format(key=key, error=text)}. Nothing was changed.")
    certain = _NOT_CARRIED_OUT if sent_once and _is_certain(error, text) else _NOBODY_KNOWS
    return StorageUnavailable(f"Redis did not carry the command out ({type(error).__name__}: {text}). {certain}")


def _is_certain(error: Exception, text: str) -> bool:
    """Whether the command was never sent, or the server answered that it refuses it.

    The script writes only at its end, and nothing that can fail comes after its first write.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"ResponseError", "AuthenticationError", "BusyLoadingError", "ReadOnlyError"}:
        return True
    if names & {"ConnectionRefusedError", "MasterNotFoundError"} or "onnecting" in text.partition(":")[0]:
        return True
    is_full = any(sign in text for sign in ("MaxConnections", "max number of clients", "Too many connections"))
    return is_full or "connecting to" in text or "No connection available" in text


def idle_closers(client: Any) -> list[Callable[[], Any]]:  # noqa: ANN401 - either library's
    """Return functions that close a client's idle connections; of an asyncio client, what they return must be awaited.

    A single connection is closed too, and so are all of a pool that can't tell which are idle.
    """
    if is_single_connection(client):
        return [client.connection.disconnect]
    closers = [pool.disconnect for pool in pools(client)]
    # The argument, where there is one, says whether to close those in use; not every pool names it alike.
    return [partial(close, False) if signature(close).parameters else close for close in closers]  # noqa: FBT003


def pools(client: Any) -> list[Any]:  # noqa: ANN401 - the same
    """Return the pools of a client, those of a cluster's nodes too."""
    clients = [client]
    if hasattr(client, "get_nodes"):
        clients = [getattr(node, "redis_connection", node) for node in client.get_nodes()]
    return [getattr(each, "connection_pool", each) for each in clients if each is not None]


def is_single_connection(client: object) -> bool:
    """Whether all commands of the client go over one connection that it keeps."""
    return getattr(client, "connection", None) is not None
