"""The command line: `keepa-tokens`, or `python -m keepa_tokens`."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Final

__all__ = ["main"]

EXTRAS: Final = frozenset({"click", "httpx", "rich"})
MISSING: Final = 2
INTERRUPTED: Final = 130


def main() -> int:
    """Run the command line and return its exit code; a missing extra is a line that says how to get it."""
    _prepare_streams()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # an exit restores the terminal first
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


def _prepare_streams() -> None:
    """Replace closed streams by empty ones, and let letters that a stream's encoding lacks be shown as others."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their file descriptors
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - the process ends it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a caller of `main` may have put something else in its place
            stream.reconfigure(errors="replace")
