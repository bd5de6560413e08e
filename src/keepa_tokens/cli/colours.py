"""The colours of what people see: each can be read on white and on black. None tells a thing alone."""

from __future__ import annotations

from typing import Final

from rich.console import Console

GOOD: Final = "color(28)"
BUSY: Final = "color(30)"
CARE: Final = "color(130)"
BAD: Final = "color(160)"


def readable(console: Console) -> Console:
    """Return the console, without colours where it has but 16: their shades are the terminal's own, made for black."""
    console.no_color = console.no_color or console.color_system not in {"256", "truecolor"}
    return console
