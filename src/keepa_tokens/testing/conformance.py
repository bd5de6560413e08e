"""The conformance kit: what any storage must do, as tests to inherit. docs/howto/storage.md shows how.

Each test works on keys of its own, so the storage need not be empty. Nothing is left to chance: every run is the same.
"""

from __future__ import annotations

import time
import unicodedata
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from inspect import isawaitable
from itertools import cycle, repeat
from typing import ClassVar, Final, TypeVar, cast

try:
    import pytest
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    raise ImportError("the conformance kit needs pytest: pip install 'keepa-tokens[testing]'") from missing

from ..errors import ConfigError
from ..quota import Quota
from ..rules.commands import Acquire, Cancel, ClaimProbe, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle
from ..rules.reading import Reading
from ..rules.state import BucketState
from ..storage.base import Storage
from ..units import LIMIT, TOLERANCE_US
from . import crews
from .histories import EPOCH, HOUR, SECOND, Act, Rules, histories, in_order, look

T = TypeVar("T")

HISTORIES: Final = 150
"""How many are tried at `effort` 1."""

WORKERS: Final = 4
EACH: Final = 120
"""Workers that take at the same time in one process, and how often each asks. A slow storage is asked less often."""

PROCESSES: Final = 2
EACH_PROCESS: Final = 400
"""The same for processes. They don't start at exactly the same moment, so each asks more often."""

PLAIN: Final = Quota(10, 1, 1.0)
LARGE: Final = Quota(10_000, 1, 60.0)
MANY: Final = 300

ODD_KEYS: Final = (
    *("k", "K", "kk", ":", "k:", "k*", "k?", "[k]", "{k}", "\\", "%", "%6b", "_", "k.", "../k", "/", "-k", "'", '"'),
    *("0", "00", "-1", "None", "null", "é", unicodedata.normalize("NFD", "é"), "É", "ß", "ss", "ключ", "🦉", "k" * 100),
)
"""What a key may be made of: any printable characters without spaces."""

ODD_IDS: Final = (
    *("", "a", "A", "a b", " a", "a ", "a:b", "hold:a", "a%41", "a*", "'", '"', "\\", "balance", "format", "0", "00"),
    *("é", unicodedata.normalize("NFD", "é"), "🦉", "a" * 200, "a" * 199),
)
"""What a hold may be called."""

COMMANDS: Final[tuple[Command, ...]] = (
    *(Acquire(1), Reserve("x", 1, SECOND), Settle("x"), Cancel("x"), Refund("r", 1, EPOCH)),
    *(Reconcile(Reading(1)), ClaimProbe(), Peek()),
)


class StorageUnderTest(ABC):
    """What a subclass defines for its storage, and how the kit compares the storage with the rules. Has no tests.

    Only `make_storage` must be defined. For a storage for coroutines these methods may be coroutines too.
    """

    effort: ClassVar[float] = 1.0
    """The share of the histories that is tried; less than 1 for a slow storage, more to look harder."""

    reads_all: ClassVar[bool] = True
    """Whether each command finds all damage; False if only a look does, as the storage has a fast path of its own."""

    @abstractmethod
    def make_storage(self) -> crews.Made:
        """Return a storage, blocking or for coroutines; it is closed at the end. Need not be empty."""

    def read_fields(self, key: str) -> Mapping[str, str] | Awaitable[Mapping[str, str]]:
        """Return the stored fields of a bucket, as the texts of `BucketState.to_fields`. Optional."""
        raise NotImplementedError

    def write_fields(self, key: str, fields: Mapping[str, str]) -> Awaitable[None] | None:
        """Replace the stored fields of a bucket by these, whatever they are. Optional."""
        raise NotImplementedError

    # --- for the tests

    def can(self, hook: str) -> bool:
        """Return whether the subclass defines an optional hook."""
        return getattr(type(self), hook) is not getattr(StorageUnderTest, hook)

    def opened(self) -> AbstractContextManager[Storage]:
        """Open a storage for a while; one for coroutines is driven by an event loop of its own."""
        return crews.opened(self.make_storage)

    def read(self, storage: Storage, key: str) -> dict[str, str]:
        """Return the stored fields of a bucket."""
        return dict(_value(storage, self.read_fields(key)))

    def write(self, storage: Storage, key: str, fields: Mapping[str, str]) -> None:
        """Store these fields."""
        _value(storage, self.write_fields(key, fields))

    def follow(self, acts: Sequence[Act], storages: Iterator[Storage]) -> None:
        """Run one history, each step on the next storage, and compare outcome, look and stored fields with the rules.

        A storage may forget a bucket when its lifetime is over (rule 9), or keep it: then either answer will do.
        """
        key, worlds = new_key(), [Rules()]
        for number, (act, storage) in enumerate(zip(acts, storages, strict=False)):
            if act.damage is not None:
                worlds = worlds[:1]
                if worlds[0].texts:
                    worlds[0].texts = act.damaged(worlds[0].texts)
                    self.write(storage, key, worlds[0].texts)
                    # A look shows the bucket as it would be mended, and mends nothing.
                    assert look(storage.inspect(key, now_us=act.now)) == worlds[0].inspect(act.now)
                if not self.reads_all:
                    act = replace(act, command=Peek())  # noqa: PLW2901 - a look has to mend it first
            worlds = with_the_forgotten(worlds, act.now)
            expected = [world.apply(act) for world in worlds]
            told = in_order(storage.apply(key, act.quota, act.command, now_us=act.now))
            assert told in expected, f"{act}, number {number} of this history, came to something else than by the rules"
            worlds = [world for world, outcome in zip(worlds, expected, strict=True) if outcome == told]
            worlds = with_the_forgotten(worlds, act.now)
            assert look(storage.inspect(key, now_us=act.now)) in [world.inspect(act.now) for world in worlds]
            if self.can("read_fields"):
                assert kept(self.read(storage, key)) in [kept(world.texts) for world in worlds]


def kept(texts: Mapping[str, str]) -> BucketState:
    """Return the state of stored fields, without differences that a storage may make.

    It may keep a 0 where the rules leave the field out. If its fast path served the bucket, it need not renew `fast`,
    the time up to which that path may go on.
    """
    zeros = {name for name in ("carry", "last_place", "firm_place", "largest_place") if texts.get(name) == "0"}
    return replace(BucketState.from_fields({name: texts[name] for name in texts.keys() - zeros}), fast=None)


class StorageConformance(StorageUnderTest):
    """The tests of a storage that lives in one process. Subclass it as `class TestMine(StorageConformance)`."""

    # --- each command comes to what the rules say

    def test_every_command_comes_to_what_the_rules_say(self) -> None:
        """Whatever is asked, at whatever time of the caller's, once or twice: all is as by the rules."""
        with self.opened() as storage:
            for acts in self._histories(damage=self.can("write_fields")):
                self.follow(acts, repeat(storage))

    # --- keys and holds

    def test_buckets_are_kept_apart_by_their_keys(self) -> None:
        """Keys that differ in anything, case, accents and signs included, are different buckets, each listed once.

        And each forgotten alone, by a storage that has `delete`.
        """
        stem = new_key()
        keys = [f"{odd}{stem}{odd}" for odd in ODD_KEYS]
        long = stem.ljust(255, "k")
        keys += [long, long + "k", long + "K"]
        with self.opened() as storage:
            assert all(storage.inspect(key, now_us=EPOCH) is None for key in keys)
            for number, key in enumerate(keys):
                storage.apply(key, LARGE, Acquire(number + 1), now_us=EPOCH)
            for number, key in enumerate(keys):
                shown = storage.inspect(key, now_us=EPOCH)
                assert shown is not None, f"the bucket {key!r} is not found"
                assert shown.balance == 10_000 - number - 1, f"the bucket {key!r} is not kept apart"
            assert sorted(filter(lambda key: stem in key, storage.keys())) == sorted(keys)
            delete = getattr(storage.storage if isinstance(storage, crews.Driven) else storage, "delete", None)
            if not callable(delete):
                return
            for key in keys[::2]:
                _value(storage, delete(key))
                assert storage.inspect(key, now_us=EPOCH) is None, f"the bucket {key!r} is there after delete"
            assert sorted(filter(lambda key: stem in key, storage.keys())) == sorted(keys[1::2])

    def test_holds_are_told_apart_by_their_ids(self) -> None:
        """Any text may be the id of a hold; hundreds are kept, each with its own cost, until they run out at once."""
        ids = [*ODD_IDS, *(f"h{number}" for number in range(MANY))]
        with self.opened() as storage:
            key = new_key()
            for number, hold_id in enumerate(ids):
                assert storage.apply(key, LARGE, Reserve(hold_id, number % 7, SECOND), now_us=EPOCH).granted
            shown = storage.inspect(key, now_us=EPOCH)
            assert shown is not None
            assert (shown.held, shown.holds) == (sum(number % 7 for number in range(len(ids))), len(ids))
            for number, hold_id in enumerate(ODD_IDS):
                assert storage.apply(key, LARGE, Settle(hold_id, number), now_us=EPOCH).found
            charged = sum(range(len(ODD_IDS))) + sum(number % 7 for number in range(len(ODD_IDS), len(ids)))
            left = storage.apply(key, LARGE, Acquire(0), now_us=EPOCH + SECOND)
            assert left.balance == LARGE.capacity - charged

    # --- time

    def test_without_a_clock_the_storages_own_time_rules(self) -> None:
        """Without a time the storage takes its own: it goes forward as real time does, and refills by it, exactly."""
        flood = Quota(LIMIT // 4, 1, 1e-6, initial=0)  # a token every microsecond
        with self.opened() as storage:
            key = new_key()
            began = time.monotonic_ns() // 1000
            first = storage.apply(key, flood, Acquire(0)).now_us
            storage.apply(new_key(), PLAIN, Acquire(1), now_us=first + HOUR)  # a caller's time is for its step alone
            now = inside = time.monotonic_ns() // 1000
            told, furthest = [first], first
            while now < inside + 20_000 or len(told) < 4:
                now = time.monotonic_ns() // 1000
                outcome = storage.apply(key, flood, Acquire(0))
                told.append(outcome.now_us)
                furthest = max(furthest, outcome.now_us)
                assert outcome.balance == furthest - first
            passed = time.monotonic_ns() // 1000 - began
            # A clock of whole seconds shows two at most, where the second changes.
            assert len(set(told)) > 2
            # Wall clocks are set now and then, by a little.
            assert 10_000 <= furthest - first <= 2 * passed + SECOND

    # --- at the same time

    def test_workers_at_the_same_time_never_get_one_token_twice(self) -> None:
        """Workers that take at once from one storage get each token once, and the balance goes down by one at each."""
        with self.opened() as storage:
            self._shared_out(storage, lambda works: crews.at_once(storage, works))

    def test_workers_at_the_same_time_lose_no_hold(self) -> None:
        """Workers that reserve, take and settle at once leave a bucket that knows of each step of each of them."""
        key, quota, rounds = new_key(), Quota(10_000, 0, 1.0), range(15)
        works: list[crews.Work] = []
        for worker in range(WORKERS):
            steps = [(Reserve(f"{worker}-{n}", 5, HOUR), Acquire(1), Settle(f"{worker}-{n}", 2)) for n in rounds]
            commands = [command for step in steps for command in step]
            works.append(crews.Work(key, quota, (*commands, Reserve(f"{worker}", 1, HOUR)), EPOCH))
        with self.opened() as storage:
            told = crews.at_once(storage, works)
            assert all(outcome.found for outcomes in told for outcome in outcomes)
            shown = storage.inspect(key, now_us=EPOCH)
            assert shown is not None
            assert (shown.available, shown.holds) == (10_000 - WORKERS * (3 * len(rounds) + 1), WORKERS)

    # --- damage

    def test_the_format_of_a_newer_release_is_refused_and_left_as_it_was(self) -> None:
        """The state of a newer release is refused by every command with ConfigError, and not touched."""
        if not self.can("write_fields"):
            pytest.skip("define write_fields to have this tested")
        rules = Rules()
        rules.apply(Act(EPOCH, PLAIN, Acquire(7)))
        newer = rules.texts | {"format": "2"}
        with self.opened() as storage:
            for command in COMMANDS:
                key = new_key()
                self.write(storage, key, newer)
                with pytest.raises(ConfigError, match="newer release"):
                    storage.apply(key, PLAIN, command, now_us=EPOCH)
                with pytest.raises(ConfigError, match="newer release"):
                    storage.inspect(key, now_us=EPOCH)
                assert not self.can("read_fields") or self.read(storage, key) == newer

    # --- helpers

    def _histories(self, *, damage: bool = False, share: float = 1.0) -> Iterator[list[Act]]:
        return histories(max(4, round(HISTORIES * self.effort * share)), damage=damage)

    def _shared_out(
        self,
        storage: Storage,
        crew: Callable[[Sequence[crews.Work]], list[list[Outcome]]],
        workers: int = WORKERS,
        each: int = EACH,
    ) -> None:
        """Let workers ask for twice as many tokens as there are, and see that each token went out once."""
        each = max(20, round(each * min(1.0, self.effort)))
        there = workers * each // 2
        key, quota = new_key(), Quota(there, 0, 1.0)
        told = crew([crews.Work(key, quota, (Acquire(1),) * each, EPOCH)] * workers)
        left = sorted(outcome.balance or 0 for outcomes in told for outcome in outcomes if outcome.granted)
        assert left == list(range(there)), "the balance must go down by one at each grant"
        assert storage.apply(key, quota, Peek(), now_us=EPOCH).balance == 0


class SharedStorageConformance(StorageConformance):
    """The tests of a storage that outlives its process or that several processes share: all those above, and more.

    Every `make_storage` of one test must open the same place.
    """

    def elsewhere(self) -> crews.Opener | None:
        """Return a function that opens the place in another process. It is pickled: a class, or a partial of one."""
        return None

    def test_what_was_written_is_there_after_a_restart(self) -> None:
        """Closed and opened again between any two commands, the storage goes on as the rules say."""

        def each_anew() -> Iterator[Storage]:
            while True:
                with self.opened() as storage:
                    yield storage

        for acts in self._histories(share=0.1):
            self.follow(acts, each_anew())

    def test_two_storages_on_one_place_are_one(self) -> None:
        """Two storages that are used in turns see each other's steps at once: neither keeps a copy."""
        with self.opened() as one, self.opened() as other:
            for acts in self._histories(share=0.2):
                self.follow(acts, cycle((one, other)))

    def test_storages_at_the_same_time_never_get_one_token_twice(self) -> None:
        """Threads that each have a storage of their own on one place get each token once."""
        with ExitStack() as stack:
            storages = [stack.enter_context(self.opened()) for _ in range(WORKERS)]
            self._shared_out(storages[0], lambda works: crews.threads(storages, works))

    def test_processes_at_the_same_time_never_get_one_token_twice(self) -> None:
        """Processes that take at once get each token once."""
        opener = self._elsewhere()
        with self.opened() as storage:
            self._shared_out(storage, lambda works: crews.processes(opener, works), PROCESSES, EACH_PROCESS)

    def test_the_own_time_is_one_for_all(self) -> None:
        """Without a caller's clock, storages in this process and in others go by one time, within the tolerance."""
        opener = self._elsewhere()
        key = new_key()
        with self.opened() as one, self.opened() as other:
            first = one.apply(key, PLAIN, Acquire(0)).now_us
            ((there,),) = crews.processes(opener, [crews.Work(key, PLAIN, (Acquire(0),))])
            last = other.apply(key, PLAIN, Acquire(0)).now_us
        assert first - TOLERANCE_US <= there.now_us <= last + TOLERANCE_US
        assert first - TOLERANCE_US <= last

    def test_a_process_killed_in_the_middle_leaves_whole_steps_and_no_lock(self) -> None:
        """After a process was killed in the middle of its steps each step counts or doesn't, and others go on."""
        opener = self._elsewhere()
        key, quota = new_key(), Quota(LIMIT // 4, 0, 1.0)
        steps = crews.killed(opener, crews.Work(key, quota, (Acquire(1),), EPOCH))
        with self.opened() as storage:
            left = storage.apply(key, quota, Acquire(0), now_us=EPOCH)
            assert left.repaired == ()
            assert quota.capacity - (left.balance or 0) in {steps, steps + 1}

    def _elsewhere(self) -> crews.Opener:
        opener = self.elsewhere()
        if opener is None:
            pytest.skip("define elsewhere to have this tested")
        return opener


def new_key() -> str:
    """Return a key that nobody has used."""
    return f"kit-{uuid.uuid4().hex}"


def with_the_forgotten(worlds: list[Rules], now: int) -> list[Rules]:
    """Return the worlds, and one without the bucket if the storage may have forgotten it in any of them."""
    forgotten = any(world.due is not None and world.due <= now for world in worlds)
    return [*worlds, Rules()] if forgotten and all(world.texts for world in worlds) else worlds


def _value(storage: Storage, given: T | Awaitable[T]) -> T:
    if not isawaitable(given):
        return given
    assert isinstance(storage, crews.Driven), "what is a coroutine belongs to a storage for coroutines"
    return storage.run(cast("Awaitable[T]", given))
