"""`KeepaSync`: keeps a bucket in step with the balance that Keepa reports. For threads; `async_sync` has its twin."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Self, TypeAlias

from .._arguments import checked_key, timeout_us
from .._blocking import run
from .._door import CALL_ADVICE, left_unsettled
from .._plans import Grant, Patience
from ..bucket import BlockingSteps, TokenBucket, door_of
from ..clock import Clock
from ..events import EventKind, Listener
from ..rules.commands import ClaimProbe
from ..rules.decision import Snapshot
from ..storage.base import Storage
from ..units import LIMIT
from . import _plans as plans
from ._door import KeepaCall, KeepaDoor, ask, checked_api_key, checked_bucket, checked_probe
from ._plans import Answer
from .backoff import Refusals
from .quota import KEEPA, bucket_key, keepa_quota
from .reading import Body, Envelope, envelope, unpacked

__all__ = ["Call", "KeepaSync", "ProbeFunction"]

ProbeFunction: TypeAlias = Callable[..., tuple[int, Mapping[str, object] | None]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object.

One that takes `timeout` is told how many seconds it has: 10 at most, less where its caller has less. One that doesn't
may outlast its caller's timeout.
"""


class KeepaSync(KeepaDoor):
    """Meters calls to Keepa through a bucket that follows Keepa's own. Safe to share between threads.

    bucket: a synced one, as `keepa_quota` makes them. probe: asks `/token`, only when nothing else can tell;
    without one a request goes ahead as the scout. probe_interval: seconds that a reading may be old before a
    refusal asks again. hold_for: seconds after which a call that was never settled is charged at its estimate.
    """

    def __init__(
        self,
        bucket: TokenBucket,
        *,
        probe: ProbeFunction | None = None,
        probe_interval: float = 600.0,
        hold_for: float = 120.0,
    ) -> None:
        checked_bucket(bucket, TokenBucket, twin="AsyncKeepaSync")
        checked_probe(probe, waits=True)
        super().__init__(bucket.quota, has_probe=probe is not None, probe_interval=probe_interval, hold_for=hold_for)
        self.bucket = bucket
        self._probe = probe

    @classmethod
    def from_key(
        cls,
        api_key: str,
        *,
        refill_rate: int = 5,
        storage: Storage | None = None,
        clock: Clock | None = None,
        probe_interval: float = 600.0,
        recharge_to: int | None = None,
        listener: Listener | None = None,
        probe: ProbeFunction | None = None,
        base_url: str = KEEPA,
        hold_for: float = 120.0,
        key: str | None = None,
    ) -> KeepaSync:
        """Return the adapter for an API key; all that use the key on one storage share one bucket.

        refill_rate: tokens a minute of the plan; need not be right. Asks nothing yet. probe: asks the server (default:
        the ready one, at `base_url`, where httpx or httpx2 is installed; else the first request is the scout). key: the
        bucket's name (default: a digest of the API key). The rest as for `KeepaSync` and `TokenBucket`.
        """
        checked_api_key(api_key)
        quota = keepa_quota(refill_rate, recharge_to=recharge_to)
        name = bucket_key(api_key) if key is None else checked_key(key)
        bucket = TokenBucket(quota, key=name, storage=storage, clock=clock, listener=listener)
        return cls(
            bucket,
            probe=_ready_probe(api_key, base_url) if probe is None else probe,
            probe_interval=probe_interval,
            hold_for=hold_for,
        )

    def request(self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = "") -> Call:
        """Wait until `estimate` tokens beside `keep` may be spent, and set them aside for one call.

        It waits in line: small calls don't pass a big one. Raises AcquireTimeout at once, nothing taken, when the wait
        would be longer than `timeout`; CostTooLarge, TypeError, ConfigError for an impossible cost; StorageUnavailable.
        timeout: seconds to wait for tokens (None: as long as it takes). label: whose call it is, for people who look at
        what is in flight.
        """
        return self._request(self._wanted(estimate, keep, None, label, waits=True), timeout_us(timeout))

    def _request(self, wanted: plans.Request, patience_us: int | None) -> Call:
        steps = self._steps()
        patience = Patience(steps, patience_us)
        try:
            return Call(self._steps, run(lambda: plans.request(steps, self._quota, wanted, patience)))
        except BaseException as error:
            steps.undo(error)
            raise

    def try_request(self, estimate: int, *, keep: int = 0, place: str | None = None, label: str = "") -> Call:
        """Set `estimate` tokens aside for one call now, or raise NotEnoughTokens with `retry_after` and `reason`.

        Never sleeps, but may probe. For task queues: retry the task after `retry_after` seconds. place: the task's id;
        a refused task stands in line by it, and keeps its place until it comes back, in whatever worker. label: as
        for `request`.
        """
        wanted = self._wanted(estimate, keep, place, label, waits=False)
        steps = self._steps()
        try:
            return Call(self._steps, run(lambda: plans.try_request(steps, wanted)))
        except BaseException as error:
            steps.undo(error)
            raise

    def attempts(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> Generator[Call, None, None]:
        """Yield calls until one is not refused by the server: `for call in sync.attempts(5): with call: ...`.

        Settle each with its status. Between them it waits for tokens, and longer each time where tokens don't explain
        the refusal; after five of those the last one stands. timeout: seconds to wait in all; raises as `request`.
        """
        estimate, keep = self._cost(estimate, keep)
        patience_us, refusals = timeout_us(timeout), Refusals()
        steps = self._steps()
        while True:
            begun = steps.elapsed_us()
            call = self._request(self._wanted(estimate, keep, None, label, waits=True), patience_us)
            waited_us = steps.elapsed_us() - begun
            yield call
            if not call.refused:
                return
            left_us = LIMIT if patience_us is None else patience_us - waited_us
            begun = steps.elapsed_us()
            if not self._goes_on(steps, refusals, estimate, keep, left_us, call):
                return
            patience_us = None if patience_us is None else max(0, left_us - (steps.elapsed_us() - begun))

    def _goes_on(self, steps: _Steps, refusals: Refusals, estimate: int, keep: int, left_us: int, call: Call) -> bool:
        told, asked = call.told, call.retry_after
        return run(lambda: plans.before_next(steps, refusals, estimate, keep, left_us, told=told, retry_after=asked))

    def observe(self, body: Body, *, status: int = 200) -> None:
        """Take an envelope seen elsewhere, if it is fresh. Never raises on a body: a bad one is reported."""
        seen, number = unpacked(body, status)
        run(lambda: plans.observe(self._steps(), seen, number or 200))

    def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so, and return the bucket. Costs no tokens.

        Raises ConfigError without a probe. A probe that fails is reported, and the bucket returned as it is known.
        """
        self._check_probe()
        steps = self._steps()
        try:
            return run(lambda: plans.refresh(steps))
        except BaseException as error:
            steps.undo(error)
            raise

    def claim_probe(self) -> bool:
        """Claim the right to ask the server now; if True, ask it and `observe` the answer. For who has no probe here.

        Given to one at a time, for 20 s.
        """
        return self._steps().carry(ClaimProbe()).probe

    def close(self) -> None:
        """Let go of the bucket. The storage is closed by whoever opened it."""
        self.bucket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _steps(self) -> _Steps:
        return _Steps(self.bucket, self._probe)

    def __repr__(self) -> str:
        return f"KeepaSync({self.bucket!r})"


def _ready_probe(api_key: str, base_url: str) -> ProbeFunction | None:
    try:
        from .probe import http_probe  # noqa: PLC0415 - it needs httpx, an extra
    except ImportError:
        return None
    return http_probe(api_key, base_url=base_url)


class _Steps(BlockingSteps):
    """The steps of one call to Keepa, for a thread."""

    __slots__ = ("_ask",)

    def __init__(self, bucket: TokenBucket, ask: ProbeFunction | None) -> None:
        super().__init__(door_of(bucket))
        self._ask = ask

    async def probe(self, limit_us: int) -> Answer:
        """Ask the server for its balance."""
        return await ask(self._ask, limit_us, waits=True)

    async def envelope(self, body: Body) -> Envelope:
        """Return what a body says."""
        return envelope(body)

    def say(self, kind: EventKind, why: str) -> None:
        """Tell the listener of something that no command brought about."""
        self.door.say(kind, why)


class Call(KeepaCall):
    """One call to Keepa, its estimated cost set aside. Settle it by its answer.

    refused: the server refused it. consumed: what it cost, once settled; None where the answer didn't say. told: the
    answer carried a reading. retry_after: seconds that a response asked for, of those that `settle` was given whole.

    As a context manager: left unsettled, by an exception too, the estimate stays set aside until the hold runs
    out and is charged then, because nobody knows whether the server charged it.
    """

    def __init__(self, steps: Callable[[], _Steps], grant: Grant) -> None:
        super().__init__(steps().door, grant)
        self._steps = steps

    def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer: parsed, as bytes or text, refusals and errors too. A second time changes nothing.

        Charges what the answer says it cost, else the estimate; takes its reading if it is fresh. status 429:
        it cost nothing. None (a PNG, a timeout): charged or not, nobody knows, so the hold is left to run out.
        Never raises on a body.
        """
        answer, number = self._given(body, status)
        said = run(lambda: plans.settle(self._steps(), self._grant, answer, number))
        self._learned(said)

    def cancel(self) -> None:
        """End the call: its tokens are free again. Only if it was certainly never sent."""
        self._watch = None
        run(lambda: plans.cancel(self._steps(), self.id, self._grant.claimed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the hold as it is: settled, or running out by itself."""
        if self._watch is not None and kind is None:
            left_unsettled(self._door, "call", self.tokens, CALL_ADVICE)
        self._watch = None
