"""Numbers and times as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from ..units import one_line

LONGEST: Final = 10_000
"""The most characters of a line: a text that others have stored may be longer."""

MOST: Final = 20
"""The most names in a line."""


def duration(seconds: float) -> str:
    """Return seconds as 0:07, 12:34 or 1:02:03, rounded up; `never` for inf."""
    if math.isinf(seconds):
        return "never"
    minutes, rest = divmod(math.ceil(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def known(number: int | None) -> str:
    """Return a number, or `unknown` for None."""
    return "unknown" if number is None else f"{number:,}"


def listed(names: Sequence[str]) -> str:
    """Return names in a line, the first 20 of them."""
    return ", ".join(names[:MOST]) + f" and {len(names) - MOST:,} more" * (len(names) > MOST) or "none"


def columns(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Return rows as lines of aligned columns, the first `left` of them to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = ["<" if place < left else ">" for place in range(len(widths))]
    return [
        "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)).rstrip()
        for row in rows
    ]


def plain(text: str) -> str:
    """Return a text safe to show: a text that others have stored must not add lines or colours."""
    return one_line(text, LONGEST)


def text(value: object) -> str:
    """Return a client's answer as text; bytes that aren't UTF-8 become surrogates, which `command` sends as bytes."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
