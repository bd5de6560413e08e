"""What the tests of this folder share: terms, instants, and what is seen on a server past the storage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import redis

from keepa_tokens import BucketState, Quota, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Peek
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from tests.redis.flavours import Opened
from tests.redis.proxy import Proxy

PLAIN: Final = Quota(1000, 1, 1.0)
SYNCED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
SECOND: Final = 1_000_000
NOW: Final = 1_780_000_000 * SECOND
NAME: Final = DEFAULT_PREFIX + "k"
"""What the bucket `k` is called on the server."""

SLACK_S: Final = 1.0
"""What a loaded machine may add to a timeout."""


@contextmanager
def unavailable(*, within_s: float, cause: str = "", match: str | None = None) -> Iterator[None]:
    """What is inside must raise StorageUnavailable for its cause, in time."""
    began = time.monotonic()
    with pytest.raises(StorageUnavailable, match=match) as away:
        yield
    assert away.value.__cause__ is not None
    assert cause in type(away.value.__cause__).__name__
    assert time.monotonic() - began < within_s + SLACK_S


def sendings(opened: Opened, proxy: Proxy, client: redis.Redis, key: str = "k") -> int:
    """Take a token while every answer is lost; return how often the script ran then, each time with its charge."""
    opened.apply(key, PLAIN, Peek(), now_us=NOW)
    client.delete(DEFAULT_PREFIX + key)
    client.config_resetstat()
    proxy.cuts = 20
    try:
        with unavailable(within_s=60, cause="Error", match="Nobody knows whether"):
            opened.apply(key, PLAIN, Acquire(1), now_us=NOW)
    finally:
        lost, proxy.cuts = 20 - proxy.cuts, 0
    runs = script_runs(client)
    assert lost == runs
    assert opened.apply(key, PLAIN, Peek(), now_us=NOW).balance == 1000 - runs
    return runs


def stored(client: redis.Redis, key: str = "k") -> dict[str, str]:
    """Return a bucket's fields, as they stand; bytes that are no text survive."""
    fields: Any = client.hgetall(DEFAULT_PREFIX + key)
    return {as_text(name): as_text(text) for name, text in fields.items()}


def as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def state_of(client: redis.Redis, key: str = "k") -> BucketState:
    return BucketState.from_fields(stored(client, key))


def calls(client: redis.Redis, command: str) -> int:
    """Return how often a server was sent a command since its counters were reset."""
    stats: Any = client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


def script_runs(client: redis.Redis) -> int:
    """Return how often scripts have run on a server since its counters were reset; what was refused did not."""
    stats: Any = client.info("commandstats")
    entries = [stats.get(f"cmdstat_{name}", {}) for name in ("eval", "evalsha")]
    return sum(entry.get("calls", 0) - entry.get("failed_calls", 0) for entry in entries)


def time_of(client: redis.Redis) -> int:
    seconds, rest = client.time()
    return int(seconds) * SECOND + int(rest)
