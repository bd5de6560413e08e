"""Mutants, the committed tables of them, and what a run comes to. Pure."""

from __future__ import annotations

import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from checks.page import table

HERE: Final = Path(__file__).parent
SURVIVORS: Final = HERE / "core.toml"
BY_HAND: Final = HERE / "by_hand.toml"

MODULES: Final = (
    "units",
    "quota",
    "rules.state",
    "rules.reading",
    "rules.commands",
    "rules.arithmetic",
    "rules.fast_path",
    "rules.line",
    "rules.free_places",
    "rules.flow",
    "rules.repair",
    "rules.readings",
    "rules.admission",
    "rules.telling",
    "rules.transition",
    "keepa.reading",
    "storage._wire",
)
"""What mutmut breaks: the rules, what they stand on, and what carries them to a server and back."""

LEAST: Final = 0.95
"""The share of the mutants that can be told from the code, and are."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the package: in `place`, `was` becomes something else.

    place: a file of the package, or, for mutmut's, a function by its module. name: what the broken code does, or
    mutmut's name, which changes with the code. nth: of those with the same difference in one function. by: the theorem
    or small world that must notice. reason: why nothing notices. equivalent: whether nothing can tell it from the code.
    """

    place: str
    was: str
    becomes: str
    name: str = ""
    nth: int = 1
    by: str = ""
    reason: str = ""
    equivalent: bool = False

    @property
    def module(self) -> str:
        """The module of a function that mutmut broke."""
        return next(module for module in MODULES if self.place.startswith(f"{module}."))

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells it from all others, for as long as the place stays as it is."""
        return self.place, self.was, self.becomes, self.nth

    def of(self, text: str) -> str:
        """Return the broken text of its file; a ValueError if what it breaks is not there, or not only once."""
        found = text.count(self.was)
        if found != 1:
            msg = f"what {self.name!r} breaks occurs {found} times in {self.place}, not once: mend {BY_HAND.name}"
            raise ValueError(msg)
        return text.replace(self.was, self.becomes)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run shows. unlisted: survivors that nobody explained. gone: explained ones that are no mutants now."""

    tried: int
    unlisted: Sequence[Mutant]
    gone: Sequence[Mutant]
    listed: Sequence[Mutant]

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


def by_hand() -> list[Mutant]:
    """Return the committed faults planted by hand, which a proof must refute."""
    return [
        Mutant(place, name=name, **row)
        for place, named in tomllib.loads(BY_HAND.read_text(encoding="utf-8")).items()
        for name, row in named.items()
    ]


def survivors() -> list[Mutant]:
    """Return the committed survivors among mutmut's."""
    rows = tomllib.loads(SURVIVORS.read_text(encoding="utf-8")).get("survivors", [])
    return [survivor for row in rows for survivor in listed(row)]


def listed(row: Mapping[str, Any]) -> Iterator[Mutant]:
    """Yield the survivors that a row of the table lists: `becomes` has what stands in the place of `was` in each."""
    for becomes in row["becomes"]:
        yield Mutant(**{**row, "becomes": becomes})


def judged(mutants: Sequence[Mutant], unnoticed: Sequence[Mutant], explained: Sequence[Mutant]) -> Judgement:
    """Hold the mutants that were tried against the committed table; what it lists of other modules doesn't count."""
    modules = {mutant.module for mutant in mutants}
    known = {mutant.key for mutant in mutants}
    concerned = [row for row in explained if row.module in modules]
    found = [row for row in concerned if row.key in known]
    keys = {row.key for row in found}
    return Judgement(
        tried=len(known - keys),
        unlisted=[mutant for mutant in unnoticed if mutant.key not in keys],
        gone=[row for row in concerned if row.key not in known],
        listed=found,
    )


def shared_out(mutants: Sequence[Mutant], lanes: int) -> list[list[Mutant]]:
    """Share mutants out, those of one function together: what noticed one is the first to meet the next."""
    by_place: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_place[mutant.place].append(mutant)
    shares: list[list[Mutant]] = [[] for _ in range(lanes)]
    for group in sorted(by_place.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    return [share for share in shares if share]


# --- the tables of docs/evidence/mutation.md


def core_tables(mutants: Sequence[Mutant], judgement: Judgement) -> Iterator[str]:
    """Yield the counts of each module, and every survivor, with its reason."""

    def counts(name: str, module: str) -> tuple[str, int, int, int, str]:
        made, unlisted, explained = (
            [mutant for mutant in some if module in {"", mutant.module}]
            for some in (mutants, judgement.unlisted, judgement.listed)
        )
        same = sum(row.equivalent for row in explained)
        missed = len(unlisted) + len(explained) - same
        return name, len(made), same, missed, f"{1 - missed / max(1, len(made) - same):.1%}"

    made = Counter(mutant.module for mutant in mutants)
    rows = [*(counts(f"`{module}`", module) for module in MODULES if made[module]), counts("together", "")]
    yield from table(("module", "mutants:", "equivalent:", "survived:", "noticed:"), rows)
    for title, equivalent in (
        ("These survive and could be told from the code:", False),
        ("These can't be told from it:", True),
    ):
        told = [row for row in judgement.listed if row.equivalent == equivalent]
        if told:
            yield from (title, "")
            shown = ((f"`{row.place}`", _code(row.was), _code(row.becomes), row.reason) for row in told)
            yield from table(("where", "code", "becomes", "why"), shown)


def _code(text: str) -> str:
    line = " ".join(text.split())
    return f"`{line}`" if line else "(nothing)"
