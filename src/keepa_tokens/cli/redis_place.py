"""A place in Redis or Valkey. It needs a client library, so it is imported only for a Redis URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

from ..errors import ConfigError
from ..storage.redis import RedisStorage
from ..units import MICROSECONDS
from .words import text

PUT: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""


class RedisPlace(RedisStorage):
    """Buckets in Redis or Valkey."""

    kind: Literal["server"] = "server"

    def fields(self, key: str) -> dict[str, str] | None:
        """Return a bucket's fields as they are stored."""
        reply = cast("Mapping[object, object]", self.command("HGETALL", self.prefix + key))
        return {text(name): text(value) for name, value in reply.items()} or None

    def now_us(self) -> int:
        """Return the server's time in microseconds."""
        seconds, micros = cast("tuple[object, object]", self.command("TIME"))
        return int(text(seconds)) * MICROSECONDS + int(text(micros))

    def is_endless(self, key: str) -> bool:
        """Return whether the server keeps a bucket for ever."""
        return self.command("PTTL", self.prefix + key) == -1

    def put(self, key: str, fields: Mapping[str, str], lifetime: float) -> bool:
        """Store a bucket for `lifetime` seconds, unless there is one already; return whether it was stored."""
        flat = [part for pair in fields.items() for part in pair]
        return self.command("EVAL", PUT, 1, self.prefix + key, round(lifetime * 1000), *flat) == 1

    def drop(self, key: str, field: str) -> None:
        """Remove one field of a bucket."""
        self.command("HDEL", self.prefix + key, field)

    def keep_for(self, key: str, seconds: float) -> None:
        """Give a bucket's key a lifetime."""
        self.command("PEXPIRE", self.prefix + key, round(seconds * 1000))

    def command(self, *parts: str | int) -> object:
        """Send a Redis command; its errors are those of the storage."""
        name, *rest = parts
        sent = [part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part for part in rest]
        try:
            return self._client.execute_command(name, *sent)
        except Exception as error:
            meant = self._meant(error)
            if "WRONGTYPE" in str(error):  # maybe of another program
                raise ConfigError(f"the key {parts[1]!r} holds something else than was expected") from error
            if type(error).__name__ == "MovedError":
                node = str(error).rpartition(" ")[2]
                raise ConfigError(f"a node of a cluster, and {parts[1]!r} is on another: try --redis {node}") from error
            raise meant from error
