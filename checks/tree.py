"""What a clone brings: no file that git ignores, no link out of the tree, no path of somebody's machine in a text.

`python -m checks.tree` looks at what git tracks, so what happens to lie about on a machine doesn't matter. It prints
what it finds and ends with 1 if that is anything. It needs git and no package.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]

LINK: Final = "120000"
"""The mode by which git marks a symbolic link."""

MACHINE_PATH: Final = re.compile(
    r"""
    (?<![\w.~-]) (?<!:/)  # where an absolute path begins: not inside a relative one, not the host of a URL
    /(?: root/ | (?:home|Users)/[\w.-]+ | work/ | workspaces?/ | builds/ | private/(?:tmp|var)/ | var/folders/ )
    | \b[A-Za-z]:[\\/]+Users[\\/]+[\w.-]+
    """,
    re.VERBOSE,
)
"""Folders in which people and their machines keep a clone or its parts. /usr, /etc and /tmp are the same everywhere."""


def findings(root: Path) -> Iterator[str]:
    """Yield what a clone of the repository at `root` should not bring, a line each."""
    tracked = _tracked(root)
    for path in _git(root, "ls-files", "-z", "--cached", "--ignored", "--exclude-standard"):
        yield f"{path}: tracked, though .gitignore names it"
    for path, (mode, blob) in tracked.items():
        if mode == LINK:
            yield from _of_link(path, _git(root, "cat-file", "blob", blob)[0], tracked)
        else:
            yield from _of_text(path, root / path)


def main() -> int:
    """Print what is found; return the exit code."""
    found = list(findings(ROOT))
    for finding in found:
        print(f"FAILED {finding}")
    return 1 if found else 0


def _tracked(root: Path) -> dict[str, tuple[str, str]]:
    """Return the mode and the blob of each tracked file by its path."""
    lines = (entry.partition("\t") for entry in _git(root, "ls-files", "-z", "--stage"))
    return {path: (about.split()[0], about.split()[1]) for about, _, path in lines}


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)  # noqa: S607 - git by PATH
    if done.returncode:
        raise SystemExit(f"git {arguments[0]} failed in {root}: {done.stderr.decode(errors='replace').strip()}")
    return [name for name in done.stdout.decode("utf-8", "surrogateescape").split("\0") if name]


def _of_link(path: str, target: str, tracked: Collection[str]) -> Iterator[str]:
    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if posixpath.isabs(target) or end == ".." or end.startswith("../"):
        yield f"{path}: a link that leaves the tree, to {target}"
    elif end != "." and end not in tracked and not any(name.startswith(f"{end}/") for name in tracked):
        yield f"{path}: a link to {target}, which is not tracked"


def _of_text(path: str, file: Path) -> Iterator[str]:
    content = file.read_bytes() if file.is_file() else b""
    if b"\0" in content:
        return
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        found = MACHINE_PATH.search(line)
        if found is not None:
            yield f"{path}:{number}: {found[0]}, a path of one machine"


if __name__ == "__main__":
    sys.exit(main())
