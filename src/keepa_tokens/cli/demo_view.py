"""The demo in a terminal: one calm picture, drawn anew some ten times a second."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from .chart import LABEL, Line, chart
from .demo_scene import Chapter, Doing, Row, Scene
from .demo_words import count, duration, new_rule, old_rule, prologue, story, waits
from .demo_worker import REFILL_RATE, Note

OURS: Final = "cyan"
SERVER: Final = "green"
OLD: Final = "red"

LEAST_WIDTH: Final = 72
LEAST_HEIGHT: Final = 20
WIDEST: Final = 110
AROUND_BAR: Final = 67  # columns beside a worker's bar
LONGEST_BAR: Final = 40
AROUND: Final = 12  # rows beside the chart and the workers
CHART_ROWS: Final = (4, 12)
LOW: Final = -100
HIGH: Final = 250
HEADROOM: Final = 50


def fits(out: TextIO) -> bool:
    """Return whether the picture can be drawn there: a terminal, large enough, that knows its letters."""
    if not out.isatty() or os.environ.get("TERM", "dumb") in {"", "dumb", "unknown"}:
        return False
    console = Console(file=out)
    return console.encoding.startswith("utf") and console.width >= LEAST_WIDTH and console.height >= LEAST_HEIGHT


class LiveShow:
    """Draws the scene on a screen of its own, which is gone afterwards."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        # No thread of its own: the run says when there is a picture to draw.
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._latest: Scene | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if kind is None and self._latest is not None:  # the screen is gone, the chart stays
            width = min(WIDEST, self._console.width)
            self._console.print(Group(*_chart(self._latest, width, CHART_ROWS[0] * 2), _legend(self._latest, width)))

    def note(self, scene: Scene, note: Note) -> None:
        """Draw nothing: the next picture shows it."""

    def chapter(self, scene: Scene) -> None:
        """Draw the scene."""
        self.frame(scene)

    def frame(self, scene: Scene) -> None:
        """Draw the scene."""
        self._latest = scene
        width, height = min(WIDEST, self._console.width), self._console.height
        self._live.update(picture(scene, width, height), refresh=True)


def picture(scene: Scene, width: int, height: int) -> RenderableType:
    """Return the scene as a picture of at most `width` by `height` characters."""
    least, most = CHART_ROWS
    shown = max(1, min(len(scene.rows), height - AROUND - least))
    rows = max(least, min(most, height - AROUND - shown))
    return Group(
        _title(scene, width),
        Text(""),
        *_chart(scene, width, rows),
        _legend(scene, width),
        _apart(scene, width),
        Text(""),
        *_workers(scene, width, shown),
        Text(""),
        _counters(scene, width),
        _fault(scene, width),
    )


def _title(scene: Scene, width: int) -> Text:
    settings = scene.settings
    left = Text.assemble((" keepa-tokens demo", "bold"), (f"  {REFILL_RATE} tokens a minute", "dim"))
    right = Text.assemble(
        ("server clock ", "dim"),
        duration(scene.now_us // 1_000_000),
        (f"  {settings.speed:g}x  ", "dim"),
        (f"{scene.real_seconds:.0f} of {max(settings.seconds, scene.real_seconds):.0f} s ", "dim"),
    )
    return _ends(left, right, width)


def _chart(scene: Scene, width: int, height: int) -> list[Text]:
    span = max(scene.settings.seconds * scene.settings.speed * 1_000_000, scene.now_us, 1)
    high = max([HIGH, *(moment.truth for moment in scene.history)])
    lines = [
        Line([(moment.at_us / span, moment.truth) for moment in scene.history], SERVER),
        Line([(m.at_us / span, m.projection) for m in scene.history if m.projection is not None], OURS),
        Line([(moment.at_us / span, moment.old) for moment in scene.history if moment.old is not None], OLD),
    ]
    return chart(lines, width - 1, height, LOW, -(-high // HEADROOM) * HEADROOM)


def _legend(scene: Scene, width: int) -> Text:
    latest, old = scene.latest, scene.old_balance()
    projection = "unknown" if latest is None or latest.projection is None else str(latest.projection)
    left = Text(" " * (LABEL + 1), no_wrap=True)
    left.append("━ ", OURS).append("projection ").append(f"{projection:<9}", f"bold {OURS}")
    left.append("━ ", SERVER).append("server ").append(f"{'' if latest is None else latest.truth:<6}", f"bold {SERVER}")
    if old is not None:
        left.append("━ ", OLD).append("old rule ").append(str(old), f"bold {OLD}")
    return _ends(left, Text.assemble(("next refill ", "dim"), f"{duration(scene.next_refill):>4} "), width)


def _apart(scene: Scene, width: int) -> Text:
    latest, meter = scene.latest, scene.meter
    text = Text(" " * (LABEL + 1), no_wrap=True)
    if latest is not None:
        text.append("in flight ", "dim").append(f"{latest.in_flight:<4}", "bold" if latest.in_flight else "")
        text.append("apart ", "dim").append(f"{latest.apart:<4}", "bold" if latest.apart else "")
    text.append("at worst ", "dim").append(str(meter.worst.apart))
    text.append(f" of {meter.worst.allowed} allowed", "dim")
    if meter.quiet and meter.broken():
        return _ends(text, Text("a bound is broken ", "bold red"), width)
    return _ends(text, Text("never too high " if meter.quiet else "", "dim"), width)


def _workers(scene: Scene, width: int, shown: int) -> list[Text]:
    hidden = len(scene.rows) - shown
    if hidden <= 0:
        return [_worker(row, scene.now_us, width) for row in scene.rows]
    lines = [_worker(row, scene.now_us, width) for row in scene.rows[: shown - 1]]
    return [*lines, Text(f" and {count(hidden + 1, 'more', 'more')}", "dim")]


def _worker(row: Row, now_us: int, width: int) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    text.append(f" {row.name:<11}", "bold")
    totals = Text.assemble((f"{row.calls:>3} calls {row.spent:>4} tokens ", "dim"))
    match row.doing:
        case Doing.WAITING:
            left_us = None if row.due_us is None else max(0, row.due_us - now_us)
            text.append(f"{f'waits for {row.wanted}: {row.reason}':<25}", "yellow")
            text.append_text(_bar(row, now_us, min(LONGEST_BAR, width - AROUND_BAR)))
            text.append(f" {'?' if left_us is None else duration(left_us / 1_000_000):>5}")
        case Doing.CALLING:
            text.append(f"calls for {row.job}", OURS)
        case Doing.RESTING:
            text.append(f"stores {row.job}" if row.calls else "starts", "dim")
    return _ends(text, totals, width)


def _bar(row: Row, now_us: int, width: int) -> Text:
    part = 0.0
    if row.due_us is not None and row.due_us > row.since_us:
        part = min(1.0, (now_us - row.since_us) / (row.due_us - row.since_us))
    full = round(part * width)
    return Text.assemble(("━" * full, "yellow"), ("─" * (width - full), "dim"))


def _counters(scene: Scene, width: int) -> Text:
    left = Text(" ", no_wrap=True)
    facts = [
        ("grants", str(scene.grants)),
        ("tokens", str(scene.spent)),
        ("waits", waits(scene)),
        ("server refused", str(scene.refused)),
        ("probes", str(scene.probes)),
    ]
    for place, (name, value) in enumerate(facts):
        left.append(f"{'  ' if place else ''}{name} ", "dim").append(value, "bold")
    return _ends(left, Text(""), width)


def _fault(scene: Scene, width: int) -> Panel:
    fault = scene.fault
    if fault is None:
        lines = [Text(words, "dim", no_wrap=True) for words in prologue(scene)]
        style = "dim" if scene.chapter is Chapter.INGESTING else "yellow"
    else:
        balance = "?" if scene.latest is None or scene.latest.projection is None else scene.latest.projection
        lines = [
            Text.assemble(
                ("at the fault  ", "dim"),
                f"server {fault.truth}, stored balance {fault.balance}, time of the last refill: ",
                ("lost", "bold"),
            ),
            Text.assemble(("this library  ", OURS), (f"{balance:>4}", "bold"), f"  {new_rule(scene)}"),
            Text.assemble(("the old rule  ", OLD), (f"{scene.old_balance():>4}", "bold"), f"  {old_rule(scene)}"),
        ]
        style = "yellow" if fault.took is None else "green"
    body = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
    return Panel(body, title=Text(story(scene), "bold"), title_align="left", border_style=style, width=width)


def _ends(left: Text, right: Text, width: int) -> Text:
    """Return one line with `left` and `right` at its ends; what is too long is cut."""
    room = width - right.cell_len
    left.truncate(room, overflow="ellipsis", pad=True)
    line = left.append_text(right)
    line.no_wrap = True
    return line
