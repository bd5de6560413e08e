"""Nothing is half written: a command that a server refuses has changed nothing, and says so."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations

import pytest
import redis

from keepa_tokens import ConfigError, Quota, Reading, StorageUnavailable
from keepa_tokens.rules import commands
from keepa_tokens.rules.commands import Acquire, Cancel, ClaimProbe, Pause, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.common import NAME, NOW, SECOND, stored
from tests.servers import HOST, Server

PLAIN = Quota(60, 1, 1.0)
SYNCED = Quota(300, 5, 60.0, synced=True)
ALWAYS = ("evalsha", "eval", "time", "hlen", "hmget", "hgetall")
WRITING = ("hset", "hdel", "pexpire", "pttl", "persist")

Began = Callable[[RedisStorage, int | None], object]


def never(storage: RedisStorage, now: int | None) -> None:
    """Use no bucket."""


def used(storage: RedisStorage, now: int | None) -> None:
    storage.apply("k", PLAIN, Reserve("open", 5, 600 * SECOND), now_us=now)


def told(storage: RedisStorage, now: int | None) -> None:
    storage.apply("k", SYNCED, Reconcile(Reading(50, server_time=1.0)), now_us=now)
    storage.apply("k", SYNCED, Reserve("open", 5, 600 * SECOND), now_us=now)


def paused(storage: RedisStorage, now: int | None) -> None:
    """Leave a bucket with a pause, which the next command ends."""
    used(storage, now)
    storage.apply("k", PLAIN, Pause(600 * SECOND), now_us=now)


CASES: dict[str, tuple[Began, Quota, commands.Command]] = {
    "a new bucket": (never, PLAIN, Acquire(1)),
    "a new bucket's hold": (never, PLAIN, Reserve("a", 1, SECOND)),
    "a new bucket's claim": (never, SYNCED, Acquire(1)),
    "acquire": (used, PLAIN, Acquire(1)),
    "a place": (used, PLAIN, Acquire(60, wait_us=600 * SECOND)),
    "reserve": (used, PLAIN, Reserve("a", 1, SECOND)),
    "settle": (used, PLAIN, Settle("open", 1)),
    "cancel": (used, PLAIN, Cancel("open")),
    "refund": (used, PLAIN, Refund("r", 1)),
    "a ticket": (used, PLAIN, Acquire(56, keep=1, ticket="t")),
    "the end of a pause": (paused, PLAIN, Pause(0)),
    "a reading": (told, SYNCED, Settle("open", 1, Reading(40, server_time=2.0))),
    "a synced settle": (told, SYNCED, Settle("open", 1)),
    "a claim": (told, SYNCED, ClaimProbe()),
}
NO_MORE_ROOM = {"acquire", "a place", "settle", "cancel", "a synced settle"}
"""What is carried out on a full server too: it only changes numbers, or removes a hold."""


def seen(client: redis.Redis) -> tuple[dict[str, str], bool]:
    """Return what is stored, and whether it is for ever."""
    return stored(client), client.ttl(NAME) == -1


@pytest.mark.parametrize("now", [None, NOW], ids=["the server's time", "a caller's"])
@pytest.mark.parametrize("case", CASES)
def test_a_missing_right_changes_nothing(
    server: Server, client: redis.Redis, storage: RedisStorage, case: str, now: int | None
) -> None:
    """Without any one right, or any two, a command is carried out whole or is a ConfigError and has left no trace."""
    began, quota, command = CASES[case]
    told_of = 0
    for rights in chain(combinations(WRITING, 1), combinations(WRITING, 2)):
        if began is never and set(rights) == {"hdel", "pexpire"}:
            continue  # who may neither give a new bucket an end nor undo it leaves it behind, with the tokens taken
        client.acl_setuser(
            "worker",
            enabled=True,
            reset=True,
            passwords=["+secret"],
            keys=["*"],
            commands=[f"+{name}" for name in (*ALWAYS, *WRITING) if name not in rights],
        )
        client.delete(NAME)
        began(storage, now)
        before = seen(client)
        refused = ""
        with RedisStorage.from_url(f"redis://worker:secret@{HOST}:{server.port}") as lesser:
            try:
                lesser.apply("k", quota, command, now_us=now)
            except ConfigError as error:
                refused = str(error)
                told_of += 1
        assert (seen(client) == before) == bool(refused), rights
        assert not refused or "Nothing was changed" in refused
    client.acl_deluser("worker")
    assert told_of


@pytest.mark.parametrize("case", CASES)
def test_a_full_server_changes_nothing_or_goes_on(client: redis.Redis, storage: RedisStorage, case: str) -> None:
    """On a full server what would take more room is surely not carried out and leaves no trace; the rest goes on."""
    began, quota, command = CASES[case]
    began(storage, None)
    storage.apply("other", PLAIN, Peek())
    before = seen(client)
    client.config_set("maxmemory", "1")
    try:
        if case in NO_MORE_ROOM:
            storage.apply("k", quota, command)
            assert seen(client) != before
        else:
            with pytest.raises(StorageUnavailable, match=r"OOM|maxmemory.* certainly not carried out"):
                storage.apply("k", quota, command)
            assert seen(client) == before
    finally:
        client.config_set("maxmemory", "0")
    storage.apply("k", quota, command)
    assert seen(client) != before
