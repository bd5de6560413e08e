"""Interrupted between "the storage did it" and "the caller knows": nothing is lost, and the interrupt is what is seen.

Every door is run again and again, and interrupted one step later each time: at each command to the storage, before and
after it counts, in each sleep and each probe; in coroutines at each await.
"""

from __future__ import annotations

import _thread
import asyncio
import gc
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    ConfigError,
    Decision,
    Event,
    EventKind,
    KeepaSync,
    MemoryStorage,
    Outcome,
    Quota,
    Reading,
    SQLiteStorage,
    StorageUnavailable,
    TokenBucket,
    _interrupts,
)
from keepa_tokens._blocking import run
from keepa_tokens._interrupts import WholeLock
from keepa_tokens.keepa._door import PLACE
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Refund, Unclaim
from keepa_tokens.testing import ManualClock, virtual_loop
from tests.helpers import Noted

pytestmark = pytest.mark.anyio

PLAIN: Final = Quota(10, 1, 1.0)
SYNCED: Final = Quota(10, 1, 1.0, synced=True, initial=10)
UNKNOWN: Final = Quota(10, 1, 1.0, synced=True)
TOLD: Final[tuple[int, Mapping[str, object]]] = (200, {"tokensLeft": 8})


class Struck(Exception):  # what a signal's handler may raise, as Celery's soft time limit does
    """Raised by the handler of a signal."""


def _strike(*_: object) -> None:
    raise Struck


@contextmanager
def struck_by_signals() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, _strike)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def strike() -> None:
    signal.raise_signal(signal.SIGUSR1)


@dataclass
class Plot:
    """At which of the steps that touch the world an interrupt strikes, and another one after it."""

    at: int
    strike: Callable[[], None]
    then: Plot | None = None
    step: int = 0
    struck: bool = False

    def point(self) -> None:
        if self.struck and self.then is not None:
            self.then.point()
        self.step += 1
        if self.step == self.at:
            self.struck = True
            self.strike()


class Plotted(Noted):
    """Memory storage at which an interrupt may strike before and after each command counts."""

    plot: Plot | None = None

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if self.plot is None:
            return super().apply(key, quota, command, now_us=now_us)
        self.plot.point()
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Acquire) and self.plot.strike is ctrl_c:
            # Raised by the storage itself: whether it counted can't be told, see the test of what is lost then.
            return outcome
        self.plot.point()
        return outcome


class PlottedClock(ManualClock):
    """A clock in whose sleeps an interrupt may strike."""

    plot: Plot | None = None

    def sleep(self, seconds: float, /) -> None:
        if self.plot is not None:
            self.plot.point()
        super().sleep(seconds)


@dataclass
class Scene:
    quota: Quota
    spent: int = 0
    storage: Plotted = field(default_factory=Plotted)
    clock: PlottedClock = field(default_factory=lambda: PlottedClock(100.0))
    events: list[Event] = field(default_factory=list)
    probes: int = 0

    def __post_init__(self) -> None:
        self.bucket = TokenBucket(
            self.quota, key="default", storage=self.storage, clock=self.clock, listener=self.events.append
        )
        if self.spent:
            assert self.bucket.try_acquire(self.spent)

    def probe(self) -> tuple[int, Mapping[str, object]]:
        if self.clock.plot is not None:
            self.clock.plot.point()
        self.probes += 1
        return TOLD

    @property
    def sync(self) -> KeepaSync:
        return KeepaSync(self.bucket, probe=self.probe)

    def first_of_attempts(self) -> object:
        return next(iter(self.sync.attempts(4)))

    def plot(self, plot: Plot | None) -> None:
        self.storage.plot = self.clock.plot = plot

    def lost(self) -> list[int | None]:
        """Return the tokens that could not be given back, as was told."""
        return [event.tokens for event in self.events if event.kind is EventKind.NOT_GIVEN_BACK]

    def unchanged(self) -> bool:
        """Whether nobody holds anything, and there is what was, or what the probe told, and the refill."""
        seen, known = self.bucket.peek(), self.quota.initial or not self.quota.synced
        started, since = (10 - self.spent, self.clock.now_us() // 10**6 - 100) if known else (None, 0)
        if seen.reading_age is not None:
            started, since = 8, int(seen.reading_age)
        balance = None if started is None else min(10, started + since)
        return (seen.balance, seen.held, seen.holds, seen.waiting) == (balance, 0, 0, 0)

    def next_one_probes(self) -> bool:
        before = self.probes
        self.sync.try_request(1).cancel()
        return self.probes > before


def of_a_task(enter: Callable[[], Any]) -> Any:
    """Enter a door as a queue's task does, by whose id it stands in line."""
    stands = PLACE.set("task")
    try:
        return enter()
    finally:
        PLACE.reset(stands)


DOORS: Final[dict[str, tuple[Quota, int, Callable[[Any], Any]]]] = {
    "try_acquire": (PLAIN, 0, lambda scene: scene.bucket.try_acquire(4)),
    "acquire": (PLAIN, 0, lambda scene: scene.bucket.acquire(4)),
    "acquire in a place": (PLAIN, 10, lambda scene: scene.bucket.acquire(4)),
    "acquire with keep": (PLAIN, 10, lambda scene: scene.bucket.acquire(2, keep=2)),
    "acquire, synced": (SYNCED, 10, lambda scene: scene.bucket.acquire(4)),
    "try_reserve": (PLAIN, 0, lambda scene: scene.bucket.try_reserve(4)),
    "try_reserve, synced": (SYNCED, 0, lambda scene: scene.bucket.try_reserve(4)),
    "reserve": (PLAIN, 0, lambda scene: scene.bucket.reserve(4)),
    "reserve that waits": (PLAIN, 10, lambda scene: scene.bucket.reserve(4)),
    "reserve that waits, synced": (SYNCED, 10, lambda scene: scene.bucket.reserve(4)),
    "request": (SYNCED, 0, lambda scene: scene.sync.request(4)),
    "request that waits": (SYNCED, 10, lambda scene: scene.sync.request(4)),
    "request of a task that waits": (SYNCED, 10, lambda scene: of_a_task(lambda: scene.sync.request(4))),
    "request that probes": (UNKNOWN, 0, lambda scene: scene.sync.request(4)),
    "try_request": (SYNCED, 0, lambda scene: scene.sync.try_request(4)),
    "try_request that probes": (UNKNOWN, 0, lambda scene: scene.sync.try_request(4)),
    "attempts": (SYNCED, 0, lambda scene: scene.first_of_attempts()),
    "attempts that probe": (UNKNOWN, 0, lambda scene: scene.first_of_attempts()),
    "scout": (UNKNOWN, 0, lambda scene: type(scene.sync)(scene.bucket).request(4)),
    "refresh": (UNKNOWN, 0, lambda scene: scene.sync.refresh()),
}
"""Of each door: the bucket's terms, what is spent of it before, and how it is entered, by a thread or a coroutine."""


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind, interrupt", [(KeyboardInterrupt, ctrl_c), (Struck, strike)], ids=["ctrl-c", "signal"])
def test_a_thread_that_is_interrupted_anywhere_gives_everything_back(
    door: str, kind: type[BaseException], interrupt: Callable[[], None]
) -> None:
    """The interrupt is raised, tokens and holds are as before, and nothing keeps the next caller from probing."""
    quota, spent, enter = DOORS[door]
    with struck_by_signals():
        for at in count(1):
            scene = Scene(quota, spent)
            plot = Plot(at, interrupt)
            scene.plot(plot)
            try:
                enter(scene)
            except kind:
                assert plot.struck
            scene.plot(None)
            if not plot.struck:
                assert at > 1
                return
            assert scene.unchanged(), at
            # At 2 it comes from the storage itself, which has counted: nobody knows of the claim, which ends by itself.
            if scene.bucket.peek().balance is None and not (interrupt is ctrl_c and at == 2):
                assert scene.next_one_probes(), at


@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize("interrupt", [strike, ctrl_c])
def test_a_second_interrupt_in_the_middle_of_the_clean_up_loses_nothing(
    interrupt: Callable[[], None], again: int
) -> None:
    """Struck once more while the hold is given back, that is done once more; the first interrupt is what is seen."""
    scene, second = Scene(SYNCED), Plot(again, interrupt)
    scene.plot(Plot(2, ctrl_c, second))
    with struck_by_signals(), pytest.raises(KeyboardInterrupt):
        scene.bucket.reserve(4)
    scene.plot(None)
    assert second.struck
    assert scene.unchanged()


@pytest.mark.parametrize("owner, name", [(_interrupts, "_handlers"), (_interrupts.PutOff, "__enter__")])
@pytest.mark.parametrize("door", ["try_acquire", "acquire", "try_reserve", "reserve"])
def test_a_second_interrupt_before_the_clean_up_loses_nothing(
    door: str, owner: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Struck once more while it is found out what struck, or before signals are put off: all is given back."""
    first, second = iter([ctrl_c]), iter([strike])

    def listener(event: Event) -> None:
        if event.kind is EventKind.GRANTED:
            next(first, int)()

    before = getattr(owner, name)

    def struck(*args: Any) -> Any:
        next(second, int)()
        return before(*args)

    bucket = TokenBucket(PLAIN, clock=ManualClock(100.0), listener=listener)
    with struck_by_signals():
        monkeypatch.setattr(owner, name, struck)
        with pytest.raises(KeyboardInterrupt):
            getattr(bucket, door)(4)
        monkeypatch.undo()
    assert next(second, None) is None
    assert (bucket.peek().balance, bucket.peek().held) == (10, 0)


@pytest.mark.parametrize("door", ["try_acquire", "acquire"])
@pytest.mark.parametrize("kind", [TokenBucket, AsyncTokenBucket])
def test_what_a_step_at_once_has_taken_is_given_back(kind: Any, door: str) -> None:
    """Memory grants most calls without a command; the interrupt comes while the listener is told."""
    strikes = iter(list[Callable[[], object]]([int, ctrl_c]))
    bucket = kind(PLAIN, clock=ManualClock(100.0), listener=lambda _: next(strikes, int)())

    def call(name: str, tokens: int) -> Any:
        made = getattr(bucket, name)(tokens)
        return run(lambda: made) if asyncio.iscoroutine(made) else made

    assert call("try_acquire", 1)
    with pytest.raises(KeyboardInterrupt):
        call(door, 4)
    assert call("peek", 1).balance == 9


@pytest.mark.parametrize("door", ["try_acquire", "try_reserve", "settle"])
def test_an_interrupt_that_the_storage_hides_is_what_is_seen(door: str) -> None:
    """Somebody's storage makes a StorageUnavailable of it. What was taken is given back, what is over is settled."""

    class Hiding(Plotted):
        """Memory storage that names its own error, whatever happened."""

        def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
            try:
                return super().apply(key, quota, command, now_us=now_us)
            except KeyboardInterrupt as error:
                raise StorageUnavailable("no answer") from error

    scene = Scene(PLAIN, storage=Hiding())
    held = scene.bucket.reserve(2)
    scene.plot(Plot(1, ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        held.settle(1) if door == "settle" else getattr(scene.bucket, door)(4)
    scene.plot(None)
    assert scene.bucket.peek().balance == (9 if door == "settle" else 8)


@pytest.mark.parametrize("kind", [TokenBucket, AsyncTokenBucket])
def test_what_is_taken_up_to_is_told_without_a_call_between(kind: Any) -> None:
    """Between the grant and the return of how many were taken there is nothing in which a signal could strike."""
    decided: list[Decision] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decision, "__bool__", decided.append)
        bucket = kind(PLAIN, clock=ManualClock(100.0))
        taken = bucket.take_up_to(3)
        assert (asyncio.run(taken) if asyncio.iscoroutine(taken) else taken) == 3
    assert decided == []


@pytest.mark.parametrize("end", ["settle", "cancel"])
def test_a_settle_or_a_cancel_that_is_interrupted_counts_all_the_same(end: str) -> None:
    """The cost is known, so it is charged, once; what is seen is the interrupt."""
    for at in (1, 2):
        scene = Scene(SYNCED)
        call = scene.sync.request(4)
        scene.plot(Plot(at, ctrl_c))
        with pytest.raises(KeyboardInterrupt):
            call.settle({"tokensConsumed": 3}, status=200) if end == "settle" else call.cancel()
        scene.plot(None)
        assert (scene.bucket.peek().balance, scene.bucket.peek().holds) == (7 if end == "settle" else 10, 0)


@pytest.mark.parametrize("door, taken", [("acquire", [4]), ("reserve", [])])
def test_where_the_storage_is_away_too_the_interrupt_is_seen_and_the_loss_is_told(door: str, taken: list[int]) -> None:
    """Ctrl-C while it waits and the storage gone: KeyboardInterrupt, and an event that names what its place took."""

    class Cutting(PlottedClock):
        """A clock during whose sleep everything goes wrong."""

        def sleep(self, seconds: float, /) -> None:
            scene.storage.away = True
            raise KeyboardInterrupt

    scene = Scene(PLAIN, 10, clock=Cutting(100.0))
    with pytest.raises(KeyboardInterrupt):
        getattr(scene.bucket, door)(4)
    assert scene.lost() == taken


def test_of_a_plain_acquire_without_an_answer_the_loss_is_its_own_tokens_and_is_told() -> None:
    """A thread struck between "the storage did it" and its answer can't tell: at most what it asked for is gone."""

    class Late(Plotted):
        """Memory storage that is struck when all is done."""

        def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
            outcome = super().apply(key, quota, command, now_us=now_us)
            if isinstance(command, Acquire):
                raise KeyboardInterrupt
            return outcome

    scene = Scene(PLAIN, storage=Late())
    for door in (scene.bucket.try_acquire, scene.bucket.acquire):
        scene.events.clear()
        with pytest.raises(KeyboardInterrupt):
            door(4)
        assert scene.lost() == [4]
        assert len(scene.events) == 1
    assert scene.bucket.peek().balance == 2


@pytest.mark.parametrize("away", [True, False])
def test_where_no_thread_can_be_started_all_is_given_back_and_told_as_ever(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a full container, or at the program's end: only the watch over time is missing."""

    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    scene = Scene(SYNCED)
    scene.storage.away = away
    scene.plot(None if away else Plot(2, ctrl_c))
    monkeypatch.setattr(_thread, "start_new_thread", fails)
    with pytest.raises(StorageUnavailable if away else KeyboardInterrupt):
        scene.bucket.reserve(4)
    scene.plot(None)
    scene.storage.away = False
    assert scene.unchanged()


def test_where_greenlets_take_turns_no_signal_is_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of several greenlets overlap in one thread: one would put back the handler of another, and keep it."""
    monkeypatch.setattr(socket, "socket", type("socket", (), {"__module__": "gevent._socket3"}))
    first, second = _interrupts.PutOff(), _interrupts.PutOff()
    with struck_by_signals():
        first.__enter__()
        second.__enter__()
        first.__exit__()
        second.__exit__()
        with pytest.raises(Struck):
            strike()


def test_a_time_limit_inside_a_probe_is_not_taken_for_a_failed_probe() -> None:
    """What a signal's handler raises goes through, whatever its type, as does what hides it."""

    def limited() -> tuple[int, Mapping[str, object]]:
        strike()
        return TOLD

    def wrapped() -> tuple[int, Mapping[str, object]]:
        try:
            return limited()
        except Struck:
            raise OSError("the client's own words")  # noqa: B904 - as clients do

    with struck_by_signals():
        for probe in (limited, wrapped):
            scene = Scene(UNKNOWN)
            with pytest.raises(Struck):
                KeepaSync(scene.bucket, probe=probe).try_request(4)
            assert not any(event.kind is EventKind.PROBE_FAILED for event in scene.events)


def test_a_failure_while_an_interrupt_is_being_handled_is_a_failure() -> None:
    """Who uses a bucket in an `except KeyboardInterrupt:` is told of a storage that is away as anybody else."""
    scene = Scene(PLAIN)
    try:
        ctrl_c()
    except KeyboardInterrupt:
        scene.storage.away = True
        with pytest.raises(StorageUnavailable):
            scene.bucket.reserve(4)


TAKEN: Final[dict[str, tuple[Callable[[TokenBucket], Any], Callable[[TokenBucket, Any], object]]]] = {
    "acquire": (lambda bucket: bucket.acquire(3), lambda bucket, _: bucket.refund(3)),
    "try_acquire": (lambda bucket: bucket.try_acquire(3), lambda bucket, _: bucket.refund(3)),
    "try_acquire with keep": (lambda bucket: bucket.try_acquire(3, keep=1), lambda bucket, _: bucket.refund(3)),
    "take_up_to": (lambda bucket: bucket.take_up_to(3), lambda bucket, _: bucket.refund(3)),
    "reserve": (lambda bucket: bucket.reserve(3), lambda _, held: held.settle(0)),
    "try_reserve": (lambda bucket: bucket.try_reserve(3), lambda _, held: held.settle(0)),
    "request": (lambda bucket: KeepaSync(bucket).request(3), lambda _, call: call.cancel()),
    "try_request": (lambda bucket: KeepaSync(bucket).try_request(3), lambda _, call: call.cancel()),
}
"""How three tokens are taken, and given back by whoever knows of them."""


@dataclass
class Alarm:
    """The handler of a timer's signal, which raises once each time that it is armed."""

    armed: bool = False

    def __call__(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            raise Struck


@contextmanager
def alarms() -> Iterator[Alarm]:
    """Let SIGALRM strike.

    Python swallows what strikes in a callback of the garbage collector, of which the tests' tools have one: so none.
    """
    alarm = Alarm()
    before = signal.signal(signal.SIGALRM, alarm)
    gc.disable()
    try:
        yield alarm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not signal.SIG_DFL else signal.SIG_IGN)
        gc.enable()


def struck_at_random(bucket: TokenBucket, door: str, times: int) -> int:
    """Run a door again and again, struck in the middle, and return how often; what it took comes back each time."""
    take, give_back = TAKEN[door]
    chance, strikes, took = random.Random(1), 0, 1.0
    for _ in range(10):
        begun = time.perf_counter()
        got = take(bucket)
        took = min(took, time.perf_counter() - begun)
        give_back(bucket, got)
    with alarms() as alarm:
        for _ in range(times):
            got = None
            try:
                alarm.armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, took))
                got = take(bucket)
                alarm.armed = False
            except Struck:
                strikes += 1
            if got is not None:
                give_back(bucket, got)
            seen = bucket.peek()
            assert (seen.available, seen.held, seen.holds) == (10, 0, 0)
    return strikes


@pytest.mark.parametrize("door", TAKEN)
@pytest.mark.parametrize("quota", [PLAIN, SYNCED], ids=["plain", "synced"])
@pytest.mark.parametrize("storage", ["memory", pytest.param("sqlite", marks=pytest.mark.deep)])
def test_signals_at_random_cost_nothing(storage: str, quota: Quota, door: str, tmp_path: Path) -> None:
    """Wherever a timer's signal strikes, hundreds of times: all tokens are back, and nobody is told otherwise."""
    if "request" in door:
        quota = SYNCED
    where = MemoryStorage() if storage == "memory" else SQLiteStorage(tmp_path / "buckets")
    events: list[Event] = []
    bucket = TokenBucket(quota, key="default", storage=where, clock=ManualClock(100.0), listener=events.append)
    assert struck_at_random(bucket, door, 600 if storage == "memory" else 200) > 20
    assert not any(event.kind is EventKind.NOT_GIVEN_BACK for event in events)


def test_a_whole_lock_is_never_left_held() -> None:
    """Struck at random, a `with` over a WholeLock has let go of it: from Python 3.14 on one over a Lock may not."""
    lock, chance, strikes = WholeLock(), random.Random(1), 0
    with alarms() as alarm:
        for _ in range(2000):
            try:
                alarm.armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-5))
                for _ in range(50):
                    with lock:
                        assert lock.locked()
                alarm.armed = False
            except Struck:
                strikes += 1
            assert not lock.locked()
    assert strikes > 100


# --- coroutines


class Slow:
    """Memory storage for coroutines, which suspends before and after each command counts."""

    def __init__(self, inner: MemoryStorage) -> None:
        self.inner = inner

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        await asyncio.sleep(0)
        outcome = self.inner.apply(key, quota, command, now_us=now_us)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return outcome

    async def aclose(self) -> None:
        self.inner.close()


class AsyncScene:
    """The bucket of a scene over a slow storage."""

    def __init__(self, quota: Quota, spent: int = 0, **there: Any) -> None:
        self.there = Scene(quota, spent, **there)
        slow: Any = Slow(self.there.storage)
        heard = self.there.events.append
        self.bucket = AsyncTokenBucket(quota, key="default", storage=slow, clock=self.there.clock, listener=heard)

    async def probe(self) -> tuple[int, Mapping[str, object]]:
        await asyncio.sleep(0)
        self.there.probes += 1
        await asyncio.sleep(0)
        return TOLD

    @property
    def sync(self) -> AsyncKeepaSync:
        return AsyncKeepaSync(self.bucket, probe=self.probe)

    async def first_of_attempts(self) -> None:
        async for _ in self.sync.attempts(4):
            return


async def cancelled(enter: Coroutine[Any, Any, Any], passes: int, again: int | None) -> bool:
    """Cancel `enter` after so many passes of the loop, and once more `again` passes later; False: it was done."""
    task = asyncio.ensure_future(enter)
    for _ in range(passes):
        await asyncio.sleep(0)
    if task.done():
        task.result()
        return False
    task.cancel()
    if again is not None:
        for _ in range(again):
            await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


@pytest.mark.parametrize("again", [None, 0, 1, 2, 5])
@pytest.mark.parametrize("door", DOORS)
def test_a_coroutine_that_is_cancelled_at_any_await_gives_everything_back(door: str, again: int | None) -> None:
    """One pass later each time, and again in the clean-up: CancelledError is seen, tokens and holds are as before."""
    quota, spent, enter = DOORS[door]

    async def main(passes: int) -> bool:
        scene = AsyncScene(quota, spent)
        if not await cancelled(enter(scene), passes, again):
            return False
        if again is None:
            assert scene.there.unchanged(), passes
        await scene.bucket.aclose()
        assert scene.there.unchanged(), passes
        undone = [each for each in scene.there.storage.commands if isinstance(each, Cancel | Refund | Unclaim)]
        assert len(undone) == len({*undone}), passes
        assert scene.there.bucket.peek().balance is not None or scene.there.next_one_probes(), passes
        assert len(asyncio.all_tasks()) == 1
        return True

    passes = next(passes for passes in count(1) if not asyncio.run(main(passes)))
    assert passes > 3


@pytest.mark.parametrize("door", DOORS)
def test_a_scope_of_anyio_that_cancels_every_further_await_loses_nothing(door: str) -> None:
    """Cancelled by level, not by edge: the clean-up is shielded, and the scope ends as it should."""
    quota, spent, enter = DOORS[door]

    async def main(passes: int) -> bool:
        scene = AsyncScene(quota, spent)
        done = False

        async def work() -> None:
            nonlocal done
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await enter(scene)
                done = True

        scopes: list[anyio.CancelScope] = []
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            for _ in range(passes):
                await asyncio.sleep(0)
            if scopes:
                scopes[0].cancel()
        if done:
            return False
        assert scene.there.unchanged(), passes
        return True

    passes = next(passes for passes in count(1) if not asyncio.run(main(passes)))
    assert passes > 3


@pytest.mark.parametrize("end", ["settle", "cancel"])
async def test_a_coroutine_cancelled_as_it_ends_a_hold_has_ended_it_and_that_is_told_once(end: str) -> None:
    """Whichever step of the storage it was in; the caller goes on when it is done."""
    for passes in count(1):
        scene = AsyncScene(SYNCED)
        held = await scene.bucket.reserve(4)
        scene.there.events.clear()
        if not await cancelled(held.settle(3) if end == "settle" else held.cancel(), passes, None):
            break
        seen = scene.there.bucket.peek()
        assert (seen.balance, seen.held) == (7 if end == "settle" else 10, 0)
        assert [event.kind for event in scene.there.events] == [EventKind.SETTLED] * (end == "settle")
    assert passes > 3


class Asleep(PlottedClock):
    """A clock in whose sleeps the storage goes away, and nobody ever wakes."""

    def __init__(self, start: float, storage: Noted) -> None:
        super().__init__(start)
        self.storage = storage

    async def asleep(self, seconds: float, /) -> None:
        self.storage.away = True
        await asyncio.Event().wait()


@pytest.mark.parametrize("limit", [None, 0.01])
@pytest.mark.parametrize("door", ["acquire", "reserve", "request"])
async def test_a_waiting_coroutine_is_cancelled_though_the_storage_is_away(door: str, limit: float | None) -> None:
    """CancelledError, or the TimeoutError of whoever set the limit, and never StorageUnavailable; the loss is told."""
    storage = Plotted()
    scene = AsyncScene(PLAIN if door == "acquire" else SYNCED, storage=storage, clock=Asleep(100.0, storage))
    await (scene.bucket.try_acquire(10) if door == "acquire" else scene.bucket.reconcile(Reading(0)))
    waiting = scene.sync.request(4) if door == "request" else getattr(scene.bucket, door)(4)

    async def limited() -> None:
        async with asyncio.timeout(limit):
            await waiting

    task = asyncio.ensure_future(limited())
    while limit is None and not storage.away:  # noqa: ASYNC110 - a pass of the loop each
        await asyncio.sleep(0)
    if limit is None:
        task.cancel()
    with pytest.raises(asyncio.CancelledError if limit is None else TimeoutError):
        await task
    await scene.bucket.aclose()
    # Who had to ask again holds nothing yet.
    assert scene.there.lost() == ([4] if door == "acquire" else [])


def test_what_is_closed_in_the_middle_is_given_back_too() -> None:
    """A coroutine that is thrown away while it waits leaves its clean-up to the loop; without one that is told."""

    async def begin(scene: AsyncScene) -> Any:
        waiting = scene.bucket.reserve(4)
        waiting.send(None)
        for _ in range(6):
            await asyncio.sleep(0)
        return waiting

    async def main(scene: AsyncScene) -> None:
        (await begin(scene)).close()
        await scene.bucket.aclose()

    scene = AsyncScene(PLAIN)
    asyncio.run(main(scene))
    assert scene.there.unchanged()
    asyncio.run(begin(scene)).close()
    assert scene.there.lost() == [4]


@pytest.mark.parametrize("door", ["try_acquire", "acquire"])
@pytest.mark.parametrize("answers", [False, True])
def test_what_an_interrupted_acquire_may_have_taken_where_no_answer_comes_is_told_once(
    door: str, answers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The storage has 5 s for each step; the caller goes on after 3 s. What becomes of them is no news to asyncio."""

    class Silent(Slow):
        """A storage that never answers, or says after a while that it is away."""

        async def apply(self, *_: Any, **__: Any) -> Outcome:
            await asyncio.wait_for(asyncio.Event().wait(), 4 if answers else None)
            raise AssertionError

    events: list[Event] = []
    silent: Any = Silent(MemoryStorage())
    bucket = AsyncTokenBucket(PLAIN, key="k", storage=silent, listener=events.append)

    async def main() -> None:
        assert await cancelled(getattr(bucket, door)(4), 2, None)
        assert asyncio.get_running_loop().time() - began == 3
        await bucket.aclose()
        assert len(asyncio.all_tasks()) == 1

    with virtual_loop() as loop:
        began = loop.time()
        loop.run_until_complete(main())
    gc.collect()
    assert [(event.kind, event.tokens) for event in events] == [(EventKind.NOT_GIVEN_BACK, 4)]
    assert not [record for record in caplog.records if record.name == "asyncio"]


def left_waiting(door: str, number: int = 1) -> tuple[AsyncTokenBucket, list[Any]]:
    """Return a bucket, and tasks that wait there in a loop that was closed without ending them."""
    synced = door == "attempts"
    bucket = AsyncTokenBucket(Quota(2, 1, 3600.0, synced=synced))

    async def first_of_attempts() -> None:
        async for _ in AsyncKeepaSync(bucket).attempts(1):
            return

    async def begin() -> list[Any]:
        await (bucket.reconcile(Reading(0)) if synced else bucket.acquire(2))
        made = [first_of_attempts() if synced else getattr(bucket, door)() for _ in range(number)]
        tasks = [asyncio.ensure_future(each) for each in made]
        await asyncio.sleep(0)
        return tasks

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(begin())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
    return bucket, tasks


@pytest.mark.parametrize("door", ["acquire", "reserve", "attempts"])
def test_who_waited_in_a_closed_loop_gives_back_when_it_is_thrown_away(door: str) -> None:
    """Memory needs no loop for that."""
    bucket, tasks = left_waiting(door, 2)
    for task in tasks:
        task.get_coro().close()
    seen = asyncio.run(bucket.peek())
    assert (seen.balance, seen.waiting) == (0, 0)


def test_tokens_that_come_back_wake_nobody_in_a_closed_loop() -> None:
    """Whoever waits after it is woken instead."""
    bucket, _tasks = left_waiting("reserve")

    async def main() -> None:
        waiting = asyncio.ensure_future(bucket.reserve())
        await asyncio.sleep(0)
        await bucket.refund(2)
        await (await asyncio.wait_for(waiting, 5)).cancel()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["settle", "observe", "reconcile"])
def test_a_reading_is_taken_though_whoever_tells_it_is_cancelled(how: str) -> None:
    """A settle ends as it began, its cost and its reading count, at each await; so does a reading outside a call."""

    async def main(passes: int) -> bool:
        scene = AsyncScene(SYNCED)
        told: Coroutine[Any, Any, object]
        if how == "settle":
            told = (await scene.sync.request(4)).settle({"tokensLeft": 5, "tokensConsumed": 4}, status=200)
        else:
            told = scene.sync.observe({"tokensLeft": 5}) if how == "observe" else scene.bucket.reconcile(Reading(5))
        if not await cancelled(told, passes, None):
            return False
        await scene.sync.aclose()
        seen = scene.there.bucket.peek()
        assert (seen.balance, seen.holds) == (5, 0), passes
        return True

    assert next(passes for passes in count(2) if not asyncio.run(main(passes))) > 3


# --- the claim on the probe


def test_a_claim_is_free_again_where_its_caller_had_too_little_time() -> None:
    """A probe that ends with its caller's timeout says nothing of the server: the next caller probes at once, once."""

    def cut(*, timeout: float) -> tuple[int, Mapping[str, object]]:
        scene.clock.advance(timeout)
        raise TimeoutError

    scene = Scene(UNKNOWN)
    with pytest.raises(TimeoutError):
        KeepaSync(scene.bucket, probe=cut).request(4, timeout=2)
    assert scene.next_one_probes()
    scene = Scene(UNKNOWN)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            KeepaSync(scene.bucket, probe=cut).request(4, timeout=2)
    # Given back again without a reading between: that counts as a failed probe, and the balance starts at 0.
    assert scene.bucket.peek().balance is not None


def test_a_claim_is_free_again_after_a_scout_that_was_never_sent_or_a_probe_of_the_wrong_kind() -> None:
    """A scout that is cancelled has told nobody anything; neither has a probe that returns what is none."""
    scene = Scene(UNKNOWN)
    KeepaSync(scene.bucket).try_request(4).cancel()
    assert scene.next_one_probes()
    scene = Scene(UNKNOWN)
    wrong: Any = lambda: None  # noqa: E731
    with pytest.raises(ConfigError):
        KeepaSync(scene.bucket, probe=wrong).try_request(4)
    assert scene.next_one_probes()
    scene = Scene(UNKNOWN)
    scene.plot(Plot(3, strike))  # while the claim is given back
    with struck_by_signals(), pytest.raises(Struck):
        KeepaSync(scene.bucket, probe=wrong).try_request(4)
    scene.plot(None)
    assert scene.next_one_probes()
