"""The door for coroutines: `AsyncTokenBucket` and the `AsyncReservation` it hands out, on the sync door's plans."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from . import _plans as plans
from ._arguments import hold_for_us, timeout_us, whole
from ._door import Door, new_id
from ._plans import Grant, Patience
from .clock import Clock
from .errors import ConfigError, NotEnoughTokens
from .events import Listener
from .quota import Quota
from .rules.commands import Acquire, Cancel, Command, Outcome, Reserve, Settle
from .rules.decision import Decision, Reason, Snapshot
from .rules.reading import Reading
from .storage.base import AsyncStorage
from .storage.memory import MemoryStorage

__all__ = ["AsyncReservation", "AsyncTokenBucket", "Pending"]


class AsyncTokenBucket:
    """`TokenBucket` for coroutines: the same names, awaited. Memory storage serves both doors at once."""

    def __init__(
        self,
        quota: Quota,
        *,
        key: str = "default",
        storage: AsyncStorage | MemoryStorage | None = None,
        clock: Clock | None = None,
        listener: Listener | None = None,
    ) -> None:
        where = MemoryStorage() if storage is None else storage
        if not isinstance(where, MemoryStorage) and not iscoroutinefunction(where.apply):
            raise ConfigError(
                f"{type(where).__name__} blocks: an AsyncTokenBucket needs an async storage, or MemoryStorage"
            )
        self._door = Door(quota, key, where, clock, listener)

    @property
    def quota(self) -> Quota:
        """The terms."""
        return self._door.quota

    @property
    def key(self) -> str:
        """The bucket's name in the storage."""
        return self._door.key

    @property
    def storage(self) -> AsyncStorage | MemoryStorage:
        """Where the bucket lives."""
        return self._door.storage

    @property
    def clock(self) -> Clock | None:
        """Whose time it runs by; None: the storage's own."""
        return self._door.clock

    @property
    def listener(self) -> Listener:
        """Who is told what happens and why."""
        return self._door.listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._door.listener = listener

    async def try_acquire(self, tokens: int = 1, *, keep: int = 0) -> Decision:
        """Take `tokens` now or say why not; as `TokenBucket.try_acquire`."""
        self.quota.check_cost(tokens, keep)
        return (await AwaitedSteps(self._door).apply(Acquire(tokens, keep))).decision()

    async def acquire(self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None) -> Decision:
        """Take `tokens`, waiting for them; as `TokenBucket.acquire`. Cancelled while it waits, it gives them back."""
        self.quota.check_cost(tokens, keep)
        steps = AwaitedSteps(self._door)
        patience = Patience(steps, timeout_us(timeout))
        return await _taken(steps, patience, Acquire(tokens, keep, wait_us=patience.left_us()))

    def try_reserve(self, tokens: int = 1, *, keep: int = 0, hold_for: float = 120.0) -> Pending[AsyncReservation]:
        """Set `tokens` aside now; as `TokenBucket.try_reserve`. Await it, or enter it with `async with`."""
        self.quota.check_cost(tokens, keep)
        command = Reserve(new_id(), tokens, hold_for_us(hold_for), keep)

        async def reservation() -> AsyncReservation:
            outcome = await AwaitedSteps(self._door).apply(command)
            if not outcome.granted:
                raise plans.refusal(NotEnoughTokens, outcome, tokens)
            return AsyncReservation(self._door, Grant(command.id, tokens, outcome.decision()))

        return Pending(reservation)

    def reserve(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None, hold_for: float = 120.0
    ) -> Pending[AsyncReservation]:
        """Set `tokens` aside, waiting for them; as `TokenBucket.reserve`. Await it, or enter it with `async with`."""
        self.quota.check_cost(tokens, keep)
        hold_us, patience_us = hold_for_us(hold_for), timeout_us(timeout)

        async def reservation() -> AsyncReservation:
            steps = AwaitedSteps(self._door)
            patience = Patience(steps, patience_us)
            command = Reserve(new_id(), tokens, hold_us, keep)
            return AsyncReservation(self._door, Grant(command.id, tokens, await _taken(steps, patience, command)))

        return Pending(reservation)

    async def refund(self, tokens: int) -> None:
        """Give `tokens` back, up to capacity; as `TokenBucket.refund`."""
        await plans.refund(AwaitedSteps(self._door), whole("tokens", tokens), new_id())

    async def reconcile(self, reading: Reading) -> Snapshot:
        """Take what the server reported, if it is fresh; as `TokenBucket.reconcile`."""
        return plans.snapshot_of(await AwaitedSteps(self._door).apply(plans.reconciliation(self.quota, reading)))

    async def peek(self, tokens: int = 1, *, keep: int = 0) -> Snapshot:
        """Return the bucket as a request for `tokens` beside `keep` would find it now. Takes nothing."""
        return plans.snapshot_of(await AwaitedSteps(self._door).apply(plans.look(tokens, keep)))

    def with_key(self, key: str) -> AsyncTokenBucket:
        """Return the same door to another bucket."""
        return AsyncTokenBucket(self.quota, key=key, storage=self.storage, clock=self.clock, listener=self.listener)

    def __repr__(self) -> str:
        return self._door.described(type(self).__name__)


class AwaitedSteps:
    """The steps of one call, for a coroutine."""

    __slots__ = ("door", "outcome")

    def __init__(self, door: Door[AsyncStorage | MemoryStorage]) -> None:
        self.door = door
        self.outcome: Outcome | None = None

    async def apply(self, command: Command) -> Outcome:
        """Carry `command` to the bucket, tell the listener, and return what it came to."""
        door = self.door
        self.outcome = None
        if isinstance(door.storage, MemoryStorage):
            # It holds its lock for microseconds and waits for nothing else.
            outcome = door.storage.apply(door.key, door.quota, command, now_us=door.now_us())
        else:
            outcome = await door.storage.apply(door.key, door.quota, command, now_us=door.now_us())
        self.outcome = outcome
        door.tell(command, outcome)
        return outcome

    async def sleep(self, duration_us: int, spread_us: int, reason: Reason) -> None:
        """Suspend the coroutine."""
        await self.door.sleeper.asleep(self.door.pause(duration_us, spread_us, reason))

    def elapsed_us(self) -> int:
        """Return the time by which timeouts are measured."""
        return self.door.elapsed_us()


def async_door_of(bucket: AsyncTokenBucket) -> Door[AsyncStorage | MemoryStorage]:
    """Return the inside of a bucket, for the other doors of this library."""
    return bucket._door  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the library's own


async def _taken(steps: AwaitedSteps, patience: Patience, command: Acquire | Reserve) -> Decision:
    """Carry out a door that waits: the first step at once, whatever comes after it as a plan."""
    try:
        outcome = await steps.apply(command)
        return await plans.wait(steps, steps.door.quota, patience, command, outcome)
    except BaseException as error:
        await plans.give_back(steps, command, error, new_id())
        raise


class AsyncReservation:
    """`Reservation` for coroutines. As an async context manager: left unsettled, the estimate stays charged."""

    def __init__(self, door: Door[AsyncStorage | MemoryStorage], grant: Grant) -> None:
        self._door = door
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.open = True

    async def settle(self, actual: int, reading: Reading | None = None) -> None:
        """End the hold at its `actual` cost; as `Reservation.settle`."""
        await self._end(Settle(self.id, whole("actual", actual), reading))

    async def cancel(self) -> None:
        """End the hold of a call that was certainly never sent; as `Reservation.cancel`."""
        await self._end(Cancel(self.id))

    async def _end(self, command: Settle | Cancel) -> None:
        await AwaitedSteps(self._door).apply(command)
        self.open = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        command = plans.on_leaving(self._door.quota, self.id)
        if self.open and command is not None:
            await AwaitedSteps(self._door).apply(command)

    def __repr__(self) -> str:
        return f"AsyncReservation(id={self.id!r}, tokens={self.tokens}, open={self.open})"


class _Entered(Protocol):
    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


E = TypeVar("E", bound=_Entered)


class Pending(Generic[E]):
    """What is there once awaited: `x = await pending`, or `async with pending as x`. Use it once."""

    __slots__ = ("_entered", "_make")

    def __init__(self, make: Callable[[], Awaitable[E]]) -> None:
        self._make = make
        self._entered: E | None = None

    def __await__(self) -> Generator[None, None, E]:
        return self._make().__await__()

    async def __aenter__(self) -> E:
        self._entered = await self
        return await self._entered.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered is not None:
            await self._entered.__aexit__(kind, error, trace)
