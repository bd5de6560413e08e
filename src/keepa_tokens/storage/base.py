"""What a bucket needs of a storage: to apply one command to one state in one atomic step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final, Protocol, Self, runtime_checkable

from ..quota import Quota
from ..rules.commands import Command, Outcome
from ..rules.decision import Snapshot

IN_ITS_MIDST: Final = (
    "a signal's handler or a finalizer used the bucket in the midst of a step of its own thread. The command was"
    " certainly not carried out."
)


@runtime_checkable
class Storage(Protocol):
    """Where states live. Each `apply` is one atomic step, as if nobody else were there."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` at `now_us` (None: the storage's own time) and return the outcome.

        Raises StorageUnavailable if the storage can't be reached: nobody knows then whether the command counted.
        """
        ...

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the quota last used on it, writing nothing; None if there is none."""
        ...

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets."""
        ...

    def close(self) -> None:
        """Let go of what the storage itself opened."""
        ...


@runtime_checkable
class AsyncStorage(Protocol):
    """The same for coroutines."""

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key`; as `Storage.apply`."""
        ...

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands; as `Storage.inspect`."""
        ...

    def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all buckets."""
        ...

    async def aclose(self) -> None:
        """Let go of what the storage itself opened."""
        ...


class Closing:
    """Makes what can be closed a context manager, which closes it at the end of the block."""

    def close(self) -> None:
        """Let go of what it opened itself."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClosing:
    """The same for coroutines."""

    async def aclose(self) -> None:
        """Let go of what it opened itself."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
