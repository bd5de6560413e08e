"""Import rules that the contracts in pyproject.toml cannot say; `make layers` holds the others."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"


def imported_by(path: Path) -> Iterator[str]:
    """Yield the full name of every module that the file imports, inside functions too."""
    package = ".".join(path.relative_to(SOURCE).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if node.module:
                yield base
            else:  # from . import x
                yield from (f"{base}.{alias.name}" for alias in node.names)


def foreign_to(module: str) -> set[str]:
    """Return what a testing module imports, itself or through its neighbours, that is neither Python's nor theirs."""
    foreign: set[str] = set()
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        at = ahead.pop()
        seen.add(at)
        for name in imported_by(SOURCE.joinpath(*at.split(".")).with_suffix(".py")):
            if name.startswith("keepa_tokens.testing."):
                ahead += [] if name in seen else [name]
            elif name.partition(".")[0] not in sys.stdlib_module_names:
                foreign.add(name)
    return foreign


@pytest.mark.parametrize("name", ["clock", "fake_keepa"])
def test_light_testing_modules_lean_on_the_clock_alone(name: str) -> None:
    """The manual clock and the fake server import only the standard library and the clock, so any test may use them."""
    foreign = foreign_to(f"keepa_tokens.testing.{name}")
    assert foreign <= {"keepa_tokens.clock", "_typeshed"}  # _typeshed: for types only


def test_every_form_of_import_counts_and_a_neighbours_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above is no blind one: it finds each form, and an extra that a neighbour imports in a function."""
    folder = tmp_path / "keepa_tokens" / "testing"
    folder.mkdir(parents=True)
    (folder / "x.py").write_text("import os, a.b\nfrom ..clock import C\nfrom . import y\nfrom .y import f\n", "utf-8")
    (folder / "y.py").write_text("from .x import g\ndef f():\n    import httpx\n", "utf-8")
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    assert set(imported_by(folder / "x.py")) == {"os", "a.b", "keepa_tokens.clock", "keepa_tokens.testing.y"}
    assert foreign_to("keepa_tokens.testing.x") == {"a.b", "keepa_tokens.clock", "httpx"}
