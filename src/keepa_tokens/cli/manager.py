"""The state of a hand-made token manager: what its texts say, and the stuck state that it can't leave by itself.

Such a manager keeps a balance and the time of the last refill, in keys of their own or in one hash. Where the time is
gone, takes now for it, and doesn't ask the server while the balance is low, it stands still for ever: see `old_rule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from .doctor import Finding
from .place import Server, text

MOST_KEYS: Final = 20_000
MOST_FIELDS: Final = 200
MOST_TOKENS: Final = 1_000_000

BALANCE: Final = re.compile(r"token|balance|bucket|credit|keepa", re.IGNORECASE)
STAMP: Final = re.compile(r"time|stamp|(?:^|[_:.-])ts\b|updated|refill(?!.?rate)|last|synced|[_:.-]at$", re.IGNORECASE)
RATE: Final = re.compile(r"rate|per.?min", re.IGNORECASE)
RECHARGE: Final = re.compile(r"recharge", re.IGNORECASE)
SEPARATORS: Final = re.compile(r"[:._/-]")

MILLISECONDS_FROM: Final = 1e11
MICROSECONDS_FROM: Final = 1e14
EARLIEST: Final = 1e9
LATEST_AHEAD: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Manager:
    """What a hand-made manager has stored, as far as it can be read. refilled_at: seconds since the epoch.

    balance, refilled_at, rate, recharge_to: None where it is missing or says nothing. notes: what was missing, or was
    left out and why, in sentences.
    """

    balance: int | None = None
    refilled_at: float | None = None
    rate: int | None = None
    recharge_to: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def stuck(self) -> bool:
        """Whether it is in the state that it can't leave: in debt, and without the time of the last refill."""
        return self.balance is not None and self.balance < 0 and self.refilled_at is None


def understand(texts: Mapping[str, str | None], now: float) -> Manager:
    """Return what the texts under `balance`, `timestamp`, `rate`, `recharge` say at `now`, seconds since the epoch."""
    notes: list[str] = []
    balance = _number(texts.get("balance"))
    if balance is None:
        notes.append("there is no balance that can be read: nothing is known, and the server is asked first")
    refilled_at = instant(texts.get("timestamp"), now)
    if refilled_at is None:
        how = "is missing" if texts.get("timestamp") is None else "can't be read, or lies ahead"
        notes.append(f"the time of the last refill {how}: it refills from now on, so nothing is made up")
    rate = _number(texts.get("rate"))
    if rate is not None and rate < 1:
        rate = None
    recharge = texts.get("recharge")
    recharge_to = _number(recharge)
    if recharge is not None and (recharge_to is None or recharge_to <= 1):
        notes.append(f"the recharge flag ({recharge[:20]}) is left out: it has no end")
        recharge_to = None
    return Manager(balance, refilled_at, rate, recharge_to, tuple(notes))


def _number(said: str | None) -> int | None:
    """Return a whole number, from a text that may say it as a decimal one."""
    try:
        number = float(said or "")
    except ValueError:
        return None
    return int(number) if abs(number) <= MOST_TOKENS else None  # NaN compares to nothing


def instant(said: str | None, now: float) -> float | None:
    """Return a time in seconds since the epoch, from seconds, milliseconds, microseconds or an ISO text; None: none."""
    if said is None:
        return None
    try:
        at = float(said)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(said.strip())
        except ValueError:
            return None
        at = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if at >= MICROSECONDS_FROM:
        at /= 1e6
    elif at >= MILLISECONDS_FROM:
        at /= 1e3
    return at if EARLIEST <= at <= now + LATEST_AHEAD else None


def stuck(place: Server, now: float) -> Iterator[Finding]:
    """Yield each stuck manager among the keys of a server that are no buckets."""
    names = [name for name in all_names(place) if not name.startswith(place.prefix)]
    for name in names:
        if not BALANCE.search(name):
            continue
        kind = text(place.command("TYPE", name))
        if kind == "string" and not STAMP.search(name):
            finding = _in_keys(place, name, names, now)
        elif kind == "hash":
            finding = _in_hash(place, name, now)
        else:
            finding = None
        if finding is not None:
            yield finding


def all_names(place: Server) -> Iterator[str]:
    """Yield the names of a server's keys, the first `MOST_KEYS` that it finds."""
    cursor, seen = "0", 0
    while seen < MOST_KEYS:
        at, found = cast("tuple[object, list[object]]", place.command("SCAN", cursor, "COUNT", 1000))
        seen += len(found)
        yield from map(text, found)
        cursor = text(at)
        if cursor == "0":
            return


def _in_keys(place: Server, name: str, names: list[str], now: float) -> Finding | None:
    balance = _number(text(place.command("GET", name)))
    if balance is None or balance >= 0:
        return None
    kin = [other for other in names if other != name and SEPARATORS.split(other)[0] == SEPARATORS.split(name)[0]]
    stamps = [other for other in kin if STAMP.search(other) and not BALANCE.fullmatch(other)]
    if any(instant(_get(place, other), now) is not None for other in stamps):
        return None
    options = [f"--balance-key {name}"]
    options += [f"--timestamp-key {other}" for other in stamps[:1]]
    options += [f"--rate-key {other}" for other in kin if RATE.search(other)][:1]
    options += [f"--recharge-key {other}" for other in kin if RECHARGE.search(other)][:1]
    return _finding(name, f"holds a balance of {balance}", options)


def _get(place: Server, name: str) -> str | None:
    if text(place.command("TYPE", name)) != "string":
        return None
    return text(place.command("GET", name))


def _in_hash(place: Server, name: str, now: float) -> Finding | None:
    if int(text(place.command("HLEN", name))) > MOST_FIELDS:
        return None
    reply = cast("Mapping[object, object]", place.command("HGETALL", name))
    fields = {text(field): text(value) for field, value in reply.items()}
    if any(STAMP.search(field) and instant(said, now) is not None for field, said in fields.items()):
        return None
    for field, said in fields.items():
        balance = _number(said)
        if BALANCE.search(field) and not STAMP.search(field) and balance is not None and balance < 0:
            options = [f"--hash {name}", f"--balance-key {field}"]
            options += [f"--timestamp-key {other}" for other in fields if STAMP.search(other)][:1]
            options += [f"--rate-key {other}" for other in fields if RATE.search(other)][:1]
            options += [f"--recharge-key {other}" for other in fields if RECHARGE.search(other)][:1]
            return _finding(name, f"holds a balance of {balance} in its field {field}", options)
    return None


def _finding(name: str, what: str, options: list[str]) -> Finding:
    return Finding(
        "stuck-manager",
        name,
        f"{what}, and no time of the last refill beside it",
        "a manager that takes now for a missing time never refills, and below its threshold never asks the server: it"
        " stands still until somebody looks",
        f"stop it, then `keepa-tokens adopt {' '.join(options)}` takes its state over",
    )
