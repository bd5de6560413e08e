"""`AsyncKeepaSync`: `KeepaSync` for coroutines, on the same plans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from .. import plans as bucket_plans
from ..async_bucket import AsyncTokenBucket, Pending
from ..clock import Clock
from ..events import Listener
from ..plans import Grant, Plan
from ..rules.commands import Cancel
from ..rules.decision import Snapshot
from ..storage.base import AsyncStorage
from ..storage.memory import MemoryStorage
from . import plans
from .door import SyncDoor, failed
from .plans import Answer, Probe, Tell
from .reading import REFUSED, Body
from .terms import bucket_key, keepa_quota

__all__ = ["AsyncCall", "AsyncKeepaSync", "AsyncProbeFunction"]

T = TypeVar("T")

AsyncProbeFunction: TypeAlias = Callable[[], Awaitable[tuple[int, Mapping[str, object] | None]]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object."""


class AsyncKeepaSync(SyncDoor):
    """Meters calls to Keepa through a bucket that follows Keepa's own; as `KeepaSync`, awaited."""

    def __init__(
        self,
        bucket: AsyncTokenBucket,
        *,
        probe: AsyncProbeFunction | None = None,
        probe_interval: float = 600.0,
        hold_for: float = 120.0,
    ) -> None:
        super().__init__(bucket, has_probe=probe is not None, probe_interval=probe_interval, hold_for=hold_for)
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
        plan = plans.request(self.bucket.quota, self._wanted(estimate, keep), bucket_plans.timeout_us(timeout))
        return Pending(lambda: self._call(plan))

    def try_request(self, estimate: int, *, keep: int = 0) -> Pending[AsyncCall]:
        """Set `estimate` tokens aside now, or raise NotEnoughTokens; as `KeepaSync.try_request`. Await or enter it."""
        plan = plans.try_request(self.bucket.quota, self._wanted(estimate, keep))
        return Pending(lambda: self._call(plan))

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
        await self.run(plans.observe(body, status))

    async def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so; as `KeepaSync.refresh`."""
        self._check_probe()
        return await self.run(plans.refresh())

    async def _call(self, plan: Plan[Grant]) -> AsyncCall:
        return AsyncCall(self, await self.run(plan))

    async def run(self, plan: Plan[T]) -> T:
        """Carry out a plan of `keepa.plans`."""
        return await bucket_plans.adrive(plan, self._do)

    async def _do(self, verb: object) -> object:
        match verb:
            case Probe():
                return await self._ask()
            case Tell():
                self._tell(verb)
                return None
            case _:
                return await self.bucket.carry_out(verb)

    async def _ask(self) -> Answer:
        if self._probe is None:
            return Answer(None, None, "there is no probe")
        try:
            status, body = await self._probe()
        except Exception as error:  # noqa: BLE001 - a probe is somebody else's code; whatever it raises, it brought no reading
            return failed(error)
        return Answer(status, body)


class AsyncCall:
    """One call to Keepa, its estimated cost set aside; as `Call`, awaited."""

    def __init__(self, sync: AsyncKeepaSync, grant: Grant) -> None:
        self._sync = sync
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.waited = grant.decision.waited
        self.refused = False
        self.consumed: int | None = None

    async def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer; as `Call.settle`. Never raises on a body."""
        self.refused = status == REFUSED
        self.consumed = await self._sync.run(plans.settle(self.id, body, status))

    async def cancel(self) -> None:
        """End the call: its tokens are free again. Only if it was certainly never sent."""
        await self._sync.bucket.apply(Cancel(self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the hold as it is: settled, or running out by itself."""

    def __repr__(self) -> str:
        return f"AsyncCall(id={self.id!r}, tokens={self.tokens}, refused={self.refused})"
