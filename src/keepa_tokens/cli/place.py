"""Where buckets live, with what the doors don't show: a bucket's fields as they are stored.

A place is a storage and a way around its rules, for those who look at damage, plant it, or move a bucket in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:  # each needs what not everybody has: a client for Redis, sqlite3
    from .redis_place import RedisPlace
    from .sqlite_place import SqlitePlace

Place: TypeAlias = "RedisPlace | SqlitePlace"


def text(value: object) -> str:
    """Return what a client answered as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def address(url: str) -> str:
    """Return a URL without a password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
