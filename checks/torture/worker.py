"""One worker: a process that spends, holds, queues and calls until its standard input ends.

`python -m checks.torture.worker ASSIGNMENT`, a JSON object of the fields of `Assignment`. What it does is written once,
in coroutines: with blocking doors each runs to its end whenever it is asked; with those of asyncio several take turns,
and some are cancelled in the middle.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

import httpx

from checks.torture.api import KEY, PATH, parameters
from checks.torture.storage import AsyncJournaled, Journaled, opened
from checks.torture.story import Answered, Asked, Broke, Journal, Left, machine_us
from checks.torture.terms import CALL_WITHIN, HELD, HOLD_FOR, KEEPA, PLAIN, PROBE_INTERVAL, QUOTAS, SECOND
from keepa_tokens import (
    AsyncCall,
    AsyncKeepaSync,
    AsyncReservation,
    AsyncTokenBucket,
    Call,
    KeepaSync,
    NotEnoughTokens,
    Reservation,
    StorageUnavailable,
    TokenBucket,
)
from keepa_tokens.events import Event
from keepa_tokens.rules.commands import Cancel, Command, Outcome, Peek, Refund, Reserve, Settle

T = TypeVar("T")

TRIES: Final = 8
"""How often a command is sent until somebody says what became of it."""

TASKS: Final = 3
"""How many work at a time in a process of asyncio, on one connection pool."""

CANCELLED: Final = 0.1
"""How many of their jobs are cancelled in the middle, wherever that is."""

QUEUED: Final = 6
"""How many tasks of a queue there are, for all workers together."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is told.

    watches: it looks, asks for one token, and looks again, instead of working. aio: it works in asyncio tasks.
    """

    who: str
    seed: str
    folder: str
    redis: str
    api: str
    planted: str = ""
    watches: bool = False
    aio: bool = False


async def done(result: T | Awaitable[T]) -> T:
    """Return what a door of either kind came to."""
    return await cast("Awaitable[T]", result) if isawaitable(result) else result


@asynccontextmanager
async def entered(context: AbstractContextManager[T] | AbstractAsyncContextManager[Any]) -> AsyncIterator[T]:
    """Enter a context of either kind."""
    if isinstance(context, AbstractContextManager):
        with context as inside:
            yield inside
    else:
        async with context as inside:
            yield inside


def silent(_event: Event, /) -> None:
    """Take no notice of an event: the journal has it."""


class Hand:
    """One of a worker's doors to the buckets and to the API; all of a process share one storage."""

    def __init__(
        self, assignment: Assignment, number: int, storage: Journaled | AsyncJournaled, stop: asyncio.Event
    ) -> None:
        self.who, self.aio = assignment.who, assignment.aio
        self.chance = random.Random(f"{assignment.seed}/{number}")
        self.stop = stop
        # A watcher that insists sees nothing meanwhile; its holds may run out.
        self.tries = 1 if assignment.watches else TRIES
        self.storage, self.journal = storage, storage.journal
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # all is plain HTTP: no certificates to load
        api: dict[str, Any] = {"base_url": assignment.api, "timeout": CALL_WITHIN, "trust_env": False, "verify": bare}
        asking: dict[str, Any] = {"probe_interval": PROBE_INTERVAL, "hold_for": HOLD_FOR[KEEPA]}
        self.http: httpx.Client | httpx.AsyncClient
        self.plain: TokenBucket | AsyncTokenBucket
        self.held: TokenBucket | AsyncTokenBucket
        self.sync: KeepaSync | AsyncKeepaSync
        if isinstance(storage, AsyncJournaled):
            ahttp = self.http = httpx.AsyncClient(**api)
            self.plain, self.held, akeepa = (
                AsyncTokenBucket(quota, key=key, storage=storage, listener=silent) for key, quota in QUOTAS.items()
            )

            async def aprobe() -> tuple[int, dict[str, object] | None]:
                return told_by(await ahttp.get("/token", params={"key": KEY}))

            self.sync = AsyncKeepaSync(akeepa, probe=aprobe, **asking)
            return
        http = self.http = httpx.Client(**api)
        self.plain, self.held, keepa = (
            TokenBucket(quota, key=key, storage=storage, listener=silent) for key, quota in QUOTAS.items()
        )
        self.sync = KeepaSync(keepa, probe=lambda: told_by(http.get("/token", params={"key": KEY})), **asking)

    async def apply(self, bucket: str, command: Command) -> Outcome:
        """Carry a command that no door has to a bucket."""
        return await done(self.storage.apply(bucket, QUOTAS[bucket], command))

    async def pause(self, shortest: float, longest: float) -> None:
        """Wait for a while, or until the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), self.chance.uniform(shortest, longest))

    def some(self, most: int) -> int:
        """Return a number of tokens; one token more often than any other."""
        return self.chance.choice((1, self.chance.randint(1, most)))

    def happens(self, probability: float) -> bool:
        """Draw."""
        return self.chance.random() < probability

    async def insist(self, command: Callable[[], object]) -> None:
        """Send a command again until it is known what became of it, as often as is sensible."""
        for _ in range(self.tries):
            try:
                await done(command())
            except StorageUnavailable:
                await self.pause(0.02, 0.3)
            else:
                return

    async def spend(self, request: Call | AbstractAsyncContextManager[AsyncCall], estimate: int, cost: int) -> None:
        """Make one call, once its request is granted."""
        call: Call | AsyncCall
        async with entered(request) as call:
            self.journal.write(Asked(self.who, machine_us(), call.id, estimate))
            try:
                answer = await done(self.http.get(PATH, params=parameters(call.id, cost)))
            except httpx.HTTPError:
                return  # charged or not, nobody knows: the hold is left to run out
            self.journal.write(Answered(self.who, machine_us(), call.id, answer.status_code, consumed(answer)))
            await self.insist(lambda: call.settle(answer.content, status=answer.status_code))


def told_by(answer: httpx.Response) -> tuple[int, dict[str, object] | None]:
    """Return the status of an answer and its parsed body; None if that is no JSON object."""
    with suppress(ValueError):
        body: object = answer.json()
        if isinstance(body, dict):
            return answer.status_code, body
    return answer.status_code, None


def consumed(answer: httpx.Response) -> int | None:
    """Return what an answer says that the call cost."""
    told = (told_by(answer)[1] or {}).get("tokensConsumed")
    return told if isinstance(told, int) else None


# --- what a worker does


async def take(hand: Hand) -> None:
    """Take tokens if they are there, or if they are besides some that are left for others."""
    await done(hand.plain.try_acquire(hand.some(6), keep=hand.chance.choice((0, 0, 3))))


async def queue(hand: Hand) -> None:
    """Wait for tokens."""
    await done(hand.plain.acquire(hand.some(6), timeout=hand.chance.uniform(0.1, 1.0)))


async def give_back(hand: Hand) -> None:
    """Take tokens and give them back, by the door or twice under one id."""
    tokens = hand.some(4)
    if not await done(hand.plain.try_acquire(tokens)):
        return
    if hand.happens(0.5):
        await done(hand.plain.refund(tokens))
        return
    refund = Refund(uuid.uuid4().hex, tokens, (await hand.apply(PLAIN, Peek())).now_us)
    for _ in range(2):
        await hand.insist(lambda: hand.apply(PLAIN, refund))


async def hold(hand: Hand) -> None:
    """Wait for a hold, work, and end it."""
    timeout = hand.chance.uniform(0.1, 1.0)
    await finish(hand, await done(hand.held.reserve(hand.some(8), timeout=timeout, hold_for=HOLD_FOR[HELD])))


async def hold_now(hand: Hand) -> None:
    """The same for tokens that are there, in a context that settles what was left open."""
    reservation: Reservation | AsyncReservation
    async with entered(hand.held.try_reserve(hand.some(5), hold_for=HOLD_FOR[HELD])) as reservation:
        if hand.happens(0.7):
            await finish(hand, reservation)


async def hold_by_id(hand: Hand) -> None:
    """Send one reserve until it is answered, and end it under that id."""
    await reserved(hand, Reserve(uuid.uuid4().hex, hand.some(5), round(HOLD_FOR[HELD] * SECOND)))


async def stand_in_line(hand: Hand) -> None:
    """Ask for a hold by one ticket until it is granted; whoever gives up leaves, twice, or is just gone."""
    reserve = Reserve(uuid.uuid4().hex, hand.some(8), round(HOLD_FOR[HELD] * SECOND), ticket=uuid.uuid4().hex)
    for _ in range(4):
        if await reserved(hand, reserve):
            return
        await hand.pause(0.1, 1.0)
    for _ in range(hand.chance.choice((0, 1, 2))):
        await hand.insist(lambda: hand.apply(HELD, Cancel(reserve.ticket or "")))


async def reserved(hand: Hand, reserve: Reserve) -> bool:
    """Send a reserve until it is answered; if it is granted, end it. Return whether it was."""
    told: list[Outcome] = []

    async def ask() -> None:
        told.append(await hand.apply(HELD, reserve))

    await hand.insist(ask)
    if not any(outcome.granted for outcome in told):
        return False
    await finish(hand, ById(hand, reserve.id, reserve.tokens))
    return True


@dataclass(slots=True)
class ById:
    """A hold, of which only the id is known."""

    hand: Hand
    id: str
    tokens: int

    async def settle(self, actual: int) -> None:
        """End it at what it cost."""
        await self.hand.apply(HELD, Settle(self.id, actual))

    async def cancel(self) -> None:
        """End it at nothing."""
        await self.hand.apply(HELD, Cancel(self.id))


async def finish(hand: Hand, reservation: Reservation | AsyncReservation | ById) -> None:
    """Work, then settle at what was reserved or less; sometimes late, twice or never, sometimes cancel."""
    if hand.happens(0.05):
        await hand.pause(HOLD_FOR[HELD], HOLD_FOR[HELD] * 1.8)  # late
    else:
        await hand.pause(0.0, 0.15)
    if hand.happens(0.04):
        return
    times = 1 + hand.happens(0.2)
    if hand.happens(0.25):
        for _ in range(times):
            await hand.insist(reservation.cancel)
        return
    actual = hand.chance.randint(0, reservation.tokens)
    for _ in range(times):
        await hand.insist(lambda: reservation.settle(actual))


async def call(hand: Hand) -> None:
    """Call the API; a call costs what was estimated, or less."""
    estimate = hand.some(6)
    cost = hand.chance.randint(0, estimate) if hand.happens(0.1) else estimate
    await hand.spend(hand.sync.request(estimate, timeout=2.0, keep=hand.chance.choice((0, 0, 2))), estimate, cost)


async def do_task(hand: Hand) -> None:
    """Take up a queue's task, which any worker may have had before: its place is its own. It is tried again, or not."""
    place, estimate = f"task-{hand.chance.randrange(QUEUED)}", hand.some(6)
    for _ in range(3):
        try:
            await hand.spend(hand.sync.try_request(estimate, place=place), estimate, estimate)
        except NotEnoughTokens as refused:
            await hand.pause(0.0, min(refused.retry_after, 1.0))
        else:
            return


Job: TypeAlias = Callable[[Hand], Coroutine[object, object, object]]

JOBS: Final[Mapping[Job, int]] = {
    take: 4,
    queue: 3,
    give_back: 2,
    hold: 4,
    hold_now: 2,
    hold_by_id: 3,
    stand_in_line: 2,
    call: 6,
    do_task: 4,
}
"""What a worker does, and how often."""


async def work(hand: Hand) -> None:
    """Do one job after the other."""
    jobs, weights = list(JOBS), list(JOBS.values())
    while not hand.stop.is_set():
        await attempt(hand, hand.chance.choices(jobs, weights)[0])
        await hand.pause(0.005, 0.04)


async def take_one(hand: Hand) -> None:
    """Take one token, if it is there."""
    await done(hand.plain.try_acquire())


async def hold_one(hand: Hand) -> None:
    """Hold one token, and end that at once."""
    held: Reservation | AsyncReservation = await done(hand.held.try_reserve(hold_for=HOLD_FOR[HELD]))
    await hand.insist(lambda: held.settle(1))


async def call_for_one(hand: Hand) -> None:
    """Make a call of one token, if it is there."""
    await hand.spend(hand.sync.try_request(1), 1, 1)


async def watch(hand: Hand) -> None:
    """Look at each bucket, which states a bound, and ask it for one token, again and again."""
    peek = Peek(probe_after_us=round(PROBE_INTERVAL * SECOND))
    while not hand.stop.is_set():
        for bucket, ask in ((PLAIN, take_one), (HELD, hold_one), (KEEPA, call_for_one)):
            await attempt(hand, lambda hand: hand.apply(bucket, peek))  # noqa: B023 - carried out at once
            await attempt(hand, ask)
        await hand.pause(0.03, 0.08)


async def attempt(hand: Hand, job: Job) -> None:
    """Do a job, or cancel it. A refusal and a storage that is away are part of it; any other error is a finding."""
    task = asyncio.ensure_future(job(hand))
    if hand.aio and hand.happens(CANCELLED):
        await hand.pause(0.0, 0.1)
        task.cancel()
    try:
        await task
    except (StorageUnavailable, NotEnoughTokens, asyncio.CancelledError):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the log is to tell
        hand.journal.write(Broke(hand.who, machine_us(), f"{type(error).__name__}: {error}"))


async def all_work(assignment: Assignment, journal: Journal) -> None:
    """Let all tasks work until the standard input ends."""
    stop = asyncio.Event()
    storage = opened(assignment.redis, journal, assignment.planted, aio=assignment.aio)
    hands = [Hand(assignment, number, storage, stop) for number in range(TASKS if assignment.aio else 1)]
    tasks = [asyncio.ensure_future((watch if assignment.watches else work)(hand)) for hand in hands]
    await asyncio.to_thread(sys.stdin.buffer.read)
    stop.set()
    await asyncio.gather(*tasks)


def main(arguments: Sequence[str]) -> int:
    """Work until the standard input ends."""
    assignment = Assignment(**json.loads(arguments[1]))
    journal = Journal(Path(assignment.folder), assignment.who)
    asyncio.run(all_work(assignment, journal))
    journal.write(Left(assignment.who, machine_us()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
