"""A chart of some lines over time, in braille: eight dots to a character, so that small steps show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.text import Text

ACROSS: Final = 2
DOWN: Final = 4
BRAILLE: Final = 0x2800
DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
LABEL: Final = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x from 0 to 1, y) in order of x, drawn as steps. A later line's colour covers an earlier one's."""

    points: Sequence[tuple[float, int]]
    style: str


def chart(lines: Iterable[Line], width: int, height: int, low: int, high: int) -> list[Text]:
    """Return `height` rows of `width` characters, with labels for `low`, 0 and `high`."""
    across, down = (width - LABEL - 1) * ACROSS, height * DOWN
    cells: dict[tuple[int, int], tuple[int, str]] = {}

    def level(y: int) -> int:
        return round((high - min(high, max(low, y))) / (high - low) * (down - 1))

    for line in lines:
        for x, first, last in _columns(line.points, across, [level(y) for _, y in line.points]):
            for y in range(min(first, last), max(first, last) + 1):
                place = (y // DOWN, x // ACROSS)
                dots = cells.get(place, (0, ""))[0] | DOTS[y % DOWN][x % ACROSS]
                cells[place] = (dots, line.style)
    zero = level(0) // DOWN
    labels = {zero: "0", 0: str(high), height - 1: str(low)}
    return [_row(row, cells, across // ACROSS, labels.get(row, ""), dotted=row == zero) for row in range(height)]


def _columns(points: Sequence[tuple[float, int]], across: int, levels: list[int]) -> Iterable[tuple[int, int, int]]:
    """Yield columns of dots, each with the levels between which it is filled; gaps go on at the last level."""
    before: tuple[int, int] | None = None
    for (x, _), level in zip(points, levels, strict=True):
        column = min(across - 1, max(0, int(x * across)))
        if before is not None:
            yield from ((between, before[1], before[1]) for between in range(before[0] + 1, column))
        yield column, level if before is None else before[1], level
        before = (column, level)


def _row(row: int, cells: dict[tuple[int, int], tuple[int, str]], width: int, label: str, *, dotted: bool) -> Text:
    text = Text(f"{label:>{LABEL}} ", style="dim", no_wrap=True)
    for column in range(width):
        dots, style = cells.get((row, column), (0, ""))
        if dots:
            text.append(chr(BRAILLE + dots), style=f"not dim {style}")
        else:
            text.append("┈" if dotted else " ")
    return text
