"""`keepa-tokens status`, as click sees it."""

from __future__ import annotations

from typing import Final

import click
from rich.text import Text

from . import shell, status
from .colours import CARE, GOOD
from .look import Look, all_buckets
from .where import Where, with_bucket

KEEPA: Final = "https://api.keepa.com"


@shell.command(
    "how a bucket is: what is there, who holds it, what a call gets",
    examples="""
    keepa-tokens status --redis redis://127.0.0.1:6379
    keepa-tokens status --redis redis://127.0.0.1:6379 --all
    keepa-tokens status --sqlite buckets.sqlite --json
    KEEPA_API_KEY=... keepa-tokens status --redis redis://127.0.0.1:6379 --probe
    """,
    then="keepa-tokens doctor     what is wrong, what it does, and how to mend it",
)
@with_bucket
@click.option("--all", "every", is_flag=True, help="A table of every bucket.")
@click.option("--probe", is_flag=True, help="Ask the server as well, which costs no tokens, and show both balances.")
@click.option("--base-url", default=KEEPA, show_default=True, help="Where --probe asks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status_command(where: Where, *, every: bool, probe: bool, base_url: str, as_json: bool) -> None:
    """Show a bucket: what is there, who holds it, what a call would get and when.

    Without KEY: the only bucket there is, or the one of the API key. Writes nothing, unless --probe brings a reading.
    """
    with where.opened() as place:
        if every:
            _show_all(list(all_buckets(place)), as_json=as_json)
            return
        seen = where.look(place)
        said = None
        if probe:
            from .probe import ask_server  # noqa: PLC0415 - needs httpx

            said = ask_server(place, seen, where.needed_api_key(), base_url)
            seen = where.look(place, seen.key)
    if as_json:
        server = said and {"balance": said.said, "projected": said.projected, "why_not": said.why_not}
        shell.print_json({"bucket": status.document(seen), **({"server": server} if probe else {})})
        return
    lines = status.sentences(seen)
    if said is not None:
        lines.append(("server", said.sentence()))
    fine = status.state_of(seen, seen.snapshot()) == "open"
    shell.console().print(Text(status.headline(seen), f"bold {GOOD if fine else CARE}"))
    shell.print_table(lines)


def _show_all(looks: list[Look], *, as_json: bool) -> None:
    if as_json:
        shell.print_json({"buckets": [status.document(seen) for seen in looks]})
        return
    if not looks:
        shell.complain("there is no bucket here: the first call of a worker makes one")
        return
    console = shell.console()
    heading, *rows = status.table(looks, console.width) if console.is_terminal else status.table(looks)
    console.print(Text(heading, "bold"), soft_wrap=True)
    for row in rows:
        console.print(Text(row), soft_wrap=True)
