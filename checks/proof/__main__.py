"""Prove what can be proved, explore the small worlds, plant faults, and hold what comes out against the table.

Prints a line a theorem: what it is, how it was checked, what came out, and how long it took. Ends with 1 if anything is
unproved that was proved before, if a theorem is missing, or if a planted fault went unnoticed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checks.page import renew
from checks.proof.runs import Job, Line, as_text, jobs, summary, tables
from checks.proof.table import PLANS, load, stated, unmatched
from checks.proof.worlds import worlds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m checks.proof", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="how many processes run at a time (default: 2)")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="run only the lines with this in them (may be repeated)"
    )
    plans = range(1, len(PLANS) + 1)
    parser.add_argument("--plans", type=int, choices=plans, default=len(PLANS), help="at how many of Keepa's plans")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put what came out into this page")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    table = load()
    short = [
        *unmatched("theorem", table.theorems, stated()),
        *unmatched("world", table.worlds, (world.name for world in worlds())),
    ]
    lines: list[Line] = []
    wanted: list[str] = chosen.only or [""]
    named = [
        job
        for job in jobs(table, chosen.plans)
        if any(text in f"{job.part} {job.name} {job.method}" for text in wanted)
    ]
    for line in run(named, chosen.jobs):
        print(as_text(line, new_part=not lines or lines[-1].part != line.part), flush=True)
        lines.append(line)
        short += line.shortfalls
    worked = sum(line.seconds for line in lines)
    print(f"\n{summary(lines)}: {worked:.0f} s of processor time in {time.monotonic() - began:.0f} s")
    for shortfall in short:
        print(f"FAILED: {shortfall}")
    if chosen.write is not None and not short:
        renew(chosen.write, "proof-page", tables(lines))
    return 1 if short or not lines else 0


def run(chosen: Sequence[Job], processes: int) -> Iterator[Line]:
    """Run the checks of all jobs, so many at a time, and yield each job's line in order."""
    with ThreadPoolExecutor(processes) as pool:
        started = [(job, [pool.submit(check) for check in job.checks]) for job in chosen]
        for job, reports in started:
            yield job.line([report.result() for report in reports])


if __name__ == "__main__":
    sys.exit(main())
