"""The command line: `keepa-tokens`, or `python -m keepa_tokens`."""

from __future__ import annotations

import io
import sys
from typing import Final

__all__ = ["main"]

EXTRAS: Final = frozenset({"click", "httpx", "rich"})
MISSING: Final = 2
INTERRUPTED: Final = 130


def main() -> int:
    """Run the command line and return its exit code; a missing extra is a line that says how to get it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else a program's own, or none at all
            stream.reconfigure(errors="replace")  # a pipe may speak no Unicode: a bar is no reason to fail
    try:
        from .app import app  # noqa: PLC0415 - the packages it needs are an extra

        app(prog_name="keepa-tokens")
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] not in EXTRAS:
            raise
        print(
            f"keepa-tokens: {missing.name} is missing; get what the commands need: pip install 'keepa-tokens[cli]'",
            file=sys.stderr,
        )
        return MISSING
    except KeyboardInterrupt:  # while the packages load
        return INTERRUPTED
    return 0
