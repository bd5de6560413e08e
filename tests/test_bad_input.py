"""Bad input is a clear error at once that names the argument, and takes nothing."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepa_tokens import (
    AsyncTokenBucket,
    BadReading,
    ConfigError,
    CostTooLarge,
    KeepaTokensError,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    Reading,
    TokenBucket,
)
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import LIMIT, UNLIMITED

pytestmark = pytest.mark.anyio

NO_COUNT: Final[tuple[Any, ...]] = (
    *(1.0, 0.0, math.nan, math.inf, True, False, "1", b"1", None, [], 1j, Decimal(1), Fraction(1)),
)
"""None of these is a number of tokens."""

HUGE: Final = (10**400, -(10**400), 10**5000)
"""Whole numbers that no float can hold, or that Python won't print."""

OUT_OF_RANGE: Final = (-1, -(10**30), LIMIT, 10**30, *HUGE)

DOORS: Final = ("try_acquire", "acquire", "try_reserve", "reserve")


class Watched:
    def __init__(self, quota: Quota) -> None:
        self.storage = MemoryStorage()
        self.bucket = TokenBucket(quota, key="default", storage=self.storage, clock=ManualClock(100.0))
        self.twin = AsyncTokenBucket(quota, key="default", storage=self.storage, clock=self.bucket.clock)
        self.bucket.try_acquire(3)
        self.before = self.storage.dump("default")

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.bucket, name)(*args, **kwargs)

    def assert_untouched(self) -> None:
        assert self.storage.dump("default") == self.before


@pytest.fixture
def watched() -> Watched:
    return Watched(Quota(10, 1, 1.0))


@pytest.mark.parametrize(
    "argument, doors, values, error",
    [
        ("tokens", (*DOORS, "refund", "peek"), NO_COUNT, TypeError),
        ("tokens", (*DOORS, "refund", "peek"), OUT_OF_RANGE, ConfigError),
        ("keep", (*DOORS, "peek"), NO_COUNT, TypeError),
        ("keep", (*DOORS, "peek"), OUT_OF_RANGE, ConfigError),
        ("timeout", ("acquire", "reserve"), ("1", True, []), TypeError),
        ("timeout", ("acquire", "reserve"), (-1, -0.1, math.nan, -math.inf, 1e300, *HUGE), ConfigError),
        ("hold_for", ("try_reserve", "reserve"), ("1", None, True), TypeError),
        ("hold_for", ("try_reserve", "reserve"), (0, -1, 86_400.1, math.nan, math.inf, 1e-9, *HUGE), ConfigError),
    ],
)
async def test_an_argument_of_no_sense_is_named_and_takes_nothing(
    watched: Watched, argument: str, doors: tuple[str, ...], values: tuple[Any, ...], error: type[Exception]
) -> None:
    """A float, a bool, NaN, a text are TypeErrors, what is out of range a ConfigError (a ValueError), at both doors."""
    for door in doors:
        for value in values:
            given = {"tokens": 1, argument: value}
            with pytest.raises(error, match=f"^{argument}( must be|=)"):
                watched.call(door, **given)
            with pytest.raises(error, match=f"^{argument}( must be|=)"):
                await getattr(watched.twin, door)(**given)
    assert issubclass(ConfigError, ValueError)
    watched.assert_untouched()


@given(capacity=st.integers(1, 50), overdraft=st.sampled_from([0, 1, 7, UNLIMITED]), keep=st.integers(0, 60))
def test_the_largest_that_the_error_names_is_admitted_and_one_more_is_not(
    capacity: int, overdraft: int, keep: int
) -> None:
    """The bound in the message is the bound of a full bucket."""
    quota = Quota(capacity, 1, 1.0, overdraft=overdraft)
    try:
        quota.check_cost(LIMIT - 1, keep)
    except CostTooLarge as error:
        largest = error.largest
    else:
        largest = LIMIT - 1
    clock = ManualClock(1.0)
    if largest:
        assert TokenBucket(quota, clock=clock).try_acquire(largest, keep=keep)
    if largest < LIMIT - 1:
        with pytest.raises(CostTooLarge):
            TokenBucket(quota, clock=clock).try_acquire(largest + 1, keep=keep)


@pytest.mark.parametrize("actual", [*NO_COUNT, -1, LIMIT], ids=repr)
def test_an_actual_cost_that_is_no_count_leaves_the_hold_open(watched: Watched, actual: Any) -> None:
    """The error comes before anything is settled; the right number can still be given."""
    reservation = watched.bucket.try_reserve(5)
    with pytest.raises((TypeError, ConfigError), match="actual"):
        reservation.settle(actual)
    assert reservation.open
    assert watched.bucket.peek().held == 5
    reservation.settle(2)
    assert watched.bucket.peek().balance == 5


# --- readings


NO_DURATION: Final[tuple[Any, ...]] = (
    *(-1, -0.001, math.nan, math.inf, -math.inf, "1", True, [], 1e300, 10**400, Decimal(1)),
)


# --- quotas


NO_SECONDS: Final = "is out of range: give a finite number of seconds below 4.5e9"
OUT: Final = "is out of range: it must be"
FROM_0, FROM_1 = (f"{OUT} from {least} to {LIMIT - 1}" for least in (0, 1))
NO_INT: Final = "must be a whole number (int), not"
TOO_SHORT: Final = "is too short: it must be at least a microsecond"
INEXACT: Final = "cannot be computed exactly: refill * (period in microseconds + 1), reduced, must stay below 2**52"


@pytest.mark.parametrize(
    "args, terms, message",
    [
        *(((capacity, 1, 1.0), {}, f"capacity={capacity} {FROM_1}") for capacity in (0, -1, LIMIT)),
        *(((odd, 1, 1.0), {}, f"capacity {NO_INT} {odd}") for odd in (1.5, True)),
        *(((1, refill, 1.0), {}, f"refill={refill} {FROM_0}") for refill in (-1, LIMIT)),
        ((1, 0.5, 1.0), {}, f"refill {NO_INT} 0.5: write Quota.per_minute(30)"),
        *(((1, 1, period), {}, f"period={period} {TOO_SHORT}") for period in (0, -1.0, 4e-7)),
        *(((1, 1, period), {}, f"period={period} {NO_SECONDS}") for period in (math.nan, math.inf)),
        *(
            ((1, 1, number), {}, f"period=a whole number of {bits} bits {NO_SECONDS}")
            for number, bits in zip(HUGE, (1329, 1329, 16610), strict=True)
        ),
        ((1, 0.5, 10**400), {}, f"period=a whole number of 1329 bits {NO_SECONDS}"),
        ((1, 0.5, 0.0), {}, f"period=0.0 {TOO_SHORT}"),
        ((1, 1, "60"), {}, "period must be a number of seconds, not '60'"),
        ((1, 10**9 + 7, 86_400.0), {}, f"refill=1000000007 per period=86400.0 s {INEXACT}"),
        *(
            ((1, 1, 1.0), {"overdraft": no}, f"overdraft={no} {OUT} from 0 to {UNLIMITED}")
            for no in (-1, UNLIMITED + 1)
        ),
        ((1, 1, 1.0), {"overdraft": 0.5}, f"overdraft {NO_INT} 0.5"),
        ((1, 1, 1.0), {"recharge_to": 0}, f"recharge_to=0 {FROM_1}"),
        ((1, 1, 1.0), {"recharge_to": True}, f"recharge_to {NO_INT} True"),
        *(((1, 1, 1.0), {"initial": no}, f"initial={no} {OUT} from {1 - LIMIT} to 1") for no in (2, -LIMIT)),
        ((1, 1, 1.0), {"initial": 0.0}, f"initial {NO_INT} 0.0"),
        ((1, 1, 1.0), {"stepped": 1}, "stepped must be True or False, not 1"),
        ((1, 1, 1.0), {"synced": "yes"}, "synced must be True or False, not 'yes'"),
    ],
)
def test_a_quota_that_no_bucket_can_work_with(args: tuple[Any, ...], terms: dict[str, Any], message: str) -> None:
    """Each term out of range or of the wrong type is an error that names it, shows it and says what it may be."""
    with pytest.raises((TypeError, ConfigError), match=f"^{re.escape(message)}$"):
        Quota(*args, **terms)


@pytest.mark.parametrize(
    "args, terms",
    [
        ((1, 0, 1e-6), {"initial": 1, "recharge_to": 1, "overdraft": UNLIMITED}),
        ((LIMIT - 1, LIMIT // 2 - 1, 1e-6), {"initial": 1 - LIMIT, "recharge_to": LIMIT - 1}),
    ],
)
def test_the_edges_of_every_term_are_a_quota(args: tuple[Any, ...], terms: dict[str, Any]) -> None:
    """The least and the most of each term can be worked with."""
    quota = Quota(*args, **terms)
    assert (quota.capacity, quota.refill, quota.period, quota.initial) == (*args, terms["initial"])
    quota.check_cost(quota.capacity)


WHOLE_FROM: Final = "must be a whole number from"
FINITE: Final = "must be a finite number from 0 to 4.5e9, not"


@pytest.mark.parametrize(
    "fields, message",
    [
        *[({"balance": value}, "balance ") for value in (*NO_COUNT, LIMIT, -LIMIT, 10**400)],
        *[({"capacity": value}, "capacity ") for value in (0, -1, 1.5, True, "1", LIMIT)],
        *[
            ({name: value}, f"{name} ")
            for name in ("next_refill_in", "refill", "period", "server_time")
            for value in NO_DURATION
        ],
        ({"balance": LIMIT}, f"balance {WHOLE_FROM} {1 - LIMIT} to 2**52 - 1, not {LIMIT}"),
        ({"balance": True}, f"balance {WHOLE_FROM} {1 - LIMIT} to 2**52 - 1, not True"),
        ({"next_refill_in": "1"}, "next_refill_in must be a number, not '1'"),
        ({"next_refill_in": True}, "next_refill_in must be a number, not True"),
        ({"next_refill_in": -1e-9}, f"next_refill_in {FINITE} -1e-09"),
        ({"next_refill_in": LIMIT / 1e6}, f"next_refill_in {FINITE} 4503599627.370496"),
        ({"refill": math.nan}, f"refill {FINITE} nan"),
        ({"refill": 1e9, "period": 1e9}, "refill=1000000000.0 per period="),
        ({"period": 0.0}, "period=0.0 must be longer than 0 s"),
        ({"period": 1e-9}, "period=1e-09 must be longer than 0 s"),
        ({"period": "x"}, "period must be a number, not 'x'"),
        ({"capacity": 0}, f"capacity {WHOLE_FROM} 1 to 2**52 - 1, not 0"),
        ({"capacity": LIMIT}, f"capacity {WHOLE_FROM} 1 to 2**52 - 1, not {LIMIT}"),
        ({"server_time": math.inf}, f"server_time {FINITE} inf"),
    ],
)
def test_a_nonsensical_reading_cannot_be_made(fields: dict[str, Any], message: str) -> None:
    """Wrong types, NaN, negatives, numbers beyond counting: BadReading names the field, and says what it may be."""
    with pytest.raises(BadReading, match=f"^{re.escape(message)}") as caught:
        Reading(**{"balance": 1, **fields})
    assert isinstance(caught.value, KeepaTokensError)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("period_us, sound", [(LIMIT // 2 - 2, True), (LIMIT // 2 - 1, False)])
def test_a_reported_rate_that_could_not_be_computed_is_no_reading(period_us: int, sound: bool) -> None:
    """Tokens times the period and a microsecond must stay below 2**52."""
    terms: dict[str, Any] = {"refill": 2, "period": period_us / 1e6}
    if sound:
        assert Reading(5, **terms).period_us == period_us
        return
    with pytest.raises(BadReading, match="too large to be computed exactly"):
        Reading(5, **terms)


@pytest.mark.parametrize("balance", [1 - LIMIT, 0, LIMIT - 1])
def test_the_edges_of_every_field_are_a_reading(balance: int) -> None:
    """The least and the most of each field are taken as they are."""
    edge = math.nextafter(LIMIT / 1e6, 0)
    assert Reading(balance, next_refill_in=0, refill=0, period=edge, capacity=1, server_time=0).balance == balance
    most = Reading(0, next_refill_in=edge, refill=edge, capacity=LIMIT - 1, server_time=edge)
    assert (most.next_refill_in, most.refill, most.capacity, most.server_time) == (edge, edge, LIMIT - 1, edge)


def test_a_refused_try_names_what_to_do() -> None:
    """The error of a refusal carries the wait and the reason, for programs and for people."""
    bucket = TokenBucket(Quota(10, 1, 1.0, initial=0), clock=ManualClock(100.0))
    with pytest.raises(NotEnoughTokens, match="ask again in 4 s") as caught:
        bucket.try_reserve(4)
    assert (caught.value.tokens, caught.value.retry_after, caught.value.reason, caught.value.balance) == (
        4,
        4.0,
        "EMPTY",
        0,
    )
