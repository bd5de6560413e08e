"""The plugin of the testing kit, in pytest runs of their own: its fixtures work, and cost nothing to those without."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent

PLUGIN = "_keepa_tokens_pytest"


def run_pytest(folder: Path, test: str, *options: str) -> str:
    """Run a test in a pytest of its own, which finds the plugin as an installed one; return what it printed."""
    (folder / "test_it.py").write_text(dedent(test), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pytest_finds_it() -> None:
    """It is announced under the library's name."""
    (found,) = entry_points(group="pytest11", name="keepa_tokens")
    assert found.value == PLUGIN


def test_it_costs_nothing_to_those_who_do_not_use_it(tmp_path: Path) -> None:
    """In a run without its fixtures the plugin is loaded, and nothing of the package is."""
    run_pytest(
        tmp_path,
        f"""
        import sys

        def test_what_is_loaded():
            assert {PLUGIN!r} in sys.modules
            ours = [name for name in sys.modules if name.partition(".")[0] == "keepa_tokens"]
            assert ours == []
        """,
    )


def test_its_module_imports_only_pytest() -> None:
    """Importing it loads nothing that pytest has not loaded before it, but Python's own."""
    code = f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) - sys.stdlib_module_names == {PLUGIN}


def test_a_call_is_metered_by_the_fixtures(tmp_path: Path) -> None:
    """The adapter, the fake server and the clock belong together: a call's cost shows, and waiting passes no time."""
    run_pytest(
        tmp_path,
        """
        def test_a_call(keepa_sync, fake_keepa, manual_clock):
            for _ in range(31):  # of 300 tokens: the last one has to wait for the debt of the one before
                with keepa_sync.request(10) as call:
                    response = fake_keepa.request("/product", {"asin": ",".join(f"A{n:09}" for n in range(10))})
                    call.settle(response.content, status=response.status)
                    assert response.status == 200
            assert manual_clock.now_us() > 60_000_000
            assert keepa_sync.bucket.peek().balance == fake_keepa.balance
            assert fake_keepa.token_calls == 1
        """,
    )


def test_the_page_shows_what_works(tmp_path: Path) -> None:
    """The test that docs/storages.md shows passes as it stands there."""
    page = Path(__file__).parents[1] / "docs" / "storages.md"
    (shown,) = (
        block.partition("```")[0]
        for block in page.read_text(encoding="utf-8").split("```python\n")
        if "def test_my_ingestion" in block
    )
    assert "1 passed" in run_pytest(tmp_path, shown)


def test_the_fake_server_can_be_asked_by_http(tmp_path: Path) -> None:
    """The same server answers by HTTP on loopback, and its time is still the one of the manual clock."""
    run_pytest(
        tmp_path,
        """
        import json
        from urllib.parse import urlsplit
        from urllib.request import urlopen

        def test_http(fake_keepa_server, fake_keepa, manual_clock):
            assert urlsplit(fake_keepa_server.url).hostname == "127.0.0.1"
            with urlopen(f"{fake_keepa_server.url}/category?key=k&domain=1&category=1") as answer:
                assert json.load(answer)["tokensLeft"] == 299
            manual_clock.advance(61.0)
            assert fake_keepa.balance == 300
        """,
    )


def test_each_test_has_fixtures_of_its_own(tmp_path: Path) -> None:
    """What one test spends is there for the next."""
    run_pytest(
        tmp_path,
        """
        import pytest

        @pytest.mark.parametrize("time", [1, 2])
        def test_spend(keepa_sync, fake_keepa, time):
            assert fake_keepa.balance == 300
            assert keepa_sync.refresh().balance == 300
            fake_keepa.request("/category", {"category": "1"})
        """,
    )


def test_each_fixture_says_what_it_is(tmp_path: Path) -> None:
    """`pytest --fixtures` shows each with a sentence."""
    lines = run_pytest(tmp_path, "def test_nothing(): pass\n", "--fixtures").splitlines()
    for name in ("manual_clock", "fake_keepa", "fake_keepa_server", "keepa_sync"):
        (at,) = (number for number, line in enumerate(lines) if line.startswith(f"{name} -- "))
        assert lines[at + 1].strip().endswith(".")
