"""How long a key is kept (rule 9): what the script gives by itself is what `lifetime_us` says, or what was left."""

from __future__ import annotations

import time
from math import ceil
from typing import Any

import pytest
import redis

from keepa_tokens import Quota, Reading
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Pause, Reconcile, Refund, Reserve, Settle
from keepa_tokens.rules.transition import lifetime_us
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.common import NAME, SECOND, state_of, time_of
from tests.redis.mirror import BY_ITSELF
from tests.redis.test_differential import Watched
from tests.servers import Server

Step = Command | str
"""A command, or a field that is lost before the next one."""

CASES: dict[str, tuple[Quota, tuple[Step, ...]]] = {
    "soon full": (Quota(10, 1, 1.0), (Acquire(1), Acquire(1))),
    "full in minutes": (Quota(10, 1, 60.0), (Acquire(5), Acquire(1))),
    "full above the capacity": (Quota(10, 1, 60.0), (Acquire(1), Refund("a", 9), Acquire(1))),
    "a place": (Quota(10, 1, 60.0), (Acquire(10), Acquire(3, wait_us=900 * SECOND))),
    "steps": (Quota(10, 3, 60.0, stepped=True), (Acquire(8), Acquire(1))),
    "nothing refills": (Quota(10, 0, 1.0), (Acquire(1), Acquire(1))),
    "nothing refills in steps": (Quota(10, 0, 1.0, stepped=True), (Acquire(1), Acquire(1))),
    "one in a period": (Quota(10, 1, 3600.0), (Acquire(1), Acquire(1))),
    "never full": (Quota(10**6, 1, 86_400.0 * 3000), (Acquire(10**6), Acquire(1, wait_us=1))),
    "initial below the capacity": (Quota(10, 1, 1.0, initial=9), (Acquire(1), Acquire(1))),
    "initial at the capacity": (Quota(10, 1, 1.0, initial=10), (Acquire(1), Acquire(1))),
    "a hold": (Quota(10, 1, 1.0), (Acquire(1), Reserve("a", 1, 600 * SECOND), Acquire(1), Cancel("a"), Acquire(1))),
    "a new bucket's hold": (Quota(10, 1, 1.0), (Reserve("a", 1, 600 * SECOND), Settle("a", 2), Acquire(1))),
    "a short hold": (Quota(10, 1, 60.0), (Acquire(9), Reserve("a", 1, SECOND), Acquire(1))),
    "a refund": (Quota(10, 1, 1.0), (Acquire(5), Refund("a", 2), Acquire(1), Acquire(1))),
    "by the rules": (Quota(10, 1, 1.0), (Reserve("a", 1, 600 * SECOND), Pause(0), Refund("y", 1))),
    "a hold whose end is lost": (Quota(10, 1, 1.0), (Reserve("a", 1, 600 * SECOND), "due_at", Acquire(1))),
    "synced": (Quota(300, 5, 60.0, synced=True), (Reconcile(Reading(50)), Acquire(1), Reserve("a", 1, SECOND))),
    "synced, a long hold": (
        Quota(300, 5, 60.0, synced=True),
        (Reconcile(Reading(50)), Reserve("a", 1, 86_400 * SECOND), Acquire(1), Settle("a", 1)),
    ),
    "synced, kept for ever": (
        Quota(300, 5, 60.0, synced=True, initial=300),
        (Reconcile(Reading(50, capacity=200)), Acquire(1), Reserve("a", 1, SECOND), Settle("a", 1)),
    ),
    "synced, no longer to be kept for ever": (
        Quota(300, 5, 60.0, synced=True, initial=300),
        (Reconcile(Reading(50, capacity=200)), Reconcile(Reading(50, capacity=300)), Acquire(1)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_key_is_kept_as_long_as_the_rule_says_or_was_left(server: Server, client: redis.Redis, case: str) -> None:
    """After each command, whoever gave the lifetime, to a few milliseconds, and the time that the test itself took.

    Valkey tells the end itself: then to the millisecond, where the script gave it by itself.
    """
    quota, steps = CASES[case]
    left, since, end = -2, time.monotonic(), 0
    with Watched.from_url(server.url) as storage:
        for step in steps:
            if isinstance(step, str):
                client.hdel(NAME, step)
                continue
            began = time.monotonic()
            outcome = storage.apply("k", quota, step)
            now: int = client.pttl(NAME)
            took = (time.monotonic() - since) * 1000
            by_rule = lifetime_us(state_of(client), outcome.now_us)
            if by_rule is None:
                assert now == -1, step
            else:
                expected = max(ceil(by_rule / 1000), left)
                assert expected - took - 3 <= now <= expected + 1, step
                if server.name == "valkey":
                    told: Any = client.pexpiretime(NAME)
                    new = outcome.now_us // 1000 + ceil(by_rule / 1000)
                    # What is left is told in whole milliseconds, rounded down.
                    exact = told == new or new - 1 <= told == end
                    assert exact if storage.way() == BY_ITSELF else told >= new - 1, step
                    end = told
            left, since = now, began


def test_who_has_read_all_need_not_keep_it_longer(storage: RedisStorage, client: redis.Redis) -> None:
    """What mends a bucket has seen that a long hold is gone; who reads a part of it keeps it for what was left."""
    quota = Quota(10, 1, 1.0)
    for command in (Reserve("a", 1, 600 * SECOND), Cancel("a"), Acquire(1)):
        storage.apply("k", quota, command)
        assert client.pttl(NAME) > 600_000
    client.hset(NAME, "carry", "NaN")
    storage.apply("k", quota, Acquire(1))
    assert 0 < client.pttl(NAME) <= 60_000


def test_on_a_callers_clock_it_is_kept_for_ever(storage: RedisStorage, client: redis.Redis) -> None:
    """Nobody knows how that clock goes: also where it was kept for a time before, and until it goes by the server's."""
    for now_us in (None, time_of(client), None):
        storage.apply("k", Quota(10, 1, 1.0), Acquire(1), now_us=now_us)
        left_ms: int = client.pttl(NAME)
        assert 59_000 < left_ms <= 60_000 if now_us is None else left_ms == -1
