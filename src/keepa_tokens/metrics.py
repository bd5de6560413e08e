"""A listener that counts what happened in Prometheus metrics (an extra). Labels name buckets, never API keys."""

from __future__ import annotations

import math
from typing import Final

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the Prometheus listener needs prometheus-client: pip install 'keepa-tokens[metrics]'"
    raise ImportError(msg) from missing

from .events import Event, EventKind, Listener
from .keepa._plans import SERVER_REFUSED

__all__ = ["PrometheusListener"]

LESS: Final = "less"
MORE: Final = "more"


class PrometheusListener:
    """Counts events in `registry`: `TokenBucket(..., listener=PrometheusListener(registry))`. One serves many buckets.

    then: another listener that is told as well, e.g. a `LoggingListener`. Every metric has the label `bucket`, the
    bucket's key; its names begin with `keepa_tokens_`:

    - `grants_total`, `granted_tokens_total`: requests for tokens that were granted, and what they asked for
    - `refusals_total` by `reason`: requests for tokens that the bucket refused
    - `server_refusals_total`: calls that the server refused with a 429
    - `waits_total`, `wait_seconds_total` by `reason`: pauses of those who wait
    - `settled_total`: calls that were settled
    - `readings_total` by `verdict` (taken, stale, bad): what became of the server's readings
    - `probes_total`, `probe_failures_total`: times that the server was asked, or that a scout was sent
    - `not_given_back_total`: interrupted calls that may have left tokens taken, with the storage away
    - `left_unsettled_total`: calls and reservations that nobody settled
    - `repairs_total`: times that a stored state was mended
    - `drift_tokens_total` by `direction`: by how much the server had less, or more, than projected. `less` that
      keeps growing is another program that spends from the same key
    - `balance`, `drift`: gauges; the balance as of the last event (NaN: unknown), the drift of the last reading
    """

    def __init__(self, registry: CollectorRegistry, *, then: Listener | None = None) -> None:
        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(name, says, ("bucket", *labels), namespace="keepa_tokens", registry=registry)

        def gauge(name: str, says: str) -> Gauge:
            return Gauge(name, says, ("bucket",), namespace="keepa_tokens", registry=registry)

        self._then = then
        self._granted_tokens = counter("granted_tokens", "Tokens asked for by the requests that were granted.")
        self._refusals = counter("refusals", "Requests for tokens that the bucket refused.", "reason")
        self._server_refusals = counter("server_refusals", "Calls that the server refused with a 429.")
        self._settled = counter("settled", "Calls that were settled.")
        self._waits = counter("waits", "Pauses of those who wait for tokens.", "reason")
        self._wait_seconds = counter("wait_seconds", "Seconds in pauses of those who wait for tokens.", "reason")
        self._readings = counter("readings", "What became of the server's readings.", "verdict")
        self._drift_tokens = counter("drift_tokens", "Tokens by which the server's balance differed.", "direction")
        self._balance = gauge("balance", "Tokens that the server would report; NaN: unknown.")
        self._drift = gauge("drift", "Reported minus projected balance at the last reading.")
        self._simple = {
            EventKind.GRANTED: counter("grants", "Requests for tokens that were granted."),
            EventKind.PROBE_CLAIMED: counter("probes", "Times that the server was asked, or a scout was sent."),
            EventKind.PROBE_FAILED: counter("probe_failures", "Probes that brought no reading."),
            EventKind.NOT_GIVEN_BACK: counter("not_given_back", "Interrupted calls that may have left tokens taken."),
            EventKind.LEFT_UNSETTLED: counter("left_unsettled", "Calls and reservations that nobody settled."),
            EventKind.REPAIRED: counter("repairs", "Times that a stored state was mended."),
        }

    def __call__(self, event: Event, /) -> None:
        """Count `event`."""
        bucket = event.key
        if event.kind in self._simple:
            self._simple[event.kind].labels(bucket).inc()
        if event.kind in _VERDICTS:
            self._readings.labels(bucket, _VERDICTS[event.kind]).inc()
        match event.kind:
            case EventKind.GRANTED:
                self._granted_tokens.labels(bucket).inc(event.tokens)
            case EventKind.REFUSED:
                self._refusals.labels(bucket, event.why).inc()
            case EventKind.WAITING:
                self._waits.labels(bucket, event.why).inc()
                self._wait_seconds.labels(bucket, event.why).inc(event.seconds)
            case EventKind.SETTLED:
                # Of a 429 there are two events: the bucket's, and the one that says why.
                (self._server_refusals if event.why == SERVER_REFUSED else self._settled).labels(bucket).inc()
            case EventKind.READING_TAKEN:
                self._on_drift(bucket, event.drift)
            case _:
                pass
        if event.kind in _KNOW_THE_BALANCE:
            self._balance.labels(bucket).set(math.nan if event.balance is None else event.balance)
        if self._then is not None:
            self._then(event)

    def _on_drift(self, bucket: str, drift: int | None) -> None:
        if drift is None:
            return
        self._drift.labels(bucket).set(drift)
        self._drift_tokens.labels(bucket, LESS if drift < 0 else MORE).inc(abs(drift))


_VERDICTS: Final = {
    EventKind.READING_TAKEN: "taken",
    EventKind.READING_STALE: "stale",
    EventKind.READING_BAD: "bad",
}
_KNOW_THE_BALANCE: Final = frozenset(
    {EventKind.GRANTED, EventKind.REFUSED, EventKind.READING_TAKEN, EventKind.READING_STALE, EventKind.REPAIRED}
)
