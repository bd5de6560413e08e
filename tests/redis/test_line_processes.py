"""The line among processes: a queue's tasks keep their order, whichever worker takes them up, and ask no oftener."""

from __future__ import annotations

import heapq
import json
import random
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import redis

from keepa_tokens import KeepaSync, TokenBucket
from keepa_tokens.rules.line import LATE_US
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.testing import FakeKeepa, ManualClock
from keepa_tokens.units import MICROSECONDS
from tests.redis.common import state_of
from tests.redis.workers import LINE, PLAN, has_ended_well, working
from tests.servers import Server

LONGEST_COUNTDOWN: Final = 900.0
TASKS: Final = 86
PROCESSES: Final = 4


@dataclass
class Queue:
    """Tasks, the processes that take them up, and the server; all by one clock. late: how late they are, at most."""

    workers: Sequence[subprocess.Popen[str]]
    client: redis.Redis
    late: float
    clock: ManualClock = field(default_factory=ManualClock)
    draw: random.Random = field(default_factory=lambda: random.Random(13))
    attempts: list[int] = field(default_factory=lambda: [0] * TASKS)
    done: dict[int, float] = field(default_factory=dict[int, float])
    came: list[int] = field(default_factory=list[int])

    def run(self, storage: RedisStorage) -> FakeKeepa:
        """Take each task up as often as it comes back, up to one a process at a time, until all are done."""
        keepa = FakeKeepa(initial=0, refill_rate=5, clock=self.clock)
        KeepaSync(TokenBucket(PLAN, key=LINE, storage=storage, clock=self.clock), probe=keepa.probe).refresh()
        began = self.clock.now_us()
        due = [(0.0, task, self.draw.randint(6, 12)) for task in range(TASKS)]
        while due:
            taken = [heapq.heappop(due)]
            while due and len(taken) < PROCESSES and due[0][0] <= taken[0][0] + self.late:
                taken.append(heapq.heappop(due))
            self.clock.advance(max(0.0, taken[-1][0] - (self.clock.now_us() - began) / MICROSECONDS))
            now = (self.clock.now_us() - began) / MICROSECONDS
            told = self.all_at_once([{"task": f"task {task}", "cost": cost} for _, task, cost in taken], self.workers)
            for number, ((_, task, cost), again) in enumerate(zip(taken, told, strict=True)):
                self.attempts[task] += 1
                if again is not None:
                    at = now + min(again, LONGEST_COUNTDOWN) + self.draw.random() * self.late
                    heapq.heappush(due, (at, task, cost))
                    continue
                answer = keepa.request("/product", {"asin": ",".join(f"B{each:09d}" for each in range(cost))})
                end = {"task": f"task {task}", "body": answer.body, "status": answer.status}
                self.all_at_once([end], self.workers[number : number + 1])
                self.done[task] = now
            self.note_who_came()
        return keepa

    def all_at_once(
        self, orders: Sequence[Mapping[str, object]], workers: Sequence[subprocess.Popen[str]]
    ) -> list[float | None]:
        """Give each worker an order, and only then hear their answers."""
        busy = [process for process, _ in zip(workers, orders, strict=False)]
        for process, order in zip(busy, orders, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps({**order, "now_us": self.clock.now_us()}) + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in busy if process.stdout is not None]

    def note_who_came(self) -> None:
        if len(self.came) == TASKS:
            return
        first = [task for task in self.done if task not in self.came]
        tickets = sorted(state_of(self.client, LINE).line, key=lambda each: each.arrived)
        line = [int(ticket.id.split()[-1]) for ticket in tickets]
        self.came += [*first, *(task for task in line if task not in self.came)]


@pytest.mark.deep
@pytest.mark.parametrize("late", [0.0, 0.3, 5.0])
def test_tasks_of_four_processes_keep_their_order_and_ask_twice(
    server: Server, client: redis.Redis, storage: RedisStorage, tmp_path: Path, late: float
) -> None:
    """86 tasks at 5 a minute: in order; each asks twice, and once for each quarter of an hour; late ones 10% more."""
    with ExitStack() as stack:
        job = ("line", 0, f"unix://{server.socket_path}", tmp_path)
        queue = Queue([stack.enter_context(working(*job)) for _ in range(PROCESSES)], client, late)
        keepa = queue.run(storage)
        assert all(has_ended_well(worker) for worker in queue.workers)
    assert keepa.refused == 0
    assert sorted(queue.came) == list(range(TASKS))
    allowed = [2 + int(queue.done[task] // LONGEST_COUNTDOWN) for task in range(TASKS)]
    inversions = sum(
        queue.done[first] > queue.done[later]
        for number, first in enumerate(queue.came)
        for later in queue.came[number:]
    )
    assert sum(queue.attempts) <= 1.1 * sum(allowed), (sum(queue.attempts), sum(allowed))
    if late < LATE_US / MICROSECONDS:
        assert all(asked <= most for asked, most in zip(queue.attempts, allowed, strict=True))
        assert inversions == 0
