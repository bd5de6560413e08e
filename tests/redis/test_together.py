"""Many coroutines' acquires of one bucket in one call of the script: each gets what it would have got alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from keepa_tokens import AsyncRedisStorage, AsyncTokenBucket, Quota, Reading, RedisStorage
from keepa_tokens.errors import ConfigError, StorageUnavailable
from keepa_tokens.events import Event, EventKind
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Reconcile, Reserve
from keepa_tokens.storage import _batch, _wire
from keepa_tokens.storage._batch import Batches
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from tests.redis.common import NAME, NOW, calls, stored
from tests.servers import Server

ONE: Final = Quota(100, 0, 1.0)
QUOTAS: Final = (
    Quota(10, 3, 7.0),
    Quota(12, 5, 60.0, stepped=True),
    Quota(10, 0, 1.0),
    Quota(8, 2, 0.000007, overdraft=3),
    Quota(300, 5, 60.0, synced=True, overdraft=20),
)


def acquires() -> st.SearchStrategy[Acquire]:
    """Any acquire that stores nothing if it is refused."""
    waits = st.none() | st.integers(-5, 60_000_000)
    return st.builds(Acquire, st.integers(0, 11), st.sampled_from([0, 0, 0, 2]), waits, st.none())


async def asked(storage: AsyncRedisStorage, quota: Quota, commands: list[Acquire], now_us: int | None) -> list[Outcome]:
    """Return what becomes of acquires that come while one is under way."""
    return await asyncio.gather(*(storage.apply("k", quota, command, now_us=now_us) for command in commands))


def carried_out(url: str, program: Any) -> Any:
    async def whole() -> object:
        async with AsyncRedisStorage.from_url(url) as storage:
            return await program(storage)

    return asyncio.run(whole())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(quota=st.sampled_from(QUOTAS), commands=st.lists(acquires(), min_size=2, max_size=8), held=st.integers(0, 4))
@example(quota=QUOTAS[0], commands=[Acquire(4), Acquire(4), Acquire(4), Acquire(1), Acquire(1), Acquire(1)], held=0)
@example(quota=QUOTAS[0], commands=[Acquire(9, wait_us=60_000_000)] * 4, held=2)
def test_each_gets_what_it_would_have_got_alone(
    server: Server, client: redis.Redis, quota: Quota, commands: list[Acquire], held: int
) -> None:
    """At one instant, many at once and one after the other come to the same outcomes, and to the same bucket."""
    client.flushdb()
    storage = RedisStorage(client)
    first: list[Command] = [Reconcile(Reading(9))] if quota.synced else []
    for key in ("k", "alone"):
        for command in [*first, Reserve("h", 1, 60_000_000), Acquire(held)]:
            storage.apply(key, quota, command, now_us=NOW)
    expected = [storage.apply("alone", quota, command, now_us=NOW + 9) for command in commands]

    told = carried_out(server.url, lambda together: asked(together, quota, commands, NOW + 9))

    assert told == expected
    assert stored(client) | {"version": ""} == stored(client, "alone") | {"version": ""}


def test_a_crowd_is_a_few_calls(server: Server, client: redis.Redis) -> None:
    """Of three hundred that ask at once for the last hundred tokens a hundred are granted, by a few calls."""
    client.config_resetstat()
    told = carried_out(server.url, lambda storage: asked(storage, ONE, [Acquire(1)] * 300, None))
    assert sum(outcome.granted for outcome in told) == 100
    assert sorted(outcome.balance for outcome in told if outcome.granted) == list(range(100))
    assert calls(client, "evalsha") <= 8


def test_who_is_cancelled_in_time_takes_nothing(server: Server, client: redis.Redis) -> None:
    """Cancelled before its call goes out, an acquire is as if it had never been."""

    async def program(storage: AsyncRedisStorage) -> list[object]:
        tasks = [asyncio.create_task(storage.apply("k", ONE, Acquire(1))) for _ in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        tasks[4].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    told = carried_out(server.url, program)
    assert [isinstance(each, asyncio.CancelledError) for each in told] == [False] * 3 + [True] * 2 + [False]
    assert client.hget(NAME, "balance") == b"96"


def test_a_crowd_that_gives_its_places_up_leaves_nothing(server: Server, client: redis.Redis) -> None:
    """Three hundred wait for places and are cancelled at once: the bucket is as full as before they came."""

    async def program(storage: AsyncRedisStorage) -> int | None:
        waiting, all_wait = list[Event](), asyncio.Event()

        def hears(event: Event) -> None:
            waiting.extend([event] * (event.kind is EventKind.WAITING))
            if len(waiting) == 300:
                all_wait.set()

        bucket = AsyncTokenBucket(Quota(10, 1, 3600.0), key="k", storage=storage, listener=hears)
        crowd = [asyncio.create_task(bucket.acquire()) for _ in range(310)]
        await all_wait.wait()
        for each in crowd:
            each.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await bucket.aclose()
        return (await bucket.peek()).balance

    assert carried_out(server.url, program) == 0


def test_calls_by_turns_are_sent_one_after_the_other() -> None:
    """However many come together, they go in their order, and only one call of the group is under way."""
    sent = list[int]()
    under_way = asyncio.Semaphore(1)

    async def one(_: str, number: int) -> int:
        await many("", [number])
        return number

    async def many(_: str, numbers: list[int]) -> list[int | BaseException]:
        assert not under_way.locked()
        async with under_way:
            await asyncio.sleep(0)
            sent.extend(numbers)
        return [*numbers]

    async def program() -> list[int]:
        batches = Batches[str, int, int](one, many, 2, by_turns=True)
        return await asyncio.gather(*(batches.send("", number) for number in range(8)))

    assert asyncio.run(program()) == sent == list(range(8))


@pytest.mark.parametrize("spares_callers", [False, True])
def test_whenever_all_tasks_are_cancelled_nobody_waits_for_ever(spares_callers: bool) -> None:
    """As a program's shutdown does it: a call's own task, too, in its midst or before it began."""

    async def one(_: str, number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def many(_: str, numbers: list[int]) -> list[int | BaseException]:
        await asyncio.sleep(0)
        return [*numbers]

    async def program() -> None:
        for turns in range(12):
            batches = Batches[str, int, int](one, many, 2, by_turns=True)
            callers = [asyncio.create_task(batches.send("", number)) for number in range(6)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task(), *(callers if spares_callers else [])}:
                task.cancel()
            async with asyncio.timeout(5):
                await asyncio.gather(*callers, return_exceptions=True)
                assert await batches.send("", 7) == 7

    asyncio.run(program())


def test_what_is_wrong_with_one_is_nobody_elses_error(server: Server) -> None:
    """An acquire of no whole number is refused alone."""

    async def program(storage: AsyncRedisStorage) -> list[object]:
        wrong: Any = Acquire("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        steps: list[Coroutine[Any, Any, Outcome]] = [storage.apply("k", ONE, Acquire(1)) for _ in range(3)]
        return await asyncio.gather(*steps, storage.apply("k", ONE, wrong), return_exceptions=True)

    told = carried_out(server.url, program)
    assert [type(each) for each in told] == [Outcome] * 3 + [TypeError]


@pytest.mark.parametrize("command", [lambda _: Acquire(1), lambda number: Reserve(f"h{number}", 1, 10)])
def test_each_gets_an_error_of_its_own(own_server: Server, command: Callable[[int], Command]) -> None:
    """Where the server is gone, each caller raises its own error, with its cause, and the next command finds the way
    free.
    """

    async def program(storage: AsyncRedisStorage) -> list[object]:
        await storage.apply("k", ONE, Acquire(1))
        own_server.stop()
        told: list[object] = []
        for _ in range(2):
            steps = [storage.apply("k", ONE, command(number)) for number in range(5)]
            told[:] = await asyncio.gather(*steps, return_exceptions=True)
        return told

    told = carried_out(own_server.url, program)
    assert [type(each) for each in told] == [StorageUnavailable] * 5
    assert len({id(each) for each in told}) == 5
    assert all(isinstance(each, Exception) and isinstance(each.__cause__, redis.ConnectionError) for each in told)


def test_what_the_server_refuses_to_one_is_nobody_elses_error(server: Server, client: redis.Redis) -> None:
    """Of commands that are written together, the one whose key holds something else fails alone."""
    client.set(DEFAULT_PREFIX + "no-bucket", "x")

    async def program(storage: AsyncRedisStorage) -> list[object]:
        keys = ("k", "k", "no-bucket", "k")
        steps = [storage.apply(key, ONE, Reserve(f"h{number}", 1, 10)) for number, key in enumerate(keys)]
        return await asyncio.gather(*steps, return_exceptions=True)

    told = carried_out(server.url, program)
    assert [type(each) for each in told] == [Outcome, Outcome, ConfigError, Outcome]
    assert "holds something that is no bucket" in str(told[2])


class Odd(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"{number} {why}")


ODD: Final = Odd(1, "can't be made again of its arguments")


@pytest.mark.parametrize(
    "raised, told",
    [(ODD, ODD), (asyncio.CancelledError(), asyncio.CancelledError), (None, 3)],
    ids=["odd", "the loop ends", "nothing"],
)
def test_whoever_went_together_is_told_and_who_gave_up_meanwhile_is_not(raised: Any, told: object) -> None:
    """Each gets what came of all; a caller that was cancelled on the way changes nothing for the others."""

    async def one(_: str, number: int) -> int:
        return number

    async def many(_: str, numbers: list[int]) -> list[int | BaseException]:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if raised is not None:
            raise raised
        return [*numbers]

    async def program() -> list[object]:
        batches = Batches[str, int, int](one, many, 5)
        calls = [asyncio.ensure_future(batches.send("", number)) for number in range(4)]
        for _ in range(3):
            await asyncio.sleep(0)
        calls[1].cancel()
        await asyncio.wait(calls)
        await batches.aclose()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, gave_up, _, last = asyncio.run(program())
    assert (first, type(gave_up)) == (0, asyncio.CancelledError)
    assert last is told or last == told or type(last) is told


def test_when_too_many_wait_the_next_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not sent, and says so."""
    monkeypatch.setattr(_batch, "_MOST_WAITING", 2)

    async def one(_: str, number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def many(_: str, numbers: list[int]) -> list[int | BaseException]:
        return [*numbers]

    async def program() -> list[object]:
        batches = Batches[str, int, int](one, many, 5, by_turns=True)
        return await asyncio.gather(*(batches.send("", number) for number in range(4)), return_exceptions=True)

    *served, refused = asyncio.run(program())
    assert served == [0, 1, 2]
    assert isinstance(refused, StorageUnavailable)
    assert "certainly not carried out" in str(refused)


@pytest.mark.parametrize("reply", [b"other 5 9 0 0 0 0 9 0", b"", 7, None, [b"other", b"5", b"some"]])
def test_an_answer_to_another_call_is_none(reply: object) -> None:
    """What does not echo the nonce is no answer, whatever it is."""
    assert _wire.understood(reply, None, "mine") is None
