"""The tests' own conventions, held by a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "sleep": {"time"},
    "skip": {"pytest"},
    "xfail": {"pytest", "mark"},
    "skipif": {"mark"},
    "importorskip": {"pytest"},
}
# Helpers may wait for a real server to come up; a test may not.
SOURCES = sorted(path for folder in ("tests", "checks/tests") for path in (ROOT / folder).rglob("test_*.py"))


def functions(source: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_each_test_says_in_a_sentence_what_it_shows(source: Path) -> None:
    """Every test function has a docstring that begins with a capital and ends as a sentence."""
    for function in functions(source):
        says = ast.get_docstring(function)
        assert says, f"{function.name} says nothing"
        assert says.rstrip().endswith((".", "!", "?")), f"{function.name}: {says!r} is no sentence"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_no_test_sleeps_or_is_skipped(source: Path) -> None:
    """No test waits in real time by time.sleep, and none is skipped or expected to fail."""
    for node in ast.walk(ast.parse(source.read_text())):
        calls = [node.func] if isinstance(node, ast.Call) else getattr(node, "decorator_list", [])
        for called in calls:
            if isinstance(called, ast.Attribute) and called.attr in FORBIDDEN:
                owner = (
                    called.value.attr if isinstance(called.value, ast.Attribute) else getattr(called.value, "id", "")
                )
                assert owner not in FORBIDDEN[called.attr], f"{source.name}:{called.lineno}: {owner}.{called.attr}"
