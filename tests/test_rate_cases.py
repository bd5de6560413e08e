"""What limiters elsewhere are tested for, written for this one: bursts, long runs, places, cancelling, timeouts.

The list of situations is that of the tests of Go's x/time/rate; where the answers differ, the docstring says why.
`D` is a tenth of a second: at 10 tokens a second the time of one token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from keepa_tokens import AcquireTimeout, CostTooLarge, MemoryStorage, Quota, TokenBucket
from keepa_tokens.async_bucket import AsyncTokenBucket
from keepa_tokens.quota import exact
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Refund, Reserve
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import LIMIT

D = 100_000
FOR_EVER = LIMIT - 1
START = 1000 * D


class Bench:
    """A bucket over memory storage, asked at multiples of `D`."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.storage = MemoryStorage()

    def allow(self, at: int, tokens: int) -> tuple[int | None, bool]:
        """Return the tokens that there were, and whether the request got its own."""
        before = self.apply(at, Acquire(0)).balance
        return before, self.apply(at, Acquire(tokens)).granted

    def reserve(self, at: int, tokens: int, *, within: int = FOR_EVER) -> int | None:
        """Return the place (in D) that a request gets at `at`, None if it gets none."""
        outcome = self.apply(at, Acquire(tokens, wait_us=within))
        return (at * D + outcome.place_us) // D if outcome.granted else None

    def cancel(self, at: int, tokens: int, place: int) -> None:
        """Give the place `place` (in D) up, as the doors do it."""
        self.apply(at, Refund(f"{tokens} at {place}", tokens, START + place * D))

    def apply(self, at: int, command: Command) -> Outcome:
        """Carry out a command."""
        return self.storage.apply("k", self.quota, command, now_us=START + at * D)


def ten(burst: int) -> Bench:
    """Return a full bucket of 10 tokens a second."""
    return Bench(Quota(burst, 10, 1.0))


@pytest.mark.parametrize(
    "burst, steps",
    [
        pytest.param(
            1,
            [(0, 1, 1, 1), (0, 0, 1, 0), (0, 0, 1, 0), (1, 1, 1, 1), (1, 0, 1, 0), (2, 1, 2, 0), (2, 1, 1, 1)],
            id="burst-1",
        ),
        pytest.param(
            3,
            [
                *[(0, 3, 2, 1), (0, 1, 2, 0), (0, 1, 1, 1), (0, 0, 1, 0)],
                *[(1, 1, 4, 0), (2, 2, 1, 1), (3, 2, 1, 1), (4, 2, 1, 1), (4, 1, 1, 1), (4, 0, 1, 0)],
                *[(9, 3, 3, 1), (9, 0, 0, 1), (9, 0, 1, 0)],
            ],
            id="burst-3",
        ),
    ],
)
def test_bursts(burst: int, steps: list[tuple[int, int, int, int]]) -> None:
    """A burst of the capacity passes, then one token a tenth of a second; more than the capacity never, 0 always."""
    bench = ten(burst)
    for at, there, tokens, passes in steps:
        assert bench.allow(at, tokens) == (there, bool(passes)), (at, tokens)


def test_a_clock_that_steps_back_gives_what_is_left_and_mints_nothing() -> None:
    """Within the tolerance time stands still until it has caught up: Go's limiter hands the way back out again."""
    bench = ten(3)
    assert bench.allow(1, 1) == (3, True)
    assert bench.allow(0, 1) == (2, True)
    assert bench.allow(0, 1) == (1, True)
    assert bench.allow(0, 1) == (0, False)
    assert bench.allow(1, 1) == (0, False)
    assert bench.allow(2, 1) == (1, True)
    assert bench.allow(2, 1) == (0, False)


def test_a_rate_that_is_no_round_number_lets_the_first_one_pass() -> None:
    """No rounding eats the burst of 1: 10 tokens in 13 s."""
    bench = Bench(Quota(1, 10, 13.0))
    assert bench.allow(0, 1) == (1, True)
    assert bench.allow(12, 1) == (0, False)
    assert bench.allow(13, 1) == (1, True)


def test_simultaneous_requests() -> None:
    """Fifteen threads at once on a bucket of five: exactly five pass."""
    clock = ManualClock(100.0)
    bucket = TokenBucket(Quota(5, 1, 1.0), clock=clock)
    barrier, passed = threading.Barrier(15), []

    def ask() -> None:
        barrier.wait()
        passed.append(bool(bucket.try_acquire()))

    threads = [threading.Thread(target=ask) for _ in range(15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(passed) == [False] * 10 + [True] * 5


def test_a_long_run_gets_the_rate_exactly() -> None:
    """At 100 a second, asked 500 times a second for 5 s: the burst and the refill, not one more or less."""
    bucket = TokenBucket(Quota(100, 100, 1.0), clock=(clock := ManualClock(100.0)))
    passed = 0
    for _ in range(2500):
        passed += bool(bucket.try_acquire())
        clock.advance(0.002)
    assert passed == 100 + 499  # the 500th comes at the very end of the 5 s


def test_reservations_queue() -> None:
    """Each reservation begins where the one before it has been served."""
    bench = ten(2)
    assert [bench.reserve(0, 2), bench.reserve(0, 2), bench.reserve(3, 2)] == [0, 2, 4]


def test_a_mix_of_both() -> None:
    """Who asks for now gets nothing while somebody is in a place; more than the capacity changes nothing."""
    bench = ten(2)
    assert bench.reserve(0, 3) is None
    assert bench.reserve(0, 2) == 0
    assert bench.allow(1, 2) == (1, False)
    assert bench.reserve(1, 2) == 2
    assert bench.allow(1, 1) == (-1, False)
    assert bench.allow(3, 1) == (1, True)


def test_what_was_refused_has_nothing_to_give_back() -> None:
    """A cancelled reservation that was never made changes nothing: by id, it isn't there."""
    bench = ten(2)
    assert bench.allow(0, 2) == (2, True)
    assert not bench.apply(0, Reserve("never", 2, 10 * D)).granted
    assert not bench.apply(0, Cancel("never")).found
    assert bench.allow(0, 1) == (0, False)


def test_cancelling_the_last_place_frees_it() -> None:
    """The next one to ask gets the place that was given up."""
    bench = ten(2)
    assert bench.reserve(0, 2) == 0
    assert bench.reserve(0, 2) == 2
    bench.cancel(1, 2, 2)
    assert bench.reserve(1, 2) == 2


def test_cancelling_twice_gives_back_once() -> None:
    """A place is given up once, however often the refund arrives."""
    bench = ten(2)
    bench.reserve(0, 2)
    bench.reserve(0, 2)
    bench.cancel(1, 2, 2)
    bench.cancel(1, 2, 2)
    assert bench.reserve(1, 2) == 2
    assert bench.reserve(1, 2) == 4


def test_cancelling_when_the_place_has_come_gives_it_all_back() -> None:
    """Nobody was told an instant ahead: what was not used is there again. Go's limiter gives nothing back then."""
    bench = ten(2)
    bench.reserve(0, 2)
    assert bench.reserve(0, 2) == 2
    bench.cancel(3, 2, 2)
    assert bench.reserve(3, 2) == 3


def test_cancelling_in_the_middle_gives_back_what_those_behind_leave() -> None:
    """Those behind keep their places; of two tokens one is promised to the place a tenth behind."""
    for at, place in ((1, 4), (2, 4)):
        bench = ten(2)
        bench.reserve(0, 2)
        assert bench.reserve(0, 2) == 2
        assert bench.reserve(0, 1) == 3
        bench.cancel(at, 2, 2)
        assert bench.reserve(at, 2) == place


def test_cancelling_several() -> None:
    """Two of four places are given up: the last one whole, the other as if the last one had never been."""
    bench = ten(4)
    bench.reserve(0, 4)
    assert bench.reserve(0, 3) == 3
    assert bench.reserve(0, 1) == 4
    assert bench.reserve(0, 1) == 5
    bench.cancel(1, 1, 5)
    bench.cancel(1, 3, 3)
    assert bench.reserve(1, 3) == 5


def test_reservations_over_a_clock_that_steps_back() -> None:
    """A reservation made by a clock that stands behind gets a place by the clock that was ahead, none earlier."""
    bench = ten(2)
    assert bench.reserve(1, 2) == 1
    assert bench.reserve(0, 1) == 2
    assert bench.reserve(2, 2) == 4
    assert bench.reserve(0, 3) is None
    assert bench.reserve(2, 1) == 5
    assert bench.reserve(0, 2, within=D) is None
    assert bench.reserve(2, 1) == 6


def test_cancelling_by_a_clock_that_stands_behind() -> None:
    """As many tokens come back: what counts are the places."""
    bench = ten(2)
    bench.reserve(1, 2)
    assert bench.reserve(1, 2) == 3
    assert bench.reserve(1, 1) == 4
    bench.cancel(0, 2, 3)
    assert bench.reserve(1, 2) == 5


def test_another_rate_or_burst_counts_from_now_on() -> None:
    """Places that were given stay; what is asked afterwards goes by the new terms."""
    bench = Bench(Quota(2, 5, 1.0))
    bench.reserve(0, 2)
    assert bench.reserve(0, 2) == 4
    bench.quota = Quota(2, 10, 1.0)
    # At 2 one token has flowed at the old rate; one more and its own come at the new one.
    assert bench.reserve(2, 1) == 4
    bench = Bench(Quota(2, 5, 1.0))
    bench.reserve(0, 2)
    bench.quota = replace(bench.quota, capacity=4)
    assert bench.reserve(3, 4) == 8


def test_a_place_too_far_ahead_is_refused() -> None:
    """The longest wait is a bound that includes itself."""
    bench = ten(2)
    assert bench.reserve(0, 2, within=D) == 0
    assert bench.reserve(0, 1, within=D) == 1
    assert bench.reserve(0, 1, within=D) is None
    assert bench.reserve(0, 1, within=2 * D) == 2


def test_waiting() -> None:
    """Now if the tokens are there, else as long as it takes; more than the capacity is an error at once."""
    clock = ManualClock()
    bucket = TokenBucket(Quota(3, 10, 1.0), clock=clock)
    with pytest.raises(CostTooLarge):
        bucket.acquire(4)
    assert bucket.acquire(2).waited == 0.0
    assert bucket.acquire(3).waited == 0.2
    assert clock.now_us() == 2 * D


def test_a_wait_that_is_cancelled() -> None:
    """The tokens of a cancelled wait are there for the next one."""
    clock = ManualClock()
    bucket = AsyncTokenBucket(Quota(3, 10, 1.0), clock=clock)

    async def main() -> None:
        await bucket.acquire(2)
        task = asyncio.create_task(bucket.acquire(3))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        clock.advance(0.1)
        assert (await bucket.acquire(2)).waited == 0.0

    asyncio.run(main())


def test_a_wait_longer_than_the_timeout() -> None:
    """It fails at once, not at the timeout, and takes nothing."""
    clock = ManualClock()
    bucket = TokenBucket(Quota(3, 10, 1.0), clock=clock)
    bucket.acquire(2)
    with pytest.raises(AcquireTimeout):
        bucket.acquire(3, timeout=0.1)
    assert clock.slept == 0.0
    assert bucket.peek().balance == 1


def test_a_rate_of_0() -> None:
    """What is there may be taken, nothing comes after; another rate later brings tokens from then on."""
    clock = ManualClock(5.0)
    storage = MemoryStorage()
    bucket = TokenBucket(Quota(1, 0, 1.0), storage=storage, clock=clock)
    assert bucket.try_acquire()
    assert not bucket.try_acquire()
    with pytest.raises(AcquireTimeout):
        bucket.acquire()
    clock.advance(3600.0)
    faster = TokenBucket(Quota(100, 1, 1.0), storage=storage, clock=clock)
    assert not bucket.try_acquire()
    # Of the time without any refill a minute goes over, no more.
    assert faster.try_acquire(60)
    assert faster.acquire().waited == 1.0


def test_a_tiny_rate() -> None:
    """One token in a century: the first passes, the second doesn't, and the wait is told, not overflown."""
    century = 100 * 365 * 86_400.0
    clock = ManualClock(5.0)
    bucket = TokenBucket(Quota(1, 1, century), clock=clock)
    assert bucket.try_acquire()
    refusal = bucket.try_acquire()
    assert not refusal
    assert refusal.retry_after == century


@pytest.mark.parametrize("per, period", [(Quota.per_second, 1.0), (Quota.per_minute, 60.0)])
def test_a_quota_by_its_rate_holds_one_period_unless_said_otherwise(per: Callable[..., Quota], period: float) -> None:
    """So many tokens a second or a minute, in a bucket of as many or of the given size, with any other term."""
    assert per(5) == Quota(5, 5, period)
    assert per(5, capacity=300, stepped=True, overdraft=2) == Quota(300, 5, period, stepped=True, overdraft=2)


def test_the_fastest_rate_that_is_exact_is_one_below_the_limit() -> None:
    """Tokens times a period and a microsecond, in the smallest numbers, must stay below 2**52."""
    assert exact(1, LIMIT - 2)
    assert not exact(1, LIMIT - 1)
    assert exact(2 * (LIMIT // 2 - 1), 2)
    assert not exact(LIMIT // 2, 1)
