"""The public face: what completion shows, and that type checkers see each public name in use."""

from __future__ import annotations

import re
from pathlib import Path

import keepa_tokens

TYPED = (Path(__file__).parent / "typed_api.py").read_text(encoding="utf-8")
IMPORTED = set(re.findall(r"\b\w+\b", TYPED.split("from keepa_tokens import (")[1].split(")")[0]))
EXTRAS = set(keepa_tokens._EXTRAS)
"""The names that are imported when they are asked for."""


def test_each_public_name_is_typed() -> None:
    """Every name of `__all__`, and every name of an extra, is used in typed_api.py, which the type checkers read."""
    assert set(keepa_tokens.__all__) | EXTRAS <= IMPORTED
    used = TYPED.split("from keepa_tokens.testing")[1]
    assert [name for name in IMPORTED if not re.search(rf"\b{name}\b", used)] == []


def test_completion_shows_what_is_public() -> None:
    """`dir(keepa_tokens)` has each public name, those of the extras too, and nothing else."""
    assert set(dir(keepa_tokens)) == set(keepa_tokens.__all__) | EXTRAS | {"__version__"}


def test_each_public_name_has_a_page() -> None:
    """Each public name stands in the API reference."""
    pages = "".join(
        page.read_text(encoding="utf-8") for page in (Path(__file__).parents[1] / "docs/reference").rglob("*.md")
    )
    documented = set(re.findall(r"^\.\. auto\w+:: keepa_tokens\.(\w+)(?:\(\))?$", pages, re.MULTILINE))
    assert set(keepa_tokens.__all__) | EXTRAS <= documented
