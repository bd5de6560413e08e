"""The conformance kit is no blind one: storages that are broken in likely ways, and the test that finds each out."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unicodedata import normalize

import pytest
from hypothesis import Phase, settings

from checks.models.broken import Fault, Kit, KitWithFields, Make, Place, Simple
from checks.models.strategies import EPOCH, HOUR, SECOND
from keepa_tokens import BucketState, Hold, Quota, Snapshot, StorageUnavailable
from keepa_tokens.rules.commands import Cancel, Command, Outcome, Peek, Reserve, Settle
from keepa_tokens.rules.state import NUMBERS, QUOTA
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage.sqlite import SQLiteStorage, _read
from keepa_tokens.testing.conformance import SharedStorageConformance, StorageConformance, StorageUnderTest

# Where a fault is found the first time will do; the same programs in every run.
settings.register_profile(
    "hunt",
    deadline=None,
    max_examples=150,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)


@pytest.fixture(autouse=True)
def hunt() -> Iterator[None]:
    """Look hard, as the profile above says, whatever the run's own profile is."""
    before = settings.get_current_profile_name()
    settings.load_profile("hunt")
    yield
    settings.load_profile(before)


def run(kit: StorageUnderTest, test: str) -> None:
    getattr(kit, test)()


def finds(kit: StorageUnderTest, test: str) -> bool:
    try:
        run(kit, test)
    except (AssertionError, BaseExceptionGroup, pytest.fail.Exception, StorageUnavailable):
        return True
    return False


EVERY_COMMAND = "test_every_command_comes_to_what_the_rules_say"
HISTORY = "test_any_history_is_as_the_reference_has_it"
AT_ONCE = "test_workers_at_the_same_time_never_get_one_token_twice"
AT_ONCE_ON_SEVERAL = "test_storages_at_the_same_time_never_get_one_token_twice"
KEYS = "test_buckets_are_kept_apart_by_their_keys"
IDS = "test_holds_are_told_apart_by_their_ids"
OWN_TIME = "test_without_a_clock_the_storages_own_time_rules"
RESTART = "test_what_was_written_is_there_after_a_restart"
NEWER = "test_the_format_of_a_newer_release_is_refused_and_left_as_it_was"


def in_between() -> None:
    """Take the time that reading and writing take: others may come in between."""
    threading.Event().wait(0.0005)


# --- broken ones


def but(**methods: Callable[..., object]) -> Make:
    """Return what makes a storage that is sound but for these methods."""
    return cast("Make", type("Broken", (Simple,), methods))


def sending(sent: Callable[[Any], Command]) -> Make:
    """Return what makes a storage that sends something else than what was asked of a hold."""
    holds = Reserve | Settle | Cancel
    return partial(Simple, fault=Fault(sent=lambda command: sent(command) if isinstance(command, holds) else command))


def keeping(kept: Callable[[BucketState], BucketState]) -> Make:
    """Return what makes a storage that keeps something else than what is to be stored."""
    return partial(Simple, fault=Fault(kept=lambda step: kept(step.after)))


class NotAtomic(Simple):
    """Reads and writes without a lock."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        return self.step(key, quota, command, self.now(now_us))

    def save(self, key: str, state: BucketState, outcome: Outcome) -> None:
        in_between()
        super().save(key, state, outcome)


class LosesHoldsAtOnce(NotAtomic):
    """Locks, but not for holds."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        locked = nullcontext() if isinstance(command, Reserve | Settle | Cancel) else self.place.lock
        with locked:
            return super().apply(key, quota, command, now_us=now_us)


class NewIdEachTime(Simple):
    """Makes up an id for each reserve, so that a repeated one is a second one."""

    def step(self, key: str, quota: Quota, command: Command, now: int) -> Outcome:
        stored = self.load(key)
        if isinstance(command, Reserve) and stored is not None and command.id in stored.holds:
            command = replace(command, id=command.id + "'")
        return super().step(key, quota, command, now)


class LatestOfAll(Simple):
    """Takes for its own time the latest that anybody brought."""

    latest = 0

    def now(self, now_us: int | None) -> int:
        self.latest = max(self.latest, super().now(now_us))
        return self.latest if now_us is None else now_us


class PeekWrites(Simple):
    """Stores what it looked at."""

    def step(self, key: str, quota: Quota, command: Command, now: int) -> Outcome:
        outcome = super().step(key, quota, command, now)
        if isinstance(command, Peek):
            seen = self.load(key) or BucketState(quota=quota)
            self.save(key, replace(seen, balance=outcome.balance, refilled_at=now), outcome)
        return outcome


class StepsOnSight(Simple):
    """Looks like whoever stores what it saw, and mends it."""

    kind: Make

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        shown = super().inspect(key, now_us=now_us)
        if shown is not None:
            self.kind(self.place).step(key, shown.quota, Peek(), self.now(now_us))
        return shown


class ForgetsEarly(Simple):
    """Drops what wasn't used for half a minute."""

    def load(self, key: str) -> BucketState | None:
        state = super().load(key)
        idle = state is not None and state.refilled_at is not None and self.at > state.refilled_at + 30 * SECOND
        return None if idle else state

    def now(self, now_us: int | None) -> int:
        self.at = super().now(now_us)
        return self.at

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        return super().inspect(key, now_us=self.now(now_us))


class Caches(Simple):
    """Reads each bucket once."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.read: dict[str, BucketState | None] = {}

    def load(self, key: str) -> BucketState | None:
        if self.read.get(key) is None:
            self.read[key] = super().load(key)
        return self.read[key]

    def save(self, key: str, state: BucketState, outcome: Outcome) -> None:
        self.read[key] = state
        super().save(key, state, outcome)


def writing(written: Callable[[str, str], str | None]) -> Make:
    """Return what makes a storage that writes some fields otherwise, or not at all."""

    def save(self: Simple, key: str, state: BucketState, _: Outcome) -> None:
        fields = ((name, written(name, text)) for name, text in state.to_fields().items())
        self.place.rows[key] = {name: text for name, text in fields if text is not None}

    return but(save=save)


def drop(storage: Simple, prefix: str) -> None:
    for key in [each for each in storage.place.rows if each.startswith(prefix)]:
        del storage.place.rows[key]


WRITES_GRANTS_ONLY = but(save=lambda self, *what: Simple.save(self, *what) if what[2].reason == "GRANTED" else None)
WHOLE_SECONDS = but(now=lambda self, now_us: Simple.now(self, now_us) // SECOND * SECOND)
ONE_HOLD = sending(lambda command: replace(command, id="hold"))
CLOSE_CLEARS = but(close=lambda self: self.place.rows.clear())
TWICE_EACH = but(step=lambda *asked: (Simple.step(*asked), Simple.step(*asked))[1])
FLOATS = writing(lambda name, text: str(float(text)) if name in NUMBERS else text)
FIRST_QUOTA = but(
    step=lambda self, key, quota, *asked: Simple.step(
        self, key, getattr(self.load(key), "quota", None) or quota, *asked
    )
)
MILLISECONDS = but(now=lambda _, now_us: time.time_ns() // 1_000_000 if now_us is None else now_us)
NEVER_WRITES = cast("Make", type("NeverWrites", (Caches,), {"save": lambda self, *what: self.read.update([what[:2]])}))
INSPECT_WRITES = cast("Make", type("InspectWrites", (StepsOnSight,), {"kind": PeekWrites}))

BROKEN: dict[str, tuple[Make, list[str]]] = {
    "reads and writes without a lock": (NotAtomic, [AT_ONCE, AT_ONCE_ON_SEVERAL]),
    "locks, but not for holds": (LosesHoldsAtOnce, ["test_workers_at_the_same_time_lose_no_hold"]),
    "writes grants only": (WRITES_GRANTS_ONLY, [EVERY_COMMAND, HISTORY]),
    "compares keys without case, as some databases do": (but(named=lambda _, key: key.casefold()), [KEYS]),
    "composes accents in keys, as some file systems do": (but(named=lambda _, key: normalize("NFC", key)), [KEYS]),
    "keeps 255 letters of a key": (but(named=lambda _, key: key[:255]), [KEYS]),
    "lists keys more than once, as SCAN does": (but(keys=lambda self: iter(list(self.place.rows) * 2)), [KEYS]),
    "deletes nothing": (but(delete=lambda _, key: None), [KEYS]),
    "deletes whatever begins so": (but(delete=lambda self, key: drop(self, key[:20])), [KEYS]),
    "takes all holds for one": (ONE_HOLD, [IDS, EVERY_COMMAND, HISTORY]),
    "takes blanks off ids": (sending(lambda command: replace(command, id=command.id.strip())), [IDS]),
    "makes up an id for each reserve": (NewIdEachTime, [EVERY_COMMAND, HISTORY]),
    "has room for 64 holds": (keeping(lambda state: replace(state, holds=dict([*state.holds.items()][:64]))), [IDS]),
    "doesn't listen to the caller's clock": (but(now=lambda *_: time.time_ns() // 1000), [EVERY_COMMAND]),
    "keeps times in seconds": (WHOLE_SECONDS, [EVERY_COMMAND, OWN_TIME]),
    "takes milliseconds for microseconds in its own time": (MILLISECONDS, [OWN_TIME]),
    "takes for its own time the latest that anybody brought": (LatestOfAll, [OWN_TIME]),
    "stores what it looked at": (PeekWrites, [EVERY_COMMAND]),
    "stores what it was shown": (INSPECT_WRITES, [EVERY_COMMAND]),
    "sends each command again": (TWICE_EACH, [EVERY_COMMAND, HISTORY]),
    "keeps numbers as floats": (FLOATS, [EVERY_COMMAND, HISTORY]),
    "goes by the quota that it saw first": (FIRST_QUOTA, [EVERY_COMMAND]),
    "drops what wasn't used for half a minute": (ForgetsEarly, [EVERY_COMMAND]),
    "reads each bucket once": (Caches, ["test_two_storages_on_one_place_are_one"]),
    "writes nothing": (NEVER_WRITES, [RESTART, HISTORY]),
    "tidies up when it is closed": (CLOSE_CLEARS, [RESTART, HISTORY]),
}


class Thorough(Kit):
    """What Hypothesis draws depends on the modules that are loaded, and three histories may miss a fault."""

    effort = 10.0


@pytest.mark.parametrize("broken, test", [(name, test) for name, (_, tests) in BROKEN.items() for test in tests])
def test_a_broken_storage_is_found_out(broken: str, test: str) -> None:
    """Each way to be broken makes each test fail that is named beside it."""
    assert finds(Thorough(BROKEN[broken][0]), test)


@pytest.mark.parametrize("test", sorted({test for _, tests in BROKEN.values() for test in tests}))
def test_a_sound_storage_is_not(test: str) -> None:
    """The same tests pass on the storage as it was before it was broken."""
    run(Kit(), test)


SHOWS_ONLY_IN_FIELDS = (
    *("version", "due_at", "last_place", "firm_place", "largest_place", "probe_returned", "stretched_us"),
)
"""No outcome of the kit's histories tells of these; whoever lets the kit read the fields is told."""


@pytest.mark.parametrize("name", sorted({*NUMBERS, QUOTA} - {"format"}))
def test_a_storage_that_forgets_any_one_field_is_found_out(name: str) -> None:
    """Whichever field isn't stored, but a format and the one that says what a fast path may do, the kit tells."""
    forgets = writing(lambda field, text: None if field == name else text)
    kit = KitWithFields if name in SHOWS_ONLY_IN_FIELDS else Kit
    assert finds(kit(forgets), EVERY_COMMAND)


HOLD_PARTS: list[Callable[[Hold], Hold]] = [
    lambda hold: replace(hold, tokens=hold.tokens // 2),
    lambda hold: replace(hold, opened=0),
    lambda hold: replace(hold, expires_at=hold.expires_at + 1),
    lambda hold: replace(hold, hold_for=HOUR),
    lambda hold: replace(hold, charged=min(1, hold.charged)),
]


@pytest.mark.parametrize("spoil", HOLD_PARTS, ids=["tokens", "opened", "expires_at", "hold_for", "charged"])
def test_a_storage_that_spoils_any_part_of_a_hold_is_found_out(spoil: Callable[[Hold], Hold]) -> None:
    """Whichever number of a hold isn't stored as it was, some command's outcome tells."""
    spoils = keeping(lambda state: replace(state, holds={name: spoil(hold) for name, hold in state.holds.items()}))
    assert finds(Kit(spoils), EVERY_COMMAND)


# --- what the kit can see where it may damage fields


class SpoilsNewer(Simple):
    """Refuses what it can't read, but notes that it was there."""

    def step(self, key: str, quota: Quota, command: Command, now: int) -> Outcome:
        self.place.rows.get(key, {})["drift"] = "7"
        return super().step(key, quota, command, now)


def reading(
    read: Callable[[BucketState], BucketState | None], texts: Callable[[str, str], str] = lambda _, text: text
) -> Make:
    """Return what makes a storage that reads something else than what is there."""

    def load(self: Simple, key: str) -> BucketState | None:
        row = self.place.rows.get(key)
        return None if row is None else read(BucketState.from_fields({n: texts(n, t) for n, t in row.items()}))

    return but(load=load)


# Takes what it can't read for nothing.
OVERWRITES_NEWER = reading(lambda state: state if state.format == 1 else None)
# Reads numbers as Python does, and what is none as 0.
TRUSTS_TEXTS = reading(lambda state: state, lambda name, text: text if ":" in name or text.isdigit() else "0")
# Reads 200 holds, of those that it wrote.
READS_FEW_HOLDS = reading(lambda state: replace(state, holds=dict(list(state.holds.items())[:200])))

DAMAGED: list[tuple[Make, str]] = [
    (OVERWRITES_NEWER, NEWER),
    (SpoilsNewer, NEWER),
    (cast("Make", type("MendsOnSight", (StepsOnSight,), {"kind": Simple})), EVERY_COMMAND),
    (TRUSTS_TEXTS, EVERY_COMMAND),
    (READS_FEW_HOLDS, IDS),
    # A difference that no outcome tells yet.
    (keeping(lambda state: replace(state, reading_sequence=0)), EVERY_COMMAND),
]


@pytest.mark.parametrize("broken, test", DAMAGED)
def test_a_storage_that_is_bad_at_damage_is_found_out(broken: Make, test: str) -> None:
    """Each way to be broken makes the test fail that is named beside it."""
    assert finds(KitWithFields(broken), test)


@pytest.mark.parametrize("test", sorted({test for _, test in DAMAGED}))
def test_a_storage_that_is_sound_at_damage_is_not(test: str) -> None:
    """The same tests pass on the storage as it was before it was broken."""
    run(KitWithFields(), test)


# --- between processes


def store(db: sqlite3.Connection, key: str, state: BucketState) -> None:
    db.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, NULL)", (key, json.dumps(state.to_fields())))


class ReadsBeforeItLocks(SQLiteStorage):
    """Reads, and locks the file only to write. Threads of one process are kept apart."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        with self._lock:
            now = EPOCH if now_us is None else now_us
            state, outcome = transition(quota, _read(self._db, key), now, command)
            in_between()
            with self._step() as db:
                if state is not None:
                    store(db, key, state)
            return outcome


class CountsFromItsStart(SQLiteStorage):
    """Its own time is of each process."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        own = time.monotonic_ns() // 1000 + os.getpid() * 10 * SECOND
        return super().apply(key, quota, command, now_us=own if now_us is None else now_us)


class KeepsAFileAsALock(SQLiteStorage):
    """Locks by a file that it takes away again when it is closed."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        lock = Path(f"{self._path}.lock")
        if not hasattr(self, "_owned"):
            if lock.exists():
                raise StorageUnavailable("locked")
            lock.touch()
            self._owned = True
        return super().apply(key, quota, command, now_us=now_us)

    def close(self) -> None:
        Path(f"{self._path}.lock").unlink(missing_ok=True)
        super().close()


class WritesWhenItIsClosed(SQLiteStorage):
    """Leaves its transaction open until the end."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if not self._db.in_transaction:
            self._execute_in_turn("BEGIN IMMEDIATE", time.monotonic_ns() // 1000)
        now = EPOCH if now_us is None else now_us
        state, outcome = transition(quota, _read(self._db, key), now, command)
        if state is not None:
            store(self._db, key, state)
        return outcome

    def close(self) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        super().close()


class SqliteKit(SharedStorageConformance):
    def __init__(self, kind: Callable[[Path], SQLiteStorage], path: Path) -> None:
        self.kind = kind
        self.path = path

    def make_storage(self) -> SQLiteStorage:
        return self.kind(self.path)

    def elsewhere(self) -> Callable[[], SQLiteStorage]:
        return partial(self.kind, self.path)


@pytest.mark.parametrize(
    "broken, test",
    [
        (ReadsBeforeItLocks, "test_processes_at_the_same_time_never_get_one_token_twice"),
        (CountsFromItsStart, "test_the_own_time_is_one_for_all"),
        (KeepsAFileAsALock, "test_a_process_killed_in_the_middle_leaves_whole_steps_and_no_lock"),
        (WritesWhenItIsClosed, "test_a_process_killed_in_the_middle_leaves_whole_steps_and_no_lock"),
    ],
)
def test_what_goes_wrong_between_processes_is_found_out(broken: type[SQLiteStorage], test: str, tmp_path: Path) -> None:
    """A storage that is sound in one process, and not among several, makes the test fail that is named beside it."""
    assert finds(SqliteKit(broken, tmp_path / "buckets.sqlite"), test)


# --- coroutines


class AwaitsInTheMiddle:
    """Lets other coroutines go on between what it reads and what it writes."""

    def __init__(self, place: Place) -> None:
        self.sound = Simple(place)

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        stored = self.sound.load(key)
        await asyncio.sleep(0)
        state, outcome = transition(quota, stored, self.sound.now(now_us), command)
        if state is not None:
            self.sound.save(key, state, outcome)
        return outcome

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        return self.sound.inspect(key, now_us=now_us)

    async def keys(self) -> AsyncIterator[str]:
        for key in self.sound.keys():  # noqa: SIM118 - a storage is no dict
            yield key

    async def aclose(self) -> None:
        self.sound.close()


class AsyncKit(StorageConformance):
    async def make_storage(self) -> AwaitsInTheMiddle:
        return AwaitsInTheMiddle(Place())


def test_coroutines_that_get_in_each_others_way_are_found_out() -> None:
    """An async storage that awaits between reading and writing gives tokens twice; one after the other all is well."""
    assert finds(AsyncKit(), AT_ONCE)
    run(AsyncKit(), IDS)
