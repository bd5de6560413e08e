"""`AsyncKeepaSync`: `KeepaSync` for coroutines, on the same plans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

from .._arguments import timeout_us
from .._interrupts import interrupt_in
from .._plans import Grant, Patience
from ..async_bucket import AsyncTokenBucket, AwaitedSteps, Pending, async_door_of
from ..clock import Clock
from ..events import EventKind, Listener
from ..rules.commands import Cancel, ClaimProbe
from ..rules.decision import Snapshot
from ..storage.base import AsyncStorage
from ..storage.memory import MemoryStorage
from . import _plans as plans
from ._door import KeepaDoor, failed
from ._plans import Answer
from .quota import bucket_key, keepa_quota
from .reading import REFUSED, Body

__all__ = ["AsyncCall", "AsyncKeepaSync", "AsyncProbeFunction"]

AsyncProbeFunction: TypeAlias = Callable[[], Awaitable[tuple[int, Mapping[str, object] | None]]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object."""


class AsyncKeepaSync(KeepaDoor):
    """Meters calls to Keepa through a bucket that follows Keepa's own; as `KeepaSync`, awaited."""

    def __init__(
        self,
        bucket: AsyncTokenBucket,
        *,
        probe: AsyncProbeFunction | None = None,
        probe_interval: float = 600.0,
        hold_for: float = 120.0,
    ) -> None:
        super().__init__(bucket.quota, has_probe=probe is not None, probe_interval=probe_interval, hold_for=hold_for)
        self.bucket = bucket
        self._probe = probe

    @classmethod
    def from_key(
        cls,
        api_key: str,
        *,
        refill_rate: int = 5,
        storage: AsyncStorage | MemoryStorage | None = None,
        clock: Clock | None = None,
        probe_interval: float = 600.0,
        recharge_to: int | None = None,
        listener: Listener | None = None,
    ) -> AsyncKeepaSync:
        """Return the adapter for an API key; as `KeepaSync.from_key`."""
        quota = keepa_quota(refill_rate, recharge_to=recharge_to)
        bucket = AsyncTokenBucket(quota, key=bucket_key(api_key), storage=storage, clock=clock, listener=listener)
        try:
            from .probe import async_http_probe  # noqa: PLC0415 - httpx is an extra
        except ImportError:
            return cls(bucket, probe_interval=probe_interval)
        return cls(bucket, probe=async_http_probe(api_key), probe_interval=probe_interval)

    def request(self, estimate: int, *, keep: int = 0, timeout: float | None = None) -> Pending[AsyncCall]:
        """Wait until `estimate` tokens beside `keep` may be spent; as `KeepaSync.request`. Await or enter it."""
        return Pending(self._request(self._wanted(estimate, keep), timeout_us(timeout)))

    async def _request(self, wanted: plans.Request, patience_us: int | None) -> AsyncCall:
        steps = self._steps()
        try:
            grant = await plans.request(steps, self._quota, wanted, Patience(steps, patience_us))
            return AsyncCall(self._steps, grant)
        except BaseException as error:
            await steps.undo(error)
            raise

    def try_request(self, estimate: int, *, keep: int = 0) -> Pending[AsyncCall]:
        """Set `estimate` tokens aside now, or raise NotEnoughTokens; as `KeepaSync.try_request`. Await or enter it."""
        return Pending(self._try_request(self._wanted(estimate, keep)))

    async def _try_request(self, wanted: plans.Request) -> AsyncCall:
        steps = self._steps()
        try:
            return AsyncCall(self._steps, await plans.try_request(steps, wanted))
        except BaseException as error:
            await steps.undo(error)
            raise

    async def attempts(
        self,
        estimate: int,
        *,
        keep: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[AsyncCall, None]:
        """Yield calls until one is not refused by the server; as `KeepaSync.attempts`."""
        left = timeout
        while True:
            call = await self.request(estimate, keep=keep, timeout=left)
            yield call
            if not call.refused:
                return
            left = None if left is None else max(0.0, left - call.waited)

    async def observe(self, body: Body, *, status: int = 200) -> None:
        """Take an envelope seen elsewhere, if it is fresh; as `KeepaSync.observe`."""
        await plans.observe(self._steps(), body, status)

    async def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so; as `KeepaSync.refresh`."""
        self._check_probe()
        steps = self._steps()
        try:
            return await plans.refresh(steps)
        except BaseException as error:
            await steps.undo(error)
            raise

    async def claim_probe(self) -> bool:
        """Claim the right to ask the server now; as `KeepaSync.claim_probe`."""
        return (await self._steps().apply(ClaimProbe())).probe

    def _steps(self) -> _Steps:
        return _Steps(self, self._probe)

    def __repr__(self) -> str:
        return f"AsyncKeepaSync({self.bucket!r})"


class _Steps(AwaitedSteps):
    """The steps of one call to Keepa, for a coroutine."""

    __slots__ = ("_ask",)

    def __init__(self, sync: AsyncKeepaSync, ask: AsyncProbeFunction | None) -> None:
        super().__init__(async_door_of(sync.bucket))
        self._ask = ask

    async def probe(self) -> Answer:
        """Ask the server for its balance."""
        if self._ask is None:
            return Answer(None, None, "there is no probe")
        try:
            status, body = await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever fails in a probe, it brought no reading
            interrupt = interrupt_in(error)
            if interrupt is None:
                return failed(error)
            raise interrupt from None
        return Answer(status, body)

    def say(self, kind: EventKind, why: str) -> None:
        """Tell the listener of something that no command brought about."""
        self.door.say(kind, why)


class AsyncCall:
    """One call to Keepa, its estimated cost set aside; as `Call`, awaited."""

    def __init__(self, steps: Callable[[], _Steps], grant: Grant) -> None:
        self._steps = steps
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.waited = grant.decision.waited
        self.refused = False
        self.consumed: int | None = None

    async def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer; as `Call.settle`. Never raises on a body."""
        self.refused = status == REFUSED
        self.consumed = await plans.settle(self._steps(), self.id, body, status)

    async def cancel(self) -> None:
        """End the call: its tokens are free again. Only if it was certainly never sent."""
        await self._steps().finish(Cancel(self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the hold as it is: settled, or running out by itself."""

    def __repr__(self) -> str:
        return f"AsyncCall(id={self.id!r}, tokens={self.tokens}, refused={self.refused})"
