"""The fault table: a bucket runs on a real server, something breaks, and what follows is measured against its bounds.

Time is an argument, or a clock that a test moves, and chance has a seed: every run measures the same to the last digit.
The yardstick of what may be granted is a twin, the same bucket in memory, to which nothing has happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import pytest
import redis

from keepa_tokens import BucketState, ConfigError, Quota, Reading, Snapshot, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.storage.redis import DEFAULT_PREFIX, RedisStorage
from keepa_tokens.units import CLAIM_US, MAX_BACKOFF_US, MICROSECONDS, PROBE_AFTER_US, TOLERANCE_US, UNLIMITED
from tests.servers import HOST, Server, running, wait_until

SECOND: Final = MICROSECONDS
HOUR: Final = 3600 * SECOND
START: Final = 1_780_000_000 * SECOND
COST: Final = 5
"""What is asked for after a fault, until it is granted or somebody is sent to the server."""

STEPS: Final = 60
SETTLED_STEPS: Final = 12
"""Faults come after so many steps of a run: by then there are holds, debts and readings."""

LOOKS: Final = tuple(after * SECOND for after in (0, 1, 5, 30, 61, 90, 122, 200))
"""When, after a fault, all that there is is taken."""


@dataclass(frozen=True)
class Kind:
    """A kind of bucket that runs."""

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


# --- a run


@dataclass(frozen=True)
class Moment:
    """A bucket during a run: when, what is stored, which calls are in flight, what was granted so far."""

    at: int
    fields: Mapping[str, str]
    calls: tuple[tuple[str, int], ...]
    granted: int


class Bucket(Protocol):
    """A bucket that is told the time."""

    def apply(self, command: Command, at: int) -> Outcome: ...


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
        """Do one thing."""
        self.now += self._below(8) * SECOND
        self.steps += 1
        chance = self._below(100)
        if self.kind.quota.synced and (self.steps == 1 or (readings and chance < 20)):
            self.bucket.apply(Reconcile(self._reading()), self.now)
        elif chance < 50:
            tokens = 1 + self._below(25)
            wait = 60 * SECOND if self._below(2) else None
            if self.bucket.apply(Acquire(tokens, wait_us=wait), self.now).granted:
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


@dataclass(frozen=True)
class InMemory:
    """The twin."""

    storage: MemoryStorage
    quota: Quota

    @classmethod
    def of(cls, kind: Kind, moment: Moment) -> InMemory:
        storage = MemoryStorage()
        storage.load("twin", BucketState.from_fields(moment.fields))
        return cls(storage, kind.quota)

    @classmethod
    def new(cls, kind: Kind) -> InMemory:
        return cls(MemoryStorage(), kind.quota)

    def fields(self) -> Mapping[str, str]:
        state = self.storage.dump("twin")
        return {} if state is None else state.to_fields()

    def apply(self, command: Command, at: int) -> Outcome:
        return self.storage.apply("twin", self.quota, command, now_us=at)


# --- what is measured


def micro(duration: float) -> int:
    """Return seconds as whole microseconds."""
    return round(duration * MICROSECONDS)


def look(bucket: Bucket, at: int, tokens: int = COST) -> Snapshot:
    """Return what `peek` shows."""
    snapshot = bucket.apply(Peek(tokens), at).snapshot
    assert snapshot is not None
    return snapshot


@dataclass(frozen=True)
class Life:
    """How a bucket goes on: what it says it mended, and how long until a grant or a probe, by which bound."""

    repaired: tuple[str, ...]
    shown: Snapshot
    waited: int
    bound: int
    ends: str


def life(bucket: Bucket, kind: Kind, at: int) -> Life:
    """Ask until there is a grant or a probe. AssertionError: not by the bound that was stated, or it is too far."""
    shown = look(bucket, at)
    again = set(look(bucket, at).repaired)
    # A balance that is unknown stays named until a reading, or the end of a claim, brings one.
    assert again <= ({"balance"} if kind.quota.synced else set()), f"repairs that were not written back: {again}"
    bound = micro(shown.bound)
    assert bound <= longest(kind, shown), f"the stated bound of {shown.bound} s is too far"
    now, end = at, at + bound
    while True:
        outcome = bucket.apply(Acquire(COST), now)
        if outcome.granted or outcome.probe:
            return Life(shown.repaired, shown, now - at, bound, "grant" if outcome.granted else "probe")
        assert now < end, f"neither a grant nor a probe within the stated {shown.bound} s"
        now = min(end, now + max(1, outcome.retry_after_us))


def longest(kind: Kind, shown: Snapshot) -> int:
    """Return the most that a bound may be, by what is left of the bucket: the refill time and a period; or a probe."""
    if kind.quota.synced:
        return max(PROBE_AFTER_US, CLAIM_US + MAX_BACKOFF_US) + 2 * TOLERANCE_US
    missing = max(0, max(COST, kind.quota.recharge_to or 0) - (shown.available or 0))
    return -(-missing * kind.quota.period_us // kind.quota.refill) + kind.quota.period_us + TOLERANCE_US


def greed(bucket: Bucket, moment: Moment, at: int) -> Iterator[tuple[int, int]]:
    """Take all that there is at every look, settling a call now and then; yield the total, and what is left then."""
    taken = 0
    calls = list(moment.calls)
    for after in LOOKS:
        now = at + after
        if after and calls:
            name, tokens = calls.pop()
            bucket.apply(Settle(name, tokens // 2), now)
        left = look(bucket, now, 0).available or 0
        wanted = max(1, left)
        if bucket.apply(Acquire(wanted), now).granted:
            taken += wanted
            left -= wanted
        yield taken, left


@dataclass(frozen=True)
class Due:
    """What may be had of a bucket to which nothing happens, at each look; and how it stands at the first."""

    by_look: tuple[int, ...]
    since: int
    shown: Snapshot
    balance: int
    available: int

    @classmethod
    def at(cls, kind: Kind, moment: Moment) -> Due:
        shown = look(InMemory.of(kind, moment), moment.at)
        assert shown.balance is not None
        assert shown.available is not None
        by_look = tuple(taken + left for taken, left in greed(InMemory.of(kind, moment), moment, moment.at))
        since = moment.at - int(moment.fields["refilled_at"])
        return cls(by_look, since, shown, shown.balance, shown.available)

    def beyond(self, bucket: Bucket, moment: Moment, at: int) -> int:
        """Return how much more than that a bucket gives to those who take all they can."""
        before, most = 0, 0
        for (taken, _), due in zip(greed(bucket, moment, at), self.by_look, strict=True):
            if taken > before:  # who is in debt grants nothing, and so nothing beyond
                most = max(most, taken - due)
            before = taken
        return most


@dataclass(frozen=True)
class Limit:
    """The bound of what may be granted beyond: how much, and what that is."""

    tokens: int
    says: str


NOTHING: Final = Limit(0, "nothing")


@dataclass(frozen=True)
class Cell:
    """One fault at one moment, measured. life: None where the storage says by an error what is wrong."""

    field: str
    fault: str
    life: Life | None
    beyond: int
    limit: Limit


def measured(
    kind: Kind, at: tuple[str, str], moment: Moment, alive: Bucket, greedy: Bucket, due: Due, limit: Limit | LimitOf
) -> Cell:
    """Measure two buckets to which the same happened: one is asked until it grants, from the other all is taken."""
    try:
        lives = life(alive, kind, moment.at)
        most = limit if isinstance(limit, Limit) else limit(lives.shown)
        beyond = due.beyond(greedy, moment, moment.at)
        assert beyond <= most.tokens, f"{beyond} granted beyond, more than {most.says} ({most.tokens})"
    except AssertionError as error:
        msg = f"{kind.name}, {' '.join(at)}: {error}; at {moment.at} there was {dict(moment.fields)}"
        raise AssertionError(msg) from error
    return Cell(*at, lives, beyond, most)


LimitOf: TypeAlias = Callable[[Snapshot], Limit]
"""A limit that depends on what the bucket shows after the fault."""


# --- every field, every fault

_PLACES: Final = (
    "format",
    "balance",
    "refilled_at",
    "carry",
    "carry_refill",
    "carry_period_us",
    "closed_until",
    "sequence",
    "reading_at",
    "reading_sequence",
    "server_time",
    "drift",
    "kept_back",
    "kept_back_at",
    "probe_until",
    "probe_failures",
    "reported_refill",
    "reported_period_us",
    "reported_capacity",
    "capacity",
    "refill",
    "period_us",
    "stepped",
    "overdraft",
    "recharge_to",
    "initial",
    "synced",
)
"""All fields but the holds; that these are all is asserted of every run."""

HOLD: Final = "hold:"
SHOWN_QUOTA: Final = frozenset(_PLACES[_PLACES.index("capacity") :])
"""Fields of the quota as last used: shown, never obeyed."""

NEEDED: Final = frozenset({"format", "balance", "refilled_at", "carry", "sequence", "probe_failures"})
"""Fields that are never rightly missing."""

FAR_FUTURE: Final = str(START + 50 * 365 * 86_400 * SECOND)
FAULTS: Final[Mapping[str, str | None]] = {
    "deleted": None,
    "garbled": "\x00\udcff?garbled",
    "NaN": "NaN",
    "inf": "inf",
    "1e308": "1e308",
    "empty": "",
    "a list": "[1, 2]",
    "far past": "1",
    "far future": FAR_FUTURE,
}
UNREADABLE: Final = frozenset({"garbled", "NaN", "inf", "1e308", "empty", "a list"})


def expected(name: str, fault: str) -> str | None:
    """Return the name that a repair must give, where it is certain; None: by the circumstances."""
    if name.startswith(HOLD):
        return name if fault != "deleted" else None
    if name in {"recharge_to", "initial"}:
        return None  # a quota may rightly be without: what can't be read there is taken for that
    if fault in UNREADABLE:
        return "quota" if name in SHOWN_QUOTA else name
    return name if fault == "deleted" and name in NEEDED else None


def limit_of(kind: Kind, name: str, text: str | None, moment: Moment, due: Due, shown: Snapshot) -> Limit:
    """Return what a fault of one field may make the bucket grant beyond what it would have."""
    value = int(text) if text and text.isdecimal() and not name.startswith(HOLD) else None
    state = BucketState.from_fields(moment.fields)
    if name == "balance":
        if value is not None:
            return Limit(max(0, value - (state.balance or 0)), "what it says")
        return Limit(max(0, -(due.available if kind.quota.synced else due.balance)), "the debt")
    if name == "refilled_at" and value is not None and value < moment.at:
        sooner = shown.refill if kind.quota.stepped else 0  # its steps have another phase now
        return Limit(max(0, kind.quota.capacity - due.balance) + sooner, "a full bucket")
    if name == "kept_back":
        return Limit(state.kept_back or 0, "what was kept back")
    if name.startswith("carry"):
        return Limit(1, "one token")
    if name.startswith(HOLD):
        hold = state.holds.get(name.removeprefix(HOLD))
        return Limit(hold.tokens if hold and hold.in_flight else 0, "what it held")
    if name == "reading_sequence" and value is not None:
        return Limit(sum(hold.tokens for hold in state.holds.values() if not hold.in_flight), "what ran out")
    if name in {"reported_refill", "reported_period_us"} and kind.quota.synced:
        more = max(_refill(due.since + after, shown) - _refill(due.since + after, due.shown) for after in LOOKS)
        full_each_time = len(LOOKS) * shown.capacity - due.available
        return Limit(max(0, min(more, full_each_time)), "the refill by the rate it says")
    return NOTHING


def _refill(duration: int, shown: Snapshot) -> int:
    """Return what a stepped bucket gets in `duration` from its last step on."""
    return duration // micro(shown.period) * shown.refill


def fields_of(client: redis.Redis, key: str) -> dict[str, str]:
    """Return what is stored of a bucket."""
    stored: Any = client.hgetall(DEFAULT_PREFIX + key)
    return {name.decode(): text.decode() for name, text in stored.items()}


def put(client: redis.Redis, fields: Mapping[str, str], *keys: str) -> None:
    """Store fields under keys as they are."""
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
        stored = fields()
        assert {name for name in stored if not name.startswith(HOLD)} <= set(_PLACES), "a field is not in the table"
        if run.steps > SETTLED_STEPS:
            found.append(run.moment(stored))
    return found


def field_cells(kind: Kind, place: Place, times: int) -> Iterator[Cell]:
    """Damage every field in every way, each at some moments of a run."""
    rng = random.Random(f"faults of a {kind.name} bucket")
    found = run_of(kind, place)
    dues = {id(moment): Due.at(kind, moment) for moment in found}
    for slot in (*_PLACES, HOLD):
        for fault, text in FAULTS.items():
            with_it = [
                moment
                for moment in found
                if any(name.startswith(slot) if slot == HOLD else name == slot for name in moment.fields)
            ]
            if not with_it and text is None:
                continue
            for _ in range(times):
                choice = with_it or found
                moment = choice[rng.randrange(len(choice))]
                name = next((at for at in sorted(moment.fields) if slot == HOLD and at.startswith(HOLD)), slot)
                yield _field_cell(kind, name, fault, moment, dues[id(moment)], place.storage, place.client)


def _field_cell(
    kind: Kind, name: str, fault: str, moment: Moment, due: Due, storage: RedisStorage, client: redis.Redis
) -> Cell:
    text = FAULTS[fault]
    damaged = {at: stored for at, stored in moment.fields.items() if at != name}
    if text is not None:
        damaged[name] = text
    put(client, damaged, "alive", "greedy")
    cell = measured(
        kind,
        (f"`{HOLD}…`" if name.startswith(HOLD) else f"`{name}`", fault),
        moment,
        *pair(kind, storage),
        due,
        lambda shown: limit_of(kind, name, text, moment, due, shown),
    )
    named = expected(name, fault)
    assert cell.life is not None
    assert named is None or named in cell.life.repaired, f"{name} {fault}: {named} is not in {cell.life.repaired}"
    return cell


def pair(kind: Kind, storage: RedisStorage) -> tuple[OnServer, OnServer]:
    """Return the two buckets that are measured after a fault."""
    return OnServer(storage, "alive", kind.quota), OnServer(storage, "greedy", kind.quota)


# --- the whole key, the whole server


def lost(kind: Kind, due: Due) -> Limit:
    """Return what a bucket that is lost whole may grant: it begins anew."""
    if kind.quota.starts_at is None:
        # What the server reported of the rate is lost as well: the quota's own counts again.
        own, since = replace(due.shown, refill=kind.quota.refill, period=kind.quota.period), due.since
        more = max(_refill(after, own) - _refill(since + after, due.shown) for after in LOOKS)
        more += _refill(since, due.shown)
        return Limit(max(0, -due.available) + max(0, more), "the debt, and the quota's rate for the reported one")
    return Limit(max(0, kind.quota.starts_at - due.available), "one `initial` and the debt")


def unharmed(kind: Kind, due: Due) -> Limit:
    """Return what a bucket may grant whose state survives."""
    return NOTHING


@dataclass(frozen=True)
class Place:
    """A server, a storage on it, and a client to do damage with."""

    server: Server
    storage: RedisStorage
    client: redis.Redis


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


def run_of(kind: Kind, place: Place) -> list[Moment]:
    """Return the moments of a run on this server."""
    key = f"run-of-a-{kind.name}"
    place.client.delete(DEFAULT_PREFIX + key)
    return moments(kind, OnServer(place.storage, key, kind.quota), lambda: fields_of(place.client, key))


# --- failover


@dataclass(frozen=True)
class Copied:
    """A bucket that went on after its copy was made: the fault that is to come, and what was granted meanwhile."""

    kind: Kind
    number: int
    moment: Moment
    since: int

    def on(self, storage: RedisStorage) -> tuple[OnServer, OnServer]:
        alive, greedy = (f"{part}-{self.kind.name}-{self.number}" for part in ("alive", "greedy"))
        return OnServer(storage, alive, self.kind.quota), OnServer(storage, greedy, self.kind.quota)


@dataclass(frozen=True)
class Both:
    """Two buckets that live the same life."""

    first: OnServer
    second: OnServer

    def apply(self, command: Command, at: int) -> Outcome:
        self.second.apply(command, at)
        return self.first.apply(command, at)


def failover_cells(primary: Place, replica: Place, times: int) -> dict[Kind, list[Cell]]:
    """Run buckets on a primary, part it from its replica, run on, lose the primary, promote the stale replica."""
    primary.client.config_set("repl-diskless-sync-delay", 0)
    replica.client.replicaof(HOST, primary.server.port)
    wait_until("the replica follows", lambda: replica.client.info("replication").get("master_link_status") == "up")
    runs: list[tuple[Kind, int, Run, random.Random]] = []
    for kind in KINDS:
        for number in range(times):
            rng = random.Random(f"failover {number} of a {kind.name} bucket")
            both = Both(*Copied(kind, number, Moment(0, {}, (), 0), 0).on(primary.storage))
            run = Run(kind, both, rng)
            for _ in range(SETTLED_STEPS + rng.randrange(STEPS)):
                run.step()
            runs.append((kind, number, run, rng))
    written = primary.client.info("replication")["master_repl_offset"]
    wait_until("the replica is in step", lambda: replica.client.info("replication")["slave_repl_offset"] >= written)
    replica.client.replicaof(HOST, 1)  # nobody is there: parted, it keeps what it has
    copies = []
    for kind, number, run, rng in runs:
        granted = run.granted
        for _ in range(5 + rng.randrange(15)):
            run.step(readings=False)
        assert isinstance(run.bucket, Both)
        moment = run.moment(fields_of(primary.client, run.bucket.first.key))
        copies.append(Copied(kind, number, moment, run.granted - granted))
    primary.server.stop()
    replica.client.replicaof("NO", "ONE")
    cells: dict[Kind, list[Cell]] = {kind: [] for kind in KINDS}
    for copy in copies:
        limit = Limit(copy.since, "what was granted since the copy")
        due = Due.at(copy.kind, copy.moment)
        at = ("the server", "failover to a stale replica")
        alive, greedy = copy.on(replica.storage)
        cells[copy.kind].append(measured(copy.kind, at, copy.moment, alive, greedy, due, limit))
    return cells


# --- the server's clock

FAKETIME: Final = "libfaketime"
"""The package whose library stands between a server and its clock; it is preloaded, not imported."""


def faketime_library() -> Path:
    """Return the path of the library; an AssertionError says what to install."""
    spec = find_spec(FAKETIME)
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders for path in Path(folder).glob("vendor/libfaketime/src/libfaketime.so.1")]
    assert found, f"no library in the package {FAKETIME!r}: install the test group of pyproject.toml (make venv)"
    return found[0]


@dataclass(frozen=True)
class ServerClock:
    """The clock of a server, which stands still until it is moved."""

    file: Path

    def set(self, at: int) -> None:
        """Set it to an instant, microseconds since the epoch."""
        seconds, rest = divmod(at, MICROSECONDS)
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{rest:06}"
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)  # never half written

    @contextmanager
    def running(self, name: str) -> Iterator[Place]:
        """Run a server by this clock."""
        self.set(START)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LD_PRELOAD", str(faketime_library()))
            environment.setenv("FAKETIME_TIMESTAMP_FILE", str(self.file))
            environment.setenv("FAKETIME_NO_CACHE", "1")
            environment.setenv("TZ", "UTC")
            started = running(name)
            server = started.__enter__()
        try:
            yield place_of(server)
        finally:
            started.__exit__(None, None, None)


def clock_cells(kind: Kind, place: Place, clock: ServerClock, times: int) -> Iterator[Cell]:
    """Let the server's clock jump by an hour during a run by the server's own time."""

    def by_the_clock(shift: int) -> OnServer:
        def set_clock(at: int) -> None:
            clock.set(at + shift)
            expected_time = divmod(at + shift, MICROSECONDS)
            for _ in range(1000):
                if place.client.time() == expected_time:
                    return
            raise AssertionError(f"the server's time is {place.client.time()}, not {expected_time}")

        return OnServer(place.storage, "run", kind.quota, set_clock)

    def until_the_fault(number: int) -> Moment:
        clock.set(START)
        place.client.flushall()
        rng = random.Random(f"clock {number} of a {kind.name} bucket")
        run = Run(kind, by_the_clock(0), rng)
        for _ in range(SETTLED_STEPS + rng.randrange(STEPS)):
            run.step()
        return run.moment(fields_of(place.client, "run"))

    for fault, shift in {"an hour ahead": HOUR, "an hour back": -HOUR}.items():
        for number in range(times):
            moment = until_the_fault(number)
            due = Due.at(kind, moment)
            refill = -(-HOUR // kind.quota.period_us) * kind.quota.refill
            # By a clock that went back a call is remembered for longer: who settles it late is given back the rest.
            holds = BucketState.from_fields(moment.fields).holds
            late = sum(tokens - tokens // 2 for name, tokens in moment.calls if name in holds)
            limit = Limit(late, "what is settled late and was not forgotten yet")
            if shift > 0:
                most = max(0, min(refill, kind.quota.capacity - due.available))
                limit = Limit(most, "the refill of the step, up to the capacity")
            greedy = _Again(by_the_clock(shift), partial(until_the_fault, number))
            yield measured(kind, ("the server's clock", fault), moment, by_the_clock(shift), greedy, due, limit)


@dataclass
class _Again:
    """A bucket whose past is repeated before it is used: one clock can't run for two at once."""

    bucket: Bucket
    repeat: Callable[[], object]
    repeated: bool = False

    def apply(self, command: Command, at: int) -> Outcome:
        if not self.repeated:
            self.repeat()
            self.repeated = True
        return self.bucket.apply(command, at)


# --- the table


def place_of(server: Server) -> Place:
    """Return a server with a storage and a client."""
    return Place(server, RedisStorage.from_url(f"unix://{server.socket_path}"), server.client())


TIMES: Final = 2
"""At how many moments of a run each fault comes."""


def fault_table(name: str, folder: Path) -> str:
    """Measure every fault on a kind of server, and return the page."""
    clock = ServerClock(folder / "clock")
    with running(name) as first, running(name) as second, clock.running(name) as by_clock:
        place, replica = place_of(first), place_of(second)
        cells = {
            kind: [
                *field_cells(kind, place, TIMES),
                *retyped_cells(kind, place),
                *whole_cells(kind, place, TIMES),
                *clock_cells(kind, by_clock, clock, TIMES),
            ]
            for kind in KINDS
        }
        for kind, found in failover_cells(place, replica, TIMES).items():
            cells[kind] += found
        for at in (place, replica, by_clock):
            at.storage.close()
            at.client.close()
    return HEAD + "".join(_section(kind, found) for kind, found in cells.items())


HEAD: Final = """# Faults

Written by `make fault-table`: `tests/redis/test_fault_table.py` measures it on real servers and fails when what it
finds differs. Valkey and Redis come to the same.

During a random run of a bucket (takes, places ahead, calls held, settled, late and cancelled, refunds, readings), at
random moments, every field of its hash is damaged in every way, then the key, the server and its clock. Two things are
measured:

- **Liveness.** From the fault on, 5 tokens are asked for until they are granted or the caller is sent to the server
  with a probe. Shown is the longest wait, and the bound that `peek().bound` stated right after the fault.
- **Safety.** From the fault on, all that there is is taken, again and again. Shown is how much more that gave than the
  same bucket would have given had nothing happened; then how much more it may give, and what that is.

What is repaired is named in the outcome of the first command after the fault. Where a field was damaged and nothing is
repaired, its text is one that the field may have, and is believed; or the field isn't used by a bucket of this kind; or
it may rightly be missing.

- garbled: bytes that are no text. a list: `[1, 2]`. far past: `1`, a microsecond after 1970. far future: in 50 years.
- A failover is to a replica that had lost touch with its primary before the primary went away.
- The server's clock is stepped by libfaketime, and the bucket uses the server's time.
"""


def _section(kind: Kind, cells: Iterable[Cell]) -> str:
    lines = [
        f"\n## {kind.name.capitalize()}\n\n{kind.says[0].upper()}{kind.says[1:]}.\n",
        "| what | fault | repaired | next grant or probe, of its bound | granted beyond, of its bound |",
        "|---|---|---|---|---|",
        *(_row(group) for group in _groups(cells)),
    ]
    return "\n".join(lines) + "\n"


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Put the faults of a field together that come to the same."""
    by_fault: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_fault.setdefault((cell.field, cell.fault), []).append(cell)
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for (what, _), found in by_fault.items():
        alone = found[0].fault if what.startswith("the ") and found[0].life is not None else ""
        groups.setdefault((what, _repaired(found), found[0].limit.says, alone), []).extend(found)
    return list(groups.values())


def _repaired(cells: Iterable[Cell]) -> tuple[str, ...]:
    names = {name for cell in cells if cell.life for name in cell.life.repaired}
    return tuple(sorted({f"`{HOLD}…`" if name.startswith(HOLD) else f"`{name}`" for name in names}))


def _row(cells: list[Cell]) -> str:
    faults = ", ".join(dict.fromkeys(cell.fault for cell in cells))
    lives = [cell.life for cell in cells if cell.life]
    if not lives:
        return f"| {cells[0].field} | {faults} | `ConfigError`, left as it was | when it is gone | nothing |"
    slowest = max(lives, key=lambda found: (found.waited, found.bound))
    most = max(cells, key=lambda cell: (cell.beyond, cell.limit.tokens))
    beyond = f"{most.beyond:,} of {most.limit.tokens:,}: {most.limit.says}" if most.limit.tokens else "nothing"
    waited = f"{slowest.ends} after {slowest.waited / SECOND:g} s of {slowest.bound / SECOND:g} s"
    return f"| {cells[0].field} | {faults} | {', '.join(_repaired(cells)) or 'nothing'} | {waited} | {beyond} |"
