"""Buckets that run: random work on one, and what there is of it in the middle of that, to be damaged."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import redis

from keepa_tokens import BucketState, Quota, Reading
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Reconcile, Refund, Reserve, Settle
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.units import MICROSECONDS, UNLIMITED
from tests.redis.common import stored
from tests.servers import Server
from tests.strategies import InMemory

SECOND: Final = MICROSECONDS
HOUR: Final = 3600 * SECOND
START: Final = 1_780_000_000 * SECOND

STEPS: Final = 60
SETTLED_STEPS: Final = 12
"""Faults come after so many steps of a run: by then there are holds, debts and readings."""


@dataclass(frozen=True)
class Kind:
    name: str
    quota: Quota
    says: str


KINDS: Final = (
    Kind("plain", Quota(100, 20, 60.0), "capacity 100, 20 a minute, callers queue"),
    Kind(
        "recharging",
        Quota(100, 20, 60.0, recharge_to=40, overdraft=10),
        "capacity 100, 20 a minute, `recharge_to=40`, `overdraft=10`",
    ),
    Kind(
        "synced",
        Quota(300, 5, 60.5, stepped=True, synced=True, overdraft=UNLIMITED),
        "capacity 300, 5 every 60.5 s in steps, follows readings of 4 a step, unlimited overdraft",
    ),
)


@dataclass(frozen=True)
class Moment:
    """A bucket during a run: when, what is stored, which calls are in flight, what was granted so far."""

    at: int
    fields: Mapping[str, str]
    calls: tuple[tuple[str, int], ...]
    granted: int


class Bucket(Protocol):
    def apply(self, command: Command, at: int, /) -> Outcome: ...


@dataclass
class Run:
    """Random work on one bucket: calls that are held, settled, late, cancelled; places ahead; refunds; readings."""

    kind: Kind
    bucket: Bucket
    rng: random.Random
    now: int = START
    granted: int = 0
    calls: list[tuple[str, int]] = field(default_factory=list)
    steps: int = 0

    def step(self, *, readings: bool = True) -> None:
        self.now += self._below(8) * SECOND
        self.steps += 1
        chance = self._below(100)
        if self.kind.quota.synced and (self.steps == 1 or (readings and chance < 20)):
            self.bucket.apply(Reconcile(self._reading()), self.now)
        elif chance < 50:
            tokens = 1 + self._below(25)
            wait = 60 * SECOND if self._below(2) else None
            ticket = f"ticket-{self.steps}" if wait else None
            if self.bucket.apply(Acquire(tokens, wait_us=wait, ticket=ticket), self.now).granted:
                self.granted += tokens
        elif chance < 75 or not self.calls:
            name, tokens = f"call-{self.steps}", 1 + self._below(15)
            hold_for = (20 + self._below(70)) * SECOND
            if self.bucket.apply(Reserve(name, tokens, hold_for), self.now).granted:
                self.granted += tokens
                self.calls.append((name, tokens))
        elif chance < 90:
            name, tokens = self.calls.pop(self._below(len(self.calls)))
            reading = self._reading() if self.kind.quota.synced and readings and self._below(2) else None
            self.bucket.apply(Settle(name, self._below(tokens + 1), reading), self.now)
        elif chance < 95:
            self.bucket.apply(Cancel(self.calls.pop(0)[0]), self.now)
        else:
            self.bucket.apply(Refund(f"refund-{self.steps}", 1 + self._below(5), self.now), self.now)

    def moment(self, fields: Mapping[str, str]) -> Moment:
        """Return the bucket as it is, a little later."""
        return Moment(self.now + self._below(8) * SECOND, fields, tuple(self.calls), self.granted)

    def _reading(self) -> Reading:
        return Reading(
            self._below(90) - 50,
            next_refill_in=float(self._below(60)),
            refill=4,
            capacity=300,
            server_time=float(self.now // SECOND - 7),
        )

    def _below(self, end: int) -> int:
        return self.rng.randrange(end)


@dataclass(frozen=True)
class OnServer:
    """A bucket in Redis. Its time is an argument; with a clock, the server's own."""

    storage: RedisStorage
    key: str
    quota: Quota
    set_clock: Callable[[int], None] | None = None

    def apply(self, command: Command, at: int) -> Outcome:
        if self.set_clock is None:
            return self.storage.apply(self.key, self.quota, command, now_us=at)
        self.set_clock(at)
        return self.storage.apply(self.key, self.quota, command)


def twin(kind: Kind, moment: Moment | None = None) -> InMemory:
    return InMemory(kind.quota, None if moment is None else BucketState.from_fields(moment.fields))


@dataclass(frozen=True)
class Place:
    """A server, a storage on it, and a client to do damage with."""

    server: Server
    storage: RedisStorage
    client: redis.Redis


def place_of(server: Server) -> Place:
    return Place(server, RedisStorage.from_url(f"unix://{server.socket_path}"), server.client())


def pair(kind: Kind, storage: RedisStorage) -> tuple[OnServer, OnServer]:
    return OnServer(storage, "alive", kind.quota), OnServer(storage, "greedy", kind.quota)


def put(client: redis.Redis, fields: Mapping[str, str], *keys: str) -> None:
    items = [part.encode("utf-8", "surrogateescape") for named in fields.items() for part in named]
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.delete(DEFAULT_PREFIX + key)
            if items:
                pipe.hset(DEFAULT_PREFIX + key, items=items)
        pipe.execute()


def moments(kind: Kind, bucket: Bucket, fields: Callable[[], Mapping[str, str]]) -> list[Moment]:
    """Run a bucket and return it at each of its later steps."""
    run = Run(kind, bucket, random.Random(f"run of a {kind.name} bucket"))
    found = []
    for _ in range(STEPS):
        run.step()
        there = fields()
        if run.steps > SETTLED_STEPS:
            found.append(run.moment(there))
    return found


def run_of(kind: Kind, place: Place) -> list[Moment]:
    """Return the moments of a run on this server."""
    key = f"run-of-a-{kind.name}"
    place.client.delete(DEFAULT_PREFIX + key)
    return moments(kind, OnServer(place.storage, key, kind.quota), lambda: stored(place.client, key))
