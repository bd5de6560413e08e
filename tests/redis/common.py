"""What the tests of this folder share: terms, instants, and what is seen on a server past the storage."""

from __future__ import annotations

from typing import Any, Final

import redis

from keepa_tokens import BucketState, Quota
from keepa_tokens.storage.redis import DEFAULT_PREFIX

PLAIN: Final = Quota(1000, 1, 1.0)
SYNCED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
SECOND: Final = 1_000_000
NOW: Final = 1_780_000_000 * SECOND
NAME: Final = DEFAULT_PREFIX + "k"
"""What the bucket `k` is called on the server."""


def stored(client: redis.Redis, key: str = "k") -> dict[str, str]:
    """Return a bucket's fields, as they stand; bytes that are no text survive."""
    fields: Any = client.hgetall(DEFAULT_PREFIX + key)
    return {as_text(name): as_text(text) for name, text in fields.items()}


def as_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def state_of(client: redis.Redis, key: str = "k") -> BucketState:
    """Return a bucket's state."""
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
    """Return the server's time in microseconds."""
    seconds, rest = client.time()
    return int(seconds) * SECOND + int(rest)
