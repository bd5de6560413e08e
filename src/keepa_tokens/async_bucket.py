"""The door for coroutines: `AsyncTokenBucket` and the `AsyncReservation` it hands out, on the sync door's plans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from functools import wraps
from inspect import isawaitable
from threading import get_ident
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast

from . import _plans as plans
from ._arguments import checked_key, timeout_us, whole
from ._bell import Stand
from ._door import BucketBase, Door, check_limit, checked_storage, cost, decorated, new_id, struck_outcome
from ._held import ReservationBase
from ._loops import limited, nap, on_trio, shielded, sleep
from ._places import Waiter
from .clock import Clock
from .errors import KeepaTokensError, StorageUnavailable
from .events import Listener
from .quota import Quota
from .rules.commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle
from .rules.decision import Decision, Reason, Snapshot
from .rules.reading import Reading
from .storage.base import AsyncClosing, AsyncStorage
from .storage.memory import MemoryStorage
from .units import LIMIT, MICROSECONDS

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_S = 3.0
"""How long an interrupted call waits until what it had taken is given back; then that goes on in the background."""

CLEANUP_S = 5.0
"""The longest that each step of a clean-up may take."""


class AsyncTokenBucket(BucketBase[AsyncStorage | MemoryStorage], AsyncClosing):
    """`TokenBucket` for coroutines: the same names, awaited. Memory storage serves both doors at once."""

    def __init__(
        self,
        quota: Quota,
        *,
        key: str | None = None,
        storage: AsyncStorage | MemoryStorage | None = None,
        clock: Clock | None = None,
        listener: Listener | None = None,
    ) -> None:
        where = MemoryStorage() if storage is None else checked_storage(storage, blocks=False)
        self._door = Door(quota, key, where, clock, listener)

    async def try_acquire(self, tokens: int = 1, *, keep: int = 0) -> Decision:
        """Take `tokens` now or say why not; as `TokenBucket.try_acquire`."""
        try:
            decision = self._door.at_once(tokens, keep, 0)
            if decision is not None:
                return decision
        except BaseException as error:
            await AwaitedSteps(self._door, Acquire(tokens)).undo(error)
            raise
        command = Acquire(*cost(self.quota, tokens, keep))
        return await AwaitedSteps(self._door).carried(lambda steps: plans.try_acquire(steps, command))

    async def acquire(self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None) -> Decision:
        """Take `tokens`, waiting for them; as `TokenBucket.acquire`. Cancelled while it waits, it gives them back."""
        patience_us = None if timeout is None else timeout_us(timeout)
        try:
            decision = self._door.at_once(tokens, keep, LIMIT)
            if decision is not None:
                return decision
        except BaseException as error:
            await AwaitedSteps(self._door, Acquire(tokens)).undo(error)
            raise
        tokens, keep = cost(self.quota, tokens, keep)
        return await AwaitedSteps(self._door).carried(lambda steps: plans.acquire(steps, tokens, keep, patience_us))

    def try_reserve(
        self, tokens: int = 1, *, keep: int = 0, hold_for: float = 120.0, label: str = ""
    ) -> Pending[AsyncReservation]:
        """Set `tokens` aside now; as `TokenBucket.try_reserve`. Await it, or enter it with `async with`."""
        command = self._door.reservation(tokens, keep, hold_for, label)
        pending = AwaitedSteps(self._door).carried(lambda steps: plans.try_reserve(steps, command, self._made))
        return Pending("AsyncTokenBucket.try_reserve", pending)

    def reserve(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None, hold_for: float = 120.0, label: str = ""
    ) -> Pending[AsyncReservation]:
        """Set `tokens` aside, waiting for them; as `TokenBucket.reserve`. Await it, or enter it with `async with`."""
        patience_us = timeout_us(timeout)
        command = self._door.reservation(tokens, keep, hold_for, label, waits=patience_us != 0)
        pending = AwaitedSteps(self._door).carried(lambda steps: plans.reserve(steps, command, patience_us, self._made))
        return Pending("AsyncTokenBucket.reserve", pending)

    async def take_up_to(self, tokens: int, *, keep: int = 0) -> int:
        """Take as many of `tokens` as are there above `keep`; as `TokenBucket.take_up_to`."""
        tokens, keep = whole("tokens", tokens), whole("keep", keep)
        return await AwaitedSteps(self._door).carried(lambda steps: plans.take_up_to(steps, tokens, keep))

    def limit(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None
    ) -> Callable[[Callable[P, Coroutine[object, object, T]]], Callable[P, Coroutine[object, object, T]]]:
        """Return a decorator of coroutine functions; as `TokenBucket.limit`, which decorates all others."""
        check_limit(self.quota, tokens, keep)
        timeout_us(timeout)

        def decorate(function: Callable[P, Coroutine[object, object, T]]) -> Callable[P, Coroutine[object, object, T]]:
            @wraps(decorated(function, awaited=True))
            async def limited(*args: P.args, **kwargs: P.kwargs) -> T:
                await self.acquire(tokens, keep=keep, timeout=timeout)
                return await function(*args, **kwargs)

            return limited

        return decorate

    async def pause(self, seconds: float) -> None:
        """Refuse every request for `seconds`, a day at most; as `TokenBucket.pause`."""
        await AwaitedSteps(self._door).apply(plans.pausing(seconds))

    async def reset(self) -> None:
        """Forget the bucket; as `TokenBucket.reset`."""
        gone = plans.deletion(self.storage)(self.key)
        if isawaitable(gone):
            await gone

    async def refund(self, tokens: int) -> None:
        """Give `tokens` back, up to capacity; as `TokenBucket.refund`."""
        await AwaitedSteps(self._door).apply(Refund(new_id(), whole("tokens", tokens)))

    async def reconcile(self, reading: Reading) -> Snapshot:
        """Take what the server reported, if it is fresh; as `TokenBucket.reconcile`."""
        return plans.snapshot_of(await AwaitedSteps(self._door).apply(plans.reconciliation(self.quota, reading)))

    async def peek(self, tokens: int = 1, *, keep: int = 0) -> Snapshot:
        """Return the bucket as a request for `tokens` that leaves `keep` would find it now. Takes nothing."""
        look = Peek(whole("tokens", tokens), whole("keep", keep))
        return plans.snapshot_of(await AwaitedSteps(self._door).apply(look))

    def _made(self, command: Reserve, outcome: Outcome, waited_us: int) -> AsyncReservation:
        return AsyncReservation(self._door, command, outcome, waited_us)

    def with_key(self, key: str) -> AsyncTokenBucket:
        """Return the same door to another bucket."""
        other = AsyncTokenBucket(
            self.quota, key=checked_key(key), storage=self.storage, clock=self.clock, listener=self.listener
        )
        other._door.under_way, other._door.bell = self._door.under_way, self._door.bell
        return other

    async def aclose(self) -> None:
        """Wait for what interrupted calls still give back. The storage is closed by whoever opened it."""
        while self._door.under_way:
            await asyncio.wait(self._door.under_way)


class AwaitedSteps(plans.Steps[AsyncStorage | MemoryStorage]):
    """The steps of one call, for a coroutine.

    A step at a storage that may suspend runs in a task of its own. If the call is interrupted meanwhile, the step ends
    before anything is undone: only then is it known what there is to undo.
    """

    __slots__ = ("_step",)
    blocks = False

    def __init__(self, door: Door[AsyncStorage | MemoryStorage], taking: Acquire | None = None) -> None:
        super().__init__(door, taking)
        self._step: asyncio.Task[Outcome] | None = None

    async def apply(self, command: Command) -> Outcome:
        """Apply `command` to the bucket, tell the listener, and return the outcome."""
        now = self.door.now_us()  # which may raise: then nothing was sent
        self.begin(command)
        self.unsure = type(self.door.storage) is not MemoryStorage
        if isinstance(self.door.storage, MemoryStorage):
            self.answer = outcome = await self._applied(command, now)
        elif on_trio():
            with shielded(CLEANUP_S):
                self.answer = outcome = await self._applied(command, now)
        else:
            self._step = task = asyncio.get_running_loop().create_task(self._applied(command, now))
            try:
                self.answer = outcome = await asyncio.shield(task)
            except BaseException:
                if not task.done():
                    self._leave_running(task)
                raise
        return self.ended(command, outcome)

    async def carried(self, plan: plans.Plan[T]) -> T:
        """Carry out a plan; interrupted, it gives back what it took."""
        try:
            return await plan(self)
        except BaseException as error:
            await self.undo(error)
            raise

    async def turn(self) -> None:
        """Let the other coroutines have their turn."""
        await sleep(0)

    async def finish(self, command: Command) -> Outcome:
        """Carry out a command that counts once however often it is sent; interrupted in it, let it end."""
        try:
            return await self.apply(command)
        except BaseException as error:
            await self._afterwards(error, self._let_end)
            raise

    async def undo(self, error: BaseException) -> None:
        """Give back what the call has taken if it was interrupted."""
        if self.leaves_something(error):
            self.catch_up(struck_outcome(error, self.sent))
            await self._afterwards(error, self._give_back)

    async def sleep(self, duration_us: int, spread_us: int, reason: str, *, alert: bool = True) -> int:
        """Suspend the coroutine until its time has come, or tokens come back."""
        door = self.door
        seconds = door.sleep_seconds(duration_us, spread_us, reason)
        if not alert:
            await door.sleeper.asleep(seconds)
            return duration_us
        begun, places = door.elapsed_us(), list[Stand]()
        try:
            await nap(door.sleeper.asleep(seconds), lambda wake: places.append(self.waits(wake)))
        finally:
            for place in places:
                self.woken = not door.bell.leave(place)
        # A caller's clock may have been set meanwhile.
        return max(0, min(duration_us, door.elapsed_us() - begun)) if self.woken else duration_us

    async def in_place(self, outcome: Outcome, tokens: int) -> int:
        """Suspend until the place has come, or a nearer one that another coroutine gave up."""
        door, begun, us = self.door, self.door.elapsed_us(), outcome.place_us
        # Each by its own offset to the bucket's clock: who is held up before it sleeps is no sign of the order.
        waiter, offset_us = Waiter(outcome.now_us + us), begun - outcome.now_us
        places = door.bell.places(tokens, waiter.place, door.key, id(door.clock), get_ident())
        try:
            places.wait(waiter)
            door.sleep_seconds(us, 0, Reason.EMPTY)
            # A caller's clock may be set back meanwhile: nobody sleeps longer at a time than it was told.
            while (left_us := min(us, waiter.place + offset_us - door.elapsed_us())) > 0:
                if not await nap(door.sleeper.asleep(left_us / MICROSECONDS), waiter.woken_by):
                    break
        except BaseException:
            places.give_up(waiter)
            self.outcome = replace(outcome, place_us=waiter.place - outcome.now_us)
            raise
        places.leave(waiter)
        return max(0, min(us, door.elapsed_us() - begun))

    async def _afterwards(self, error: BaseException, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Carry `work` out although the caller is interrupted.

        The caller waits for the work for a while, unless it is interrupted again; then the work goes on in the
        background.
        """
        if isinstance(self.door.storage, MemoryStorage):
            # Nothing of it suspends, so it works where nothing can be awaited any more, too.
            await work()
        elif isinstance(error, GeneratorExit):
            # The coroutine was closed, and may await nothing more.
            try:
                self._leave_running(asyncio.get_running_loop().create_task(work()))
            except RuntimeError:
                self.door.not_given_back(self.asked(), "its event loop is gone")
        elif on_trio():
            with shielded(PATIENCE_S):
                await work()
        else:
            task = asyncio.get_running_loop().create_task(work())
            self._leave_running(task)
            with shielded(PATIENCE_S), suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=PATIENCE_S)

    def _leave_running(self, task: asyncio.Task[Any]) -> None:
        """Let `aclose` wait for a task whose caller doesn't. Its error is told already, or matters to nobody."""
        under_way = self.door.under_way

        def over(task: asyncio.Task[Any]) -> None:
            under_way.discard(task)
            if not task.cancelled():
                task.exception()

        under_way.add(task)
        task.add_done_callback(over)

    async def _let_end(self) -> None:
        task = self._step
        if task is None or self.sent is None:
            return
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=CLEANUP_S)
        if task.done() and not task.cancelled() and task.exception() is None:
            self.ended(self.sent, task.result())
        task.cancel()

    async def _give_back(self) -> None:
        """Let the step under way end, then give back what was taken. What fails is told."""
        await self._let_end()
        done = [await self._once_more(command) for command in self.undoing()]
        if all(done):
            self.door.not_given_back(self.lost(), "the storage did not answer")

    async def _once_more(self, command: Command) -> bool:
        # `limited` needs a loop that runs; in memory this must work without one, too.
        in_memory = isinstance(self.door.storage, MemoryStorage)
        for _ in range(2):
            try:
                async with nullcontext() if in_memory else limited(CLEANUP_S):
                    self.ended(command, await self._applied(command, self.door.now_us()))
            except Exception as error:  # noqa: BLE001 - what the caller sees is what interrupted it
                self.door.not_given_back(self.asked(), f"{type(error).__name__}: {error}")
                return False
            except asyncio.CancelledError:
                # The loop is being shut down: try once more, then give up.
                continue
            else:
                return True
        return True

    async def _applied(self, command: Command, now: int | None) -> Outcome:
        door = self.door
        # Memory storage holds its lock for microseconds and waits for nothing else.
        try:
            if isinstance(door.storage, MemoryStorage):
                return door.storage.apply(door.key, door.quota, command, now_us=now)
            return await door.storage.apply(door.key, door.quota, command, now_us=now)
        except StorageUnavailable as error:
            door.away(error)
            raise


class AsyncReservation(ReservationBase[AsyncStorage | MemoryStorage]):
    """`Reservation` for coroutines; as an async context manager, too."""

    async def settle(self, actual: int, reading: Reading | None = None) -> None:
        """End the hold at its `actual` cost; as `Reservation.settle`."""
        await self._end(self._settling(actual, reading))

    async def cancel(self) -> None:
        """End the hold of a call that was certainly never sent; as `Reservation.cancel`."""
        await self._end(Cancel(self.id))

    async def _end(self, command: Settle | Cancel) -> None:
        if not self.open:
            return
        self._unwatch()  # even if interrupted, the hold is ended
        await AwaitedSteps(self._door).finish(command)
        self.open = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._charged():
            self._left(kind)
            return
        try:
            await self._end(self._settling(self.tokens, None))
        except KeepaTokensError:
            if kind is None:
                raise
            # The hold stays charged anyway, and the caller must see what ended the block.


E = TypeVar("E", bound=AbstractAsyncContextManager[object])


class Pending(Coroutine[object, object, E]):
    """A result to be awaited, once: `x = await pending`, or `async with pending as x`. A task can be made of it."""

    __slots__ = ("_coroutine", "_entered")

    def __init__(self, name: str, coroutine: Coroutine[object, object, E]) -> None:
        # By this name Python warns of one that is never awaited.
        cast("CoroutineType[Any, Any, E]", coroutine).__qualname__ = name
        self._coroutine = coroutine
        self._entered: E | None = None

    if not TYPE_CHECKING:  # which must see where an await is missing

        def __getattr__(self, name: str) -> object:
            # What asyncio shows of a task: its name, and where it waits.
            return getattr(object.__getattribute__(self, "_coroutine"), name)

    def __await__(self) -> Generator[object, object, E]:
        return self._coroutine.__await__()

    def send(self, value: object, /) -> object:
        """Go on; as of any coroutine."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> object:  # noqa: ANN401 - what any coroutine takes
        """Raise in it; as of any coroutine."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """End it; as of any coroutine."""
        self._coroutine.close()

    async def __aenter__(self) -> E:
        self._entered = await self
        await self._entered.__aenter__()
        return self._entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered is not None:
            await self._entered.__aexit__(kind, error, trace)
