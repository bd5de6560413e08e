"""What a server said of its bucket."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from .._arguments import index, shown
from ..errors import BadReading
from ..units import LIMIT, MICROSECONDS

_SLOWEST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server said of its bucket. Raises BadReading on nonsense.

    balance: tokens, may be negative. next_refill_in: seconds to the next refill step. refill: tokens per
    `period` seconds (default: the quota's period); a fraction is rounded down, between 0 and 1 it is 1 token in
    several periods. capacity: tokens. server_time: epoch seconds by the server's clock, only ever compared with
    another server_time.
    """

    balance: int
    next_refill_in: float | None = field(default=None, kw_only=True)
    refill: float | None = field(default=None, kw_only=True)
    period: float | None = field(default=None, kw_only=True)
    capacity: int | None = field(default=None, kw_only=True)
    server_time: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        # Stored as Python's own numbers: other types, such as numpy's, overflow.
        object.__setattr__(self, "balance", _reading_int("balance", self.balance, 1 - LIMIT))
        if self.capacity is not None:
            object.__setattr__(self, "capacity", _reading_int("capacity", self.capacity, 1))
        for name in ("next_refill_in", "refill", "period", "server_time"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _reading_float(name, getattr(self, name)))
        if self.period_us == 0:
            raise BadReading(f"period={self.period!r} must be longer than 0 s")
        if self.refill is not None and self.period_us and self.refill * (self.period_us + 1) >= LIMIT:
            raise BadReading(f"refill={self.refill!r} per period={self.period!r} s is too large to be computed exactly")

    @property
    def refill_tokens(self) -> int | None:
        """Whole tokens per `refill_periods` periods; None where the server said nothing."""
        if self.refill is None:
            return None
        return 1 if self.refill_periods > 1 else math.floor(self.refill)

    @property
    def refill_periods(self) -> int:
        """How many periods it takes to get `refill_tokens`: more than 1 only for a refill between 0 and 1."""
        if self.refill is None or self.refill >= 1 or self.refill < _SLOWEST:
            return 1
        return math.ceil(1 / self.refill)

    @property
    def period_us(self) -> int | None:
        """The period in microseconds."""
        return _micro(self.period)

    @property
    def next_refill_in_us(self) -> int | None:
        """Microseconds to the next refill step."""
        return _micro(self.next_refill_in)

    @property
    def server_time_us(self) -> int | None:
        """The server's time in microseconds since the epoch."""
        return _micro(self.server_time)


def _micro(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * MICROSECONDS)


def _reading_int(name: str, value: object, least: int) -> int:
    # An int is used as it is: in `index` the solver would try one number after the other.
    number = value if type(value) is int else index(value)
    if number is None or not least <= number < LIMIT:
        raise BadReading(f"{name} must be a whole number from {least} to 2**52 - 1, not {shown(value)}")
    return number


def _reading_float(name: str, value: object) -> float:
    number = value if isinstance(value, float) else index(value)
    if number is None:
        raise BadReading(f"{name} must be a number, not {shown(value)}")
    if not 0 <= number < LIMIT / MICROSECONDS:
        raise BadReading(f"{name} must be a finite number from 0 to 4.5e9, not {shown(value)}")
    return number
