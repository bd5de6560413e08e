"""Memory storage: atomic steps, idle full buckets dropped, states loaded and dumped, looks that write nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import DAY, EPOCH, HOUR, MINUTE, SECOND, gaps
from keepa_tokens import Event, TokenBucket, _door
from keepa_tokens._door import Door
from keepa_tokens.errors import ConfigError, StorageUnavailable
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Pause, Reserve, Settle
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage import memory
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.testing import ManualClock
from tests.helpers import in_a_child
from tests.redis.stories import STORIES
from tests.redis.strategies import Act, Program, programs
from tests.strategies import SPARING

QUOTA = Quota(10, 1, 1.0)


class Kept(MemoryStorage):
    def _drop(self, deadlines: object, now: int) -> None:
        """Do nothing."""


@dataclass
class Told:
    now: int = 0

    def now_us(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now * 1000

    def sleep(self, seconds: float, /) -> None:
        """Do nothing."""

    async def asleep(self, seconds: float, /) -> None:
        """Do nothing."""


@contextmanager
def own_time() -> Iterator[Told]:
    """Let memory storage and the doors to it read this clock for the monotonic one."""
    told = Told()
    with (
        patch.object(memory, "monotonic_ns", told.monotonic_ns),
        patch.object(_door, "monotonic_ns", told.monotonic_ns),
    ):
        yield told


def door_to(storage: MemoryStorage, quota: Quota, clock: Told | None) -> Door[MemoryStorage]:
    """Return a door that takes from this storage without a command, although it is of a class of the tests."""
    door = Door(quota, "k", storage, clock, None)
    door._memory = storage
    return door


def follows_the_rules(program: Program) -> None:
    """Run a program on memory and by the pure function, by a caller's clock and by the storage's own."""
    run(program, Told(), own=False)
    with own_time() as time:
        run(program, time, own=True)


def run(program: Program, time: Told, *, own: bool) -> None:
    """Compare outcomes and states. The doors live as long as the program, and so does what they remember."""
    storage, state = Kept(), None
    doors: dict[Quota, Door[MemoryStorage]] = {}
    for act in program.acts:
        time.now = now = max(time.now, act.now) if own else act.now
        if act.quota not in doors:
            doors[act.quota] = door_to(storage, act.quota, None if own else time)
        door = doors[act.quota]
        apply = partial(storage.apply, "k", door.quota, act.command, now_us=None if own else now)
        try:
            new, expected = transition(door.quota, state, now, act.command)
        except ConfigError:
            with pytest.raises(ConfigError):
                apply()
            continue
        told = None
        if isinstance(act.command, Acquire) and act.command.wait_us is None and act.command.ticket is None:
            told = door.at_once(act.command.tokens, act.command.keep, 0)
        if told is None:
            assert apply() == expected
        else:
            assert told == expected.decision()
        assert storage.dump("k") == (None if new is None else replace(new, fast=None))
        state = new


@SPARING
@given(program=programs(damaged=False, most=25))
def test_memory_storage_is_transition(program: Program) -> None:
    """Outcomes and states are those of the pure function, whichever way a command goes."""
    follows_the_rules(program)


def test_memory_storage_is_transition_at_every_edge() -> None:
    """The same where a number is exactly at the edge at which the fast path decides otherwise, or one beside it."""
    # In that one tokens of a place come back that nobody was told: damage, which nobody can do to a working copy.
    left_out = "give back before places"
    sound = [
        program for name, program in STORIES.items() if name != left_out and not any(act.damage for act in program.acts)
    ]
    assert len(sound) > 50
    for program in sound:
        follows_the_rules(program)


def test_a_stepped_refill_from_before_a_step_of_the_clock_hides_nothing_that_is_ahead_of_it() -> None:
    """A clock goes back by more than the tolerance: terms that changed after that are replaced, as by the rules."""
    hourly = Quota(10, 3, 3_600.0, stepped=True)
    begun, changed, back = EPOCH, EPOCH + 10 * MINUTE, EPOCH + 9 * MINUTE
    acts = [(begun, hourly), (changed, replace(hourly, recharge_to=1)), (back, hourly), (back + SECOND, hourly)]
    follows_the_rules(Program(tuple(Act(now, quota, (), Acquire(1)) for now, quota in acts)))


def test_idle_full_buckets_are_dropped_as_others_are_used() -> None:
    """Over two thousand keys, each used once, the number of stored buckets stays bounded, and 0 in the end but one."""
    storage, most = MemoryStorage(), 0
    for n in range(2_000):
        storage.apply(f"k{n}", QUOTA, Acquire(1), now_us=EPOCH + n * SECOND)
        if n % 100 == 0:
            most = max(most, len(list(storage.keys())))
    # Each lives for its shortest lifetime, a minute or so, at one new key a second.
    assert most < 200
    for n in range(200):
        storage.apply("last", QUOTA, Acquire(1), now_us=EPOCH + DAY + n)
    assert list(storage.keys()) == ["last"]


def test_a_bucket_that_is_not_full_is_kept() -> None:
    """Debts, holds and buckets that never refill outlive any number of other keys."""
    storage = MemoryStorage()
    storage.load("debt", BucketState(balance=-(10**9), refilled_at=EPOCH))
    storage.apply("debt", QUOTA, Acquire(0), now_us=EPOCH)
    storage.apply("held", QUOTA, Reserve("a", 3, 20 * HOUR), now_us=EPOCH)
    storage.apply("low", Quota(10, 1, 1.0, initial=0), Acquire(0), now_us=EPOCH)
    for n in range(1000):
        storage.apply(f"k{n}", QUOTA, Acquire(1), now_us=EPOCH + n * MINUTE)
    assert {"debt", "held", "low"} <= set(storage.keys())
    assert storage.apply("held", QUOTA, Settle("a", 1), now_us=EPOCH + 17 * HOUR).found


def test_a_bucket_used_again_and_again_is_kept_until_it_rests() -> None:
    """Every use renews the lifetime; a key waits for its end once, not once a use."""
    storage = MemoryStorage()
    for n in range(1000):
        storage.apply("k", QUOTA, Acquire(1), now_us=EPOCH + n * SECOND)
        storage.apply("other", Quota(10**4, 0, 1.0), Acquire(1), now_us=EPOCH + n * SECOND)
    assert storage.dump("k") is not None
    for n in range(3):
        storage.apply("other", Quota(10**4, 0, 1.0), Acquire(1), now_us=EPOCH + HOUR + n)
    assert storage.dump("k") is None
    assert len(list(storage.keys())) == 1


def test_what_a_door_takes_renews_the_lifetime() -> None:
    """A bucket that is emptied every ten seconds gives what flows in, whoever else uses the storage."""
    clock = ManualClock(1_000.0)
    bucket = TokenBucket(QUOTA, key="k", clock=clock)
    other = bucket.with_key("other")
    for _ in range(20):
        assert [bool(bucket.try_acquire()) for _ in range(11)] == [True] * 10 + [False]
        other.peek()
        assert not bucket.try_acquire()
        clock.advance(10)


@given(steps=st.lists(st.tuples(st.integers(0, 3), gaps, st.integers(0, 10)), max_size=40))
def test_dropping_changes_no_answer(steps: list[tuple[int, int, int]]) -> None:
    """A storage that drops idle buckets answers as one that keeps them all."""
    storage = MemoryStorage()
    kept: dict[int, BucketState | None] = {}
    now = EPOCH
    for key, gap, tokens in steps:
        now += gap
        kept[key], expected = transition(QUOTA, kept.get(key), now, Acquire(tokens))
        assert storage.apply(str(key), QUOTA, Acquire(tokens), now_us=now) == expected


def test_inspect_shows_a_bucket_by_its_key_alone_and_writes_nothing() -> None:
    """The quota last used is stored with it; a key without a bucket is None."""
    storage = MemoryStorage()
    assert storage.inspect("k") is None
    storage.apply("k", QUOTA, Acquire(4), now_us=EPOCH)
    before = storage.dump("k")
    seen = storage.inspect("k", now_us=EPOCH + 2 * SECOND)
    assert seen is not None
    assert (seen.balance, seen.quota) == (8, QUOTA)
    assert storage.dump("k") == before
    last_step = storage.inspect("k")
    assert last_step is not None
    assert last_step.balance == 6


def test_buckets_by_two_clocks_are_each_dropped_by_their_own() -> None:
    """A caller's clock far ahead doesn't drop a bucket that lives by the storage's own time."""
    storage, quota = MemoryStorage(), Quota(10, 1, 100.0)
    storage.apply("own", quota, Acquire(10))
    for n in range(10):
        storage.apply("theirs", quota, Acquire(1), now_us=2 * EPOCH + n)
    assert storage.dump("own") is not None


@pytest.mark.parametrize("now", [1.5e15, -1, 2**52, "7", True])
def test_a_clock_that_tells_no_time_is_refused_and_takes_nothing(now: Any) -> None:
    """A float, a negative, an absurd instant, a text: an error at the door and at the storage; nothing is stored."""
    storage = MemoryStorage()
    with pytest.raises((TypeError, ConfigError), match="now_us"):
        storage.apply("k", QUOTA, Acquire(1), now_us=now)
    tells: tuple[Any, ...] = (now, None)
    for told in tells:
        with pytest.raises((TypeError, ConfigError), match="now_us"):
            TokenBucket(QUOTA, key="k", storage=storage, clock=Told(told)).try_acquire()
    assert list(storage.keys()) == []
    storage.close()
    storage.close()


def test_a_clock_may_tell_its_time_by_index() -> None:
    """What is a whole number by `operator.index` is one."""
    storage = MemoryStorage()
    now: Any = Fraction(EPOCH)

    class Told:
        def __index__(self) -> int:
            return int(now)

    assert storage.apply("k", QUOTA, Acquire(1), now_us=Told()).now_us == EPOCH  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_forked_child_goes_on() -> None:
    """A lock that another thread held at the fork is nobody's in the child: every verb answers there."""
    storage = MemoryStorage()
    bucket = TokenBucket(QUOTA, key="k", storage=storage)
    bucket.try_acquire()

    def asks() -> int:
        bucket.try_acquire()
        storage.apply("k", QUOTA, Acquire(1))
        storage.inspect("k")
        return len(list(storage.keys()))

    with storage.lock:  # as a thread in the middle of a step, which the child doesn't have
        ended = in_a_child(asks)
    assert ended() == 1


@pytest.mark.parametrize("inner", ["try_acquire", "peek"])
@pytest.mark.parametrize("outer", ["try_acquire", "peek"])
def test_who_uses_a_bucket_in_the_midst_of_a_step_of_its_own_thread_is_told(outer: str, inner: str) -> None:
    """A signal's handler, or a listener that the garbage collector calls, does not wait for its own thread for ever."""
    bucket = TokenBucket(QUOTA, key="k")

    def asks() -> int:
        refused: list[Exception] = []
        interrupts = iter([getattr(bucket, inner)])

        def interrupted() -> int:
            for use in interrupts:
                try:
                    use()
                except StorageUnavailable as error:
                    refused.append(error)
            return EPOCH

        with patch.object(memory, "monotonic_ns", interrupted), patch.object(_door, "monotonic_ns", interrupted):
            getattr(bucket, outer)()
        getattr(bucket, inner)()
        return len(refused)

    bucket.try_acquire()
    assert in_a_child(asks)() == 1


def test_a_listener_waits_for_another_threads_step_as_anybody_does() -> None:
    """Its own thread's step is over when it is told."""
    told: list[Event] = []

    def listen(event: Event) -> None:
        told.append(event)
        if len(told) == 1:
            with patch.object(memory, "sleep", lambda _: None):
                storage.lock.acquire()  # as another thread
                threading.Timer(0.05, storage.lock.release).start()
                assert bucket.try_acquire()

    storage = MemoryStorage()
    bucket = TokenBucket(QUOTA, key="default", storage=storage)
    bucket.try_acquire()  # from now on the door serves it
    bucket.listener = listen
    bucket.try_acquire()
    assert bucket.peek().balance == 7


GONE: dict[str, Callable[[MemoryStorage], object]] = {
    "deleted": lambda storage: storage.delete("k"),
    "replaced": lambda storage: storage.load("k", BucketState(balance=3, refilled_at=99 * DAY, quota=QUOTA)),
    "full for long": lambda storage: storage.apply("other", QUOTA, Acquire(1)),
    "on other terms": lambda storage: storage.apply("k", Quota(20, 1, 1.0), Acquire(1)),
    "decided by the rules": lambda storage: storage.apply("k", QUOTA, Pause(MINUTE)),
}


@pytest.mark.parametrize("gone", GONE)
def test_a_door_serves_no_bucket_that_has_gone(gone: str) -> None:
    """What a door remembers of a bucket ends with it: the next one to ask finds what is there for all."""
    storage = MemoryStorage()
    with own_time() as time:
        time.now = 99 * DAY
        bucket, other = (TokenBucket(QUOTA, key="k", storage=storage) for _ in range(2))
        assert bucket.try_acquire(7).balance == 3
        assert bucket.try_acquire(2).balance == 1
        time.now += HOUR if gone == "full for long" else SECOND
        GONE[gone](storage)
        seen = other.peek()
        assert bucket.try_acquire(1).balance == (seen.balance or 0) - (not seen.paused_for)
        shown = storage.inspect("k")
        assert shown is not None
        assert other.peek().balance == bucket.peek().balance == shown.balance
