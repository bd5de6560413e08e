"""What must come out: the theorems that are stated, the committed table, and what came out held against it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from checks.proof.solver import Report, Verdict

__all__ = ["PLANS", "Expected", "Table", "Theorem", "load", "shortfalls", "stated", "unmatched"]

PLANS: Final = (5, 20, 25, 60)
"""Keepa's plans, in tokens a step."""

THEOREMS: Final = Path(__file__).with_name("theorems")
TABLE: Final = Path(__file__).with_name("expected.toml")


@dataclass(frozen=True)
class Theorem:
    """A function with a postcondition: `name` is its module's and its own, `says` its docstring's first sentence."""

    name: str
    says: str


def stated(folder: Path = THEOREMS) -> tuple[Theorem, ...]:
    """Return every theorem that the files in `folder` state, by their text alone."""
    return tuple(
        Theorem(f"{source.stem}.{node.name}", says.partition("\n")[0])
        for source in sorted(folder.glob("*.py"))
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and "\npost:" in (says := ast.get_docstring(node) or "")
    )


@dataclass(frozen=True)
class Expected:
    """What must come of one job.

    plans: those at which a theorem is checked, in tokens a step; (None,): it names none. seconds: of processor time,
    for each. because: why no more is expected.
    """

    verdict: Verdict
    plans: tuple[int | None, ...] = (None,)
    seconds: float = 0.0
    because: str = ""


@dataclass(frozen=True)
class Table:
    """The committed table. worlds: by name, the least number of states that a world must be found to have."""

    theorems: Mapping[str, Expected]
    worlds: Mapping[str, int]
    seconds: float


def load(path: Path = TABLE) -> Table:
    """Return the committed table. A theorem that it names twice is a ValueError."""
    table = tomllib.loads(path.read_text())
    seconds, confirmed = table["seconds"], table["confirmed"]
    rows = [
        *((name, Expected(Verdict.CONFIRMED, (None,), seconds)) for name in confirmed["every_rate"]),
        *((name, Expected(Verdict.CONFIRMED, PLANS, seconds)) for name in confirmed["plans"]),
        *((name, Expected(Verdict.CONFIRMED, PLANS[:1], seconds)) for name in confirmed["one_plan"]),
        *(
            (name, Expected(Verdict.SEARCHED, PLANS[:1] if row["one_plan"] else (None,), row["seconds"], row["why"]))
            for name, row in table["searched"].items()
        ),
        *((name, Expected(Verdict.REFUTED, PLANS[:1], seconds, why)) for name, why in table["refuted"].items()),
    ]
    names = [name for name, _ in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"in the table twice: {', '.join(twice)}")
    return Table(dict(rows), table["worlds"], seconds)


def unmatched(kind: str, listed: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return what only one of the table and the code knows."""
    expected, found = set(listed), set(there)
    return [
        *(f"{name}: in the table, but there is no such {kind}" for name in sorted(expected - found)),
        *(f"{name}: a {kind} that is not in the table" for name in sorted(found - expected)),
    ]


def shortfalls(name: str, expected: Expected, reports: Sequence[Report]) -> list[str]:
    """Return in what the reports on one job, one for each plan, fall short of the table.

    More than was expected is no shortfall: what is only searched may come out confirmed.
    """
    if len(reports) != len(expected.plans):
        return [f"{name}: {len(reports)} of {len(expected.plans)} checks ran"]
    enough = {expected.verdict, Verdict.CONFIRMED} if expected.verdict is Verdict.SEARCHED else {expected.verdict}
    return [
        f"{name}{'' if plan is None else f' at {plan}'}: {report.verdict}, should be {expected.verdict}: {report.words}"
        for plan, report in zip(expected.plans, reports, strict=True)
        if report.verdict not in enough
    ]
