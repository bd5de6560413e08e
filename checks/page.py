"""The one writer of pages: what a command measured goes between two marks of a page whose words are written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

END: Final = "<!-- to here -->"


def begin(command: str) -> str:
    """Return the mark from which on a command writes."""
    return f"<!-- `make {command}` writes from here -->"


def renew(path: Path, command: str, lines: Iterable[str]) -> None:
    """Put lines in place of what a command wrote before. A page without its marks is a ValueError."""
    before, _, after = _parts(path, command)
    path.write_text(f"{before}{begin(command)}\n\n{_joined(lines)}\n{END}{after}", encoding="utf-8")


def says(path: Path, command: str, lines: Iterable[str]) -> bool:
    """Whether a page says just this."""
    return _parts(path, command)[1].strip() == _joined(lines).strip()


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield a table, and an empty line. A head that ends with a colon is of a column of numbers."""
    heads = list(heads)
    yield _row(head.removesuffix(":") for head in heads)
    yield f"|{'|'.join('---:' if head.endswith(':') else '---' for head in heads)}|"
    yield from map(_row, rows)
    yield ""


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _parts(path: Path, command: str) -> tuple[str, str, str]:
    before, begun, rest = path.read_text(encoding="utf-8").partition(begin(command))
    written, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{path}: no place for what `make {command}` writes, from {begin(command)} to {END}")
    return before, written, after
