"""A run: the scene, the faults, the end, and the check of what was logged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from checks.torture import plan, scene
from checks.torture.report import Result, check
from checks.torture.steps import story_of
from checks.torture.story import Calm, Journal, Remains, Total, machine_us, read
from checks.torture.terms import HOLD_FOR, QUOTAS
from keepa_tokens.rules.commands import Peek
from keepa_tokens.storage.redis import RedisStorage
from tests.servers import wait_until

STARTED_WITHIN_S: Final = 60.0
"""Seconds that the workers may take to load what they need."""


def run(folder: Path, seed: int, seconds: float, workers: int, planted: str) -> Result:
    """Run for about so long, with a planted fault or without, and check."""
    schedule = plan.schedule(seed, seconds, workers)
    with scene.opened(folder, seed, workers, planted) as opened:
        crew = (*opened.workers, opened.watcher)
        logs = [folder / f"{member.who}.log" for member in crew]
        wait_until(
            "every worker has begun",
            lambda: all(log.exists() and log.stat().st_size > 0 for log in logs),
            within_s=STARTED_WITHIN_S,
        )
        journal = opened.journal
        scene.play(opened, schedule, lambda last: journal.write(Calm("director", machine_us(), last)))
        for member in crew:
            member.tell_the_end()
        for member in crew:
            member.end()
        _look_at_what_remains(opened, journal)
    return check(story_of(read(folder)))


def _look_at_what_remains(opened: scene.Scene, journal: Journal) -> None:
    # A hold lives for its lifetime, and a bucket refills in a second.
    time.sleep(max(HOLD_FOR.values()) + 2.0)
    storage = RedisStorage.from_url(opened.server.url)
    for key, quota in QUOTAS.items():
        shown = storage.apply(key, quota, Peek()).snapshot
        if shown is not None:
            journal.write(Remains("director", machine_us(), key, shown.held, shown.holds, shown.balance))
    storage.close()
    journal.write(Total("director", machine_us(), opened.api.spent))
