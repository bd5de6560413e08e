"""The fault table: a bucket runs on a real server, something breaks, and what follows is measured against its bounds.

Time is an argument, or a clock that a test moves, and chance has a seed: every run measures the same to the last digit.
The yardstick of what may be granted is a twin, the same bucket in memory, to which nothing has happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from checks.faults.clock import ServerClock, clock_cells
from checks.faults.fields import field_cells
from checks.faults.losses import failover_cells, retyped_cells, whole_cells
from checks.faults.measuring import Cell
from checks.faults.runs import HOUR, KINDS, SECOND, Kind, place_of
from checks.page import table
from keepa_tokens.rules.state import HOLD
from tests.servers import running

TIMES: Final = 2
"""At how many moments of a run each fault comes."""
ITSELF: Final = "itself"
"""What is repaired where that is the very field that was damaged."""


def fault_table(name: str, folder: Path) -> list[str]:
    """Measure every fault on a kind of server, and return the tables of docs/evidence/faults.md."""
    clock = ServerClock(folder / "clock")
    with running(name) as first, running(name) as second, clock.running(name) as by_clock:
        place, replica = place_of(first), place_of(second)
        cells = {
            kind: [
                *field_cells(kind, place, TIMES),
                *retyped_cells(kind, place),
                *whole_cells(kind, place, TIMES),
                *clock_cells(kind, by_clock, clock, TIMES),
            ]
            for kind in KINDS
        }
        for kind, found in failover_cells(place, replica, TIMES).items():
            cells[kind] += found
        for at in (place, replica, by_clock):
            at.storage.close()
            at.client.close()
    return [line for kind, found in cells.items() for line in _section(kind, found)]


def _section(kind: Kind, cells: Iterable[Cell]) -> Iterator[str]:
    yield from (f"## {kind.name.capitalize()}", "", f"{kind.says[0].upper()}{kind.says[1:]}.", "")
    heads = ("what", "fault", "repaired", "next grant or probe, of its bound", "granted beyond, of its bound")
    yield from table(heads, map(_row, _groups(cells)))


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Put the faults of a field together that come to the same, then the fields of which that is true alike."""
    by_fault: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_fault.setdefault((cell.field, cell.fault), []).append(cell)
    by_field: dict[tuple[object, ...], list[Cell]] = {}
    for (what, _), found in by_fault.items():
        alone = found[0].fault if what.startswith("the ") and found[0].life is not None else ""
        by_field.setdefault((what, _repaired(found), found[0].limit.says, alone), []).extend(found)
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for (_, repaired, *rest), found in by_field.items():
        days = max((cell.life.bound for cell in found if cell.life), default=0) // (24 * HOUR)  # a pause stands alone
        groups.setdefault((repaired, *rest, _faults(found), days), []).extend(found)
    return list(groups.values())


def _repaired(cells: Sequence[Cell]) -> str:
    names = {name for cell in cells if cell.life for name in cell.life.repaired}
    if names == {cells[0].field.strip("`")}:
        return ITSELF
    return ", ".join(sorted({f"`{HOLD}…`" if name.startswith(HOLD) else f"`{name}`" for name in names})) or "nothing"


def _faults(cells: Iterable[Cell]) -> str:
    return ", ".join(dict.fromkeys(cell.fault for cell in cells))


def _row(cells: list[Cell]) -> tuple[str, ...]:
    fields, faults = ", ".join(dict.fromkeys(cell.field for cell in cells)), _faults(cells)
    lives = [cell.life for cell in cells if cell.life]
    if not lives:
        return fields, faults, "`ConfigError`, left as it was", "when it is gone", "nothing"
    slowest = max(lives, key=lambda found: (found.waited, found.bound))
    most = max(cells, key=lambda cell: (cell.beyond, cell.limit.tokens))
    beyond = f"{most.beyond:,} of {most.limit.tokens:,}: {most.limit.says}" if most.limit.tokens else "nothing"
    waited = f"{slowest.ends} after {slowest.waited / SECOND:g} s of {slowest.bound / SECOND:g} s"
    return fields, faults, _repaired([cell for cell in cells if cell.field == cells[0].field]), waited, beyond
