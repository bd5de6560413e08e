"""A storage that logs every command before it is sent, and what became of it; and storages that break the promise."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from checks.torture.story import Journal, machine_us
from keepa_tokens import Quota, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.storage.base import Storage
from keepa_tokens.storage.redis import RedisStorage


class Wrapped:
    """A storage around another one."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket."""
        return self.inner.apply(key, quota, command, now_us=now_us)

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands."""
        return self.inner.inspect(key, now_us=now_us)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets."""
        return self.inner.keys()

    def close(self) -> None:
        """Close the storage inside."""
        self.inner.close()


class Journaled(Wrapped):
    """Logs every command."""

    def __init__(self, inner: Storage, journal: Journal) -> None:
        super().__init__(inner)
        self._journal = journal

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Log the command, carry it out, log what became of it."""
        step = self._journal.sent(key, command)
        try:
            outcome = super().apply(key, quota, command, now_us=now_us)
        except Exception as error:
            self._journal.failed(step, error)
            raise
        self._journal.told(step, outcome)
        return outcome


# --- planted faults: with each of them a run must fail


class GivesBackTwice(Wrapped):
    """Whatever is given back is given back once more."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry the command out, and a refund after it."""
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Settle | Cancel | Refund) and outcome.found and not quota.synced:
            super().apply(key, quota, Refund(uuid.uuid4().hex, 3, outcome.now_us), now_us=now_us)
        return outcome


class GrantsWhenAway(Wrapped):
    """Where the storage is away, everything is granted."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry the command out, or say that it was."""
        try:
            return super().apply(key, quota, command, now_us=now_us)
        except StorageUnavailable:
            if isinstance(command, Acquire | Reserve):
                return Outcome(machine_us() if now_us is None else now_us, None, granted=True)
            raise


class LosesAField(Wrapped):
    """A field of the bucket is lost again and again, below the surface."""

    field: str
    """The name of the stored field."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Lose the field, and then carry the command out."""
        if isinstance(self.inner, RedisStorage) and not isinstance(command, Peek):
            client = self.inner._client  # noqa: SLF001 - a fault is planted below the surface
            try:
                client.execute_command("HDEL", self.inner.prefix + key, self.field)
            except Exception as error:
                raise StorageUnavailable("the planted fault found no storage") from error
        return super().apply(key, quota, command, now_us=now_us)


class LosesTimestamps(LosesAField):
    """The rule that started it all: who asks takes now for the last refill, so nothing ever refills."""

    field = "refilled_at"


class LosesTheLine(LosesAField):
    """Nobody knows who was first."""

    field = "line"


class ForgetsHolds(Wrapped):
    """Now and then a hold is gone as soon as it was granted."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry the command out, and lose its hold."""
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Reserve) and outcome.granted and command.tokens == 1:
            super().apply(key, quota, Cancel(command.id), now_us=now_us)
        return outcome


PLANTED: Final[Mapping[str, Callable[[Storage], Storage]]] = {
    "gives-back-twice": GivesBackTwice,
    "grants-when-away": GrantsWhenAway,
    "loses-timestamps": LosesTimestamps,
    "loses-the-line": LosesTheLine,
    "forgets-holds": ForgetsHolds,
}


def opened(url: str, journal: Journal, planted: str = "") -> Storage:
    """Open the storage at `url`, with a planted fault or without."""
    storage: Storage = RedisStorage.from_url(url)
    if planted:
        storage = PLANTED[planted](storage)
    return Journaled(storage, journal)
