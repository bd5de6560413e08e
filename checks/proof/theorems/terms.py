"""The terms at which a theorem is stated where not every rate can be proved: one of Keepa's plans, at 60.5 s a step.

The runner checks such theorems once for each plan, named by PROOF_REFILL: a rate that is a constant keeps the
solver's formulas linear.
"""

from __future__ import annotations

import os
from typing import Final, TypeVar

from keepa_tokens.quota import Quota
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
