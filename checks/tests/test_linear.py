"""Linearizability: whatever callers do at the same time, it came to what some order of their commands comes to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import redis

from checks.linear.crews import EPOCH, QUOTAS, Work, by_coroutines, by_processes, by_threads, killing, one, work
from checks.linear.search import Call, order
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Outcome, Peek
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage import _wire
from keepa_tokens.storage.base import Storage
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing.crews import hurried
from tests.servers import Server, running

HISTORIES = 60
"""How many of each kind."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("valkey") as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with server.client() as made:
        yield made


def crew(seed: int, callers: int, calls: int) -> list[Work]:
    rng = random.Random(seed)
    quota = rng.choice(QUOTAS)
    return [work(rng, quota, calls) for _ in range(callers)]


def last_look(storage: Storage, history: list[Call]) -> list[Call]:
    """Return a history with a look after all the others, which tells what was stored in the end."""
    return [*history, one(storage, max(call.now for call in history), history[0].quota, Peek())]


def on_memory(storage: MemoryStorage, seed: int) -> list[Call]:
    works = crew(seed, callers=4, calls=6)
    with hurried():
        return last_look(storage, by_threads(storage, works))


def holds(history: list[Call]) -> bool:
    return order(history) is not None


# --- the search itself


TWO = Quota(2, 0, 1.0)


def told(began: int, ended: int, outcome: Outcome | None, now: int = EPOCH) -> Call:
    """Return a call for one token of two."""
    return Call(began, ended, now, TWO, Acquire(1), outcome)


def test_the_search_finds_the_order_and_knows_when_there_is_none() -> None:
    """Two grants and a refusal can have come in one order only; a refusal before two grants can't have."""
    state, outcomes = None, []
    for _ in range(3):
        state, outcome = transition(TWO, state, EPOCH, Acquire(1))
        outcomes.append(outcome)
    first, second, refused = outcomes
    assert order([told(0, 9, refused), told(1, 9, second), told(2, 9, first)]) == [
        told(2, 9, first),
        told(1, 9, second),
        told(0, 9, refused),
    ]
    assert order([told(0, 1, refused), told(2, 9, second), told(2, 9, first)]) is None
    assert order([told(0, 9, first), told(0, 9, first)]) is None


def test_a_lost_call_counts_or_not_but_not_before_it_began() -> None:
    """A call whose outcome is lost explains what others saw afterwards, or nothing; never what was seen before it."""
    state, first = transition(TWO, None, EPOCH, Acquire(1))
    _, second = transition(TWO, state, EPOCH, Acquire(1))
    assert order([told(0, 9, None), told(10, 11, second)]) is not None
    assert order([told(0, 9, None), told(10, 11, first)]) == [told(10, 11, first)]
    assert order([told(12, 13, None), told(10, 11, second)]) is None


# --- the storages


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_threads_on_memory_storage(seed: int) -> None:
    """Four threads with all commands, at one instant and at several."""
    assert holds(on_memory(MemoryStorage(), seed))


def test_processes_on_a_server(server: Server, client: redis.Redis) -> None:
    """Three processes of two threads, on one bucket."""
    with RedisStorage.from_url(server.url) as storage, by_processes(server.url, 3) as done_by:
        for seed in range(HISTORIES):
            client.flushall()
            works = crew(seed, callers=6, calls=4)
            assert holds(last_look(storage, done_by([works[:2], works[2:4], works[4:]]))), seed


@pytest.mark.parametrize("lossy", [False, True], ids=["whole", "connections killed"])
def test_coroutines_on_a_server(server: Server, client: redis.Redis, lossy: bool) -> None:
    """Six coroutines that share writes, on one bucket; with their connections killed at random, calls may be lost."""
    lost = 0

    async def all_of_them() -> None:
        nonlocal lost
        for seed in range(HISTORIES // (1 + 3 * lossy)):
            client.flushall()
            storage = AsyncRedisStorage.from_url(server.url)
            # What is lost may have come anywhere: so few calls that the search stays short.
            works = crew(seed, callers=4, calls=3) if lossy else crew(seed, callers=6, calls=4)
            with killing(client, random.Random(seed)) if lossy else nullcontext():
                history = await by_coroutines(storage, works)
            lost += sum(call.outcome is None for call in history)
            await storage.aclose()
            assert holds(last_look(looking, history)), seed

    with RedisStorage.from_url(server.url) as looking:
        asyncio.run(all_of_them())
    assert (lost > 0) == lossy


# --- what is broken is found


class NoLock(nullcontext[None]):
    """What stands for a lock and lets everybody in."""

    def locked(self) -> bool:
        return False


def test_memory_without_its_lock_is_found() -> None:
    """Without the lock some history of threads can't be put in order."""
    for seed in range(40 * HISTORIES):
        storage: Any = MemoryStorage()
        storage.lock = NoLock()
        if not holds(on_memory(storage, seed)):
            return
    pytest.fail("nothing was found")


def found_on_a_server(client: redis.Redis, storage: RedisStorage) -> bool:
    """Whether some history of threads on a server can't be put in order."""
    with storage:
        for seed in range(4 * HISTORIES):
            client.flushall()
            works = crew(seed, callers=6, calls=4)
            if not holds(last_look(storage, by_threads(storage, works))):
                return True
    return False


def test_storing_without_the_version_is_found(server: Server, client: redis.Redis) -> None:
    """A script that stores what was decided although somebody has written meanwhile."""
    storage = RedisStorage.from_url(server.url)
    whole = b"verb == 'store' and (version or '') == terms and (refilled_at or '') == ARGV[7] then"
    script = storage._script
    assert script.count(whole) == 1
    storage._script, storage._digest = script.replace(whole, b"verb == 'store' then"), "0" * 40
    assert found_on_a_server(client, storage)


def test_a_stale_cache_is_found(server: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that decides by what it read before."""
    read: dict[object, _wire.Answer] = {}

    class Cached(RedisStorage):
        """Answers looks from memory."""

        async def _attempt(
            self, key: str, quota: Quota, command: Any, now_us: int | None, turn: str = ""
        ) -> _wire.Answer:
            if isinstance(command, Peek) and quota in read:
                return read[quota]
            answer = await super()._attempt(key, quota, command, now_us, turn)
            if isinstance(answer, _wire.Handed) and not answer.partial:
                read[quota] = answer
            return answer

    assert found_on_a_server(client, Cached.from_url(server.url))


def test_a_ticket_that_is_not_stored_is_found(server: Server, client: redis.Redis) -> None:
    """A storage that forgets who stands in line."""

    class Forgetful(RedisStorage):
        """Stores everything but the line."""

        async def _ask(self, key: str, arguments: list[_wire.Argument], command: Any) -> _wire.Answer:
            if arguments[0] == "store" and b"line" in arguments[9:]:
                at = arguments.index(b"line", 9)
                del arguments[at : at + 2]
            return await super()._ask(key, arguments, command)

    assert found_on_a_server(client, Forgetful.from_url(server.url))
