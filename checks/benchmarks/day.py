"""A day of ingestion in virtual time: the library beside its peers, and what must hold of it.

`python -m checks.benchmarks.day` runs the whole grid, `--rows TEXT` some rows. Ends with exit code 1 if a check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from checks.benchmarks.daysim.chart import svg
from checks.benchmarks.daysim.checks import failures
from checks.benchmarks.daysim.contenders import ALL, run
from checks.benchmarks.daysim.report import checks_table, figures, of_ours, tables
from checks.benchmarks.daysim.rows import ROWS
from checks.benchmarks.daysim.world import Result
from checks.page import renew


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the days, print the tables, write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows with this in their name")
    parser.add_argument("--by", default="", help="only contenders with this in their name")
    parser.add_argument("--hours", type=float, default=24.0, help="length of the day (default: 24)")
    parser.add_argument("--seed", type=int, default=1, help="of costs, latencies and events (default: 1)")
    parser.add_argument("--write", type=Path, help="the folder that benchmark.md and benchmark.svg go to")
    options = parser.parse_args(arguments)
    rows = [replace(row, seed=options.seed) for row in ROWS if options.rows in row.name]
    names = [name for name in ALL if options.by in name]
    grid: dict[tuple[str, str], Result] = {}
    for number, row in enumerate(rows, 1):
        print(f"{number}/{len(rows)} {row.name}", file=sys.stderr, flush=True)
        for name in names:
            grid[row.name, name] = run(name, row, options.hours)
    ours = of_ours(rows, grid)
    print("\n".join([*figures(rows, names, grid), *checks_table(ours)]))
    if options.write is not None:
        renew(options.write / "benchmark.md", "bench-day", tables(rows, names, grid))
        (options.write / "benchmark.svg").write_text(svg(rows, names, grid), encoding="utf-8")
    failed = failures(ours)
    for failure in failed:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
