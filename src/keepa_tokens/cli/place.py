"""Where buckets live, with what the doors don't show: a bucket's fields as they are stored.

A place is a storage and a way around its rules, for those who look at damage, plant it, or move a bucket in. All that
the command line needs to know of a storage's inside is in this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from ..storage.base import Storage


class Place(Storage, Protocol):
    """A storage, and what it has stored."""

    def now_us(self) -> int:
        """Return the storage's own time in microseconds."""
        ...

    def fields(self, key: str) -> dict[str, str] | None:
        """Return a bucket's fields as they are stored, sound or not; None: there is no such bucket."""
        ...

    def lifetime(self, key: str) -> float | None:
        """Return the seconds for which the storage will keep a bucket; -1: for ever; None: it can't be told."""
        ...

    def put(self, key: str, fields: Mapping[str, str], lifetime: float) -> bool:
        """Store a bucket for at least `lifetime` seconds, unless there is one already; return whether it was stored."""
        ...

    def drop(self, key: str, field: str) -> None:
        """Remove one field of a bucket."""
        ...

    def keep_for(self, key: str, seconds: float) -> None:
        """Give a bucket's key a lifetime, where the storage has such."""
        ...

    def delete(self, key: str) -> None:
        """Forget a bucket."""
        ...


def text(value: object) -> str:
    """Return what a client answered as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def address(url: str) -> str:
    """Return a URL without a password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
