"""`AsyncKeepaSync`: `KeepaSync` for coroutines, on the same plans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Self, TypeAlias

from .._door import door_of
from ..async_bucket import AsyncTokenBucket, AwaitedSteps, Pending
from ..clock import Clock
from ..events import Listener
from ..rules.commands import ClaimProbe, Outcome, Reserve
from ..rules.decision import Snapshot
from ..storage.base import AsyncClosing, AsyncStorage
from ..storage.memory import MemoryStorage
from ._door import CallBase, SyncBase, checked_bucket, ready_probe, terms
from .quota import KEEPA
from .reading import Body

__all__ = ["AsyncCall", "AsyncKeepaSync", "AsyncProbeFunction"]

AsyncProbeFunction: TypeAlias = Callable[..., Awaitable[tuple[int, Mapping[str, object] | None]]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object.

As `ProbeFunction`, awaited.
"""


class AsyncKeepaSync(SyncBase[AsyncTokenBucket, "AsyncCall"], AsyncClosing):
    """Meters calls to Keepa through a bucket that follows Keepa's own; as `KeepaSync`, awaited."""

    def __init__(
        self,
        bucket: AsyncTokenBucket,
        *,
        probe: AsyncProbeFunction | None = None,
        probe_interval: float = 600.0,
        hold_for: float = 120.0,
    ) -> None:
        self.bucket = checked_bucket(bucket, AsyncTokenBucket, twin="KeepaSync")
        super().__init__(probe, probe_interval, hold_for)

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
        probe: AsyncProbeFunction | None = None,
        base_url: str = KEEPA,
        hold_for: float = 120.0,
        key: str | None = None,
    ) -> AsyncKeepaSync:
        """Return an AsyncKeepaSync for an API key; as `KeepaSync.from_key`."""
        quota, name = terms(api_key, refill_rate, recharge_to, key)
        return cls(
            AsyncTokenBucket(quota, key=name, storage=storage, clock=clock, listener=listener),
            probe=ready_probe("async_http_probe", api_key, base_url) if probe is None else probe,
            probe_interval=probe_interval,
            hold_for=hold_for,
        )

    def request(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> Pending[AsyncCall]:
        """Wait until `estimate` tokens beside `keep` may be spent; as `KeepaSync.request`. Await or enter it."""
        plan = self._request(estimate, keep, timeout, label)
        return Pending("AsyncKeepaSync.request", self._steps().carried(plan))

    def try_request(
        self, estimate: int, *, keep: int = 0, place: str | None = None, label: str = ""
    ) -> Pending[AsyncCall]:
        """Set `estimate` tokens aside now, or raise NotEnoughTokens; as `KeepaSync.try_request`. Await or enter it."""
        plan = self._try_request(estimate, keep, place, label)
        return Pending("AsyncKeepaSync.try_request", self._steps().carried(plan))

    async def attempts(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> AsyncGenerator[AsyncCall, None]:
        """Yield calls until one is not refused by the server; as `KeepaSync.attempts`."""
        attempts = self._attempts(estimate, keep, timeout, label)
        while (call := await self._steps().carried(attempts.next)) is not None:
            yield call
            if not call.refused:
                return

    async def observe(self, body: Body, *, status: int | None = None) -> None:
        """Take an envelope seen elsewhere, if it is fresh; as `KeepaSync.observe`."""
        await self._observed(body, status)

    async def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so; as `KeepaSync.refresh`."""
        return await self._steps().carried(self._refreshed)

    async def claim_probe(self) -> bool:
        """Claim the right to ask the server now; as `KeepaSync.claim_probe`."""
        return (await self._steps().apply(ClaimProbe())).probe

    async def aclose(self) -> None:
        """Wait until interrupted calls have given back their tokens; as `AsyncTokenBucket.aclose`."""
        await self.bucket.aclose()

    def _steps(self) -> AwaitedSteps:
        return AwaitedSteps(door_of(self.bucket))

    def _call(self, command: Reserve, outcome: Outcome, waited_us: int) -> AsyncCall:
        return AsyncCall(self._steps, command, outcome, waited_us)


class AsyncCall(CallBase):
    """One call to Keepa, its estimated cost set aside; as `Call`, awaited."""

    async def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer; as `Call.settle`. Never raises on a body."""
        await self._settled(body, status)

    async def cancel(self) -> None:
        """End a call that was certainly never sent: its tokens are free again."""
        await self._cancelled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the hold as it is: settled, or running out by itself."""
        self._left(kind)
