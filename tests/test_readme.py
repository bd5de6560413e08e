"""The README tells the truth: its program prints what it says, its table is the measured one, its links lead somewhere.

The programs of the other pages are run by test_docs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from docs.tables import day_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = PROJECT["urls"]["Documentation"] + "/en/latest/"
FILES = PROJECT["urls"]["Source"] + "/blob/main/"


def page_of(url: str) -> Path | None:
    """Return the file that a link leads to, if it leads to one of this project's."""
    if url.startswith(PAGES):
        name = url.removeprefix(PAGES).partition("#")[0]
        return ROOT / "docs" / (name.removesuffix(".html") + ".md" if name else "index.md")
    return ROOT / url.removeprefix(FILES) if url.startswith(FILES) else None


def test_the_ten_lines_print_what_the_readme_shows() -> None:
    """The README's program, run by itself, prints to the letter what stands under it."""
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shown = README.split(program)[1].split("```\n", maxsplit=2)[2].partition("```")[0]
    lines = [line for line in program.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) <= 10
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (shown, "")


def test_the_table_is_the_measured_one() -> None:
    """The README's table has the figures of the benchmark's page."""
    assert day_table("8 workers, 5/min") in README, "copy the figures: python -m docs.tables '8 workers, 5/min'"


def test_links_lead_to_pages_that_are_there() -> None:
    """The README has no relative link, which a package page couldn't follow; those to this project name its pages."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    ours = [page for link in links if (page := page_of(link))]
    assert all(link.startswith("https://") for link in links)
    assert len(ours) >= 10
    assert [page for page in ours if not page.exists()] == []


def test_the_check_of_links_sees_what_it_looks_for() -> None:
    """A link to a page that isn't there would be found, and one to somebody else's site is left alone."""
    missing = page_of(PAGES + "howto/nothing.html")
    assert missing is not None
    assert not missing.exists()
    assert page_of("https://keepa.com") is None


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/evidence/checks.md", "docs/maintainers/releasing.md"]
)
def test_the_commands_are_targets_of_the_makefile(page: str) -> None:
    """Each `make` command that these pages show is a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert shown
    for target in shown:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: {target}"


def test_each_extra_is_told() -> None:
    """The README names each extra that can be installed, and no other; the pages name no extra that isn't there."""
    extras = set(PROJECT["optional-dependencies"])
    section = README.split("## Installing")[1].split("\n## ")[0]
    assert set(re.findall(r"\[([a-z0-9]+)\]", section)) == extras
    for page in (ROOT / "docs").rglob("*.md"):
        for listed in re.findall(r"keepa-tokens\[([a-z0-9,]+)\]", page.read_text(encoding="utf-8")):
            assert set(listed.split(",")) <= extras, f"{page.name}: {listed}"
