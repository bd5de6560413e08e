"""The Prometheus listener: what happens to a bucket, as numbers."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from keepa_tokens import (
    AsyncTokenBucket,
    ConfigError,
    Event,
    EventKind,
    MemoryStorage,
    Quota,
    Reservation,
    Storage,
    StorageUnavailable,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.guards.httpx import KeepaTransport
from keepa_tokens.metrics import BucketCollector, PrometheusListener
from keepa_tokens.storage.sqlite import AsyncSQLiteStorage
from keepa_tokens.testing import ManualClock
from tests.helpers import Noted
from tests.keepa_stories import Told
from tests.keepa_world import World
from tests.stories import Story, each_story

API_KEY = "a" * 64
VERDICTS = ("taken", "stale", "bad")


LABELS = {
    "refusals_total": "reason",
    "pauses_total": "reason",
    "readings_total": "verdict",
    "drift_tokens_total": "direction",
    "wait_seconds_bucket": "le",
}


class Counted(World):
    """A bucket whose events are counted, beside the fake server."""

    def __init__(self, initial: int = 20) -> None:
        self.registry = CollectorRegistry()
        self.others: list[Event] = []
        self.listener = PrometheusListener(self.registry, then=self.others.append)
        super().__init__(initial, listener=self.listener)
        BucketCollector(self.bucket, registry=self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        """Return a metric; a label may stand behind its name."""
        name, _, label = name.partition(":")
        labels = {LABELS[name]: label} if label else labels
        return self.registry.get_sample_value(f"keepa_tokens_{name}", {"bucket": "k", **labels})


STORIES = """
calls are grants of what they asked for and settles; the gauge has the server's balance: initial=20
    call 1; call 2; call 3 -> grants_total=3 granted_tokens_total=6 settled_total=3 metric:balance=14 left=14
    peek -> readings_total:taken=4 probes_total=1 metric:drift=0
a call that has to wait leaves refusals, pauses, and how long it was kept; one that goes at once no wait: initial=-12
    try x 1 -> NotEnoughTokens refusals_total:UNKNOWN=1 refusals_total:EMPTY=1; call 1; pass 600
    call 1 -> pauses_total:EMPTY>=3 wait_seconds_count=1 wait_seconds_bucket:900.0=1 wait_seconds_bucket:60.0=0
    peek -> slept>181 slept<182 wait_seconds_sum>180 wait_seconds_sum<183
every count of a bucket begins at 0, as Prometheus sees no increase where one comes up at 1: initial=20
    refresh -> grants_total=0 granted_tokens_total=0 settled_total=0 server_refusals_total=0 probe_failures_total=0
    peek -> readings_total:stale=0 readings_total:bad=0 drift_tokens_total:less=0 drift_tokens_total:more=0
a call that nobody settles is counted when its time is over: initial=20
    try a 3; settle a; pass 121; refresh -> holds_ran_out_total=1
where somebody else spent the tokens the 429 is counted once, and the drift says by how much they are fewer: initial=20
    call 1; outside 50; call 1 -> status=429 server_refusals_total=1 settled_total=2 refusals_total:EMPTY=-
    peek -> metric:drift=-50 metric:balance=-31; pass 1; outside -100; refresh -> metric:drift=100
    peek -> drift_tokens_total:less=50 drift_tokens_total:more=100
a 429 that comes when the call's hold is long forgotten is counted too: initial=20
    refresh; try a 3; outside 50; pass 245; answer a 3 -> status=429 server_refusals_total=1 settled_total=0
a scrape shows the bucket as it is then, though no event has told of it, and takes nothing: initial=-10
    refresh -> bucket_balance=-10; pass 301; peek -> balance=10 bucket_balance=10 bucket_reading_age_seconds=301
    peek -> bucket_capacity=300 bucket_refill_per_minute>4.95 bucket_refill_per_minute<4.96 bucket_up=1
    request a 4 -> bucket_held=4 bucket_holds=1 bucket_available=6 spent=0
who waits and for what, what is kept back for others, and a pause are numbers too: initial=-12
    try a 3 place=one -> NotEnoughTokens; try b 3 place=two -> NotEnoughTokens bucket_waiting=2 bucket_wanted=6
    peek -> retry_after=242 bucket_retry_after_seconds=242; pass 300; outside 15
    refresh -> kept_back=10 bucket_kept_back=10; pause 90 -> bucket_paused_for_seconds=90
"""


@each_story(STORIES)
def test_what_happens_is_counted(story: Story) -> None:
    """Each title says what is counted of it."""
    Told(story, Counted).goes()


@pytest.mark.parametrize("keep", [0, 1])
def test_a_wait_is_one_whether_in_a_place_or_in_line(keep: int) -> None:
    """On a plain bucket who sleeps until its place comes, and who stands in line, are each one wait of their time."""
    clock, registry = ManualClock(), CollectorRegistry()
    bucket = TokenBucket(Quota(5, 1, 2.0), key="k", clock=clock, listener=PrometheusListener(registry))
    bucket.acquire(5)
    bucket.acquire(3, keep=keep)
    assert registry.get_sample_value("keepa_tokens_wait_seconds_count", {"bucket": "k"}) == 1
    waited = registry.get_sample_value("keepa_tokens_wait_seconds_sum", {"bucket": "k"})
    assert waited == pytest.approx((3 + keep) * 2.0, rel=0.01)


def test_what_calls_cost_is_counted_by_path() -> None:
    """A call's charge stands under its label, of a guard the path: what it consumed, or its estimate."""
    world = Counted(initial=100)

    def answered(request: httpx.Request) -> httpx.Response:
        answer = world.fake.request(request.url.path, dict(request.url.params))
        return httpx.Response(answer.status, content=answer.content)

    with httpx.Client(transport=KeepaTransport(world.sync, httpx.MockTransport(answered), api_key=API_KEY)) as client:
        client.get("https://api.keepa.com/product", params={"domain": "1", "asin": "A,B,C"})
        client.get("https://api.keepa.com/category", params={"domain": "1", "category": "7"})
    with world.sync.request(4, label="by hand") as call:
        call.settle({"tokensLeft": 92})
    with world.sync.request(4, label="by hand") as call:
        call.settle({"tokensLeft": 92}, status=429)
    assert world.value("consumed_tokens_total", path="product") == 3
    assert world.value("consumed_tokens_total", path="category") == 1
    assert world.value("consumed_tokens_total", path="by hand") == 4


@pytest.mark.parametrize("leave", [lambda held: held.settle(2), lambda held: held.__exit__(None, None, None)])
def test_a_reservation_is_counted_under_its_label(leave: Callable[[Reservation], None]) -> None:
    """What a reservation was settled at, or its estimate where it was left, is consumed by its label."""
    registry = CollectorRegistry()
    bucket = TokenBucket(Quota(5, 1, 1.0), key="k", listener=PrometheusListener(registry))
    leave(bucket.reserve(2, label="report"))
    assert registry.get_sample_value("keepa_tokens_consumed_tokens_total", {"bucket": "k", "path": "report"}) == 2


def test_changed_terms_are_counted() -> None:
    """A worker with other terms changes the bucket's, once."""
    world = Counted()
    world.call(1)
    other = TokenBucket(keepa_quota(20), key="k", storage=world.storage, clock=world.clock, listener=world.listener)
    other.try_acquire(1)
    assert world.value("terms_changed_total") == 1


class Away(MemoryStorage):
    def apply(self, *_: Any, **__: Any) -> Any:
        raise StorageUnavailable("the storage is away")


class AsyncAway(AsyncSQLiteStorage):
    async def apply(self, *_: Any, **__: Any) -> Any:
        raise StorageUnavailable("the storage is away")


def test_steps_that_the_storage_did_not_answer_are_counted(tmp_path: Path) -> None:
    """Each step that ends in StorageUnavailable is one error, at every door."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    storage = AsyncAway(tmp_path / "buckets.sqlite")
    bucket = TokenBucket(Quota(5, 1, 1.0), key="k", storage=Away(), listener=listener)
    twins = [AsyncTokenBucket(Quota(5, 1, 1.0), key="k", storage=each, listener=listener) for each in (Away(), storage)]
    for step in (bucket.try_acquire, bucket.acquire, bucket.try_reserve, bucket.reserve, bucket.peek):
        with pytest.raises(StorageUnavailable):
            step()
    for twin in twins:
        with pytest.raises(StorageUnavailable):
            asyncio.run(twin.peek())
    asyncio.run(storage.aclose())
    assert registry.get_sample_value("keepa_tokens_storage_errors_total", {"bucket": "k"}) == 7


def test_the_values_of_a_label_are_bounded() -> None:
    """Beyond the most buckets, or paths, all are counted as `other`, and many buckets together have no balance."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry, most_buckets=2)
    for user in ("a", "b", "c", "d", "a"):
        listener(Event(EventKind.GRANTED, user, 1, balance=4))
    for path in range(60):
        listener(Event(EventKind.SETTLED, "a", 1, label=str(path)))

    def shown(name: str, label: str) -> dict[str, float]:
        families = [family for family in registry.collect() if family.name == f"keepa_tokens_{name}"]
        return {each.labels[label]: each.value for each in families[0].samples if "_created" not in each.name}

    assert shown("grants", "bucket") == {"a": 2, "b": 1, "other": 2}
    assert shown("balance", "bucket") == {"a": 4, "b": 4}
    paths = shown("consumed_tokens", "path")
    assert (len(paths), paths["other"]) == (51, 10)


def names(registry: CollectorRegistry) -> set[str]:
    kinds = {"counter": "_total"}
    return {family.name + kinds.get(family.type, "") for family in registry.collect()}


def test_every_metric_is_documented() -> None:
    """The reference names each metric that there is, and no other."""
    registry = CollectorRegistry()
    PrometheusListener(registry)
    BucketCollector(registry=registry)
    listed = {
        prefix + name
        for kind, prefix in ((PrometheusListener, "keepa_tokens_"), (BucketCollector, "keepa_tokens_bucket_"))
        for line in re.findall(r"(?ms)^- (.*?)(?=^-|^ *$|\Z)", inspect.getdoc(kind) or "")
        for name in re.findall(r"`([a-z_]+)`", re.sub(r"by `\w+`", "", line))
        if name != "less"
    }
    assert listed == names(registry)


@pytest.mark.parametrize(
    "kind, counted, labels",
    [
        (EventKind.GRANTED, "grants_total", {}),
        (EventKind.REFUSED, "refusals_total", {"reason": "EMPTY"}),
        (EventKind.WAITING, "pauses_total", {"reason": "EMPTY"}),
        (EventKind.WAITED, "wait_seconds_count", {}),
        (EventKind.SETTLED, "settled_total", {}),
        *((getattr(EventKind, f"READING_{name.upper()}"), "readings_total", {"verdict": name}) for name in VERDICTS),
        (EventKind.REPAIRED, "repairs_total", {}),
        (EventKind.PROBE_CLAIMED, "probes_total", {}),
        (EventKind.PROBE_FAILED, "probe_failures_total", {}),
        (EventKind.NOT_GIVEN_BACK, "not_given_back_total", {}),
        (EventKind.LEFT_UNSETTLED, "left_unsettled_total", {}),
        (EventKind.HOLD_RAN_OUT, "holds_ran_out_total", {}),
        (EventKind.TERMS_CHANGED, "terms_changed_total", {}),
        (EventKind.STORAGE_AWAY, "storage_errors_total", {}),
    ],
)
def test_every_kind_of_event_is_counted(kind: EventKind, counted: str, labels: dict[str, str]) -> None:
    """Each raises one count by one, from the 0 at which it begins; there is no other kind."""
    world = Counted()
    for count in (1, 2):
        world.listener(Event(kind, "k", 1, 2, 3.0, 4, "EMPTY"))
        assert world.value(counted, **labels) == count
    assert len(EventKind) == 16


def test_one_listener_serves_many_buckets_and_another_listener() -> None:
    """The label tells buckets apart; what comes after is told of every event, in order."""
    world = Counted()
    other = TokenBucket(Quota(5, 1, 1.0), key="other", clock=world.clock, listener=world.listener)
    other.try_acquire(2)
    world.call(1)
    assert world.value("granted_tokens_total", bucket="other") == 2
    assert world.value("granted_tokens_total") == 1
    assert world.others[0].key == "other"
    assert {event.kind for event in world.others} >= {EventKind.GRANTED, EventKind.SETTLED, EventKind.READING_TAKEN}


# --- several processes

WORKER = """
import sys
from keepa_tokens import Event, EventKind
from keepa_tokens.metrics import PrometheusListener
balance = int(sys.argv[1])
listener = PrometheusListener()
listener(Event(EventKind.GRANTED, "k", tokens=3, balance=balance))
listener(Event(EventKind.READING_TAKEN, "k", balance=balance, drift=-balance))
"""

SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from keepa_tokens import Quota, TokenBucket
from keepa_tokens.metrics import BucketCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
BucketCollector(TokenBucket(Quota(5, 1, 1.0), key="k"), registry=registry)
print(generate_latest(registry).decode())
"""


@pytest.mark.deep
def test_several_processes_show_one_value(tmp_path: Path) -> None:
    """Of three workers the gauges have the value heard last, the counts are summed up, and a collector has one look."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(program: str, *arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    for balance in ("7", "9", "8"):
        run(WORKER, balance)
    lines = [line for line in run(SCRAPE).splitlines() if line.startswith("keepa_tokens_")]
    assert [line for line in lines if line.startswith(("keepa_tokens_balance", "keepa_tokens_drift{"))] == [
        'keepa_tokens_balance{bucket="k"} 8.0',
        'keepa_tokens_drift{bucket="k"} -8.0',
    ]
    assert 'keepa_tokens_granted_tokens_total{bucket="k"} 9.0' in lines
    assert [line for line in lines if line.startswith("keepa_tokens_bucket_available")] == [
        'keepa_tokens_bucket_available{bucket="k"} 5.0'
    ]
    assert not [line for line in lines if "pid=" in line]


def test_the_default_registry_is_the_default() -> None:
    """Without a registry the metrics go where a service's other metrics go."""
    for kind in (PrometheusListener, BucketCollector):
        assert inspect.signature(kind).parameters["registry"].default is REGISTRY


def test_a_second_one_in_a_registry_is_told_to_be_one() -> None:
    """The client's own error names metrics; this one says that the first serves many buckets."""
    registry = CollectorRegistry()
    for kind in (PrometheusListener, BucketCollector):
        kind(registry=registry)
        with pytest.raises(ConfigError, match=f"has a {kind.__name__} already: one serves many buckets"):
            kind(registry=registry)


# --- a look at scrape time


def test_an_unknown_balance_is_shown_as_such() -> None:
    """Of a bucket never told there is no number: NaN, and no age of a reading."""
    world = Counted()
    world.listener(Event(EventKind.REFUSED, "k", 1, why="UNKNOWN"))
    for name in ("bucket_balance", "balance"):
        assert math.isnan(world.value(name) or 0)
    assert world.value("bucket_reading_age_seconds") is None


def other_kind() -> MemoryStorage:
    """Return a storage where a bucket that follows a server has the name."""
    storage = MemoryStorage()
    TokenBucket(keepa_quota(5), key="away", storage=storage).try_acquire()
    return storage


@pytest.mark.parametrize("storage", [Away, other_kind])
def test_a_bucket_that_cannot_be_seen_spoils_no_scrape(storage: Callable[[], Storage]) -> None:
    """The bucket whose storage is away, or has another kind of bucket there, is shown as down, the other as it is."""
    registry = CollectorRegistry()
    quota = Quota(5, 1, 1.0)
    BucketCollector(
        TokenBucket(quota, key="here"), TokenBucket(quota, key="away", storage=storage()), registry=registry
    )
    found = {
        (sample.name, sample.labels["bucket"]): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    assert found["keepa_tokens_bucket_up", "away"] == 0
    assert found["keepa_tokens_bucket_balance", "here"] == 5
    assert [name for name, bucket in found if bucket == "away"] == ["keepa_tokens_bucket_up"]


def test_registering_looks_at_no_bucket() -> None:
    """A registry that describes what it has learns the names without a look."""
    storage, registry = Noted(), CollectorRegistry(auto_describe=True)
    BucketCollector(TokenBucket(Quota(5, 1, 1.0), key="k", storage=storage), registry=registry)
    assert storage.commands == []
    generate_latest(registry)
    assert len(storage.commands) == 1
