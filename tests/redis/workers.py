"""Processes that work on one bucket: `python -m tests.redis.workers JOB COUNT URL FOLDER` forks COUNT of them.

They begin together, and each writes what it did into a file of its own, line by line, so that one that is killed has
told all but its last word. Every loop ends by itself. Jobs without a count are done by that process alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keepa_tokens import Call, ConfigError, KeepaSync, NotEnoughTokens, Quota, SystemClock, TokenBucket, keepa_quota
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Pause
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import MICROSECONDS

SHARED: Final = Quota(1000, 100, 1.0)
SPENT_FOR_S: Final = 5.0
"""For how long the spenders spend."""

QUEUED: Final = Quota(1, 20, 1.0)
TURNS: Final = 2
"""How often each of those who queue asks."""

HELD: Final = Quota(1_000_000, 0, 1.0)
HOLD_FOR_S: Final = 30.0
ESTIMATE, ACTUAL = 5, 3
CALLS: Final = 100_000
"""After so many calls a worker that nobody kills ends by itself."""

LONE: Final = Quota(1000, 0, 1.0)
FORKED_CALLS: Final = 150

LINE: Final = "line"
PLAN: Final = keepa_quota(5)

ENDS_WITHIN_S: Final = 60


@contextmanager
def working(job: str, count: int, url: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start workers, and end at the end whichever still run. A warning, as of a fork with threads, is an error."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.redis.workers", job, str(count), url, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as crew:
        try:
            yield crew
        finally:
            if crew.poll() is None:
                os.killpg(crew.pid, signal.SIGKILL)  # in the middle of whatever they do
                crew.communicate(timeout=ENDS_WITHIN_S)  # until each has let go of its stderr


def has_ended_well(crew: subprocess.Popen[str]) -> bool:
    """Wait until workers have come to their end."""
    errors = crew.communicate(timeout=ENDS_WITHIN_S)[1]
    assert crew.returncode == 0, errors
    return True


@dataclass(frozen=True)
class Diary:
    """A file to which lines are added, each at once."""

    path: Path

    def write(self, *entry: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
        os.close(descriptor)

    def read(self) -> list[list[object]]:
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return [json.loads(line) for line in lines]


class Noting(RedisStorage):
    """Notes what was granted: when by the server's time, for when, and how much."""

    grants: ClassVar[list[tuple[int, int, int]]] = []

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Acquire) and outcome.granted:
            self.grants.append((outcome.now_us, outcome.place_us, command.tokens))
        return outcome


def spend(number: int, url: str, diary: Diary) -> None:
    """Spend as fast as the bucket lets, by waiting in turn or by trying again and again."""
    storage = Noting.from_url(url)
    bucket = TokenBucket(SHARED, key="shared", storage=storage)
    clock, end = SystemClock(), time.monotonic() + SPENT_FOR_S * 1.05
    tokens = number + 1
    while time.monotonic() < end:
        if number % 2:
            bucket.acquire(tokens)
        else:
            decision = bucket.try_acquire(tokens)
            clock.sleep(decision.retry_after)
    diary.write(storage.grants)


def hold(number: int, url: str, diary: Diary) -> None:
    """Hold, call, settle, until killed; half of them hang in their fiftieth call."""
    bucket = TokenBucket(HELD, key="held", storage=RedisStorage.from_url(url))
    for turn in range(CALLS):
        call = bucket.reserve(ESTIMATE, hold_for=HOLD_FOR_S)
        diary.write("opened")
        if number % 2 and turn == 50:
            diary.write("hangs")
            sys.stdin.read()  # the answer never comes
        call.settle(ACTUAL)
        diary.write("settled")


def queue(number: int, url: str, diary: Diary) -> None:
    storage = Noting.from_url(url)
    bucket = TokenBucket(QUEUED, key="queue", storage=storage)
    for _ in range(TURNS):
        bucket.acquire()
        now, place, _ = storage.grants[-1]
        diary.write(now, place, time.time_ns() // 1000)


JOBS: Final[dict[str, Callable[[int, str, Diary], None]]] = {"spend": spend, "hold": hold, "queue": queue}


def together(works: Iterable[Callable[[], object]], meanwhile: Callable[[], object] = lambda: None) -> bool:
    gate, opener = os.pipe()
    processes = [forked(work, gate, opener) for work in works]
    os.close(opener)
    meanwhile()
    ends = [os.waitpid(process, 0)[1] for process in processes]
    return not any(ends)


def forked(work: Callable[[], object], gate: int, opener: int) -> int:
    """Return the id of a process that begins when the gate is opened."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.close(opener)
        os.read(gate, 1)  # nothing comes: it ends when nobody can open the gate any more
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - a forked child must never run on into its parent's code
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


# --- fork with an open storage


def are_counted_down(balances: list[int | None]) -> None:
    """Assert that each answer is the answer to its own question: the balance sinks by one at each."""
    first = balances[0] or 0
    assert balances == list(range(first, first - len(balances), -1)), "an answer to another's question"


def fork_sync(url: str) -> bool:
    """Fork with an open storage that parent and children use at the same time."""
    storage = RedisStorage.from_url(url)
    storage.apply("parent", LONE, Acquire(1))

    def use(key: str) -> None:
        are_counted_down([storage.apply(key, LONE, Acquire(1)).balance for _ in range(FORKED_CALLS)])

    return together([partial(use, f"child-{number}") for number in range(3)], lambda: use("parent"))


def fork_resending(url: str) -> bool:
    """Fork with a storage whose client sends again: the children's commands are the same to the last count."""
    storage = RedisStorage(redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1)))
    return together([partial(storage.apply, "children", LONE, Pause(number * MICROSECONDS)) for number in (1, 2, 3)])


def fork_async(url: str) -> bool:
    """Fork with an open async storage, and with one that nobody has used yet."""
    opened, unused = AsyncRedisStorage.from_url(url), AsyncRedisStorage.from_url(url)
    loop = asyncio.Runner()  # the parent's goes on where it was
    loop.run(use_async(opened, "parent", 1))

    def child(key: str) -> None:
        asyncio.run(try_opened())
        asyncio.run(use_async(unused, key, FORKED_CALLS))

    async def try_opened() -> None:
        for attempt in (
            lambda: opened.apply("parent", LONE, Acquire(1)),
            lambda: opened.inspect("parent"),
            lambda: anext(opened.keys()),
        ):
            try:
                await attempt()
            except ConfigError as error:
                assert "before the process was forked" in str(error)  # noqa: PT017 - no pytest in a worker
            else:
                raise AssertionError("it used its parent's connection")
        await opened.aclose()

    children = [partial(child, f"child-{number}") for number in range(3)]
    return together(children, lambda: loop.run(use_async(opened, "parent", FORKED_CALLS)))


async def use_async(storage: AsyncRedisStorage, key: str, calls: int) -> None:
    are_counted_down([(await storage.apply(key, LONE, Acquire(1))).balance for _ in range(calls)])


# --- a queue's worker


def follow_orders(url: str) -> bool:
    """Take up tasks and end their calls, by the clock of who orders it: orders and answers are lines in JSON."""
    clock = ManualClock()
    storage = RedisStorage.from_url(url)
    sync = KeepaSync(TokenBucket(PLAN, key=LINE, storage=storage, clock=clock))
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        order = json.loads(line)
        clock.advance((order["now_us"] - clock.now_us()) / MICROSECONDS)
        answer: float | None = None
        if "cost" in order:
            try:
                calls[order["task"]] = sync.try_request(order["cost"], place=order["task"])
            except NotEnoughTokens as refused:
                answer = refused.retry_after
        else:
            calls.pop(order["task"]).settle(order["body"], status=order["status"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    storage.close()
    return True


ALONE: Final[dict[str, Callable[[str], bool]]] = {
    "fork-sync": fork_sync,
    "fork-resending": fork_resending,
    "fork-async": fork_async,
    "line": follow_orders,
}


def main() -> int:
    job, count, url, folder = sys.argv[1:]
    if job in ALONE:
        return not ALONE[job](url)
    return not together(
        partial(JOBS[job], number, url, Diary(Path(folder) / str(number))) for number in range(int(count))
    )


if __name__ == "__main__":
    sys.exit(main())
