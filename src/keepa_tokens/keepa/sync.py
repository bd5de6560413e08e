"""`KeepaSync`: keeps a bucket in step with the balance that Keepa reports. For threads; `aio.py` has its twin."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

from .. import plans as bucket_plans
from ..bucket import TokenBucket
from ..clock import Clock
from ..events import Listener
from ..plans import Grant, Plan
from ..rules.commands import Cancel
from ..rules.decision import Snapshot
from ..storage.base import Storage
from . import plans
from .door import SyncDoor, failed
from .plans import Answer, Probe, Tell
from .reading import REFUSED, Body
from .terms import bucket_key, keepa_quota

__all__ = ["Call", "KeepaSync", "ProbeFunction"]

T = TypeVar("T")

ProbeFunction: TypeAlias = Callable[[], tuple[int, Mapping[str, object] | None]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object."""


class KeepaSync(SyncDoor):
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
        super().__init__(bucket, has_probe=probe is not None, probe_interval=probe_interval, hold_for=hold_for)
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
    ) -> KeepaSync:
        """Return the adapter for an API key; all that use the key on one storage share one bucket.

        refill_rate: tokens a minute of the plan; need not be right. Asks nothing yet. Probes through httpx where it is
        installed; else the first request is the scout.
        """
        quota = keepa_quota(refill_rate, recharge_to=recharge_to)
        bucket = TokenBucket(quota, key=bucket_key(api_key), storage=storage, clock=clock, listener=listener)
        try:
            from .probe import http_probe  # noqa: PLC0415 - httpx is an extra
        except ImportError:
            return cls(bucket, probe_interval=probe_interval)
        return cls(bucket, probe=http_probe(api_key), probe_interval=probe_interval)

    def request(self, estimate: int, *, keep: int = 0, timeout: float | None = None) -> Call:
        """Wait until `estimate` tokens beside `keep` may be spent, and set them aside for one call.

        timeout: seconds to wait (None: as long as it takes). Raises AcquireTimeout at once, nothing taken, when
        the wait would be longer; CostTooLarge, TypeError, ConfigError for an impossible cost;
        StorageUnavailable.
        """
        plan = plans.request(self.bucket.quota, self._wanted(estimate, keep), bucket_plans.timeout_us(timeout))
        return Call(self, self.run(plan))

    def try_request(self, estimate: int, *, keep: int = 0) -> Call:
        """Set `estimate` tokens aside for one call now, or raise NotEnoughTokens with `retry_after` and `reason`.

        Never sleeps, but may probe. For task queues: retry the task after `retry_after` seconds.
        """
        return Call(self, self.run(plans.try_request(self.bucket.quota, self._wanted(estimate, keep))))

    def attempts(self, estimate: int, *, keep: int = 0, timeout: float | None = None) -> Generator[Call, None, None]:
        """Yield calls until one is not refused by the server: `for call in sync.attempts(5): with call: ...`.

        Settle each with its status. timeout: seconds to wait in all; raises as `request`.
        """
        left = timeout
        while True:
            call = self.request(estimate, keep=keep, timeout=left)
            yield call
            if not call.refused:
                return
            left = None if left is None else max(0.0, left - call.waited)

    def observe(self, body: Body, *, status: int = 200) -> None:
        """Take an envelope seen elsewhere, if it is fresh. Never raises on a body: a bad one is reported."""
        self.run(plans.observe(body, status))

    def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so, and return the bucket. Costs no tokens.

        Raises ConfigError without a probe. A probe that fails is reported, and the bucket returned as it is known.
        """
        self._check_probe()
        return self.run(plans.refresh())

    def run(self, plan: Plan[T]) -> T:
        """Carry out a plan of `keepa.plans`."""
        return bucket_plans.drive(plan, self._do)

    def _do(self, verb: object) -> object:
        match verb:
            case Probe():
                return self._ask()
            case Tell():
                self._tell(verb)
                return None
            case _:
                return self.bucket.carry_out(verb)

    def _ask(self) -> Answer:
        if self._probe is None:
            return Answer(None, None, "there is no probe")
        try:
            status, body = self._probe()
        except Exception as error:  # noqa: BLE001 - a probe is somebody else's code; whatever it raises, it brought no reading
            return failed(error)
        return Answer(status, body)


class Call:
    """One call to Keepa, its estimated cost set aside. Settle it by its answer.

    refused: the server refused it. consumed: what it cost, once settled; None where the answer didn't say.

    As a context manager: left unsettled, by an exception too, the estimate stays set aside until the hold runs
    out and is charged then, because nobody knows whether the server charged it.
    """

    def __init__(self, sync: KeepaSync, grant: Grant) -> None:
        self._sync = sync
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.waited = grant.decision.waited
        self.refused = False
        self.consumed: int | None = None

    def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer: parsed, as bytes or text, refusals and errors too. A second time changes nothing.

        Charges what the answer says it cost, else the estimate; takes its reading if it is fresh. status 429:
        it cost nothing. None (a PNG, a timeout): charged or not, nobody knows, so the hold is left to run out.
        Never raises on a body.
        """
        self.refused = status == REFUSED
        self.consumed = self._sync.run(plans.settle(self.id, body, status))

    def cancel(self) -> None:
        """End the call: its tokens are free again. Only if it was certainly never sent."""
        self._sync.bucket.apply(Cancel(self.id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the hold as it is: settled, or running out by itself."""

    def __repr__(self) -> str:
        return f"Call(id={self.id!r}, tokens={self.tokens}, refused={self.refused})"
