"""The Prometheus listener: what happens to a bucket, as numbers."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from keepa_tokens import (
    Event,
    EventKind,
    KeepaSync,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.keepa._plans import SERVER_REFUSED
from keepa_tokens.metrics import PrometheusListener
from keepa_tokens.testing import FakeKeepa, ManualClock


class World:
    """A bucket whose events are counted, beside the fake server."""

    def __init__(self, initial: int = 20) -> None:
        self.clock = ManualClock()
        self.fake = FakeKeepa(initial=initial, clock=self.clock)
        self.registry = CollectorRegistry()
        self.others: list[Event] = []
        self.listener = PrometheusListener(self.registry, then=self.others.append)
        self.storage = MemoryStorage()
        bucket = TokenBucket(keepa_quota(5), key="k", storage=self.storage, clock=self.clock, listener=self.listener)
        self.sync = KeepaSync(bucket, probe=self.fake.probe)

    def call(self, tokens: int) -> int:
        with self.sync.request(tokens) as call:
            answer = self.fake.request("/product", {"asin": ",".join(map(str, range(tokens)))})
            call.settle(answer.content, status=answer.status)
        return answer.status

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"keepa_tokens_{name}", {"bucket": "k", **labels})


def test_grants_settles_and_the_balance_are_counted() -> None:
    """Three calls are three grants of what they asked for and three settles; the gauge has the server's balance."""
    world = World()
    for tokens in (1, 2, 3):
        world.call(tokens)
    assert world.value("grants_total") == 3
    assert world.value("granted_tokens_total") == 6
    assert world.value("settled_total") == 3
    assert world.value("balance") == world.fake.balance == 14
    assert world.value("readings_total", verdict="taken") == 4  # and the probe's
    assert world.value("probes_total") == 1
    assert world.value("drift") == 0


def test_refusals_and_waits_are_counted_by_reason() -> None:
    """A call that has to wait leaves its refusals, its pauses and their length."""
    world = World(initial=-12)
    with pytest.raises(NotEnoughTokens):
        world.sync.try_request(1)
    assert world.value("refusals_total", reason="UNKNOWN") == 1  # asked the server
    assert world.value("refusals_total", reason="EMPTY") == 1
    world.call(1)
    waits, paused = world.value("waits_total", reason="EMPTY"), world.value("wait_seconds_total", reason="EMPTY")
    assert waits is not None
    assert waits >= 3
    assert paused == pytest.approx(world.clock.slept, rel=0.01)


def test_a_429_is_counted_as_the_servers_own_refusal() -> None:
    """Where somebody else spent the tokens the 429 is counted once, and the drift says by how much they are fewer."""
    world = World()
    world.call(1)
    world.fake.spend_outside(50)
    assert world.call(1) == 429
    assert world.value("server_refusals_total") == 1
    assert world.value("refusals_total", reason="EMPTY") is None
    assert world.value("drift") == -50
    assert world.value("drift_tokens_total", direction="less") == 50
    assert world.value("balance") == -31


def test_what_the_server_has_more_counts_the_other_way() -> None:
    """A balance above the projection is counted as `more`."""
    world = World()
    world.call(1)
    world.fake.spend_outside(-30)
    world.call(1)
    assert world.value("drift_tokens_total", direction="more") == 30
    assert world.value("drift") == 30


def test_readings_that_were_not_taken_are_counted() -> None:
    """A stale and a bad reading each have their number."""
    world = World()
    old = world.fake.request("/token").body
    world.clock.advance(1)
    world.call(1)
    world.sync.observe(old)
    world.sync.observe(b"<html>", status=502)
    assert world.value("readings_total", verdict="stale") == 1
    assert world.value("readings_total", verdict="bad") == 1


def test_probes_and_those_that_fail_are_counted() -> None:
    """A server that is away leaves a probe that was tried and failed; the balance stays unknown, which is NaN."""
    world = World()
    world.fake.token_down = True
    with pytest.raises(NotEnoughTokens):
        world.sync.try_request(1)
    assert (world.value("probes_total"), world.value("probe_failures_total")) == (1, 1)
    balance = world.value("balance")
    assert balance is not None
    assert math.isnan(balance)


def test_a_repair_is_counted() -> None:
    """A stored state that had to be mended is counted, whatever was wrong with it."""
    world = World()
    world.listener(Event(EventKind.REPAIRED, "k", balance=-79, why="refilled_at, hold:a, hold:b"))
    assert world.value("repairs_total") == 1
    assert world.value("balance") == -79


def test_one_listener_serves_many_buckets_and_another_listener() -> None:
    """The label tells buckets apart; what comes after is told of every event, in order."""
    world = World()
    other = TokenBucket(Quota(5, 1, 1.0), key="other", clock=world.clock, listener=world.listener)
    other.try_acquire(2)
    world.call(1)
    assert world.value("granted_tokens_total", bucket="other") == 2
    assert world.value("granted_tokens_total") == 1
    assert world.others[0].key == "other"
    assert {event.kind for event in world.others} >= {EventKind.GRANTED, EventKind.SETTLED, EventKind.READING_TAKEN}


def test_it_touches_no_registry_but_the_one_it_is_given() -> None:
    """Two listeners with registries of their own live side by side, and count apart."""
    one, other = World(), World()
    one.call(1)
    assert one.value("grants_total") == 1
    assert other.value("grants_total") is None


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_of_event_leaves_a_trace(kind: EventKind) -> None:
    """There is no event that changes no metric."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    before = generate_latest(registry)
    listener(Event(kind, "k", 1, 2, 3.0, 4, "EMPTY"))
    assert generate_latest(registry) != before


def test_the_two_events_of_a_429_are_told_apart() -> None:
    """The bucket's own event of the settle counts as settled, the one that says why as the server's refusal."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    listener(Event(EventKind.SETTLED, "k"))
    listener(Event(EventKind.SETTLED, "k", why=SERVER_REFUSED))
    assert registry.get_sample_value("keepa_tokens_settled_total", {"bucket": "k"}) == 1
    assert registry.get_sample_value("keepa_tokens_server_refusals_total", {"bucket": "k"}) == 1
