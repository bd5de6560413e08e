"""The whole key lost, or the whole server: deleted, evicted, restarted, replaced, failed over."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import pytest
import redis

from checks.faults.measuring import COST, LOOKS, NOTHING, Cell, Due, Limit, look, measured, refilled
from checks.faults.runs import (
    KINDS,
    SECOND,
    SETTLED_STEPS,
    STEPS,
    Kind,
    Moment,
    OnServer,
    Place,
    Run,
    pair,
    put,
    run_of,
)
from keepa_tokens import ConfigError, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Peek, Refund, Reserve, Settle
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.common import stored
from tests.servers import HOST, wait_until


def lost(kind: Kind, due: Due) -> Limit:
    """Return what a bucket that is lost whole may grant: it begins anew."""
    if kind.quota.starts_at is None:
        # What the server reported of the rate is lost as well: the quota's own counts again.
        own, since = replace(due.shown, refill=kind.quota.refill, period=kind.quota.period), due.since
        more = max(refilled(after, own) - refilled(since + after, due.shown) for after in LOOKS)
        more += refilled(since, due.shown)
        return Limit(max(0, -due.available) + max(0, more), "the debt, and the quota's rate for the reported one")
    return Limit(max(0, kind.quota.starts_at - due.available), "one `initial` and the debt")


def unharmed(kind: Kind, due: Due) -> Limit:
    """Return what a bucket may grant whose state survives."""
    return NOTHING


def delete(place: Place) -> None:
    place.client.delete(DEFAULT_PREFIX + "alive", DEFAULT_PREFIX + "greedy")


def evict(place: Place) -> None:
    """Fill the memory with other keys until both buckets had to go."""
    used = place.client.info("memory")["used_memory"]
    place.client.config_set("maxmemory-policy", "allkeys-random")
    place.client.config_set("maxmemory", used + 300_000)
    for number in range(20_000):
        place.client.set(f"filler-{number % 500}", bytes(10_000))
        if not place.client.exists(DEFAULT_PREFIX + "alive", DEFAULT_PREFIX + "greedy"):
            break
    else:
        raise AssertionError("the buckets were never evicted")
    place.client.config_set("maxmemory", 0)
    place.client.flushall()


def restart(place: Place) -> None:
    place.server.stop()
    with pytest.raises(StorageUnavailable):
        place.storage.apply("alive", KINDS[0].quota, Acquire(1))
    place.server.start()


WHOLE: Final[Mapping[tuple[str, str], tuple[Callable[[Place], object], Callable[[Kind, Due], Limit]]]] = {
    ("the key", "deleted"): (delete, lost),
    ("the key", "evicted: `maxmemory` with `allkeys-random`"): (evict, lost),
    ("the server", "`FLUSHALL`"): (lambda place: place.client.flushall(), lost),
    ("the server", "restarted, nothing kept"): (restart, lost),
    ("the server", "`SCRIPT FLUSH`"): (lambda place: place.client.script_flush(), unharmed),
}


def whole_cells(kind: Kind, place: Place, times: int) -> Iterator[Cell]:
    """Lose the whole key, the whole server, or only the script."""
    rng = random.Random(f"losses of a {kind.name} bucket")
    found = run_of(kind, place)
    for at, (harm, limit) in WHOLE.items():
        for _ in range(times):
            moment = found[rng.randrange(len(found))]
            due = Due.at(kind, moment)
            put(place.client, moment.fields, "alive", "greedy")
            harm(place)
            yield measured(kind, at, moment, *pair(kind, place.storage), due, limit(kind, due))


OTHER_TYPES: Final[Mapping[str, Callable[[redis.Redis, str], object]]] = {
    "a string": lambda client, name: client.set(name, "1 2 3"),
    "a list": lambda client, name: client.rpush(name, "balance", "1"),
    "a set": lambda client, name: client.sadd(name, "balance"),
    "a sorted set": lambda client, name: client.zadd(name, {"balance": 1}),
    "a stream": lambda client, name: client.xadd(name, {"balance": "1"}),
}


def retyped_cells(kind: Kind, place: Place) -> Iterator[Cell]:
    """Put something of another type in the bucket's place: an error, nothing granted, the thing left as it was."""
    rng = random.Random(f"types in place of a {kind.name} bucket")
    found = run_of(kind, place)
    for fault, put_instead in OTHER_TYPES.items():
        moment = found[rng.randrange(len(found))]
        name = DEFAULT_PREFIX + "alive"
        put(place.client, moment.fields, "alive")
        place.client.delete(name)
        put_instead(place.client, name)
        thing = place.client.dump(name)
        bucket, _ = pair(kind, place.storage)
        for command in (Acquire(COST), Peek(), Reserve("x", 1, SECOND), Settle("x"), Refund("y", 1, moment.at)):
            with pytest.raises(ConfigError, match="holds something that is no bucket"):
                bucket.apply(command, moment.at)
        assert place.client.dump(name) == thing
        place.client.delete(name)
        assert look(bucket, moment.at).repaired == ()  # once the thing is gone, a new bucket
        yield Cell("the key, replaced by", fault, None, 0, NOTHING)


# --- failover


@dataclass(frozen=True)
class Both:
    """Two buckets that live the same life, and the storage of both is copied on the way."""

    kind: Kind
    rng: random.Random
    keys: tuple[str, str]
    storage: RedisStorage

    def on(self, storage: RedisStorage) -> tuple[OnServer, ...]:
        return tuple(OnServer(storage, key, self.kind.quota) for key in self.keys)

    def apply(self, command: Command, at: int) -> Outcome:
        first, second = self.on(self.storage)
        second.apply(command, at)
        return first.apply(command, at)


def failover_cells(primary: Place, replica: Place, times: int) -> dict[Kind, list[Cell]]:
    """Run buckets on a primary, part it from its replica, run on, lose the primary, promote the stale replica."""
    primary.client.config_set("repl-diskless-sync-delay", 0)
    replica.client.replicaof(HOST, primary.server.port)
    wait_until("the replica follows", lambda: replica.client.info("replication").get("master_link_status") == "up")
    runs: list[tuple[Both, Run]] = []
    for kind in KINDS:
        for number in range(times):
            rng = random.Random(f"failover {number} of a {kind.name} bucket")
            keys = (f"alive-{kind.name}-{number}", f"greedy-{kind.name}-{number}")
            runs.append((both := Both(kind, rng, keys, primary.storage), Run(kind, both, rng)))
            for _ in range(SETTLED_STEPS + rng.randrange(STEPS)):
                runs[-1][1].step()
    written = primary.client.info("replication")["master_repl_offset"]
    wait_until("the replica is in step", lambda: replica.client.info("replication")["slave_repl_offset"] >= written)
    replica.client.replicaof(HOST, 1)  # nobody is there: parted, it keeps what it has
    copies: list[tuple[Both, Moment, int]] = []
    for both, run in runs:
        granted = run.granted
        for _ in range(5 + both.rng.randrange(15)):
            run.step(readings=False)
        copies.append((both, run.moment(stored(primary.client, both.keys[0])), run.granted - granted))
    primary.server.stop()
    replica.client.replicaof("NO", "ONE")
    cells: dict[Kind, list[Cell]] = {kind: [] for kind in KINDS}
    for both, moment, since in copies:
        limit = Limit(since, "what was granted since the copy")
        alive, greedy = both.on(replica.storage)
        at = ("the server", "failover to a stale replica")
        cells[both.kind].append(measured(both.kind, at, moment, alive, greedy, Due.at(both.kind, moment), limit))
    return cells
