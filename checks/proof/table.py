"""What must come out: the theorems that are stated, the committed table, and what came out held against it."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from checks.proof.solver import Report, Verdict

PLANS: Final = (5, 20, 25, 60)
"""Keepa's plans, in tokens a step."""

THEOREMS: Final = Path(__file__).with_name("theorems")
TABLE: Final = Path(__file__).with_name("expected.toml")


def stated(folder: Path = THEOREMS) -> tuple[str, ...]:
    """Return the names of all theorems that the files in `folder` state, by their text alone: MODULE.FUNCTION."""
    return tuple(
        f"{source.stem}.{node.name}"
        for source in sorted(folder.glob("*.py"))
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and "\npost:" in (ast.get_docstring(node) or "")
    )


@dataclass(frozen=True)
class Expected:
    """What must come of one job.

    plans: those at which a theorem is checked, in tokens a step; (None,): it names none. seconds: of processor time,
    for each.
    """

    verdict: Verdict
    plans: tuple[int | None, ...] = (None,)
    seconds: float = 0.0


@dataclass(frozen=True)
class Table:
    """The committed table. worlds: by name, the least number of states that a world must be found to have."""

    theorems: Mapping[str, Expected]
    worlds: Mapping[str, int]


def load(path: Path = TABLE) -> Table:
    """Return the committed table. A theorem that it names twice, or a number of others than it says: a ValueError."""
    table = tomllib.loads(path.read_text())
    confirmed = table["confirmed"]
    named = Counter([*confirmed["every_rate"], *confirmed["plans"], *table["refuted"]])
    others = [name for name in stated() if name not in named]
    if max(named.values()) > 1:
        raise ValueError(f"in the table twice: {', '.join(name for name, count in named.items() if count > 1)}")
    if len(others) != confirmed["one_plan"]:
        raise ValueError(f"{len(others)} theorems that {path.name} doesn't name, not {confirmed['one_plan']}")
    at = [(confirmed["every_rate"], (None,)), (confirmed["plans"], PLANS), (others, PLANS[:1])]
    rows = [(name, Verdict.CONFIRMED, plans) for names, plans in at for name in names]
    rows += [(name, Verdict.REFUTED, PLANS[:1]) for name in table["refuted"]]
    return Table({name: Expected(verdict, plans, table["seconds"]) for name, verdict, plans in rows}, table["worlds"])


def unmatched(kind: str, listed: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return what only one of the table and the code knows."""
    expected, found = set(listed), set(there)
    return [
        *(f"{name}: in the table, but there is no such {kind}" for name in sorted(expected - found)),
        *(f"{name}: a {kind} that is not in the table" for name in sorted(found - expected)),
    ]


def shortfalls(name: str, expected: Expected, reports: Sequence[Report]) -> list[str]:
    """Return in what the reports on one job, one for each plan, fall short of the table."""
    if len(reports) != len(expected.plans):
        return [f"{name}: {len(reports)} of {len(expected.plans)} checks ran"]
    return [
        f"{name}{'' if plan is None else f' at {plan}'}: {report.verdict}, should be {expected.verdict}: {report.words}"
        for plan, report in zip(expected.plans, reports, strict=True)
        if report.verdict is not expected.verdict
    ]
