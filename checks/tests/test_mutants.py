"""What `make mutants` says can be trusted: its table is of the code as it is, and a run without reasons fails."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest

from checks.mutation import core
from checks.mutation.judgement import Mutant, judged, listed, shared_out, survivors

FUNCTION = "keepa.reading._whole"
MUTANTS = [Mutant(FUNCTION, "was", f"becomes {n}", f"x__whole__mutmut_{n}") for n in range(1, 101)]


def survivor(mutant: Mutant, *, equivalent: bool = False) -> Mutant:
    return replace(mutant, reason="for a reason", equivalent=equivalent)


@pytest.mark.parametrize(
    "unnoticed, explained, equivalent, tried, share, passed",
    [
        pytest.param(0, 0, False, 100, 1.0, True, id="all are noticed"),
        pytest.param(1, 0, False, 100, 0.99, False, id="somebody has to look at one that nobody explained"),
        pytest.param(0, 5, False, 95, 0.95, True, id="of a hundred five may survive for a reason"),
        pytest.param(0, 6, False, 94, 0.94, False, id="six may not"),
        pytest.param(0, 50, True, 50, 1.0, True, id="what nothing can tell from the code does not count"),
    ],
)
def test_what_a_run_comes_to(
    unnoticed: int, explained: int, equivalent: bool, tried: int, share: float, passed: bool
) -> None:
    """It passes if all are noticed or explained, and nearly all of those that can be told from the code are noticed."""
    rows = [survivor(mutant, equivalent=equivalent) for mutant in MUTANTS[:explained]]
    judgement = judged(MUTANTS, MUTANTS[:unnoticed], rows)
    assert (judgement.tried, judgement.share, judgement.passed) == (tried, share, passed)
    assert judgement.unlisted == MUTANTS[:unnoticed]


def test_a_reason_for_what_is_no_mutant_any_more_fails_the_run() -> None:
    """The code was changed under a listed one: it has to be looked at again."""
    old = replace(survivor(MUTANTS[0]), was="as it was before")
    judgement = judged(MUTANTS, [], [old])
    assert (judgement.gone, judgement.passed) == ([old], False)


def test_a_run_of_one_module_leaves_the_reasons_of_others_alone() -> None:
    """What is listed of modules that were not tried is neither gone nor counted."""
    judgement = judged(MUTANTS, [], [replace(survivor(MUTANTS[0]), place="rules.reading._whole")])
    assert (judgement.gone, judgement.listed, judgement.passed) == ([], [], True)


def test_two_mutants_that_look_alike_are_told_apart_by_their_order() -> None:
    """Of two equal changes in one function a reason for the first is none for the second."""
    alike = [MUTANTS[0], replace(MUTANTS[0], name="x__whole__mutmut_2", nth=2)]
    assert judged(alike, alike, [survivor(alike[0])]).unlisted == alike[1:]


def test_a_row_lists_each_thing_that_may_stand_in_a_place() -> None:
    """One reason may hold for several ways to break a line."""
    row = {"place": FUNCTION, "was": "a", "becomes": ["b", "c"], "reason": "for a reason", "equivalent": True}
    assert [each.becomes for each in listed(row)] == ["b", "c"]
    assert all(each.equivalent and each.nth == 1 and each.reason == "for a reason" for each in listed(row))


def test_mutants_of_one_function_stay_together() -> None:
    """Whatever noticed one of them is near when the next is tried; each is tried once, by one lane."""
    others = [replace(mutant, place="keepa.reading._number") for mutant in MUTANTS[:60]]
    shares = shared_out([*MUTANTS, *others], 3)
    assert sorted((len(share), len({mutant.place for mutant in share})) for share in shares) == [(60, 1), (100, 1)]


def test_the_table_is_of_the_code_as_it_is() -> None:
    """Each survivor names a function that there is, and code that stands in it; none is listed twice."""
    rows = survivors()
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        code = _function(row.module, row.place.removeprefix(f"{row.module}."))
        assert _without_space(row.was) in _without_space(code), row
        assert len(row.reason) > len("equivalent"), row


def _function(module: str, name: str) -> str:
    source = inspect.getsource(importlib.import_module(f"keepa_tokens.{module}"))
    found: ast.AST = ast.parse(source)
    for part in name.split("."):
        (found,) = (node for node in ast.iter_child_nodes(found) if getattr(node, "name", "") == part)
    return ast.get_source_segment(source, found) or ""


def _without_space(code: str) -> str:
    return "".join(code.split())


def test_a_run_goes_on_where_one_before_it_ended(tmp_path: Path) -> None:
    """What was noticed is left in a file, a line each; no file yet is none noticed."""
    noticed = tmp_path / "noticed.jsonl"
    assert core.noticed_in(None) == core.noticed_in(noticed) == set()
    key = ("rules.line.is_late", "now > 1", "now >= 1", 2)
    noticed.write_text(f"{json.dumps(key)}\n", encoding="utf-8")
    assert core.noticed_in(noticed) == {key}
