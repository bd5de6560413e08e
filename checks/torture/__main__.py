"""`python -m checks.torture` runs workers on buckets under faults, and checks what they logged against the promise.

Ends with exit code 1 if anything broke, and then keeps the logs and says where.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from checks.torture.report import check, table
from checks.torture.scene import run
from checks.torture.steps import story_of
from checks.torture.storage import PLANTED
from checks.torture.story import read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, say what broke."""
    options = _parser().parse_args(arguments)
    if options.check is not None:
        result = check(story_of(read(options.check)))
        print(table(result))
        return 1 if result.findings else 0
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"seed {seed}: python -m checks.torture --seed {seed} --minutes {options.minutes:g}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kt-torture-")) if options.logs is None else options.logs
    folder.mkdir(parents=True, exist_ok=True)
    result = run(folder, seed, options.minutes * 60, options.workers, options.planted)
    print(table(result))
    if result.findings or options.logs is not None:
        print(f"logs: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if result.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="about how long (default: 1)")
    parser.add_argument("--seed", type=int, help="of the faults and of what the workers do (default: any)")
    parser.add_argument("--workers", type=int, default=4, help="processes that work (default: 4)")
    parser.add_argument("--logs", type=Path, help="the folder for the logs, which are kept then")
    parser.add_argument("--check", type=Path, help="run nothing: check the logs in this folder")
    parser.add_argument("--planted", choices=sorted(PLANTED), default="", help="break a rule on purpose")
    return parser


if __name__ == "__main__":
    sys.exit(main())
