"""Rule 1: any stored thing becomes a sound state, and what was mended is named.

In what `repair` returns every number is a whole number in its range, and no instant lies further ahead than it rightly
could. Texts that can't be read at all were dropped before, by `BucketState.from_fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Final, cast

from ..errors import ConfigError
from ..quota import Quota
from ..units import (
    CLAIM_US,
    DAY_US,
    LIMIT,
    LONGEST_STRETCH_US,
    MAX_HOLD_US,
    SWEEP_US,
    TOLERANCE_US,
    YEAR_US,
    one_line,
)
from .arithmetic import anchored, saturated
from .flow import flow_in_effect, furthest_place, has_places
from .free_places import MOST_FREE
from .line import LONGEST_LINE, Ticket
from .state import FORMAT, NEWEST_FORMAT, NUMBERS, BucketState, Hold, SoundState

_MAX_SEQUENCE = LIMIT // 2
_MAX_FAILURES = 30

_RANGES: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("balance", "drift"), (1 - LIMIT,)),
    **dict.fromkeys(("wide_capacity", "reported_period_us", "reported_capacity"), (1,)),
    "stretched_us": (1, LONGEST_STRETCH_US),
}
"""The least of a number, and the most, where they aren't 0 and the most that can be counted exactly."""

_AHEAD: Final = {
    **dict.fromkeys(("reading_at", "terms_at", "server_time_at", "kept_back_at"), 0),
    "paused_until": DAY_US,
    "due_at": 2 * MAX_HOLD_US,
    "probe_until": CLAIM_US,
}
"""How far ahead an instant can rightly lie. Beyond that, one with 0 counts as missing; others are moved to it."""

_DEFAULTS: Final[dict[str, int | None]] = {
    each.name: each.default for each in fields(SoundState) if each.default is not MISSING
}
_ENTANGLED: Final = frozenset(
    {
        *("format", "balance", "refilled_at", "carry", "sequence", "reading_at", "reading_sequence"),
        *("reported_refill", "reported_period_us"),
    }
)
_ORDINARY: Final = tuple(name for name in NUMBERS if name not in _ENTANGLED)
"""The numbers that are mended without a look at other fields."""


def new_state(quota: Quota, now: int) -> SoundState:
    """Return the state of a bucket never seen before."""
    return SoundState(quota, now, quota.starts_at)


def repair(quota: Quota, stored: BucketState | None, now: int) -> tuple[SoundState, tuple[str, ...]]:
    """Return a sound state for whatever was stored, and the names of the fields that were mended.

    `quota` stands in for terms that are lost. Raises ConfigError for the format of a newer release, and for a bucket of
    the other kind, plain or synced.
    """
    if stored is None:
        return new_state(quota, now), ()
    mender = _Mender(stored, now, [one_line(name, 60) for name in stored.unreadable])
    mender.check_format()
    terms = mender.terms(quota)
    reading_at, balance = mender.number("reading_at"), mender.balance(terms)
    if balance is None:
        # The balance that the last reading told is lost. One that begins at 0 must not count as told.
        reading_at = None
    numbers: dict[str, Any] = {name: mender.number(name) for name in _ORDINARY}
    sound = SoundState(terms, now, balance, reading_at=reading_at, partial=stored.partial, **numbers)
    if balance is None and not terms.synced:
        sound.balance = 0
    else:
        sound.refilled_at, sound.carry = mender.refilled_at(), mender.number("carry") or 0
    sound.reported_refill, sound.reported_period_us = mender.reported_rate(terms, reading_at)
    # A reading takes a sequence number, so after one there is at least 1.
    sound.sequence = max(mender.sequence(), 0 if reading_at is None else 1)
    sound.reading_sequence = mender.reading_sequence(reading_at, sound.sequence)
    if sound.terms_at is None:
        sound.wide_capacity = None
    if not terms.synced:
        sound.kept_back = 0
    sound.probe_failures = min(_MAX_FAILURES, sound.probe_failures)
    mender.holds(sound)
    mender.line(sound)
    mender.within_its_flow(sound)
    return sound, tuple(mender.names)


@dataclass(slots=True)
class _Mender:
    """Reads one stored field at a time and notes the names of those that were mended.

    set_back: by how much the clock went back, as a `refilled_at` too far ahead shows.
    """

    stored: BucketState
    now: int
    names: list[str] = field(default_factory=list[str])
    set_back: int = 0

    def note(self, name: str) -> None:
        if name not in self.names:
            self.names.append(name)

    def number(self, name: str) -> int | None:
        """Return a number; if it is missing or damaged, the default of `SoundState`: None or 0."""
        value: Any = getattr(self.stored, name)
        if value is None:
            return _DEFAULTS[name]
        if not _is_whole(value, *_RANGES.get(name, (0,))):
            self.note(name)
            return _DEFAULTS[name]
        furthest = self.now + _AHEAD.get(name, LIMIT)
        if value <= furthest + TOLERANCE_US:
            return int(value)
        self.note(name)
        return furthest if _AHEAD[name] else _DEFAULTS[name]

    def check_format(self) -> None:
        stored = self.stored.format
        if _is_whole(stored, FORMAT + 1, NEWEST_FORMAT):
            raise ConfigError(
                f"the stored state has format {stored}, this release knows format {FORMAT}:"
                " it was written by a newer release. Upgrade this one; nothing was changed."
            )
        if stored != FORMAT:
            self.note("format")

    def terms(self, callers: Quota) -> Quota:
        stored = cast("object", self.stored.quota)
        if not isinstance(stored, Quota):
            if stored is not None:
                self.note("quota")
            return callers
        if stored.synced != callers.synced:
            kinds = {True: "synced (it follows a server)", False: "plain (it keeps its own books)"}
            raise ConfigError(
                f"this bucket is {kinds[stored.synced]} and runs on {stored}, but {callers} is for one that is"
                f" {kinds[callers.synced]}. Give each its own key, or call reset() to begin anew on the new terms."
                " Nothing was changed."
            )
        return stored

    def balance(self, terms: Quota) -> int | None:
        value = self.number("balance")
        # A synced bucket may rightly have no balance, but not after a reading.
        if value is None and (self.number("reading_at") is not None or not terms.synced):
            self.note("balance")
        return value

    def refilled_at(self) -> int:
        value = self.stored.refilled_at
        if value is None or not _is_whole(value, 0):
            self.note("refilled_at")
            return self.now
        kept = anchored(value, self.now, TOLERANCE_US)
        if kept != value:
            self.note("refilled_at")
            self.set_back = value - kept
        return kept

    def sequence(self) -> int:
        value = self.stored.sequence
        if value is not None and _is_whole(value, 1, _MAX_SEQUENCE):
            return value
        # Lost, or 0, which isn't stored. Go on from the latest number that any other field has, so that holds and
        # tickets stay in order.
        sound = [hold for hold in self._stored_holds().values() if _is_hold(hold)]
        seen = [self.stored.reading_sequence or 0, *(max(hold.opened, hold.charged) for hold in sound)]
        seen += [ticket.arrived for ticket in self._stored_line()]
        last = max((number for number in seen if _is_whole(number, 0, _MAX_SEQUENCE)), default=0)
        if value or last:
            self.note("sequence")
        return last

    def reading_sequence(self, reading_at: int | None, sequence: int) -> int:
        value = self.number("reading_sequence")
        if not value and reading_at is None:
            return 0
        if not value or value > sequence:
            # Unknown: no call in flight may count as opened after the reading; the server's time decides for those.
            self.note("reading_sequence")
            return sequence
        return value

    def reported_rate(self, terms: Quota, reading_at: int | None) -> tuple[int | None, int | None]:
        refill, period_us = self.number("reported_refill"), self.number("reported_period_us")
        if refill is None and period_us is None:
            return None, None
        if refill is None or period_us is None or refill * (period_us + 1) >= LIMIT:
            self.note("reported_refill")
            return None, None
        if refill == 0 and terms.synced and reading_at is None:
            # A net refill of 0 stops everything, so it counts only if a reading told it, which a probe can take back.
            self.note("reported_refill")
            return None, None
        return refill, period_us

    def _stored_holds(self) -> Mapping[str, Hold]:
        if isinstance(cast("object", self.stored.holds), Mapping):
            return self.stored.holds
        self.note("holds")
        return {}

    def holds(self, sound: SoundState) -> None:
        """Take over the sound holds, in the order of their names, and add them up if all of them are there."""
        held = 0
        for hold_id, hold in sorted(self._stored_holds().items(), key=lambda item: str(item[0])):
            # More than can be counted exactly is damage.
            if not _is_hold(hold) or (hold.in_flight and held + hold.tokens >= LIMIT):
                self.note(f"hold:{one_line(hold_id, 60)}")
                continue
            held += hold.tokens if hold.in_flight else 0
            sound.holds[hold_id] = mended = self._clamped(hold_id, hold, sound.sequence)
            sound.sequence = max(sound.sequence, mended.charged)
        if sound.partial:
            return
        number = sum(hold.in_flight for hold in sound.holds.values())
        # A plain bucket doesn't store sums that are 0, so one that is missing is no damage.
        known = self.stored.held is not None or sound.quota.synced
        if known and (sound.held, sound.open) != (held, number):
            self.note("held")
        sound.held, sound.open = held, number
        if sound.holds:
            first = min(hold.swept_at for hold in sound.holds.values())
            latest = max(first, self.now + SWEEP_US)
            if sound.due_at is None:
                sound.due_at = first
            elif any(name.startswith("hold:") for name in self.names):
                sound.due_at = min(sound.due_at, latest)
            elif sound.due_at > latest + TOLERANCE_US:
                # Up to the tolerance it is right: a worker whose clock is ahead of ours may have set it.
                self.note("due_at")
                sound.due_at = first

    def _stored_line(self) -> tuple[Ticket, ...]:
        return self.stored.line[:LONGEST_LINE] if isinstance(cast("object", self.stored.line), tuple) else ()

    def line(self, sound: SoundState) -> None:
        """Take over the tickets. What was told moves back as far as the clock did, and lies a day ahead at most."""
        for ticket in self._stored_line():
            arrived = min(ticket.arrived, sound.sequence)
            told_at = max(min(ticket.told_at, self.now), ticket.told_at - self.set_back)
            if told_at > self.now + DAY_US + TOLERANCE_US:
                told_at = self.now + DAY_US
            if (arrived, told_at) != (ticket.arrived, ticket.told_at):
                self.note("line")
                ticket = replace(ticket, arrived=arrived, told_at=told_at)  # noqa: PLW2901 - the mended one
            sound.line.append(ticket)

    def _clamped(self, hold_id: str, hold: Hold, sequence: int) -> Hold:
        opened, charged = min(hold.opened, sequence), min(hold.charged, max(1, sequence))
        expires_at = min(hold.expires_at, self.now + hold.hold_for + TOLERANCE_US)
        if (opened, charged, expires_at) == (hold.opened, hold.charged, hold.expires_at):
            return hold
        self.note(f"hold:{one_line(hold_id, 60)}")
        return replace(hold, opened=opened, charged=charged, expires_at=expires_at)

    def within_its_flow(self, sound: SoundState) -> None:
        """Mend the fields whose range depends on the refill in effect."""
        flow = flow_in_effect(sound, self.now)
        if sound.stretched_us is not None and flow.refill * (flow.period_us + 1) >= LIMIT:
            self.note("stretched_us")
            sound.stretched_us = None
            flow = flow_in_effect(sound, self.now)
        if sound.carry >= flow.period_us:
            self.note("carry")
            sound.carry = 0
        age, balance = self.now - sound.refilled_at, sound.balance or 0
        if age > YEAR_US and age > flow.instant(saturated(flow.capacity - balance), 0, 0) + 2 * flow.period_us:
            # `refilled_at` is 0, or in seconds instead of microseconds: that must not fill a bucket in debt.
            self.note("refilled_at")
            sound.refilled_at, sound.carry = self.now, 0
        furthest = furthest_place(flow, flow.capacity, balance, self.now) + TOLERANCE_US
        for name in ("last_place", "firm_place"):
            if getattr(sound, name) > furthest:
                self.note(name)
                setattr(sound, name, 0)
        # No place is for more than the capacity and the debt that it may leave.
        most = flow.capacity + sound.quota.overdraft if has_places(sound.quota) else 0
        places = self.stored.free if isinstance(cast("object", self.stored.free), tuple) else ()
        kept = (each for each in places[:MOST_FREE] if 0 < each.tokens <= most and each.at <= furthest)
        sound.free = tuple(sorted(kept))
        if sound.free != self.stored.free:
            self.note("free")


def _is_hold(hold: object) -> bool:
    if not isinstance(hold, Hold) or not isinstance(cast("object", hold.label), str):
        return False
    numbers = (hold.tokens, hold.opened, hold.expires_at, hold.charged)
    return all(_is_whole(number, 0) for number in numbers) and _is_whole(hold.hold_for, 1, MAX_HOLD_US)


def _is_whole(value: object, least: int, most: int = LIMIT - 1) -> bool:
    # `type`, not `isinstance`: True is no balance.
    return type(value) is int and least <= value <= most
