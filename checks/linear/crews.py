"""Concurrent callers on one bucket, whose calls are written down: threads, coroutines, processes, lost connections."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Barrier
from typing import Final

import redis

from checks.linear.search import Call
from keepa_tokens.errors import StorageUnavailable
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from keepa_tokens.rules.reading import Reading
from keepa_tokens.storage.base import Storage
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage

SECOND: Final = 1_000_000
EPOCH: Final = 1_780_000_000 * SECOND

QUOTAS: Final = (
    Quota(10, 3, 7.0),
    Quota(6, 2, 1.0, stepped=True),
    Quota(10, 3, 1.0, recharge_to=8),
    Quota(40, 5, 2.0, synced=True, overdraft=20),
    Quota(12, 5, 3.0, stepped=True, synced=True, initial=9),
)

OTHERS: Final = {True: QUOTAS[3], False: Quota(8, 5, 2.0)}
"""The terms of somebody who has others, by whether they are a synced bucket's."""

Work = Sequence[tuple[int, Quota, Command]]
"""Commands, each at an instant of the bucket's clock and by somebody's terms."""


def work(rng: random.Random, quota: Quota, calls: int) -> Work:
    """Return what one caller does: all commands, at one instant or at several, some by other terms."""
    # Clocks further apart than the tolerance are damage to be mended, which whoever reads a part may not see.
    spread = rng.choice([0, 0, SECOND, 4 * SECOND])
    terms = rng.choice([quota, quota, quota, OTHERS[quota.synced]])
    return [(EPOCH + rng.randint(0, spread), terms, _command(rng, quota)) for _ in range(calls)]


def _command(rng: random.Random, quota: Quota) -> Command:
    hold, tokens = rng.choice("abc"), rng.randint(0, 6)
    reading = Reading(rng.randint(-5, 12), server_time=1e9 + rng.randint(0, 4)) if quota.synced else None
    usual: list[Command] = [
        Acquire(tokens),
        Acquire(rng.randint(1, 4), wait_us=rng.choice([0, 30 * SECOND])),
        Reserve(hold, rng.randint(1, 4), 60 * SECOND),
        Settle(hold, rng.randint(0, 5)),
        Settle(hold, rng.randint(0, 5), reading),
        Cancel(hold),
        Refund(rng.choice("xy"), rng.randint(1, 3), rng.choice([None, EPOCH])),
    ]
    unusual: list[Command] = [
        Acquire(rng.randint(1, 6), rng.choice([0, 0, 2]), ticket=rng.choice("tu")),
        Reserve(hold, rng.randint(1, 6), SECOND, ticket=hold),
        Cancel(rng.choice("tu")),
        Reserve(hold, 3, SECOND, keep=1, scout=True, label="a task"),
        ClaimProbe(),
        Unclaim(EPOCH + 20 * SECOND),
        Pause(rng.choice([0, SECOND])),
        Peek(tokens),
        Reconcile(Reading(rng.randint(-5, 12), server_time=1e9 + rng.randint(0, 4))),
    ]
    return rng.choice(usual if rng.random() < 0.7 else unusual)


def by_threads(storage: Storage, crew: Sequence[Work]) -> list[Call]:
    """Let each thread of a crew do its work; return all calls."""
    start = threading.Barrier(len(crew))

    def caller(mine: Work) -> list[Call]:
        start.wait()
        return [one(storage, *each) for each in mine]

    with ThreadPoolExecutor(len(crew)) as pool:
        return [call for calls in pool.map(caller, crew) for call in calls]


def one(storage: Storage, now: int, quota: Quota, command: Command) -> Call:
    """Make one call."""
    began, outcome = time.monotonic_ns(), None
    with suppress(StorageUnavailable):
        outcome = storage.apply("k", quota, command, now_us=now)
    return Call(began, time.monotonic_ns(), now, quota, command, outcome)


async def by_coroutines(storage: AsyncRedisStorage, crew: Sequence[Work]) -> list[Call]:
    """Let each coroutine of a crew do its work; return all calls."""
    told: list[Call] = []

    async def caller(mine: Work) -> None:
        for now, quota, command in mine:
            began, outcome = time.monotonic_ns(), None
            with suppress(StorageUnavailable):
                outcome = await storage.apply("k", quota, command, now_us=now)
            told.append(Call(began, time.monotonic_ns(), now, quota, command, outcome))

    await asyncio.gather(*(caller(mine) for mine in crew))
    return told


_mine: list[tuple[RedisStorage, Barrier]] = []
"""What one of several processes has: a storage of its own, and where it waits for the others."""


@contextmanager
def by_processes(url: str, number: int) -> Iterator[Callable[[Sequence[Sequence[Work]]], list[Call]]]:
    """Yield what lets the threads of several processes, which stay, do their work; it returns all calls."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, _begin, (url, context.Barrier(number))) as pool:
        yield lambda crew: [call for calls in pool.map(_do, crew) for call in calls]


def _begin(url: str, start: Barrier) -> None:
    _mine.append((RedisStorage.from_url(url), start))


def _do(works: Sequence[Work]) -> list[Call]:
    storage, start = _mine[0]
    start.wait()
    return by_threads(storage, works)


@contextmanager
def killing(client: redis.Redis, rng: random.Random) -> Iterator[None]:
    """Kill clients' connections at random meanwhile."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(rng.uniform(0, 0.01)):
            client.client_kill_filter(_type="normal", skipme=True)

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill)
        try:
            yield
        finally:
            ended.set()
    killer.result()
