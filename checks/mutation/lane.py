"""A process that runs pytest: the collected tests once as they are, and then against mutants, which come from a plugin.

Each mutant gets a process of its own, forked from the one that collected the tests and started their servers. It ends
at the first test that notices. Tests that noticed mutants of the same function, and quick ones, come first.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import process_time
from types import CodeType, FrameType
from typing import Final, TypeAlias

import pytest

from checks.mutation.judgement import Mutant
from checks.mutation.mutants import Broken, forget, put_in, shipped

Say: TypeAlias = Callable[[tuple[Mutant | None, str]], object]
"""Takes what became of a mutant: the test that noticed it, '' if none did; None: a test that fails without any."""

SERVER: Final = "valkey"
"""The one kind of server that is used: a second one would be started in place of the first, in each process."""

TIMES_SLOWER: Final = 20
SECONDS_MORE: Final = 5
"""A test may take so many times its own processor time, and so much more, before a mutant counts as noticed."""

HANGS_AFTER_S: Final = 120
"""A mutant that no test is done with after so many seconds, of any clock, counts as noticed."""


class Lane:
    """The loop in place of pytest's. covering: for each function, the tests that call it."""

    def __init__(self, mutants: Sequence[Mutant], broken: Mapping[str, Broken], say: Say) -> None:
        self.mutants, self.broken, self.say = mutants, broken, say
        self.places = {shipped(mutant).__code__: mutant.place for mutant in self.mutants}
        self.covering: dict[str, dict[pytest.Item, float]] = defaultdict(dict)
        self.kills: dict[str, Counter[pytest.Item]] = defaultdict(Counter)
        self.failed = ""
        self.pipe = -1

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the tests of other servers, and those that stop their own; ask the script once a program."""
        items[:] = [item for item in items if _server_of(item) == SERVER]

        for stored in {getattr(item.module, "Stored", None) for item in items if isinstance(item, pytest.Function)}:
            if stored is not None:
                stored.run = _remembered(stored.run)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """End the process of a mutant that was noticed."""
        if not report.failed:
            return
        self.failed = report.nodeid
        if self.pipe >= 0:
            os.write(self.pipe, report.nodeid.encode())
            os._exit(0)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests as they are; if all pass, try the mutants."""
        for item, following in _with_next(session.items):
            self._as_it_is(item, following)
            if self.failed:
                self.say((None, self.failed))
                return True
        for mutant in self.mutants:
            self.say((mutant, self._noticed(mutant)))
        return True

    def _as_it_is(self, item: pytest.Item, following: pytest.Item) -> None:
        called: set[CodeType] = set()

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call":
                called.add(frame.f_code)

        forget()
        begun = process_time()
        sys.setprofile(note)
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        finally:
            sys.setprofile(None)
        for code in called & self.places.keys():
            self.covering[self.places[code]][item] = process_time() - begun

    def _noticed(self, mutant: Mutant) -> str:
        """Return the test that notices a mutant; '' if none does."""
        times, kills = self.covering[mutant.place], self.kills[mutant.place]
        order = sorted(times, key=lambda item: times[item] / (1 + kills[item]))
        if not order:
            return ""
        sys.stdout.flush()
        sys.stderr.flush()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._try(mutant, order, writing)
        os.close(writing)
        noticed = self._heard(reading, child)
        for item in order:
            kills[item] += item.nodeid == noticed
        return noticed

    def _try(self, mutant: Mutant, order: Sequence[pytest.Item], writing: int) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        self.pipe = writing
        try:
            put_in(mutant, self.broken[mutant.module].functions)
            forget()
            for item, following in _with_next(order):
                allowed = SECONDS_MORE + TIMES_SLOWER * self.covering[mutant.place][item]
                signal.setitimer(signal.ITIMER_PROF, allowed)
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            os.write(writing, b"-")
        except BaseException as error:  # noqa: BLE001 - whatever goes wrong, the mutant did it
            os.write(writing, f"{type(error).__name__} outside a test".encode())
        finally:
            os._exit(0)

    @staticmethod
    def _heard(reading: int, child: int) -> str:
        ready, _, _ = select.select([reading], [], [], HANGS_AFTER_S)
        said = os.read(reading, 4096).decode() if ready else ""
        os.close(reading)
        if not said:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "" if said == "-" else said or "no end"


def run(lane: Lane, options: Sequence[str], log: Path) -> None:
    """Run pytest with its loop replaced, in a process that is for nothing else."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    pytest.main([*options], plugins=[lane])


def _server_of(item: pytest.Item) -> str:
    """Return the kind of server that a test shares with others; SERVER if it needs none."""
    if "own_server" in getattr(item, "fixturenames", ()):
        return "its own"
    callspec = getattr(item, "callspec", None)
    return SERVER if callspec is None else callspec.params.get("shared_server", SERVER)


def _remembered(run: Callable[..., Iterator[object]]) -> Callable[..., Iterator[object]]:
    """Return what a server says to a program; the second time, and in each process forked later, from memory."""
    said: dict[object, list[object]] = {}

    def remembering(stored: object, program: object) -> Iterator[object]:
        if program not in said:
            said[program] = list(run(stored, program))
        return iter(said[program])

    return remembering


def _with_next(items: Sequence[pytest.Item]) -> Iterator[tuple[pytest.Item, pytest.Item]]:
    """Yield each test with the one whose fixtures are to stay: never none, which would end the session's."""
    yield from zip(items, [*items[1:], items[0]], strict=True)
