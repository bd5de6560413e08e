"""The doors, for threads and coroutines: what they take, wait for, give back and tell."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import isawaitable
from typing import Any, Final

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
    keepa_quota,
)
from keepa_tokens._blocking import run
from keepa_tokens.rules.commands import Acquire, Outcome
from keepa_tokens.rules.decision import Reason
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import MICROSECONDS
from tests.helpers import Napping, Noted, in_threads
from tests.stories import Story, each_story, holds, options, told_steps

pytestmark = pytest.mark.anyio

PLAIN: Final = Quota(10, 1, 1.0)
SYNCED: Final = Quota(10, 1, 1.0, synced=True)


def plain(quota: Quota = PLAIN, start: float = 100.0) -> tuple[TokenBucket, ManualClock]:
    clock = ManualClock(start)
    return TokenBucket(quota, clock=clock), clock


RECHARGING: Final = Quota(10, 1, 1.0, recharge_to=5)
FULL: Final = Quota(10, 1, 1.0, synced=True, initial=10)
STILL: Final = Quota(10, 0, 1.0)

STORIES: Final = """
a grant has no wait; a refusal takes nothing, and says why and for how long: PLAIN
    take 7 -> granted balance=3 retry_after=0 reason=GRANTED
    take 5 -> !granted balance=3 retry_after=2 reason=EMPTY
    take 3 keep=1 -> !granted; take 2 keep=1 -> granted slept=0
who waits sleeps once, to the microsecond, and is told how long it was kept: PLAIN capacity=3 refill=3
    acquire 3; acquire 1 -> granted waited=0.333334 slept=0.333334
where the wait would be longer than the timeout the error comes at once, and nothing is taken: (PLAIN|RECHARGING|FULL)
    acquire 10; acquire 3 timeout=2.999999 -> AcquireTimeout retry_after=(3|5|3) slept=0 balance=0 held=0
    reserve a 3 timeout=2.999999 -> AcquireTimeout retry_after=(3|5|3) slept=0 balance=0 held=0
    acquire 3 timeout=6 -> granted waited=(3|5|3)
a wait of exactly the timeout is granted: PLAIN
    acquire 10; acquire 3 timeout=(3|-|inf) -> waited=3
a plain bucket that never refills doesn't let anybody wait for ever: PLAIN refill=0
    acquire 10; acquire 1 timeout=(-|5) -> AcquireTimeout slept=0
with `keep` nothing is taken in advance, and the caller comes back when both are there: PLAIN
    acquire 10; acquire 2 keep=3 -> granted; peek -> balance=3
an unknown bucket that nobody tells starts at 0 when the claim has run out, and refills: SYNCED
    acquire 1 timeout=0 -> AcquireTimeout; acquire 2 timeout=60 -> granted balance=0
tokens of a grant that wasn't used are there again, up to capacity; each refund counts for itself: PLAIN
    acquire 5; back 2; peek -> balance=7; back 2; back 2; peek -> balance=10
the estimate is taken, what was not spent comes back, and once settled nothing more changes: PLAIN
    try a 6; peek -> balance=4 held=6 holds=1 available=4
    settle a 2; settle a 2; cancel a; leave a; peek -> balance=8 held=0
a call that was certainly never sent frees what was set aside: PLAIN
    try a 6; cancel a; leave a; peek -> balance=10 held=0; try a 11 -> CostTooLarge
    take 7; try a 4 -> NotEnoughTokens waiting=0; take 3 -> granted
left without a settle, by an exception too, the estimate is charged at once on a plain bucket: PLAIN
    try a 3; leave a; peek -> balance=7 held=0; reserve b 3; fail b; peek -> balance=4 held=0
the call may still be under way at the server, so its hold outlives readings that don't know its cost: SYNCED
    read 10 refill=0 server_time=1; reserve a 4 hold_for=30; leave a; read 9 server_time=2
    peek -> balance=9 held=4; pass 30; peek -> balance=5 held=0
the balance that a settle brings is the server's word, whatever was estimated: SYNCED
    read 10 server_time=1; reserve a 4; settle a 6 says=-3 at=2; peek -> balance=-3
settled again, minutes later too, it brings no reading, which is an old one by then: SYNCED
    read 100 server_time=1; try a 4; settle a 4 says=96 at=2; take 10; pass 130; peek -> balance=86
    settle a 4 says=96 at=2; peek -> balance=86
who runs out of time beside a call in flight leaves the line, and nobody is kept back for it: SYNCED period=60
    read 8; reserve a 6; reserve b 5 timeout=3 -> AcquireTimeout waiting=0; cancel a
nothing asked is granted, of an empty or unknown bucket too, whatever is kept: (STILL|SYNCED|PLAIN) initial=(-5|-|10)
    take 0 keep=0 -> granted; take 0 keep=1 -> granted; take 0 keep=1000 -> granted balance=(-5|-|10)
    acquire 0 keep=0 timeout=0 -> waited=0; acquire 0 keep=1000 timeout=0 -> waited=0
    try a 0 keep=1000; settle a 0; reserve b 0 keep=1000; cancel b -> balance=(-5|-|10)
where no wait would help the error says so, and how much would be admitted: PLAIN initial=7
    (take|acquire|try a|reserve a) 11 -> CostTooLarge tokens=11 keep=0 largest=10
    (take|acquire|try a|reserve a) 10 keep=1 -> CostTooLarge tokens=10 keep=1 largest=9
    (take|acquire|try a|reserve a) 1 keep=10 -> CostTooLarge tokens=1 keep=10 largest=0
    (take|acquire|try a|reserve a) 4503599627370495 -> CostTooLarge keep=0 largest=10
    (take|acquire|try a|reserve a) 1 keep=4503599627370495 -> CostTooLarge largest=0 balance=7 held=0
a synced bucket takes a balance of 0 or deep below, a net refill of 0, a fraction: SYNCED
    read (0|-340|-4503599627370495|5 next_refill_in=0 refill=0 period=0.000001 capacity=1 server_time=0|
     5 refill=0.25 server_time=1780000000.123) -> balance=(0|-340|-4503599627370495|5|5)
who waits for all of the capacity gets it, and no small one goes before: PLAIN
    acquire 10; acquire 10 -> waited=10; take 1 -> !granted
a reservation says how it was granted: PLAIN
    acquire 10; reserve a 2 -> waited=2 tokens=2
what is there beside `keep` is taken, up to what is wanted: PLAIN initial=5
    some 3 -> taken=3; some 3 keep=1 -> taken=1; some 3 -> taken=1; some 3 -> taken=0 balance=0
while a bucket is paused no call goes, and each is told when; it ends by itself, or by a pause of 0: PLAIN
    pause 30; take 1 -> !granted reason=PAUSED retry_after=30 paused_for=30; (pass 30|pause 0); take 1 -> granted
    pause (-1|86401) -> ConfigError
"""


class Teller:
    def __init__(self, kind: Any, story: Story, **more: Any) -> None:
        name, _, changes = story.bucket.partition(" ")
        self.clock = ManualClock(100.0)
        self.bucket = kind(replace(story.terms[name], **options(changes)), clock=self.clock, **more)
        self.calls: dict[str, Any] = {}

    async def done(self, verb: str, words: list[Any], named: dict[str, Any]) -> Any:
        reading = {"reading": Reading(named["says"], server_time=named["at"])} if "says" in named else {}
        verbs: dict[str, Callable[..., Any]] = {
            "take": self.bucket.try_acquire,
            "acquire": self.bucket.acquire,
            "some": self.bucket.take_up_to,
            "peek": self.bucket.peek,
            "back": self.bucket.refund,
            "pause": self.bucket.pause,
            "pass": self.clock.advance,
            "read": lambda balance, **more: self.bucket.reconcile(Reading(balance, **more)),
            "try": lambda name, *tokens, **more: self.bucket.try_reserve(*tokens, **more),
            "reserve": lambda name, *tokens, **more: self.bucket.reserve(*tokens, **more),
            "settle": lambda name, actual, **_: self.calls[name].settle(actual, **reading),
            "cancel": lambda name: self.calls[name].cancel(),
            "leave": lambda name: self.left(name, None),
            "fail": lambda name: self.left(name, OSError()),
        }
        try:
            found = verbs[verb](*words, **named)
            found = await found if isawaitable(found) else found
        except (KeepaTokensError, ValueError) as error:
            return error
        if verb in {"try", "reserve"}:
            self.calls[words[0]] = found
        return found

    def left(self, name: str, error: Exception | None) -> Any:
        call = self.calls[name]
        leave = call.__exit__ if hasattr(call, "__exit__") else call.__aexit__
        return leave(error and type(error), error, None)


async def goes(teller: Teller, story: Story) -> None:
    """Let a story happen, and assert that each step comes to what stands beside it."""
    for step, verb, words, named in told_steps(story.text):
        came = await teller.done(verb, words, named)
        places = (came, getattr(came, "decision", came), await teller.done("peek", [], {}), teller.clock)
        holds(step, came, partial(seen, places))


def seen(places: tuple[Any, ...], name: str) -> Any:
    """Return what is so named in the first that has it; `taken` is what came itself."""
    return places[0] if name == "taken" else next(getattr(each, name) for each in places if hasattr(each, name))


@pytest.mark.parametrize("kind", [TokenBucket, AsyncTokenBucket])
@each_story(STORIES, globals())
async def test_a_story_of_the_doors_comes_out_as_told(kind: Any, story: Story) -> None:
    """For threads as for coroutines; each title says what its steps show."""
    await goes(Teller(kind, story), story)


# --- try and wait


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


def test_a_long_wait_on_a_synced_bucket_is_cut_into_minutes() -> None:
    """Each nap is a minute at most, so a better plan or somebody's refund is noticed."""
    clock = Napping(100.0)
    bucket = TokenBucket(Quota(100, 1, 60.0, synced=True), clock=clock)
    bucket.reconcile(Reading(0))
    bucket.acquire(5)
    assert len(clock.naps) >= 5
    assert max(clock.naps) <= 60.25
    assert clock.slept >= 300.0


# --- reservations


async def test_async_reservations_are_awaited_or_entered() -> None:
    """`await`, or `async with`: the same reservation; left unsettled it stays charged."""
    bucket = AsyncTokenBucket(PLAIN, clock=ManualClock(100.0))
    await (await bucket.reserve(2)).settle(1)
    async with bucket.reserve(3) as entered:
        await entered.settle(2)
    async with bucket.try_reserve(3) as entered:
        await entered.cancel()
    async with bucket.try_reserve(4):
        pass
    assert (await bucket.peek()).balance == 3


@pytest.mark.parametrize("ends", [KeyError, KeyboardInterrupt, asyncio.CancelledError, StorageUnavailable])
async def test_what_ends_a_block_is_seen_though_the_storage_is_away(ends: type[BaseException]) -> None:
    """The error of a body or an interrupt in it, else that of charging the estimate, which is charged as it is."""
    storage, clock = Noted(), ManualClock(100.0)
    bucket = TokenBucket(PLAIN, key="default", storage=storage, clock=clock)
    twin = AsyncTokenBucket(PLAIN, key="default", storage=storage, clock=clock)

    def fails() -> None:
        with bucket.reserve(3):
            storage.away = True
            if ends is not StorageUnavailable:
                raise ends

    async def fails_too() -> None:
        async with twin.reserve(3):
            storage.away = True
            if ends is not StorageUnavailable:
                raise ends

    with pytest.raises(ends):
        fails()
    storage.away = False
    with pytest.raises(ends):
        await fails_too()
    storage.away = False
    assert bucket.peek().balance == 4


# --- which bucket


def test_a_bucket_shows_what_is_for_users() -> None:
    """Its public names are the doors and where it lives; no machinery is among them."""
    shown = {name for name in dir(TokenBucket) if not name.startswith("_")}
    doors = {"acquire", "peek", "reconcile", "refund", "reserve", "try_acquire", "try_reserve", "with_key"}
    doors |= {"limit", "pause", "reset", "take_up_to"}
    assert shown == doors | {"clock", "close", "key", "listener", "quota", "storage"}


def test_with_key_is_the_same_door_to_another_bucket() -> None:
    """Terms, storage, clock, listener and whom it wakes are shared; the tokens aren't."""
    bucket, clock = plain()
    storage: Any = Noted()
    twin = AsyncTokenBucket(PLAIN, key="default", storage=storage, clock=clock, listener=lambda _: None)
    for door in (twin, TokenBucket(PLAIN, key="default", storage=storage, clock=clock, listener=lambda _: None)):
        another = door.with_key("other")
        assert (another.listener, another._door.bell) == (door.listener, door._door.bell)
    assert twin.with_key("other")._door.under_way is twin._door.under_way
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
        TokenBucket(PLAIN, key="default", storage=storage, clock=clock),
        AsyncTokenBucket(PLAIN, key="default", storage=storage, clock=clock),
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
    bucket = TokenBucket(PLAIN, key="default", storage=storage, clock=clock)
    assert bucket.peek(4).retry_after == 0.0
    assert storage.dump("default") is None
    bucket.acquire(8)
    before = storage.dump("default")
    seen = bucket.peek(4, keep=1)
    assert (seen.balance, seen.retry_after, seen.full_in, seen.bound, seen.reading_age) == (2, 3.0, 8.0, 3.0, None)
    assert storage.dump("default") == before


def test_a_step_of_a_blocking_door_that_suspends_is_told() -> None:
    """Nothing would ever go on with it."""
    with pytest.raises(RuntimeError, match="give it blocking steps"):
        run(lambda: asyncio.sleep(0))


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
    assert shown.startswith("TokenBucket(Quota(capacity=10, refill=1, period=1.0), key=")
    assert repr(keepa_quota()) == (
        "Quota(capacity=300, refill=5, period=60.5, stepped=True, overdraft=UNLIMITED, synced=True)"
    )
    assert "key='default'" in shown
    assert repr(AsyncTokenBucket(PLAIN, key="mine")).startswith("AsyncTokenBucket(")
    reservation = bucket.try_reserve(3)
    assert repr(reservation) == f"Reservation(id={reservation.id!r}, tokens=3, open=True)"
    reservation.settle(3)
    assert "open=False" in repr(reservation)
    assert str(NotEnoughTokens(5, retry_after=2.5, reason="EMPTY", balance=-3)) == (
        "5 tokens refused (EMPTY, balance -3): ask again in 2.5 s."
    )
    assert repr(AcquireTimeout(5, 2.5, "EMPTY", -3)) == (
        "AcquireTimeout('5 tokens refused (EMPTY, balance -3): ask again in 2.5 s.')"
    )
    assert "6 held by 1" in str(NotEnoughTokens(5, 1.5, "IN_FLIGHT", 8, 6, 1))
    assert "no refill" in str(AcquireTimeout(5, retry_after=math.inf, reason="EMPTY"))
    assert "can never be admitted" in str(CostTooLarge(11, 2, 8))


def test_the_command_that_a_door_sends_is_plain_data() -> None:
    """A storage sees what was asked, whoever asked."""
    storage = Noted()
    TokenBucket(PLAIN, key="default", storage=storage, clock=ManualClock(1.0)).try_acquire(2, keep=1)
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
