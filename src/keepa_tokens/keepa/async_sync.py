"""`AsyncKeepaSync`: `KeepaSync` for coroutines, on the same plans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Self, TypeAlias, TypeVar

from .._arguments import timeout_us
from .._door import CALL_ADVICE, left_unsettled
from .._loops import sleep
from .._plans import Grant
from ..async_bucket import AsyncTokenBucket, AwaitedSteps, Pending, async_door_of
from ..clock import Clock
from ..events import Listener
from ..rules.commands import ClaimProbe
from ..rules.decision import Snapshot
from ..storage.base import AsyncStorage
from ..storage.memory import MemoryStorage
from . import _plans as plans
from ._asking import checked_probe
from ._door import KeepaCall, KeepaDoor, checked_bucket, terms
from .quota import KEEPA
from .reading import Body

__all__ = ["AsyncCall", "AsyncKeepaSync", "AsyncProbeFunction"]

T = TypeVar("T")

AsyncProbeFunction: TypeAlias = Callable[..., Awaitable[tuple[int, Mapping[str, object] | None]]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object.

As `ProbeFunction`, awaited.
"""


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
        self.bucket = checked_bucket(bucket, AsyncTokenBucket, twin="KeepaSync")
        self._probe = checked_probe(probe, waits=False)
        super().__init__(bucket.quota, probe, probe_interval, hold_for)

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
        """Return the adapter for an API key; as `KeepaSync.from_key`."""
        quota, name = terms(api_key, refill_rate, recharge_to, key)
        return cls(
            AsyncTokenBucket(quota, key=name, storage=storage, clock=clock, listener=listener),
            probe=_ready_probe(api_key, base_url) if probe is None else probe,
            probe_interval=probe_interval,
            hold_for=hold_for,
        )

    def request(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> Pending[AsyncCall]:
        """Wait until `estimate` tokens beside `keep` may be spent; as `KeepaSync.request`. Await or enter it."""
        wanted, patience_us = self._wanted(estimate, keep, label), timeout_us(timeout)
        return Pending(self._carried(lambda steps: plans.request(steps, wanted, patience_us, self._call)))

    def try_request(
        self, estimate: int, *, keep: int = 0, place: str | None = None, label: str = ""
    ) -> Pending[AsyncCall]:
        """Set `estimate` tokens aside now, or raise NotEnoughTokens; as `KeepaSync.try_request`. Await or enter it."""
        wanted = self._wanted(estimate, keep, label, place)
        return Pending(self._carried(lambda steps: plans.try_request(steps, wanted, self._call)))

    async def attempts(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> AsyncGenerator[AsyncCall, None]:
        """Yield calls until one is not refused by the server; as `KeepaSync.attempts`."""
        attempts = self._attempts(estimate, keep, timeout, label, self._call)
        while (call := await self._carried(attempts.next)) is not None:
            yield call
            if not call.refused:
                return

    async def observe(self, body: Body, *, status: int = 200) -> None:
        """Take an envelope seen elsewhere, if it is fresh; as `KeepaSync.observe`."""
        await plans.observe(self._steps(), body, status)

    async def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so; as `KeepaSync.refresh`."""
        return await self._carried(plans.refresh)

    async def claim_probe(self) -> bool:
        """Claim the right to ask the server now; as `KeepaSync.claim_probe`."""
        return (await self._steps().apply(ClaimProbe())).probe

    async def aclose(self) -> None:
        """Wait for what interrupted calls still give back; as `AsyncTokenBucket.aclose`."""
        await self.bucket.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _steps(self) -> _Steps:
        return _Steps(self.bucket, self._probe)

    def _call(self, grant: Grant) -> AsyncCall:
        return AsyncCall(self._steps, grant)

    async def _carried(self, plan: Callable[[_Steps], Coroutine[object, object, T]]) -> T:
        """Carry out a plan; interrupted, it gives back what it took."""
        steps = self._steps()
        try:
            return await plan(steps)
        except BaseException as error:
            await steps.undo(error)
            raise

    def __repr__(self) -> str:
        return f"AsyncKeepaSync({self.bucket!r})"


def _ready_probe(api_key: str, base_url: str) -> AsyncProbeFunction | None:
    try:
        from .probe import async_http_probe  # noqa: PLC0415 - it needs httpx, an extra
    except ImportError:
        return None
    return async_http_probe(api_key, base_url=base_url)


class _Steps(AwaitedSteps):
    """The steps of one call to Keepa, for a coroutine."""

    __slots__ = ("ask",)
    waits = False

    def __init__(self, bucket: AsyncTokenBucket, ask: AsyncProbeFunction | None) -> None:
        super().__init__(async_door_of(bucket))
        self.ask = ask

    async def turn(self) -> None:
        """Let the other coroutines have their turn."""
        await sleep(0)


class AsyncCall(KeepaCall):
    """One call to Keepa, its estimated cost set aside; as `Call`, awaited."""

    async def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer; as `Call.settle`. Never raises on a body."""
        await self._settled(body, status)

    async def cancel(self) -> None:
        """End the call: its tokens are free again. Only if it was certainly never sent."""
        await self._cancelled()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the hold as it is: settled, or running out by itself."""
        if self._watch is not None and kind is None:
            left_unsettled(self._door, "call", self.tokens, CALL_ADVICE)
        self._watch = None
