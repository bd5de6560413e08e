"""`make bench` measures what it says, and no ratio has run away: generous bounds, several tries, no seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from checks.benchmarks.bench import NAIVE, NOTHING, PLENTY, Bare, Locked, measured, over_admitted, quickest
from keepa_tokens import MemoryStorage, Quota, RedisStorage, TokenBucket
from keepa_tokens.rules.commands import Acquire, Reconcile, Reserve
from keepa_tokens.rules.reading import Reading
from tests.servers import running

TRIES = 5


def within(bound: float, ratio: Callable[[], float]) -> bool:
    """Whether one of several tries comes to a ratio within the bound."""
    return any(ratio() < bound for _ in range(TRIES))


def over_the_floor(step: Callable[[], object]) -> float:
    told = quickest({"floor": Locked(10**9, 1e6).take, "step": step}, calls=100, rounds=10)
    return told["step"] / told["floor"]


def test_the_floors_count() -> None:
    """Both floors grant what they hold, and no more."""
    for kind in (Bare, Locked):
        floor = kind(3, 0)
        assert [floor.take() for _ in range(5)] == [True] * 3 + [False] * 2


def test_who_lets_go_too_many_is_found() -> None:
    """Somebody who always says yes lets go more than there is; this library does not."""
    assert over_admitted(lambda _: lambda: True, seconds=0.1) > 1000
    assert over_admitted(lambda rate: TokenBucket(Quota.per_second(rate)).try_acquire, seconds=0.1) == 0


def test_a_grant_and_a_refusal_in_process_cost_a_few_floors() -> None:
    """Measured at two and at two and a half times a locked bucket that says yes or no."""
    granting, refusing = TokenBucket(PLENTY), TokenBucket(NOTHING)
    refusing.try_acquire()
    assert within(5, lambda: over_the_floor(granting.try_acquire))
    assert within(6, lambda: over_the_floor(refusing.try_acquire))


def test_the_general_path_in_process_costs_some_dozen_floors() -> None:
    """A command that the rules decide, measured at about thirty times."""
    storage, quota = MemoryStorage(), Quota(10**6, 5, 60.0, synced=True)
    reading = Reading(10**6)
    assert within(120, lambda: over_the_floor(lambda: storage.apply("k", quota, Reconcile(reading))))


def test_an_acquire_costs_the_server_a_few_naive_buckets() -> None:
    """Measured at about twice a bucket in Lua without repair, holds and places."""
    with running("valkey") as server, server.client() as client:
        storage = RedisStorage.from_url(server.url)
        naive = client.script_load(NAIVE)

        def ratio() -> float:
            steps: dict[str, tuple[Callable[[], object], int]] = {
                "ours": (lambda: storage.apply("k", PLENTY, Acquire(1)), 1),
                "naive": (lambda: client.evalsha(naive, 1, "z", "1000000000", "1000000"), 1),
            }
            told = measured(client, steps, calls=100, rounds=1)
            return told["ours"][0] / told["naive"][0]

        assert within(4, ratio)
        storage.close()


def test_holds_cost_an_acquire_nothing() -> None:
    """Beside thousands of open holds the server's time for an acquire is what it is without."""
    with running("valkey") as server, server.client() as client:
        storage = RedisStorage.from_url(server.url)
        for number in range(3000):
            storage.apply("many", PLENTY, Reserve(f"h{number}", 1, 3_600_000_000))
        storage.apply("few", PLENTY, Reserve("h", 1, 3_600_000_000))

        def ratio() -> float:
            keys = ("few", "many")
            told = measured(
                client, {key: (partial(storage.apply, key, PLENTY, Acquire(1)), 1) for key in keys}, rounds=10
            )
            return told["many"][0] / told["few"][0]

        assert within(2, ratio)
        storage.close()
