"""`make torture` with a fault planted in the storage fails, and says what broke; without one it passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from checks.tests.torture_log import LIFETIME, NOW, TENTH, Log, rules
from checks.torture import order, spending, story
from checks.torture.steps import FREEZE, story_of
from checks.torture.storage import PLANTED
from checks.torture.story import Failed, Fault
from checks.torture.terms import HELD, PLAIN, QUOTAS, SECOND
from keepa_tokens import RedisStorage, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Command, Peek, Refund, Reserve, Settle
from keepa_tokens.storage.base import Storage
from tests.servers import HOST, Server

ROOT: Final = Path(__file__).parents[2]
ENDS_WITHIN_S: Final = 180

SEED: Final = 16
"""In its storm the server is frozen for longer than clients wait, connections are dropped, a worker is paused."""

ALL: Final = QUOTAS[PLAIN].capacity

HISTORIES: Final[dict[str, tuple[str, list[tuple[int, Command]], str]]] = {
    "gives-back-twice": (
        PLAIN,
        [(NOW, Acquire(ALL)), (NOW + 1, Refund("r", 1, NOW + 1)), (NOW + 2, Acquire(2))],
        "over-grant",
    ),
    "grants-when-away": (PLAIN, [(NOW + SECOND, Acquire(1))], "granted by nobody"),
    "loses-timestamps": (PLAIN, [(NOW, Acquire(ALL)), (NOW + 1, Peek()), (NOW + TENTH, Acquire(1))], "stand-still"),
    "loses-the-line": (
        PLAIN,
        [(NOW, Acquire(ALL)), (NOW + 1, Acquire(9, ticket="a")), (NOW + SECOND // 2, Acquire(4))],
        "passed in line",
    ),
    "forgets-holds": (HELD, [(NOW, Reserve("a", 1, LIFETIME)), (NOW + TENTH, Settle("a", 1))], "lost hold"),
}
"""What is sent by the name of the planted fault, to which bucket, and the rule that it breaks there."""


def logged(storage: Storage, bucket: str, history: Sequence[tuple[int, Command]]) -> Log:
    """Send commands, each by its own time, and log them as a worker does."""
    log = Log(bucket)
    for at, command in history:
        step = log.sent(at, command)
        try:
            log.add(story.told("w", step, storage.apply(bucket, QUOTAS[bucket], command, now_us=at), at))
        except StorageUnavailable:
            log.add(Failed("w", at, step, "StorageUnavailable"))
    return log


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_fault_breaks_its_rule(server: Server, planted: str) -> None:
    """A few commands sent through the broken storage are enough; sent through the sound one they pass."""
    bucket, history, rule = HISTORIES[planted]
    away = planted == "grants-when-away"
    frozen = Fault("director", NOW, FREEZE, "", NOW + 2 * SECOND) if away else None
    url = f"redis://{HOST}:1" if away else server.url
    for kind, found in ((PLANTED[planted], {rule}), (RedisStorage, set[str]())):
        with server.client() as client:
            client.flushall()
        storage = kind.from_url(url)
        log = logged(storage, bucket, history)
        storage.close()
        if frozen is not None:
            log.add(frozen)
        told = story_of(log.entries)
        others = [*spending.granted_by_nobody(bucket, told), *order.kept(bucket, QUOTAS[bucket], told)]
        assert {*log.spending(), *log.liveness(), *rules(others)} == found


def started(planted: str, folder: Path) -> subprocess.Popen[str]:
    options = ["--minutes", "0.01", "--workers", "2", "--seed", str(SEED), "--logs", str(folder / planted)]
    command = [sys.executable, "-m", "checks.torture", *options, *(["--planted", planted] if planted else [])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(runs: Sequence[subprocess.Popen[str]]) -> list[str]:
    try:
        return [run.communicate(timeout=ENDS_WITHIN_S)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def test_a_run_fails_with_a_planted_fault_and_passes_without(tmp_path: Path) -> None:
    """One schedule, two storages: the sound one ends with 0, one that forgets holds with 1, and it says so.

    The watcher holds one token many times a second, so that a run finds this fault however busy the machine is.
    """
    runs = [started(planted, tmp_path) for planted in ("", "forgets-holds")]
    sound, broken = ended(runs)
    assert runs[0].returncode == 0, sound
    assert "nothing broke" in sound
    assert runs[1].returncode == 1, broken
    assert " x lost hold" in broken
