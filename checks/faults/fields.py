"""Every field of a bucket's hash, damaged in every way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from checks.faults.measuring import LOOKS, NOTHING, Cell, Due, Limit, measured, refilled
from checks.faults.runs import SECOND, START, Kind, Moment, Place, pair, put, run_of
from keepa_tokens import BucketState, Snapshot
from keepa_tokens.rules.state import FIELDS, FREE, HOLD, LINE

NEEDED: Final = frozenset({"balance", "refilled_at"})
"""Fields that are never rightly missing."""

FAR_FUTURE: Final = str(START + 50 * 365 * 86_400 * SECOND)
FAULTS: Final[Mapping[str, str | None]] = {
    "deleted": None,
    "garbled": "\x00\udcff?garbled",
    "NaN": "NaN",
    "inf": "inf",
    "1e308": "1e308",
    "empty": "",
    "a list": "[1, 2]",
    "far past": "1",
    "far future": FAR_FUTURE,
}
UNREADABLE: Final = frozenset({"garbled", "NaN", "inf", "1e308", "empty", "a list"})


def expected(name: str, fault: str) -> str | None:
    """Return the name that a repair must give, where it is certain; None: by the circumstances."""
    if name.startswith(HOLD):
        return name if fault != "deleted" else None
    if name in {LINE, FREE} and fault == "empty":
        return None  # nobody stands there, and nothing is free
    if fault in UNREADABLE:
        return name
    return name if fault == "deleted" and name in NEEDED else None


def limit_of(kind: Kind, name: str, text: str | None, moment: Moment, due: Due, shown: Snapshot) -> Limit:
    """Return what a fault of one field may make the bucket grant beyond what it would have."""
    value = int(text) if text and text.isdecimal() and not name.startswith(HOLD) else None
    state = BucketState.from_fields(moment.fields)
    if name == "balance":
        if value is not None:
            return Limit(max(0, value - (state.balance or 0)), "what it says")
        return Limit(max(0, -(due.available if kind.quota.synced else due.balance)), "the debt")
    if name == "refilled_at" and value is not None and value < moment.at:
        sooner = shown.refill if kind.quota.stepped else 0  # its steps have another phase now
        return Limit(max(0, kind.quota.capacity - due.balance) + sooner, "a full bucket")
    if name == "kept_back":
        return Limit(state.kept_back or 0, "what was kept back")
    if name == "carry":
        return Limit(1, "one token")
    if name in {"last_place", "firm_place", "largest_place"}:
        return Limit(sum(tokens - tokens // 2 for _, tokens in moment.calls), "what is given back")
    if name.startswith(HOLD):
        hold = state.holds.get(name.removeprefix(HOLD))
        return Limit(hold.tokens if hold and hold.in_flight else 0, "what it held")
    if name == "reading_sequence" and value is not None:
        return Limit(sum(hold.tokens for hold in state.holds.values() if not hold.in_flight), "what ran out")
    if name in {"reported_refill", "reported_period_us"} and kind.quota.synced:
        more = max(refilled(due.since + after, shown) - refilled(due.since + after, due.shown) for after in LOOKS)
        full_each_time = len(LOOKS) * shown.capacity - due.available
        return Limit(max(0, min(more, full_each_time)), "the refill by the rate it says")
    return NOTHING


def field_cells(kind: Kind, place: Place, times: int) -> Iterator[Cell]:
    """Damage every field in every way, each at some moments of a run."""
    rng = random.Random(f"faults of a {kind.name} bucket")
    found = run_of(kind, place)
    dues = {id(moment): Due.at(kind, moment) for moment in found}
    for slot in (*FIELDS, HOLD):
        with_it = [moment for moment in found if _named(slot, moment)]
        for fault, text in FAULTS.items():
            choice = with_it if text is None else with_it or found
            for _ in range(times if choice else 0):
                moment = choice[rng.randrange(len(choice))]
                name = next(iter(_named(slot, moment)), slot)
                damaged = {at: stored for at, stored in moment.fields.items() if at != name}
                put(place.client, damaged if text is None else damaged | {name: text}, "alive", "greedy")
                at = (f"`{HOLD}…`" if name.startswith(HOLD) else f"`{name}`", fault)
                due = dues[id(moment)]
                limit = partial(limit_of, kind, name, text, moment, due)
                cell = measured(kind, at, moment, *pair(kind, place.storage), due, limit)
                named = expected(name, fault)
                assert cell.life is not None
                mended = cell.life.repaired
                assert named is None or named in mended, f"{name} {fault}: {named} is not in {mended}"
                yield cell


def _named(slot: str, moment: Moment) -> list[str]:
    """Return the stored fields of that name, or, of holds, with that beginning."""
    return sorted(name for name in moment.fields if name == slot or (slot == HOLD and name.startswith(HOLD)))
