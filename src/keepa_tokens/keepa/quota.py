"""The terms of Keepa's bucket, as a quota."""

from __future__ import annotations

import hashlib
from typing import Final

from .._arguments import whole
from ..quota import Quota
from ..units import LIMIT, UNLIMITED

__all__ = ["CAPACITY_MINUTES", "STEP_SECONDS", "bucket_key", "keepa_quota"]

STEP_SECONDS: Final = 60.5
"""The time between two refill steps, as projected.

Measured steps come every 60.19 to 60.45 s. A step expected too early is a refused call. One expected too late costs
nothing, as each envelope says when the next one really comes.
"""

KEEPA: Final = "https://api.keepa.com"
"""The address of Keepa's API."""

CAPACITY_MINUTES: Final = 60
"""Capacity in minutes of refill: tokens expire after 60 minutes (seen: 300 at 5 a minute, 1200 at 20, 1500 at 25)."""


def keepa_quota(refill_rate: int = 5, *, recharge_to: int | None = None, initial: int | None = None) -> Quota:
    """Return the quota of a Keepa plan of `refill_rate` tokens a minute.

    Refill comes in steps. Keepa admits a paid call while the balance is positive, whatever it costs, so the
    overdraft is unlimited. `refill_rate` need not be right: the first envelope brings the true refill and capacity.
    recharge_to: once a request found too few tokens, wait until this many are there. initial: tokens to start from
    before the server has said its balance (default: unknown, ask first).
    """
    refill_rate = whole("refill_rate", refill_rate, least=1, most=(LIMIT - 1) // CAPACITY_MINUTES)
    return Quota(
        capacity=CAPACITY_MINUTES * refill_rate,
        refill=refill_rate,
        period=STEP_SECONDS,
        stepped=True,
        overdraft=UNLIMITED,
        recharge_to=recharge_to,
        initial=initial,
        synced=True,
    )


def bucket_key(api_key: str) -> str:
    """Return the name of an API key's bucket: a digest, so that the key itself is in no storage and no log."""
    return "keepa-" + hashlib.sha256(api_key.encode()).hexdigest()[:24]
