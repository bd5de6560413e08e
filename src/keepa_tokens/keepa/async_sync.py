"""`AsyncKeepaSync`: `KeepaSync` for coroutines, on the same plans."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias, cast

from .._arguments import checked_key, timeout_us
from .._door import CALL_ADVICE, left_unsettled
from .._loops import sleep
from .._plans import Grant, Patience
from ..async_bucket import AsyncTokenBucket, AwaitedSteps, Pending, async_door_of
from ..clock import Clock
from ..events import EventKind, Listener
from ..rules.commands import ClaimProbe
from ..rules.decision import Snapshot
from ..storage.base import AsyncStorage
from ..storage.memory import MemoryStorage
from ..units import LIMIT
from . import _plans as plans
from ._door import KeepaCall, KeepaDoor, ask, checked_api_key, checked_bucket, checked_probe
from ._plans import Answer
from .backoff import Refusals
from .quota import KEEPA, bucket_key, keepa_quota
from .reading import LARGE, Body, Envelope, envelope, pieces, unpacked

__all__ = ["AsyncCall", "AsyncKeepaSync", "AsyncProbeFunction"]

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
        checked_bucket(bucket, AsyncTokenBucket, twin="KeepaSync")
        checked_probe(probe, waits=False)
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
        probe: AsyncProbeFunction | None = None,
        base_url: str = KEEPA,
        hold_for: float = 120.0,
        key: str | None = None,
    ) -> AsyncKeepaSync:
        """Return the adapter for an API key; as `KeepaSync.from_key`."""
        checked_api_key(api_key)
        quota = keepa_quota(refill_rate, recharge_to=recharge_to)
        name = bucket_key(api_key) if key is None else checked_key(key)
        bucket = AsyncTokenBucket(quota, key=name, storage=storage, clock=clock, listener=listener)
        return cls(
            bucket,
            probe=_ready_probe(api_key, base_url) if probe is None else probe,
            probe_interval=probe_interval,
            hold_for=hold_for,
        )

    def request(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> Pending[AsyncCall]:
        """Wait until `estimate` tokens beside `keep` may be spent; as `KeepaSync.request`. Await or enter it."""
        return Pending(self._request(self._wanted(estimate, keep, None, label, waits=True), timeout_us(timeout)))

    async def _request(self, wanted: plans.Request, patience_us: int | None) -> AsyncCall:
        steps = self._steps()
        try:
            grant = await plans.request(steps, self._quota, wanted, Patience(steps, patience_us))
            return AsyncCall(self._steps, grant)
        except BaseException as error:
            await steps.undo(error)
            raise

    def try_request(
        self, estimate: int, *, keep: int = 0, place: str | None = None, label: str = ""
    ) -> Pending[AsyncCall]:
        """Set `estimate` tokens aside now, or raise NotEnoughTokens; as `KeepaSync.try_request`. Await or enter it."""
        return Pending(self._try_request(self._wanted(estimate, keep, place, label, waits=False)))

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
        label: str = "",
    ) -> AsyncGenerator[AsyncCall, None]:
        """Yield calls until one is not refused by the server; as `KeepaSync.attempts`."""
        estimate, keep = self._cost(estimate, keep)
        patience_us, refusals = timeout_us(timeout), Refusals()
        steps = self._steps()
        while True:
            begun = steps.elapsed_us()
            call = await self._request(self._wanted(estimate, keep, None, label, waits=True), patience_us)
            waited_us = steps.elapsed_us() - begun
            yield call
            if not call.refused:
                return
            left_us = LIMIT if patience_us is None else patience_us - waited_us
            begun = steps.elapsed_us()
            if not await plans.before_next(
                steps, refusals, estimate, keep, left_us, told=call.told, retry_after=call.retry_after
            ):
                return
            patience_us = None if patience_us is None else max(0, left_us - (steps.elapsed_us() - begun))

    async def observe(self, body: Body, *, status: int = 200) -> None:
        """Take an envelope seen elsewhere, if it is fresh; as `KeepaSync.observe`."""
        seen, number = unpacked(body, status)
        await plans.observe(self._steps(), seen, number or 200)

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

    async def aclose(self) -> None:
        """Wait for what interrupted calls still give back; as `AsyncTokenBucket.aclose`."""
        await self.bucket.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _steps(self) -> _Steps:
        return _Steps(self.bucket, self._probe)

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

    __slots__ = ("_ask",)

    def __init__(self, bucket: AsyncTokenBucket, ask: AsyncProbeFunction | None) -> None:
        super().__init__(async_door_of(bucket))
        self._ask = ask

    async def probe(self, limit_us: int) -> Answer:
        """Ask the server for its balance."""
        return await ask(self._ask, limit_us, waits=False)

    async def envelope(self, body: Body) -> Envelope:
        """Return what a body says; of a large one in pieces, between which others get their turn."""
        if not isinstance(body, (str, bytes, bytearray)) or len(body) < LARGE:
            return envelope(body)
        steps = pieces(body)
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                return cast("Envelope", stop.value)
            await sleep(0)

    def say(self, kind: EventKind, why: str) -> None:
        """Tell the listener of something that no command brought about."""
        self.door.say(kind, why)


class AsyncCall(KeepaCall):
    """One call to Keepa, its estimated cost set aside; as `Call`, awaited."""

    def __init__(self, steps: Callable[[], _Steps], grant: Grant) -> None:
        super().__init__(steps().door, grant)
        self._steps = steps

    async def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer; as `Call.settle`. Never raises on a body."""
        answer, number = self._given(body, status)
        said = await plans.settle(self._steps(), self._grant, answer, number)
        self._learned(said)

    async def cancel(self) -> None:
        """End the call: its tokens are free again. Only if it was certainly never sent."""
        self._watch = None
        await plans.cancel(self._steps(), self.id, self._grant.claimed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the hold as it is: settled, or running out by itself."""
        if self._watch is not None and kind is None:
            left_unsettled(self._door, "call", self.tokens, CALL_ADVICE)
        self._watch = None
