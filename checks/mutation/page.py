"""What came of the mutants of the core, as the tables of docs/mutation.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from checks.mutation.judgement import MODULES, Judgement, Mutant, Survivor

__all__ = ["renew", "tables"]

BEGIN: Final = "<!-- `make mutants-page` writes from here -->"
END: Final = "<!-- to here -->"


def renew(path: Path, lines: Iterable[str], mark: str = BEGIN) -> None:
    """Put lines between two marks of a page. A page without them is a ValueError."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: no place for the tables, from {mark} to {END}")
    text = "\n".join(lines)
    path.write_text(f"{before}{mark}\n\n{text}\n{END}{after}", encoding="utf-8")


def tables(mutants: Sequence[Mutant], judgement: Judgement) -> Iterator[str]:
    """Yield the counts of each module, and every survivor that can be told from the code, with its reason."""
    yield from ("| module | mutants | equivalent | survived | noticed |", "|---|---:|---:|---:|---:|")
    made = Counter(mutant.module for mutant in mutants)
    same = Counter(_module(row.place) for row in judgement.listed if row.equivalent)
    missed = Counter(_module(row.place) for row in judgement.listed if not row.equivalent)
    missed.update(mutant.module for mutant in judgement.unlisted)
    for module in (*(module for module in MODULES if made[module]), ""):
        all_made, all_same, all_missed = (
            (count[module] if module else count.total()) for count in (made, same, missed)
        )
        share = (all_made - all_same - all_missed) / max(1, all_made - all_same)
        name = f"`{module}`" if module else "together"
        yield f"| {name} | {all_made} | {all_same} | {all_missed} | {share:.1%} |"
    yield ""
    told = [row for row in judgement.listed if not row.equivalent]
    yield from _survivors("These survive and could be told from the code:", told)
    yield from _survivors("These can't be told from it:", [row for row in judgement.listed if row.equivalent])


def _survivors(title: str, rows: Sequence[Survivor]) -> Iterator[str]:
    if not rows:
        return
    yield from (title, "", "| where | code | becomes | why |", "|---|---|---|---|")
    for row in rows:
        yield f"| `{row.place}` | {_code(row.was)} | {_code(row.becomes)} | {row.reason} |"
    yield ""


def _code(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`{line}`" if line else "(nothing)"


def _module(place: str) -> str:
    return next(module for module in MODULES if place.startswith(f"{module}."))
