"""Stories in which a number is exactly at the edge where the fast path decides otherwise, and one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from checks.models.strategies import EPOCH, SECOND
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from keepa_tokens.rules.reading import Reading
from keepa_tokens.units import CLAIM_US, DAY_US, LIMIT, UNLIMITED, YEAR_US
from tests.redis.strategies import Act, Program

Step = tuple[int, Command] | tuple[int, Command, Mapping[str, str | None]]

PLAIN: Final = Quota(10, 1, 1.0)
RATE: Final = Quota(10, 3, 7.0)
STEPS: Final = Quota(12, 5, 60.0, stepped=True)
DEBT: Final = Quota(8, 2, 7.0, overdraft=3)
SYNCED: Final = Quota(300, 5, 60.0, synced=True, overdraft=20)
SERVED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
HUGE: Final = Quota(LIMIT - 1, 0, 1.0, overdraft=UNLIMITED)


def story(quota: Quota, *steps: Step) -> Program:
    """Return a program at microseconds since EPOCH."""
    return Program(
        tuple(Act(EPOCH + step[0], quota, tuple(step[2].items()) if len(step) == 3 else (), step[1]) for step in steps)
    )


def edges(quota: Quota, before: tuple[Step, ...], name: str, at: int, command: Command, base: int = EPOCH) -> Program:
    """Return a program in which a field is set to the number at an edge, a bit less, a bit more, before a command."""
    last = before[-1][0]
    numbers = (at - SECOND, at - 1, at, at + 1, at + 2, at + SECOND)
    return story(quota, *before, *((last, command, {name: str(base + number)}) for number in numbers))


STILL: Final = Quota(10, 0, 1.0)
STILL_STEPS: Final = Quota(10, 0, 1.0, stepped=True)
ONE_A_STEP: Final = Quota(10, 1, 1.0, stepped=True)
QUICK: Final = Quota(5, 2**31, 0.001)
OTHERS: Final = f"{EPOCH + 9} 300 1 12000000 90"
"""What is kept back for others, as the fast path reads it."""

_TAKEN: Final[tuple[Step, ...]] = ((0, Acquire(4)), (SECOND // 3, Acquire(1)))
_READ: Final[tuple[Step, ...]] = ((0, Reconcile(Reading(50, server_time=1.0))), (1, Acquire(1)))

STORIES: Final[dict[str, Program]] = {
    "what is there to the last token": story(
        PLAIN,
        *((0, Acquire(4)), (0, Acquire(6)), (0, Acquire(1)), (SECOND - 1, Acquire(1)), (SECOND, Acquire(1))),
        *((2 * SECOND, Reserve("a", 1, SECOND)), (3 * SECOND - 1, Reserve("b", 1, SECOND)), (20 * SECOND, Acquire(10))),
    ),
    "a place exactly as far as may be waited": story(
        PLAIN,
        *((0, Acquire(10)), (0, Acquire(3, wait_us=3 * SECOND - 1)), (0, Acquire(3, wait_us=3 * SECOND))),
        *((0, Acquire(1, wait_us=4 * SECOND)), (0, Acquire(1, wait_us=5 * SECOND + 1)), (0, Acquire(1, wait_us=0))),
        *((0, Acquire(2, keep=1, wait_us=60 * SECOND)), (0, Acquire(10, wait_us=60 * SECOND)), (1, Peek())),
        *(
            (0, Acquire(9, wait_us=24 * SECOND)),
            (0, Acquire(11, wait_us=60 * SECOND)),
            (9 * SECOND, Acquire(1, 0, SECOND)),
        ),
    ),
    "steps": story(
        STEPS,
        *(
            (0, Acquire(12)),
            (60 * SECOND - 1, Acquire(1)),
            (60 * SECOND, Acquire(5)),
            (61 * SECOND, Acquire(5, 0, 59 * SECOND)),
        ),
        *((120 * SECOND, Acquire(1)), (180 * SECOND, Acquire(4)), (181 * SECOND, Acquire(2, wait_us=59 * SECOND - 1))),
        *(
            (600 * SECOND, Acquire(12)),
            (600 * SECOND, Acquire(6, wait_us=120 * SECOND)),
            (1, Acquire(1)),
            (900 * SECOND, Acquire(1)),
        ),
        *((900 * SECOND, Refund("r", 1)), (960 * SECOND, Reserve("a", 12, SECOND)), (960 * SECOND, Settle("a", 2))),
    ),
    "debt": story(
        DEBT,
        *(
            (0, Acquire(12)),
            (0, Acquire(11)),
            (0, Acquire(1)),
            (14 * SECOND, Acquire(1)),
            (14 * SECOND + 1, Acquire(4, 0, SECOND)),
        ),
        *((60 * SECOND, Acquire(8, 1)), (60 * SECOND, Acquire(8, 3)), (60 * SECOND, Reserve("a", 4, SECOND, 7))),
    ),
    "one that is kept back": story(
        SYNCED,
        *((0, Reconcile(Reading(90, server_time=1.0))), (1, Reconcile(Reading(60, server_time=2.0)))),
        *((2, Reserve("a", 1, SECOND)), (2, Acquire(24)), (2, Reserve("b", 2, SECOND)), (3, Acquire(5, 99))),
        *(
            (3, Acquire(4, 1)),
            (3, Settle("a", 1)),
            (4, Acquire(29)),
            (4, Acquire(28, 1)),
            (4, Acquire(2, 3)),
            (5, Acquire(1, 101)),
        ),
    ),
    "what is kept for others": story(
        PLAIN,
        *(
            (0, Acquire(5, 6)),
            (0, Acquire(5, 5)),
            (0, Acquire(1, 5)),
            (0, Acquire(1, 4)),
            (0, Reserve("a", 2, SECOND, 3)),
        ),
        *((0, Reserve("a", 2, SECOND, 2)), (0, Acquire(0)), (0, Reserve("b", 0, SECOND)), (0, Settle("a", 0))),
    ),
    "a hold to its end": story(
        PLAIN,
        *((0, Reserve("a", 4, SECOND)), (SECOND - 1, Settle("a", 1)), (SECOND, Reserve("b", 4, SECOND, label="x y"))),
        *((2 * SECOND, Settle("b", 1)), (2 * SECOND, Reserve("c", 3, SECOND)), (2 * SECOND, Reserve("c", 3, SECOND))),
        *(
            (2 * SECOND, Settle("c", 9)),
            (2 * SECOND, Settle("c", 9)),
            (2 * SECOND, Refund("r", 2)),
            (2 * SECOND, Refund("r", 2)),
        ),
    ),
    "give back to the brim": story(
        PLAIN,
        *((0, Acquire(3)), (SECOND // 2, Refund("a", 3)), (SECOND, Acquire(2)), (SECOND + 7, Refund("b", 1))),
        *(
            (SECOND + 8, Reserve("c", 5, SECOND)),
            (SECOND + 9, Cancel("c")),
            (2 * SECOND, Acquire(1)),
            (2 * SECOND, Refund("d", 9)),
        ),
    ),
    "give back before places": story(
        PLAIN,
        *(
            (0, Acquire(4)),
            (0, Reserve("h", 6, 90 * SECOND)),
            (0, Acquire(3, wait_us=9 * SECOND)),
            (0, Acquire(2, 0, 9 * SECOND)),
        ),
        *((1, Settle("h", 1)), (2, Refund("a", 3, EPOCH + 3 * SECOND)), (3, Refund("b", 2, EPOCH + 5 * SECOND))),
        *(
            (4, Acquire(2, wait_us=9 * SECOND)),
            (5, Refund("c", 2)),
            (6, Refund("d", 8, EPOCH)),
            (7, Refund("e", 9, EPOCH + 7)),
        ),
        *(
            (8, Acquire(10, wait_us=99 * SECOND)),
            (9, Refund("f", 10, EPOCH + 99 * SECOND)),
            (10, Acquire(1, wait_us=SECOND)),
        ),
    ),
    "give back before places, in steps": story(
        STEPS,
        *(
            (0, Acquire(12)),
            (0, Acquire(5, wait_us=60 * SECOND)),
            (0, Acquire(3, wait_us=120 * SECOND)),
            (1, Refund("a", 9)),
        ),
        *(
            (2, Refund("b", 9, EPOCH + 60 * SECOND)),
            (3, Refund("c", 3, EPOCH + 120 * SECOND)),
            (4, Acquire(1, 0, 300 * SECOND)),
        ),
        *((5, Refund("d", 12, EPOCH + 119 * SECOND)), (6, Refund("e", 1, EPOCH + 120 * SECOND)), (7, Peek())),
    ),
    "places at three in seven seconds": story(
        RATE,
        *((0, Acquire(10)), (0, Acquire(1, wait_us=60 * SECOND)), (1, Acquire(2, wait_us=60 * SECOND))),
        *((3 * SECOND, Acquire(4, wait_us=60 * SECOND)), (3 * SECOND + 5, Acquire(5, wait_us=60 * SECOND))),
        *((4 * SECOND, Refund("a", 5, EPOCH + 28 * SECOND)), (4 * SECOND + 1, Refund("b", 4, EPOCH + 9 * SECOND))),
        *((4 * SECOND + 2, Refund("c", 8, EPOCH + 25 * SECOND)), (5 * SECOND, Acquire(1, wait_us=60 * SECOND))),
        *(
            (6 * SECOND, Refund("d", 1, EPOCH + 29 * SECOND)),
            (7 * SECOND, Acquire(7, wait_us=60 * SECOND)),
            (8 * SECOND, Peek()),
        ),
    ),
    **{
        f"give back {tokens} of a past grant of {quota.refill} in {quota.period:g} s": story(
            quota,
            *(
                (0, Acquire(100)),
                (0, Acquire(1, wait_us=600 * SECOND)),
                (1, Refund("a", tokens, EPOCH)),
                (2, Acquire(60)),
            ),
            *(
                (3, Acquire(60, wait_us=600 * SECOND)),
                (4, Refund("b", tokens, EPOCH + 1)),
                (5, Refund("c", 1, EPOCH + 2)),
            ),
            *(
                (6, Acquire(9, wait_us=600 * SECOND)),
                (7 * SECOND, Refund("d", 60, EPOCH + 3)),
                (9 * SECOND, Reserve("h", 1, SECOND)),
            ),
            *((9 * SECOND, Acquire(3, wait_us=600 * SECOND)), (9 * SECOND + 1, Settle("h", 0)), (10 * SECOND, Peek())),
        )
        for tokens in (1, 2, 38, 39, 40, 41, 97, 98, 99, 100)
        for quota in (Quota(100, 3, 7.0), Quota(100, 1, 1.0), Quota(100, 50, 7.0, stepped=True), Quota(100, 0, 1.0))
    },
    "give back by the last place": story(
        RATE,
        *(
            (0, Acquire(10)),
            (0, Acquire(4, wait_us=60 * SECOND)),
            (1, Refund("a", 4, EPOCH + 9_333_334)),
            (2, Acquire(1, 0, 60 * SECOND)),
        ),
        *(
            (3, Refund("b", 1, EPOCH + 2_333_334)),
            (4, Acquire(2, wait_us=60 * SECOND)),
            (5, Refund("c", 1, EPOCH + 4_666_667)),
        ),
    ),
    "calls in flight at a server": story(
        SYNCED,
        *(
            (0, Reconcile(Reading(50, server_time=1.0))),
            (0, Acquire(70)),
            (0, Acquire(71)),
            (1, Reconcile(Reading(50, server_time=2.0))),
        ),
        *(
            (1, Reserve("a", 20, SECOND)),
            (1, Acquire(31)),
            (1, Acquire(30)),
            (1, Reserve("b", 1, SECOND)),
            (2, Settle("a", 25)),
        ),
        *((2, Acquire(1, 4)), (2, Acquire(1, 3)), (3, Refund("r", 2)), (4, Cancel("b")), (5, Reserve("c", 0, SECOND))),
    ),
    "others spend": story(
        SYNCED,
        *(
            (0, Reconcile(Reading(90, server_time=1.0))),
            (1, Reconcile(Reading(60, server_time=2.0))),
            (2, Acquire(31)),
            (2, Acquire(1, 90)),
        ),
        *((2, Acquire(1, 5)), (2, Acquire(2, 80)), (3, Reserve("a", 1, SECOND, 29)), (3, Acquire(10)), (4, Peek())),
    ),
    "a server's steps": story(
        SERVED,
        *(
            (0, Reconcile(Reading(5, next_refill_in=30.0, server_time=1.0))),
            (1, Acquire(5)),
            (30 * SECOND - 1, Acquire(1)),
        ),
        *((30 * SECOND, Acquire(5)), (59 * SECOND, Acquire(1)), (90 * SECOND, Acquire(4)), (91 * SECOND, ClaimProbe())),
    ),
    "as much as can be counted": story(
        HUGE,
        *(
            (0, Reserve("a", LIMIT // 2, DAY_US)),
            (0, Reserve("b", LIMIT // 2 - 1, DAY_US)),
            (0, Acquire(1)),
            (0, Acquire(2)),
        ),
        *(
            (0, Reserve("c", 1, DAY_US)),
            (0, Settle("a", LIMIT - 1)),
            (0, Acquire(LIMIT - 1)),
            (0, Settle("b", 0)),
            (0, Refund("r", LIMIT - 1)),
        ),
    ),
    **{
        f"a place at {at} of the clock's end": Program(
            tuple(Act(LIMIT - SECOND + at, PLAIN, (), command) for command in (Acquire(10), Acquire(1, wait_us=LIMIT)))
        )
        for at in (-1, 0, 1)
    },
    "a clock at its end": Program(
        (Act(LIMIT - 10, PLAIN, (), Reserve("a", 1, 9)), Act(LIMIT - 10, PLAIN, (), Reserve("b", 1, 10)))
    ),
    "ahead of the clock": edges(PLAIN, _TAKEN, "refilled_at", SECOND // 3 + 5 * SECOND, Acquire(1)),
    "older than a year": edges(Quota(10, 1, 9e6), _TAKEN, "refilled_at", SECOND // 3 - YEAR_US, Acquire(1)),
    "due": edges(PLAIN, _TAKEN, "due_at", SECOND // 3, Acquire(0)),
    "due too late": edges(PLAIN, _TAKEN, "due_at", SECOND // 3 + 2 * DAY_US + 5 * SECOND, Acquire(1)),
    "a place too far": edges(PLAIN, _TAKEN, "last_place", SECOND // 3 + 16 * SECOND, Refund("a", 0)),
    "a firm place too far": edges(PLAIN, _TAKEN, "firm_place", SECOND // 3 + 16 * SECOND, Acquire(1)),
    "served until": edges(SYNCED, _READ, "fast", 0, Acquire(1)),
    **{
        f"served until, {at}": story(
            SYNCED,
            *_READ,
            *(
                (2, Acquire(1), {"fast": f"{EPOCH + 2 + at} 300 1 12000000 0"}),
                (3, Acquire(1), {"fast": f"{EPOCH} 9 9 9 9"}),
            ),
        )
        for at in (0, 1, 60 * SECOND, 60 * SECOND + 1)
    },
    **{
        f"numbers of the fast path: {numbers}": story(
            SYNCED, *_READ, (2, Acquire(1), {"fast": f"{EPOCH + 9} {numbers}", "carry": "0"})
        )
        for numbers in (
            *("0 1 12 0", "1 1 12 0", f"{LIMIT - 1} 1 12 0", f"{LIMIT} 1 12 0", "300 0 1 0", f"300 {2**26} {2**26} 0"),
            *(
                f"300 {2**26} {2**26 - 1} 0",
                "300 1 0 0",
                f"300 1 {LIMIT} 0",
                f"300 1 12 {LIMIT - 1}",
                f"300 1 12 {LIMIT}",
                f"300 {LIMIT // 2 - 1} 1 0",
                f"300 {LIMIT // 2} 1 0",
                f"300 0 {LIMIT - 1} 0",
                f"300 0 {LIMIT} 0",
                f"300 {LIMIT - 1} 1 0",
                "300 1 1 0",
            ),
        )
    },
    **{
        f"{name} is {number}": story(
            PLAIN, *_TAKEN, (SECOND, Acquire(1), {name: str(number)}), (SECOND, Refund("z", 1))
        )
        for name in (
            "version",
            "balance",
            "carry",
            "held",
            "open",
            "sequence",
            "last_place",
            "firm_place",
            "largest_place",
        )
        for number in (-LIMIT, 1 - LIMIT, -1, 0, 1, LIMIT // 2 - 1, LIMIT // 2, LIMIT - 2, LIMIT - 1, LIMIT)
    },
    **{
        f"a hold of {hold}": story(
            PLAIN,
            *((0, Reserve("a", 5, 60 * SECOND)), (1, Settle("a", 2), {"hold:a": hold}), (2, Settle("a", 2))),
        )
        for hold in (
            *(
                f"6 1 {EPOCH + 9} 9 0",
                f"5 2 {EPOCH + 9} 9 0",
                f"5 1 {EPOCH + 1} 9 0",
                f"5 1 {EPOCH + 2} 9 0",
                f"5 1 {EPOCH + 9} 0 0",
            ),
            *(f"5 1 {EPOCH + 9} {DAY_US} 0", f"5 1 {EPOCH + 9} {DAY_US + 1} 0", f"5 1 {EPOCH + 5 * SECOND + 10} 9 0"),
            *(
                f"5 1 {EPOCH + 5 * SECOND + 11} 9 0",
                f"5 1 {EPOCH + 9} 9 1",
                f"5 1 {EPOCH + 9} 9 0x",
                f"5 1 {EPOCH + 9} 9 0 x",
            ),
            *(f"0 0 {EPOCH + 9} 1 0", f"5 1 {EPOCH + 9} 9 0 ", "5 1 9 9", ""),
        )
    },
    **{
        f"terms replaced {at} us ago": story(
            PLAIN,
            *_TAKEN,
            (
                60 * SECOND,
                Acquire(1),
                {"terms_at": str(EPOCH + 60 * SECOND - at), "quota": "9 3 7000000"},
            ),
        )
        for at in (0, 1, 60 * SECOND - 1, 60 * SECOND, 61 * SECOND, -5 * SECOND, -5 * SECOND - 1)
    },
    **{
        f"other terms: {terms}": story(
            PLAIN,
            *_TAKEN,
            (SECOND, Acquire(1), {"terms_at": str(EPOCH + SECOND), "quota": terms, "carry": "0"}),
            (SECOND, Acquire(1)),
        )
        for terms in (
            *("9 3 7000000 1 0 - - 0", "9 4 8000000", "9 4 8000000 0 0 - - 0", "9 3 7000000 0 3 - - 0"),
            *(
                "9 0 7000000",
                "0 3 7000000",
                "9 3",
                "9 3 7 1",
                "9 3 7 0 0 - - 0 1",
                "9 3 7000000 ",
                "x 3 7",
                "9 3 7x",
                "9 3 1",
            ),
            *(
                f"{LIMIT - 1} 3 7",
                f"{LIMIT} 3 7",
                f"9 3 7 0 {LIMIT} - - 0",
                f"9 3 7 0 {LIMIT + 1} - - 0",
            ),
            *(
                f"9 {2**26 - 1} {2**26}",
                f"9 {2**26} {2**26 - 1}",
            ),
            *(
                "9 3 0",
                "1 3 7000000",
                "9 3 7 0 0 0 - 0",
                "9 3 7 0 0 1 - 0",
                f"9 3 7 0 0 {LIMIT} - 0",
                "9 3 7 0 0 - 9 0",
            ),
            *(
                "9 3 7 0 0 - 10 0",
                "9 3 7 0 0 - -4 0",
                f"9 3 7 0 0 - {-LIMIT} 0",
                f"9 3 7 0 0 - {1 - LIMIT} 0",
                "9 3 7 0 0 - - 1",
            ),
            *(
                "09 3 7",
                "9 03 7",
                "9 3 07",
                "9 3 7 2 0 - - 0",
                "9 3 7 1 00 - - 0",
                "9 3 7 1 0 - - 0 ",
                "9 3 7 0 0 x - 0",
            ),
        )
    },
    "one every seven seconds": story(
        Quota(10, 1, 7.0),
        (0, Acquire(10)),
        (7 * SECOND - 1, Acquire(1)),
        (7 * SECOND, Acquire(1)),
        (8 * SECOND, Acquire(1)),
    ),
    "a fraction of what never comes": story(STILL, (0, Acquire(4)), (1, Acquire(1), {"carry": "5"}), (2, Acquire(1))),
    **{
        f"a refund at a carry of {carry}": story(PLAIN, *_TAKEN, (SECOND, Refund("z", 1), {"carry": str(carry)}))
        for carry in (SECOND - 1, SECOND, SECOND + 1)
    },
    **{
        f"a refund at {balance}": story(PLAIN, *_TAKEN, (SECOND, Refund("z", 1), {"balance": str(balance)}))
        for balance in (-LIMIT - 1, -LIMIT, 1 - LIMIT)
    },
    "steps of nothing": story(
        STILL_STEPS,
        (0, Acquire(3)),
        (3 * SECOND // 2, Acquire(1)),
        (4 * SECOND, Refund("a", 1)),
        (5 * SECOND, Acquire(8)),
    ),
    "steps of one": story(
        ONE_A_STEP,
        *((0, Acquire(10)), (SECOND - 1, Acquire(1)), (SECOND, Acquire(1)), (5 * SECOND // 2, Acquire(1))),
        *((3 * SECOND, Acquire(2, wait_us=2 * SECOND)), (9 * SECOND, Acquire(4))),
    ),
    "the last place of steps given back": story(
        STEPS,
        *((0, Acquire(12)), (0, Acquire(5, wait_us=60 * SECOND)), (1, Refund("a", 5, EPOCH + 60 * SECOND))),
        *(
            (2, Acquire(5, wait_us=60 * SECOND)),
            (3, Refund("b", 5, EPOCH + 61 * SECOND)),
            (4, Acquire(1, 0, 60 * SECOND)),
        ),
    ),
    "a place that is now": story(
        PLAIN,
        *((0, Acquire(10)), (0, Acquire(4, wait_us=4 * SECOND)), (4 * SECOND, Acquire(1, wait_us=60 * SECOND))),
    ),
    "a past grant of which nothing fits": story(
        PLAIN,
        *(
            (0, Acquire(10)),
            (0, Acquire(10, wait_us=10 * SECOND)),
            (1, Refund("a", 12, EPOCH)),
            (2, Refund("b", 1, EPOCH)),
        ),
    ),
    "nothing comes": story(
        STILL,
        *((0, Acquire(9)), (0, Acquire(2, wait_us=LIMIT)), (0, Reserve("a", 1, SECOND)), (1, Settle("a", 0))),
        *((SECOND, Acquire(1), {"carry": "5"}), (SECOND, Refund("z", 3, EPOCH + 9))),
    ),
    "full, with a carry": story(
        PLAIN,
        *((0, Acquire(1)), (0, Refund("z", 0), {"balance": "10", "carry": "5"}), (0, Acquire(1), {"balance": "11"})),
        *((SECOND, Acquire(1), {"balance": "12", "carry": "7"}), (2 * SECOND, Acquire(1), {"balance": "10"})),
    ),
    "one in flight beside an overdraft": story(
        SYNCED,
        *((0, Reconcile(Reading(5, server_time=1.0))), (1, Reserve("a", 1, SECOND)), (2, Acquire(10))),
        *((3, Settle("a", 0)), (4, Acquire(10))),
    ),
    **{
        f"others spend, {balance} are there for {tokens} beside {keep}": story(
            SYNCED,
            (0, Reconcile(Reading(balance, server_time=1.0))),
            (1, Acquire(1)),
            (2, Acquire(tokens, keep), {"fast": OTHERS}),
        )
        for balance, tokens, keep in (
            *(
                (91, 1, 0),
                (92, 1, 0),
                (86, 1, 0),
                (101, 1, 50),
                (102, 1, 50),
                (201, 1, 0),
                (122, 1, 120),
                (121, 1, 120),
            ),
            *((300, 250, 0), (301, 250, 0)),
        )
    },
    **{
        f"others spend, a capacity of {capacity}, {kept} kept back of {balance}": story(
            SYNCED,
            *_READ,
            (2, Acquire(1), {"fast": f"{EPOCH + 9} {capacity} 1 12000000 {kept}", "balance": str(balance)}),
        )
        for capacity, kept in ((1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (300, 1), (300, 0))
        for balance in (1, 2, 3)
    },
    "as little as can be counted": Program(
        (
            *story(QUICK, (0, Acquire(1)), (0, Acquire(1, wait_us=LIMIT), {"balance": str(1 - LIMIT)})).acts,
            *story(QUICK, (0, Acquire(2, wait_us=LIMIT), {"balance": str(2 - LIMIT)}), (9, Acquire(1))).acts,
        )
    ),
    **{
        f"a settle that costs {cost} at {balance} of {quota.capacity}": story(
            quota,
            *((0, Reconcile(Reading(9, server_time=1.0))), (0, Reserve("a", 5, SECOND))),
            (0, Settle("a", cost), {"balance": str(balance)}),
        )
        for quota in (PLAIN, SYNCED)
        for cost in (4, 5, 6, 7, 8)
        for balance in (1 - LIMIT, 3 - LIMIT, 2)
    },
    "at the very beginning": Program(
        tuple(Act(0, PLAIN, (), command) for command in (Acquire(5), Refund("a", 2), Refund("b", 2), Acquire(9, 0, 9)))
    ),
    "terms replaced at the very beginning": Program(
        (
            Act(5, PLAIN, (), Acquire(1)),
            Act(6, PLAIN, (("terms_at", "0"), ("quota", "9 3 7000000"), ("carry", "0")), Acquire(1)),
        )
    ),
    "a place where nothing comes, given back": story(
        STILL, (0, Acquire(4)), (1, Refund("z", 2, EPOCH + 9), {"last_place": str(EPOCH + 9), "largest_place": "1"})
    ),
    "a clock of small numbers": Program(
        tuple(Act(2**32 + at, PLAIN, (), Acquire(1)) for at in (-2, -1, 0, 1, 2, SECOND))
    ),
    **{
        f"nothing there but {name}, {text}": story(PLAIN, (0, Acquire(1), {name: text}), (1, Acquire(1)))
        for name in (
            *(
                "format",
                "balance",
                "carry",
                "quota",
                "due_at",
                "last_place",
                "firm_place",
                "largest_place",
                "held",
                "open",
            ),
            *("sequence", "closed_until", "paused_until", "wide_capacity", "line", "note", "hold:a", "hold:", "turned"),
        )
        for text in ("1", "0")
    },
    **{
        f"nothing refills, and {name} is {number}": story(
            STILL, (0, Acquire(4)), (1, Acquire(1), {name: str(number)}), (2, Refund("z", 2)), (3, Acquire(1))
        )
        for name in ("last_place", "firm_place", "largest_place")
        for number in (LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1)
    },
    **{
        f"terms of others that recharge to {target} and begin at {initial}": story(
            PLAIN,
            *_TAKEN,
            (
                SECOND,
                Acquire(1),
                {
                    "terms_at": str(EPOCH + SECOND),
                    "quota": f"9 3 7000000 0 0 {target} {initial} 0",
                    "fast": f"{EPOCH + SECOND + 9} 9 3 7000000 0",
                    "carry": "0",
                },
            ),
        )
        for target, initial in (
            *((0, "-"), (1, "-"), (LIMIT - 1, "-"), (LIMIT, "-"), ("-", 9), ("-", 10), ("-", 1 - LIMIT), ("-", -LIMIT)),
            *((9, 9), ("x", "-"), ("-", "x")),
        )
    },
    **{
        f"{kind} without {name}": story(
            quota,
            *((0, Reconcile(Reading(9, server_time=1.0))), (0, Reserve("a", 2, SECOND)), (0, Acquire(1))),
            *((2, Acquire(1), {name: None}), (3, Settle("a", 1)), (4, Refund("z", 1))),
        )
        for kind, quota in (("plain", PLAIN), ("synced", SYNCED))
        for name in (
            *("format", "version", "balance", "refilled_at", "carry", "quota", "fast", "held", "open", "sequence"),
            *("due_at", "hold:a"),
        )
    },
    "a place given back at the very beginning": Program(
        tuple(
            Act(0, PLAIN, (), command)
            for command in (Acquire(10), Acquire(1, wait_us=SECOND), Refund("a", 1, SECOND), Acquire(1, wait_us=SECOND))
        )
    ),
    "a probe that failed": story(
        SYNCED,
        (0, Reconcile(Reading(9, server_time=1.0))),
        (1, ClaimProbe()),
        (1 + CLAIM_US, ClaimProbe()),
        (60 * SECOND, Peek()),
    ),
    "a claim given back": story(
        SYNCED,
        *((0, Reconcile(Reading(9, server_time=1.0))), (1, ClaimProbe()), (2, Unclaim(EPOCH + 1 + CLAIM_US))),
        *((3, Acquire(1)), (4, ClaimProbe())),
    ),
}
