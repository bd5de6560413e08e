"""The public face: what completion shows, and that type checkers see each public name in use."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

import keepa_tokens
from keepa_tokens import testing

TYPED = (Path(__file__).parent / "typed_api.py").read_text(encoding="utf-8")
IMPORTED = set(re.findall(r"\b\w+\b", TYPED.split("from keepa_tokens import (")[1].split(")")[0]))
EXTRAS = set(keepa_tokens._EXTRAS)
"""The names that are imported when they are asked for."""
PAGES = "".join(
    page.read_text(encoding="utf-8") for page in (Path(__file__).parents[1] / "docs/reference").rglob("*.md")
)
SHOWN = set(re.findall(r"^\.\. (?:auto)?(\w+):: (keepa_tokens[\w.]+)(\(\))?(\n   :members:)?", PAGES, re.MULTILINE))
"""What the reference shows: its kind and name, `()` where callers don't make it themselves, whether its methods too."""
TABLED = {name for cell in re.findall(r"^\| (`[^|]+) \|", PAGES, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
"""The arguments that a table of the reference explains."""


def test_each_public_name_is_typed() -> None:
    """Every name of `__all__`, and every name of an extra, is used in typed_api.py, which the type checkers read."""
    assert set(keepa_tokens.__all__) | EXTRAS <= IMPORTED
    used = TYPED.split("from keepa_tokens.testing")[1]
    assert [name for name in IMPORTED if not re.search(rf"\b{name}\b", used)] == []


def test_completion_shows_what_is_public() -> None:
    """`dir(keepa_tokens)` has each public name, those of the extras too, and nothing else."""
    assert set(dir(keepa_tokens)) == set(keepa_tokens.__all__) | EXTRAS | {"__version__"}


def test_each_public_name_has_a_page() -> None:
    """Each public name stands in the API reference, the testing kit's too."""
    documented = {name for _, name, *_ in SHOWN}
    public = {f"keepa_tokens.{name}" for name in {*keepa_tokens.__all__, *EXTRAS}}
    assert public | {f"keepa_tokens.testing.{name}" for name in testing.__all__} <= documented


@pytest.mark.parametrize("name", sorted({name for kind, name, *_ in SHOWN if kind in {"class", "function"}}))
def test_each_parameter_is_explained(name: str) -> None:
    """What a reader of the reference may pass is explained: where it is taken, by its twin, or in a page's table."""
    for said, function in callables(name):
        parameters = inspect.signature(function).parameters.values()
        named = {p.name for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}}
        explained = {name for name in named if re.search(rf"\b{name}(?:, \w+)*:|`{name}`", said)}
        assert named - explained - TABLED - {"self"} == set(), function


def callables(name: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield what a page shows under a name, if a caller calls it, with the docstrings that may explain it."""
    module, _, short = name.rpartition(".")
    shown = getattr(import_module(module), short)
    twin = getattr(import_module(module), short.replace("Async", "").replace("async_", ""), shown)
    said = f"{inspect.getdoc(shown)}\n{inspect.getdoc(twin)}"
    if not inspect.isclass(shown):
        yield said, shown
        return
    ((made_elsewhere, members),) = {tuple(how) for _, listed, *how in SHOWN if listed == name}
    if not made_elsewhere and (short in {"Quota", "Reading"} or not is_value(shown)):
        yield said, shown
    for attribute, value in vars(shown).items() if members else ():
        method = getattr(shown, attribute)
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, classmethod)):
            yield f"{said}\n{inspect.getdoc(method)}\n{inspect.getdoc(getattr(twin, attribute, None))}", method


def is_value(kind: type) -> bool:
    """Tell whether the library makes these, and callers read them."""
    return dataclasses.is_dataclass(kind) or issubclass(kind, str)


def test_a_parameter_that_nothing_explains_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above bites."""

    def made_up(unheard_of: int) -> None:
        """Say nothing of it."""

    monkeypatch.setattr(keepa_tokens, "made_up", made_up, raising=False)
    with pytest.raises(AssertionError, match="unheard_of"):
        test_each_parameter_is_explained("keepa_tokens.made_up")
