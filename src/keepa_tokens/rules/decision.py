"""What a caller is told: why a decision came out as it did, and a bucket at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..quota import Quota


class Reason(StrEnum):
    """Why a decision came out as it did."""

    GRANTED = "GRANTED"
    EMPTY = "EMPTY"
    """The refill has not brought enough yet."""
    IN_FLIGHT = "IN_FLIGHT"
    """Enough is there, but set aside for calls in flight; a settle may free it any moment."""
    RECHARGING = "RECHARGING"
    """Found too empty before; closed until the recharge is over."""
    PAUSED = "PAUSED"
    """Somebody paused the bucket for a while."""
    UNKNOWN = "UNKNOWN"
    """The server has not said yet what is there."""
    TOO_LARGE = "TOO_LARGE"
    """More than the capacity in effect can ever admit."""


@dataclass(slots=True, unsafe_hash=True)  # not frozen: making one would cost as much as the whole step
class Decision:
    """What the bucket said to a request for tokens. True if they were granted.

    balance: after the step; None: unknown. retry_after: seconds after which to ask again (inf: never); for EMPTY and
    RECHARGING exactly when it is granted, if nothing is in flight, nobody is in line and nobody else asks. waited:
    seconds that the caller waited. repaired: names of stored fields that were mended. probe: ask the server now and
    `reconcile`, nobody else was told to.
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
class InFlight:
    """A hold that is not settled yet."""

    id: str
    tokens: int
    label: str
    """Whose it is, in the words of whoever opened it."""
    age: float
    """Seconds since it was opened."""
    runs_out_in: float
    """Seconds until it runs out: its estimate is charged then (synced), or it is forgotten (plain)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A bucket at one moment. Durations in seconds; inf: never."""

    balance: int | None
    """What the server would report; None: unknown."""
    held: int
    """Tokens of calls in flight: set aside beside the balance (synced), or taken from it already (plain)."""
    holds: int
    """How many calls are in flight."""
    retry_after: float
    """When to ask again for the request asked about; exact where `Decision.retry_after` is."""
    full_in: float
    """Until the balance is at capacity."""
    closed_for: float
    """What is left of a recharge."""
    bound: float
    """Within this time one of the attempts is granted or calls for a probe, if attempts go on.

    0 is true of now only: somebody else's bigger request may be refused next and begin a recharge. The bound counts on
    a probe after 600 s, so a longer `probe_interval` may make it later.
    """
    quota: Quota
    """The terms that the bucket runs on."""
    capacity: int
    """In effect, as the server last reported it."""
    refill: int
    """Tokens a period, likewise."""
    period: float
    """Seconds from one refill to the next, likewise."""
    paused_for: float = 0.0
    """What is left of a pause."""
    reading_age: float | None = None
    """Since the last reading; None: there is none."""
    drift: int | None = None
    """Reported minus projected balance at the last reading."""
    kept_back: int = 0
    """Tokens left to somebody else who was seen to spend, on top of any `keep`."""
    waiting: int = 0
    """How many stand in line."""
    wanted: int = 0
    """How many tokens they ask for together."""
    in_flight: tuple[InFlight, ...] = ()
    """The calls in flight, the oldest first."""
    repaired: tuple[str, ...] = ()
    """Names of stored fields that were mended, or would be."""

    @property
    def available(self) -> int | None:
        """Tokens that nobody has set aside; None: unknown."""
        if self.balance is None:
            return None
        return self.balance - self.held if self.quota.synced else self.balance
