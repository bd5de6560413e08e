"""All there is to run: the small worlds, the theorems, the planted faults; each a job with what is expected of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from checks.mutation.judgement import Mutant, by_hand
from checks.page import table as as_table
from checks.proof.solver import SOURCE, Report, Verdict, check, python
from checks.proof.table import PLANS, Expected, Table, shortfalls
from checks.proof.worlds import Count

WORLDS, THEOREMS, REFUTED, PLANTED = PARTS = (
    "Small worlds: every state, faults included",
    "Theorems: confirmed over all paths",
    "Refuted, as they must be",
    "Planted faults, each refuted by the check named",
)
_PART_OF: Final = {Verdict.CONFIRMED: THEOREMS, Verdict.REFUTED: REFUTED}

CANT_RUN: Final = ("NameError", "AttributeError", "ImportError")

LONGEST: Final = 120
"""Characters of a result: a world's counterexample is a whole state, told in full where the run fails."""


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
    for mutant in by_hand():
        yield Job(PLANTED, mutant.name, mutant.by, Expected(Verdict.REFUTED), [partial(noticed, mutant, table)])


def _terms(plans: Sequence[int | None]) -> str:
    return "every rate" if plans == (None,) else f"{', '.join(map(str, plans))} per 60.5 s"


def explored(world: str, *, least: int = 0, source: Path | None = None) -> Report:
    """Explore a small world. Fewer states than `least` are a sign that it isn't what it was."""
    output, seconds = python("checks.proof.worlds", world, source=source)
    try:
        count = Count(**json.loads(output))
    except ValueError:
        return Report(Verdict.FAILED, output.strip(), seconds)
    if count.broken:
        return Report(Verdict.REFUTED, count.broken, seconds)
    if count.states < least:
        return Report(Verdict.FAILED, f"{count}: fewer than {least:,} states", seconds)
    return Report(Verdict.CONFIRMED, str(count), seconds)


def noticed(mutant: Mutant, table: Table) -> Report:
    """Check what must refute a planted fault on the code that has it."""
    try:
        with planted(mutant) as source:
            if mutant.by in table.worlds:
                return explored(mutant.by, source=source)
            expected = table.theorems[mutant.by]
            report = check(mutant.by, refill=expected.plans[0], seconds=expected.seconds, source=source)
            # Code that can't run at all is no fault: whatever runs it would notice.
            return replace(report, verdict=Verdict.FAILED) if report.words.startswith(CANT_RUN) else report
    except (KeyError, ValueError) as misfit:
        return Report(Verdict.FAILED, str(misfit))


@contextmanager
def planted(mutant: Mutant, source: Path = SOURCE) -> Iterator[Path]:
    """Yield a folder to import the package from that has the fault. A fault that no longer applies is a ValueError."""
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        copy = Path(folder)
        shutil.copytree(source / "keepa_tokens", copy / "keepa_tokens", ignore=shutil.ignore_patterns("__pycache__"))
        module = copy / "keepa_tokens" / mutant.place
        module.write_text(mutant.of(module.read_text(encoding="utf-8")), encoding="utf-8")
        yield copy


# --- what came out, as text and as the tables of docs/evidence/proof.md


def as_text(line: Line, *, new_part: bool) -> str:
    """Return a line to be printed, with the title of its part before the first one."""
    title = f"\n== {line.part} ==\n" if new_part else ""
    return f"{title}{line.name:65} {line.method:36} {line.seconds:6.1f} s  {_short(line.result)}"


def summary(lines: Sequence[Line]) -> str:
    """Return how many lines there are of each part."""
    parts = {part: len(list(group)) for part, group in groupby(lines, key=lambda line: line.part)}
    return ", ".join(f"{count} {part.partition(':')[0].partition(',')[0].lower()}" for part, count in parts.items())


def tables(lines: Iterable[Line]) -> Iterator[str]:
    """Yield a table for each part."""
    for part, group in groupby(lines, key=lambda line: line.part):
        yield from (f"### {part}", "")
        if part == THEOREMS:
            yield from as_table(("about", "how", "confirmed", "s:"), _by_subject(group))
            continue
        rows = ((line.name, line.method, _short(line.result), f"{line.seconds:.0f}") for line in group)
        yield from as_table(("what", "how", "result", "s:"), rows)


def _by_subject(lines: Iterable[Line]) -> Iterator[tuple[str, str, str, str]]:
    """Put the theorems of a module that were confirmed alike into one row."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.name.partition(".")[0], line.method), []).append(line)
    for (subject, method), alike in groups.items():
        names = ", ".join(line.name.partition(".")[2] for line in alike)
        yield subject, method, names, f"{sum(line.seconds for line in alike):.0f}"


def _short(result: str) -> str:
    result = result.removesuffix(" (which returns False)")
    return result if len(result) <= LONGEST else f"{result[:LONGEST]} ..."
