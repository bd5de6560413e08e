"""Prometheus metrics (an extra): a listener that counts what happened, and a collector that looks at buckets.

Labels name buckets, never API keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    raise ImportError("the Prometheus metrics need prometheus-client: pip install 'keepa-tokens[metrics]'") from missing

from ._arguments import instance, whole
from ._interrupts import Lock
from .bucket import TokenBucket
from .errors import ConfigError, KeepaTokensError
from .events import Event, EventKind, Listener, checked_listener
from .keepa._door import SERVER_REFUSED
from .rules.decision import Snapshot

__all__ = ["BucketCollector", "PrometheusListener"]

LESS: Final = "less"
MORE: Final = "more"
OTHER: Final = "other"
MOST_PATHS: Final = 50
WAITS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


class PrometheusListener:
    """Counts events in `registry`: `TokenBucket(..., listener=PrometheusListener())`. One serves many buckets.

    With several processes (PROMETHEUS_MULTIPROC_DIR) the counts are summed up, and a gauge is the value set last.

    then: another listener that is told as well, e.g. a `LoggingListener`. most_buckets: the most buckets that are told
    apart, the first to be heard of; all others are counted together as `other`, and so are paths beyond the first 50.

    Every metric has the label `bucket`, the bucket's key; its names begin with `keepa_tokens_`:

    - `grants_total`, `granted_tokens_total`: requests for tokens that were granted, and what they asked for
    - `refusals_total` by `reason`: requests for tokens that the bucket refused
    - `server_refusals_total`: calls that the server refused with a 429
    - `wait_seconds`: a histogram of how long those were kept that had to wait and then went
    - `pauses_total` by `reason`: times that somebody who waits slept; where a server is followed, a minute each at most
    - `settled_total`: calls that were settled
    - `consumed_tokens_total` by `path`: what settled calls were charged; the path is the call's label, which a guard
      sets to that of the request
    - `readings_total` by `verdict` (taken, stale, bad): what became of the server's readings
    - `probes_total`, `probe_failures_total`: times that the server was asked, or that a scout was sent
    - `holds_ran_out_total`: calls that nobody settled in time
    - `not_given_back_total`: interrupted calls that may have left tokens taken, with the storage away
    - `left_unsettled_total`: calls and reservations that were dropped without being settled
    - `repairs_total`: times that a stored state was mended
    - `terms_changed_total`: times that workers with other terms changed the bucket's
    - `storage_errors_total`: steps that the storage did not answer
    - `drift_tokens_total` by `direction`: by how much the server had less, or more, than projected. `less` that
      keeps growing is another program that spends from the same key
    - `balance`, `drift`: gauges; the balance as of the last event (NaN: unknown), the drift of the last reading
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, then: Listener | None = None, most_buckets: int = 100
    ) -> None:
        instance("registry", registry, CollectorRegistry)
        own: dict[str, Any] = {"namespace": "keepa_tokens", "registry": registry}

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(name, says, ("bucket", *labels), **own)

        def gauge(name: str, says: str) -> Gauge:
            # All processes speak of the same bucket, so what any of them heard last is true of all.
            return Gauge(name, says, ("bucket",), multiprocess_mode="mostrecent", **own)

        self._then = None if then is None else checked_listener(then, "then")
        self._begun: set[str] = set()
        self._bucket, self._path = _Bounded(whole("most_buckets", most_buckets)), _Bounded(MOST_PATHS)
        with _once("PrometheusListener"):
            self._granted_tokens = counter("granted_tokens", "Tokens asked for by the requests that were granted.")
        self._refusals = counter("refusals", "Requests for tokens that the bucket refused.", "reason")
        self._server_refusals = counter("server_refusals", "Calls that the server refused with a 429.")
        self._settled = counter("settled", "Calls that were settled.")
        self._consumed = counter("consumed_tokens", "Tokens that settled calls were charged.", "path")
        self._pauses = counter("pauses", "Times that somebody who waits slept.", "reason")
        says = "How long those were kept that had to wait for tokens."
        self._waits = Histogram("wait_seconds", says, ("bucket",), buckets=WAITS, **own)
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
            EventKind.HOLD_RAN_OUT: counter("holds_ran_out", "Calls that nobody settled in time."),
            EventKind.TERMS_CHANGED: counter("terms_changed", "Times that workers with other terms changed them."),
            EventKind.STORAGE_AWAY: counter("storage_errors", "Steps that the storage did not answer."),
        }

    def __call__(self, event: Event, /) -> None:
        """Count `event`."""
        bucket = self._bucket(event.key)
        if bucket not in self._begun:
            self._begin(bucket)
        self._count(event, bucket)
        if bucket == event.key:  # many buckets together have no balance
            self._gauge(event, bucket)
        if self._then is not None:
            self._then(event)

    def _begin(self, bucket: str) -> None:
        """Let every count of a bucket begin at 0: Prometheus sees no increase where a count comes up at 1."""
        self._begun.add(bucket)
        for counter in (*self._simple.values(), self._granted_tokens, self._settled, self._server_refusals):
            counter.labels(bucket)
        for verdict in _VERDICTS.values():
            self._readings.labels(bucket, verdict)
        for direction in (LESS, MORE):
            self._drift_tokens.labels(bucket, direction)

    def _gauge(self, event: Event, bucket: str) -> None:
        if event.kind in _KNOW_THE_BALANCE:
            self._balance.labels(bucket).set(math.nan if event.balance is None else event.balance)
        if event.drift is not None:
            self._drift.labels(bucket).set(event.drift)

    def _count(self, event: Event, bucket: str) -> None:
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
                self._pauses.labels(bucket, event.why).inc()
            case EventKind.WAITED:
                self._waits.labels(bucket).observe(event.seconds)
            case EventKind.SETTLED if event.why == SERVER_REFUSED:
                # Of a 429 there are two events: the bucket's, and the one that says why.
                self._server_refusals.labels(bucket).inc()
            case EventKind.SETTLED:
                self._settled.labels(bucket).inc()
                self._consumed.labels(bucket, self._path(event.label)).inc(event.tokens)
            case EventKind.READING_TAKEN if event.drift is not None:
                self._drift_tokens.labels(bucket, LESS if event.drift < 0 else MORE).inc(abs(event.drift))
            case _:
                pass


@contextmanager
def _once(kind: str) -> Generator[None, None, None]:
    """Say what to do where a registry has the same metrics already."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(
            f"the registry has a {kind} already: one serves many buckets, so give it all of them"
        ) from error


class _Bounded:
    """The values of a label: the first `most` as they are, all others as one. Each is a row that Prometheus keeps."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[str] = set()
        self._lock = Lock()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        with self._lock:
            if len(self._seen) >= self._most:
                return OTHER
            self._seen.add(value)
        return value


_VERDICTS: Final = {EventKind.READING_TAKEN: "taken", EventKind.READING_STALE: "stale", EventKind.READING_BAD: "bad"}
_KNOW_THE_BALANCE: Final = frozenset(
    {EventKind.GRANTED, EventKind.REFUSED, EventKind.READING_TAKEN, EventKind.READING_STALE, EventKind.REPAIRED}
)


class BucketCollector(Collector):
    """Looks at buckets whenever it is scraped: `BucketCollector(sync.bucket)`. Takes nothing, asks no server.

    Each process shows the same, since the bucket is in its storage. So register it in one process, or in each for
    itself; in the registry that collects the files of PROMETHEUS_MULTIPROC_DIR only once. Every metric has the label
    `bucket`, the key, so two buckets of one key are a ConfigError; its names begin with `keepa_tokens_bucket_`:

    - `balance` (NaN: unknown), `available`, `held`, `capacity`, `kept_back`: tokens; `holds`: calls in flight
    - `waiting`: callers in line, and `wanted`: the tokens that they wait for
    - `refill_per_minute`, as the server last reported it
    - `reading_age_seconds`, `retry_after_seconds` (for one token), `full_in_seconds`, `closed_for_seconds` (a
      recharge's rest), `paused_for_seconds`
    - `up`: 1 if the storage answered with a bucket; 0, and nothing else of it, if it did not
    """

    def __init__(self, *buckets: TokenBucket, registry: CollectorRegistry = REGISTRY) -> None:
        for bucket in buckets:
            instance("a bucket", bucket, TokenBucket)
        if len({bucket.key for bucket in buckets}) < len(buckets):
            raise ConfigError(
                "two of the buckets have one key, which is their label: Prometheus would keep one of them"
            )
        self._buckets = buckets
        instance("registry", registry, CollectorRegistry)
        with _once("BucketCollector"):
            registry.register(self)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Name the metrics without a look, which a registry would take to learn of them."""
        return [_family(name, says) for name, says, _ in (*_LOOKS, _UP)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Look at each bucket once."""
        found = [(bucket.key, _look(bucket)) for bucket in self._buckets]
        for name, says, value in _LOOKS:
            family = _family(name, says)
            for key, seen in found:
                number = None if seen is None else value(seen)
                if number is not None:
                    family.add_metric([key], number)
            yield family
        up = _family(*_UP[:2])
        for key, seen in found:
            up.add_metric([key], float(seen is not None))
        yield up


Value: TypeAlias = Callable[[Snapshot], float | None]

_UP: Final[tuple[str, str, Value]] = ("up", "Whether the storage of the bucket answered.", lambda _: None)
_LOOKS: Final[tuple[tuple[str, str, Value], ...]] = (
    ("balance", "Tokens that the server would report; NaN: unknown.", lambda seen: _known(seen.balance)),
    ("available", "Tokens that nobody has set aside; NaN: unknown.", lambda seen: _known(seen.available)),
    ("held", "Tokens set aside by calls in flight.", lambda seen: seen.held),
    ("holds", "Calls in flight.", lambda seen: seen.holds),
    ("capacity", "Tokens that a full bucket holds.", lambda seen: seen.capacity),
    ("waiting", "Callers in line.", lambda seen: seen.waiting),
    ("wanted", "Tokens that the callers in line wait for.", lambda seen: seen.wanted),
    ("kept_back", "Tokens left to somebody else who was seen to spend.", lambda seen: seen.kept_back),
    ("refill_per_minute", "Tokens that come in a minute.", lambda seen: seen.refill * 60 / seen.period),
    ("reading_age_seconds", "Seconds since the last reading.", lambda seen: seen.reading_age),
    ("retry_after_seconds", "Seconds until a call of one token is granted.", lambda seen: seen.retry_after),
    ("full_in_seconds", "Seconds until the bucket is full.", lambda seen: seen.full_in),
    ("closed_for_seconds", "Seconds that are left of a recharge.", lambda seen: seen.closed_for),
    ("paused_for_seconds", "Seconds that are left of a pause.", lambda seen: seen.paused_for),
)


def _family(name: str, says: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"keepa_tokens_bucket_{name}", says, labels=["bucket"])


def _known(tokens: int | None) -> float:
    return math.nan if tokens is None else tokens


def _look(bucket: TokenBucket) -> Snapshot | None:
    try:
        return bucket.peek()
    except KeepaTokensError:  # the storage is away, or what it has there is no such bucket
        return None
