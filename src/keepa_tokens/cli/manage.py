"""`keepa-tokens pause`, `resume`, `reset` and `release`, as click sees them."""

from __future__ import annotations

import re
from typing import Final

import click

from ..rules.commands import Cancel
from ..rules.decision import Snapshot
from . import shell, status
from .look import Look
from .where import Where, with_bucket
from .words import count, duration, listed

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DAY: Final = 86_400
SPAN: Final = re.compile(r"(?:\d+[smhd])+", re.ASCII)


def _span(_: click.Context, __: click.Parameter, said: str) -> int:
    """Return the seconds of 90s, 30m or 1h30m."""
    seconds = sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", said))
    if not SPAN.fullmatch(said) or not 0 < seconds <= DAY:
        raise click.BadParameter(f"{said!r} is no duration up to a day: write 90s, 30m, 1h30m")
    return seconds


@shell.command(
    "let no call go for a while",
    examples="""
    keepa-tokens pause --redis redis://127.0.0.1:6379 --for 30m
    """,
    then="keepa-tokens resume     ends it earlier",
)
@with_bucket
@click.option(
    "--for", "span", callback=_span, default="1h", show_default=True, help="How long: 90s, 30m, 1h30m; a day at most."
)
def pause_command(where: Where, *, span: int) -> None:
    """Let no call go for a while. Calls in flight are settled as ever. A pause ends by itself."""
    seen, _ = _known(where)
    seen.door(where.place).pause(span)
    since = ", from the last step of its workers' own clock" if seen.own_clock else ""
    shell.say(f"{seen.key} is paused for {duration(span)}{since}: no call goes, what is in flight is settled as ever.")


@shell.command(
    "end a pause",
    examples="""
    keepa-tokens resume --redis redis://127.0.0.1:6379
    """,
    then="keepa-tokens status",
)
@with_bucket
def resume_command(where: Where) -> None:
    """End a pause."""
    seen, found = _known(where)
    if not found.paused_for:
        shell.say(f"{seen.key} was not paused; nothing was changed.")
        return
    seen.door(where.place).pause(0)
    shell.say(f"{seen.key} goes on; {duration(found.paused_for)} of its pause were left.")


@shell.command(
    "forget a bucket",
    examples="""
    keepa-tokens reset --redis redis://127.0.0.1:6379
    """,
    then="keepa-tokens status     once a worker has made its first call",
)
@with_bucket
@click.option("--yes", is_flag=True, help="Don't ask.")
def reset_command(where: Where, *, yes: bool) -> None:
    """Forget a bucket: the next call makes a new one.

    A plain bucket begins full. The balance of one that follows a server is unknown until the server was asked.
    """
    seen = where.look()
    lost = dict(status.sentences(seen))
    balance = lost.get("balance", "unknown").partition("  ")[0]  # without its bar
    what = f"balance {balance}; available {lost.get('available', 'unknown')}"
    _ask_twice(f"This forgets the bucket {seen.key} ({what}).", seen.key, yes=yes)
    where.place.delete(seen.key)
    shell.say(f"{seen.key} is forgotten: the next call of a worker makes a new bucket.")


@shell.command(
    "give back what a dead call holds",
    examples="""
    keepa-tokens release --redis redis://127.0.0.1:6379 3253b0b4
    """,
    then="keepa-tokens status     what is held now",
)
@click.argument("hold_id", metavar="HOLD")
@with_bucket
@click.option("--yes", is_flag=True, help="Don't ask.")
def release_command(where: Where, *, hold_id: str, yes: bool) -> None:
    """Give back the tokens of a call that was certainly never sent, e.g. because its worker died.

    HOLD is its id, or the beginning of it, as `doctor` and `status --json` show it. If the server did charge the call,
    the next reading says so.
    """
    seen, found = _known(where)
    # An empty HOLD, e.g. from an unset variable, would begin any id: it means none.
    held = [call for call in found.in_flight if hold_id and call.id.startswith(hold_id)]
    if len(held) != 1:
        there = listed([f"{call.id} ({count(call.tokens, 'token')})" for call in found.in_flight])
        raise shell.RefusedError(f"{count(len(held), 'call')} in flight begin with {hold_id!r}; there are: {there}")
    (call,) = held
    what = f"{count(call.tokens, 'token')}, held for {duration(call.age)}"
    _ask_twice(f"This gives back what the call {call.id} holds ({what}).", call.id[:8], yes=yes)
    now_us = seen.now_us if seen.own_clock else None
    outcome = where.place.apply(seen.key, found.quota, Cancel(call.id), now_us=now_us)
    shell.say(f"{what}: given back." if outcome.found else "the call was settled meanwhile; nothing was changed.")


def _known(where: Where) -> tuple[Look, Snapshot]:
    """Return a look at the bucket and its snapshot; RefusedError if the rules can't read it."""
    seen = where.look()
    snapshot = seen.snapshot()
    if snapshot is None:
        lost = f"the terms of {seen.key!r} are lost: a worker's next call writes them"
        newer = f"{seen.key!r} was written by a newer release: upgrade this command"
        raise shell.RefusedError(lost if seen.quota is None else newer)
    return seen, snapshot


def _ask_twice(what: str, word: str, *, yes: bool) -> None:
    """Ask whether to do something that can't be undone, then for a word; `--yes` answers both."""
    if yes:
        return
    shell.say(what, err=True)
    if not click.confirm("Go on?", err=True):
        raise shell.RefusedError("nothing was changed")
    said = click.prompt(f"It can't be undone. Type {word} to do it", err=True, default="", show_default=False)
    if said != word:
        raise shell.RefusedError("that is not it; nothing was changed")
