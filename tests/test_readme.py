"""The README tells the truth: its first program runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import keepa
import pytest
from celery import Celery

from keepa_tokens import KeepaSync, NotEnoughTokens, Quota, RedisStorage, TokenBucket, keepa_quota
from keepa_tokens.guards.celery import KeepaTask
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock
from tests.servers import HOST, running

from tests.test_examples import send_to  # isort: skip

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS: list[str] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_run_as_they_stand() -> None:
    """The first Python block of the README, run by itself, ends well and prints a snapshot with a balance."""
    program = PROGRAMS[0]
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


def test_paths_that_pages_name_are_there() -> None:
    """Each file of the project that a page names exists, so that whoever moves one mends the page."""
    named = 0
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for path in re.findall(r"`((?:tests|checks|src|examples)/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8")):
            named += 1
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
    assert named > 20


def test_the_commands_are_targets_of_the_makefile() -> None:
    """Each `make` command that the README, CONTRIBUTING and the page of the checks show is a target."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in ("README.md", "CONTRIBUTING.md", "docs/checks.md"):
        shown = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert "test" in shown
        for target in shown:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: {target}"


def test_the_task_looks_up_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program for Celery makes a task that comes back: it looks a product up, or raises the bucket's refusal."""
    for balance, module in ((6, "readme_full"), (-300, "readme_empty")):  # every app gets the tasks of all
        fake = FakeKeepa(key="k" * 64, initial=balance)
        sync = KeepaSync(TokenBucket(keepa_quota(), clock=fake.clock), probe=fake.probe)
        app = Celery(set_as_current=False)
        names: dict[str, Any] = {"sync": sync, "api_key": "k" * 64, "app": app, "httpx": httpx, "__name__": module}
        with FakeKeepaServer(fake) as server, monkeypatch.context() as patch:
            send_to(server.url, patch)
            exec(PROGRAMS[1], names)
            assert isinstance(app.tasks[f"{module}.look_up"], KeepaTask)
            if balance > 0:
                assert len(names["look_up"]("B000000001")["products"]) == 1
            else:
                with pytest.raises(NotEnoughTokens):
                    names["look_up"]("B000000001")
            names["client"].close()
        app.close()


def test_the_guard_of_the_keepa_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs for Redis and for the `keepa` package, one after the other, meter a real client's request."""
    fake = FakeKeepa(key="k" * 64, initial=20)
    with running("valkey") as redis, FakeKeepaServer(fake) as server:
        send_to(server.url, monkeypatch)
        names: dict[str, Any] = {"api_key": "k" * 64, "keepa": keepa, "KeepaSync": KeepaSync}
        exec(PROGRAMS[2].replace("localhost:6379", f"{HOST}:{redis.port}"), names | {"RedisStorage": RedisStorage})
        exec(PROGRAMS[3], names)
        assert len(names["api"].query(["B000000001"], progress_bar=False, history=False)) == 1
    assert (fake.spent, fake.token_calls) == (1, 1)


def test_any_other_api_works_with_a_bucket_of_its_own() -> None:
    """The program for a plain bucket takes what it says."""
    names: dict[str, Any] = {"TokenBucket": partial(TokenBucket, clock=ManualClock()), "Quota": Quota}
    exec(PROGRAMS[4], names)
    assert names["bucket"].peek().balance == 100 - 1 - 5


def test_there_is_no_program_that_is_not_run() -> None:
    """The README has the five programs that are run here."""
    assert len(PROGRAMS) == 5


def test_each_extra_is_told() -> None:
    """The README names each extra that can be installed, and no other."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    section = README.split("## Installing")[1].split("\n## ")[0]
    assert set(re.findall(r"\[([a-z0-9]+)\]", section)) == set(extras)
