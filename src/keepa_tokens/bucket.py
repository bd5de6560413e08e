"""The door for threads: `TokenBucket` and the `Reservation` it hands out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Self, TypeVar

from . import _plans as plans
from ._arguments import checked_key, timeout_us, whole
from ._blocking import run
from ._door import BucketBase, Door, check_limit, checked_storage, cost, decorated, new_id, struck_outcome
from ._held import ReservationBase
from ._interrupts import PutOff, interrupt_in
from .clock import Clock
from .errors import KeepaTokensError, StorageUnavailable
from .events import Listener
from .quota import Quota
from .rules.commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle
from .rules.decision import Decision, Snapshot
from .rules.reading import Reading
from .storage.base import Closing, Storage
from .storage.memory import MemoryStorage
from .units import LIMIT

P = ParamSpec("P")
T = TypeVar("T")


class TokenBucket(BucketBase[Storage], Closing):
    """An exact token bucket. Safe to share between threads; stateless, the state is in the storage.

    quota: its terms. key: its name in the storage; may be left out in memory, which no other program shares. storage:
    where it lives (default: this process's memory). clock: whose time it runs by (default: the storage's own).
    listener: told what happens and why (default: the `logging` one).
    """

    def __init__(
        self,
        quota: Quota,
        *,
        key: str | None = None,
        storage: Storage | None = None,
        clock: Clock | None = None,
        listener: Listener | None = None,
    ) -> None:
        where: Storage = MemoryStorage() if storage is None else checked_storage(storage, blocks=True)
        self._door = Door(quota, key, where, clock, listener)

    def try_acquire(self, tokens: int = 1, *, keep: int = 0) -> Decision:
        """Take `tokens` now if `keep` more stay for others, or take nothing and say why. Never waits.

        Raises CostTooLarge for more than the quota could ever admit, TypeError or ConfigError for anything but a whole
        number from 0.
        """
        door = self._door
        try:
            decision = door.at_once(tokens, keep, 0)
            if decision is not None:
                return decision
        except BaseException as error:
            BlockingSteps(door, Acquire(tokens)).undo(error)
            raise
        command = Acquire(*cost(door.quota, tokens, keep))
        return BlockingSteps(door).carried(lambda steps: plans.try_acquire(steps, command))

    def acquire(self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None) -> Decision:
        """Take `tokens`, waiting for them up to `timeout` seconds (None: as long as it takes).

        On a plain bucket without recharge, at keep 0, they are taken at once and the caller sleeps until its place
        comes: first come, first served, but a place that was given up goes to the next one who fits in. Elsewhere it
        waits in line. Interrupted, it gives them back. Raises AcquireTimeout, nothing taken, as soon as it is clear
        that the wait is endless or longer than `timeout`, mostly at once; CostTooLarge, TypeError and ConfigError as
        `try_acquire`.
        """
        patience_us = None if timeout is None else timeout_us(timeout)
        try:
            decision = self._door.at_once(tokens, keep, LIMIT)
            if decision is not None:
                return decision
        except BaseException as error:
            BlockingSteps(self._door, Acquire(tokens)).undo(error)
            raise
        tokens, keep = cost(self.quota, tokens, keep)
        return BlockingSteps(self._door).carried(lambda steps: plans.acquire(steps, tokens, keep, patience_us))

    def try_reserve(self, tokens: int = 1, *, keep: int = 0, hold_for: float = 120.0, label: str = "") -> Reservation:
        """Set `tokens` aside now for `hold_for` seconds, to be settled at the actual cost.

        A plain bucket takes them at once and gives back what was not spent. Raises NotEnoughTokens, nothing taken, with
        `retry_after` and `reason`; the rest as `try_acquire`. label: whose hold it is, for people who look at what is
        in flight.
        """
        command = self._door.reservation(tokens, keep, hold_for, label)
        return BlockingSteps(self._door).carried(lambda steps: plans.try_reserve(steps, command, self._made))

    def reserve(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None, hold_for: float = 120.0, label: str = ""
    ) -> Reservation:
        """Set `tokens` aside, waiting for them in line; the lifetime of the hold counts from the grant.

        timeout, hold_for: seconds. Raises as `acquire`; label as `try_reserve`.
        """
        patience_us = timeout_us(timeout)
        command = self._door.reservation(tokens, keep, hold_for, label, waits=patience_us != 0)
        return BlockingSteps(self._door).carried(lambda steps: plans.reserve(steps, command, patience_us, self._made))

    def take_up_to(self, tokens: int, *, keep: int = 0) -> int:
        """Take as many of `tokens` as are there above `keep`, and return how many, perhaps 0. Never waits."""
        tokens, keep = whole("tokens", tokens), whole("keep", keep)
        return BlockingSteps(self._door).carried(lambda steps: plans.take_up_to(steps, tokens, keep))

    def limit(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Return a decorator: each call of the function takes `tokens` first, and waits for them as `acquire` does.

            @bucket.limit(timeout=30)
            def fetch(url): ...

        What `acquire` raises comes out of the call, and the function is not run. Raises ConfigError for a coroutine
        function: an AsyncTokenBucket decorates those.
        """
        check_limit(self.quota, tokens, keep)
        timeout_us(timeout)

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            @wraps(decorated(function, awaited=False))
            def limited(*args: P.args, **kwargs: P.kwargs) -> T:
                self.acquire(tokens, keep=keep, timeout=timeout)
                return function(*args, **kwargs)

            return limited

        return decorate

    def pause(self, seconds: float) -> None:
        """Refuse every request for `seconds`, a day at most, in every process; 0 ends a pause.

        Nothing is taken and nothing given back; settling, cancelling and readings go on.
        """
        BlockingSteps(self._door).carry(plans.pausing(seconds))

    def reset(self) -> None:
        """Forget the bucket, and the holds in flight with it: the next caller begins a new one, on its own terms."""
        plans.deletion(self.storage)(self.key)

    def refund(self, tokens: int) -> None:
        """Give back `tokens` of a grant that was not used, up to capacity.

        Where others wait for places on a plain bucket, it may be fewer: what they were told stays true.
        """
        BlockingSteps(self._door).carry(Refund(new_id(), whole("tokens", tokens)))

    def reconcile(self, reading: Reading) -> Snapshot:
        """Take what the server reported, if it is fresh; return the bucket after it. Holds in flight stay beside it.

        Raises ConfigError on a plain bucket: it keeps its own books.
        """
        return plans.snapshot_of(BlockingSteps(self._door).carry(plans.reconciliation(self.quota, reading)))

    def peek(self, tokens: int = 1, *, keep: int = 0) -> Snapshot:
        """Return the bucket as a request for `tokens` that leaves `keep` would find it now. Takes nothing."""
        return plans.snapshot_of(BlockingSteps(self._door).carry(Peek(whole("tokens", tokens), whole("keep", keep))))

    def _made(self, command: Reserve, outcome: Outcome, waited_us: int) -> Reservation:
        return Reservation(self._door, command, outcome, waited_us)

    def with_key(self, key: str) -> TokenBucket:
        """Return the same door to another bucket."""
        other = TokenBucket(
            self.quota, key=checked_key(key), storage=self.storage, clock=self.clock, listener=self.listener
        )
        other._door.bell = self._door.bell
        return other

    def close(self) -> None:
        """Do nothing: a thread's call gives back what it took before it ends. The twin of `AsyncTokenBucket.aclose`."""


class BlockingSteps(plans.Steps[Storage]):
    """The steps of one call, for a thread: none of them suspends."""

    __slots__ = ()
    blocks = True

    def carry(self, command: Command) -> Outcome:
        """Apply `command` to the bucket, tell the listener, and return the outcome."""
        door = self.door
        now = door.now_us()  # which may raise: then nothing was sent
        self.begin(command)
        try:
            if type(door.storage) is MemoryStorage:
                self.answer = outcome = door.storage.apply(door.key, door.quota, command, now_us=now)
            else:
                with PutOff():
                    self.unsure |= command is self.request
                    self.answer = outcome = door.storage.apply(door.key, door.quota, command, now_us=now)
        except StorageUnavailable as error:
            door.away(error)
            raise
        return self.ended(command, outcome)

    def carried(self, plan: plans.Plan[T]) -> T:
        """Carry out a plan; interrupted, it gives back what it took."""
        try:
            return run(lambda: plan(self))
        except BaseException as error:
            self.undo(error)
            raise

    async def finish(self, command: Command) -> Outcome:
        """Carry out a command that counts once however often it is sent; interrupted in it, send it once more."""
        try:
            return self.carry(command)
        except BaseException as error:
            interrupt = interrupt_in(error)
            if interrupt is None:
                raise
            self._once_more(command)
            raise interrupt from None

    def undo(self, error: BaseException) -> None:
        """Give back what the call has taken if it was interrupted; raise the interrupt where `error` hides it."""
        if not (isinstance(error, StorageUnavailable) or self.leaves_something(error)):
            return
        begun, interrupt = False, None
        try:
            with PutOff(ends=True):
                begun, interrupt = True, interrupt_in(error)
                if isinstance(error, StorageUnavailable) and interrupt is None:
                    return
                self.catch_up(struck_outcome(error, self.sent))
                done = [self._once_more(command) for command in self.undoing()]
                if interrupt is not None and all(done):
                    self.door.not_given_back(self.lost(), "it was interrupted before the storage answered")
        except BaseException:
            if not begun:  # struck before signals are put off
                self.undo(error)
                return
            # What failed meanwhile has been told; what the caller sees is the first interrupt.
            if interrupt is None:
                raise
        if interrupt is not None and interrupt is not error:
            raise interrupt from None

    def _once_more(self, command: Command) -> bool:
        """Carry out what ends an interrupted call, again if that is interrupted too; False: it failed, and was told."""
        for _ in range(2):
            try:
                self.carry(command)
            except BaseException as error:  # noqa: BLE001 - what the caller sees is the first interrupt
                if interrupt_in(error) is None:
                    self.door.not_given_back(self.asked(), f"{type(error).__name__}: {error}")
                    return False
            else:
                return True
        return True

    async def apply(self, command: Command) -> Outcome:
        """Apply `command` to the bucket."""
        return self.carry(command)

    async def sleep(self, duration_us: int, spread_us: int, reason: str, *, alert: bool = True) -> int:
        """Block the thread: with a caller's clock to the end; by the machine's time only until tokens come back."""
        door = self.door
        seconds = door.sleep_seconds(duration_us, spread_us, reason)
        if door.clock is not None or not alert:
            door.sleeper.sleep(seconds)
            return duration_us
        rung, begun = threading.Event(), door.elapsed_us()
        place = self.waits(rung.set)
        try:
            rung.wait(seconds)
        finally:
            self.woken = not door.bell.leave(place)
        return door.elapsed_us() - begun if self.woken else duration_us


class Reservation(ReservationBase[Storage]):
    """Tokens set aside for one call. Settle it at what the call cost, or cancel it if it was certainly never sent.

    As a context manager: left unsettled, by an exception too, the estimate is charged; on a synced bucket when the hold
    runs out.
    """

    def settle(self, actual: int, reading: Reading | None = None) -> None:
        """End the hold: the call cost `actual` tokens, its answer carried `reading`. A second time changes nothing."""
        self._end(self._settling(actual, reading))

    def cancel(self) -> None:
        """End the hold: its tokens are free again. Only for a call that was certainly never sent."""
        self._end(Cancel(self.id))

    def _end(self, command: Settle | Cancel) -> None:
        if not self.open:
            return
        self._unwatch()  # even if interrupted, the hold is ended
        run(lambda: BlockingSteps(self._door).finish(command))
        self.open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._charged():
            self._left(kind)
            return
        try:
            self._end(self._settling(self.tokens, None))
        except KeepaTokensError:
            if kind is None:
                raise
            # The hold stays charged anyway, and the caller must see what ended the block.
