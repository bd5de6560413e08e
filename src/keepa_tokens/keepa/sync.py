"""`KeepaSync`: keeps a bucket in step with the balance that Keepa reports. For threads; `async_sync` has its twin."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Self, TypeAlias

from .._blocking import run
from .._door import door_of
from ..bucket import BlockingSteps, TokenBucket
from ..clock import Clock
from ..events import Listener
from ..rules.commands import ClaimProbe, Outcome, Reserve
from ..rules.decision import Snapshot
from ..storage.base import Closing, Storage
from ._door import CallBase, SyncBase, checked_bucket, ready_probe, terms
from .quota import KEEPA
from .reading import Body

__all__ = ["Call", "KeepaSync", "ProbeFunction"]

ProbeFunction: TypeAlias = Callable[..., tuple[int, Mapping[str, object] | None]]
"""Asks the server's `/token`; returns the status and the parsed body, or None for a body that is no JSON object.

A probe with a `timeout` argument gets the seconds that it has: 10 at most, less if its caller has less. A probe without
may take longer than its caller's timeout.
"""


class KeepaSync(SyncBase[TokenBucket, "Call"], Closing):
    """Meters calls to Keepa through a bucket that follows Keepa's own. Safe to share between threads.

    bucket: a synced one, with a quota of `keepa_quota`. probe: asks `/token`, only when nothing else can tell;
    without a probe one request goes ahead as the scout. probe_interval: a refusal asks the server once the last
    reading is this many seconds old. hold_for: seconds after which an unsettled call is charged at its estimate.
    """

    def __init__(
        self,
        bucket: TokenBucket,
        *,
        probe: ProbeFunction | None = None,
        probe_interval: float = 600.0,
        hold_for: float = 120.0,
    ) -> None:
        self.bucket = checked_bucket(bucket, TokenBucket, twin="AsyncKeepaSync")
        super().__init__(probe, probe_interval, hold_for)

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
        """Return a KeepaSync for an API key; all that use one API key on one storage share one bucket.

        The server is not asked yet. refill_rate: tokens a minute of the plan; need not be right. probe: asks the server
        (default: `http_probe` at `base_url` if httpx or httpx2 is installed; else the first request is the scout). key:
        the bucket's name (default: a digest of the API key). The rest as for `KeepaSync` and `TokenBucket`.
        """
        quota, name = terms(api_key, refill_rate, recharge_to, key)
        return cls(
            TokenBucket(quota, key=name, storage=storage, clock=clock, listener=listener),
            probe=ready_probe("http_probe", api_key, base_url) if probe is None else probe,
            probe_interval=probe_interval,
            hold_for=hold_for,
        )

    def request(self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = "") -> Call:
        """Wait until `estimate` tokens beside `keep` may be spent, and set them aside for one call.

        The call waits in line: small calls don't pass a big one. Raises AcquireTimeout, nothing taken, as soon as it
        is clear that the wait is longer than `timeout`; CostTooLarge, TypeError, ConfigError for an impossible cost;
        StorageUnavailable.
        timeout: seconds to wait for tokens (None: as long as it takes). label: whose call it is, shown by
        `peek().in_flight`.
        """
        return self._steps().carried(self._request(estimate, keep, timeout, label))

    def try_request(self, estimate: int, *, keep: int = 0, place: str | None = None, label: str = "") -> Call:
        """Set `estimate` tokens aside for one call now, or raise NotEnoughTokens with `retry_after` and `reason`.

        Never sleeps, but may probe. For task queues: retry the task after `retry_after` seconds. place: the task's id;
        a refused task stands in line under this id and keeps its place until it comes back, in any worker. label: as
        for `request`.
        """
        return self._steps().carried(self._try_request(estimate, keep, place, label))

    def attempts(
        self, estimate: int, *, keep: int = 0, timeout: float | None = None, label: str = ""
    ) -> Generator[Call, None, None]:
        """Yield calls until one is not refused by the server: `for call in sync.attempts(5): with call: ...`.

        Settle each call with its status. Between two calls it waits for tokens, or longer each time if the server
        refuses although there are tokens; the fifth such call is the last. timeout: seconds to wait in all; raises as
        `request`.
        """
        attempts = self._attempts(estimate, keep, timeout, label)
        while (call := self._steps().carried(attempts.next)) is not None:
            yield call
            if not call.refused:
                return

    def observe(self, body: Body, *, status: int | None = None) -> None:
        """Take an envelope seen elsewhere, if it is fresh. Never raises on a body: a bad one is reported."""
        run(lambda: self._observed(body, status))

    def refresh(self) -> Snapshot:
        """Ask the server now, unless another worker is just doing so, and return the bucket. Costs no tokens.

        Raises ConfigError without a probe. A probe that fails is reported, and the bucket returned as it is known.
        """
        return self._steps().carried(self._refreshed)

    def claim_probe(self) -> bool:
        """Claim the right to ask the server now; if True, ask it and `observe` the answer. For callers without a probe.

        One caller at a time has the right, for 20 s.
        """
        return self._steps().carry(ClaimProbe()).probe

    def close(self) -> None:
        """Let go of the bucket. The storage is closed by whoever opened it."""
        self.bucket.close()

    def _steps(self) -> BlockingSteps:
        return BlockingSteps(door_of(self.bucket))

    def _call(self, command: Reserve, outcome: Outcome, waited_us: int) -> Call:
        return Call(self._steps, command, outcome, waited_us)


class Call(CallBase):
    """One call to Keepa, its estimated cost set aside. Settle it by its answer.

    refused: the server refused it. consumed: the tokens that it cost, once settled; None if the answer didn't say.
    told: the answer carried a reading. retry_after: the seconds of the answer's `Retry-After`, if `settle` was given
    the response itself. arrived: the call's number in line; if it never stood there and was refused, the one by which
    it was let go.

    As a context manager: left unsettled, by an exception too, the estimate stays set aside until the hold runs
    out and is charged then, because nobody knows whether the server charged it.
    """

    def settle(self, body: Body = None, *, status: int | None = None) -> None:
        """End the call by its answer: parsed, as bytes or text, refusals and errors too. A second time changes nothing.

        Charges the cost that the answer states, else the estimate; takes its reading if it is fresh. A status of 429
        costs nothing. body None (a PNG, a timeout): nobody knows whether it was charged, so its hold is left to run
        out. Never raises on a body.
        """
        run(lambda: self._settled(body, status))

    def cancel(self) -> None:
        """End a call that was certainly never sent: its tokens are free again."""
        run(self._cancelled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the hold as it is: settled, or running out by itself."""
        self._left(kind)
