"""A place in Redis or Valkey. Needs a client for it, so it is imported only when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

from ..errors import StorageUnavailable
from ..storage.base import Storage
from ..storage.redis import DEFAULT_PREFIX, RedisStorage
from .place import text


class RedisPlace(RedisStorage):
    """Buckets in Redis or Valkey."""

    @classmethod
    def at(cls, url: str, prefix: str = DEFAULT_PREFIX) -> Self:
        """Return the place at a URL."""
        return cls.from_url(url, prefix=prefix)

    @property
    def storage(self) -> Storage:
        """The storage itself."""
        return self

    def fields(self, key: str) -> dict[str, str] | None:
        """Return a bucket's fields as they are stored."""
        reply = cast("Mapping[object, object]", self.command("HGETALL", self.prefix + key))
        return {text(name): text(value) for name, value in reply.items()} or None

    def drop(self, key: str, field: str) -> None:
        """Remove one field of a bucket."""
        self.command("HDEL", self.prefix + key, field)

    def delete(self, key: str) -> None:
        """Remove a bucket."""
        self.command("DEL", self.prefix + key)

    def command(self, *parts: str | int) -> object:
        """Send a command of the server's own; StorageUnavailable if it can't be reached or says no."""
        try:
            return self._client.execute_command(*parts)
        except Exception as error:  # each client library has errors of its own
            raise StorageUnavailable(f"Redis did not answer {parts[0]} ({type(error).__name__}: {error})") from error
