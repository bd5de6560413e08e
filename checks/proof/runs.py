"""All there is to run: the small worlds, the theorems, the planted faults; each a job with what is expected of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from checks.proof.mutants import MUTANTS, Mutant, planted
from checks.proof.solver import Report, Verdict, check, python
from checks.proof.table import PLANS, Expected, Table, shortfalls

__all__ = ["PARTS", "Job", "Line", "explored", "jobs"]

WORLDS, THEOREMS, SEARCHED, REFUTED, PLANTED = PARTS = (
    "Small worlds: every state, faults included",
    "Theorems: confirmed over all paths",
    "Theorems: searched, not confirmed",
    "Refuted, as they must be",
    "Planted faults, each refuted by the check named",
)
_PART_OF: Final = {Verdict.CONFIRMED: THEOREMS, Verdict.SEARCHED: SEARCHED, Verdict.REFUTED: REFUTED}


@dataclass(frozen=True)
class Line:
    """What came of a job: a line of the table that is printed, and in what it fell short."""

    part: str
    name: str
    method: str
    result: str
    seconds: float
    shortfalls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """Checks that make one line, one for each plan, and what is expected of them."""

    part: str
    name: str
    method: str
    expected: Expected
    checks: Sequence[Callable[[], Report]]

    def line(self, reports: Sequence[Report]) -> Line:
        """Return the line for what the checks reported: the worst of it."""
        worst = max(reports, key=lambda report: list(Verdict).index(report.verdict))
        result = f"{worst.verdict}: {worst.words}" if worst.words else str(worst.verdict)
        seconds = sum(report.seconds for report in reports)
        return Line(
            self.part, self.name, self.method, result, seconds, tuple(shortfalls(self.name, self.expected, reports))
        )


def jobs(table: Table, plans: int = len(PLANS)) -> Iterator[Job]:
    """Yield all jobs, in the order of their parts, theorems at so many of the plans that they are stated at."""
    for name, least in table.worlds.items():
        yield Job(WORLDS, name, "worlds", Expected(Verdict.CONFIRMED), [partial(explored, name, least=least)])
    for name, at_all in table.theorems.items():
        expected = replace(at_all, plans=at_all.plans[:plans])
        checks = [partial(check, name, refill=plan, seconds=expected.seconds) for plan in expected.plans]
        yield Job(_PART_OF[expected.verdict], name, _terms(expected.plans), expected, checks)
    for mutant in MUTANTS:
        yield Job(PLANTED, mutant.name, mutant.by, Expected(Verdict.REFUTED), [partial(noticed, mutant, table)])


def _terms(plans: Sequence[int | None]) -> str:
    return "every rate" if plans == (None,) else f"{', '.join(map(str, plans))} per 60.5 s"


def explored(world: str, *, least: int = 0, source: Path | None = None) -> Report:
    """Explore a small world. Fewer states than `least` are a sign that it isn't what it was."""
    output, seconds = python("checks.proof.worlds", world, source=source)
    try:
        count = json.loads(output)
    except ValueError:
        return Report(Verdict.FAILED, output.strip(), seconds)
    if count["broken"]:
        return Report(Verdict.REFUTED, count["broken"], seconds)
    words = f"{count['states']:,} states, {count['steps']:,} steps"
    if count["orders"]:
        words += f", {count['orders']:,} orders"
    if count["states"] < least:
        return Report(Verdict.FAILED, f"{words}: fewer than {least:,} states", seconds)
    return Report(Verdict.CONFIRMED, words, seconds)


def noticed(mutant: Mutant, table: Table) -> Report:
    """Check what must refute a planted fault on the code that has it."""
    try:
        with planted(mutant) as source:
            if mutant.by in table.worlds:
                return explored(mutant.by, source=source)
            expected = table.theorems[mutant.by]
            return check(mutant.by, refill=expected.plans[0], seconds=expected.seconds, source=source)
    except (KeyError, ValueError) as misfit:
        return Report(Verdict.FAILED, str(misfit))
