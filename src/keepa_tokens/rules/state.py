"""What is stored of a bucket, and what it is once it is sound. Plain data; no rules live here.

`BucketState` says what each stored field means; `SoundState` says which of them can still be missing after repair.
Times are whole microseconds, tokens whole numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote, unquote

from .._arguments import instance
from ..errors import ConfigError
from ..quota import Quota
from ..units import LIMIT, MICROSECONDS, MINUTE_US
from .free_places import Free, FreePlace
from .line import Ticket

Listed = TypeVar("Listed", Ticket, FreePlace)

FORMAT: Final = 1
"""The format of stored states that this release writes."""

NEWEST_FORMAT: Final = 999
"""A stored format above this is damage, not a newer release."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Tokens of a call in flight, or what is remembered of a hold that ran out or of a refund.

    tokens: set aside (synced) or taken (plain). opened: the bucket's sequence number when it was opened. expires_at,
    hold_for: microseconds. charged: 0 while in flight; else the sequence number at which its tokens were charged.
    label: whose it is, for people.
    """

    tokens: int
    opened: int
    expires_at: int
    hold_for: int
    charged: int = 0
    label: str = ""

    @property
    def in_flight(self) -> bool:
        """Whether the call may still be under way."""
        return self.charged == 0

    @property
    def granted_at(self) -> int:
        """When it was opened."""
        return max(0, self.expires_at - self.hold_for)

    @property
    def due_at(self) -> int:
        """When the hold runs out; once it has, or of a refund: when it is forgotten, one `hold_for` later."""
        return self.expires_at if self.in_flight else self.expires_at + self.hold_for

    @property
    def swept_at(self) -> int:
        """When a sweep is due for that. Forgetting can wait a minute: each sweep reads all of the bucket."""
        return self.due_at if self.in_flight else self.due_at + MINUTE_US


@dataclass(frozen=True, slots=True)
class FastTerms:
    """The numbers with which the fast path may serve a bucket that follows a server or recharges, and until when.

    until: not later than a minute after it was written. capacity, refill, period_us: in effect; smooth rates reduced.
    kept_back: tokens left for others.
    """

    until: int
    capacity: int
    refill: int
    period_us: int
    kept_back: int

    def text(self) -> str:
        """Return the text that is stored."""
        return f"{self.until} {self.capacity} {self.refill} {self.period_us} {self.kept_back}"

    @classmethod
    def from_text(cls, text: object) -> Self | None:
        """Return what `text` wrote; None if it can't be read."""
        numbers = _numbers(text.split(" "), 5) if isinstance(text, str) else None
        return None if numbers is None else cls(*numbers)


@dataclass(frozen=True, slots=True)
class BucketState:
    """All that is stored of one bucket. None means: not there. `repair` decides what may be missing and what is damage.

    version: raised by every write. balance: what the server would report (plain: what is there). carry: the remainder
    of a refill under way, in token microseconds at the rate in effect. held, open: tokens and number of the holds in
    flight. due_at: when to sweep, at most a second after the first `swept_at` of a hold.

    Places, on a plain bucket. last_place: the latest instant of a place. firm_place: `last_place` must not move back to
    before this instant, since tokens came back before it, or several places share it. largest_place: the most tokens
    that lie in the bucket when one of the places comes, beside what is left after the last one.

    free: places that were given up, for others; see `FreePlace`.

    quota: the terms it runs on; terms_at: when they last replaced others; wide_capacity: the larger of the two
    capacities, which bounds for a minute after. fast: see `FastTerms`. server_time_at: our time at which `server_time`
    was told. stretched_us: a period longer than that of the terms, as the server's last `refillIn` showed.
    probe_returned: 1 once a claim was given back since the last reading.

    Not stored: `unreadable`, the names of fields whose texts can't be read; `partial`: not all holds were read, so only
    the sums `held` and `open` tell of the others.
    """

    format: int | None = FORMAT
    version: int | None = 0
    balance: int | None = None
    refilled_at: int | None = None
    carry: int | None = None
    closed_until: int | None = None
    paused_until: int | None = None
    sequence: int | None = None
    held: int | None = None
    open: int | None = None
    due_at: int | None = None
    last_place: int | None = None
    firm_place: int | None = None
    largest_place: int | None = None
    terms_at: int | None = None
    wide_capacity: int | None = None
    reading_at: int | None = None
    reading_sequence: int | None = None
    server_time: int | None = None
    server_time_at: int | None = None
    drift: int | None = None
    kept_back: int | None = None
    kept_back_at: int | None = None
    probe_until: int | None = None
    probe_failures: int | None = None
    probe_returned: int | None = None
    reported_refill: int | None = None
    reported_period_us: int | None = None
    reported_capacity: int | None = None
    stretched_us: int | None = None
    quota: Quota | None = None
    fast: FastTerms | None = None
    holds: Mapping[str, Hold] = field(default_factory=dict[str, Hold])
    line: tuple[Ticket, ...] = ()
    free: Free = ()
    unreadable: tuple[str, ...] = ()
    partial: bool = False

    def to_fields(self) -> dict[str, str]:
        """Return the state as the plain texts that a storage keeps, one name and one text a field."""
        texts = {name: str(value) for name in NUMBERS if (value := getattr(self, name)) is not None}
        if self.format == FORMAT:
            del texts["format"]
        if self.quota is not None:
            texts[QUOTA] = quota_text(self.quota)
        if self.fast is not None:
            texts[FAST] = self.fast.text()
        if self.line:
            texts[LINE] = " ".join(ticket.text() for ticket in self.line)
        if self.free:
            texts[FREE] = " ".join(place.text() for place in self.free)
        return texts | {HOLD + hold_id: hold_text(hold) for hold_id, hold in self.holds.items()}

    @classmethod
    def from_fields(cls, texts: Mapping[str, str]) -> BucketState:
        """Return the state that `to_fields` wrote. What can't be read is None and named in `unreadable`; never raises.

        Names that this release doesn't know are left out.
        """
        instance("texts", texts, Mapping)  # type: ignore[type-abstract]
        known: dict[str, Any] = {"version": None}
        holds: dict[str, Hold] = {}
        damaged: list[str] = []
        for name, text in texts.items():
            is_hold = name.startswith(HOLD)
            read = _hold_from if is_hold else _READERS.get(name)
            if read is None:
                continue
            value = read(text)
            if value is None:
                damaged.append(name)
            if not is_hold:
                known[name] = value
            elif value is not None:
                holds[name.removeprefix(HOLD)] = value
        # A garbled ticket is dropped; whoever held it comes again. Nobody waits for a free place.
        line, free = _listed(texts, LINE, Ticket.from_text, damaged), _listed(texts, FREE, FreePlace.from_text, damaged)
        return cls(**known, holds=holds, line=line, free=free, unreadable=tuple(sorted(damaged)))


@dataclass(slots=True)
class SoundState:
    """What `repair` makes of any stored state: every number is in its range, and None is never damage.

    balance None: a synced bucket that awaits a reading. Any other None: never reported, or not under way. A step works
    on it in place. Names as in `BucketState`.
    """

    quota: Quota
    refilled_at: int
    balance: int | None = None
    carry: int = 0
    version: int = 0
    closed_until: int | None = None
    paused_until: int | None = None
    sequence: int = 0
    held: int = 0
    open: int = 0
    due_at: int | None = None
    last_place: int = 0
    firm_place: int = 0
    largest_place: int = 0
    terms_at: int | None = None
    wide_capacity: int | None = None
    reading_at: int | None = None
    reading_sequence: int = 0
    server_time: int | None = None
    server_time_at: int = 0
    drift: int | None = None
    kept_back: int = 0
    kept_back_at: int | None = None
    probe_until: int | None = None
    probe_failures: int = 0
    probe_returned: int = 0
    reported_refill: int | None = None
    reported_period_us: int | None = None
    reported_capacity: int | None = None
    stretched_us: int | None = None
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    line: list[Ticket] = field(default_factory=list[Ticket])
    free: Free = ()
    partial: bool = False

    def stored(self, fast: FastTerms | None) -> BucketState:
        """Return the state to be stored. Fields in which 0 means the same as missing are left out where they are 0."""
        numbers = {name: getattr(self, name) for name in NUMBERS if name != "format"}
        left_out = _ZERO_BY_ITSELF - _SYNCED if self.quota.synced else _ZERO_BY_ITSELF
        kept: dict[str, Any] = {name: value for name, value in numbers.items() if value or name not in left_out}
        kept |= {"holds": self.holds, "line": tuple(self.line), "free": self.free, "partial": self.partial}
        return BucketState(**kept, quota=self.quota, fast=fast)


HOLD: Final = "hold:"
QUOTA: Final = "quota"
FAST: Final = "fast"
LINE: Final = "line"
FREE: Final = "free"
NUMBERS: Final = tuple(each.name for each in fields(BucketState) if each.type == "int | None")
"""The stored fields that are one whole number each."""

FIELDS: Final = (*NUMBERS, QUOTA, FAST, LINE, FREE)
"""The stored fields, holds aside."""

_ZERO_BY_ITSELF: Final = frozenset(each.name for each in fields(SoundState) if each.default == 0) - {"version"}
"""Fields that are left out where they are 0."""

_SYNCED: Final = frozenset({"held", "open", "sequence"})
"""Those that a synced bucket stores all the same: the loss of one must show, or what is set aside is forgotten."""

_WHOLE_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})", re.ASCII)
_NOTHING: Final = "-"
_USUAL: Final = "0 0 - - 0"
"""The five terms after the first three numbers, where nobody gave any of them."""


def _whole(text: object) -> int | None:
    if not isinstance(text, str) or not _WHOLE_NUMBER.fullmatch(text):
        return None
    value = int(text)
    return value if -LIMIT <= value <= LIMIT else None


def _numbers(parts: list[str], count: int) -> list[int] | None:
    numbers = [number for part in parts if (number := _whole(part)) is not None]
    return numbers if len(numbers) == count == len(parts) else None


def _listed(
    texts: Mapping[str, str], name: str, read: Callable[[str], Listed | None], damaged: list[str]
) -> tuple[Listed, ...]:
    """Return the things that a field lists, without those that can't be read; if there are such, it is damaged."""
    found = [read(text) for text in str(texts.get(name, "")).split()]
    if None in found:
        damaged.append(name)
    return tuple(each for each in found if each is not None)


def hold_text(hold: Hold) -> str:
    """Return a hold as it is stored: five numbers, and its label where it has one."""
    numbers = f"{hold.tokens} {hold.opened} {hold.expires_at} {hold.hold_for} {hold.charged}"
    return f"{numbers} {quote(hold.label, errors='replace')}" if hold.label else numbers


def _hold_from(text: object) -> Hold | None:
    if not isinstance(text, str):
        return None
    parts = text.split(" ")
    numbers = _numbers(parts[:5], 5)
    if numbers is None:
        return None
    tokens, opened, expires_at, hold_for, charged = numbers
    return Hold(tokens, opened, expires_at, hold_for, charged, unquote(" ".join(parts[5:])))


def quota_text(quota: Quota) -> str:
    """Return the terms as they are stored: three numbers, and five more ("-": none) if one of these says anything."""
    optional = (_NOTHING if number is None else number for number in (quota.recharge_to, quota.initial))
    more = " ".join(map(str, (int(quota.stepped), quota.overdraft, *optional, int(quota.synced))))
    return f"{quota.capacity} {quota.refill} {quota.period_us}" + (f" {more}" if more != _USUAL else "")


def _quota_of(text: str) -> Quota | None:
    parts = text.split()
    parts += _USUAL.split() if len(parts) == 3 else ()  # noqa: PLR2004 - as `quota_text` writes them
    numbers = [_whole(part) for part in parts]
    if len(numbers) != 8:  # noqa: PLR2004 - as `quota_text` writes them
        return None
    capacity, refill, period_us, stepped, overdraft, recharge_to, initial, synced = numbers
    try:
        quota = Quota(
            capacity or 0,
            refill or 0,
            (period_us or 0) / MICROSECONDS,
            stepped=stepped == 1,
            overdraft=overdraft or 0,
            recharge_to=recharge_to,
            initial=initial,
            synced=synced == 1,
        )
    except ConfigError:
        return None
    # A text that `quota_text` would not write is damage.
    return quota if quota_text(quota) == text else None


_quota_known: Final = lru_cache(maxsize=256)(_quota_of)
"""`_quota_of`, cached: a fleet has few terms. Not a decorator, which would hide the function from the mutants."""


def _quota_from(text: object) -> Quota | None:
    return _quota_known(text) if isinstance(text, str) else None


_READERS: Final[dict[str, Callable[[object], Any]]] = {
    **dict.fromkeys(NUMBERS, _whole),
    QUOTA: _quota_from,
    FAST: FastTerms.from_text,
}
