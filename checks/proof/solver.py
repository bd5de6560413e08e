"""One theorem, checked by CrossHair in a process of its own, and its report read.

The report is all that counts: CrossHair ends with 0 also where it confirmed nothing, or met no precondition.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""Where `checks` is imported from."""

SOURCE: Final = ROOT / "src"
"""Where the code that is proved is imported from, whatever else is installed."""

GIVE_UP_S: Final = 3600.0
"""By the wall clock: a process that takes longer has hung. All other limits are in processor time, and generous: a slow
or a busy machine is no reason to confirm less."""


class Verdict(StrEnum):
    """What came of a check."""

    CONFIRMED = "confirmed"
    SEARCHED = "no counterexample"
    REFUTED = "refuted"
    UNMET = "no input meets the precondition"
    FAILED = "not checked"


@dataclass(frozen=True)
class Report:
    """A verdict, its words (for a refutation: the counterexample), and how long it took, in processor time."""

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
    is imported from, instead of the code beside it.
    """
    # The solver's limit for one question is half a path's, and by the wall clock: as long as it can be.
    command = (
        *("crosshair", "check", "--report_all", "--analysis_kind=PEP316"),
        *(f"--per_condition_timeout={seconds}", f"--per_path_timeout={seconds}"),
        f"checks.proof.theorems.{theorem}",
    )
    output, took = python(*command, source=source, PROOF_REFILL="" if refill is None else str(refill))
    return Report(*read_report(output), seconds=took)


def python(*module_and_arguments: str, source: Path | None = None, **environment: str) -> tuple[str, float]:
    """Run a module in a Python of its own; return all that it wrote, and how long it took, in processor time."""
    path = os.pathsep.join(str(place) for place in (source or SOURCE, ROOT))
    # One seed for the order of sets, so that every run takes the same paths.
    fixed = {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    with subprocess.Popen(
        (sys.executable, "-m", *module_and_arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **fixed, **environment},
    ) as process:
        hung = threading.Timer(GIVE_UP_S, process.kill)
        hung.start()
        output = process.stdout.read() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
        hung.cancel()
    if os.WIFSIGNALED(status):
        output = f"ended by signal {os.WTERMSIG(status)}, at the latest after {GIVE_UP_S:.0f} s"
    return output, used.ru_utime + used.ru_stime
