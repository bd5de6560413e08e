"""The README tells the truth: its first program runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_run_as_they_stand() -> None:
    """The first Python block of the README, run by itself, ends well and prints a snapshot with a balance."""
    program = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    statements = [line for line in program.splitlines() if line and not line.startswith((" ", "from", "import"))]
    assert len(statements) <= 10
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Snapshot(balance=")
    assert done.stderr == ""


def test_links_lead_to_files_that_are_there() -> None:
    """Each relative link in the README and the docs names a file of the project."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_commands_are_targets_of_the_makefile() -> None:
    """Each `make` command that the README shows is a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
