"""What is wrong with a Redis or Valkey that holds buckets, and what is right with it."""

from __future__ import annotations

import re
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from ..bucket import TokenBucket
from ..errors import ConfigError, StorageUnavailable
from ..quota import Quota
from ..units import MICROSECONDS, TOLERANCE_US
from .doctor import Finding
from .manager import all_names
from .redis_place import RedisPlace
from .words import count

OLDEST: Final = (6, 2)
SLOW: Final = 0.05
"""Seconds that an answer may take before every grant feels it."""

FULL: Final = 0.95
LAG: Final = 10
AGREES: Final = 0.1
"""Seconds that two clocks may be apart and still be called one: the way there and back is within it."""

SAMPLES: Final = 5
SERVER: Final = "server"

REFUSALS: Final = {
    r"read.?only": (
        "read-only",
        "it is a replica, and takes no writes",
        "connect to the master: by its address, or by Sentinel's or the cluster's client",
    ),
    r"permission": (
        "rights",
        "its user may not do what a bucket needs",
        "allow it what the documentation lists for a worker: ACL SETUSER worker ...",
    ),
    r"out.?of.?memory|used memory": (
        "full",
        "its memory is full, and it refuses writes",
        "raise maxmemory, or delete what others have left there",
    ),
    r"misconf|persist on disk": (
        "save-failed",
        "it could not save to disk, and refuses writes",
        "see its log and the free space of its disk",
    ),
}
"""What says a refused write, as a pattern: the code of the finding, what is wrong, and the cure."""


@dataclass(slots=True)
class Examination:
    """What was seen of a server: what is right, in words, and what is wrong."""

    facts: list[str] = field(default_factory=list[str])
    findings: list[Finding] = field(default_factory=list[Finding])

    def find(self, code: str, what: str, effect: str, cure: str, *, fault: bool = True) -> None:
        """Note that something is wrong."""
        self.findings.append(Finding(code, what, effect, cure, fault, about=SERVER))


def examine_server(place: RedisPlace, *, plain: bool) -> Examination:
    """Look at the server. plain: there are buckets on it that keep their own books.

    Takes one token of a bucket of its own, which it deletes, to see whether it may. Raises StorageUnavailable if the
    server can't be reached.
    """
    seen = Examination()
    _clock(place, seen)
    try:
        info = _info(place)
    except StorageUnavailable:
        seen.facts.append("INFO is not allowed to this user: memory, persistence and replication were not looked at")
    else:
        _version(info, seen)
        _memory(info, seen)
        _persistence(info, seen, plain=plain)
        _replication(info, seen)
    _write(place, seen)
    return seen


def strangers(place: RedisPlace) -> Iterator[Finding]:
    """Yield what lies where a bucket would be, and is none."""
    buckets = set(place.keys())
    keys = {name.removeprefix(place.prefix) for name in all_names(place) if name.startswith(place.prefix)}
    for key in sorted(keys - buckets):
        yield Finding(
            "no-bucket",
            f"the key {place.prefix}{key} holds something that is no bucket",
            "no worker gets a token of a bucket of this name; each is told what lies there",
            "see whose it is and give one of the two another name; DEL removes it",
            about=key,
        )


def _info(place: RedisPlace) -> dict[str, str]:
    reply = cast("Mapping[object, object]", place.command("INFO"))
    return {str(name): str(value) for name, value in reply.items()}


def _clock(place: RedisPlace, seen: Examination) -> None:
    took: list[float] = []
    ahead: list[float] = []
    for _ in range(SAMPLES):
        sent, started = time.time(), time.perf_counter()
        now = place.now_us() / MICROSECONDS
        took.append(time.perf_counter() - started)
        ahead.append(now - sent - took[-1] / 2)
    latency, apart = statistics.median(took), ahead[took.index(min(took))]
    off = "agrees with" if abs(apart) < AGREES else f"is {apart:+,.1f} s against"
    seen.facts.append(f"answers in {latency * 1000:.1f} ms, its clock {off} this machine's")
    if latency > SLOW:
        seen.find(
            "slow",
            f"it takes {latency * 1000:.0f} ms to answer",
            "every grant and every settle waits for that",
            "move the workers nearer to it, or see what keeps it busy: SLOWLOG GET",
        )
    if abs(apart) * MICROSECONDS > TOLERANCE_US:
        seen.find(
            "clock",
            f"its clock is {abs(apart):,.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's",
            "buckets go by its clock alone and are right; a failover to another clock shifts their refill",
            "let both machines keep time by NTP",
        )


def _version(info: Mapping[str, str], seen: Examination) -> None:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    seen.facts.append(f"{name} {version}")
    numbers = [int(part) for part in info.get("redis_version", "").split(".")[:2] if part.isdecimal()]
    if numbers and tuple(numbers) < OLDEST:
        seen.find(
            "old",
            f"it is {name} {version}",
            "the script of the buckets needs what came with 6.2",
            "upgrade it to Redis 6.2 or newer, or to Valkey",
        )


def _memory(info: Mapping[str, str], seen: Examination) -> None:
    limit, used = int(info.get("maxmemory", "0")), int(info.get("used_memory", "0"))
    policy = info.get("maxmemory_policy", "noeviction")
    seen.facts.append("evicts nothing" if not limit or policy == "noeviction" else f"evicts by {policy}")
    if limit and policy != "noeviction":
        seen.find(
            "evicts",
            f"once its memory is full it deletes keys ({policy}), buckets too",
            "a bucket that was deleted begins anew: a plain one full, a synced one unknown until the server is asked",
            "set maxmemory-policy to noeviction, or give buckets a server of their own",
        )
    if limit and used > FULL * limit:
        seen.find(
            "nearly-full",
            f"{min(100.0, 100 * used / limit):.0f} % of its memory is used",
            "soon it refuses writes, or deletes keys",
            "raise maxmemory, or delete what others have left there",
        )


def _persistence(info: Mapping[str, str], seen: Examination, *, plain: bool) -> None:
    appends, saved = info.get("aof_enabled") == "1", int(info.get("rdb_last_save_time", "0"))
    started = int(info.get("server_time_usec", "0")) // MICROSECONDS - int(info.get("uptime_in_seconds", "0"))
    saves = saved > started + 1
    kept = "every write (AOF)" if appends else "snapshots (RDB)" if saves else "nothing so far"
    if appends or saves or not plain:
        seen.facts.append(f"keeps on disk: {kept}")
    else:
        seen.find(
            "not-kept",
            "it has saved nothing to disk since it started",
            "after a restart a plain bucket begins anew, and lets its capacity through once more",
            "set appendonly to yes, if that matters to you",
            fault=False,
        )
    for name in ("rdb_last_bgsave_status", "aof_last_write_status"):
        if info.get(name, "ok") != "ok":
            seen.find(
                "save-failed",
                f"its last attempt to write to disk failed ({name})",
                "a restart loses what came after it, and by default it refuses writes soon",
                "see its log and the free space of its disk",
            )


def _replication(info: Mapping[str, str], seen: Examination) -> None:
    role, replicas = info.get("role", "master"), int(info.get("connected_slaves", "0"))
    seen.facts.append(
        "is a replica" if role != "master" else f"has {count(replicas, 'replica') if replicas else 'no replica'}"
    )
    for number in range(replicas):
        lag = _lag(info.get(f"slave{number}", ""))
        if lag is not None and lag > LAG:
            seen.find(
                "lags",
                f"replica {number} is {lag} s behind",
                "a failover to it grants once more what was granted in that time",
                "see what keeps the replica or the line to it busy",
            )


def _lag(text: str) -> int | None:
    # A client shows either the server's text or the mapping that it made of it.
    digits = text.replace("'", "").replace(" ", "").replace(":", "=").partition("lag=")[2].split(",")[0].rstrip("}")
    return int(digits) if digits.isdecimal() else None


def _write(place: RedisPlace, seen: Examination) -> None:
    """Use a bucket of our own, which needs the script and all rights that a worker needs."""
    key = f"doctor-{secrets.token_hex(4)}"
    bucket = TokenBucket(Quota.per_second(1), key=key, storage=place, listener=lambda _: None)
    try:
        bucket.try_acquire()
    except (StorageUnavailable, ConfigError) as error:
        said = str(error)
        code, what, cure = next(
            (words for sign, words in REFUSALS.items() if re.search(sign, said, re.IGNORECASE)),
            ("refused", f"it did not carry out a command: {said}", "see its log"),
        )
        seen.find(code, what, f"no worker gets a token from it: {said}", cure)
        return
    seen.facts.append("runs the script, and lets this user write")
    try:
        place.delete(key)
    except StorageUnavailable:
        seen.facts.append(f"DEL is not allowed to this user: {key} ends by itself in a minute")
