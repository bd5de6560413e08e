"""The door for threads: `TokenBucket` and the `Reservation` it hands out."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

from . import plans
from .clock import Clock
from .door import Door, new_id
from .events import Listener
from .plans import Apply, Grant, Plan, Sleep
from .quota import Quota
from .rules.commands import Cancel, Command, Outcome, Settle
from .rules.decision import Decision, Snapshot
from .rules.reading import Reading
from .storage.base import Storage
from .storage.memory import MemoryStorage
from .units import whole

__all__ = ["Reservation", "TokenBucket"]

T = TypeVar("T")


class TokenBucket(Door):
    """An exact token bucket. Safe to share between threads; holds nothing but where the bucket lives.

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
        super().__init__(quota, key, clock, listener)
        self.storage: Storage = MemoryStorage() if storage is None else storage

    def try_acquire(self, tokens: int = 1, *, keep: int = 0) -> Decision:
        """Take `tokens` now if `keep` more stay for others, or take nothing and say why. Never waits.

        Raises CostTooLarge for more than the quota could ever admit, TypeError or ConfigError for no whole
        number from 0.
        """
        return self.run(plans.try_acquire(self.quota, tokens, keep))

    def acquire(self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None) -> Decision:
        """Take `tokens`, waiting for them up to `timeout` seconds (None: as long as it takes).

        On a plain bucket without recharge, at keep 0, they are taken at once and the caller sleeps until its
        place comes: first come, first served. Interrupted, it gives them back. Raises AcquireTimeout at once,
        nothing taken, when the wait would be longer than `timeout` or endless; CostTooLarge, TypeError and
        ConfigError as `try_acquire`.
        """
        return self.run(plans.acquire(self.quota, tokens, keep, plans.timeout_us(timeout), new_id()))

    def try_reserve(self, tokens: int = 1, *, keep: int = 0, hold_for: float = 120.0) -> Reservation:
        """Set `tokens` aside now for `hold_for` seconds, to be settled at the actual cost.

        Raises NotEnoughTokens, nothing taken, with `retry_after` and `reason`; the rest as `try_acquire`.
        """
        plan = plans.try_reserve(self.quota, tokens, keep, plans.hold_for_us(hold_for), new_id())
        return Reservation(self, self.run(plan))

    def reserve(
        self, tokens: int = 1, *, keep: int = 0, timeout: float | None = None, hold_for: float = 120.0
    ) -> Reservation:
        """Set `tokens` aside, waiting for them as `acquire` does; the lifetime of the hold counts from the grant."""
        plan = plans.reserve(self.quota, tokens, keep, plans.timeout_us(timeout), plans.hold_for_us(hold_for), new_id())
        return Reservation(self, self.run(plan))

    def refund(self, tokens: int) -> None:
        """Give `tokens` back, up to capacity: of a grant that was not used."""
        self.run(plans.refund(tokens, new_id()))

    def reconcile(self, reading: Reading) -> Snapshot:
        """Take what the server reported, if it is fresh; return the bucket after it. Holds in flight stay beside it.

        Raises ConfigError on a plain bucket: it keeps its own books.
        """
        return plans.snapshot_of(self.apply(plans.reconciliation(self.quota, reading)))

    def peek(self, tokens: int = 1, *, keep: int = 0) -> Snapshot:
        """Return the bucket as a request for `tokens` beside `keep` would find it now. Takes nothing."""
        return self.run(plans.peek(tokens, keep))

    def with_key(self, key: str) -> TokenBucket:
        """Return the same door to another bucket."""
        return TokenBucket(self.quota, key=key, storage=self.storage, clock=self.clock, listener=self.listener)

    def apply(self, command: Command) -> Outcome:
        """Carry one command to the bucket and tell the listener what came of it."""
        outcome = self.storage.apply(self.key, self.quota, command, now_us=self.now_us())
        self.tell(command, outcome)
        return outcome

    def run(self, plan: Plan[T]) -> T:
        """Carry out a plan of `plans`, sleeping by the bucket's clock."""
        return plans.drive(plan, self.carry_out)

    def carry_out(self, verb: object) -> object:
        """Carry out one verb of a plan."""
        match verb:
            case Apply(command):
                return self.apply(command)
            case Sleep():
                self.sleeper.sleep(self.pause(verb))
                return None
            case _:
                raise plans.unknown_verb(verb)


class Reservation:
    """Tokens set aside for one call. Settle it at what the call cost, or cancel it if it was certainly never sent.

    As a context manager: left unsettled, by an exception too, the estimate stays charged.
    """

    def __init__(self, bucket: TokenBucket, grant: Grant) -> None:
        self._bucket = bucket
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.open = True

    def settle(self, actual: int, reading: Reading | None = None) -> None:
        """End the hold: the call cost `actual` tokens, its answer carried `reading`. Twice is once."""
        whole("actual", actual)
        self._bucket.apply(Settle(self.id, actual, reading))
        self.open = False

    def cancel(self) -> None:
        """End the hold: its tokens are free again. Only for a call that was certainly never sent."""
        self._bucket.apply(Cancel(self.id))
        self.open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        command = plans.on_leaving(self._bucket.quota, self.id)
        if self.open and command is not None:
            self._bucket.apply(command)

    def __repr__(self) -> str:
        return f"Reservation(id={self.id!r}, tokens={self.tokens}, open={self.open})"
