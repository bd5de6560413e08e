"""`keepa-tokens adopt`, as click sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from ..keepa.quota import bucket_key
from ..units import MICROSECONDS
from . import shell
from .adopt import Adoption, adopt
from .manager import Manager, understand
from .place import text
from .redis_place import RedisPlace
from .where import Where, with_bucket
from .words import duration

PARTS: Final = ("balance", "timestamp", "rate", "recharge")


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
@click.option("--yes", is_flag=True, help="Do it; without this it is only said what would be done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def adopt_command(
    where: Where, *, hash_key: str | None, refill_rate: int | None, yes: bool, as_json: bool, **keys: str
) -> None:
    """Take over what a hand-made token manager has stored, in one step: its debt, and its time where it has one.

    The bucket is that of the API key (--key-file, KEEPA_API_KEY), or KEY. Stop the old system first; its keys are read,
    and stay. The server is asked as soon as a worker finds too little, so a wrong balance is right within a call.
    """
    with where.opened() as place:
        if not isinstance(place, RedisPlace):
            raise shell.RefusedError("adopt reads keys of a Redis or Valkey: give --redis")
        texts = {part: _read(place, hash_key, keys[f"{part}_key"]) for part in PARTS}
        manager = understand(texts, place.now_us() / MICROSECONDS)
        done = adopt(place, _target(where), manager, refill_rate=refill_rate, write=yes)
    if as_json:
        shell.print_json(_document(manager, done, written=yes))
        return
    shell.print_table(_sentences(manager, done, written=yes))


def _target(where: Where) -> str:
    if where.key is not None:
        return where.key
    if where.api_key is None:
        raise shell.RefusedError("say for which bucket: the API key by --key-file or KEEPA_API_KEY, or KEY")
    return bucket_key(where.api_key)


def _read(place: RedisPlace, hash_key: str | None, name: str | None) -> str | None:
    if name is None:
        return None
    reply = place.command("GET", name) if hash_key is None else place.command("HGET", hash_key, name)
    return None if reply is None else text(reply)


def _sentences(manager: Manager, done: Adoption, *, written: bool) -> list[tuple[str, str]]:
    snapshot = done.look.snapshot()
    terms = "" if snapshot is None else f"{snapshot.refill} tokens a minute, up to {snapshot.capacity:,}"
    stood = "no balance" if manager.balance is None else f"a balance of {manager.balance:,}"
    time = "no time of its last refill" if manager.refilled_at is None else "the time of its last refill"
    lines = [
        ("found", f"{stood}, {time}" + ": it stands still for ever" * manager.stuck),
        ("bucket", done.look.key),
        ("terms", terms),
        ("balance", "unknown" if done.balance is None else f"{done.balance:,} now"),
        ("first call", _first_call(done)),
        *(("note", note) for note in done.notes),
    ]
    if written:
        lines.append(
            ("done", "the bucket is there; the old keys are as they were: delete them when nothing reads them")
        )
    else:
        lines.append(("dry run", "nothing was written: the same with --yes does it"))
    return lines


def _first_call(done: Adoption) -> str:
    if done.balance is None or done.first_call_in > 0:
        return f"asks the server and goes by its answer; without one in {duration(done.first_call_in)}"
    return "goes at once"


def _document(manager: Manager, done: Adoption, *, written: bool) -> Mapping[str, object]:
    found = {name: getattr(manager, name) for name in ("balance", "refilled_at", "rate", "recharge_to", "stuck")}
    return {
        "found": found,
        "bucket": {"key": done.look.key, "balance": done.balance, "fields": done.look.fields},
        "first_call_in": done.first_call_in,
        "notes": list(done.notes),
        "written": written,
    }
