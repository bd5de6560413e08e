"""Mutants of the core, of `reading.py` and of `_wire.py`: a test must notice each way to break a function.

`python -m checks.mutation.core` tries what mutmut makes of them, except the survivors that `core.toml` lists, each
with its reason. Exit code 1 if another one survives, if a listed one is gone, or if of those that can be
told from the code fewer than 95% are noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from checks.mutation import lane
from checks.mutation.judgement import (
    LEAST,
    MODULES,
    SURVIVORS,
    Judgement,
    Mutant,
    core_tables,
    judged,
    shared_out,
    survivors,
)
from checks.mutation.lane import Lane
from checks.mutation.mutants import Broken, broken
from checks.page import renew

TESTS: Final = (
    *(
        f"tests/test_{name}.py"
        for name in (
            *("arithmetic", "bad_input", "cli_status", "conformance", "doors", "edges", "events", "exactness"),
            "fast_path",
            *("failure_modes", "holds", "intervals", "keepa_reading", "keepa_sync", "line", "liveness", "managing"),
            *("memory_storage", "misuse", "others", "parity", "places", "probe", "rate_cases", "repair"),
            *("readings_order", "safety", "terms", "units", "whole_steps"),
            "wire",
        )
    ),
    "tests/redis/test_differential.py",
    "tests/redis/test_redis_storage.py",
)

TOO_SLOW: Final = (
    "tests/test_events.py::test_the_log_has_at_most_two_lines_a_refill_however_many_wait",
    "tests/test_exactness.py::test_a_hundred_thousand_steps_do_not_drift",
    "tests/test_keepa_sync.py::test_fifty_coroutines_share_one_balance",
    "tests/test_liveness.py::test_the_old_rule_fails_by_the_lost_timestamp_alone",
    "tests/redis/test_differential.py::test_programs_draw_every_command_field_and_stored_number",
    "tests/test_memory_storage.py::test_idle_full_buckets_are_dropped_as_others_are_used",
)
"""What they show, others here show sooner."""


def run(shares: Sequence[Sequence[Mutant]], broken: Mapping[str, Broken], log: Path) -> Iterator[tuple[Mutant, str]]:
    """Try the mutants, each share in a process of its own; yield each with the test that noticed it, '' if none did.

    Raises RuntimeError if a test fails without a mutant, or if a lane ended before its time.
    """
    plugins = (f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist"))
    options = ("-q", *plugins, "-m", "not system_redis", *TESTS, *(f"--deselect={test}" for test in TOO_SLOW))
    context = get_context("fork")  # each process has the mutants
    lanes: dict[Any, BaseProcess] = {}
    for share in shares:
        listening, telling = context.Pipe(duplex=False)
        lanes[listening] = context.Process(target=lane.run, args=(Lane(share, broken, telling.send), options, log))
        lanes[listening].start()
        telling.close()  # so that the end of the process is the end of what it says
    talking, left = set(lanes), sum(map(len, shares))
    try:
        while talking:
            ready: list[Any] = wait(talking)
            for heard in ready:
                try:
                    mutant, noticed = heard.recv()
                except EOFError:
                    talking.discard(heard)
                    continue
                if mutant is None:
                    raise RuntimeError(f"without a mutant {noticed} fails already")
                left -= 1
                yield mutant, noticed
    finally:
        for process in lanes.values():
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)  # pytest ends its servers then
            process.join()
    if left:
        words = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{words}\n{left} mutants were not tried: a lane ended before its time")


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants and print what became of them."""
    options = _parser().parse_args(arguments)
    modules = [module for module in MODULES if module in (options.module or MODULES)]
    made = {module: broken(module) for module in modules}
    mutants = [mutant for each in made.values() for mutant in each.mutants]
    explained = survivors()
    listed = {row.key for row in explained}
    before = noticed_in(options.resume)
    chosen = [mutant for mutant in mutants if options.listed == (mutant.key in listed) and options.only in mutant.place]
    chosen = [mutant for mutant in chosen if mutant.key not in before]
    print(f"{len(mutants)} mutants in {len(modules)} modules, {len(chosen)} to try", flush=True)
    unnoticed: list[Mutant] = []
    by_test: Counter[str] = Counter()
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    with NamedTemporaryFile(prefix="mutants-", suffix=".log") as log:
        for mutant, noticed in run(shared_out(chosen, options.lanes), made, Path(log.name)):
            by_test[noticed.partition("[")[0]] += 1
            if not noticed:
                unnoticed.append(mutant)
                print(f"SURVIVED  {_shown(mutant)}", flush=True)
                continue
            if options.resume:
                with options.resume.open("a", encoding="utf-8") as resumed:
                    resumed.write(json.dumps(mutant.key) + "\n")
            if options.verbose:
                print(f"noticed   {_shown(mutant)}  by {noticed}", flush=True)
    if options.listed or options.only:
        print(f"{len(chosen)} tried, {len(unnoticed)} survived")
        return 0
    judgement = judged(mutants, unnoticed, explained)
    print("\n".join(report(judgement, by_test)))
    if options.write:
        renew(options.write, "mutants-page", core_tables(mutants, judgement))
    return 0 if judgement.passed else 1


def noticed_in(resumed: Path | None) -> set[tuple[str, str, str, int]]:
    """Return the keys of the mutants that a run before this one saw noticed, and left in its file."""
    if resumed is None or not resumed.exists():
        return set()
    keys = (json.loads(line) for line in resumed.read_text(encoding="utf-8").splitlines())
    return {(place, was, becomes, nth) for place, was, becomes, nth in keys}


def report(judgement: Judgement, by_test: Mapping[str, int]) -> Iterator[str]:
    """Yield what a run comes to, in lines."""
    yield ""
    for test, count in sorted(by_test.items(), key=lambda item: -item[1])[:20]:
        yield f"{count:6}  {test or 'none'}"
    yield ""
    equivalent = sum(row.equivalent for row in judgement.listed)
    yield f"{judgement.tried} tried, {len(judgement.unlisted)} survived that are not in {SURVIVORS.name}"
    yield f"{len(judgement.listed)} survivors listed there, {equivalent} of them equivalent"
    yield from (
        f"listed, but no mutant any more: {row.place}: {row.was!r} -> {row.becomes!r}" for row in judgement.gone
    )
    yield f"{judgement.share:.2%} of those that can be told apart were noticed; at least {LEAST:.0%} must be"


def _shown(mutant: Mutant) -> str:
    nth = f"  (nth = {mutant.nth})" if mutant.nth > 1 else ""
    return f"{mutant.place}: {mutant.was!r} -> {mutant.becomes!r}{nth}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m checks.mutation.core", description=__doc__)
    parser.add_argument("--module", action="append", choices=MODULES, help="try this one only (may be repeated)")
    parser.add_argument("--only", default="", help="try functions with this in their names; judges nothing")
    parser.add_argument("--listed", action="store_true", help=f"try those in {SURVIVORS.name} instead; judges nothing")
    parser.add_argument(
        "--lanes", type=int, default=os.cpu_count() or 1, help="how many at a time (default: %(default)s)"
    )
    parser.add_argument("--write", type=Path, help="a page whose tables to renew")
    parser.add_argument("--resume", type=Path, help="a file of what was noticed: not tried again, and it grows")
    parser.add_argument("--verbose", action="store_true", help="print each mutant, and what noticed it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
