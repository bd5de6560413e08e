"""Stories in which a number is exactly at the edge where the fast path decides otherwise, and one beside it.

Told as in `tests/stories.py`, but what comes of a step is not said: all ways to run it must agree. A mapping among the
steps is what the hash's fields are set to before the next command; None: it is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final

from checks.models.strategies import EPOCH, SECOND
from keepa_tokens.quota import Quota
from keepa_tokens.units import CLAIM_US, DAY_US, LIMIT, UNLIMITED, YEAR_US
from tests.redis.strategies import Act, Program
from tests.stories import command, steps


def story(quota: Quota, *parts: str | Mapping[str, object], start: int = EPOCH) -> Program:
    """Return the program that is told."""
    acts: list[Act] = []
    damage: tuple[tuple[str, str | None], ...] = ()
    for part in parts:
        if not isinstance(part, str):
            damage = tuple((name, None if what is None else str(what)) for name, what in part.items())
            continue
        for at, text, _ in steps(part):
            acts.append(Act(start + at, quota, damage, command(text, start)))
            damage = ()
    return Program(tuple(acts))


def edges(quota: Quota, name: str, edge: int, at: str, before: str) -> Program:
    """Return a story in which a field is set to the number at an edge, a bit less, a bit more, before a command."""
    numbers = (edge - SECOND, edge - 1, edge, edge + 1, edge + 2, edge + SECOND)
    steps = [part for number in numbers for part in ({name: EPOCH + number}, at)]
    return story(quota, before, *steps)


# --- what is told

PLAIN: Final = Quota(10, 1, 1.0)
SLOW: Final = Quota(10, 1, 7.0)
RATE: Final = Quota(10, 3, 7.0)
STEPS: Final = Quota(12, 5, 60.0, stepped=True)
DEBT: Final = Quota(8, 2, 7.0, overdraft=3)
SYNCED: Final = Quota(300, 5, 60.0, synced=True, overdraft=20)
SERVED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
HUGE: Final = Quota(LIMIT - 1, 0, 1.0, overdraft=UNLIMITED)
STILL: Final = Quota(10, 0, 1.0)
STILL_STEPS: Final = Quota(10, 0, 1.0, stepped=True)
EMPTY: Final = Quota(10, 1, 1.0, initial=-3)
ONE_A_STEP: Final = Quota(10, 1, 1.0, stepped=True)
QUICK: Final = Quota(5, 2**31, 0.001)

TAKEN: Final = "0 take 4; 333333 take 1"
READ: Final = "0 read 50 1; 1 take 1"
PLACES: Final = ("last_place", "firm_place", "largest_place")
FIELDS: Final = ("format", "balance", "carry", "quota", "held", "open", "sequence", "due_at")
STRANGE: Final = ("closed_until", "paused_until", "wide_capacity", "line", "note", "hold:a", "hold:", "turned")

TALES: Final = f"""
what is there to the last token: PLAIN
    0 take 4, take 6, take 1; 1s-1 take 1; 1s take 1; 2s hold a 1; 3s-1 hold b 1; 20s take 10
a place exactly as far as may be waited: PLAIN
    0 take 10, take 3 wait=3s-1, take 3 wait=3s, take 1 wait=4s, take 1 wait=5s+1, take 1 wait=0
    0 take 2 keep=1 wait=60s, take 10 wait=60s; 1 peek; 0 take 9 wait=24s, take 11 wait=60s; 9s take 1 wait=1s
steps: STEPS
    0 take 12; 60s-1 take 1; 60s take 5; 61s take 5 wait=59s; 120s take 1; 180s take 4; 181s take 2 wait=59s-1
    600s take 12, take 6 wait=120s; 1 take 1; 900s take 1, back r 1; 960s hold a 12, settle a 2
debt: DEBT
    0 take 12, take 11, take 1; 14s take 1; 14s+1 take 4 wait=1s
    60s take 8 keep=1, take 8 keep=3, hold a 4 keep=7
one that is kept back: SYNCED
    0 read 90 1; 1 read 60 2; 2 hold a 1, take 24, hold b 2; 3 take 5 keep=99, take 4 keep=1, settle a 1
    4 take 29, take 28 keep=1, take 2 keep=3; 5 take 1 keep=101
what is kept for others: PLAIN
    0 take 5 keep=6, take 5 keep=5, take 1 keep=5, take 1 keep=4
    0 hold a 2 keep=3, hold a 2 keep=2, take 0, hold b 0, settle a 0
a hold to its end: PLAIN
    0 hold a 4; 1s-1 settle a 1; 1s hold b 4 label=x%20y; 2s settle b 1, hold c 3, hold c 3
    2s settle c 9, settle c 9, back r 2, back r 2
give back to the brim: PLAIN
    0 take 3; 0.5s back a 3; 1s take 2; 1s+7 back b 1; 1s+8 hold c 5; 1s+9 cancel c; 2s take 1, back d 9
give back before places: PLAIN
    0 take 4, hold h 6 life=90s, take 3 wait=9s, take 2 wait=9s; 1 settle h 1; 2 back a 3 3s; 3 back b 2 5s
    4 take 2 wait=9s; 5 back c 2; 6 back d 8 0; 7 back e 9 7; 8 take 10 wait=99s; 9 back f 10 99s
    10 take 1 wait=1s
give back before places, in steps: STEPS
    0 take 12, take 5 wait=60s, take 3 wait=120s; 1 back a 9; 2 back b 9 60s; 3 back c 3 120s; 4 take 1 wait=300s
    5 back d 12 119s; 6 back e 1 120s; 7 peek
places at three in seven seconds: RATE
    0 take 10, take 1 wait=60s; 1 take 2 wait=60s; 3s take 4 wait=60s; 3s+5 take 5 wait=60s; 4s back a 5 28s
    4s+1 back b 4 9s; 4s+2 back c 8 25s; 5s take 1 wait=60s; 6s back d 1 29s; 7s take 7 wait=60s; 8s peek
give back by the last place: RATE
    0 take 10, take 4 wait=60s; 1 back a 4 9333334; 2 take 1 wait=60s; 3 back b 1 2333334
    4 take 2 wait=60s; 5 back c 1 4666667
calls in flight at a server: SYNCED
    0 read 50 1, take 70, take 71; 1 read 50 2, hold a 20, take 31, take 30, hold b 1
    2 settle a 25, take 1 keep=4, take 1 keep=3; 3 back r 2; 4 cancel b; 5 hold c 0
others spend: SYNCED
    0 read 90 1; 1 read 60 2; 2 take 31, take 1 keep=90, take 1 keep=5, take 2 keep=80
    3 hold a 1 keep=29, take 10; 4 peek
a server's steps: SERVED
    0 read 5 1 next_refill_in=30; 1 take 5; 30s-1 take 1; 30s take 5; 59s take 1; 90s take 4; 91s claim
a server's step that is longer than its period: SERVED
    0 read 5 1 next_refill_in=90; 1 take 5; 90s-1 take 1; 90s take 5; 180s-1 take 1; 180s take 5
    181s read 5 2; 241s take 10
as much as can be counted: HUGE
    0 hold a {LIMIT // 2} life={DAY_US}, hold b {LIMIT // 2 - 1} life={DAY_US}, take 1, take 2
    0 hold c 1 life={DAY_US}, settle a {LIMIT - 1}, take {LIMIT - 1}, settle b 0, back r {LIMIT - 1}
one every seven seconds: SLOW
    0 take 10; 7s-1 take 1; 7s take 1; 8s take 1
steps of nothing: STILL_STEPS
    0 take 3; 1.5s take 1; 4s back a 1; 5s take 8
steps of one: ONE_A_STEP
    0 take 10; 1s-1 take 1; 1s take 1; 2.5s take 1; 3s take 2 wait=2s; 9s take 4
the last place of steps given back: STEPS
    0 take 12, take 5 wait=60s; 1 back a 5 60s; 2 take 5 wait=60s; 3 back b 5 61s; 4 take 1 wait=60s
a place that is now: PLAIN
    0 take 10, take 4 wait=4s; 4s take 1 wait=60s
a past grant of which nothing fits: PLAIN
    0 take 10, take 10 wait=10s; 1 back a 12 0; 2 back b 1 0
one in flight beside an overdraft: SYNCED
    0 read 5 1; 1 hold a 1; 2 take 10; 3 settle a 0; 4 take 10
a probe that failed: SYNCED
    0 read 9 1; 1 claim; {1 + CLAIM_US} claim; 60s peek
one that begins below nothing: EMPTY
    0 take 1; 1s take 10; 4s-1 take 1; 4s take 1; 5s take 11, take 1
refused beside holds, places and more than there can be: DEBT
    0 take 7, hold a 2, take 3, take 11, take 12; 1 take 4 wait=60s, take 1, settle a 1; 2 take 5; 9s take 1; 21s take 2
a claim given back: SYNCED
    0 read 9 1; 1 claim; 2 unclaim {1 + CLAIM_US}; 3 take 1; 4 claim
"""


def stories() -> Iterator[tuple[str, Program]]:
    for name, quota, lines in re.findall(r"(.*): (.*)\n((?: .*\n)+)", TALES):
        yield name, story(globals()[quota], lines)
    yield from at_the_ends_of_time()
    yield from at_an_edge()
    yield from by_what_is_held()
    yield from where_nothing_refills()
    yield from by_the_fast_terms()
    yield from by_terms_of_others()


def at_the_ends_of_time() -> Iterator[tuple[str, Program]]:
    start = LIMIT - SECOND
    for at in (-1, 0, 1):
        yield f"a place at {at} of the end", story(PLAIN, f"0 take 10, take 1 wait={LIMIT}", start=start + at)
    yield "a clock at its end", story(PLAIN, "0 hold a 1 life=9, hold b 1 life=10", start=LIMIT - 10)
    seconds = "-2 take 1; -1 take 1; 0 take 1; 1 take 1; 2 take 1; 1s take 1"
    yield "a clock of small numbers", story(PLAIN, seconds, start=2**32)
    yield "the very beginning", story(PLAIN, "0 take 5, back a 2, back b 2, take 9 wait=9", start=0)
    terms = {"terms_at": 0, "quota": "9 3 7000000", "carry": 0}
    yield "terms replaced at the very beginning", story(PLAIN, "5 take 1", terms, "6 take 1", start=0)
    given_back = "0 take 10, take 1 wait=1s, back a 1 1s, take 1 wait=1s"
    yield "a place given back at the very beginning", story(PLAIN, given_back, start=0)


def at_an_edge() -> Iterator[tuple[str, Program]]:
    now, place = SECOND // 3, SECOND // 3 + 16 * SECOND
    yield "ahead of the clock", edges(PLAIN, "refilled_at", now + 5 * SECOND, "333333 take 1", TAKEN)
    yield "older than a year", edges(Quota(10, 1, 9e6), "refilled_at", now - YEAR_US, "333333 take 1", TAKEN)
    yield "due", edges(PLAIN, "due_at", now, "333333 take 0", TAKEN)
    yield "due too late", edges(PLAIN, "due_at", now + 2 * DAY_US + 5 * SECOND, "333333 take 1", TAKEN)
    yield "a place too far", edges(PLAIN, "last_place", place, "333333 back a 0", TAKEN)
    yield "a firm place too far", edges(PLAIN, "firm_place", place, "333333 take 1", TAKEN)
    yield "served until", edges(SYNCED, "fast", 0, "1 take 1", READ)

    edge = (-LIMIT, 1 - LIMIT, -1, 0, 1, LIMIT // 2 - 1, LIMIT // 2, LIMIT - 2, LIMIT - 1, LIMIT)
    for name, number in product(("version", "balance", "carry", "held", "open", "sequence", *PLACES), edge):
        yield f"{name} is {number}", story(PLAIN, TAKEN, {name: number}, "1s take 1, back z 1")
    for name, text in product((*FIELDS, *PLACES, *STRANGE), ("1", "0")):
        yield f"nothing there but {name}, {text}", story(PLAIN, {name: text}, "0 take 1; 1 take 1")
    begun, after = "0 read 9 1, hold a 2, take 1", "2 take 1; 3 settle a 1; 4 back z 1"
    for quota, name in product((PLAIN, SYNCED), ("version", "refilled_at", "fast", "hold:a", *FIELDS)):
        yield f"{name} is gone, synced: {quota.synced}", story(quota, begun, {name: None}, after)

    for hold in (
        *(f"6 1 {EPOCH + 9} 9 0", f"5 2 {EPOCH + 9} 9 0", f"5 1 {EPOCH + 1} 9 0", f"5 1 {EPOCH + 2} 9 0"),
        *(f"5 1 {EPOCH + 9} {life}" for life in ("0 0", f"{DAY_US} 0", f"{DAY_US + 1} 0")),
        *(f"5 1 {EPOCH + 5 * SECOND + end} 9 0" for end in (10, 11)),
        *(f"5 1 {EPOCH + 9} 9 {rest}" for rest in ("1", "0x", "0 x", "0 ")),
        *(f"0 0 {EPOCH + 9} 1 0", "5 1 9 9", ""),
    ):
        yield f"a hold of {hold}", story(PLAIN, "0 hold a 5 life=60s", {"hold:a": hold}, "1 settle a 2; 2 settle a 2")
    for number in (LIMIT - 3, LIMIT - 2, LIMIT - 1):
        yield f"a hold, and {number} open", story(PLAIN, "0 hold a 5 life=60s", {"open": number}, "1 take 1")
    for cost, balance, quota in product((4, 5, 6, 7, 8), (1 - LIMIT, 3 - LIMIT, 2), (PLAIN, SYNCED)):
        steps = ("0 read 9 1, hold a 5", {"balance": balance}, f"0 settle a {cost}")
        yield f"a settle that costs {cost} at {balance} of {quota.capacity}", story(quota, *steps)

    for carry in (SECOND - 1, SECOND, SECOND + 1):
        yield f"a refund at a carry of {carry}", story(PLAIN, TAKEN, {"carry": carry}, "1s back z 1")
    for balance in (-LIMIT - 1, -LIMIT, 1 - LIMIT):
        yield f"a refund at {balance}", story(PLAIN, TAKEN, {"balance": balance}, "1s back z 1")
    quotas = (Quota(100, 3, 7.0), Quota(100, 1, 1.0), Quota(100, 50, 7.0, stepped=True), Quota(100, 0, 1.0))
    for tokens, quota in product((1, 2, 38, 39, 40, 41, 97, 98, 99, 100), quotas):
        giving = f"""0 take 100, take 1 wait=600s; 1 back a {tokens} 0; 2 take 60; 3 take 60 wait=600s
            4 back b {tokens} 1; 5 back c 1 2; 6 take 9 wait=600s; 7s back d 60 3
            9s hold h 1, take 3 wait=600s; 9s+1 settle h 0; 10s peek"""
        yield f"give back {tokens} of a past grant of {quota.refill} in {quota.period:g} s", story(quota, giving)

    yield (
        "full, with a carry",
        story(
            PLAIN,
            *("0 take 1", {"balance": 10, "carry": 5}, "0 back z 0", {"balance": 11}, "0 take 1"),
            *({"balance": 12, "carry": 7}, "1s take 1", {"balance": 10}, "2s take 1"),
        ),
    )
    little, more = {"balance": 1 - LIMIT}, {"balance": 2 - LIMIT}
    takes = ("0 take 1", little, f"0 take 1 wait={LIMIT}", more, f"0 take 2 wait={LIMIT}; 9 take 1")
    yield "as little as can be counted", story(QUICK, *takes)


def by_what_is_held() -> Iterator[tuple[str, Program]]:
    yield "held by no call", story(PLAIN, TAKEN, {"held": 99}, "1s take 1; 2s take 1")
    yield "held by no call at a server", story(SYNCED, READ, {"held": 99}, "2 take 1; 2s take 1")
    for tokens in (1, 2, 3):
        held = f"0 hold a {LIMIT - 2} life={DAY_US}"
        yield f"{tokens} beside all but one that can be held", story(HUGE, held, {"balance": 9}, f"0 take {tokens}")
    for number in (LIMIT - 1, LIMIT, LIMIT + 1):
        yield f"{number} held by a call", story(PLAIN, "0 hold a 1", {"held": number}, "1 take 1")
    yield "one held by a call that is over", story(PLAIN, "0 hold a 3", {"held": 4}, "1 settle a 1")


def where_nothing_refills() -> Iterator[tuple[str, Program]]:
    steps = (f"0 take 9, take 2 wait={LIMIT}, hold a 1; 1 settle a 0", {"carry": 5}, "1s take 1, back z 3 9")
    yield "nothing comes", story(STILL, *steps)
    yield "a fraction of what never comes", story(STILL, "0 take 4", {"carry": 5}, "1 take 1; 2 take 1")
    place = {"last_place": EPOCH + 9, "largest_place": 1}
    yield "a place where nothing comes, given back", story(STILL, "0 take 4", place, "1 back z 2 9")
    for name, number in product(PLACES, (LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1)):
        after = "1 take 1; 2 back z 2; 3 take 1"
        yield f"nothing refills, and {name} is {number}", story(STILL, "0 take 4", {name: number}, after)


def by_the_fast_terms() -> Iterator[tuple[str, Program]]:
    for at in (0, 1, 60 * SECOND, 60 * SECOND + 1):
        until, past = {"fast": f"{EPOCH + 2 + at} 300 1 12000000 0"}, {"fast": f"{EPOCH} 9 9 9 9"}
        yield f"served until, {at}", story(SYNCED, READ, until, "2 take 1", past, "3 take 1")
    for numbers in (
        *("0 1 12 0", "1 1 12 0", f"{LIMIT - 1} 1 12 0", f"{LIMIT} 1 12 0", "300 0 1 0", "300 1 1 0", "300 1 0 0"),
        *(f"300 {2**26} {2**26} 0", f"300 {2**26} {2**26 - 1} 0", f"300 1 {LIMIT} 0", f"300 1 12 {LIMIT - 1}"),
        *(f"300 1 12 {LIMIT}", f"300 {LIMIT // 2 - 1} 1 0", f"300 {LIMIT // 2} 1 0", f"300 0 {LIMIT - 1} 0"),
        *(f"300 0 {LIMIT} 0", f"300 {LIMIT - 1} 1 0"),
    ):
        fast = {"fast": f"{EPOCH + 9} {numbers}", "carry": 0}
        yield f"numbers of the fast path: {numbers}", story(SYNCED, READ, fast, "2 take 1")

    # What is kept back for others.
    for balance, tokens, keep in (
        *((91, 1, 0), (92, 1, 0), (86, 1, 0), (101, 1, 50), (102, 1, 50), (201, 1, 0), (122, 1, 120)),
        *((121, 1, 120), (300, 250, 0), (301, 250, 0)),
    ):
        fast = {"fast": f"{EPOCH + 9} 300 1 12000000 90"}
        steps = (f"0 read {balance} 1; 1 take 1", fast, f"2 take {tokens} keep={keep}")
        yield f"others spend, {balance} are there for {tokens} beside {keep}", story(SYNCED, *steps)
    for terms, balance in product(((1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (300, 1), (300, 0)), (1, 2, 3)):
        capacity, kept = terms
        fast = {"fast": f"{EPOCH + 9} {capacity} 1 12000000 {kept}", "balance": balance}
        yield f"{kept} of {balance} kept back at a capacity of {capacity}", story(SYNCED, READ, fast, "2 take 1")


def by_terms_of_others() -> Iterator[tuple[str, Program]]:
    for at in (0, 1, 60 * SECOND - 1, 60 * SECOND, 61 * SECOND, -5 * SECOND, -5 * SECOND - 1):
        terms = {"terms_at": EPOCH + 60 * SECOND - at, "quota": "9 3 7000000"}
        yield f"terms replaced {at} us ago", story(PLAIN, TAKEN, terms, "60s take 1")
    for quota in (
        *("9 3 7000000 1 0 - - 0", "9 4 8000000", "9 4 8000000 0 0 - - 0", "9 3 7000000 0 3 - - 0", "9 0 7000000"),
        *("0 3 7000000", "1 3 7000000", "9 3", "9 3 7 1", "9 3 7 0 0 - - 0 1", "9 3 7000000 ", "x 3 7", "9 3 7x"),
        *("9 3 0", "9 3 1", f"{LIMIT - 1} 3 7", f"{LIMIT} 3 7", f"9 {2**26 - 1} {2**26}", f"9 {2**26} {2**26 - 1}"),
        *(f"9 3 7 0 {overdraft} - - 0" for overdraft in (LIMIT, LIMIT + 1)),
        *(f"9 3 7 0 0 {target} - 0" for target in (0, 1, LIMIT, "x")),
        *(f"9 3 7 0 0 - {initial} 0" for initial in (9, 10, -4, -LIMIT, 1 - LIMIT)),
        *("9 3 7 0 0 - - 1", "9 3 7 2 0 - - 0", "9 3 7 1 00 - - 0", "9 3 7 1 0 - - 0 ", "09 3 7", "9 03 7", "9 3 07"),
    ):
        terms = {"terms_at": EPOCH + SECOND, "quota": quota, "carry": 0}
        yield f"other terms: {quota}", story(PLAIN, TAKEN, terms, "1s take 1, take 1")
    for target, initial in (
        *((0, "-"), (1, "-"), (LIMIT - 1, "-"), (LIMIT, "-"), ("-", 9), ("-", 10), ("-", 1 - LIMIT), ("-", -LIMIT)),
        *((9, 9), ("x", "-"), ("-", "x")),
    ):
        quota, fast = f"9 3 7000000 0 0 {target} {initial} 0", f"{EPOCH + SECOND + 9} 9 3 7000000 0"
        terms = {"terms_at": EPOCH + SECOND, "quota": quota, "fast": fast, "carry": 0}
        yield f"terms that recharge to {target} and begin at {initial}", story(PLAIN, TAKEN, terms, "1s take 1")


STORIES: Final = dict(stories())
