"""A storage that logs every command before it is sent, and what became of it; and storages that break the promise."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

from checks.torture.story import Journal, machine_us
from keepa_tokens import Quota, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage


class Journaled(RedisStorage):
    """Logs every command."""

    journal: Journal

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Log the command, carry it out, log what became of it."""
        with self.journal.step(key, command) as told:
            return told(super().apply(key, quota, command, now_us=now_us))


class AsyncJournaled(AsyncRedisStorage):
    """The same for coroutines. One that is cancelled may have counted or not."""

    journal: Journal

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Log the command, carry it out, log what became of it."""
        with self.journal.step(key, command) as told:
            return told(await super().apply(key, quota, command, now_us=now_us))


# --- planted faults: with each of them a run must fail


class GivesBackTwice(RedisStorage):
    """Whatever is given back is given back once more."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry the command out, and a refund after it."""
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Settle | Cancel | Refund) and outcome.found and not quota.synced:
            super().apply(key, quota, Refund(uuid.uuid4().hex, 3, outcome.now_us), now_us=now_us)
        return outcome


class GrantsWhenAway(RedisStorage):
    """Where the storage is away, everything is granted."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry the command out, or say that it was."""
        try:
            return super().apply(key, quota, command, now_us=now_us)
        except StorageUnavailable:
            if isinstance(command, Acquire | Reserve):
                return Outcome(machine_us() if now_us is None else now_us, None, granted=True)
            raise


class LosesAField(RedisStorage):
    """A field of the bucket is lost again and again, below the surface."""

    field: str
    """The name of the stored field."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Lose the field, and then carry the command out."""
        if not isinstance(command, Peek):
            try:
                self._client.execute_command("HDEL", self.prefix + key, self.field)
            except Exception as error:
                raise StorageUnavailable("the planted fault found no storage") from error
        return super().apply(key, quota, command, now_us=now_us)


class LosesTimestamps(LosesAField):
    """The rule that started it all: who asks takes now for the last refill, so nothing ever refills."""

    field = "refilled_at"


class LosesTheLine(LosesAField):
    """Nobody knows who was first."""

    field = "line"


class ForgetsHolds(RedisStorage):
    """Now and then a hold is gone as soon as it was granted."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry the command out, and lose its hold."""
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Reserve) and outcome.granted and command.tokens == 1:
            super().apply(key, quota, Cancel(command.id), now_us=now_us)
        return outcome


PLANTED: Final[Mapping[str, type[RedisStorage]]] = {
    "gives-back-twice": GivesBackTwice,
    "grants-when-away": GrantsWhenAway,
    "loses-timestamps": LosesTimestamps,
    "loses-the-line": LosesTheLine,
    "forgets-holds": ForgetsHolds,
}


def opened(url: str, journal: Journal, planted: str = "", *, aio: bool = False) -> Journaled | AsyncJournaled:
    """Open the storage at `url`, with a planted fault or without; those are for blocking ones."""
    kind: type[Journaled | AsyncJournaled] = AsyncJournaled if aio else Journaled
    if planted:
        kind = type("JournaledFault", (Journaled, PLANTED[planted]), {})  # logged is what the fault made of it
    storage = kind.from_url(url)
    storage.journal = journal
    return storage
