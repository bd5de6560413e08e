"""Mutants of `bucket.lua`: a test must notice each way to break a rule.

`python -m checks.mutation.bucket_lua` runs the differential test, on programs that are the same in every run,
against each fault of the script in `by_hand.toml`; what survives that meets the storage's own tests. Exit
code 1 if a mutant survives both.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final, TypeAlias

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings

from checks.models.programs import STORIES, Program
from checks.mutation.judgement import Mutant, by_hand
from checks.mutation.script import VARIABLE, loaded, shipped
from checks.page import renew, table
from tests.redis.single_faults import BUCKETS, programs_of
from tests.redis.strategies import raw_programs
from tests.redis.test_differential import agree, compare_lifetimes, expectations
from tests.servers import running

STORAGE_TESTS: Final = ("tests/redis/test_redis_storage.py", "tests/redis/test_script_life.py")
_OPTIONS: Final = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not system_redis")
PROGRAMS: Final = 500
"""As many as the differential test runs in CI."""
DIFFERENTIAL: Final = "differential test"

Check: TypeAlias = Callable[[redis.Redis], None]


def fixed_programs(count: int) -> list[Program]:
    """Return programs as the differential test draws them, the same in every run."""
    drawn: list[Program] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(raw_programs)
    def collect(program: Program) -> None:
        drawn.append(program)

    collect()
    return drawn


def checks(drawn: int) -> list[Check]:
    """Return the differential test in parts: stories and drawn programs, the lifetimes of some, each single fault."""
    some_programs = [*STORIES.values(), *fixed_programs(drawn)]
    faults = [program for bucket in BUCKETS.values() for program in programs_of(bucket)]
    return [
        *map(beside_the_core, some_programs),
        *(partial(compare_lifetimes, program=program) for program in some_programs[: drawn // 5]),
        *map(beside_the_core, faults),
    ]


def beside_the_core(program: Program) -> Check:
    """Return the check of one program, for which the core is asked once and not for every script."""
    return partial(agree, program=program, core=list(expectations(program)))


def difference(client: redis.Redis, script: str, parts: Sequence[Check]) -> str:
    """Return the first thing in which this script differs from the core; '' if there is none."""
    with loaded(script):
        for number, check in enumerate(parts, 1):
            # Whatever goes wrong tells the mutant from the script; pytest's failures are no Exceptions.
            try:
                check(client)
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001
                return f"{type(error).__name__} in part {number} of the {DIFFERENTIAL}"
    return ""


def failing_test(script: str) -> str:
    """Return the first of the storage's tests that fails with this script; '' if none does."""
    with NamedTemporaryFile("w", encoding="utf-8", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = [sys.executable, "-m", "pytest", "-p", "checks.mutation.script", *_OPTIONS, *STORAGE_TESTS]
        environment = os.environ | {VARIABLE: file.name}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        raise RuntimeError(done.stdout + done.stderr)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants and print what became of them."""
    options = _parser().parse_args(arguments)
    script = shipped()
    mutants = [
        (mutant, mutant.of(script)) for mutant in by_hand(script=True)
    ]  # all of them: a text that is gone is found at once
    chosen = [(mutant, broken) for mutant, broken in mutants if options.only in mutant.name and not mutant.equivalent]
    parts = checks(options.programs)
    unbroken = noticed_of([(None, script)], parts)[0]
    if unbroken:
        print(f"the script itself fails: {unbroken}", file=sys.stderr)
        return 1
    # Forked: each process has the programs, and what the core made of them.
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        shares = [chosen[start :: options.jobs] for start in range(options.jobs)]
        noticed = list(pool.map(noticed_of, shares, [parts] * options.jobs))
    fates = {
        mutant.name: by
        for share, each in zip(shares, noticed, strict=True)
        for (mutant, _), by in zip(share, each, strict=True)
    }
    survived = sum(not by for by in fates.values())
    equivalent = sum(bool(mutant.equivalent) for mutant, _ in mutants)
    print(f"{len(chosen)} mutants tried, {survived} survived; {equivalent} more are equivalent to the script")
    if options.write:
        renew(options.write, "mutants-lua-page", tables([mutant for mutant, _ in mutants], fates))
    return 1 if survived else 0


def tables(mutants: Sequence[Mutant], fates: Mapping[str, str]) -> Iterator[str]:
    """Yield what became of the mutants of each rule, and which of them can't be told from the script."""

    def counts(title: str, of_it: Sequence[Mutant]) -> tuple[object, ...]:
        tried = [fates[mutant.name] for mutant in of_it if mutant.name in fates]
        by_difference, survived = sum(DIFFERENTIAL in noticed for noticed in tried), tried.count("")
        equivalent = sum(mutant.equivalent for mutant in of_it)
        return title, len(of_it), equivalent, by_difference, len(tried) - by_difference - survived, survived

    rules = sorted({mutant.rule for mutant in mutants})
    of_rules = [(str(rule or "none of them"), [mutant for mutant in mutants if mutant.rule == rule]) for rule in rules]
    yield from table(
        (
            "rule",
            "mutants:",
            "equivalent:",
            "noticed by the differential test:",
            "by the storage's tests:",
            "survived:",
        ),
        (counts(*each) for each in (*of_rules, ("together", mutants))),
    )
    yield from ("These can't be told from the script by anything, and are not tried:", "")
    yield from table(("mutant", "why"), ((mutant.name, mutant.reason) for mutant in mutants if mutant.equivalent))


def noticed_of(scripts: Sequence[tuple[Mutant | None, str]], parts: Sequence[Check]) -> list[str]:
    """Return how each script was noticed, on a server of their own, and print what became of the mutants."""
    noticed: list[str] = []
    with running("valkey") as server, server.client() as client:
        tests: list[Callable[[str], str]] = [lambda script: difference(client, script, parts), failing_test]
        for mutant, script in scripts:
            by = first_notice(tests, script)
            noticed.append(by)
            if mutant:
                print(f"{'killed' if by else 'SURVIVED':8}  rule {mutant.rule}  {mutant.name}  ({by})", flush=True)
            client.ping()  # a server that is gone would kill them all
    return noticed


def first_notice(tests: Sequence[Callable[[str], str]], script: str) -> str:
    """Return how the first test that notices something noticed it; '' if none does."""
    return next(filter(None, (test(script) for test in tests)), "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants with this in their name")
    parser.add_argument("--programs", type=int, default=PROGRAMS, help=f"how many programs (default: {PROGRAMS})")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes (default: 2)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put what came out into this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
