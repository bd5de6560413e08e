"""Quota: how much a bucket holds, how it refills, and how far a grant may overdraw it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Final, TypedDict, Unpack

from ._arguments import microseconds, shown, whole
from .errors import ConfigError, CostTooLarge
from .units import LIMIT, MICROSECONDS, UNLIMITED


class Terms(TypedDict, total=False):
    """The terms beside capacity and rate, as `Quota` takes them."""

    stepped: bool
    overdraft: int
    recharge_to: int | None
    initial: int | None
    synced: bool


@dataclass(frozen=True)
class Quota:
    """The terms of a bucket.

    capacity: tokens that refill fills up to. refill: tokens per `period` (0: never refills).
    period: seconds, to the microsecond.
    stepped: all `refill` tokens come at once at each period's end, not evenly.
    overdraft: how many tokens below zero one grant may take the balance; `UNLIMITED` for no limit.
    recharge_to: once found too empty, the bucket stays closed until it could have refilled to this many tokens.
    initial: balance of a bucket never seen (default: capacity; of a synced one: unknown until a reading tells).
    synced: the server owns the real bucket; readings correct this one.

    Raises ConfigError (a ValueError) for values no bucket can work with, TypeError for those of the wrong type.
    """

    capacity: int
    refill: int
    period: float
    stepped: bool = field(default=False, kw_only=True)
    overdraft: int = field(default=0, kw_only=True)
    recharge_to: int | None = field(default=None, kw_only=True)
    initial: int | None = field(default=None, kw_only=True)
    synced: bool = field(default=False, kw_only=True)
    period_us: int = field(init=False, repr=False, compare=False)
    rate: int = field(init=False, repr=False, compare=False)
    rate_period_us: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        period_us = microseconds("period", self.period)
        if period_us < 1:
            raise ConfigError(f"period={self.period!r} is too short: it must be at least a microsecond")
        self._check_rate("refill", self.refill, self.period)
        numbers = {"capacity": (1, LIMIT - 1), "refill": (0, LIMIT - 1), "overdraft": (0, UNLIMITED)}
        optional = {"recharge_to": (1, LIMIT - 1), "initial": (1 - LIMIT, self.capacity)}
        for name, (least, most) in (numbers | optional).items():
            if name in numbers or getattr(self, name) is not None:
                # Stored as an int: other whole-number types, such as numpy's, overflow.
                object.__setattr__(self, name, whole(name, getattr(self, name), least=least, most=most))
        for name in ("stepped", "synced"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {shown(getattr(self, name))}")
        if not exact(self.refill, period_us):
            raise ConfigError(
                f"refill={self.refill} per period={self.period!r} s cannot be computed exactly:"
                " refill * (period in microseconds + 1), reduced, must stay below 2**52"
            )
        rate, rate_period_us = reduced(self.refill, period_us)
        # As it is stored: a third of a second would differ from itself, read back, and count as other terms.
        object.__setattr__(self, "period", period_us / MICROSECONDS)
        object.__setattr__(self, "period_us", period_us)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "rate_period_us", rate_period_us)

    def __repr__(self) -> str:
        return f"Quota({told(self, {each.name: each.default for each in fields(Quota)})})"

    @classmethod
    def per_second(cls, n: int, *, capacity: int | None = None, **terms: Unpack[Terms]) -> Quota:
        """Return a quota of `n` tokens a second; it holds `capacity` tokens (default `n`)."""
        return cls._per(n, 1.0, capacity, terms)

    @classmethod
    def per_minute(cls, n: int, *, capacity: int | None = None, **terms: Unpack[Terms]) -> Quota:
        """Return a quota of `n` tokens a minute; it holds `capacity` tokens (default `n`)."""
        return cls._per(n, 60.0, capacity, terms)

    @classmethod
    def per_hour(cls, n: int, *, capacity: int | None = None, **terms: Unpack[Terms]) -> Quota:
        """Return a quota of `n` tokens an hour; it holds `capacity` tokens (default `n`)."""
        return cls._per(n, 3_600.0, capacity, terms)

    @classmethod
    def per_day(cls, n: int, *, capacity: int | None = None, **terms: Unpack[Terms]) -> Quota:
        """Return a quota of `n` tokens a day; it holds `capacity` tokens (default `n`)."""
        return cls._per(n, 86_400.0, capacity, terms)

    @classmethod
    def _per(cls, n: int, period: float, capacity: int | None, terms: Terms) -> Quota:
        cls._check_rate("n", n, period)
        return cls(n if capacity is None else capacity, n, period, **terms)

    @staticmethod
    def _check_rate(name: str, n: object, period: float) -> None:
        """Raise TypeError for a fraction of a token; the message says the same rate in whole numbers."""
        if not isinstance(n, float) or not 0 < n < LIMIT:
            return
        said = f"{name} must be a whole number (int), not {n!r}"
        for unit, seconds in _UNITS.items():
            count = n * seconds / period
            if seconds >= period and count < LIMIT and math.isclose(count, round(count)):
                raise TypeError(f"{said}: write Quota.per_{unit}({round(count)})")
        tokens, periods = Fraction(n).limit_denominator(10_000).as_integer_ratio()
        if tokens:
            raise TypeError(f"{said}: write Quota(capacity, {tokens}, {periods * period:g})")

    @property
    def starts_at(self) -> int | None:
        """Tokens in a bucket never seen; None: unknown until a reading tells."""
        if self.initial is None and not self.synced:
            return self.capacity
        return self.initial

    def check_cost(self, tokens: int, keep: int = 0) -> None:
        """Raise if `tokens` is no cost (TypeError, ConfigError) or too large together with `keep` (CostTooLarge)."""
        tokens, keep = whole("tokens", tokens), whole("keep", keep)
        if tokens and max(1, tokens - self.overdraft) + keep > self.capacity:
            largest = self.capacity - keep + self.overdraft if keep < self.capacity else 0
            raise CostTooLarge(tokens, keep, largest)


def told(quota: Quota, known: Mapping[str, object]) -> str:
    """Return the terms that are not as known, in the words of whoever wrote them."""
    values = {each.name: getattr(quota, each.name) for each in fields(Quota) if each.repr}
    news = {name: value for name, value in values.items() if value != known[name]}
    return ", ".join(f"{name}={'UNLIMITED' if value == UNLIMITED else value}" for name, value in news.items())


_UNITS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}


def reduced(refill: int, period_us: int) -> tuple[int, int]:
    """Return refill and period divided by their common factor: the same rate in the smallest numbers."""
    if refill == 0:
        return 0, MICROSECONDS
    divisor = math.gcd(refill, period_us)
    return refill // divisor, period_us // divisor


def exact(refill: int, period_us: int) -> bool:
    """Whether this rate can be computed without rounding in 53-bit floats, as Lua must."""
    rate, rate_period_us = reduced(refill, period_us)
    return rate * (rate_period_us + 1) < LIMIT
