"""The tables that pages show of others: so that a figure stands in one place."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DAY: Final = Path(__file__).resolve().parent / "evidence" / "benchmark.md"

HEAD: Final = (
    "",
    "refused by the server",
    "share of all calls",
    "calls of `/token`",
    "longest wait for an answered call",
)

NAMED: Final = {"keepa client": "the `keepa` package alone", "old manager": "a hand-made manager"}


def day_table(day: str) -> str:
    """Return the table of one of the days that `make bench-day` measured, as Markdown."""
    lines = [" | ".join(HEAD), " | ".join(("---", *["---:"] * (len(HEAD) - 1)))]
    for by, *figures in _rows(day):
        ours = by == "keepa_tokens"
        cells = [NAMED.get(by, by), *figures]
        lines.append(" | ".join(f"**{cell}**" if ours else cell for cell in cells))
    return "".join(f"| {line.strip()} |\n" for line in lines)


def _rows(day: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield who took part in a day, and the figures of its row that HEAD names."""
    section = DAY.read_text(encoding="utf-8").split(f"## In full: {day}\n")[1].split("\n## ")[0]
    for line in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]:
        by, _minted, _spent, _wasted, _used, _answered, refused, share, probes, standstill, *_ = line.split(" | ")
        yield by, refused, share, probes, standstill


if __name__ == "__main__":
    sys.stdout.write(day_table(*sys.argv[1:]))
