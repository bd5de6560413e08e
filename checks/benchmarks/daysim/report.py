"""The results as text: the tables and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from checks.benchmarks.daysim.checks import CHECKS, Results
from checks.benchmarks.daysim.contenders import CLIENT, OLD, OURS
from checks.benchmarks.daysim.rows import Row
from checks.benchmarks.daysim.world import Result

Grid = Mapping[tuple[str, str], Result]
"""What was counted, by the names of the row and the contender."""

INTRODUCTION: Final = f"""\
# A day of ingestion, simulated

Several workers spend one key's tokens for {{hours:g}} hours, in virtual time, beside `FakeKeepa`, the model of the
server that the tests use. Work is always waiting: every worker picks a cost of 1 to 20 tokens, waits for its turn,
makes the call (0.2 to 2 s, a tenth of it on the way there and a tenth on the way back), and goes on. The server mints
in steps every 60.19 to 60.45 s and starts with six minutes' worth. All contenders face the same day: the same costs,
estimates and outside spender, by seed {{seed}}. Nothing depends on the machine: the figures are the same in every run.

```
{{command}}
```

makes this page and the chart, and fails if one of the checks below does.

![Tokens used and calls refused, by contender and day](benchmark.svg)

Who takes part:

- **{OURS}**: `AsyncKeepaSync`, one a worker, on one storage; calls by `attempts`.
- **{CLIENT}**: the `keepa` package's own `wait=True`, one client a worker, as a model that a test holds equal to the
  real client. It takes no estimates and shares nothing.
- **limits**, **pyrate-limiter**, **throttled-py**: one shared bucket of the plan's rate and capacity, on their memory
  storage. They start with what the server has. A refused call takes its estimate again. `limits` has windows and no
  bucket that refills: it runs an hour's moving window of an hour's tokens.
- **{OLD}**: a home-made manager, modelled from the description of how it once stood still for days.

Beside an outside spender chance weighs more than elsewhere: a day at 5/min has some 300 calls, so each refused one is a
third of a percent. With `--rows "outside spender" --seed N` for the seeds 1 to 4 keepa_tokens had 0.62% refused with 8
workers, 0.52% with one, 0.60% with 64; a single day had up to 1.67%. What is promised of these rows holds on average,
not of every day.

General limiters can't be told what the server says. That is what this library is for, and no fault of theirs. `keep`,
recharge and the versions of the quota are options of keepa_tokens alone; the others' figures repeat on those days.
"""

COLUMNS: Final = """\
Columns: tokens minted by the server, spent by the workers, wasted at the cap (minted into a full bucket); the share of
what was minted that was spent, by the outside spender too (a day that ends in debt used it all; what is left at the end
of the day is not lost, but counts as unused); paid calls that were answered and that were refused (429); calls of
`/token`; the longest time without an answered paid call; the time from the event to the first answered call begun after
it. `never`: not before the day ended.
"""


def page(rows: Sequence[Row], names: Sequence[str], grid: Grid, *, hours: float, seed: int, command: str) -> str:
    """Return the whole page."""
    return "\n".join(
        [
            INTRODUCTION.format(hours=hours, seed=seed, command=command),
            "## What must hold of keepa_tokens\n",
            checks_table(of_ours(rows, grid)),
            "## All figures\n",
            COLUMNS,
            figures(rows, names, grid),
        ]
    )


def of_ours(rows: Sequence[Row], grid: Grid) -> Results:
    """Return the library's own results by row."""
    return {row.name: (row, grid[row.name, OURS]) for row in rows if (row.name, OURS) in grid}


def checks_table(results: Results) -> str:
    """Return the checks with the worst figure and whether they hold."""
    lines = ["| check | rows | worst | holds |", "|---|---:|---:|---|"]
    for check in CHECKS:
        failed = check.failures(results)
        verdict = "no: " + "; ".join(failed) if failed else "yes"
        concerned = sum(check.concerns(row) for row, _ in results.values())
        lines.append(f"| {check.name} | {concerned} | {check.worst(results)} | {verdict if concerned else '-'} |")
    return "\n".join(lines) + "\n"


def figures(rows: Sequence[Row], names: Sequence[str], grid: Grid) -> str:
    """Return the table of all figures."""
    lines = [
        "| day | by | minted | spent | wasted | share used | answered | refused | | probes | standstill | recovery |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for place, name in enumerate(names):
            result = grid[row.name, name]
            cells = [
                row.name if place == 0 else "",
                name,
                str(result.minted),
                str(result.spent),
                str(result.wasted),
                f"{100 * result.share_used:.1f}%",
                str(result.paid),
                str(result.refused),
                f"{100 * result.share_refused:.1f}%",
                str(result.probes),
                _duration(result.standstill),
                "" if result.recovery is None else _duration(result.recovery),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "never"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
