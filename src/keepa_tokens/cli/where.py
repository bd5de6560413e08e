"""The options that commands share: which bucket is meant, and where it is stored."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from ..keepa.quota import bucket_key
from .look import Look, Place, keys_of, look
from .shell import RefusedError
from .words import listed

if TYPE_CHECKING:
    from .probe import Answer

KEY_VARIABLE: Final = "KEEPA_API_KEY"
LOOKS_LIKE_A_KEY: Final = re.compile(r"[0-9a-z]{60,70}", re.ASCII)
NAMED_BY_A_KEY: Final = re.compile(r"keepa-[0-9a-f]{24}", re.ASCII)
WITH_BASE_URL: Final = click.option(
    "--base-url", default="https://api.keepa.com", show_default=True, help="Where --probe asks."
)


def opened(redis: str | None, sqlite: str | None, prefix: str) -> Place:
    """Open a place. Raises StorageUnavailable, ConfigError, ImportError without a client for Redis."""
    if redis and sqlite:
        raise RefusedError(
            "give --redis or --sqlite, not both; KEEPA_TOKENS_REDIS and KEEPA_TOKENS_SQLITE count as given"
        )
    if redis:
        from .redis_place import RedisPlace  # noqa: PLC0415 - the client it needs is an extra

        return RedisPlace.from_url(redis, prefix=prefix)
    if sqlite:
        if not Path(sqlite).is_file():
            raise RefusedError(f"there is no file {sqlite!r}: the first worker makes it")
        from .sqlite_place import SqlitePlace, has_buckets  # noqa: PLC0415 - sqlite3 is not in every Python

        if not has_buckets(sqlite):
            raise RefusedError(f"{sqlite!r} has no buckets in it, and stays as it is: the first worker makes them")
        return SqlitePlace(sqlite)
    raise RefusedError("say where the buckets are: --redis redis://HOST:PORT, or --sqlite FILE")


@dataclass(frozen=True)
class Where:
    """The place, and the options for the bucket and the API key. name: the place for people, without secrets."""

    place: Place
    name: str
    key: str | None
    api_key: str | None = field(repr=False)

    def bucket(self) -> str:
        """Return the key of the bucket that is meant; if that isn't clear, the usage error lists all buckets."""
        if self.key is not None:
            return self._named(self.key)
        keys = keys_of(self.place)
        if len(keys) == 1:
            return keys[0]
        if self.api_key is not None and bucket_key(self.api_key) in keys:
            return bucket_key(self.api_key)
        if not keys:
            raise RefusedError(f"there is no bucket in {self.name}: the first call of a worker makes one")
        raise RefusedError(f"there are {len(keys)} buckets, say which: {listed(keys)}")

    def look(self, key: str | None = None) -> Look:
        """Look at a bucket, or at the one that is meant."""
        key = self.bucket() if key is None else key
        seen = look(self.place, key)
        if seen is None:
            raise RefusedError(f"the bucket {key!r} is gone: the next call of a worker makes a new one")
        return seen

    def _named(self, key: str) -> str:
        for name in (key, f"keepa-{key}"):
            if self.place.fields(name) is not None:
                return name
        keys = keys_of(self.place)
        found = [name for name in keys if name.removeprefix("keepa-").startswith(key.removeprefix("keepa-"))]
        if len(found) == 1:
            return found[0]
        raise RefusedError(f"there is no bucket {key!r} in {self.name}; there are: {listed(keys)}")

    def ask(self, seen: Look, base_url: str) -> Answer:
        """Ask the server and give the bucket its answer; without an API key raise a usage error."""
        from .probe import ask_server  # noqa: PLC0415 - needs httpx

        if self.api_key is None:
            raise RefusedError(
                f"this asks the server, for which it needs the API key: --key-file FILE (- is stdin) or {KEY_VARIABLE}"
            )
        if NAMED_BY_A_KEY.fullmatch(seen.key) and seen.key != bucket_key(self.api_key):
            raise RefusedError(f"{seen.key} is the bucket of another API key, of which the server would say nothing")
        return ask_server(self.place, seen, self.api_key, base_url)


def _api_key(_: click.Context, __: click.Parameter, file: TextIO | None) -> str | None:
    """Return the API key from a file, or from the environment; None: there is none."""
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    api_key = file.read().strip()
    if not api_key:
        raise click.BadParameter("it is empty")
    return api_key


def _no_api_key(_: click.Context, __: click.Parameter, key: str | None) -> str | None:
    """Return KEY, unless it looks like an API key, which must not be on a command line."""
    if key is not None and LOOKS_LIKE_A_KEY.fullmatch(key):
        # The message doesn't repeat the key: every user of the machine can see it already, and so does the history.
        raise RefusedError(f"that looks like an API key: give it by --key-file or {KEY_VARIABLE}, not as an argument")
    return key


def with_bucket(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for a place and a bucket in it, by KEY or by API key. The command gets a `Where`."""
    options = (
        click.argument("key", metavar="[KEY]", required=False, callback=_no_api_key),
        click.option(
            "--key-file",
            "api_key",
            metavar="FILE",
            type=click.File(errors="replace"),
            callback=_api_key,
            help=f"A file with the API key (- is stdin); else it is taken from {KEY_VARIABLE}. It names a bucket, too.",
        ),
        click.option(
            "--redis",
            metavar="URL",
            envvar="KEEPA_TOKENS_REDIS",
            help="The Redis or Valkey with the buckets: redis://HOST:PORT, rediss://, unix://.  [KEEPA_TOKENS_REDIS]",
        ),
        click.option(
            "--sqlite", metavar="FILE", envvar="KEEPA_TOKENS_SQLITE", help="The SQLite file.  [KEEPA_TOKENS_SQLITE]"
        ),
        click.option(
            "--prefix", default="keepa_tokens:", show_default=True, help="What stands before every key in Redis."
        ),
    )

    @functools.wraps(function)
    def command(
        redis: str | None,
        sqlite: str | None,
        prefix: str,
        key: str | None,
        api_key: str | None,
        **others: Any,  # noqa: ANN401 - click's
    ) -> None:
        source = click.get_current_context().get_parameter_source
        typed = [name for name in ("redis", "sqlite") if source(name) is ParameterSource.COMMANDLINE]
        if len(typed) == 1:  # an option goes before the environment
            redis, sqlite = (redis, None) if typed == ["redis"] else (None, sqlite)
        with closing(opened(redis, sqlite, prefix)) as place:
            name = str(sqlite)
            if redis:  # without a password and options
                parts = urlsplit(redis)
                name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} under {prefix!r}"
            function(Where(place, name, key, api_key), **others)

    return functools.reduce(lambda made, option: option(made), reversed(options), command)
