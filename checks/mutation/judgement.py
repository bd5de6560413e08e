"""Mutants and the committed table of those that survive: what a run comes to. Pure."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TABLE: Final = Path(__file__).with_name("core.toml")

MODULES: Final = (
    "units",
    "quota",
    "rules.state",
    "rules.reading",
    "rules.commands",
    "rules.arithmetic",
    "rules.flow",
    "rules.repair",
    "rules.transition",
    "keepa.reading",
    "storage._wire",
)
"""What is broken: the rules, what they stand on, and what carries them to a server and back."""

LEAST: Final = 0.95
"""The share of the mutants that can be told from the code, and are."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break a function. name: mutmut's, which changes with the code; was, becomes: what differs.

    nth: which of those with the same difference in one function.
    """

    module: str
    function: str
    name: str
    was: str
    becomes: str
    nth: int = 1

    @property
    def place(self) -> str:
        """The function, by its module."""
        return f"{self.module}.{self.function}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from all others, for as long as the function stays as it is."""
        return self.place, self.was, self.becomes, self.nth


@dataclass(frozen=True, slots=True)
class Survivor:
    """A mutant that no test notices. reason: why. equivalent: whether nothing can tell it from the code."""

    place: str
    was: str
    becomes: str
    reason: str
    nth: int = 1
    equivalent: bool = False

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from all others."""
        return self.place, self.was, self.becomes, self.nth


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run shows. unlisted: survivors that nobody explained. gone: explained ones that are no mutants now."""

    tried: int
    unlisted: Sequence[Mutant]
    gone: Sequence[Survivor]
    listed: Sequence[Survivor]

    @property
    def share(self) -> float:
        """The share of those noticed, among all but the equivalent ones."""
        missed = len(self.unlisted) + sum(not survivor.equivalent for survivor in self.listed)
        noticed = self.tried - len(self.unlisted)
        return noticed / max(1, noticed + missed)

    @property
    def passed(self) -> bool:
        """Whether this may land."""
        return not self.unlisted and not self.gone and self.share >= LEAST


def table() -> list[Survivor]:
    """Return the committed survivors."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8")).get("survivors", [])
    return [survivor for row in rows for survivor in listed(row)]


def listed(row: Mapping[str, Any]) -> Iterator[Survivor]:
    """Yield the survivors that a row of the table lists: `becomes` has what stands in the place of `was` in each."""
    for becomes in row["becomes"]:
        yield Survivor(
            row["place"], row["was"], becomes, row["reason"], row.get("nth", 1), equivalent=row.get("equivalent", False)
        )


def judged(mutants: Sequence[Mutant], unnoticed: Sequence[Mutant], survivors: Sequence[Survivor]) -> Judgement:
    """Hold the mutants that were tried against the committed table; what it lists of other modules doesn't count."""
    modules = {mutant.module for mutant in mutants}
    known = {mutant.key for mutant in mutants}
    concerned = [row for row in survivors if any(row.place.startswith(f"{module}.") for module in modules)]
    found = [row for row in concerned if row.key in known]
    keys = {row.key for row in found}
    return Judgement(
        tried=len(known - keys),
        unlisted=[mutant for mutant in unnoticed if mutant.key not in keys],
        gone=[row for row in concerned if row.key not in known],
        listed=found,
    )


def shared_out(mutants: Sequence[Mutant], lanes: int) -> list[dict[str, list[str]]]:
    """Share mutants out, those of one function together: what noticed one is the first to meet the next."""
    by_place: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_place[mutant.place].append(mutant)
    shares: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(lanes)]
    sizes = [0] * lanes
    for group in sorted(by_place.values(), key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(group)
        shares[smallest][group[0].module] += [mutant.name for mutant in group]
    return [share for share in shares if share]
