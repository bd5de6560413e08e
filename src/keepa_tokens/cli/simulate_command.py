"""`keepa-tokens simulate`, as click sees it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, TextIO

import click

from . import shell
from .simulate import HOUR, KINDS, Load, Result, demand, parse_mix, simulate
from .words import columns, count, duration

WIDTH: Final = 720
HEIGHT: Final = 320
MARGIN: Final = 56
COLOURS: Final = ("#1a7f5a", "#2f6fb2", "#c2453a", "#8a5fb0", "#b07a1a", "#5f6a76")
DASHES: Final = ("none", "8 4", "2 4", "12 4 2 4", "4 2", "1 3")
INK: Final = "#1f2933"
MOST_RATE: Final = 10_000


def rates_of(said: str) -> list[int]:
    """Return the rates in a text such as `5,20,60`."""
    try:
        rates = [int(part) for part in said.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(1 <= rate <= MOST_RATE for rate in rates):
        raise shell.RefusedError(f"--rates {said!r}: write tokens a minute, such as 5,20,60")
    return sorted(set(rates))


@shell.command(
    "try a plan before you buy it",
    examples="""
    keepa-tokens simulate --backlog 2000 --mix product:10=70,offers:2=20,search=10
    keepa-tokens simulate --rates 20,60 --per-hour 100 --svg plan.svg
    """,
    then="keepa-tokens demo     see the bucket at work",
)
@click.option("--rates", default="5,20,60", show_default=True, help="Plans to compare, in tokens a minute.")
@click.option("--backlog", type=click.IntRange(0, 1_000_000), default=1000, show_default=True, help="Calls to be done.")
@click.option("--per-hour", type=shell.Number(0, 100_000), default=0.0, help="Calls an hour besides the backlog.")
@click.option(
    "--mix",
    default="product:10=70,offers:2=20,search=10",
    show_default=True,
    help=f"Kinds of calls: name:items=weight, of {', '.join(KINDS)}.",
)
@click.option(
    "--workers", type=click.IntRange(1, 200), default=4, show_default=True, help="Workers that share the key."
)
@click.option("--outside", type=shell.Number(0, 1_000_000), default=0.0, help="Tokens an hour that others spend.")
@click.option("--faults", type=shell.Number(0, 50), default=0.0, help="Percent of calls that get no answer.")
@click.option("--days", type=shell.Number(0.01, 60), default=7.0, show_default=True, help="When to give up.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which calls come in which order.")
@click.option(
    "--svg", type=click.File("w", encoding="utf-8", lazy=False), help="Write a chart of the calls left over time."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def simulate_command(
    ctx: click.Context,
    /,
    *,
    rates: str,
    mix: str,
    faults: float,
    svg: TextIO | None,
    as_json: bool,
    **others: Any,  # noqa: ANN401 - click's
) -> None:
    """Try a plan before you buy it: say when the work is done, and which plan is enough.

    It runs the rules of this library and a model of the server in virtual time. It ends with 0 if a plan is enough,
    with 1 if none is.
    """
    load = Load(parse_mix(mix), faults=faults / 100, **others)
    results = _run(load, rates_of(rates))
    if svg is not None:
        svg.write(chart(load, results))
        svg.flush()
    if as_json:
        plans = [{name: told for name, told in asdict(result).items() if name != "curve"} for result in results]
        shell.print_json({"demand_per_hour": demand(load), "plans": plans})
    else:
        for line in table(results):
            click.echo(line)
        shell.say(verdict(load, results))
    ctx.exit(shell.WELL if any(result.enough for result in results) else shell.FINDINGS)


def _run(load: Load, rates: Sequence[int]) -> list[Result]:
    results: list[Result] = []
    for rate in rates:
        hidden = not sys.stderr.isatty()
        with click.progressbar(length=1000, label=f"{rate:>6} a minute", file=sys.stderr, hidden=hidden) as progress:
            results.append(simulate(load, rate, lambda part: progress.update(round(1000 * part) - progress.pos)))
    return results


def table(results: Sequence[Result]) -> list[str]:
    """Return a table of the plans, one line each below a heading."""
    rows = [("PLAN", "DONE AFTER", "CALLS", "LEFT", "TOKENS", "USED", "WAIT", "LONGEST", "REFUSED", "ENOUGH")]
    rows += [
        (
            f"{result.rate}/min",
            "-" if result.done_after is None else duration(result.done_after),
            f"{result.calls:,}",
            f"{result.left:,}",
            f"{result.tokens:,}",
            f"{100 * result.used:.0f} %",
            duration(result.median_wait),
            duration(result.longest_wait),
            str(result.refused),
            "yes" if result.enough else "no",
        )
        for result in results
    ]
    return columns(rows)


def verdict(load: Load, results: Sequence[Result]) -> str:
    """Return the answer in a sentence."""
    enough, needed = next((result for result in results if result.enough), None), demand(load) / 60
    if enough is None:
        too_slow = needed >= max(result.rate for result in results)
        why = (
            f"more than {needed:,.1f} tokens a minute are needed"
            if too_slow
            else f"it takes more than {load.days:g} days"
        )
        return f"None of these plans is enough: {why}."
    spare = f"; {needed:,.1f} tokens a minute are needed for what comes on top" if needed else ""
    rate = f"{count(enough.rate, 'token')} a minute {'is' if enough.rate == 1 else 'are'}"
    return f"{rate} enough: done after {duration(enough.done_after or 0.0)}{spare}."


def chart(load: Load, results: Sequence[Result]) -> str:
    """Return an SVG chart of the calls left over time; the lines of the plans differ by colour and by dash."""
    shown = [point for result in results for point in result.curve]
    span, most = max(at for at, _ in shown) or 1.0, max(1, *(left for _, left in shown))
    across, down = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    font = f'font-family="sans-serif" font-size="12" fill="{INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {font}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="24" font-size="15">Calls left, {load.workers} workers</text>',
        f'<path d="M{MARGIN} {MARGIN}V{MARGIN + down}H{MARGIN + across}" fill="none" stroke="{INK}"/>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{most:,}</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + down}" text-anchor="end">0</text>',
        f'<text x="{MARGIN + across}" y="{MARGIN + down + 18}" text-anchor="end">{span / HOUR:.1f} hours</text>',
    ]
    for place, result in enumerate(results):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
        points = " ".join(
            f"{MARGIN + across * at / span:.1f},{MARGIN + down * (1 - left / most):.1f}" for at, left in result.curve
        )
        x, y = MARGIN + across - 120, MARGIN + 18 * place
        line = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        parts += [
            f'<polyline points="{points}" {line}/>',
            f'<path d="M{x} {y}h30" {line}/>',
            f'<text x="{x + 38}" y="{y + 4}">{result.rate} a minute</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
