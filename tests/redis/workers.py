"""Processes that work on one bucket: `python -m tests.redis.workers JOB COUNT URL FOLDER` forks COUNT of them.

They begin together, and each writes what it did into a file of its own, line by line, so that one that is killed has
told all but its last word. Every loop ends by itself.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from keepa_tokens import Quota, SystemClock, TokenBucket
from keepa_tokens.commands import Acquire, Command, Outcome
from keepa_tokens.state import Snapshot
from keepa_tokens.storage.redis import RedisStorage

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


@dataclass(frozen=True)
class Diary:
    """A file to which lines are added, each at once."""

    path: Path

    def write(self, *entry: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
        os.close(descriptor)

    def read(self) -> list[list[object]]:
        """Return all whole lines."""
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return [json.loads(line) for line in lines]


@dataclass
class Noting:
    """A storage that notes what was granted: when by the server's time, for when, and how much."""

    storage: RedisStorage
    grants: list[tuple[int, int, int]] = field(default_factory=list)

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = self.storage.apply(key, quota, command, now_us=now_us)
        if isinstance(command, Acquire) and outcome.granted:
            self.grants.append((outcome.now_us, outcome.place_us, command.tokens))
        return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        return self.storage.inspect(key, now_us=now_us)

    def keys(self) -> Iterator[str]:
        return self.storage.keys()

    def close(self) -> None:
        self.storage.close()


def spend(number: int, url: str, diary: Diary) -> None:
    """Spend as fast as the bucket lets, by waiting in turn or by trying again and again."""
    storage = Noting(RedisStorage.from_url(url))
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
    """Wait for a token in turn."""
    storage = Noting(RedisStorage.from_url(url))
    bucket = TokenBucket(QUEUED, key="queue", storage=storage)
    for _ in range(TURNS):
        bucket.acquire()
        now, place, _ = storage.grants[-1]
        diary.write(now, place, time.time_ns() // 1000)


JOBS: Final[dict[str, Callable[[int, str, Diary], None]]] = {"spend": spend, "hold": hold, "queue": queue}


def crew(job: str, count: int, url: str, folder: Path) -> bool:
    """Fork workers that begin together, after everything was imported; return whether all ended well."""
    gate, opener = os.pipe()
    processes = []
    for number in range(count):
        process = os.fork()
        if process == 0:
            os.close(opener)
            os.read(gate, 1)  # nothing comes: it ends when the gate is opened
            _exit_after(partial(JOBS[job], number, url, Diary(folder / str(number))))
        Diary(folder / "processes").write(process)
        processes.append(process)
    os.close(opener)
    return all([_ended_well(process) for process in processes])  # noqa: C419 - each must be waited for


# --- fork with an open storage


def count_down(apply: Callable[[], Outcome], calls: int) -> None:
    """Assert that each answer is the answer to its own question: the balance sinks by one at each."""
    first = apply().balance
    assert first is not None
    for call in range(1, calls):
        balance = apply().balance
        assert balance == first - call, f"{balance} instead of {first - call}: the answer to another's question"


def fork_sync(url: str) -> bool:
    """Fork with an open storage that parent and children use at the same time."""
    storage = RedisStorage.from_url(url)
    storage.apply("parent", LONE, Acquire(1))

    def use(key: str) -> None:
        count_down(lambda: storage.apply(key, LONE, Acquire(1)), FORKED_CALLS)

    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            _exit_after(partial(use, f"child-{number}"))
        children.append(child)
    use("parent")
    return all([_ended_well(child) for child in children])  # noqa: C419 - each must be waited for


def _exit_after(work: Callable[[], object]) -> None:
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - a forked child must never run on into its parent's code
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _ended_well(process: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def main() -> int:
    """Run a job."""
    job, count, url, folder = sys.argv[1:]
    if job == "fork-sync":
        return not fork_sync(url)
    return not crew(job, int(count), url, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
