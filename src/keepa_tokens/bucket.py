"""The door for threads: `TokenBucket` and the `Reservation` it hands out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Self, TypeVar

from . import _plans as plans
from ._arguments import timeout_us, whole
from ._blocking import run
from ._door import BucketBase, Door, DoorSteps, Reserved, blocking, came_to, cost, decorated, new_id
from ._interrupts import PutOff, interrupt_in
from ._plans import Grant, Patience
from .clock import Clock
from .errors import KeepaTokensError, StorageUnavailable
from .events import Listener
from .quota import Quota
from .rules.commands import Acquire, Cancel, Command, Outcome, Refund, Reserve, Settle
from .rules.decision import Decision, Snapshot
from .rules.reading import Reading
from .storage.base import Closing, Storage
from .storage.memory import MemoryStorage
from .units import LIMIT

P = ParamSpec("P")
T = TypeVar("T")


class TokenBucket(BucketBase[Storage], Closing):
    """An exact token bucket. Safe to share between threads; stateless, the state is in the storage.

    quota: its terms. key: its name in the storage. storage: where it lives (default: this process's memory).
    clock: whose time it runs by (default: the storage's own). listener: told what happens and why (default: the
    `logging` one).
    """

    def __init__(
        self,
        quota: Quota,
        *,
        key: str = "default",
        storage: Storage | None = None,
        clock: Clock | None = None,
        listener: Listener | None = None,
    ) -> None:
        where: Storage = MemoryStorage() if storage is None else blocking(storage)
        self._door = Door(quota, key, where, clock, listener)

    def try_acquire(self, tokens: int = 1, *, keep: int = 0) -> Decision:
        """Take `tokens` now if `keep` more stay for others, or take nothing and say why. Never waits.

        Raises CostTooLarge for more than the quota could ever admit, TypeError or ConfigError for no whole
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
        tokens, keep = cost(door.quota, tokens, keep)
        steps = BlockingSteps(door)
        try:
            return steps.carry(Acquire(tokens, keep)).decision()
        except BaseException as error:
            steps.undo(error)
            raise

    def acquire(self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None) -> Decision:
        """Take `tokens`, waiting for them up to `timeout` seconds (None: as long as it takes).

        On a plain bucket without recharge, at keep 0, they are taken at once and the caller sleeps until its
        place comes: first come, first served. Interrupted, it gives them back. Raises AcquireTimeout at once,
        nothing taken, when the wait would be longer than `timeout` or endless; CostTooLarge, TypeError and
        ConfigError as `try_acquire`.
        """
        if timeout is None:
            try:
                decision = self._door.at_once(tokens, keep, LIMIT)
                if decision is not None:
                    return decision
            except BaseException as error:
                BlockingSteps(self._door, Acquire(tokens)).undo(error)
                raise
        tokens, keep = cost(self.quota, tokens, keep)
        steps = BlockingSteps(self._door)
        patience = Patience(steps, timeout_us(timeout))
        command = Acquire(tokens, keep, patience.left_us(), ticket=plans.ticket_for(new_id(), patience.left_us()))
        try:
            return steps.waited(patience, command)
        except BaseException as error:
            steps.undo(error)
            raise

    def try_reserve(self, tokens: int = 1, *, keep: int = 0, hold_for: float = 120.0, label: str = "") -> Reservation:
        """Set `tokens` aside now for `hold_for` seconds, to be settled at the actual cost.

        A plain bucket takes them at once and gives back what was not spent. Raises NotEnoughTokens, nothing taken, with
        `retry_after` and `reason`; the rest as `try_acquire`. label: whose hold it is, for people who look at what is
        in flight.
        """
        command = self._door.reservation(tokens, keep, hold_for, label)
        steps = BlockingSteps(self._door)
        try:
            return Reservation(self._door, plans.granted(command, steps.carry(command)))
        except BaseException as error:
            steps.undo(error)
            raise

    def reserve(
        self,
        tokens: int = 1,
        *,
        keep: int = 0,
        timeout: float | None = None,
        hold_for: float = 120.0,
        label: str = "",
    ) -> Reservation:
        """Set `tokens` aside, waiting for them in line; the lifetime of the hold counts from the grant.

        timeout, hold_for: seconds. Raises as `acquire`; label as `try_reserve`.
        """
        steps = BlockingSteps(self._door)
        patience = Patience(steps, timeout_us(timeout))
        command = self._door.reservation(tokens, keep, hold_for, label, patience)
        try:
            return Reservation(self._door, Grant.of(command, steps.waited(patience, command)))
        except BaseException as error:
            steps.undo(error)
            raise

    def take_up_to(self, tokens: int, *, keep: int = 0) -> int:
        """Take as many of `tokens` as are there beside `keep`, and return how many; 0 is none. Never waits."""
        tokens, keep = whole("tokens", tokens), whole("keep", keep)
        for _ in range(plans.TRIES):
            some = plans.there(self.peek(), tokens, keep)
            if some == 0 or self.try_acquire(some, keep=keep):
                return some
        return 0

    def limit(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Return a decorator: each call of the function takes `tokens` first, and waits for them as `acquire` does.

            @bucket.limit(timeout=30)
            def fetch(url): ...

        What `acquire` raises comes out of the call, and the function is not run. Raises ConfigError for a coroutine
        function: an AsyncTokenBucket decorates those.
        """
        cost(self.quota, tokens, keep)
        timeout_us(timeout)

        def decorate(function: Callable[P, T]) -> Callable[P, T]:
            @wraps(decorated(function, suspends=False))
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
        """Give `tokens` back, up to capacity: of a grant that was not used."""
        BlockingSteps(self._door).carry(Refund(new_id(), whole("tokens", tokens)))

    def reconcile(self, reading: Reading) -> Snapshot:
        """Take what the server reported, if it is fresh; return the bucket after it. Holds in flight stay beside it.

        Raises ConfigError on a plain bucket: it keeps its own books.
        """
        return plans.snapshot_of(BlockingSteps(self._door).carry(plans.reconciliation(self.quota, reading)))

    def peek(self, tokens: int = 1, *, keep: int = 0) -> Snapshot:
        """Return the bucket as a request for `tokens` beside `keep` would find it now. Takes nothing."""
        return plans.snapshot_of(BlockingSteps(self._door).carry(plans.look(tokens, keep)))

    def with_key(self, key: str) -> TokenBucket:
        """Return the same door to another bucket."""
        other = TokenBucket(self.quota, key=key, storage=self.storage, clock=self.clock, listener=self.listener)
        other._door.bell = self._door.bell
        return other

    def close(self) -> None:
        """Do nothing: a thread's call gives back what it took before it ends. The twin of `AsyncTokenBucket.aclose`."""


class BlockingSteps(DoorSteps[Storage]):
    """The steps of one call, for a thread: none of them suspends."""

    __slots__ = ()

    def carry(self, command: Command) -> Outcome:
        """Carry `command` to the bucket, tell the listener, and return what it came to."""
        door = self.door
        self.sends(command)
        try:
            if type(door.storage) is MemoryStorage:
                self.came = outcome = door.storage.apply(door.key, door.quota, command, now_us=door.now_us())
            else:
                with PutOff():
                    self.unsure |= command is self.request
                    self.came = outcome = door.storage.apply(door.key, door.quota, command, now_us=door.now_us())
        except StorageUnavailable as error:
            door.away(error)
            raise
        return self.ended(command, outcome)

    def waited(self, patience: Patience, command: Acquire | Reserve) -> Decision:
        """Carry out a door that waits: the first step at once, whatever comes after it as a plan."""
        outcome = self.carry(command)
        if outcome.granted and not outcome.place_us:
            return outcome.decision()
        return run(lambda: plans.wait(self, self.door.quota, patience, command, outcome))

    def end(self, command: Command) -> Outcome:
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
        if isinstance(error, KeepaTokensError) and not (isinstance(error, StorageUnavailable) or self.is_probes(error)):
            return
        interrupt = interrupt_in(error)
        if isinstance(error, StorageUnavailable) and interrupt is None:
            return
        try:
            with PutOff(ends=True):
                self.recall(came_to(error, self.sent))
                done = [self._once_more(command) for command in self.undoing(new_id())]
                if interrupt is not None and all(done) and self.lost():
                    self.door.not_given_back(self.lost(), "it was interrupted before the storage answered")
        except BaseException as another:
            # Whatever struck meanwhile has been told so; what the caller sees is the first interrupt.
            if interrupt is None or interrupt_in(another) is None:
                raise
        if interrupt is not None and interrupt is not error:
            raise interrupt from None

    def _once_more(self, command: Command) -> bool:
        """Carry out what ends an interrupted call, once more if that is interrupted too; False: its error is told."""
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
        """Carry `command` to the bucket."""
        return self.carry(command)

    async def finish(self, command: Command) -> Outcome:
        """Carry out a command that counts once however often it is sent."""
        return self.end(command)

    async def sleep(self, duration_us: int, spread_us: int, reason: str, *, alert: bool = True) -> int:
        """Block the thread; with a caller's clock to the end, by the machine's time until tokens come back."""
        door = self.door
        seconds = door.pause(duration_us, spread_us, reason)
        if door.clock is not None or not alert:
            door.sleeper.sleep(seconds)
            return duration_us
        rung, begun = threading.Event(), door.elapsed_us()
        place = door.bell.wait(door.key, rung.set, self.rank(door.bell))
        try:
            self.woken = rung.wait(seconds)
        finally:
            if not door.bell.leave(place) and not self.woken:
                # Rung at the last moment: what came back may serve somebody else.
                door.bell.ring(door.key)
        return door.elapsed_us() - begun if self.woken else duration_us


def door_of(bucket: TokenBucket) -> Door[Storage]:
    """Return the inside of a bucket, for the other doors of this library."""
    return bucket._door  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the library's own


class Reservation(Reserved[Storage]):
    """Tokens set aside for one call. Settle it at what the call cost, or cancel it if it was certainly never sent.

    As a context manager: left unsettled, by an exception too, the estimate stays charged.
    """

    def settle(self, actual: int, reading: Reading | None = None) -> None:
        """End the hold: the call cost `actual` tokens, its answer carried `reading`. A second time changes nothing."""
        self._end(self._settling(actual, reading))

    def cancel(self) -> None:
        """End the hold: its tokens are free again. Only for a call that was certainly never sent."""
        self._end(Cancel(self.id))

    def _end(self, command: Settle | Cancel) -> None:
        BlockingSteps(self._door).end(command)
        self._ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        command = self._left(kind)
        if command is not None:
            self._end(command)
