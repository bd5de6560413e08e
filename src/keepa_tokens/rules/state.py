"""What is stored of a bucket, as plain data. No rules live here.

Inside, times and durations are whole microseconds (`_us`, `_at`, `_until`); outside, float seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ..errors import ConfigError
from ..quota import Quota
from ..units import LIMIT, MICROSECONDS

__all__ = ["BucketState", "Hold"]

FORMAT: Final = 1
"""The format of stored states that this release writes."""

NEWEST_FORMAT: Final = 999
"""A stored format above this is damage, not a newer release."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Tokens set aside for a call in flight, or what is remembered of a hold that ran out.

    tokens: set aside. opened: the bucket's sequence number when it was opened. expires_at, hold_for: microseconds.
    charged: 0 while in flight; else the sequence number at which it ran out and its tokens were charged.
    """

    tokens: int
    opened: int
    expires_at: int
    hold_for: int
    charged: int = 0

    @property
    def in_flight(self) -> bool:
        """Whether the tokens are still set aside."""
        return self.charged == 0

    @property
    def forgotten_at(self) -> int:
        """When a charged hold is forgotten: one `hold_for` after it ran out."""
        return self.expires_at + self.hold_for


@dataclass(frozen=True, slots=True)
class BucketState:
    """All that is stored of one bucket. `balance` is what the server would report; holds stand beside it.

    `carry` is the remainder of a refill under way, in token microseconds at `carry_refill` tokens per
    `carry_period_us`. `quota` is the one last used, so that a reader needs only the key; it is shown, never
    obeyed. None means: not there. What may rightly be missing and what is damage, `repair` decides.
    """

    balance: int | None = None
    refilled_at: int | None = None
    carry: int | None = 0
    carry_refill: int | None = None
    carry_period_us: int | None = None
    closed_until: int | None = None
    sequence: int | None = 0
    holds: Mapping[str, Hold] = field(default_factory=dict[str, Hold])
    quota: Quota | None = None
    reading_at: int | None = None
    reading_sequence: int | None = None
    server_time: int | None = None
    drift: int | None = None
    kept_back: int | None = None
    kept_back_at: int | None = None
    probe_until: int | None = None
    probe_failures: int | None = 0
    reported_refill: int | None = None
    reported_period_us: int | None = None
    reported_capacity: int | None = None
    format: int | None = FORMAT
    unreadable: tuple[str, ...] = ()

    def to_fields(self) -> dict[str, str]:
        """Return the state as the plain texts that a storage keeps, one name and one whole number a field."""
        texts = {name: str(value) for name in _NUMBERS if (value := getattr(self, name)) is not None}
        if self.quota is not None:
            texts |= _quota_fields(self.quota)
        for hold_id, hold in self.holds.items():
            numbers = (hold.tokens, hold.opened, hold.expires_at, hold.hold_for, hold.charged)
            texts[_HOLD + hold_id] = " ".join(map(str, numbers))
        return texts

    @classmethod
    def from_fields(cls, texts: Mapping[str, str]) -> BucketState:
        """Return the state that `to_fields` wrote. What can't be read is None and named in `unreadable`; never raises.

        Names that this release doesn't know are left out.
        """
        damaged: list[str] = []

        def number(name: str) -> int | None:
            value = _whole(texts.get(name))
            if value is None and name in texts:
                damaged.append(name)
            return value

        numbers = {name: number(name) for name in _NUMBERS}
        quota = _quota_from(texts)
        if quota is None and any(name in texts for name in _QUOTA):
            damaged.append("quota")
        holds: dict[str, Hold] = {}
        for name, text in texts.items():
            if not name.startswith(_HOLD):
                continue
            hold = _hold_from(text)
            if hold is None:
                damaged.append(name)
            else:
                holds[name.removeprefix(_HOLD)] = hold
        return cls(holds=holds, quota=quota, unreadable=tuple(sorted(damaged)), **numbers)


_NUMBERS: Final = (
    "format",
    "balance",
    "refilled_at",
    "carry",
    "carry_refill",
    "carry_period_us",
    "closed_until",
    "sequence",
    "reading_at",
    "reading_sequence",
    "server_time",
    "drift",
    "kept_back",
    "kept_back_at",
    "probe_until",
    "probe_failures",
    "reported_refill",
    "reported_period_us",
    "reported_capacity",
)
_QUOTA: Final = ("capacity", "refill", "period_us", "stepped", "overdraft", "recharge_to", "initial", "synced")
_HOLD: Final = "hold:"
_WHOLE_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})", re.ASCII)
_HOLD_NUMBERS: Final = 5


def _whole(text: object) -> int | None:
    if not isinstance(text, str) or not _WHOLE_NUMBER.fullmatch(text):
        return None
    value = int(text)
    return value if -LIMIT <= value <= LIMIT else None


def _hold_from(text: object) -> Hold | None:
    if not isinstance(text, str):
        return None
    numbers = [_whole(part) for part in text.split(" ")]
    known = [number for number in numbers if number is not None]
    return Hold(*known) if len(known) == len(numbers) == _HOLD_NUMBERS else None


def _quota_fields(quota: Quota) -> dict[str, str]:
    values = {
        "capacity": quota.capacity,
        "refill": quota.refill,
        "period_us": quota.period_us,
        "stepped": int(quota.stepped),
        "overdraft": quota.overdraft,
        "recharge_to": quota.recharge_to,
        "initial": quota.initial,
        "synced": int(quota.synced),
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _quota_from(texts: Mapping[str, str]) -> Quota | None:
    """Return the quota as last used, or None if it isn't there whole: it is only ever shown, never obeyed."""
    values = {name: _whole(texts[name]) for name in _QUOTA if name in texts}
    capacity, refill, period_us = values.get("capacity"), values.get("refill"), values.get("period_us")
    stepped, synced, overdraft = values.get("stepped"), values.get("synced"), values.get("overdraft")
    if capacity is None or refill is None or period_us is None or overdraft is None:
        return None
    if stepped not in {0, 1} or synced not in {0, 1}:
        return None
    try:
        return Quota(
            capacity,
            refill,
            period_us / MICROSECONDS,
            stepped=stepped == 1,
            overdraft=overdraft,
            recharge_to=values.get("recharge_to"),
            initial=values.get("initial"),
            synced=synced == 1,
        )
    except ConfigError:
        return None
