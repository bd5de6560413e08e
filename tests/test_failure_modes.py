"""Twenty-five failures that happened to real programs sharing one Keepa key, each as a test that it can't happen here.

The numbers are those of the table in `docs/evidence/failure-modes.md`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import re
from typing import Final

import pytest

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
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
from tests.keepa_stories import Told
from tests.keepa_world import World
from tests.stories import Story, each_story

STORIES: Final = """
01 what one worker spends the other sees, they neither sleep on tokens nor all fire on five: initial=10
    request a 8; peek by=other -> available=2; request b 2 by=other; try x 1 by=other -> NotEnoughTokens; cancel a
    try c 1 by=other
02 a constructor guesses nothing and calls nobody, the first request asks: initial=7
    peek -> balance=- token_calls=0; request a 1 -> token_calls=1
04 a recharge target above the capacity is the capacity: initial=-20 recharge_to=480
    try x 1 -> NotEnoughTokens reason=RECHARGING retry_after<=3872
# The end is an instant in the state: it survives an odd reading, and passes without an owner.
05 a recharge has an end and an odd rate does not drop it: initial=-20 recharge_to=40
    try x 1 -> NotEnoughTokens
    observe tokensLeft=-20 refillRate=0 error=odd timestamp=9e12 -> READING_BAD=1 closed_for>708 closed_for<727
    pass 727; peek -> closed_for=0; call 1 -> status=200
# Lost, and again and again lost; each time by a new worker.
06 a missing timestamp doesn't deadlock a negative balance, the next refusal asks and a grant comes: \
initial=-79 recharge_to=40
    refresh by=a; pass 700; damage refilled_at=-; try x 1 by=b -> NotEnoughTokens token_calls=2
    damage refilled_at=-; try x 1 by=c -> NotEnoughTokens; pass retry; call 1 by=d -> status=200
07 a stale negative balance is asked about before the worker leaves: initial=200
    refresh; pass 601; damage balance=-500; try a 1 -> token_calls=2
# Whatever a call costs it is admitted whenever a small one would be; `keep` makes background work step back.
09 large calls are not starved by small ones: initial=3
    refresh; try x 1 keep=3 -> NotEnoughTokens; call 50 -> status=200
12 the answer's balance stands, however wrong the estimate was: initial=150
    cost 386; call 1 estimate=100 -> balance=-236 in_step
13 a reading leaves holds in flight, a hold undone after it frees just what it held: initial=100
    request a 30; call 10 -> balance=90 held=30 available=60; cancel a; cancel a -> available=90 left=90
# Two calls in flight, answered in the wrong order.
14 an older answer arriving late changes nothing: the newer balance stays, the older one's hold goes: initial=100
    request a 10; request b 10; ask a 10; pass 1; ask b 10; tell b; tell a -> balance=80 held=0 in_step
15 a crashed worker's hold is charged after its lifetime, and no longer in anybody's way: initial=100
    request a 60 by=crashed; fail a; pass 119.999999; peek by=other -> held=60
    pass 0.000001; peek by=other -> balance=45 held=0 holds=0
17 drift between projection and server is corrected by the next reading, and seen: initial=38
    refresh; outside 47; refresh -> balance=-9 drift=-47; told READING_TAKEN -> drift=-47
18 a balance of 0 is taken, and a refusal is settled from its body and status: initial=4
    call 4 -> balance=0; outside 6; try x 1 -> NotEnoughTokens; damage balance=3
    call 1 -> status=429 balance=-6 in_step
19 an all-zero envelope is no reading, the next call works: initial=50
    call 1; fault zero_envelope; call 1 -> refill=5 capacity=300 READING_BAD=1; call 1 -> status=200
# Waits come from refillIn on our own clock; the server's time only puts its own answers in order. It may step back an
# hour: that shuts out no reading of a later call. 35 beyond the first 2 are 7 steps, the first one within a period.
20 a server clock ten minutes off neither spins nor oversleeps: initial=2
    refresh; offset (-600|600|-3600); call 4; call 4; call 4; call 4; call 4; call 4; call 4; call 4; call 4
    call 4 -> status=200 refused=0 in_step slept>360 slept<424.5
25 refusals and waits leave a trace with their reason: initial=2 recharge_to=10
    call 4; call 1; told REFUSED -> why=RECHARGING; told WAITING -> why=RECHARGING; told GRANTED -> why=GRANTED
"""


@each_story(STORIES)
def test_a_failure_cannot_happen_here(story: Story) -> None:
    """Each title has the number of a failure, and says what happens instead."""
    Told(story).goes()


def test_03_fields_of_the_envelope_are_what_they_are() -> None:
    """The balance is tokensLeft, also below 0, the cost tokensConsumed, and refillIn is in milliseconds."""
    said = envelope({"tokensLeft": -31, "tokensConsumed": 4, "refillIn": 38205, "refillRate": 5, "timestamp": 1})
    assert said.reading is not None
    assert (said.reading.balance, said.reading.next_refill_in, said.consumed) == (-31, 38.205, 4)


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


def test_10_a_wait_covers_every_condition() -> None:
    """One refusal, one wait, one grant: threshold and cost are met at the same instant, so nobody spins."""
    clock = ManualClock()
    storage = Noted()
    bucket = TokenBucket(
        Quota.per_second(1, capacity=100, recharge_to=20, initial=0), key="default", storage=storage, clock=clock
    )
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


def test_16_a_storage_that_is_away_grants_nothing_and_comes_back_by_itself() -> None:
    """An error of the storage is raised as such, neither a pass nor the end of sharing. Redis has tests of its own."""
    storage = Noted()
    bucket = TokenBucket(Quota.per_second(10), key="default", storage=storage, clock=ManualClock())
    storage.away = True
    with pytest.raises(StorageUnavailable):
        bucket.try_acquire(1)
    storage.away = False
    assert bucket.try_acquire(10)
    assert not bucket.try_acquire(1)


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


def test_every_failure_mode_has_its_test() -> None:
    """One test or one story for each number from 1 to 25."""
    numbers = [*re.findall(r"^test_(\d\d)", "\n".join(globals()), re.MULTILINE)]
    numbers += re.findall(r"^(\d\d) ", STORIES, re.MULTILINE)
    assert sorted(map(int, numbers)) == list(range(1, 26))
