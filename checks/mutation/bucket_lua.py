"""Slips of `bucket.lua`: a test must notice each: another comparison, another sign, another number, a line less.

`python -m checks.mutation.bucket_lua` runs the differential test, on programs that are the same in every run, against
each; what survives that meets the storage's own tests. What nothing can notice stands in `bucket_lua.toml` with its
reason. Exit code 1 if another one survives, or if one that is listed is gone.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings

from checks.mutation.script import VARIABLE, loaded, shipped
from checks.page import renew, table
from tests.redis.stories import STORIES
from tests.redis.strategies import Program, programs
from tests.redis.test_differential import agree
from tests.servers import running

EXPLAINED: Final = Path(__file__).with_suffix(".toml")
STORAGE_TESTS: Final = (
    *("tests/redis/test_turns.py", "tests/redis/test_lifetimes.py", "tests/redis/test_nothing_half.py"),
    *("tests/redis/test_together.py", "tests/redis/test_resend.py", "tests/redis/test_redis_storage.py"),
    *("tests/redis/test_tls_acl.py", "checks/tests/test_linear.py"),
)
_OPTIONS: Final = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not system_redis", "-k", "not redis]")
"""One kind of server is enough."""
PROGRAMS: Final = 500
"""As many as the differential test runs in CI."""
DIFFERENTIAL: Final = "differential test"

SLIPS: Final = (
    (r"(?<![<>=~])<(?!=)", "<="),
    (r"<=", "<"),
    (r"(?<![<>=~])>(?!=)", ">="),
    (r">=", ">"),
    (r"==", "~="),
    (r"~=", "=="),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* ", " + "),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bnot ", ""),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"'all'", "'some'"),
    (r"'some'", "'all'"),
    (r"(?<![\w'.\[%])([0-9]+)(?![\w'.])", "number"),
)
"""What stands in a line, and what a slip makes of it. A number becomes the next one."""


@dataclass(frozen=True, slots=True)
class Slip:
    """One way to break the script: what its line becomes."""

    number: int
    was: str
    becomes: str

    @property
    def name(self) -> str:
        """What tells it from others, for as long as the line stays as it is."""
        return f"{self.was.strip()}  ->  {self.becomes.strip()}"

    def of(self, script: str) -> str:
        """Return the broken script."""
        lines = script.splitlines()
        lines[self.number] = self.becomes
        return "\n".join(lines) + "\n"


def slips(script: str) -> Iterator[Slip]:
    """Yield every slip, and for every call that writes the line without it."""
    for number, line in enumerate(script.splitlines()):
        if not line.strip() or line.strip().startswith("--"):
            continue
        for what, becomes in SLIPS:
            for found in re.finditer(what, line):
                text = str(int(found[0]) + 1) if becomes == "number" else becomes
                yield Slip(number, line, line[: found.start()] + text + line[found.end() :])
        if re.match(r" *call\(|^ *(keep|take_turn)\(", line):
            yield Slip(number, line, "")


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
    @given(programs())
    def collect(program: Program) -> None:
        drawn.append(program)

    collect()
    return drawn


def explained() -> dict[str, str]:
    """Return the slips that nothing can notice, each with its reason."""
    rows: dict[str, list[str]] = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    return {name: reason for reason, names in rows.items() for name in names}


def difference(client: redis.Redis, script: str, drawn: Sequence[Program], first: Counter[int]) -> str:
    """Return the first program in which this script differs from the rules; '' if there is none.

    first: how often a program noticed something before; the keenest are tried first.
    """
    with loaded(script):
        for number in sorted(range(len(drawn)), key=lambda number: -first[number]):
            # Whatever goes wrong tells the slip from the script; pytest's failures are no Exceptions.
            try:
                agree(client, drawn[number])
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001
                first[number] += 1
                return f"{type(error).__name__} in program {number} of the {DIFFERENTIAL}"
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
    """Try the slips and print what became of them."""
    options = _parser().parse_args(arguments)
    script, known = shipped(), explained()
    found = list(slips(script))
    gone = known.keys() - {slip.name for slip in found}
    chosen = [slip for slip in found if options.only in slip.name and slip.name not in known]
    drawn = [*STORIES.values(), *fixed_programs(options.programs)]
    # Forked: each process has the programs.
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        shares = [chosen[start :: options.jobs] for start in range(options.jobs)]
        noticed = [fate for share in pool.map(noticed_of, shares, [drawn] * options.jobs) for fate in share]
    survived = [slip for slip, by in noticed if not by]
    print(f"{len(chosen)} slips tried, {len(survived)} survived; {len(known)} more can't be told from the script")
    for name in sorted(gone):
        print(f"{EXPLAINED.name} explains a slip that is none any more: {name}", file=sys.stderr)
    if options.write:
        renew(options.write, "mutants-lua-page", tables({slip.name: by for slip, by in noticed}, known))
    return 1 if survived or gone else 0


def tables(fates: Mapping[str, str], known: Mapping[str, str]) -> Iterator[str]:
    """Yield what became of the slips, and which can't be told from the script."""
    by_difference = sum(DIFFERENTIAL in by for by in fates.values())
    survived = list(fates.values()).count("")
    yield from table(
        ("slips:", "noticed by the differential test:", "by the storage's tests:", "survived:", "not to be noticed:"),
        [(len(fates), by_difference, len(fates) - by_difference - survived, survived, len(known))],
    )
    yield from ("These can't be told from the script by anything, and are not tried:", "")
    yield from table(("slip", "why"), ((f"`{name}`", why) for name, why in known.items()))


def noticed_of(some: Sequence[Slip], drawn: Sequence[Program]) -> list[tuple[Slip, str]]:
    """Return how each slip was noticed, on a server of their own, and print what became of them."""
    noticed: list[tuple[Slip, str]] = []
    script, keenest = shipped(), Counter[int]()
    with running("valkey") as server, server.client() as client:
        for slip in some:
            broken = slip.of(script)
            by = difference(client, broken, drawn, keenest) or failing_test(broken)
            noticed.append((slip, by))
            print(f"{'killed' if by else 'SURVIVED':8}  {slip.number + 1}: {slip.name}  ({by})", flush=True)
            client.ping()  # a server that is gone would kill them all
    return noticed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only slips with this in their name")
    parser.add_argument("--programs", type=int, default=PROGRAMS, help=f"how many programs (default: {PROGRAMS})")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes (default: 2)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put what came out into this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
