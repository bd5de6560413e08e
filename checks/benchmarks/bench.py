"""What a step costs: ours, peers and floors interleaved in one run, as ratios, over-admission beside each.

`python -m checks.benchmarks.bench` prints the tables; `--write PAGE` puts them into a page. Times on a busy machine say
little, so contenders take turns, each turn is short, and the quickest turn of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiolimiter
import limits
import redis
import redis.asyncio
import token_bucket
from kombu.utils.limits import TokenBucket as KombuBucket
from limits.storage import MemoryStorage as LimitsMemory
from limits.storage import RedisStorage as LimitsRedis
from limits.strategies import FixedWindowRateLimiter
from pyrate_limiter import Duration, Limiter, Rate
from rush.limiters.periodic import PeriodicLimiter
from rush.quota import Quota as RushQuota
from rush.stores.dictionary import DictionaryStore
from rush.throttle import Throttle
from throttled import MemoryStore, RateLimiterType, Throttled
from throttled.rate_limiter import per_duration

from checks.page import renew, table
from keepa_tokens import AsyncRedisStorage, AsyncTokenBucket, MemoryStorage, Quota, Reading, RedisStorage, TokenBucket
from keepa_tokens.rules.commands import Acquire, Command, Peek, Reconcile, Refund, Reserve, Settle
from tests.servers import running

NAIVE: Final = """
local stored = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local tokens, at = tonumber(stored[1] or capacity), tonumber(stored[2] or now)
tokens = math.min(capacity, tokens + (now - at) * rate / 1000000)
local granted = tokens >= 1
if granted then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.0f', now), 'capacity', ARGV[1])
redis.call('PEXPIRE', KEYS[1], 60000)
return {granted and 1 or 0, tostring(tokens)}
"""
"""A token bucket as many write it: no repair, no holds, no places, fractions by floats."""

ROUNDS: Final = 150
PLENTY: Final = Quota(10**9, 1000, 1.0)
NOTHING: Final = Quota(1, 1, 10_000.0)
TASKS: Final = 100
HOUR_US: Final = 3_600_000_000

Step = Callable[[], object]
Ask = Callable[[], Awaitable[object]]


class Locked:
    """The floor: a bucket in a lock that says yes or no."""

    def __init__(self, capacity: float, rate: float) -> None:
        self.lock, self.tokens, self.capacity, self.rate = threading.Lock(), capacity, capacity, rate
        self.at = time.monotonic()

    def take(self) -> bool:
        """Take a token."""
        with self.lock:
            now = time.monotonic()
            self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.rate)
            self.at = now
            if self.tokens < 1:
                return False
            self.tokens -= 1
            return True


class Bare(Locked):
    """The same without its lock."""

    def take(self) -> bool:
        """Take a token."""
        now = time.monotonic()
        self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def quickest(steps: Mapping[str, Step], *, calls: int = 40, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the seconds a call of each, in its quickest turn; they take turns."""
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(calls):
                step()
            best[name] = min(best[name], (time.perf_counter() - began) / calls)
    return best


def bar(length: float) -> str:
    """Return a bar of a chart."""
    return "█" * max(1, round(length))


# --- in process


def throttled_step(rate: int) -> Step:
    """`throttled-py`'s token bucket."""
    quota = per_duration(timedelta(seconds=1), rate, burst=rate)
    limiter = Throttled(key="k", using=RateLimiterType.TOKEN_BUCKET.value, quota=quota, store=MemoryStore())
    return lambda: not limiter.limit("k").limited


def rush_step(rate: int) -> Step:
    """`rush`'s periodic limiter."""
    throttle = Throttle(rate=RushQuota.per_second(rate), limiter=PeriodicLimiter(store=DictionaryStore()))
    return lambda: not throttle.check("k", 1).limited


PEERS: Final[Mapping[str, Callable[[int], Step]]] = {
    "kombu": lambda rate: partial(KombuBucket(rate, rate).can_consume, 1),  # it has no lock
    "token-bucket": lambda rate: partial(token_bucket.Limiter(rate, rate, token_bucket.MemoryStorage()).consume, b"k"),
    "limits, fixed window": lambda rate: partial(
        FixedWindowRateLimiter(LimitsMemory()).hit, limits.RateLimitItemPerSecond(rate), "k"
    ),
    "pyrate-limiter": lambda rate: partial(Limiter(Rate(rate, Duration.SECOND)).try_acquire, "k", blocking=False),
    "throttled-py": throttled_step,
    "rush": rush_step,
}
DOORS: Final[Mapping[str, Callable[[int], Step]]] = {
    "keepa_tokens": lambda rate: TokenBucket(Quota.per_second(rate)).try_acquire,
    **PEERS,
}


def over_admitted(make: Callable[[int], Step], rate: int = 50, seconds: float = 1.2) -> int:
    """Return how many tokens over capacity and refill were let go, asked as fast as possible across a second's end."""
    time.sleep(max(0.0, 1.0 - time.time() % 1.0 - 0.05))
    step, granted, began = make(rate), 0, time.monotonic()
    while time.monotonic() < began + seconds:
        granted += bool(step())
    return max(0, granted - rate - int(rate * (time.monotonic() - began)) - 1)


def in_process() -> Iterator[str]:
    """Yield the tables of one thread."""
    commands = dict.fromkeys(_general(), 2)
    grants: dict[str, Step] = {"floor without a lock": Bare(10**9, 1e6).take, "floor": Locked(10**9, 1e6).take}
    grants["keepa_tokens"] = TokenBucket(PLENTY).try_acquire
    grants |= {name: make(10**6) for name, make in PEERS.items()}
    over = {name: over_admitted(make) for name, make in DOORS.items()}
    told = quickest(grants)
    yield from table(
        ("a grant, one thread", "us:", "over the floor:", "", "let go too many of 50 in 1.2 s:"),
        (
            (name, f"{1e6 * at:.2f}", f"{at / told['floor']:.2f}", bar(2 * at / told["floor"]), over.get(name, "-"))
            for name, at in told.items()
        ),
    )
    refused = TokenBucket(NOTHING)
    refused.try_acquire()
    empty = Locked(1, 0)
    empty.take()
    refusals: dict[str, Step] = {"floor": empty.take, "keepa_tokens": refused.try_acquire}
    told = quickest(refusals | _general())
    yield from table(
        ("a refusal; a command on the general path", "us:", "over the floor:"),
        (
            (name, f"{1e6 * at / (n := commands.get(name, 1)):.2f}", f"{at / n / told['floor']:.2f}")
            for name, at in told.items()
        ),
    )


def _general() -> dict[str, Step]:
    storage, ids = MemoryStorage(), count()
    synced = Quota(10**6, 5, 60.0, synced=True)
    reading = Reading(10**6)
    storage.apply("synced", synced, Reconcile(reading))

    def pair(key: str, quota: Quota, told: Reading | None) -> None:
        hold = f"h{next(ids)}"
        storage.apply(key, quota, Reserve(hold, 1, HOUR_US))
        storage.apply(key, quota, Settle(hold, 1, told))

    return {
        "reserve + settle, a command": lambda: pair("plain", PLENTY, None),
        "synced request + settle with a reading, a command": lambda: pair("synced", synced, reading),
    }


def by_threads(make: Callable[[int], Step], seconds: float = 0.4) -> float:
    """Return the grants a second of four threads."""
    step, end = make(10**6), time.monotonic() + seconds

    def work(_: int) -> int:
        calls = 0
        while time.monotonic() < end:
            for _ in range(20):
                step()
            calls += 20
        return calls

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(work, range(4))) / seconds


async def most_by_tasks(steps: Mapping[str, Ask], rounds: int, seconds: float) -> dict[str, float]:
    """Return the most calls a second of a hundred tasks, of each step in turn."""
    best = dict.fromkeys(steps, 0.0)
    for _ in range(rounds):
        best = {name: max(best[name], await _by_tasks(step, seconds)) for name, step in steps.items()}
    return best


async def _by_tasks(step: Ask, seconds: float) -> float:
    calls, end = 0, time.perf_counter() + seconds

    async def work() -> None:
        nonlocal calls
        while time.perf_counter() < end:
            await step()
            calls += 1
            await asyncio.sleep(0)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(TASKS)))
    return calls / (time.perf_counter() - began)


def together() -> Iterator[str]:
    """Yield the tables of threads and tasks in process."""
    # rush is for one thread: beside others its memory storage raises.
    peers = {name: make for name, make in DOORS.items() if name != "rush"}
    told = dict.fromkeys(peers, 0.0)
    for _ in range(3):
        told = {name: max(told[name], by_threads(make)) for name, make in peers.items()}
    yield from _rates("four threads", told)
    asked: dict[str, Ask] = {
        "keepa_tokens": AsyncTokenBucket(PLENTY).acquire,
        "aiolimiter": aiolimiter.AsyncLimiter(10**6, 1).acquire,
    }
    yield from _rates("a hundred tasks in process", asyncio.run(most_by_tasks(asked, 200, 0.01)))


def _rates(title: str, told: Mapping[str, float]) -> Iterator[str]:
    return table(
        (title, "grants a second:", "keepa_tokens over it:"),
        ((name, f"{rate:,.0f}", f"{told['keepa_tokens'] / rate:.2f}") for name, rate in told.items()),
    )


# --- on a server


def on_server(name: str) -> Iterator[str]:
    """Yield the tables of a server: its own time a call, the client's, and trips."""
    with running(name) as server, server.client() as admin:
        storage = RedisStorage.from_url(server.url)
        client: Any = storage._client  # noqa: SLF001 - the floor is measured by the same client
        noop, naive = client.script_load("return 1"), client.script_load(NAIVE)
        synced = Quota(10**9, 10**6, 1.0, synced=True)
        storage.apply("synced", synced, Reconcile(Reading(10**9, server_time=time.time())))
        many = {f"held{number}": number for number in (1, 6000)}
        for key, number in many.items():
            _fill(storage, key, number)
        limiter, item = FixedWindowRateLimiter(LimitsRedis(server.url)), limits.RateLimitItemPerSecond(10**6)
        ids = count()

        def held(quota: Quota, key: str) -> None:
            hold = f"h{next(ids)}"
            storage.apply(key, quota, Reserve(hold, 1, HOUR_US))
            storage.apply(key, quota, Settle(hold, 1))

        def read() -> None:
            storage.apply("synced", synced, Settle("none", 1, Reading(10**9, server_time=time.time())))

        refused = Quota(1, 1, 10_000.0)
        storage.apply("refused", refused, Acquire(1))
        steps: dict[str, tuple[Step, int]] = {
            "no-op EVALSHA": (lambda: client.execute_command("EVALSHA", noop, 1, "z"), 1),
            "naive Lua bucket": (
                lambda: client.execute_command("EVALSHA", naive, 1, "keepa_tokens:z", 10**9, 10**6),
                1,
            ),
            "limits, fixed window": (lambda: limiter.hit(item, "k"), 1),
            "acquire": (lambda: storage.apply("k", PLENTY, Acquire(1)), 1),
            "acquire, synced": (lambda: storage.apply("synced", synced, Acquire(1)), 1),
            "reserve + settle, a command": (lambda: held(PLENTY, "held"), 2),
            "a plain refusal": (lambda: storage.apply("refused", refused, Acquire(1)), 1),
            "a settle with a reading": (read, 1),
            "acquire beside 1 hold": (lambda: storage.apply("held1", PLENTY, Acquire(1)), 1),
            "acquire beside 6,000 holds": (lambda: storage.apply("held6000", PLENTY, Acquire(1)), 1),
        }
        told = measured(admin, steps)
        floor, plain = told["no-op EVALSHA"], told["naive Lua bucket"]
        yield from table(
            (
                *(f"{name}, a command", "server, us:", "over the naive bucket:", "client, us:"),
                *("over the no-op:", "calls of a script:"),
            ),
            (
                (what, f"{us:.1f}", f"{us / plain[0]:.2f}", f"{wall:.0f}", f"{wall / floor[1]:.2f}", f"{trips:.1f}")
                for what, (us, wall, trips) in told.items()
            ),
        )
        ours, theirs = (admin.memory_usage(f"keepa_tokens:{key}") or 0 for key in "kz")
        yield from (f"A bucket in {name}: {ours} bytes, {ours / theirs:.2f} times the naive one's {theirs}.", "")
        storage.close()


def _fill(storage: RedisStorage, key: str, holds: int) -> None:
    storage.apply(key, PLENTY, Acquire(1))
    for number in range(holds):
        command: Command = Refund(f"r{number}", 1) if number % 2 else Reserve(f"r{number}", 1, HOUR_US)
        storage.apply(key, PLENTY, command)
    storage.apply(key, PLENTY, Peek())


def measured(
    admin: redis.Redis, steps: Mapping[str, tuple[Step, int]], *, calls: int = 20, rounds: int = 50
) -> dict[str, tuple[float, float, float]]:
    """Return the server's microseconds a command, the client's, and calls of scripts, of the quickest turn of each."""
    best = {name: (float("inf"), float("inf"), 0.0) for name in steps}
    for step, _ in steps.values():
        step()
    for _ in range(rounds):
        for name, (step, commands) in steps.items():
            admin.config_resetstat()
            began = time.perf_counter()
            for _ in range(calls):
                step()
            wall = (time.perf_counter() - began) / calls / commands * 1e6
            stats: Any = admin.info("commandstats")
            entries = [stats[f"cmdstat_{each}"] for each in ("evalsha", "eval") if f"cmdstat_{each}" in stats]
            us = sum(entry["usec"] for entry in entries) / calls / commands
            trips = sum(entry["calls"] for entry in entries) / calls / commands
            best[name] = (min(best[name][0], us), min(best[name][1], wall), trips)
    return best


def by_coroutines_on_server(name: str) -> Iterator[str]:
    """Yield the table of a hundred tasks on a server."""

    async def rates(url: str) -> dict[str, float]:
        storage = AsyncRedisStorage.from_url(url)
        client: Any = redis.asyncio.Redis.from_url(url)
        noop = await client.script_load("return 1")
        steps: dict[str, Ask] = {
            "no-op EVALSHA": lambda: client.execute_command("EVALSHA", noop, 1, "z"),
            "acquire": lambda: storage.apply("k", PLENTY, Acquire(1)),
        }
        best = await most_by_tasks(steps, 6, 0.3)
        await storage.aclose()
        await client.aclose()
        return best

    with running(name) as server:
        told = asyncio.run(rates(server.url))
    yield from table(
        (f"{name}, a hundred tasks", "a second:", "over the no-op:"),
        ((what, f"{rate:,.0f}", f"{rate / told['no-op EVALSHA']:.2f}") for what, rate in told.items()),
    )


# --- how it grows


def behind(waiting: int) -> Step:
    """Return a step that takes a place behind so many, one of whom goes meanwhile."""
    storage, quota, instants = MemoryStorage(), Quota(10, 1000, 1.0), count(HOUR_US, 1000)
    for _ in range(10 + waiting):
        storage.apply("k", quota, Acquire(1, wait_us=HOUR_US), now_us=HOUR_US)
    return lambda: storage.apply("k", quota, Acquire(1, wait_us=HOUR_US), now_us=next(instants))


def growth() -> Iterator[str]:
    """Yield what a bucket takes in memory, and whether an acquire costs more among many."""
    keys = 20_000
    gc.collect()
    tracemalloc.start()
    storage = MemoryStorage()
    for number in range(keys):
        storage.apply(f"user:{number}", PLENTY, Acquire(1))
    size = tracemalloc.get_traced_memory()[0] / keys
    tracemalloc.stop()
    alone = MemoryStorage()
    alone.apply("k", PLENTY, Acquire(1))
    told = quickest(
        {
            "one key": lambda: alone.apply("k", PLENTY, Acquire(1)),
            f"{keys:,} keys": lambda: storage.apply("user:77", PLENTY, Acquire(1)),
            "a place, behind 1 who waits": behind(1),
            "a place, behind 10,000": behind(10_000),
        }
    )
    base = {name: told["a place, behind 1 who waits" if "place" in name else "one key"] for name in told}
    yield from (f"A bucket in this process's memory: {size:.0f} bytes.", "")
    yield from table(
        ("an acquire in memory", "us:", "over one key, one who waits:"),
        ((what, f"{1e6 * at:.2f}", f"{at / base[what]:.2f}") for what, at in told.items()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put what came out into this page")
    options = parser.parse_args(arguments)
    lines = [
        *in_process(),
        *together(),
        *growth(),
        *(line for name in ("valkey", "redis") for line in on_server(name)),
        *by_coroutines_on_server("valkey"),
    ]
    print("\n".join(lines))
    if options.write:
        renew(options.write, "bench", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
