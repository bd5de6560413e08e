"""`keepa-tokens doctor`, as click sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from ..errors import ConfigError, StorageUnavailable
from . import shell
from .colours import BAD, CARE, GOOD
from .doctor import could_go, examine
from .finding import Finding
from .look import Look, Place, all_buckets, look
from .where import WITH_BASE_URL, Where, with_bucket
from .words import count

if TYPE_CHECKING:
    from .probe import Answer

LOOKS: Final = 4
APART: Final = 0.05
"""Real seconds between looks at a bucket, to see terms that change."""

APART_IN_LINE: Final = 0.8
"""The same if a caller waits that could go: a live caller goes within these looks."""

DAY: Final = 86_400.0


@shell.command(
    "what is wrong, its effect, its cure; --repair mends",
    examples="""
    keepa-tokens doctor --redis redis://127.0.0.1:6379
    keepa-tokens doctor --redis redis://127.0.0.1:6379 --repair
    KEEPA_API_KEY=... keepa-tokens doctor --redis redis://127.0.0.1:6379 --probe
    """,
    then="keepa-tokens watch     see it go on",
)
@with_bucket
@click.option("--repair", is_flag=True, help="Mend what is safe to mend, and say what was changed.")
@click.option("--probe", is_flag=True, help="Try the API key as well: ask the server, which costs no tokens.")
@WITH_BASE_URL
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def doctor_command(
    ctx: click.Context, where: Where, *, repair: bool, probe: bool, base_url: str, as_json: bool
) -> None:
    """Say what is wrong with the server and the buckets: what, its effect, its cure.

    Without KEY it looks at every bucket. It ends with 0 if nothing is wrong, with 1 if something is. To see whether the
    server lets a worker work, it makes a bucket of its own, takes one token from it, and deletes it.
    """
    place = where.place
    asked = where.look() if probe else None  # first, so that an unclear KEY is refused before anything is done
    looks = [where.look()] if where.key else list(all_buckets(place))
    facts: list[str] = []
    findings: list[Finding] = []
    for told in _examined_below(place, plain=any(seen.quota is not None and not seen.quota.synced for seen in looks)):
        if isinstance(told, str):
            facts.append(told)
        else:
            findings.append(told)
    findings += _examined(place, looks)
    if asked is not None:
        answer = where.ask(asked, base_url)
        if answer.said is None and asked.quota is not None and asked.quota.synced:
            findings.append(_unanswered(answer))
        else:
            facts.append(f"Keepa {answer.sentence()}")
    wanted = {(found.about, found.mend) for found in findings if found.mend and repair}
    mended = [mended_now(place, about, mend) for about, mend in sorted(wanted)]
    again = filter(None, [look(place, about) for about in {about for about, _ in wanted}])
    left = {(found.about, found.code) for found in _examined(place, list(again))}
    gone = {(found.about, found.code) for found in findings if found.mend and repair} - left
    healthy = [seen.key for seen in looks if seen.key not in {found.about for found in findings}]
    faults = sum(found.fault and (found.about, found.code) not in gone for found in findings)
    if as_json:
        document = {"facts": facts, "healthy": healthy, "findings": [asdict(found) for found in findings]}
        shell.print_json({"ok": not faults, **document, "mended": mended})
    else:
        _print(where.name, facts, healthy, findings)
        _print_end(findings, mended, faults)
    ctx.exit(shell.FINDINGS if faults else shell.WELL)


def _examined_below(place: Place, *, plain: bool) -> Iterator[str | Finding]:
    """Examine the server or the file. plain: it holds buckets that follow no server."""
    if place.kind == "file":
        return place.examine()
    from .doctor_server import examine_server  # noqa: PLC0415 - needs what only those with a server have

    return examine_server(place, plain=plain)


def _unanswered(answer: Answer) -> Finding:
    return Finding(
        "no-answer",
        f"it was asked now, and brought no balance: {answer.why_not}",
        "buckets go by their own projection; one of which nothing is known stands at 0 and refills",
        "see whether this machine and the workers reach it; if so, it is for Keepa to mend",
        about="Keepa",
    )


def _examined(place: Place, looks: Sequence[Look]) -> list[Finding]:
    """Look at all buckets a few more times, and return what is wrong with each."""
    later: dict[str, list[Look]] = {seen.key: [] for seen in looks}
    for _ in range(LOOKS if looks else 0):
        time.sleep(APART_IN_LINE if any(map(could_go, looks)) else APART)
        for seen in filter(None, [look(place, key) for key in later]):
            later[seen.key].append(seen)
    return [found for seen in looks for found in examine(seen, later=later[seen.key])]


def mended_now(place: Place, key: str, mend: str) -> str:
    """Mend a bucket and return what was done."""
    seen = look(place, key)
    snapshot = None if seen is None else seen.snapshot()
    if seen is None or snapshot is None:
        return f"{key}: nothing, it is gone or its terms are lost"
    try:
        if mend == "fields":
            seen.door(place).peek()  # a worker's look mends the fields and writes them
            return f"{key}: {', '.join(snapshot.repaired)}"
        place.keep_for(key, DAY + min(snapshot.full_in, 365 * DAY))
    except (StorageUnavailable, ConfigError) as error:
        return f"{key}: nothing: {error}"
    return f"{key}: its key ends a day after the bucket would be full, if nobody uses it any more"


def _print(name: str, facts: Sequence[str], healthy: Sequence[str], findings: Sequence[Finding]) -> None:
    shell.print_table(
        [("looked at", name), *(("fine", fact) for fact in facts), *(("fine", f"bucket {key}") for key in healthy)]
    )
    for number, finding in enumerate(findings, 1):
        click.echo()
        style = f"bold {BAD if finding.fault else CARE}"
        shell.say(f"{number}. {finding.about}: {finding.what}.", style, "   ")
        shell.print_table([("   effect", f"{finding.effect}."), ("   cure", f"{finding.cure}.")])


def _print_end(findings: Sequence[Finding], mended: Sequence[str], faults: int) -> None:
    click.echo()
    for words in mended:
        shell.say(f"mended {words}", GOOD)
    before = sum(finding.fault for finding in findings)
    if before:
        left = f", {count(faults, 'is', 'are')} left" if mended else ""
        shell.say(f"{count(before, 'fault')} found{left}.", f"bold {BAD if faults else GOOD}")
    else:
        shell.say("Nothing is wrong" + "; the above is worth knowing" * bool(findings) + ".", f"bold {GOOD}")
