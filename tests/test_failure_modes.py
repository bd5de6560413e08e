"""Twenty-five failures that happened to real programs sharing one Keepa key, each as a test that it can't happen here.

The numbers are those of the table in `docs/evidence/failure-modes.md`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import pickle

import pytest

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    EventKind,
    LoggingListener,
    Quota,
    Reading,
    Reason,
    StorageUnavailable,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.keepa.reading import envelope
from keepa_tokens.testing import FakeKeepa, ManualClock, virtual_loop
from tests.helpers import Napping, Noted
from tests.keepa_world import World, asins


def test_01_workers_share_one_balance() -> None:
    """What one worker spends the other one sees: they neither sleep on tokens nor all fire on five."""
    world = World(initial=10)
    first, second = world.worker(), world.worker()
    holding = first.request(8)
    assert second.bucket.peek().available == 2
    second.request(2)
    world.refused(by=second)
    holding.cancel()
    second.try_request(1)


def test_02_a_constructor_guesses_nothing_and_calls_nobody() -> None:
    """A new adapter has no balance and has asked nothing; the first request asks."""
    world = World(initial=7)
    assert world.bucket.peek().balance is None
    assert world.fake.token_calls == 0
    world.sync.request(1)
    assert world.fake.token_calls == 1


def test_03_fields_of_the_envelope_are_what_they_are() -> None:
    """The balance is tokensLeft, also below 0, the cost tokensConsumed, and refillIn is in milliseconds."""
    said = envelope({"tokensLeft": -31, "tokensConsumed": 4, "refillIn": 38205, "refillRate": 5, "timestamp": 1})
    assert said.reading is not None
    assert (said.reading.balance, said.reading.next_refill_in, said.consumed) == (-31, 38.205, 4)


def test_04_a_recharge_target_above_the_capacity_is_the_capacity() -> None:
    """480 on a bucket of 300 waits for 300, also after a plan change shrank the bucket."""
    world = World(initial=-20, recharge_to=480)
    refused = world.refused()
    assert refused.reason == Reason.RECHARGING
    assert refused.retry_after <= math.ceil(320 / 5) * 60.5


def test_05_a_recharge_has_an_end_and_an_odd_rate_does_not_drop_it() -> None:
    """The end is an instant in the state: it survives an odd reading, and passes without an owner."""
    world = World(initial=-20, recharge_to=40)
    world.refused()
    world.sync.observe({"tokensLeft": -20, "refillRate": 0, "error": {"type": "odd"}, "timestamp": 9e12})
    closed_for = world.bucket.peek().closed_for
    assert 60 / 5 * 59 < closed_for <= 60 / 5 * 60.5 + 1
    world.clock.advance(closed_for)
    assert world.bucket.peek().closed_for == 0
    assert world.call(1) == 200


def test_06_a_missing_timestamp_does_not_deadlock_a_negative_balance() -> None:
    """At -79 with the timestamp lost, and again and again lost, the next refusal asks the server and a grant comes."""
    world = World(initial=-79, recharge_to=40)
    world.worker().refresh()
    world.clock.advance(700)
    world.damage(refilled_at=None)
    world.refused(by=world.worker())
    assert world.fake.token_calls == 2
    world.damage(refilled_at=None)
    refused = world.refused(by=world.worker())
    world.clock.advance(refused.retry_after)
    assert world.call(1, by=world.worker()) == 200


def test_07_a_stale_negative_balance_is_asked_about_before_the_worker_leaves() -> None:
    """Stored -500, while the server refilled long ago: the refused worker itself asks, and is granted."""
    world = World(initial=200)
    world.sync.refresh()
    world.clock.advance(601)
    world.damage(balance=-500)
    world.sync.try_request(1)
    assert world.fake.token_calls == 2


def test_08_probes_are_few_and_the_rescue_is_never_throttled() -> None:
    """Eight workers for an hour below zero ask at most six times; with the balance lost the next one asks at once."""
    world = World(initial=-300)
    workers = [world.worker() for _ in range(8)]
    for _ in range(60):
        for worker in workers:
            world.refused(by=worker)
        world.clock.advance(59)
    assert world.fake.token_calls <= 1 + 6
    before = world.fake.token_calls
    world.damage(balance=None)
    world.refused(by=workers[3])
    assert world.fake.token_calls == before + 1


def test_09_large_calls_are_not_starved_by_small_ones() -> None:
    """Whatever a call costs it is admitted whenever a small one would be; `keep` makes background work step back."""
    world = World(initial=3)
    world.sync.refresh()
    world.refused(1, keep=3)
    assert world.call(50) == 200
    plain = TokenBucket(Quota.per_second(1, capacity=10), clock=world.clock)
    plain.acquire(10)
    assert plain.acquire(10).waited == 10
    assert not plain.try_acquire(1)


def test_10_a_wait_covers_every_condition() -> None:
    """One refusal, one wait, one grant: threshold and cost are met at the same instant, so nobody spins."""
    clock = ManualClock()
    storage = Noted()
    bucket = TokenBucket(Quota.per_second(1, capacity=100, recharge_to=20, initial=0), storage=storage, clock=clock)
    bucket.acquire(50)
    assert len(storage.commands) == 2
    assert 50 <= clock.slept <= 50.5


def test_11_a_waiting_worker_notices_a_better_balance() -> None:
    """A wait of half an hour is cut short within a minute of somebody else's reading."""

    def tell() -> None:
        if world.clock.now_us() > 120_000_000:
            other.observe({"tokensLeft": 500, "refillIn": 1, "refillRate": 60, "timestamp": 4e12})

    world = World(initial=-150, clock=Napping(0.0, tell))
    other = world.worker()
    assert world.worker().request(1).waited < 120 + 62
    assert other.bucket.peek().capacity == 3600


def test_12_an_estimate_of_100_that_costs_386() -> None:
    """The answer's balance stands, however wrong the estimate was."""
    world = World(initial=150)
    world.fake.cost = lambda path, params: 386 if path == "/product" else 0
    world.call(1, estimate=100)
    assert world.bucket.peek().balance == world.fake.balance == 150 - 386


def test_13_a_reading_leaves_holds_in_flight_and_a_cancel_after_it_mints_nothing() -> None:
    """A reading replaces the balance and not the holds; a hold undone after a reading frees just what it held."""
    world = World(initial=100)
    in_flight = world.sync.request(30)
    world.call(10)
    snapshot = world.bucket.peek()
    assert (snapshot.balance, snapshot.held, snapshot.available) == (90, 30, 60)
    in_flight.cancel()
    in_flight.cancel()
    assert world.bucket.peek().available == world.fake.balance == 90


def test_14_an_older_answer_arriving_late_changes_nothing() -> None:
    """Two calls in flight, answered in the wrong order: the newer balance stays, the older one's hold goes."""
    world = World(initial=100)
    first, second = world.sync.request(10), world.sync.request(10)
    older = world.fake.request("/product", asins(10))
    world.clock.advance(1)
    newer = world.fake.request("/product", asins(10))
    second.settle(newer.content, status=newer.status)
    first.settle(older.content, status=older.status)
    snapshot = world.bucket.peek()
    assert (snapshot.balance, snapshot.held) == (world.fake.balance, 0) == (80, 0)


def test_15_a_crashed_workers_hold_comes_to_an_end() -> None:
    """A hold that nobody settles is charged after its lifetime, and is no longer in anybody's way."""
    world = World(initial=100)
    with pytest.raises(TimeoutError), world.worker().request(60):
        raise TimeoutError
    world.clock.advance(119.999999)
    assert world.worker().bucket.peek().held == 60
    world.clock.advance(0.000001)
    snapshot = world.worker().bucket.peek()
    assert (snapshot.balance, snapshot.held, snapshot.holds) == (100 - 60 + 5, 0, 0)


def test_16_a_storage_that_is_away_grants_nothing_and_comes_back_by_itself() -> None:
    """An error of the storage is raised as such, neither a pass nor the end of sharing. Redis has tests of its own."""
    storage = Noted()
    bucket = TokenBucket(Quota.per_second(10), storage=storage, clock=ManualClock())
    storage.away = True
    with pytest.raises(StorageUnavailable):
        bucket.try_acquire(1)
    storage.away = False
    assert bucket.try_acquire(10)
    assert not bucket.try_acquire(1)


def test_17_drift_between_projection_and_server_is_seen() -> None:
    """38 stored and -9 real: the next reading corrects it, and the drift is in the event and the snapshot."""
    world = World(initial=38)
    world.sync.refresh()
    world.fake.spend_outside(47)
    world.sync.refresh()
    snapshot = world.bucket.peek()
    assert (snapshot.balance, snapshot.drift) == (-9, -47)
    assert world.events[-2].drift == -47 or any(event.drift == -47 for event in world.events)


def test_18_a_balance_of_zero_and_a_refusals_body_count() -> None:
    """A balance of 0 is taken, and a refusal is settled from its body and status, whatever the response object is."""
    world = World(initial=4)
    world.call(4)
    assert world.bucket.peek().balance == 0
    world.fake.spend_outside(6)
    world.refused()
    world.damage(balance=3)
    assert world.call(1) == 429
    assert world.bucket.peek().balance == world.fake.balance == -6


def test_19_a_zero_envelope_poisons_nothing() -> None:
    """An all-zero envelope is no reading: refill, capacity and balance stay, and the next call works."""
    world = World(initial=50)
    world.call(1)
    world.fake.fail_next(1, "zero_envelope")
    world.call(1)
    snapshot = world.bucket.peek()
    assert (snapshot.refill, snapshot.capacity) == (5, 300)
    assert any(event.kind is EventKind.READING_BAD for event in world.events)
    assert world.call(1) == 200


@pytest.mark.parametrize("offset", [-600.0, 600.0, -3600.0])
def test_20_a_server_clock_ten_minutes_off_neither_spins_nor_oversleeps(offset: float) -> None:
    """Waits come from refillIn on our own clock; the server's time only puts its own answers in order.

    It may step back an hour between answers: that shuts out no reading of a later call.
    """
    world = World(initial=2)
    world.sync.refresh()
    world.fake.server_clock_offset = offset
    for _ in range(10):
        assert world.call(4) == 200
    assert world.fake.refused == 0
    assert world.bucket.peek().balance == world.fake.balance
    # 40 tokens, the last call on credit: 35 beyond the first 2 are 7 steps, the first one within a period.
    assert 6 * 60 < world.clock.slept < 7 * 60.5 + 1


def test_21_waiting_coroutines_leave_the_loop_free() -> None:
    """While one coroutine waits for tokens another one keeps its rhythm; the loop's clock forbids a blocking sleep."""
    with virtual_loop() as loop:
        fake = FakeKeepa(initial=-10, clock=loop.clock)
        sync = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(), clock=loop.clock), probe=fake.aprobe)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(1)
                ticks += 1

        async def main() -> float:
            ticking = asyncio.ensure_future(tick())
            call = await sync.request(1)
            ticking.cancel()
            return call.waited

        waited = loop.run_until_complete(main())
        assert waited > 120
        assert ticks >= int(waited) - 1


def test_22_a_refill_of_zero_is_never_divided_by() -> None:
    """At refill 0, configured or reported, the wait is inf, a value."""
    for recharge_to in (None, 5):
        quota = Quota(10, 0, 60.0, initial=0, recharge_to=recharge_to)
        decision = TokenBucket(quota, clock=ManualClock()).try_acquire(1)
        assert (decision.retry_after, decision.reason) == (math.inf, Reason.EMPTY)
    synced = TokenBucket(keepa_quota(recharge_to=40), clock=ManualClock())
    synced.reconcile(Reading(-5, refill=0.0))
    assert synced.try_acquire(1).retry_after == math.inf


def test_23_the_wait_is_a_number_on_the_error_and_survives_pickling() -> None:
    """retry_after, reason and balance are attributes, in this process and in the next."""
    world = World(initial=-5)
    refused = world.refused(3, by=world.worker())
    assert world.clock.slept == 0
    error = pickle.loads(pickle.dumps(refused))
    assert (error.tokens, error.reason, error.balance) == (3, Reason.EMPTY, -5)
    assert error.retry_after == refused.retry_after
    assert 60 < error.retry_after <= 121
    assert str(error) == str(refused)


def test_24_a_thousand_polls_are_two_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The logging listener says when refusals begin and when they end, not at each poll."""
    caplog.set_level(logging.INFO, logger="keepa_tokens")
    clock = ManualClock()
    bucket = TokenBucket(Quota.per_second(1, initial=0), clock=clock, listener=LoggingListener())
    for _ in range(1000):
        bucket.try_acquire(1)
    clock.advance(1)
    assert bucket.try_acquire(1)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


def test_25_refusals_and_waits_leave_a_trace_with_their_reason() -> None:
    """A listener hears of each refusal, each wait and each 429, and why."""
    world = World(initial=2, recharge_to=10)
    world.call(4)
    world.call(1)
    reasons = {(event.kind, event.why) for event in world.events}
    assert (EventKind.REFUSED, Reason.RECHARGING) in reasons
    assert (EventKind.WAITING, Reason.RECHARGING) in reasons
    assert (EventKind.GRANTED, Reason.GRANTED) in reasons


def test_every_failure_mode_has_its_test() -> None:
    """One test for each number from 1 to 25."""
    numbers = [int(name[5:7]) for name in globals() if name[5:7].isdigit()]
    assert sorted(numbers) == list(range(1, 26))
