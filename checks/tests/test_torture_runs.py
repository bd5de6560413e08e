"""A short `make torture`: with a fault planted in the storage it fails, and says what broke; without one it passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from checks.torture.storage import PLANTED

ROOT: Final = Path(__file__).parents[2]
ENDS_WITHIN_S: Final = 180

SEED: Final = 16
"""In its storm the server is frozen for longer than clients wait, connections are dropped, a worker is paused."""

FOUND: Final = {
    "": set[str](),
    "gives-back-twice": {"over-grant"},
    "grants-when-away": {"granted by nobody"},
    "loses-timestamps": {"stand-still", "damage"},
    "forgets-holds": {"lost hold"},
}
"""What a run must find by the name of the planted fault; of several rules at least one."""


def started(planted: str, folder: Path) -> subprocess.Popen[str]:
    """Start a run of the shortest length."""
    options = ["--minutes", "0.01", "--workers", "2", "--seed", str(SEED), "--logs", str(folder / planted)]
    command = [sys.executable, "-m", "checks.torture", *options, *(["--planted", planted] if planted else [])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(runs: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Return what runs said, when all have ended."""
    try:
        return [run.communicate(timeout=ENDS_WITHIN_S)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def test_a_run_fails_with_each_planted_fault_and_passes_without(tmp_path: Path) -> None:
    """One schedule, five storages: the sound one ends with 0, each broken one with 1 and the rule that it broke."""
    assert set(FOUND) - {""} == set(PLANTED)
    runs = {planted: started(planted, tmp_path) for planted in FOUND}
    said = dict(zip(runs, ended(list(runs.values())), strict=True))
    for planted, rules in FOUND.items():
        assert runs[planted].returncode == bool(rules), said[planted]
        assert not rules or any(f" x {rule}" in said[planted] for rule in rules), said[planted]
        assert rules or "nothing broke" in said[planted], said[planted]
