"""One theorem, checked by CrossHair in a process of its own, and its report read.

The report is all that counts: CrossHair ends with 0 also where it confirmed nothing, or met no precondition.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

__all__ = ["Report", "Verdict", "check", "python", "read_report"]

ROOT: Final = Path(__file__).resolve().parent.parent
"""Where `proof` is imported from."""

GIVE_UP_S: Final = 900.0
"""A process that takes longer than this has hung. CrossHair's own limits are in processor time, and far below."""


class Verdict(StrEnum):
    """What came of a check."""

    CONFIRMED = "confirmed"
    SEARCHED = "no counterexample"
    REFUTED = "refuted"
    UNMET = "no input meets the precondition"
    FAILED = "not checked"


@dataclass(frozen=True)
class Report:
    """A verdict, its words (for a refutation: the counterexample), and how long it took by the wall clock."""

    verdict: Verdict
    words: str
    seconds: float = 0.0


_LINE: Final = re.compile(r"^.+:\d+: (info|error): (.*)$")
_SAYS: Final = {
    "Confirmed over all paths.": Verdict.CONFIRMED,
    "Not confirmed.": Verdict.SEARCHED,
    "Unable to meet precondition": Verdict.UNMET,
}


def read_report(output: str) -> tuple[Verdict, str]:
    """Return the verdict in one theorem's report, and the counterexample. What isn't understood confirms nothing."""
    found = [match for line in output.splitlines() if (match := _LINE.match(line))]
    if len(found) != 1:
        return Verdict.FAILED, output.strip() or "CrossHair said nothing"
    level, words = found[0].groups()
    if level == "info":
        return (_SAYS[words], "") if words in _SAYS else (Verdict.FAILED, words)
    # An exception on the way refutes too: a theorem is a function that returns True. Not being able to begin doesn't.
    return (Verdict.REFUTED if " when calling " in words else Verdict.FAILED), words


def check(theorem: str, *, refill: int | None, seconds: float, source: Path | None = None) -> Report:
    """Check a theorem ("refill.smooth_conserves") for `seconds` of processor time at most.

    refill: the plan at which it is stated, in tokens a period; None: it names no plan. source: where `keepa_tokens`
    is imported from, instead of the code that is installed.
    """
    command = (
        *("crosshair", "check", "--report_all", "--analysis_kind=PEP316"),
        *(f"--per_condition_timeout={seconds}", f"--per_path_timeout={seconds / 2}"),
        f"proof.theorems.{theorem}",
    )
    began = time.monotonic()
    output = python(*command, source=source, PROOF_REFILL="" if refill is None else str(refill))
    return Report(*read_report(output), seconds=time.monotonic() - began)


def python(*module_and_arguments: str, source: Path | None = None, **environment: str) -> str:
    """Run a module in a Python of its own and return all that it wrote."""
    path = os.pathsep.join(str(place) for place in (source, ROOT) if place is not None)
    try:
        done = subprocess.run(  # noqa: S603 - the arguments are this program's own
            (sys.executable, "-m", *module_and_arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=GIVE_UP_S,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
    except subprocess.TimeoutExpired:
        return f"no end after {GIVE_UP_S:.0f} s"
    return done.stdout
