"""The chart: two tables of small bars, drawn as plain SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from checks.benchmarks.daysim.contenders import OURS
from checks.benchmarks.daysim.report import Grid
from checks.benchmarks.daysim.rows import Row

LABELS: Final = 230
CELL: Final = 106
LINE: Final = 22
TOP: Final = 74
GAP: Final = 28
BAR: Final = 48
GREEN, GREY, RED, INK, PALE = "#1a7f5a", "#8a94a0", "#c2453a", "#1f2933", "#eef1f4"


def svg(rows: Sequence[Row], names: Sequence[str], grid: Grid) -> str:
    """Return the chart of share used and share refused, a line a row, in the file too, a column a contender."""
    panel = CELL * len(names)
    width = LABELS + 2 * panel + GAP + 16
    height = TOP + LINE * len(rows) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for left, title in ((LABELS, "tokens used (of what was minted)"), (LABELS + panel + GAP, "paid calls refused")):
        heads = (_text(left + place * CELL, 56, name, bold=name == OURS) for place, name in enumerate(names))
        lines.append("".join([_text(left, 24, title, size=15, bold=True), *heads]))
    for number, row in enumerate(rows):
        y = TOP + number * LINE
        parts = [f'<rect x="8" y="{y}" width="{width - 16}" height="{LINE}" fill="{PALE}"/>'] if number % 2 == 0 else []
        parts.append(_text(16, y + 15, row.name))
        for place, name in enumerate(names):
            result = grid[row.name, name]
            x = LABELS + place * CELL
            parts.append(_bar(x, y, result.share_used, GREEN if result.share_used >= 0.99 else GREY))
            refused = GREEN if result.share_refused <= 0.01 else RED
            parts.append(_bar(x + panel + GAP, y, result.share_refused, refused))
        lines.append("".join(parts))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bar(x: int, y: int, share: float, colour: str) -> str:
    bar = f'<rect x="{x}" y="{y + 6}" width="{max(1.0, BAR * share):.1f}" height="10" fill="{colour}"/>'
    return bar + _text(x + BAR + 4, y + 15, f"{100 * share:.1f}%", size=11)


def _text(x: int, y: int, text: str, *, size: int = 12, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{INK}"{weight}>{escape(text)}</text>'
