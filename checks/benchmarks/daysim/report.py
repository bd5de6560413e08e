"""The results as the tables of docs/evidence/benchmark.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from checks.benchmarks.daysim.checks import CHECKS, Check, Results
from checks.benchmarks.daysim.contenders import OURS
from checks.benchmarks.daysim.rows import Row
from checks.benchmarks.daysim.world import Result
from checks.page import table

Grid = Mapping[tuple[str, str], Result]
"""What was counted, by the names of the row and the contender."""


def tables(rows: Sequence[Row], names: Sequence[str], grid: Grid) -> Iterator[str]:
    """Yield what must hold, and all figures."""
    yield from ("## What must hold of keepa_tokens", "", *checks_table(of_ours(rows, grid)))
    yield from ("## All figures", "", *figures(rows, names, grid))


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


def figures(rows: Sequence[Row], names: Sequence[str], grid: Grid) -> Iterator[str]:
    """Yield the table of all figures."""

    def line(row: Row, name: str) -> tuple[object, ...]:
        result = grid[row.name, name]
        return (
            *(row.name if name == names[0] else "", name, result.minted, result.spent, result.wasted),
            *(f"{100 * result.share_used:.1f}%", result.paid, result.refused, f"{100 * result.share_refused:.1f}%"),
            *(result.probes, _duration(result.standstill)),
            "" if result.recovery is None else _duration(result.recovery),
        )

    return table(("day", "by", *COLUMNS), (line(row, name) for row in rows for name in names))


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "never"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
