"""The processes that work, and what is done to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from checks.torture.story import Journal, Killed, machine_us
from checks.torture.worker import Assignment

ROOT: Final = Path(__file__).parents[2]

ENDS_WITHIN_S: Final = 20.0
"""Seconds that a worker may take to end when it is told to."""


class Member:
    """One place in the crew. Whoever is killed in it is replaced by another process under another name."""

    def __init__(self, assignment: Assignment, journal: Journal) -> None:
        self._assignment = assignment
        self._journal = journal
        self._generation = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.who = ""

    def start(self) -> None:
        """Start a process in this place."""
        self._generation += 1
        self.who = f"{self._assignment.who}-{self._generation}"
        seed = f"{self._assignment.seed}/{self._generation}"
        assignment = replace(self._assignment, who=self.who, seed=seed)
        command = [sys.executable, "-m", "checks.torture.worker", json.dumps(asdict(assignment))]
        with (Path(assignment.folder) / f"{self.who}.err").open("wb") as errors:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=errors)

    def kill(self) -> None:
        """Kill the process, in the middle of whatever it does."""
        process = self._running()
        process.kill()
        process.communicate()
        self._journal.write(Killed(self._journal.who, machine_us(), self.who))

    def pause(self) -> None:
        """Let the process stand still."""
        os.kill(self._running().pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self._running().pid, signal.SIGCONT)

    def tell_the_end(self) -> None:
        """Tell the process to end."""
        stdin = self._running().stdin
        if stdin is not None:
            stdin.close()

    def end(self) -> None:
        """Wait for its end; one that hangs is ended, and its log lacks its last line."""
        process = self._running()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            msg = f"{self._assignment.who} was never started"
            raise RuntimeError(msg)
        return self._process
