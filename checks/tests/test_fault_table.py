"""The fault table: what each fault comes to on a real server, within its bounds and as its page says."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from checks.faults.measuring import NOTHING, Due, measured
from checks.faults.page import fault_table
from checks.faults.runs import KINDS, Bucket, Kind, Moment, moments, twin
from checks.page import renew, says
from keepa_tokens.rules.commands import Acquire, Command, Outcome
from tests.servers import BINARIES

COMMAND: Final = "fault-table"
PAGE: Final = Path(__file__).parents[2] / "docs" / "evidence" / "faults.md"
WRITE: Final = "WRITE_FAULT_TABLE"
"""With this in the environment the page is written instead of compared."""


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_every_fault_keeps_its_bounds_and_comes_to_what_the_page_says(name: str, tmp_path: Path) -> None:
    """Every field and the whole of a bucket, damaged in every way: alive and safe within the bounds, and as written."""
    tables = fault_table(name, tmp_path)
    print("\n".join(tables))
    if os.environ.get(WRITE):
        renew(PAGE, COMMAND, tables)
    assert says(PAGE, COMMAND, tables), "not as docs/evidence/faults.md says: see `make fault-table` and git diff"


# --- the measuring finds what it looks for


@dataclass(frozen=True)
class Lying:
    """A bucket that answers every request alike."""

    bucket: Bucket
    granted: bool

    def apply(self, command: Command, at: int) -> Outcome:
        outcome = self.bucket.apply(command, at)
        return (
            replace(outcome, granted=self.granted, claimed_until_us=None) if isinstance(command, Acquire) else outcome
        )


@dataclass(frozen=True)
class Late:
    bucket: Bucket

    def apply(self, command: Command, at: int) -> Outcome:
        outcome = self.bucket.apply(command, at)
        shown = outcome.snapshot
        return outcome if shown is None else replace(outcome, snapshot=replace(shown, bound=1e9))


def a_moment(kind: Kind) -> Moment:
    """Return a bucket in debt, as nothing is granted there at once."""
    run = twin(kind)
    found = moments(kind, run, lambda: {**run.stored.to_fields()})
    return min(found, key=lambda moment: Due.at(kind, moment).available)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("found", ["neither a grant nor a probe", "granted beyond", "too far"])
def test_a_bucket_that_breaks_its_bounds_is_found(kind: Kind, found: str) -> None:
    """One that never grants and never probes, one that grants what it does not have, and one whose bound is too far."""
    moment = a_moment(kind)
    alive, greedy = twin(kind, moment), twin(kind, moment)
    broken: dict[str, tuple[Bucket, Bucket]] = {
        "neither a grant nor a probe": (Lying(alive, granted=False), greedy),
        "granted beyond": (alive, Lying(greedy, granted=True)),
        "too far": (Late(alive), greedy),
    }
    with pytest.raises(AssertionError, match=found):
        measured(kind, ("a", "b"), moment, *broken[found], Due.at(kind, moment), NOTHING)
