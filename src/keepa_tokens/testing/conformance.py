"""The conformance kit: what any storage must hold, as tests to inherit. docs/storages.md shows how.

Each test works on keys of its own, so the storage need not be empty. How hard the property tests look is Hypothesis's
to say, by its profiles; `effort` turns that up or down for one storage.
"""

from __future__ import annotations

import time
import unicodedata
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle, repeat
from typing import ClassVar, Final, Generic, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..bucket import TokenBucket
from ..errors import ConfigError
from ..quota import Quota
from ..rules.commands import Acquire, Cancel, ClaimProbe, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle
from ..rules.decision import Reason, Snapshot
from ..rules.reading import Reading
from ..rules.state import BucketState, Hold
from ..storage.base import AsyncStorage, Storage
from ..units import LIMIT, TOLERANCE_US
from . import crews
from .clock import ManualClock
from .driven import Driven, driven
from .programs import STORIES, Act, Program, Rules, is_ours, programs
from .strategies import EPOCH, HOUR, SECOND

S = TypeVar("S", bound=Storage)
T = TypeVar("T")

WORKERS: Final = 4
EACH: Final = 120
"""Workers that take at the same time in one process, and how often each asks. A slow storage is asked less often."""

HELD_BY_EACH: Final = 15

PROCESSES: Final = 2
EACH_PROCESS: Final = 400
"""Processes begin less exactly together: they must go on for longer to meet."""

PLAIN: Final = Quota(10, 1, 1.0)
MANY: Final = 100

NEWER: Final = "newer release"
"""What the refusal of a newer release's state says."""

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


class _Conformance(ABC, Generic[S]):
    """What is asked of every storage. The storage is opened by `_opened`, its fields by `_read` and `_write`."""

    effort: ClassVar[float] = 1.0
    """How many of the examples that Hypothesis's profile asks for are tried; less than 1 for a slow storage."""

    # --- what the subclasses bring

    @abstractmethod
    def _opened(self) -> AbstractContextManager[S]: ...

    @abstractmethod
    def _read(self, storage: S, key: str, /) -> Mapping[str, str]: ...

    @abstractmethod
    def _write(self, storage: S, key: str, fields: Mapping[str, str], /) -> None: ...

    @abstractmethod
    def _forget(self, storage: S, key: str, /) -> None: ...

    @abstractmethod
    def _at_once(self, storage: S, works: Sequence[crews.Work]) -> list[list[Outcome]]: ...

    def _can(self, hook: str) -> bool:
        """Whether the subclass brought an optional hook."""
        return bool(getattr(type(self), hook).__module__ != __name__)

    # --- each command comes to what the rules say

    def test_every_command_comes_to_what_the_rules_say(self) -> None:
        """Whatever is asked, whenever and after whatever: outcome, look and stored fields are those of the rules."""
        strategy = programs() if self._can("write_fields") else programs(None)
        with self._opened() as storage:
            self._for_each(strategy, lambda program: self._follow(program, repeat(storage)))

    @pytest.mark.parametrize("story", STORIES)
    def test_each_field_tells(self, story: str) -> None:
        """In stories in which each stored field matters at some point, the storage answers as the rules do."""
        with self._opened() as storage:
            self._follow(STORIES[story], repeat(storage))

    def test_a_refusal_is_written(self) -> None:
        """A refusal that begins a recharge closes the bucket for whoever asks next."""
        quota = Quota(10, 1, 1.0, recharge_to=8)
        with self._opened() as storage:
            key = new_key()
            assert storage.apply(key, quota, Acquire(10), now_us=EPOCH).granted
            assert storage.apply(key, quota, Acquire(1), now_us=EPOCH).reason is Reason.RECHARGING
            assert storage.apply(key, quota, Acquire(1), now_us=EPOCH + 8 * SECOND - 1).reason is Reason.RECHARGING
            assert storage.apply(key, quota, Acquire(1), now_us=EPOCH + 8 * SECOND).granted

    def test_a_command_sent_again_counts_once(self) -> None:
        """A reserve, settle, cancel or refund that arrives twice, as after a lost answer, counts once."""
        with self._opened() as storage:
            key = new_key()

            def twice(command: Command) -> int | None:
                first = storage.apply(key, PLAIN, command, now_us=EPOCH)
                again = storage.apply(key, PLAIN, command, now_us=EPOCH)
                assert (first.granted, first.balance) == (again.granted, again.balance)
                return again.balance

            assert twice(Reserve("x", 6, HOUR)) == 10
            assert not storage.apply(key, PLAIN, Acquire(5), now_us=EPOCH).granted
            assert twice(Settle("x", 4)) == 6
            assert twice(Refund("r", 1, EPOCH)) == 7
            assert twice(Reserve("y", 7, HOUR)) == 7
            assert twice(Cancel("y")) == 7

    # --- keys and holds

    def test_buckets_are_kept_apart_by_their_keys(self) -> None:
        """Keys that differ in anything, case, accents and signs included, are different buckets, each listed once."""
        stem = new_key()
        keys = [f"{odd}{stem}{odd}" for odd in ODD_KEYS]
        long = stem.ljust(255, "k")
        keys += [long, long + "k", long + "K"]
        quota = Quota(1000, 1, 1.0)
        with self._opened() as storage:
            assert all(storage.inspect(key, now_us=EPOCH) is None for key in keys)
            for number, key in enumerate(keys):
                storage.apply(key, quota, Acquire(number + 1), now_us=EPOCH)
            for number, key in enumerate(keys):
                shown = storage.inspect(key, now_us=EPOCH)
                assert shown is not None, f"the bucket {key!r} is not found"
                assert shown.balance == 1000 - number - 1, f"the bucket {key!r} is not kept apart"
            assert sorted(filter(lambda key: stem in key, storage.keys())) == sorted(keys)

    def test_holds_are_told_apart_by_their_ids(self) -> None:
        """Any text may be the id of a hold, and each hold has its own tokens."""
        quota = Quota(10_000, 1, 1.0)
        with self._opened() as storage:
            key = new_key()
            for number, hold_id in enumerate(ODD_IDS):
                storage.apply(key, quota, Reserve(hold_id, number + 1, HOUR), now_us=EPOCH)
            held = sum(range(1, len(ODD_IDS) + 1))
            for number, hold_id in enumerate(ODD_IDS):
                shown = storage.inspect(key, now_us=EPOCH)
                assert shown is not None
                assert shown.held == held, f"before {hold_id!r} is cancelled"
                assert storage.apply(key, quota, Cancel(hold_id), now_us=EPOCH).found
                held -= number + 1

    def test_many_holds_are_kept(self) -> None:
        """A hundred calls in flight at once are all remembered, and each is settled at its own cost."""
        quota = Quota(10_000, 1, 60.0)
        with self._opened() as storage:
            key = new_key()
            for number in range(MANY):
                assert storage.apply(key, quota, Reserve(f"h{number}", 2, HOUR), now_us=EPOCH).granted
            shown = storage.inspect(key, now_us=EPOCH)
            assert shown is not None
            assert (shown.balance, shown.held, shown.holds) == (10_000, 2 * MANY, MANY)
            for number in range(MANY):
                assert storage.apply(key, quota, Settle(f"h{number}", 1), now_us=EPOCH).found
            shown = storage.inspect(key, now_us=EPOCH)
            assert shown is not None
            assert (shown.balance, shown.held, shown.holds) == (10_000 - MANY, 0, 0)

    # --- looks

    def test_a_look_writes_nothing(self) -> None:
        """Peek and inspect make no bucket where there is none, and leave one that there is as it was."""
        with self._opened() as storage:
            key = new_key()
            storage.apply(key, PLAIN, Peek(), now_us=EPOCH)
            assert storage.inspect(key, now_us=EPOCH) is None
            assert key not in set(storage.keys())

            storage.apply(key, PLAIN, Acquire(10), now_us=EPOCH)
            before = self._fields(storage, key)
            for now in (EPOCH + 3 * SECOND, EPOCH + SECOND):
                peeked = storage.apply(key, PLAIN, Peek(), now_us=now).snapshot
                assert peeked == storage.inspect(key, now_us=now)
                assert peeked is not None
                # A look that had written would stand still at the later time.
                assert peeked.balance == (now - EPOCH) // SECOND
            assert self._fields(storage, key) == before

    # --- time

    def test_a_callers_clock_rules_its_own_step(self) -> None:
        """The time that comes with a command is the time of its step, to the microsecond, whatever it was before."""
        with self._opened() as storage:
            for start in (0, 1, 999, EPOCH + 1, LIMIT // 2 + 1):
                key = new_key()
                storage.apply(key, PLAIN, Acquire(10), now_us=start)
                refused = storage.apply(key, PLAIN, Acquire(1), now_us=start)
                assert (refused.now_us, refused.retry_after_us) == (start, SECOND)
                assert not storage.apply(key, PLAIN, Acquire(1), now_us=start + SECOND - 1).granted
                granted = storage.apply(key, PLAIN, Acquire(1), now_us=start + SECOND)
                assert (granted.granted, granted.now_us) == (True, start + SECOND)
                back = storage.apply(key, PLAIN, Peek(), now_us=start)
                assert (back.now_us, back.balance) == (start, 0)

    def test_without_a_clock_the_storages_own_time_rules(self) -> None:
        """Without a time the storage takes its own: it goes forward as real time does, and refills by it, exactly."""
        flood = Quota(LIMIT // 4, 1, 1e-6, initial=0)  # a token every microsecond
        with self._opened() as storage:
            key = new_key()
            began = time.monotonic_ns() // 1000
            first = storage.apply(key, flood, Acquire(0)).now_us
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

    def test_the_storages_own_time_and_a_callers_are_not_mixed(self) -> None:
        """A step with a caller's time in between leaves the storage's own time as it is for other buckets."""
        with self._opened() as storage:
            before = storage.apply(new_key(), PLAIN, Acquire(1)).now_us
            storage.apply(new_key(), PLAIN, Acquire(1), now_us=before + HOUR)
            after = storage.apply(new_key(), PLAIN, Acquire(1)).now_us
            assert before - TOLERANCE_US <= after < before + HOUR // 2

    # --- at the same time

    def test_workers_at_the_same_time_never_get_one_token_twice(self) -> None:
        """Workers that take at once from one storage get each token once, and the balance goes down by one at each."""
        with self._opened() as storage:
            self._shared_out(storage, lambda works: self._at_once(storage, works))

    def test_workers_at_the_same_time_lose_no_hold(self) -> None:
        """Workers that reserve, take and settle at once leave a bucket that knows of each step of each of them."""
        key, quota = new_key(), Quota(10_000, 0, 1.0)
        works: list[crews.Work] = []
        for worker in range(WORKERS):
            commands: list[Command] = []
            for number in range(HELD_BY_EACH):
                hold_id = f"{worker}-{number}"
                commands += [Reserve(hold_id, 5, HOUR), Acquire(1), Settle(hold_id, 2)]
            works.append(crews.Work(key, quota, (*commands, Reserve(f"{worker}", 1, HOUR)), EPOCH))
        with self._opened() as storage:
            told = self._at_once(storage, works)
            assert all(outcome.found for outcomes in told for outcome in outcomes)
            shown = storage.inspect(key, now_us=EPOCH)
            assert shown is not None
            assert (shown.balance, shown.holds) == (10_000 - 3 * WORKERS * HELD_BY_EACH, WORKERS)

    # --- damage

    def test_each_lost_field_is_mended_once(self) -> None:
        """Each field in turn is missing, then nonsense: the next step, though a refusal, mends and names it, once."""
        self._needs("write_fields")
        quota = Quota(10, 1, 1.0, recharge_to=8)
        fields = BucketState(-5, EPOCH, quota=quota, carry_refill=1, carry_period_us=SECOND).to_fields()
        with self._opened() as storage:
            for name in fields:
                for text in (None, "NaN"):
                    key = new_key()
                    rules = Rules()
                    rules.texts = dict(fields)
                    rules.damage(name, text)
                    self._write(storage, key, rules.texts)
                    follow = (Acquire(1), Acquire(1), Peek())
                    for command in follow:
                        expected = rules.apply(Act(EPOCH + 1, quota, (), command))
                        assert storage.apply(key, quota, command, now_us=EPOCH + 1) == expected, f"{name}={text!r}"

    def test_a_look_mends_nothing_that_inspect_shows(self) -> None:
        """Inspect shows a damaged bucket as it would be mended, and leaves the damage; the next command mends it."""
        self._needs("write_fields")
        with self._opened() as storage:
            key = new_key()
            fields = BucketState(-5, EPOCH, quota=PLAIN, carry_refill=1, carry_period_us=SECOND).to_fields()
            self._write(storage, key, fields | {"refilled_at": "NaN"})
            for _ in range(2):
                shown = storage.inspect(key, now_us=EPOCH + SECOND)
                assert shown is not None
                assert (shown.balance, shown.repaired) == (-5, ("refilled_at",))
            assert storage.apply(key, PLAIN, Peek(), now_us=EPOCH + SECOND).repaired == ("refilled_at",)
            assert storage.apply(key, PLAIN, Peek(), now_us=EPOCH + SECOND).repaired == ()

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
    def test_the_format_of_a_newer_release_is_refused_and_left_as_it_was(self, command: Command) -> None:
        """The state of a newer release is refused by every command with ConfigError, and not touched."""
        self._needs("write_fields")
        with self._opened() as storage:
            key = new_key()
            fields = BucketState(-5, EPOCH, quota=PLAIN, carry_refill=1, carry_period_us=SECOND).to_fields()
            self._write(storage, key, fields | {"format": "2"})
            before = self._fields(storage, key)
            with pytest.raises(ConfigError, match=NEWER):
                storage.apply(key, PLAIN, command, now_us=EPOCH)
            with pytest.raises(ConfigError, match=NEWER):
                storage.inspect(key, now_us=EPOCH)
            assert self._fields(storage, key) == before
            # Without a way to read the fields: the bucket is as it was, once its format is known.
            self._write(storage, key, fields)
            assert storage.apply(key, PLAIN, Peek(), now_us=EPOCH).balance == -5

    def test_hundreds_of_holds_that_run_out_at_once_are_charged(self) -> None:
        """A bucket with 500 holds that all ran out is read and written whole."""
        self._needs("write_fields")
        quota = Quota(1000, 1, 1.0)
        holds = {f"h{n}": Hold(1, n + 1, EPOCH + SECOND, SECOND) for n in range(500)}
        state = BucketState(1000, EPOCH, sequence=501, quota=quota, holds=holds, carry_refill=1, carry_period_us=SECOND)
        with self._opened() as storage:
            key = new_key()
            self._write(storage, key, state.to_fields())
            assert storage.apply(key, quota, Acquire(0), now_us=EPOCH + SECOND).balance == 500
            assert storage.apply(key, quota, Settle("h7", 0), now_us=EPOCH + SECOND).balance == 501
            assert storage.apply(key, quota, Settle("h7", 0), now_us=EPOCH + 3 * SECOND).balance == 503

    # --- through a door

    def test_the_doors_work_on_it(self) -> None:
        """A TokenBucket on the storage takes, waits in its place, reserves, settles and gives back."""
        with self._opened() as storage:
            clock = ManualClock(1000.0)
            bucket = TokenBucket(PLAIN, key=new_key(), storage=storage, clock=clock)
            assert bucket.try_acquire(8).balance == 2
            assert bucket.acquire(5).waited == 3.0
            clock.advance(10)
            with bucket.reserve(6) as reservation:
                assert not bucket.try_acquire(5)
                reservation.settle(4)
            bucket.refund(1)
            assert bucket.peek().available == 7

    # --- helpers

    def _for_each(self, strategy: st.SearchStrategy[T], check: Callable[[T], None], *, share: float = 1.0) -> None:
        """Let Hypothesis look for an example at which `check` fails, as hard as its profile and `effort` say."""
        self._wanted(share)(given(strategy)(check))()

    def _wanted(self, share: float) -> settings:
        return settings(
            max_examples=max(1, round(settings().max_examples * self.effort * share)),
            stateful_step_count=20,
            deadline=None,  # of a storage no more is promised than its timeouts
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )

    def _follow(self, program: Program, storages: Iterator[S]) -> None:
        """Run a program on the rules, and each act of it on the next storage too, and compare after every act.

        A storage may forget a bucket when its lifetime is over (rule 9), or not: then either answer will do.
        """
        key, worlds = new_key(), [Rules()]
        for act in program.acts:
            storage = next(storages)
            if act.damage:
                worlds = worlds[:1]
                for name, text in act.damage:
                    worlds[0].damage(name, text)
                if worlds[0].texts:
                    self._write(storage, key, worlds[0].texts)
            worlds = with_the_forgotten(worlds, act.now)
            expected = [answer(partial(world.apply, act)) for world in worlds]
            told = answer(partial(storage.apply, key, act.quota, act.command, now_us=act.now))
            assert told in expected
            if told is NEWER:
                continue
            worlds = [world for world, outcome in zip(worlds, expected, strict=True) if outcome == told]
            worlds = with_the_forgotten(worlds, act.now)
            assert look(storage.inspect(key, now_us=act.now)) in [look(world.inspect(act.now)) for world in worlds]
            if self._can("read_fields"):
                assert ours(self._read(storage, key)) in [ours(world.texts) for world in worlds]

    def _shared_out(
        self,
        storage: S,
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

    def _fields(self, storage: S, key: str) -> Mapping[str, str] | None:
        return dict(self._read(storage, key)) if self._can("read_fields") else None

    def _needs(self, hook: str) -> None:
        if not self._can(hook):
            pytest.skip(f"define {hook} to have this tested")


class _Shared(_Conformance[S]):
    """What is asked of a storage that others may open too, now or later: of another process, after a restart."""

    @abstractmethod
    def _opener(self) -> crews.Opener | None:
        """Return what opens the storage in another process, if the subclass brought it."""

    def test_what_was_written_is_there_after_a_restart(self) -> None:
        """Closed and opened again between any two commands, the storage goes on as the rules say."""

        def each_anew() -> Iterator[S]:
            while True:
                with self._opened() as storage:
                    yield storage

        self._for_each(programs(None), lambda program: self._follow(program, each_anew()), share=0.2)

    def test_two_storages_on_one_place_are_one(self) -> None:
        """Two storages that are used in turns see each other's steps at once: neither keeps a copy."""
        with self._opened() as one, self._opened() as other:
            self._for_each(programs(None), lambda program: self._follow(program, cycle((one, other))), share=0.2)

    def test_a_storage_that_is_closed_takes_nothing_along(self) -> None:
        """Another storage on the same place goes on after one was closed."""
        key = new_key()
        with self._opened() as staying:
            with self._opened() as leaving:
                leaving.apply(key, PLAIN, Acquire(4), now_us=EPOCH)
            assert staying.apply(key, PLAIN, Acquire(1), now_us=EPOCH).balance == 5
            assert key in set(staying.keys())

    def test_storages_at_the_same_time_never_get_one_token_twice(self) -> None:
        """Threads that each have a storage of their own on one place get each token once."""
        with ExitStack() as stack:
            storages = [stack.enter_context(self._opened()) for _ in range(WORKERS)]
            self._shared_out(storages[0], lambda works: crews.threads(storages, works))

    def test_processes_at_the_same_time_never_get_one_token_twice(self) -> None:
        """Processes that take at once get each token once."""
        opener = self._elsewhere()
        with self._opened() as storage:
            self._shared_out(storage, lambda works: crews.processes(opener, works), PROCESSES, EACH_PROCESS)

    def test_the_own_time_is_one_for_all(self) -> None:
        """Without a caller's clock, storages in this process and in others go by one time, within the tolerance."""
        opener = self._elsewhere()
        key = new_key()
        with self._opened() as one, self._opened() as other:
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
        with self._opened() as storage:
            left = storage.apply(key, quota, Acquire(0), now_us=EPOCH)
            assert left.repaired == ()
            assert quota.capacity - (left.balance or 0) in {steps, steps + 1}

    def _elsewhere(self) -> crews.Opener:
        opener = self._opener()
        if opener is None:
            pytest.skip("define elsewhere to have this tested")
        return opener


class StorageConformance(_Conformance[Storage]):
    """The tests of a storage that lives in one process. Subclass it as `class TestMine(StorageConformance)`.

    `make_storage` is all that must be defined. With `write_fields` the tests damage what is stored, with
    `read_fields` they look at it; both in the texts of `BucketState.to_fields`.
    """

    @abstractmethod
    def make_storage(self) -> Storage:
        """Return a storage; it is closed at the end. Need not be empty."""

    def read_fields(self, key: str) -> Mapping[str, str]:
        """Return what is stored of a bucket. Optional."""
        raise NotImplementedError

    def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        """Store these fields of a bucket, whatever they are, in place of what is stored. Optional."""
        raise NotImplementedError

    def forget(self, key: str) -> None:
        """Take a bucket away, as if it had never been. Optional."""
        raise NotImplementedError

    @contextmanager
    def _opened(self) -> Generator[Storage]:
        storage = self.make_storage()
        try:
            yield storage
        finally:
            storage.close()

    def _read(self, _storage: Storage, key: str, /) -> Mapping[str, str]:
        return self.read_fields(key)

    def _write(self, _storage: Storage, key: str, fields: Mapping[str, str], /) -> None:
        self.write_fields(key, fields)

    def _forget(self, _storage: Storage, key: str, /) -> None:
        self.forget(key)

    def _at_once(self, storage: Storage, works: Sequence[crews.Work]) -> list[list[Outcome]]:
        return crews.threads([storage] * len(works), works)


class SharedStorageConformance(StorageConformance, _Shared[Storage]):
    """The tests of a storage that outlives its process or is shared by several: those of all storages, and more.

    Every `make_storage` of one test must open the same place.
    """

    def elsewhere(self) -> Callable[[], Storage] | None:
        """Return what opens the place in another process: it is pickled, so a class or a functools.partial of one."""
        return None

    def _opener(self) -> crews.Opener | None:
        return self.elsewhere()


class AsyncStorageConformance(_Conformance[Driven]):
    """`StorageConformance` for a storage for coroutines. What is defined by hand is a coroutine here too."""

    @abstractmethod
    async def make_storage(self) -> AsyncStorage:
        """Return a storage, made on the event loop on which it is used."""

    async def read_fields(self, key: str) -> Mapping[str, str]:
        """Return what is stored of a bucket. Optional."""
        raise NotImplementedError

    async def write_fields(self, key: str, fields: Mapping[str, str]) -> None:
        """Store these fields of a bucket, whatever they are, in place of what is stored. Optional."""
        raise NotImplementedError

    async def forget(self, key: str) -> None:
        """Take a bucket away, as if it had never been. Optional."""
        raise NotImplementedError

    def _opened(self) -> AbstractContextManager[Driven]:
        return driven(self.make_storage)

    def _read(self, storage: Driven, key: str, /) -> Mapping[str, str]:
        return storage.run(self.read_fields(key))

    def _write(self, storage: Driven, key: str, fields: Mapping[str, str], /) -> None:
        storage.run(self.write_fields(key, fields))

    def _forget(self, storage: Driven, key: str, /) -> None:
        storage.run(self.forget(key))

    def _at_once(self, storage: Driven, works: Sequence[crews.Work]) -> list[list[Outcome]]:
        return storage.run(crews.coroutines(storage.storage, works))


class AsyncSharedStorageConformance(AsyncStorageConformance, _Shared[Driven]):
    """`SharedStorageConformance` for a storage for coroutines."""

    def elsewhere(self) -> Callable[[], AsyncStorage] | None:
        """Return what opens the place in another process: it is pickled, so a class or a functools.partial of one."""
        return None

    def _opener(self) -> crews.Opener | None:
        return self.elsewhere()


def new_key() -> str:
    """Return a key that nobody has used."""
    return f"kit-{uuid.uuid4().hex}"


def answer(step: Callable[[], Outcome]) -> Outcome | str:
    """Return what a step comes to: an outcome, or NEWER where the state is a newer release's."""
    try:
        outcome = step()
        return replace(outcome, repaired=tuple(sorted(outcome.repaired)), snapshot=look(outcome.snapshot))
    except ConfigError as error:
        if NEWER in str(error):
            return NEWER
        raise


def look(snapshot: Snapshot | None) -> Snapshot | None:
    """Return what a look shows; names of mended fields have no order."""
    return None if snapshot is None else replace(snapshot, repaired=tuple(sorted(snapshot.repaired)))


def with_the_forgotten(worlds: list[Rules], now: int) -> list[Rules]:
    """Return the worlds, and the one without the bucket if it may be forgotten in any of them."""
    forgotten = any(world.due is not None and world.due <= now for world in worlds)
    return [*worlds, Rules()] if forgotten and all(world.texts for world in worlds) else worlds


def ours(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the fields that a state has; a storage may keep others, or not."""
    return {name: text for name, text in fields.items() if is_ours(name)}
