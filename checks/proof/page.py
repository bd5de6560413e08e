"""What came out, as text and as the tables of docs/proof.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from checks.proof.runs import Line

__all__ = ["as_text", "renew", "summary"]

BEGIN: Final = "<!-- `make proof-page` writes from here -->"
END: Final = "<!-- to here -->"
LONGEST: Final = 200
"""Characters of a result: a world's counterexample is a whole state, told in full where the run fails."""


def as_text(line: Line, *, new_part: bool) -> str:
    """Return a line to be printed, with the title of its part before the first one."""
    title = f"\n== {line.part} ==\n" if new_part else ""
    return f"{title}{line.name:65} {line.method:36} {line.seconds:6.1f} s  {_short(line.result)}"


def summary(lines: Sequence[Line]) -> str:
    """Return how many lines there are of each part."""
    parts = {part: len(list(group)) for part, group in groupby(lines, key=lambda line: line.part)}
    return ", ".join(f"{count} {part.partition(':')[0].partition(',')[0].lower()}" for part, count in parts.items())


def renew(path: Path, lines: Iterable[Line]) -> None:
    """Put the tables for `lines` between the two marks of a page. A page without them is a ValueError."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: no place for the tables, from {BEGIN} to {END}")
    tables = "\n".join(_tables(lines))
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")


def _tables(lines: Iterable[Line]) -> Iterator[str]:
    for part, group in groupby(lines, key=lambda line: line.part):
        yield from (f"### {part}", "", "| what | how | result | s |", "|---|---|---|---:|")
        for line in group:
            result = _short(line.result).replace("|", "\\|")
            yield f"| {line.name} | {line.method} | {result} | {line.seconds:.0f} |"
        yield ""


def _short(result: str) -> str:
    return result if len(result) <= LONGEST else f"{result[:LONGEST]} ..."
