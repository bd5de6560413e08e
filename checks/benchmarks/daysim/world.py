"""One simulated day: the server, the workers, what goes wrong, and what is counted. All in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from checks.benchmarks.daysim.rows import Event, Row
from keepa_tokens.testing import FakeKeepa, VirtualLoop
from keepa_tokens.testing.fake_keepa import Response

LATENCY: Final = (0.2, 2.0)
"""Seconds that a call takes. The first tenth is the way to the server, the last tenth the way back."""

COSTS: Final = (1, 20)
OUTSIDE_EVERY: Final = 600.0
STEP: Final = 60.32
"""The average time between two refills: what the server will have done, for bounds on recovery."""

CLIENT_TIMEOUT: Final = 10.0
RESTART_AFTER: Final = 30.0
DEBT: Final = -79


class Contender:
    """One way to meter calls. Where workers share no state, or none with such a field, nothing is lost."""

    async def call(self, worker: int, cost: int, estimate: int) -> None:
        """Make one paid call, waiting and trying again until it is answered; TimeoutError if the answer is lost."""
        raise NotImplementedError

    def restart(self, worker: int) -> None:
        """Let a worker that crashed begin anew, in a new process."""

    def lose_timestamp(self, balance: int) -> None:
        """Lose the time of the last refill from the shared state while `balance` stays."""

    def flush(self) -> None:
        """Lose the whole shared state."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was counted in one day.

    refused, paid: refused and admitted paid calls. standstill: the longest time without an answered paid call.
    recovery: from the event to the first answered call begun after it; None: there was no event, inf: never. ideal:
    when the balance was above 0 again, from the event. busiest_hour: the most probes in any hour. longest_wait:
    of any call, from when it was asked for to when it was sent. its_turn: in how much time, at the average refill less
    what others spend, the server mints what was asked for before that one, and its own.
    """

    minted: int
    spent: int
    outside: int
    wasted: int
    paid: int
    refused: int
    probes: int
    busiest_hour: int
    standstill: float
    recovery: float | None
    ideal: float
    balance: int
    longest_wait: float
    its_turn: float

    @property
    def share_used(self) -> float:
        """The share of what was minted that somebody spent; a day that ends in debt used it all."""
        return min(1.0, (self.spent + self.outside) / self.minted)

    @property
    def share_refused(self) -> float:
        """The share of paid calls that were refused."""
        return self.refused / max(1, self.refused + self.paid)


class World:
    """One day of one contender. Every worker has its own random numbers, so all contenders face the same day."""

    def __init__(self, row: Row, hours: float, loop: VirtualLoop) -> None:
        self.row = row
        self.loop = loop
        self.end = hours * 3600
        self.fake = FakeKeepa(
            refill_rate=row.rate, initial=row.start, clock=loop.clock, seed=row.seed, charge=row.charge, cost=_cost
        )
        self.sending: set[int] = set()
        self._work = [random.Random(f"work {row.seed} {worker}") for worker in range(row.workers)]
        self._ways = [random.Random(f"way {row.seed} {worker}") for worker in range(row.workers)]
        self._chance = random.Random(f"events {row.seed}")
        self._answered = 0.0
        self._standstill = 0.0
        self._probe_hours: Counter[int] = Counter()
        self._event_at: float | None = None
        self._recovered: float | None = None
        self._ideal = 0.0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[int, int] = {}
        self._asked: dict[int, tuple[float, int]] = {}
        self._longest_wait, self._tokens_before = 0.0, 0

    # what the workers do

    async def run(self, contender: Contender) -> Result:
        """Let all workers work until the day ends."""
        for worker in range(self.row.workers):
            self._start(contender, worker)
        others = [asyncio.ensure_future(self._happen(contender))]
        if self.row.outside:
            others.append(asyncio.ensure_future(self._spend_outside()))
        await asyncio.sleep(self.end)
        tasks = [*self._tasks.values(), *others]
        for task in tasks:
            failed = task.done() and not task.cancelled() and task.exception()
            if failed:
                raise failed
            task.cancel()
        await asyncio.wait(tasks)
        return self._result()

    def _start(self, contender: Contender, worker: int) -> None:
        self._tasks[worker] = self.loop.create_task(self._labour(contender, worker))

    async def _labour(self, contender: Contender, worker: int) -> None:
        chance = self._work[worker]
        while True:
            cost = chance.randint(*COSTS)
            estimate = self.row.estimate(cost, chance)
            self._waiting[worker] = cost
            self._asked[worker] = (self.loop.time(), sum(self._waiting.values()))
            try:
                await contender.call(worker, cost, estimate)
            except TimeoutError:
                continue

    async def send(self, worker: int, cost: int) -> Response:
        """Make one paid call as it goes over the wire; TimeoutError if its answer is lost."""
        began = self.loop.time()
        self._waiting.pop(worker, None)
        if self.row.timeouts and self._ways[worker].random() < self.row.timeouts:
            charged = self._ways[worker].random() < 0.5
            self.fake.fail_next(kind="timeout_charged" if charged else "timeout_uncharged", path="/product")
        self.sending.add(worker)
        try:
            response = await self._exchange(worker, "/product", {"asin": "B0", "history": 0, "cost": cost})
        finally:
            self.sending.remove(worker)
        if response.status == 200:
            self._note(began)
            asked, tokens = self._asked[worker]
            if began - asked > self._longest_wait:
                self._longest_wait, self._tokens_before = began - asked, tokens
        return response

    async def pause(self, seconds: float) -> None:
        """Let a worker sleep."""
        await asyncio.sleep(seconds)

    async def token(self, worker: int) -> Response:
        """Ask `/token` over the wire."""
        self._probe_hours[int(self.loop.time() // 3600)] += 1
        return await self._exchange(worker, "/token", {})

    async def _exchange(self, worker: int, path: str, params: Mapping[str, object]) -> Response:
        seconds = self._ways[worker].uniform(*LATENCY)
        await asyncio.sleep(0.1 * seconds)
        ticket = self.fake.begin(path, params)
        try:
            await asyncio.sleep(0.8 * seconds)
        except asyncio.CancelledError:
            # The caller is gone; the server completes and charges the call all the same.
            self.loop.call_later(0.5 * seconds, self.fake.finish, ticket)
            raise
        try:
            response = self.fake.finish(ticket)
        except TimeoutError:
            await asyncio.sleep(CLIENT_TIMEOUT - 0.9 * seconds)
            raise
        await asyncio.sleep(0.1 * seconds)
        return response

    def _note(self, began: float) -> None:
        now = self.loop.time()
        self._standstill = max(self._standstill, now - self._answered)
        self._answered = now
        if self._event_at is not None and self._recovered is None and began >= self._event_at:
            self._recovered = now - self._event_at

    # what happens to them

    async def _spend_outside(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / OUTSIDE_EVERY))
            self.fake.spend_outside(self.row.outside)

    async def _happen(self, contender: Contender) -> None:
        if self.row.event is None:
            return
        await asyncio.sleep(self.end / 4)
        hour = min(3600.0, self.end / 8)
        match self.row.event:
            case "timestamp lost" | "flush" | "token down" | "token down, flush":
                await self._lose(contender, self.row.event, hour)
            case "crash":
                await self._crash(contender)
            case "upgrade" | "downgrade":
                self.fake.set_plan(20 if self.row.event == "upgrade" else 5)
                self._mark()
            case "server clock":
                for offset in (600.0, -600.0, -4200.0, 0.0):
                    self.fake.server_clock_offset = offset
                    await asyncio.sleep(hour)
                self._mark()
            case "no refill":
                self.fake.set_flow_reduction(self.row.rate)
                await asyncio.sleep(2 * hour)
                self.fake.set_flow_reduction(0)
                self._mark()

    async def _lose(self, contender: Contender, event: Event, hour: float) -> None:
        """Damage the shared state while no call is on its way: nothing repairs it in passing."""
        self.fake.token_down = event.startswith("token down")
        await self._until(lambda: not self.sending)
        if event == "timestamp lost":
            self.fake.spend_outside(self.fake.balance - DEBT)
            contender.lose_timestamp(DEBT)
        elif event.endswith("flush"):
            contender.flush()
        self._mark()
        await asyncio.sleep(hour)
        self.fake.token_down = False

    async def _crash(self, contender: Contender) -> None:
        await self._until(lambda: bool(self.sending))
        worker = min(self.sending)
        self._tasks[worker].cancel()
        crashed = self.loop.time()
        await asyncio.sleep(LATENCY[1])
        # The truth to recover to is the balance after the server has charged the call.
        self._mark(since=crashed)
        await asyncio.sleep(RESTART_AFTER)
        contender.restart(worker)
        self._start(contender, worker)

    async def _until(self, there: Callable[[], bool]) -> None:
        while True:
            if there():
                return
            await asyncio.sleep(0.01)

    def _mark(self, since: float | None = None) -> None:
        now = self.loop.time()
        self._event_at = now if since is None else since
        need = 1 - self.fake.balance
        steps = (need - 1) // self.fake.refill_rate
        wait = 0.0 if need <= 0 else self.fake.refill_in + steps * STEP
        self._ideal = now - self._event_at + wait

    def _result(self) -> Result:
        fake = self.fake
        balance = fake.balance  # first: it lets the fake mint what is due
        return Result(
            minted=fake.minted,
            spent=fake.spent,
            outside=fake.spent_outside,
            wasted=fake.wasted,
            paid=fake.admitted,
            refused=fake.refused,
            probes=fake.token_calls,
            busiest_hour=max(self._probe_hours.values(), default=0),
            standstill=max(self._standstill, self.end - self._answered),
            recovery=float("inf") if self._event_at is not None and self._recovered is None else self._recovered,
            ideal=self._ideal,
            balance=balance,
            longest_wait=self._longest_wait,
            its_turn=self._tokens_before / (self.row.rate - self.row.outside * STEP / OUTSIDE_EVERY) * STEP,
        )


def _cost(_: str, params: Mapping[str, str]) -> int | None:
    return int(params["cost"]) if "cost" in params else None
