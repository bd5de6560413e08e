"""The doctor's look at a Redis or Valkey that holds buckets: what is right with it, and what is wrong."""

from __future__ import annotations

import re
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Final, cast

from ..bucket import TokenBucket
from ..errors import ConfigError, StorageUnavailable
from ..quota import Quota
from ..units import MICROSECONDS, TOLERANCE_US
from .finding import Finding
from .hand_made import all_names, stuck
from .look import keys_of
from .redis_place import RedisPlace
from .words import count, text

OLDEST: Final = (6, 2)
SLOW: Final = 0.05
"""Seconds: a server whose answers take longer slows every grant."""

FULL: Final = 0.95
LAG: Final = 10
AGREES: Final = 0.1
"""Seconds by which two clocks that agree may seem apart, because of the network's delay."""

SAMPLES: Final = 5

REFUSALS: Final = {
    r"read.?only": (
        "read-only",
        "it is a replica, and takes no writes",
        "connect to the master: by its address, or by Sentinel's or the cluster's client",
    ),
    r"permission": (
        "rights",
        "its user may not do what a bucket needs",
        "allow it what the documentation lists: ACL SETUSER worker +evalsha, and so on",
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
"""By a pattern in the error of a refused write: the code of the finding, what is wrong, and the cure."""


def examine_server(place: RedisPlace, *, plain: bool) -> Iterator[str | Finding]:
    """Yield sentences on what is right with a server, and findings. plain: it holds buckets that follow no server.

    To see whether a worker could work, it takes one token from a bucket of its own, which it deletes. Raises
    StorageUnavailable if the server can't be reached.
    """
    yield from _clock(place)
    try:
        reply = cast("Mapping[str, object]", place.command("INFO"))
    except (StorageUnavailable, ConfigError):
        yield "INFO is not allowed to this user: memory, persistence and replication were not looked at"
    else:
        yield from read_info({name: str(value) for name, value in reply.items()}, plain=plain)
    yield from _write(place)
    try:
        yield from (*strangers(place), *stuck(place, place.now_us() / MICROSECONDS))
    except (StorageUnavailable, ConfigError):
        yield "other keys may not be read by this user: no hand-made manager was looked for"


def read_info(info: Mapping[str, str], *, plain: bool) -> Iterator[str | Finding]:
    """Yield sentences on what is right by a server's INFO, and findings on what is wrong."""
    yield from _version(info)
    yield from _memory(info)
    yield from _persistence(info, plain=plain)
    yield from _replication(info)


def strangers(place: RedisPlace) -> Iterator[Finding]:
    """Yield a finding for each key with the buckets' prefix that holds no bucket."""
    buckets = set(keys_of(place))
    keys = {name.removeprefix(place.prefix) for name in all_names(place) if name.startswith(place.prefix)}
    for key in sorted(keys - buckets):
        if text(place.command("TYPE", place.prefix + key)) in {"hash", "none"}:
            continue  # a bucket made, or a key deleted, in between
        yield Finding(
            "no-bucket",
            f"the key {place.prefix}{key} holds something that is no bucket",
            "no worker gets a token of a bucket of this name; each is told what lies there",
            "see whose it is and give one of the two another name; DEL removes it",
            about=key,
        )


def _clock(place: RedisPlace) -> Iterator[str | Finding]:
    took: list[float] = []
    ahead: list[float] = []
    for _ in range(SAMPLES):
        sent, started = time.time(), time.perf_counter()
        now = place.now_us() / MICROSECONDS
        took.append(time.perf_counter() - started)
        ahead.append(now - sent - took[-1] / 2)
    latency, apart = statistics.median(took), ahead[took.index(min(took))]
    off = "agrees with" if abs(apart) < AGREES else f"is {apart:+,.1f} s against"
    yield f"answers in {latency * 1000:.1f} ms, its clock {off} this machine's"
    if latency > SLOW:
        yield Finding(
            "slow",
            f"it takes {latency * 1000:.0f} ms to answer",
            "every grant and every settle waits for that",
            "move the workers nearer to it, or see what keeps it busy: SLOWLOG GET",
        )
    if abs(apart) * MICROSECONDS > TOLERANCE_US:
        yield Finding(
            "clock",
            f"its clock is {abs(apart):,.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's",
            "buckets go by its clock alone and are right; a failover to another clock shifts their refill",
            "let both machines keep time by NTP",
        )


def _version(info: Mapping[str, str]) -> Iterator[str | Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "?")
    yield f"{name} {version}"
    numbers = [int(part) for part in info.get("redis_version", "").split(".")[:2] if part.isdecimal()]
    if numbers and tuple(numbers) < OLDEST:
        yield Finding(
            "old",
            f"it is {name} {version}",
            "the script of the buckets needs what came with 6.2",
            "upgrade it to Redis 6.2 or newer, or to Valkey",
        )


def _memory(info: Mapping[str, str]) -> Iterator[str | Finding]:
    limit, used = int(info.get("maxmemory", "0")), int(info.get("used_memory", "0"))
    policy = info.get("maxmemory_policy", "noeviction")
    if not limit or policy == "noeviction":
        yield "evicts nothing"
    else:
        yield Finding(
            "evicts",
            f"once its memory is full it deletes keys ({policy}), buckets too",
            "a bucket that was deleted begins anew: a plain one full, a synced one unknown until the server is asked",
            "set maxmemory-policy to noeviction, or give buckets a server of their own",
        )
    if limit and used > FULL * limit:
        yield Finding(
            "nearly-full",
            f"{100 * used / limit:.0f} % of its memory is used",
            "soon it refuses writes, or deletes keys",
            "raise maxmemory, or delete what others have left there",
        )


def _persistence(info: Mapping[str, str], *, plain: bool) -> Iterator[str | Finding]:
    appends, saved = info.get("aof_enabled") == "1", int(info.get("rdb_last_save_time", "0"))
    started = int(info.get("server_time_usec", "0")) // MICROSECONDS - int(info.get("uptime_in_seconds", "0"))
    saves = saved > started + 1
    kept = "every write (AOF)" if appends else "snapshots (RDB)" if saves else "nothing so far"
    if appends or saves or not plain:
        yield f"keeps on disk: {kept}"
    else:
        yield Finding(
            "not-kept",
            "it has saved nothing to disk since it started",
            "after a restart a plain bucket begins anew, and lets its capacity through once more",
            "set appendonly to yes, if that matters to you",
            fault=False,
        )
    for name in ("rdb_last_bgsave_status", "aof_last_write_status"):
        if info.get(name, "ok") != "ok":
            yield Finding(
                "save-failed",
                f"its last attempt to write to disk failed ({name})",
                "a restart loses what came after it, and by default it refuses writes soon",
                "see its log and the free space of its disk",
            )


def _replication(info: Mapping[str, str]) -> Iterator[str | Finding]:
    replicas = int(info.get("connected_slaves", "0"))
    yield f"has {count(replicas, 'replica') if replicas else 'no replica'}"
    for number in range(replicas):
        # A client returns either the server's text or a mapping made from it.
        lag = re.search(r"\blag\W+(\d+)", info.get(f"slave{number}", ""))
        if lag is not None and int(lag[1]) > LAG:
            yield Finding(
                "lags",
                f"replica {number} is {lag[1]} s behind",
                "a failover to it grants once more what was granted in that time",
                "see what keeps the replica or the line to it busy",
            )


def _write(place: RedisPlace) -> Iterator[str | Finding]:
    """Use a bucket of our own: that needs the script, and all rights that a worker needs."""
    key = f"doctor-{secrets.token_hex(4)}"
    try:
        TokenBucket(Quota.per_second(1), key=key, storage=place, listener=lambda _: None).try_acquire()
    except (StorageUnavailable, ConfigError) as error:
        said = str(error).rstrip(".")
        code, what, cure = next(
            (words for sign, words in REFUSALS.items() if re.search(sign, said, re.IGNORECASE)),
            ("refused", f"it did not carry out a command: {said}", "see its log"),
        )
        yield Finding(code, what, f"no worker gets a token from it: {said}", cure)
        return
    yield "runs the script, and lets this user write"
    try:
        place.delete(key)
    except (StorageUnavailable, ConfigError):
        yield f"DEL is not allowed to this user: {key} ends by itself in a minute"
