"""The live picture of `demo` and `watch`: curves over time, lanes with bars, a box with what matters now.

A `Picture` has the content, and `draw` makes it fit a terminal. Nothing is shown by colour alone: curves differ by
their dots as well, so that NO_COLOR loses nothing.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from .colours import readable

LEAST_WIDTH: Final = 72
LEAST_HEIGHT: Final = 20
WIDEST: Final = 110
CHART_ROWS: Final = (4, 12)
BAR: Final = (6, 40)
NAME: Final = (12, 20)
WORDS: Final = 24
LABEL: Final = 5

BRAILLE: Final = 0x2800
ACROSS: Final = 2
DOWN: Final = 4
DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (x from 0 to 1, y) in order of x, drawn as steps. A later curve covers an earlier one's colour.

    dash: so many columns of dots are drawn, then so many left out. latest: the latest value, for the legend.
    """

    name: str
    points: Sequence[tuple[float, int]]
    style: str
    latest: str
    dash: tuple[int, int] = (1, 0)

    @property
    def sign(self) -> str:
        """The curve's sign in the legend."""
        drawn, left_out = self.dash
        return "━━━" if not left_out else "━ ━" if drawn > 1 else "···"


@dataclass(frozen=True, slots=True)
class Lane:
    """A line of the picture. words: what goes on. part: how far, from 0 to 1, as a bar. left: how long still."""

    name: str
    words: str
    style: str = ""
    part: float | None = None
    left: str = ""
    totals: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of the picture at one moment. low, high: of the chart, 0 at most and above 0."""

    title: str
    about: str
    aside: str
    curves: Sequence[Curve]
    low: int
    high: int
    beside_legend: str
    facts: Sequence[str]
    lanes: Sequence[Lane]
    box_title: str
    box: Sequence[str]
    box_style: str = ""


def fits(out: TextIO) -> bool:
    """Return whether a picture can be drawn to `out`: a terminal that is large enough and can show its characters."""
    if not out.isatty() or os.environ.get("TERM", "dumb") in {"", "dumb", "unknown"}:
        return False
    console = Console(file=out)
    return console.encoding.startswith("utf") and console.width >= LEAST_WIDTH and console.height >= LEAST_HEIGHT


class Screen:
    """Draws pictures on the terminal's alternate screen; at the end it prints the last chart to the normal one."""

    def __init__(self) -> None:
        self._console = readable(Console())
        # It has no thread of its own: the command calls `show` for each picture.
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._latest: Picture | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if kind is None and self._latest is not None:
            width = min(WIDEST, self._console.width)
            self._console.print(Group(*chart(self._latest, width, 2 * CHART_ROWS[0]), _legend(self._latest, width)))

    def show(self, picture: Picture) -> None:
        """Draw a picture over the last one."""
        self._latest = picture
        width, height = min(WIDEST, self._console.width), self._console.height
        self._live.update(draw(picture, width, height), refresh=True)


def draw(picture: Picture, width: int, height: int) -> RenderableType:
    """Return the picture in at most `width` by `height` characters."""
    title = Text.assemble((f" {picture.title}", "bold"), (f"  {picture.about}", "dim"))
    title = _ends(title, Text(f"{picture.aside} ", "dim"), width)
    facts = [Text(f" {line}", "dim") for text in picture.facts for line in textwrap.wrap(text, width - 2)]
    box, box_rows = _box(picture, width)
    least, most = CHART_ROWS
    room = height - 2 - len(facts) - box_rows  # for the chart, the lanes and blank lines between
    blank = [Text("")] if room - 3 - least >= len(picture.lanes) else []
    room -= 3 * len(blank)
    shown = max(1, min(len(picture.lanes), room - least))
    rows = max(least, min(most, room - shown))
    curves = [*chart(picture, width, rows), _legend(picture, width)]
    return Group(title, *blank, *curves, *blank, *_lanes(picture.lanes, width, shown), *blank, *facts, box)


def bar(part: float, width: int) -> str:
    """Return a bar, full to `part` of its width."""
    full = round(max(0.0, min(1.0, part)) * width)
    return "█" * full + "░" * (width - full)


def _legend(picture: Picture, width: int) -> Text:
    left = Text(" " * (LABEL + 1))
    for curve in picture.curves:
        left.append(f"{curve.sign} ", curve.style).append(f"{curve.name} ").append(f"{curve.latest}  ", "bold")
    beside = Text(f"{picture.beside_legend} ", "dim")
    return _ends(left, beside if left.cell_len + beside.cell_len <= width else Text(""), width)


def _lanes(lanes: Sequence[Lane], width: int, shown: int) -> list[Text]:
    least, most = NAME
    columns = (
        max([least, *(min(most, len(lane.name)) for lane in lanes)]),
        max([WORDS, *(len(lane.words) for lane in lanes)]),
    )
    if shown >= len(lanes) or shown == 1:
        return [_lane(lane, width, *columns) for lane in lanes[:shown]]
    lines = [_lane(lane, width, *columns) for lane in lanes[: shown - 1]]
    return [*lines, Text(f" and {len(lanes) - len(lines)} more", "dim")]


def _lane(lane: Lane, width: int, for_name: int, for_words: int) -> Text:
    name = Text.assemble((f" {lane.name}", "bold"))
    name.truncate(for_name + 1, overflow="ellipsis", pad=True)
    text = name.append(" ").append(f"{lane.words:<{for_words}}", lane.style)
    if lane.part is not None:
        room = width - for_name - for_words - len(lane.totals) - 12
        text.append(f" {bar(lane.part, max(BAR[0], min(BAR[1], room)))}", lane.style)
    text.append(f" {lane.left:>5}")
    return _ends(text, Text(f"{lane.totals} ", "dim"), width)


def _box(picture: Picture, width: int) -> tuple[Panel, int]:
    """Return the box and its number of rows; its sentences wrap and are never cut."""
    lines = [line for text in picture.box for line in textwrap.wrap(text, width - 4, subsequent_indent="  ")]
    style, title = picture.box_style, picture.box_title
    return Panel("\n".join(lines), title=title, title_align="left", border_style=style, width=width), len(lines) + 2


def _ends(left: Text, right: Text, width: int) -> Text:
    """Return one line with `left` and `right` at its ends; a `left` that is too long is cut."""
    left.truncate(max(0, width - right.cell_len), overflow="ellipsis", pad=True)
    return left.append_text(right)


def chart(picture: Picture, width: int, height: int) -> list[Text]:
    """Return the curves in braille, eight dots to a character, with labels for the lowest, 0 and the highest value."""
    low, high = picture.low, picture.high
    down = height * DOWN
    cells: dict[tuple[int, int], tuple[int, str]] = {}

    def level(y: int) -> int:
        return round((high - min(high, max(low, y))) / (high - low) * (down - 1))

    zero = level(0) // DOWN
    labels = {zero: "0", 0: f"{high:,}", height - 1: f"{low:,}"}
    room = max(LABEL, *map(len, labels.values()))
    across = (width - room - 2) * ACROSS
    for curve in picture.curves:
        drawn, left_out = curve.dash
        for x, first, last in _columns([(x, level(y)) for x, y in curve.points], across):
            if x % (drawn + left_out) >= drawn and first == last:
                continue
            for y in range(min(first, last), max(first, last) + 1):
                place = (y // DOWN, x // ACROSS)
                dots = cells.get(place, (0, ""))[0] | DOTS[y % DOWN][x % ACROSS]
                cells[place] = (dots, curve.style)
    beside = [f"{labels.get(row, ''):>{room}} " for row in range(height)]
    return [_row(row, cells, across // ACROSS, label, dotted=row == zero) for row, label in enumerate(beside)]


def _columns(points: Iterable[tuple[float, int]], across: int) -> Iterator[tuple[int, int, int]]:
    """Yield each column of dots with the two levels between which it is filled; a gap goes on at the last level."""
    before: tuple[int, int] | None = None
    for x, level in points:
        column = min(across - 1, max(0, int(x * across)))
        if before is not None:
            yield from ((between, before[1], before[1]) for between in range(before[0] + 1, column))
        yield column, level if before is None else before[1], level
        before = (column, level)


def _row(row: int, cells: dict[tuple[int, int], tuple[int, str]], width: int, label: str, *, dotted: bool) -> Text:
    text = Text(label, style="dim", no_wrap=True)
    for column in range(width):
        dots, style = cells.get((row, column), (0, ""))
        if dots:
            text.append(chr(BRAILLE + dots), style=f"not dim {style}")
        else:
            text.append("┈" if dotted else " ")
    return text
