"""What a caller is told: why a decision came out as it did, and a bucket at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..quota import Quota

__all__ = ["Decision", "Reason", "Snapshot"]


class Reason(StrEnum):
    """Why a decision came out as it did."""

    GRANTED = "GRANTED"
    EMPTY = "EMPTY"
    RECHARGING = "RECHARGING"
    UNKNOWN = "UNKNOWN"
    TOO_LARGE = "TOO_LARGE"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the bucket said to a request for tokens. True if they were granted.

    balance: after the step; None: unknown. retry_after: seconds until the same request is granted if nobody else asks
    (inf: never). waited: seconds that the caller was kept. repaired: names of stored fields that were mended.
    probe: ask the server now and `reconcile`, nobody else was told to.
    """

    granted: bool
    reason: Reason
    balance: int | None
    retry_after: float = 0.0
    waited: float = 0.0
    repaired: tuple[str, ...] = ()
    probe: bool = False

    def __bool__(self) -> bool:
        return self.granted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A bucket at one moment. Durations in seconds; inf: never.

    balance: what the server would report; None: unknown. held: tokens set aside by the `holds` calls in flight.
    available: balance - held. retry_after: until the request asked about would be granted. full_in: until the
    balance is at capacity. closed_for: what is left of a recharge. bound: by when, if the request asked about is
    attempted, one attempt is granted or calls for a probe; 0 is true of now only, as a bigger request of somebody
    else may be refused next and begin a recharge. capacity, refill, period: in effect, as the server last reported
    them. reading_age: since the last reading (None: there is none). drift: reported minus projected balance at the
    last reading. kept_back: tokens left to somebody else who was seen to spend, on top of any `keep`. repaired:
    mended fields.
    """

    balance: int | None
    held: int
    holds: int
    retry_after: float
    full_in: float
    closed_for: float
    bound: float
    quota: Quota
    capacity: int
    refill: int
    period: float
    reading_age: float | None = None
    drift: int | None = None
    kept_back: int = 0
    repaired: tuple[str, ...] = ()

    @property
    def available(self) -> int | None:
        """Tokens that nobody has set aside; None: unknown."""
        return None if self.balance is None else self.balance - self.held
