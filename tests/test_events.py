"""What happened, and why: each kind of event has its cause and its reason, and the listener that logs is quiet."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    Event,
    EventKind,
    LoggingListener,
    Quota,
    StorageUnavailable,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.keepa._door import SERVER_REFUSED
from keepa_tokens.testing import FakeKeepa, ManualClock, virtual_loop
from tests.helpers import Noted
from tests.keepa_stories import Told
from tests.keepa_world import World, asins
from tests.stories import Story, each_story

KEY = "k"


# --- each kind: what it tells, and why


STORIES: Final = """
a grant says what was asked for, whatever the call will cost: initial=20
    call 3 estimate=5; told GRANTED -> key=k tokens=5 balance=20 why=GRANTED
unknown and empty are told apart, each with the wait that the caller is told: initial=-3
    down 1; try x 1 -> NotEnoughTokens retry_after=1.5; told REFUSED -> why=UNKNOWN balance=- seconds=1.5
    down 0; refresh; pass 21; refresh; try x 1 -> NotEnoughTokens retry_after>0
    told REFUSED -> why=EMPTY balance=-3 seconds>0
a recharge too: initial=-3 recharge_to=40
    try x 2 -> NotEnoughTokens; told REFUSED -> why=RECHARGING tokens=2
and what is too large: initial=20
    plan 1; refresh; try x 1 keep=90 -> NotEnoughTokens; told REFUSED -> why=TOO_LARGE seconds=inf
after somebody else spent 7 the settle of a call that cost 3 tells both: initial=20
    call 1; outside 7; call 3 estimate=5; told SETTLED -> tokens=3 balance=9 drift=-7
a repair names what was mended, and the balance that is left: initial=-79
    refresh; damage refilled_at=-; try x 1 -> NotEnoughTokens; told REPAIRED -> why=refilled_at balance=-79
a probe says what it is for, and what became of it: initial=-100
    try x 1 -> NotEnoughTokens; told PROBE_CLAIMED -> why=the%20balance%20is%20unknown
    pass 601; down 1; try x 1 -> NotEnoughTokens; told PROBE_CLAIMED -> why=a%20refusal%20on%20an%20old%20reading
    told PROBE_FAILED -> why=status%20503:%20there%20is%20no%20JSON%20object
    pass 21; refresh; told PROBE_CLAIMED -> why=asked%20for
for a scout too: probe=0
    try a 1; told PROBE_CLAIMED -> why=a%20request%20goes%20ahead%20as%20the%20scout; cancel a
"""


@each_story(STORIES)
def test_an_event_says_what_happened_and_why(story: Story) -> None:
    """Each title says which, and its last words what they tell."""
    Told(story).goes()


def test_a_wait_says_why_and_for_how_long_it_sleeps() -> None:
    """The pauses of who waits, on a synced bucket and in a place of a plain one, add up to what was slept."""
    world = World(initial=-12)
    world.call(1)
    waits = [event for event in world.events if event.kind is EventKind.WAITING]
    assert {event.why for event in waits} == {"EMPTY"}
    assert sum(event.seconds for event in waits) == pytest.approx(world.clock.slept, rel=0.01)
    events: list[Event] = []
    plain = TokenBucket(Quota(2, 1, 1.0), key="plain", clock=ManualClock(), listener=events.append)
    plain.acquire(2)
    plain.acquire(2)
    assert [(event.seconds, event.why) for event in events if event.kind is EventKind.WAITING] == [(2.0, "EMPTY")]


def test_a_hold_that_ran_out_says_whose_it_was() -> None:
    """By its label, as the grant did."""
    events: list[Event] = []
    clock = ManualClock()
    bucket = TokenBucket(keepa_quota(initial=20), clock=clock, listener=events.append)
    _kept = [bucket.try_reserve(4, label="report"), bucket.try_reserve(3)]
    clock.advance(130)
    bucket.peek()
    assert [(event.kind, event.tokens, event.label, event.why) for event in events] == [
        (EventKind.GRANTED, 4, "report", "GRANTED"),
        (EventKind.GRANTED, 3, "", "GRANTED"),
        (EventKind.HOLD_RAN_OUT, 4, "report", "a hold of report ran out unsettled: settle or cancel each"),
        (EventKind.HOLD_RAN_OUT, 3, "", "a hold ran out unsettled: settle or cancel each"),
    ]


def test_a_429_says_who_refused() -> None:
    """A call that the server refused is settled at nothing, and the event says that it was the server."""
    world = World()
    world.call(1)
    world.fake.spend_outside(50)
    world.call(3)
    ours, theirs = [event for event in world.events if event.kind is EventKind.SETTLED][-2:]
    assert (ours.tokens, ours.why) == (0, "")
    assert theirs.why == SERVER_REFUSED


def test_a_reading_is_taken_or_ignored_and_it_says_why() -> None:
    """Taken with its drift; ignored as stale, or as senseless, with what is wrong."""
    world = World()
    old = world.fake.request("/token").body
    world.clock.advance(1)
    world.call(1)
    world.fake.spend_outside(4)
    world.sync.refresh()
    taken = world.last(EventKind.READING_TAKEN)
    assert (taken.drift, taken.balance) == (-4, 15)
    world.sync.observe(old)
    assert "newer" in world.last(EventKind.READING_STALE).why
    world.sync.observe(b"<html>", status=502)
    assert world.last(EventKind.READING_BAD).why == "status 502: the body is no JSON (6 long)"


# --- the listener that logs


@pytest.mark.parametrize("workers", [8, pytest.param(64, marks=pytest.mark.deep)])
def test_the_log_has_at_most_two_lines_a_refill_however_many_wait(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In three hours each refill is at most one "granting again" and one "refused", and no poll is a line."""
    caplog.set_level(logging.INFO, logger="keepa_tokens.test")
    log = LoggingListener(logging.getLogger("keepa_tokens.test"))
    seen: Counter[EventKind] = Counter()

    def listen(event: Event) -> None:
        seen[event.kind] += 1
        log(event)

    with virtual_loop() as loop:
        fake = FakeKeepa(initial=30, clock=loop.clock, latency=(0.2, 2.0))
        bucket = AsyncTokenBucket(keepa_quota(), key=KEY, clock=loop.clock, listener=listen)
        sync = AsyncKeepaSync(bucket, probe=fake.aprobe)
        chance = random.Random(1)

        async def work() -> None:
            while True:
                cost = chance.randint(1, 20)
                async with sync.request(cost) as call:
                    answer = await fake.arequest("/product", asins(cost))
                    await call.settle(answer.content, status=answer.status)

        async def hours() -> None:
            working = [asyncio.ensure_future(work()) for _ in range(workers)]
            await asyncio.sleep(3 * 3600)
            for each in working:
                each.cancel()
            await asyncio.gather(*working, return_exceptions=True)

        loop.run_until_complete(hours())

    steps = 3 * 60
    assert seen[EventKind.REFUSED] > workers * steps
    assert steps / 2 < len(caplog.records) <= 2 * steps + 1
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_the_log_tells_a_story(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of a server that goes away, a lost timestamp and a bad body, word for word and nothing else."""
    caplog.set_level(logging.DEBUG, logger="keepa_tokens")
    world = World(initial=-2)
    world.sync.bucket.listener = LoggingListener()
    world.fake.token_down = True
    for _ in range(3):
        world.refused(4)
    world.fake.token_down = False
    world.clock.advance(21)
    world.call(4)
    world.damage(refilled_at=None)
    world.sync.bucket.peek()
    world.sync.observe(b"", status=502)
    TokenBucket(keepa_quota(20), key="k", storage=world.sync.bucket.storage, clock=world.clock).peek()
    said = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert said == [
        "INFO bucket k: refused 4 tokens (UNKNOWN), balance unknown; ask again in 1.5 s",
        "WARNING bucket k: the probe failed: status 503: there is no JSON object",
        "INFO bucket k: refused 4 tokens (EMPTY), balance 0; ask again in 59.5 s",
        "INFO bucket k: granting again; balance 5",
        "DEBUG bucket k: balance -1, -2 against the projection",
        "WARNING bucket k: repaired refilled_at; balance now -1",
        "WARNING bucket k: ignored a reading: status 502: the body is no JSON (0 long)",
        "WARNING bucket k: terms changed from capacity=300, refill=5 to capacity=1200, refill=20",
    ]


def test_what_goes_on_as_it_was_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    """Also to a listener that is told of every event, as behind the metrics; what is kept back stands beside it."""
    caplog.set_level(logging.INFO, "keepa_tokens")
    listener = LoggingListener()
    granted, refused = Event(EventKind.GRANTED, KEY, balance=5), Event(EventKind.REFUSED, KEY, 3, 5, 2.0, why="EMPTY")
    for event in (granted, refused, refused, granted, granted, replace(refused, kept_back=4)):
        listener(event)
    assert caplog.messages == [
        "bucket k: refused 3 tokens (EMPTY), balance 5; ask again in 2 s",
        "bucket k: granting again; balance 5",
        "bucket k: refused 3 tokens (EMPTY), balance 5, 4 of it kept back for whoever else spends; ask again in 2 s",
    ]


def test_a_storage_that_is_away_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """While the storage is away one line says so, however many steps fail, and one says when it grants again."""
    caplog.set_level(logging.INFO, "keepa_tokens")
    storage = Noted()
    bucket = TokenBucket(Quota(5, 1, 1.0), key="k", storage=storage)
    storage.away = True
    for _ in range(3):
        with pytest.raises(StorageUnavailable):
            bucket.try_reserve()
    storage.away = False
    bucket.try_reserve().cancel()
    assert caplog.messages == [
        "bucket k: the storage did not answer: no answer in 5 s",
        "bucket k: granting again; balance 4",
    ]
