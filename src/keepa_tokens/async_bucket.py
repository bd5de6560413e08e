"""The door for coroutines: `AsyncTokenBucket` and the `AsyncReservation` it hands out, on the sync door's plans."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from . import plans
from .clock import Clock
from .door import Door, new_id
from .errors import ConfigError
from .events import Listener
from .plans import Apply, Grant, Plan, Sleep
from .quota import Quota
from .rules.commands import Cancel, Command, Outcome, Settle
from .rules.decision import Decision, Snapshot
from .rules.reading import Reading
from .storage.base import AsyncStorage
from .storage.memory import MemoryStorage
from .units import whole

__all__ = ["AsyncReservation", "AsyncTokenBucket", "Pending"]

T = TypeVar("T")


class AsyncTokenBucket(Door):
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
        super().__init__(quota, key, clock, listener)
        self.storage: AsyncStorage = _awaited(MemoryStorage() if storage is None else storage)

    async def try_acquire(self, tokens: int = 1, *, keep: int = 0) -> Decision:
        """Take `tokens` now or say why not; as `TokenBucket.try_acquire`."""
        return await self.run(plans.try_acquire(self.quota, tokens, keep))

    async def acquire(self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None) -> Decision:
        """Take `tokens`, waiting for them; as `TokenBucket.acquire`. Cancelled while it waits, it gives them back."""
        return await self.run(plans.acquire(self.quota, tokens, keep, plans.timeout_us(timeout), new_id()))

    def try_reserve(self, tokens: int = 1, *, keep: int = 0, hold_for: float = 120.0) -> Pending[AsyncReservation]:
        """Set `tokens` aside now; as `TokenBucket.try_reserve`. Await it, or enter it with `async with`."""
        plan = plans.try_reserve(self.quota, tokens, keep, plans.hold_for_us(hold_for), new_id())
        return Pending(lambda: self._reservation(plan))

    def reserve(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None, hold_for: float = 120.0
    ) -> Pending[AsyncReservation]:
        """Set `tokens` aside, waiting for them; as `TokenBucket.reserve`. Await it, or enter it with `async with`."""
        plan = plans.reserve(self.quota, tokens, keep, plans.timeout_us(timeout), plans.hold_for_us(hold_for), new_id())
        return Pending(lambda: self._reservation(plan))

    async def refund(self, tokens: int) -> None:
        """Give `tokens` back, up to capacity; as `TokenBucket.refund`."""
        await self.run(plans.refund(tokens, new_id()))

    async def reconcile(self, reading: Reading) -> Snapshot:
        """Take what the server reported, if it is fresh; as `TokenBucket.reconcile`."""
        return plans.snapshot_of(await self.apply(plans.reconciliation(self.quota, reading)))

    async def peek(self, tokens: int = 1, *, keep: int = 0) -> Snapshot:
        """Return the bucket as a request for `tokens` beside `keep` would find it now. Takes nothing."""
        return await self.run(plans.peek(tokens, keep))

    def with_key(self, key: str) -> AsyncTokenBucket:
        """Return the same door to another bucket."""
        return AsyncTokenBucket(self.quota, key=key, storage=self.storage, clock=self.clock, listener=self.listener)

    async def apply(self, command: Command) -> Outcome:
        """Carry one command to the bucket and tell the listener what came of it."""
        outcome = await self.storage.apply(self.key, self.quota, command, now_us=self.now_us())
        self.tell(command, outcome)
        return outcome

    async def run(self, plan: Plan[T]) -> T:
        """Carry out a plan of `plans`, sleeping by the bucket's clock."""
        return await plans.adrive(plan, self.carry_out)

    async def carry_out(self, verb: object) -> object:
        """Carry out one verb of a plan."""
        match verb:
            case Apply(command):
                return await self.apply(command)
            case Sleep():
                await self.sleeper.asleep(self.pause(verb))
                return None
            case _:
                raise plans.unknown_verb(verb)

    async def _reservation(self, plan: Plan[Grant]) -> AsyncReservation:
        return AsyncReservation(self, await self.run(plan))


class AsyncReservation:
    """`Reservation` for coroutines. As an async context manager: left unsettled, the estimate stays charged."""

    def __init__(self, bucket: AsyncTokenBucket, grant: Grant) -> None:
        self._bucket = bucket
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.open = True

    async def settle(self, actual: int, reading: Reading | None = None) -> None:
        """End the hold at its `actual` cost; as `Reservation.settle`."""
        whole("actual", actual)
        await self._bucket.apply(Settle(self.id, actual, reading))
        self.open = False

    async def cancel(self) -> None:
        """End the hold of a call that was certainly never sent; as `Reservation.cancel`."""
        await self._bucket.apply(Cancel(self.id))
        self.open = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        command = plans.on_leaving(self._bucket.quota, self.id)
        if self.open and command is not None:
            await self._bucket.apply(command)

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


class _AwaitedMemory:
    """Memory storage as coroutines see it: a step holds its lock for microseconds and never waits for anything else."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        return self.storage.apply(key, quota, command, now_us=now_us)

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        return self.storage.inspect(key, now_us=now_us)

    async def keys(self) -> AsyncIterator[str]:
        for key in self.storage.keys():  # noqa: SIM118 - a storage is no dict
            yield key

    async def aclose(self) -> None:
        self.storage.close()


def _awaited(storage: AsyncStorage | MemoryStorage) -> AsyncStorage:
    if isinstance(storage, MemoryStorage):
        return _AwaitedMemory(storage)
    if not iscoroutinefunction(storage.apply):
        msg = f"{type(storage).__name__} blocks: an AsyncTokenBucket needs an async storage, or MemoryStorage"
        raise ConfigError(msg)
    return storage
