"""An asyncio worker: several tasks in one process that spend, hold, queue and call, and are cancelled in the middle.

`python -m checks.torture.aio ASSIGNMENT`, as `torture.worker`.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, TypeAlias

import httpx

from checks.torture.api import KEY, PATH, parameters
from checks.torture.story import Answered, Asked, Broke, Journal, Left, machine_us
from checks.torture.terms import CALL_WITHIN, HELD, HOLD_FOR, KEEPA, PLAIN, PROBE_INTERVAL, QUOTAS
from checks.torture.worker import QUEUED, TRIES, Assignment, body_of, consumed, silent
from keepa_tokens import (
    AsyncCall,
    AsyncKeepaSync,
    AsyncTokenBucket,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    StorageUnavailable,
)
from keepa_tokens.rules.commands import Command, Outcome, Peek, Refund
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.storage.base import AsyncStorage
from keepa_tokens.storage.redis import AsyncRedisStorage

TASKS: Final = 3
"""How many work at a time in one process, on one connection pool."""


async def applied(bucket: AsyncTokenBucket, command: Command) -> Outcome:
    """Carry a command that no door has to a bucket."""
    storage = bucket.storage
    assert not isinstance(storage, MemoryStorage)
    return await storage.apply(bucket.key, bucket.quota, command)


class AsyncJournaled:
    """A storage that logs every command before it is sent, and what became of it."""

    def __init__(self, inner: AsyncStorage, journal: Journal) -> None:
        self._inner = inner
        self._journal = journal

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Log the command, carry it out, log what became of it; a cancelled one may have counted or not."""
        step = self._journal.sent(key, command)
        try:
            outcome = await self._inner.apply(key, quota, command, now_us=now_us)
        except (Exception, asyncio.CancelledError) as error:
            self._journal.failed(step, error)
            raise
        self._journal.told(step, outcome)
        return outcome

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands."""
        return await self._inner.inspect(key, now_us=now_us)

    def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all buckets."""
        return self._inner.keys()

    async def aclose(self) -> None:
        """Close the storage inside."""
        await self._inner.aclose()


class AsyncHand:
    """A task's doors to the buckets and to the API; all of a process share one storage."""

    def __init__(
        self, assignment: Assignment, number: int, journal: Journal, storage: AsyncStorage, stop: asyncio.Event
    ) -> None:
        self.who = assignment.who
        self.chance = random.Random(f"{assignment.seed}/{number}")
        self.stop = stop
        self.journal = journal
        doors = {
            key: AsyncTokenBucket(quota, key=key, storage=storage, listener=silent) for key, quota in QUOTAS.items()
        }
        self.plain, self.held = doors[PLAIN], doors[HELD]
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # all is plain HTTP: no certificates to load
        self.http = httpx.AsyncClient(base_url=assignment.api, timeout=CALL_WITHIN, trust_env=False, verify=bare)
        self.sync = AsyncKeepaSync(
            doors[KEEPA], probe=self._probe, probe_interval=PROBE_INTERVAL, hold_for=HOLD_FOR[KEEPA]
        )

    async def pause(self, shortest: float, longest: float) -> None:
        """Wait for a while, or until the end."""
        try:
            await asyncio.wait_for(self.stop.wait(), self.chance.uniform(shortest, longest))
        except TimeoutError:
            return

    def some(self, most: int) -> int:
        """Return a number of tokens; one token more often than any other."""
        return self.chance.choice((1, self.chance.randint(1, most)))

    def happens(self, probability: float) -> bool:
        """Draw."""
        return self.chance.random() < probability

    async def insist(self, command: Callable[[], Awaitable[object]]) -> None:
        """Send a command again until it is known what became of it, as often as is sensible."""
        for _ in range(TRIES):
            try:
                await command()
            except StorageUnavailable:
                await self.pause(0.02, 0.3)
            else:
                return

    async def _probe(self) -> tuple[int, dict[str, object] | None]:
        answer = await self.http.get("/token", params={"key": KEY})
        return answer.status_code, body_of(answer)


# --- what a task does


async def take(hand: AsyncHand) -> None:
    """Take tokens if they are there, or if they are besides some that are left for others."""
    await hand.plain.try_acquire(hand.some(6), keep=hand.chance.choice((0, 0, 3)))


async def queue(hand: AsyncHand) -> None:
    """Wait for tokens."""
    await hand.plain.acquire(hand.some(6), timeout=hand.chance.uniform(0.1, 1.0))


async def give_back(hand: AsyncHand) -> None:
    """Take tokens and give them back twice under one id."""
    tokens = hand.some(4)
    if await hand.plain.try_acquire(tokens):
        refund = Refund(uuid.uuid4().hex, tokens, (await applied(hand.plain, Peek())).now_us)
        for _ in range(2):
            await hand.insist(lambda: applied(hand.plain, refund))


async def hold(hand: AsyncHand) -> None:
    """Wait for a hold, work, and end it at what was reserved or less; sometimes never."""
    timeout = hand.chance.uniform(0.1, 1.0)
    async with hand.held.reserve(hand.some(8), timeout=timeout, hold_for=HOLD_FOR[HELD]) as reservation:
        await hand.pause(0.0, 0.15)
        actual = hand.chance.randint(0, reservation.tokens)
        for _ in range(1 + hand.happens(0.2)):
            await hand.insist(lambda: reservation.settle(actual))


async def hold_in_vain(hand: AsyncHand) -> None:
    """Reserve, and cancel."""
    reservation = await hand.held.try_reserve(hand.some(5), hold_for=HOLD_FOR[HELD])
    await hand.pause(0.0, 0.1)
    await hand.insist(reservation.cancel)


async def call(hand: AsyncHand) -> None:
    """Call the API; a call costs what was estimated, or less."""
    estimate = hand.some(6)
    cost = hand.chance.randint(0, estimate) if hand.happens(0.1) else estimate
    await spend(hand, hand.sync.request(estimate, timeout=2.0, keep=hand.chance.choice((0, 0, 2))), estimate, cost)


async def do_task(hand: AsyncHand) -> None:
    """Take up a queue's task, which any worker may have had before: its place is its own. It is tried again, or not."""
    place, estimate = f"task-{hand.chance.randrange(QUEUED)}", hand.some(6)
    for _ in range(3):
        try:
            await spend(hand, hand.sync.try_request(estimate, place=place), estimate, estimate)
        except NotEnoughTokens as refused:
            await hand.pause(0.0, min(refused.retry_after, 1.0))
        else:
            return


async def spend(hand: AsyncHand, request: AbstractAsyncContextManager[AsyncCall], estimate: int, cost: int) -> None:
    """Make a call once its request is granted."""
    async with request as spent:
        hand.journal.write(Asked(hand.who, machine_us(), spent.id, estimate))
        try:
            answer = await hand.http.get(PATH, params=parameters(spent.id, cost))
        except httpx.HTTPError:
            return  # charged or not, nobody knows: the hold is left to run out
        hand.journal.write(Answered(hand.who, machine_us(), spent.id, answer.status_code, consumed(answer)))
        await hand.insist(lambda: spent.settle(answer.content, status=answer.status_code))


Job: TypeAlias = Callable[[AsyncHand], Awaitable[None]]

JOBS: Final[Mapping[Job, int]] = {
    take: 4,
    queue: 3,
    give_back: 2,
    hold: 4,
    hold_in_vain: 2,
    call: 5,
    do_task: 3,
}
"""What a task does, and how often."""

CANCELLED: Final = 0.1
"""How many jobs are cancelled in the middle, wherever that is."""


async def attempt(hand: AsyncHand, job: Job) -> None:
    """Do a job, or cancel it. A refusal and a storage that is away are part of it; any other error is a finding."""
    task = asyncio.ensure_future(job(hand))
    if hand.happens(CANCELLED):
        await hand.pause(0.0, 0.1)
        task.cancel()
    try:
        await task
    except (StorageUnavailable, NotEnoughTokens, asyncio.CancelledError):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the log is to tell
        hand.journal.write(Broke(hand.who, machine_us(), f"{type(error).__name__}: {error}"))


async def task_of(hand: AsyncHand) -> None:
    """Do one job after the other."""
    jobs, weights = list(JOBS), list(JOBS.values())
    async with hand.http:
        while not hand.stop.is_set():
            await attempt(hand, hand.chance.choices(jobs, weights)[0])
            await hand.pause(0.005, 0.04)


async def work(assignment: Assignment, journal: Journal) -> None:
    """Let all tasks work until the standard input ends."""
    stop = asyncio.Event()
    storage = AsyncJournaled(AsyncRedisStorage.from_url(assignment.redis), journal)
    hands = [AsyncHand(assignment, number, journal, storage, stop) for number in range(TASKS)]
    tasks = [asyncio.ensure_future(task_of(hand)) for hand in hands]
    await asyncio.to_thread(sys.stdin.buffer.read)
    stop.set()
    await asyncio.gather(*tasks)
    await storage.aclose()


def main(arguments: Sequence[str]) -> int:
    """Work until the standard input ends."""
    assignment = Assignment(**json.loads(arguments[1]))
    journal = Journal(Path(assignment.folder), assignment.who)
    asyncio.run(work(assignment, journal))
    journal.write(Left(assignment.who, machine_us()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
