"""`keepa-tokens adopt`: takes over the state of a hand-made manager in one step; `adopt` does it as a function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from .._arguments import checked_key
from .._plans import snapshot_of
from ..errors import ConfigError
from ..keepa.quota import bucket_key, keepa_quota
from ..rules.commands import Peek
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..rules.transition import transition
from ..units import MICROSECONDS
from . import shell
from .hand_made import Manager, understand
from .where import Where, with_bucket
from .words import duration, text

if TYPE_CHECKING:
    from .redis_place import RedisPlace

REFILL_RATE: Final = 5
LIFETIME: Final = 30 * 86_400.0
"""Seconds for which an adopted bucket waits for its first worker."""

PARTS: Final = ("balance", "timestamp", "rate", "recharge")


@dataclass(frozen=True, slots=True)
class Adoption:
    """The result of taking over. fields: to be stored. found: the bucket for its first worker. notes: for people."""

    fields: dict[str, str]
    found: Snapshot
    notes: list[str]


def adopt(
    place: RedisPlace, key: str, manager: Manager, *, refill_rate: int | None = None, write: bool = False
) -> Adoption:
    """Make the bucket `key` from a hand-made manager's state; without `write` only return it. The old keys stay.

    refill_rate: tokens a minute (default: the manager's, else 5; the first answer of the server corrects it). The
    balance refills from the manager's own time, or from now if that is lost: no tokens are made up. The first worker
    that finds too few tokens asks the server. Raises ConfigError if there is a bucket of that key already, and
    StorageUnavailable.
    """
    checked_key(key)
    plan = plan_adoption(place.now_us(), manager, refill_rate)
    if place.fields(key) is not None or (write and not place.put(key, plan.fields, LIFETIME)):
        raise ConfigError(f"there is a bucket {key!r} already: `keepa-tokens reset` it first. Nothing was changed.")
    return plan


def plan_adoption(now_us: int, manager: Manager, refill_rate: int | None = None) -> Adoption:
    """Return the result of taking over at `now_us`, in the storage's time. Pure."""
    notes = list(manager.notes)
    rate = refill_rate or manager.rate
    quota = keepa_quota(rate or REFILL_RATE)
    if rate is None:
        notes.append(f"no refill rate is known: {REFILL_RATE} a minute until the server's first answer")
    if manager.recharge_to is not None and manager.recharge_to > quota.capacity:
        notes.append(f"it waited to recharge to {manager.recharge_to:,}, but its bucket holds {quota.capacity:,}")
    elif manager.recharge_to is not None:
        notes.append(f"it waited to recharge to {manager.recharge_to:,}: to keep that, give workers recharge_to=")
    refilled_at = now_us
    if manager.refilled_at is not None:
        refilled_at = min(now_us, round(manager.refilled_at * MICROSECONDS))
    balance = None if manager.balance is None else min(manager.balance, quota.capacity)
    state = BucketState(balance=balance, refilled_at=refilled_at, quota=quota)
    # The bound shown is for a first call whose probe gets no answer.
    found = snapshot_of(transition(quota, state, now_us, Peek(probe_after_us=None))[1])
    return Adoption(state.to_fields(), found, notes)


@shell.command(
    "take over a hand-made token manager, dry run first",
    examples="""
    keepa-tokens adopt --redis URL --balance-key tokens --timestamp-key ts
    keepa-tokens adopt --redis URL --hash keepa --balance-key tokens --yes
    """,
    then="keepa-tokens status     the bucket that it made; then start the workers",
)
@with_bucket
@click.option("--hash", "hash_key", metavar="KEY", help="All is in this hash; the other options name its fields.")
@click.option("--balance-key", metavar="KEY", required=True, help="Where the old balance is.")
@click.option("--timestamp-key", metavar="KEY", help="Where the time of the last refill is, or should be.")
@click.option("--rate-key", metavar="KEY", help="Where the refill rate is, in tokens a minute.")
@click.option("--recharge-key", metavar="KEY", help="Where the old system notes that it recharges.")
@click.option("--refill-rate", type=click.IntRange(1), help="Tokens a minute, if no key says it.  [default: 5]")
@click.option("--yes", is_flag=True, help="Do it; without this only show what would be done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def adopt_command(
    where: Where, *, hash_key: str | None, refill_rate: int | None, yes: bool, as_json: bool, **keys: str
) -> None:
    """Take over what a hand-made token manager has stored, in one step: its debt, and its time where it has one.

    The bucket is that of the API key (--key-file, KEEPA_API_KEY), or KEY. Stop the old system first; its keys are read,
    and stay. The server is asked as soon as a worker finds too little, so a wrong balance is right within a call.
    """
    place, key = where.place, where.key
    if place.kind != "server":
        raise shell.RefusedError("adopt reads keys of a Redis or Valkey: give --redis")
    if key is None:
        if where.api_key is None:
            raise shell.RefusedError("say for which bucket: the API key by --key-file or KEEPA_API_KEY, or KEY")
        key = bucket_key(where.api_key)
    texts = {part: _read(place, hash_key, keys[f"{part}_key"]) for part in PARTS}
    manager = understand(texts, place.now_us() / MICROSECONDS)
    done = adopt(place, key, manager, refill_rate=refill_rate, write=yes)
    if as_json:
        names = ("balance", "refilled_at", "rate", "recharge_to", "stuck")
        shell.print_json(
            {
                "found": {name: getattr(manager, name) for name in names},
                "bucket": {"key": key, "balance": done.found.balance, "fields": done.fields},
                "first_call_in": done.found.bound,
                "notes": done.notes,
                "written": yes,
            }
        )
        return
    shell.print_table(_sentences(key, manager, done, written=yes))


def _read(place: RedisPlace, hash_key: str | None, name: str | None) -> str | None:
    if name is None:
        return None
    reply = place.command("GET", name) if hash_key is None else place.command("HGET", hash_key, name)
    return None if reply is None else text(reply)


def _sentences(key: str, manager: Manager, done: Adoption, *, written: bool) -> list[tuple[str, str]]:
    found = done.found
    stood = "no balance" if manager.balance is None else f"a balance of {manager.balance:,}"
    time = "no time of its last refill" if manager.refilled_at is None else "the time of its last refill"
    first = "goes at once"
    if found.bound > 0:
        first = f"asks the server and goes by its answer; without one in {duration(found.bound)}"
    end = ("dry run", "nothing was written: the same with --yes does it")
    if written:
        end = ("done", "the bucket is there; the old keys are as they were: delete them when nothing reads them")
    return [
        ("found", f"{stood}, {time}" + ": it stands still for ever" * manager.stuck),
        ("bucket", key),
        ("terms", f"{found.refill} tokens a minute, up to {found.capacity:,}"),
        ("balance", "unknown" if found.balance is None else f"{found.balance:,} now"),
        ("first call", first),
        *(("note", note) for note in done.notes),
        end,
    ]
