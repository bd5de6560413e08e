"""Processes that share a bucket: they never get too much, leak nothing when they are killed, and queue in order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis

from keepa_tokens.rules.commands import Acquire
from keepa_tokens.storage.redis import RedisStorage
from tests.redis import workers
from tests.redis.common import SECOND, calls, state_of, time_of
from tests.redis.workers import SHARED, Diary, has_ended_well, working
from tests.servers import Server, wait_until

pytestmark = pytest.mark.deep  # seconds of real time, and up to twenty processes


def run(job: str, count: int, url: str, folder: Path) -> list[list[list[Any]]]:
    """Let workers do a job and return what each wrote."""
    with working(job, count, url, folder) as crew:
        assert has_ended_well(crew)
    return [Diary(folder / str(number)).read() for number in range(count)]


# --- no over-admission


def most_in_any_interval(grants: list[tuple[int, int]], refill: int) -> int:
    """Return the most that was granted in any interval beyond the refill in it, in token microseconds.

    grants: (instant, tokens), in order. Every interval from one grant to another is counted, both included.
    """
    most = running = 0
    for number, (at, tokens) in enumerate(grants):
        passed = at - grants[number - 1][0] if number else 0
        running = max(0, running - passed * refill) + tokens * SECOND
        most = max(most, running)
    return most


def test_four_processes_get_what_there_is_and_never_more(server: Server, tmp_path: Path) -> None:
    """In 5 s on one key they get, in any interval of t, at most 1000 + 100 t, and at least 99 % of that in all."""
    wrote = [grants for ((grants,),) in run("spend", 4, f"unix://{server.socket_path}", tmp_path)]
    grants = sorted((now + place, tokens) for told in wrote for now, place, tokens in told)
    # Whoever only tries, and begins after the full bucket was spent, gets nothing while others queue.
    assert all(wrote[1::2]), "a process that queues got nothing"
    assert most_in_any_interval(grants, SHARED.refill) <= SHARED.capacity * SECOND
    start = grants[0][0]
    granted = sum(tokens for at, tokens in grants if at <= start + workers.SPENT_FOR_S * SECOND)
    due = SHARED.capacity + SHARED.refill * workers.SPENT_FOR_S
    assert 0.99 * due <= granted <= due


def test_a_token_too_many_is_found() -> None:
    """The count of the intervals finds the one interval in which a single token too many was granted."""
    even = [(at * 10_000, 1) for at in range(1000)]
    assert most_in_any_interval([(0, 1000), *even[1:]], 100) == 1000 * SECOND
    assert most_in_any_interval([(0, 1000), *even[1:500], (5_005_000, 2), *even[502:]], 100) > 1000 * SECOND
    assert most_in_any_interval([(0, 999), (5_000_000, 501), (5_000_000, 1)], 100) == 1001 * SECOND


# --- killed in mid-call


def test_killed_workers_leak_nothing_beyond_the_lifetime_of_their_holds(
    server: Server, client: redis.Redis, tmp_path: Path
) -> None:
    """Of eight workers killed in mid-call only holds remain, which end in time; every token is accounted for."""
    diaries = [Diary(tmp_path / str(number)) for number in range(8)]

    def are_busy() -> bool:
        told = [diary.read() for diary in diaries]
        return all(len(lines) > 40 and (number % 2 == 0 or lines[-1] == ["hangs"]) for number, lines in enumerate(told))

    with working("hold", 8, f"unix://{server.socket_path}", tmp_path):
        wait_until("four workers are busy and four hang in a call", are_busy)

    storage = RedisStorage(client)
    now = time_of(client)
    shown = storage.inspect("held", now_us=now)
    assert shown is not None
    assert 4 <= shown.holds <= 8
    assert shown.held == shown.holds * workers.ESTIMATE

    # What is not held was settled by somebody; a killed worker may have done one thing more than it could tell.
    told = [diary.read() for diary in diaries]
    settled = sum(lines.count(["settled"]) for lines in told)
    assert shown.balance is not None
    cost = workers.HELD.capacity - shown.balance - shown.held
    assert cost % workers.ACTUAL == 0
    assert settled <= cost // workers.ACTUAL <= settled + 8

    # All of them end within their lifetime, and their estimates stay charged.
    end = now + round(workers.HOLD_FOR_S * SECOND)
    later = storage.inspect("held", now_us=end)
    assert later is not None
    assert (later.holds, later.held) == (0, 0)
    assert later.balance == shown.balance
    storage.apply("held", workers.HELD, Acquire(0), now_us=end + SECOND)
    assert state_of(client, "held").holds == {}


# --- first come, first served


def test_twenty_processes_are_served_in_the_order_in_which_they_came(
    server: Server, client: redis.Redis, tmp_path: Path
) -> None:
    """They get their tokens first come, first served, one refill apart, none too early, with one call for each."""
    storage = RedisStorage(client)
    storage.apply("queue", workers.QUEUED, Acquire(1))  # the script is loaded, and the bucket empty
    client.config_resetstat()
    wrote = run("queue", 20, f"unix://{server.socket_path}", tmp_path)

    came = sorted((now, place, returned) for lines in wrote for now, place, returned in lines)
    assert len(came) == 20 * workers.TURNS
    served = [now + place for now, place, _ in came]
    spacing = workers.QUEUED.period_us // workers.QUEUED.refill
    assert served == sorted(served)
    assert all(later - earlier >= spacing for earlier, later in pairwise(served))
    assert all(returned >= now + place for now, place, returned in came)
    assert (calls(client, "evalsha"), calls(client, "eval")) == (len(came), 0)


# --- fork


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_fork_with_an_open_storage_works(server: Server, tmp_path: Path, scheme: str) -> None:
    """Parent and children that go on with the storage that was open at the fork each get their own answers."""
    run("fork-sync", 0, server.url.replace("redis", scheme), tmp_path)


def test_what_each_forked_child_decides_is_stored(server: Server, client: redis.Redis, tmp_path: Path) -> None:
    """A storing that a client may send again is known by its writer, and no child is taken for another."""
    run("fork-resending", 0, server.url, tmp_path)
    assert state_of(client, "children").version == 3


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_fork_with_an_open_async_storage_is_an_error_in_the_child(
    server: Server, tmp_path: Path, scheme: str
) -> None:
    """A child that uses its parent's open async storage gets a ConfigError; one that nobody used yet works there."""
    run("fork-async", 0, server.url.replace("redis", scheme), tmp_path)
