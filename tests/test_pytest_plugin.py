"""The plugin of the testing kit, in pytest runs of their own: its fixtures work, and cost nothing to those without."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PLUGIN = "_keepa_tokens_pytest"


def passes(pytester: pytest.Pytester, test: str, *, passed: int = 1) -> None:
    """Run a test in a pytest of its own, in this process, which finds the plugin as an installed one."""
    pytester.makepyfile(test)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=passed)


def test_pytest_finds_it() -> None:
    """It is announced under the library's name."""
    (found,) = entry_points(group="pytest11", name="keepa_tokens")
    assert found.value == PLUGIN


@pytest.mark.deep
def test_it_costs_nothing_to_those_who_do_not_use_it(pytester: pytest.Pytester) -> None:
    """In a run without its fixtures the plugin is loaded, and nothing of the package is."""
    pytester.makepyfile(
        f"""
        import sys

        def test_what_is_loaded():
            assert {PLUGIN!r} in sys.modules
            ours = [name for name in sys.modules if name.partition(".")[0] == "keepa_tokens"]
            assert ours == []
        """
    )
    # In a process of its own: in this one the package is loaded.
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_its_module_imports_only_pytest() -> None:
    """Importing it loads nothing that pytest has not loaded before it, but Python's own."""
    code = f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) - sys.stdlib_module_names == {PLUGIN}


def test_a_call_is_metered_by_the_fixtures(pytester: pytest.Pytester) -> None:
    """The adapter, the fake server and the clock belong together: a call's cost shows, and waiting passes no time."""
    passes(
        pytester,
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


def test_the_page_shows_what_works(pytester: pytest.Pytester) -> None:
    """The test that docs/howto/testing.md shows passes as it stands there."""
    page = Path(__file__).parents[1] / "docs" / "howto" / "testing.md"
    (shown,) = (
        block.partition("```")[0]
        for block in page.read_text(encoding="utf-8").split("```python\n")
        if "def test_my_ingestion" in block
    )
    passes(pytester, shown)


def test_the_fake_server_can_be_asked_by_http(pytester: pytest.Pytester) -> None:
    """The same server answers by HTTP on loopback, and its time is still the one of the manual clock."""
    passes(
        pytester,
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


def test_each_test_has_fixtures_of_its_own(pytester: pytest.Pytester) -> None:
    """What one test spends is there for the next."""
    passes(
        pytester,
        """
        import pytest

        @pytest.mark.parametrize("time", [1, 2])
        def test_spend(keepa_sync, fake_keepa, time):
            assert fake_keepa.balance == 300
            assert keepa_sync.refresh().balance == 300
            fake_keepa.request("/category", {"category": "1"})
        """,
        passed=2,
    )


def test_each_fixture_says_what_it_is(pytester: pytest.Pytester) -> None:
    """`pytest --fixtures` shows each with a sentence."""
    lines = pytester.runpytest_inprocess("--fixtures").outlines
    for name in ("manual_clock", "fake_keepa", "fake_keepa_server", "keepa_sync"):
        (at,) = (number for number, line in enumerate(lines) if line.startswith(f"{name} -- "))
        assert lines[at + 1].strip().endswith(".")
