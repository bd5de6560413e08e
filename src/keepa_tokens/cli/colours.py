"""The colours of the output. Each can be read on white and on black; no fact is shown by colour alone."""

from __future__ import annotations

from typing import Final

from rich.console import Console

GOOD: Final = "color(28)"
BUSY: Final = "color(30)"
CARE: Final = "color(130)"
BAD: Final = "color(160)"


def readable(console: Console) -> Console:
    """Return the console; one with 16 colours gets none, as their shades are the terminal's, made for black."""
    console.no_color = console.no_color or console.color_system not in {"256", "truecolor"}
    return console
