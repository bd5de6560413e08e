"""The results as the tables of docs/evidence/benchmark.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from checks.benchmarks.daysim.checks import CHECKS, Check, Results
from checks.benchmarks.daysim.contenders import OURS
from checks.benchmarks.daysim.rows import Row
from checks.benchmarks.daysim.world import Result
from checks.page import table

Grid = Mapping[tuple[str, str], Result]
"""What was counted, by the names of the row and the contender."""


def tables(rows: Sequence[Row], names: Sequence[str], grid: Grid) -> Iterator[str]:
    """Yield what must hold, and the figures."""
    yield from ("## What must hold of keepa_tokens", "", *checks_table(of_ours(rows, grid)))
    yield from figures(rows, names, grid)


def of_ours(rows: Sequence[Row], grid: Grid) -> Results:
    """Return the library's own results by row."""
    return {row.name: (row, grid[row.name, OURS]) for row in rows if (row.name, OURS) in grid}


def checks_table(results: Results) -> Iterator[str]:
    """Yield the checks with the worst figure and whether they hold."""

    def line(check: Check) -> tuple[object, ...]:
        failed = check.failures(results)
        verdict = "no: " + "; ".join(failed) if failed else "yes"
        concerned = sum(check.concerns(row) for row, _ in results.values())
        return check.name, concerned, check.worst(results), verdict if concerned else "-"

    return table(("check", "rows:", "worst:", "holds"), map(line, CHECKS))


COLUMNS: Final = (
    *("minted:", "spent:", "wasted:", "share used:", "answered:", "refused:", ":"),
    *("probes:", "standstill:", "recovery:"),
)
IN_FULL: Final = ("8 workers, 5/min", "outside spender")
"""The days that are shown with every figure of everybody; docs/tables.py takes them from there."""
BESIDE: Final[Mapping[str, Callable[[Result], str]]] = {
    "Refused by the server, of all calls": lambda result: _percent(result.share_refused),
    "Tokens used, of those minted": lambda result: _percent(result.share_used),
    "Recovery, after the day's event": lambda result: "" if result.recovery is None else _duration(result.recovery),
}


def figures(rows: Sequence[Row], names: Sequence[str], grid: Grid) -> Iterator[str]:
    """Yield all figures of the library, a few of everybody, and two days in full."""
    if OURS in names:
        yield from ("## All days, keepa_tokens", "")
        yield from table(("day", *COLUMNS), ((row.name, *_figures(grid[row.name, OURS])) for row in rows))
    for title, figure in BESIDE.items():
        lines = ((row.name, *(figure(grid[row.name, name]) for name in names)) for row in rows)
        yield from (f"## {title}", "")
        yield from table(("day", *(f"{name}:" for name in names)), (line for line in lines if any(line[1:])))
    for row in rows:
        if row.name in IN_FULL:
            yield from (f"## In full: {row.name}", "")
            yield from table(("by", *COLUMNS), ((name, *_figures(grid[row.name, name])) for name in names))


def _figures(result: Result) -> tuple[object, ...]:
    return (
        *(result.minted, result.spent, result.wasted, _percent(result.share_used)),
        *(result.paid, result.refused, _percent(result.share_refused)),
        *(result.probes, _duration(result.standstill)),
        "" if result.recovery is None else _duration(result.recovery),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "never"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
