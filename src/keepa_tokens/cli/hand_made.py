"""The state of a hand-made token manager: how it is read, and the stuck state that it can't leave by itself.

Such a manager keeps a balance and the time of the last refill, in two keys or in one hash. If the time is lost, it
takes now for that time; if it also doesn't ask the server while the balance is low, it stands still for ever: see
`old_rule`.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from .finding import Finding
from .words import text

if TYPE_CHECKING:
    from .redis_place import RedisPlace

MOST_KEYS: Final = 20_000
MOST_FIELDS: Final = 200
MOST_TOKENS: Final = 1_000_000

BALANCE: Final = re.compile(r"token|balance|bucket|credit|keepa", re.IGNORECASE)
STAMP: Final = re.compile(r"time|stamp|(?:^|[_:.-])ts\b|updated|refill(?!.?rate)|last|synced|[_:.-]at$", re.IGNORECASE)
PARTS: Final = {
    "timestamp": STAMP,
    "rate": re.compile(r"rate|per.?min", re.IGNORECASE),
    "recharge": re.compile(r"recharge", re.IGNORECASE),
}
"""What stands beside a balance, by the option of `adopt` that names it."""

SEPARATORS: Final = re.compile(r"[:._/-]")

MILLISECONDS_FROM: Final = 1e11
MICROSECONDS_FROM: Final = 1e14
NANOSECONDS_FROM: Final = 1e17
EARLIEST: Final = 1e9
LATEST_AHEAD: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Manager:
    """What a hand-made manager has stored, as far as it can be read. refilled_at: seconds since the epoch.

    balance, refilled_at, rate, recharge_to: None if missing or unreadable. notes: sentences on what was missing or left
    out, and why.
    """

    balance: int | None = None
    refilled_at: float | None = None
    rate: int | None = None
    recharge_to: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def stuck(self) -> bool:
        """Whether it is in the state that it can't leave: in debt, and without the time of the last refill."""
        return self.refilled_at is None and (self.balance or 0) < 0


def understand(texts: Mapping[str, str | None], now: float) -> Manager:
    """Return the manager whose `balance`, `timestamp`, `rate` and `recharge` are these texts. now: epoch seconds."""
    notes: list[str] = []
    balance = _number(texts.get("balance"))
    if balance is None:
        notes.append("there is no balance that can be read: nothing is known, and the server is asked first")
    stamp = texts.get("timestamp")
    refilled_at = instant(stamp, now)
    if refilled_at is None:
        how = "is missing" if stamp is None else "can't be read, or lies ahead"
        notes.append(f"the time of the last refill {how}: it refills from now on, so nothing is made up")
    elif not _has_zone(stamp or ""):
        notes.append("the time of the last refill names no time zone: it is taken for UTC; if it isn't, leave it out")
    rate = _number(texts.get("rate")) or 0
    recharge = texts.get("recharge")
    recharge_to = _number(recharge)
    if recharge is not None and (recharge_to is None or recharge_to <= 1):
        notes.append(f"the recharge flag ({recharge[:20]}) is left out: it has no end")
        recharge_to = None
    return Manager(balance, refilled_at, rate if rate > 0 else None, recharge_to, tuple(notes))


def _number(said: str | None) -> int | None:
    """Return the whole part of a text's number, None if it is no number."""
    try:
        number = float(said or "")
    except ValueError:
        return None
    return math.floor(number) if abs(number) <= MOST_TOKENS else None  # NaN compares to nothing


def _has_zone(said: str) -> bool:
    """Return whether a readable time has a time zone; a number counts as having one."""
    try:
        return datetime.fromisoformat(said).tzinfo is not None
    except ValueError:
        return True


def instant(said: str | None, now: float) -> float | None:
    """Return epoch seconds, of a number in seconds to nanoseconds or an ISO text; None: the text is no such time."""
    if said is None:
        return None
    try:
        at = float(said)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(said)
        except ValueError:
            return None
        at = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if at >= NANOSECONDS_FROM:
        at /= 1e9
    elif at >= MICROSECONDS_FROM:
        at /= 1e6
    elif at >= MILLISECONDS_FROM:
        at /= 1e3
    return at if EARLIEST <= at <= now + LATEST_AHEAD else None


def stuck(place: RedisPlace, now: float) -> Iterator[Finding]:
    """Yield a finding for each stuck manager among a server's keys that aren't buckets."""
    names = [name for name in all_names(place) if not name.startswith(place.prefix)]
    for name in filter(BALANCE.search, names):
        kind = text(place.command("TYPE", name))
        if kind == "string" and not STAMP.search(name) and (_number(_get(place, name)) or 0) < 0:
            stem = SEPARATORS.split(name)[0]
            kin = [other for other in names if SEPARATORS.split(other)[0] == stem]
            asked = [other for other in kin if other == name or any(sign.search(other) for sign in PARTS.values())]
            texts = {other: said for other in asked if (said := _get(place, other)) is not None}
            yield from _stuck_in(texts, [name], name, now)
        elif kind == "hash" and int(text(place.command("HLEN", name))) <= MOST_FIELDS:
            reply = cast("Mapping[object, object]", place.command("HGETALL", name))
            fields = {text(field): text(value) for field, value in reply.items()}
            balances = [field for field in fields if BALANCE.search(field) and not STAMP.search(field)]
            yield from _stuck_in(fields, balances, name, now, hashed=True)


def _stuck_in(
    texts: Mapping[str, str], balances: list[str], name: str, now: float, *, hashed: bool = False
) -> Iterator[Finding]:
    """Yield a finding for the first balance below 0, unless there is a time of the last refill with it."""
    at, balance = next(((at, debt) for at in balances if (debt := _number(texts.get(at)) or 0) < 0), ("", 0))
    if not at or any(STAMP.search(other) and instant(said, now) is not None for other, said in texts.items()):
        return
    options = [f"--hash {shlex.quote(name)}"] * hashed + [f"--balance-key {shlex.quote(at)}"]
    for part, sign in PARTS.items():
        found = next((other for other in texts if sign.search(other)), None)
        options += [] if found is None else [f"--{part}-key {shlex.quote(found)}"]
    yield Finding(
        "stuck-manager",
        f"holds a balance of {balance}{f' in its field {at}' * hashed}, and no time of the last refill beside it",
        "a manager that takes now for a missing time never refills, and below its threshold never asks the server:"
        " it stands still until somebody looks",
        f"stop it, then `keepa-tokens adopt {' '.join(options)}` takes its state over",
        about=name,
    )


def all_names(place: RedisPlace) -> Iterator[str]:
    """Yield the names of a server's keys, the first `MOST_KEYS` that it finds."""
    cursor, seen = "0", 0
    while seen < MOST_KEYS:
        at, found = cast("tuple[object, list[object]]", place.command("SCAN", cursor, "COUNT", 1000))
        seen += len(found)
        yield from map(text, found)
        cursor = text(at)
        if cursor == "0":
            return


def _get(place: RedisPlace, name: str) -> str | None:
    if text(place.command("TYPE", name)) != "string":
        return None
    return text(place.command("GET", name))
