"""The doors, for threads and coroutines: what they take, wait for, give back and tell."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Final

import pytest

from keepa_tokens import (
    AcquireTimeout,
    AsyncTokenBucket,
    BadReading,
    ConfigError,
    CostTooLarge,
    KeepaTokensError,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    Reading,
    StorageUnavailable,
    TokenBucket,
)
from keepa_tokens.rules.commands import Acquire, Outcome
from keepa_tokens.rules.decision import Reason
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import MICROSECONDS
from tests.helpers import Napping, Noted, in_threads

pytestmark = pytest.mark.anyio

PLAIN: Final = Quota(10, 1, 1.0)
SYNCED: Final = Quota(10, 1, 1.0, synced=True)


def plain(quota: Quota = PLAIN, start: float = 100.0) -> tuple[TokenBucket, ManualClock]:
    """Return a bucket and its clock."""
    clock = ManualClock(start)
    return TokenBucket(quota, clock=clock), clock


# --- try and wait


def test_try_acquire_takes_or_tells() -> None:
    """A grant is true and has no wait; a refusal is false, takes nothing, and says why and for how long."""
    bucket, clock = plain()
    granted = bucket.try_acquire(7)
    assert granted
    assert (granted.granted, granted.balance, granted.retry_after, granted.reason) == (True, 3, 0.0, Reason.GRANTED)
    refused = bucket.try_acquire(5)
    assert not refused
    assert (refused.granted, refused.balance, refused.retry_after, refused.reason) == (False, 3, 2.0, Reason.EMPTY)
    assert not bucket.try_acquire(3, keep=1)
    assert bucket.try_acquire(2, keep=1)
    assert clock.slept == 0.0


def test_acquire_waits_exactly_as_long_as_it_takes() -> None:
    """On a plain bucket the caller sleeps once, to the microsecond, and is told how long it was kept."""
    bucket, clock = plain(Quota(3, 3, 1.0))
    bucket.acquire(3)
    decision = bucket.acquire(1)
    assert (decision.waited, decision.granted) == (0.333_334, True)
    assert clock.now_us() == 100 * MICROSECONDS + 333_334


@pytest.mark.parametrize("quota", [PLAIN, Quota(10, 1, 1.0, recharge_to=5), Quota(10, 1, 1.0, synced=True, initial=10)])
def test_a_timeout_fails_at_once_and_takes_nothing(quota: Quota) -> None:
    """When the wait would be longer than the timeout the error comes at once, with the wait, and nothing is taken."""
    bucket, clock = plain(quota)
    bucket.acquire(10)
    for door in (bucket.acquire, bucket.reserve):
        with pytest.raises(AcquireTimeout) as caught:
            door(3, timeout=2.999_999)
        assert caught.value.retry_after == (5.0 if quota.recharge_to else 3.0)
        assert isinstance(caught.value, TimeoutError)
        assert clock.slept == 0.0
        assert (bucket.peek().balance, bucket.peek().held) == (0, 0)
    decision = bucket.acquire(3, timeout=6.0)
    assert 3.0 <= decision.waited <= 6.0


@pytest.mark.parametrize("timeout", [3.0, 3, None, math.inf])
def test_a_timeout_as_long_as_the_wait_is_enough(timeout: float | None) -> None:
    """A wait of exactly the timeout is granted."""
    bucket, _ = plain()
    bucket.acquire(10)
    assert bucket.acquire(3, timeout=timeout).waited == 3.0


def test_an_endless_wait_fails_at_once() -> None:
    """A plain bucket that never refills doesn't let anybody wait for ever."""
    bucket, clock = plain(Quota(10, 0, 1.0))
    bucket.acquire(10)
    for timeout in (None, 5.0):
        with pytest.raises(AcquireTimeout, match="no refill"):
            bucket.acquire(1, timeout=timeout)
    assert clock.slept == 0.0


def test_waiting_with_keep_asks_again_until_enough_stays_for_others() -> None:
    """With `keep` nothing is taken in advance: the caller comes back when both are there."""
    bucket, clock = plain()
    bucket.acquire(10)
    decision = bucket.acquire(2, keep=3)
    assert 5.0 <= decision.waited <= 5.5
    assert clock.now_us() >= 105 * MICROSECONDS
    assert bucket.peek().balance == 3


def test_waiting_on_an_unknown_bucket_notices_the_reading() -> None:
    """Who waits asks again every second or so, so a reading that comes meanwhile ends the wait."""

    def tell() -> None:
        if len(clock.naps) == 3:
            bucket.reconcile(Reading(9))

    clock = Napping(100.0, tell)
    bucket = TokenBucket(SYNCED, clock=clock)
    assert bucket.acquire(2, timeout=60.0).balance == 7
    assert len(clock.naps) == 3
    assert clock.slept < 4.0


def test_waiting_on_an_unknown_bucket_that_nobody_tells_ends_too() -> None:
    """After the claim has run out the bucket starts at 0 and refills."""
    bucket, clock = plain(SYNCED)
    assert bucket.acquire(2, timeout=60.0).granted
    assert 22.0 <= clock.slept <= 23.5
    with pytest.raises(AcquireTimeout):
        plain(SYNCED)[0].acquire(1, timeout=0)


def test_a_long_wait_on_a_synced_bucket_is_cut_into_minutes() -> None:
    """Each nap is a minute at most, so a better plan or somebody's refund is noticed."""
    clock = Napping(100.0)
    bucket = TokenBucket(Quota(100, 1, 60.0, synced=True), clock=clock)
    bucket.reconcile(Reading(0))
    bucket.acquire(5)
    assert len(clock.naps) >= 5
    assert max(clock.naps) <= 60.25
    assert clock.slept >= 300.0


# --- giving back


def test_refund_gives_back_up_to_capacity() -> None:
    """Tokens of a grant that wasn't used are there again; each refund counts for itself."""
    bucket, _ = plain()
    bucket.acquire(5)
    bucket.refund(2)
    assert bucket.peek().balance == 7
    bucket.refund(2)
    bucket.refund(2)
    assert bucket.peek().balance == 10


# --- reservations


def test_a_reservation_settles_at_the_actual_cost_once() -> None:
    """A plain bucket takes the estimate and gives back what was not spent; once settled, nothing more changes."""
    bucket, _ = plain()
    reservation = bucket.try_reserve(6)
    seen = bucket.peek()
    assert (seen.balance, seen.held, seen.holds, seen.available) == (4, 6, 1, 4)
    reservation.settle(2)
    reservation.settle(2)
    reservation.cancel()
    seen = bucket.peek()
    assert (seen.balance, seen.held) == (8, 0)
    assert not reservation.open


def test_a_reservation_that_is_cancelled_costs_nothing() -> None:
    """A call that was certainly never sent frees what was set aside."""
    bucket, _ = plain()
    with bucket.try_reserve(6) as reservation:
        reservation.cancel()
    assert (bucket.peek().balance, bucket.peek().held) == (10, 0)


def test_a_reservation_left_unsettled_stays_charged() -> None:
    """Left without a settle, by an exception too, the estimate is charged at once on a plain bucket."""
    bucket, _ = plain()
    with bucket.try_reserve(3):
        pass
    assert (bucket.peek().balance, bucket.peek().held) == (7, 0)
    with pytest.raises(RuntimeError, match="the call"), bucket.try_reserve(3):
        raise RuntimeError("the call failed")
    assert (bucket.peek().balance, bucket.peek().held) == (4, 0)


def test_on_a_synced_bucket_it_stays_held_until_it_runs_out() -> None:
    """The call may still be under way at the server, so the hold outlives readings that don't know its cost."""
    bucket, clock = plain(SYNCED)
    bucket.reconcile(Reading(10, refill=0, server_time=1.0))
    with bucket.reserve(4, hold_for=30.0):
        pass
    bucket.reconcile(Reading(9, server_time=2.0))
    assert (bucket.peek().balance, bucket.peek().held) == (9, 4)
    clock.advance(30.0)
    assert (bucket.peek().balance, bucket.peek().held) == (5, 0)


def test_a_settle_brings_the_reading_of_the_answer() -> None:
    """The balance is the server's word, whatever was estimated."""
    bucket, _ = plain(SYNCED)
    bucket.reconcile(Reading(10, server_time=1.0))
    bucket.reserve(4).settle(6, Reading(-3, server_time=2.0))
    assert bucket.peek().balance == -3


async def test_a_reservation_settled_again_brings_no_reading() -> None:
    """A second time changes nothing, minutes later either: its reading is an old one by then."""
    storage, clock = MemoryStorage(), ManualClock(100.0)
    bucket = TokenBucket(SYNCED, key="k", storage=storage, clock=clock)
    other = AsyncTokenBucket(SYNCED, key="k", storage=storage, clock=clock)
    bucket.reconcile(Reading(100, server_time=1.0))
    reservation, awaited = bucket.try_reserve(4), await other.try_reserve(4)
    reservation.settle(4, Reading(96, server_time=2.0))
    await awaited.settle(4, Reading(92, server_time=3.0))
    assert bucket.try_acquire(10)
    clock.advance(130.0)
    before = bucket.peek().balance
    reservation.settle(4, Reading(96, server_time=2.0))
    await awaited.settle(4, Reading(92, server_time=3.0))
    assert bucket.peek().balance == before


async def test_async_reservations_are_awaited_or_entered() -> None:
    """`await`, or `async with`: the same reservation; left unsettled it stays charged."""
    bucket = AsyncTokenBucket(PLAIN, clock=ManualClock(100.0))
    reservation = await bucket.reserve(2)
    await reservation.settle(1)
    assert (await bucket.peek()).balance == 9
    async with bucket.reserve(3) as entered:
        await entered.settle(2)
    assert (await bucket.peek()).balance == 7
    async with bucket.try_reserve(3) as entered:
        await entered.cancel()
    async with bucket.try_reserve(4):
        pass
    assert (await bucket.peek()).balance == 3
    with pytest.raises(NotEnoughTokens):
        await bucket.try_reserve(4)
    await bucket.refund(1)
    assert (await bucket.try_acquire(4)).granted
    decision = await bucket.acquire(2)
    assert decision.waited == 2.0


@pytest.mark.parametrize("ends", [KeyError, KeyboardInterrupt, asyncio.CancelledError])
async def test_what_ends_a_block_is_seen_though_the_storage_is_away(ends: type[BaseException]) -> None:
    """The error of a body or an interrupt in it, not that of charging the estimate, which is charged as it is."""
    storage, clock = Noted(), ManualClock(100.0)
    bucket = TokenBucket(PLAIN, storage=storage, clock=clock)
    twin = AsyncTokenBucket(PLAIN, storage=storage, clock=clock)

    def fails() -> None:
        with bucket.reserve(3):
            storage.away = True
            raise ends

    async def fails_too() -> None:
        async with twin.reserve(3):
            storage.away = True
            raise ends

    with pytest.raises(ends):
        fails()
    storage.away = False
    with pytest.raises(ends):
        await fails_too()
    storage.away = False
    assert bucket.peek().balance == 4


def test_a_reservation_says_how_it_was_granted() -> None:
    """The decision tells how long the caller was kept."""
    bucket, _ = plain()
    bucket.acquire(10)
    reservation = bucket.reserve(2)
    assert reservation.decision.waited == 2.0
    assert reservation.tokens == 2
    assert reservation.id


# --- which bucket


def test_a_bucket_shows_what_is_for_users() -> None:
    """Its public names are the doors and where it lives; no machinery is among them."""
    shown = {name for name in dir(TokenBucket) if not name.startswith("_")}
    doors = {"acquire", "peek", "reconcile", "refund", "reserve", "try_acquire", "try_reserve", "with_key"}
    doors |= {"limit", "pause", "reset", "take_up_to"}
    assert shown == doors | {"clock", "close", "key", "listener", "quota", "storage"}


def test_with_key_is_the_same_door_to_another_bucket() -> None:
    """Terms, storage and clock are shared; the tokens aren't."""
    bucket, clock = plain()
    other = bucket.with_key("other")
    assert (other.quota, other.storage, other.clock, other.key) == (bucket.quota, bucket.storage, clock, "other")
    bucket.acquire(10)
    assert other.try_acquire(10)
    assert not bucket.with_key("other").try_acquire(1)
    assert not bucket.with_key("default").try_acquire(1)


async def test_both_doors_share_memory_storage() -> None:
    """Threads and coroutines spend from one bucket."""
    storage, clock = MemoryStorage(), ManualClock(100.0)
    sync, twin = (
        TokenBucket(PLAIN, storage=storage, clock=clock),
        AsyncTokenBucket(PLAIN, storage=storage, clock=clock),
    )
    sync.acquire(6)
    assert not await twin.try_acquire(5)
    assert await twin.try_acquire(4)
    assert not await twin.with_key("default").try_acquire(1)
    assert not sync.try_acquire(1)


def test_without_a_clock_the_storages_own_time_counts() -> None:
    """The default bucket works by itself: memory storage, monotonic time."""
    bucket = TokenBucket(Quota(2, 0, 1.0))
    assert bucket.try_acquire(2)
    assert not bucket.try_acquire(1)


def test_peek_takes_nothing() -> None:
    """A look shows balance, waits, the time to full, and leaves the bucket as it was."""
    storage, clock = MemoryStorage(), ManualClock(100.0)
    bucket = TokenBucket(PLAIN, storage=storage, clock=clock)
    assert bucket.peek(4).retry_after == 0.0
    assert storage.dump("default") is None
    bucket.acquire(8)
    before = storage.dump("default")
    seen = bucket.peek(4, keep=1)
    assert (seen.balance, seen.retry_after, seen.full_in, seen.bound, seen.reading_age) == (2, 3.0, 8.0, 3.0, None)
    assert storage.dump("default") == before


def test_many_threads_wait_for_one_bucket() -> None:
    """Threads that wait at once all get their tokens, never more than there are at any instant."""
    bucket, clock = plain(Quota(2, 1, 1.0))
    waits = in_threads(12, lambda _: bucket.acquire(1).waited)
    # Each thread moves the clock as it sleeps, so others may find tokens by then: nobody waits beyond the last place.
    assert max(waits) <= 10.0
    assert bucket.peek().balance == clock.now_us() // MICROSECONDS - 100 + 2 - 12


# --- what travels and what is shown

ERRORS: Final[tuple[Callable[[], KeepaTokensError], ...]] = (
    lambda: NotEnoughTokens(5, retry_after=2.5, reason="EMPTY", balance=-3),
    lambda: AcquireTimeout(5, retry_after=math.inf, reason="RECHARGING"),
    lambda: CostTooLarge(11, 2, 8),
    lambda: BadReading("balance must be a whole number"),
    lambda: ConfigError("capacity=0 is out of range"),
    lambda: StorageUnavailable("nobody there"),
)


@pytest.mark.parametrize("make", ERRORS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_can_be_pickled(make: Callable[[], KeepaTokensError], protocol: int) -> None:
    """Errors cross process borders whole: type, text and fields; made anew from their `args` as JSON, too."""
    error = make()
    twin = pickle.loads(pickle.dumps(error, protocol))
    for other in (twin, copy.copy(error), type(error)(*json.loads(json.dumps(error.args)))):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert other.__dict__ == error.__dict__


def test_what_is_printed_says_what_it_is() -> None:
    """Buckets, reservations, quotas and errors show what a reader of a log needs."""
    bucket, _ = plain()
    shown = repr(bucket)
    assert shown.startswith("TokenBucket(Quota(capacity=10, refill=1, period=1.0")
    assert "key='default'" in shown
    assert repr(AsyncTokenBucket(PLAIN, key="mine")).startswith("AsyncTokenBucket(")
    reservation = bucket.try_reserve(3)
    assert repr(reservation) == f"Reservation(id={reservation.id!r}, tokens=3, open=True)"
    reservation.settle(3)
    assert "open=False" in repr(reservation)
    assert str(NotEnoughTokens(5, retry_after=2.5, reason="EMPTY", balance=-3)) == (
        "5 tokens refused (EMPTY, balance -3): ask again in 2.5 s."
    )
    assert "can never be admitted" in str(CostTooLarge(11, 2, 8))


def test_the_command_that_a_door_sends_is_plain_data() -> None:
    """A storage sees what was asked, whoever asked."""
    storage = Noted()
    TokenBucket(PLAIN, storage=storage, clock=ManualClock(1.0)).try_acquire(2, keep=1)
    assert storage.commands == [Acquire(2, 1)]


def test_what_was_mended_is_told() -> None:
    """The decision carries all that the outcome says, in seconds; who was not made to wait waited for 0."""
    outcome = Outcome(
        1, 5, reason=Reason.EMPTY, retry_after_us=1_500_000, claimed_until_us=9, repaired=("refilled_at",)
    )
    told = outcome.decision()
    assert (told.granted, told.reason, told.balance) == (False, Reason.EMPTY, 5)
    assert (told.retry_after, told.waited, told.probe, told.repaired) == (1.5, 0.0, True, ("refilled_at",))
    assert outcome.decision(250_000).waited == 0.25
