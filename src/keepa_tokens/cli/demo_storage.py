"""The demo's bucket in Redis or Valkey: for those who also look at what is stored, break it, and clear it away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..errors import StorageUnavailable
from ..rules.state import BucketState
from ..storage.redis import RedisStorage
from .demo_worker import BUCKET


class DemoStorage(RedisStorage):
    """A storage that knows the demo's one bucket as it is stored."""

    def stored(self) -> BucketState | None:
        """Return the bucket's state as it is stored."""
        reply = cast("Mapping[bytes | str, bytes | str]", self._raw("HGETALL"))
        fields = {_text(name): _text(value) for name, value in reply.items()}
        return BucketState.from_fields(fields) if fields else None

    def lose_timestamp(self) -> None:
        """Do to the stored state what broke the old system."""
        self._raw("HDEL", "refilled_at")

    def delete(self) -> None:
        """Delete the bucket."""
        self._raw("DEL")

    def _raw(self, command: str, *arguments: str) -> object:
        try:
            return self._client.execute_command(command, self.prefix + BUCKET, *arguments)
        except Exception as error:  # each client library has errors of its own
            raise StorageUnavailable(f"Redis did not answer {command} ({type(error).__name__}: {error})") from error


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
