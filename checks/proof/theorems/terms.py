"""The terms at which a theorem is stated where not every rate can be proved: one of Keepa's plans, at 60.5 s a step.

The runner checks such theorems once for each plan, named by PROOF_REFILL: a rate that is a constant keeps the
solver's formulas linear.
"""

from __future__ import annotations

import os
from typing import Final, TypeVar

from keepa_tokens.quota import Quota
from keepa_tokens.rules.fast_path import Numbers
from keepa_tokens.rules.flow import Flow
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.units import LIMIT, MICROSECONDS, UNLIMITED

T = TypeVar("T")

REFILL: Final = int(os.environ.get("PROOF_REFILL") or "5")
PERIOD: Final = 60.5
PERIOD_US: Final = round(PERIOD * MICROSECONDS)
CAPACITY: Final = 100
TARGET: Final = 60

DEBT: Final = 10**6
"""Balances are drawn from -DEBT."""

LATEST: Final = LIMIT // 4
"""Instants are drawn up to here: 35 years in microseconds, so that no wait reaches the end of time at 142."""

SMOOTH: Final = Quota(CAPACITY, REFILL, PERIOD)
STEPPED: Final = Quota(CAPACITY, REFILL, PERIOD, stepped=True)
OVERDRAWN: Final = Quota(CAPACITY, REFILL, PERIOD, overdraft=50)
RECHARGED: Final = Quota(CAPACITY, REFILL, PERIOD, recharge_to=TARGET)
SYNCED: Final = Quota(CAPACITY, REFILL, PERIOD, stepped=True, synced=True)
KEEPAS: Final = Quota(CAPACITY, REFILL, PERIOD, stepped=True, synced=True, overdraft=UNLIMITED)

RATE: Final = SMOOTH.rate
RATE_PERIOD_US: Final = SMOOTH.rate_period_us


def pick(which: int, of: tuple[T, ...]) -> T:
    """Return the item number `which`, a constant on each of the solver's paths."""
    for index, item in enumerate(of):
        if which == index:
            return item
    raise IndexError(which)


def plain(quota: Quota, balance: int, at: int, carry: int = 0) -> BucketState:
    """Return what is stored of a plain bucket on these terms, with nothing in flight and nobody waiting."""
    return BucketState(balance=balance, refilled_at=at, carry=carry, quota=quota)


def holding(quota: Quota, balance: int, at: int, hold: Hold, *, told: int = 1) -> BucketState:
    """Return what is stored of a bucket with the one hold "a", and on a synced one with a reading just taken.

    told: the sequence number of that reading; there is none that is 0.
    """
    tokens, number = (hold.tokens, 1) if hold.in_flight else (0, 0)
    return BucketState(
        balance=balance,
        refilled_at=at,
        sequence=9,
        held=tokens,
        open=number,
        due_at=hold.due_at,
        reading_at=at if quota.synced else None,
        reading_sequence=told if quota.synced else None,
        quota=quota,
        holds={"a": hold},
    )


def there(balance: int | None) -> int:
    """Return a balance that is known."""
    if balance is None:
        raise AssertionError
    return balance


def numbers(quota: Quota, balance: int, at: int, carry: int = 0, *, held: int = 0) -> Numbers:
    """Return the numbers of a bucket for the fast path: on these terms, with one hold of so many tokens in flight."""
    refill, period_us = (quota.refill, quota.period_us) if quota.stepped else (quota.rate, quota.rate_period_us)
    return Numbers(
        level=(balance, at, carry),
        held=held,
        open=1 if held else 0,
        sequence=9,
        last_place=0,
        firm_place=0,
        largest_place=0,
        flow=Flow(quota.capacity, refill, period_us, quota.stepped),
        quota=quota,
        kept_back=0,
    )
