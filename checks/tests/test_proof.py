"""The proof's own logic: reports are read for what they say, and nothing that was proved is lost unnoticed."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

from checks.mutation.judgement import Mutant, by_hand
from checks.page import END, begin, renew, says
from checks.proof import __main__ as command_line
from checks.proof import runs, solver
from checks.proof.runs import PARTS, Job, Line, explored, jobs, noticed, tables
from checks.proof.solver import SOURCE, Report, Verdict, read_report
from checks.proof.table import PLANS, THEOREMS, Expected, Table, load, shortfalls, stated, unmatched
from checks.proof.theorems import terms
from checks.proof.worlds import Alone, Synced, explore, worlds

CONFIRMED = Expected(Verdict.CONFIRMED, PLANS)
FAULTS = by_hand()
PLAN_FREE = {"DEBT", "LATEST", "LIMIT", "MICROSECONDS", "UNLIMITED"}
QUICK = list(worlds(quick=True))


@pytest.mark.parametrize(
    "output,verdict",
    [
        ("/x/refill.py:13: info: Confirmed over all paths.\n", Verdict.CONFIRMED),
        ("/x/refill.py:13: info: Not confirmed.\n", Verdict.SEARCHED),
        ("/x/refill.py:13: info: Unable to meet precondition\n", Verdict.UNMET),
        ("warning\n/x/refill.py:13: error: false when calling f(1, -2) (which returns False)\n", Verdict.REFUTED),
        ("/x/refill.py:13: error: ZeroDivisionError:  when calling f(0)\n", Verdict.REFUTED),
        ("/x/refill.py:13: error: invalid syntax in precondition\n", Verdict.FAILED),
        ("/x/refill.py:13: info: Confirmed, more or less.\n", Verdict.FAILED),
        ("Could not import your code:\nModuleNotFoundError: No module named 'keepa_tokens'\n", Verdict.FAILED),
        ("no end after 900 s", Verdict.FAILED),
        ("", Verdict.FAILED),
        (2 * "/x/refill.py:13: info: Confirmed over all paths.\n", Verdict.FAILED),
    ],
)
def test_only_a_confirmation_counts_as_one(output: str, verdict: Verdict) -> None:
    """A report is read by its words: not confirmed, no input met, nothing said or two things said confirm nothing.

    The words of a refutation are the call that refutes.
    """
    told, words = read_report(output)
    assert told is verdict
    assert ("f(" in words) == (verdict is Verdict.REFUTED)


@pytest.mark.parametrize("expected", [Verdict.CONFIRMED, Verdict.REFUTED])
@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("plan", range(len(PLANS)))
def test_what_comes_out_must_be_what_is_expected(expected: Verdict, verdict: Verdict, plan: int) -> None:
    """What was proved must stay proved at each plan; what must be refuted must be: not to be confirmed is less."""
    reports = [Report(expected, "")] * len(PLANS)
    reports[plan] = Report(verdict, "why")
    short = f"a.b at {PLANS[plan]}: {verdict}, should be {expected}: why"
    assert shortfalls("a.b", Expected(expected, PLANS), reports) == [short][: verdict is not expected]


def test_each_plan_must_be_checked() -> None:
    """A theorem that was checked at three plans of four falls short."""
    assert shortfalls("a.b", CONFIRMED, [Report(Verdict.CONFIRMED, "")] * 3) == ["a.b: 3 of 4 checks ran"]


def test_a_line_shows_the_worst_of_its_checks() -> None:
    """A theorem confirmed at three plans and refuted at one is shown as refuted, with the counterexample."""
    reports = [Report(Verdict.CONFIRMED, "")] * 3 + [Report(Verdict.REFUTED, "f(1)", 2.0)]

    line = Job("part", "a.b", "plans", CONFIRMED, []).line(reports)

    assert (line.result, line.seconds, len(line.shortfalls)) == ("refuted: f(1)", 2.0, 1)


def test_a_theorem_lost_or_new_is_told() -> None:
    """A theorem of the table that nobody states any more falls short, and so does one that the table doesn't know."""
    assert unmatched("theorem", ["a", "b"], ["b", "c"]) == [
        "a: in the table, but there is no such theorem",
        "c: a theorem that is not in the table",
    ]


def test_the_table_names_what_there_is() -> None:
    """The committed table, the theorems stated and the worlds are of one mind; each planted fault has its check."""
    table = load()

    assert unmatched("theorem", table.theorems, stated()) == []
    assert unmatched("world", table.worlds, (world.name for world in worlds())) == []
    assert {mutant.by for mutant in FAULTS} <= {*table.theorems, *table.worlds}


def test_the_guarantees_name_theorems_that_are_confirmed() -> None:
    """What docs/evidence/guarantees.md calls proved is in the table, as confirmed or, of the old rule, refuted."""
    table = load()
    modules = "|".join(source.stem for source in THEOREMS.glob("*.py"))
    promises = (THEOREMS.parents[2] / "docs" / "evidence" / "guarantees.md").read_text()
    named = {name for name in re.findall(rf"`((?:{modules})\.\w+)`", promises) if not name.endswith(".py")}

    assert len(named) > 30
    assert {table.theorems[name].verdict for name in named} == {Verdict.CONFIRMED, Verdict.REFUTED}


@pytest.mark.parametrize("plans", range(1, len(PLANS) + 1))
def test_every_theorem_world_and_fault_is_run(plans: int) -> None:
    """Each row of the table and each planted fault has a job; a theorem's has a check for each of its first plans."""
    table = load()
    run = {job.name: job for job in jobs(table, plans)}

    assert run.keys() == {*table.theorems, *table.worlds, *(mutant.name for mutant in FAULTS)}
    for name, expected in table.theorems.items():
        assert len(run[name].checks) == len(run[name].expected.plans) == len(expected.plans[:plans])


@pytest.mark.parametrize(
    "text, becomes", [("plans = [", 'plans = ["refill.smooth_conserves",'), ("one_plan = ", "one_plan = 1")]
)
def test_a_table_that_is_not_of_the_theorems_is_refused(tmp_path: Path, text: str, becomes: str) -> None:
    """It expects one thing of each theorem, and knows how many there are that it doesn't name."""
    table = (THEOREMS.parent / "expected.toml").read_text()
    path = tmp_path / "expected.toml"
    path.write_text(table.replace(text, becomes))

    with pytest.raises(ValueError, match=r"twice: refill\.smooth_conserves|theorems that expected.toml doesn't name"):
        load(path)


def test_every_rate_means_every_rate() -> None:
    """No theorem listed for every rate names a term that is a plan's, in its body or its preconditions."""
    table = load()
    of_plan = {name for name in vars(terms) if name.isupper()} - PLAN_FREE
    words = {
        f"{source.stem}.{node.name}": set(re.findall(r"\w+", ast.unparse(node)))
        for source in THEOREMS.glob("*.py")
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    of_plans = {name for name in words if words[name] & of_plan}
    every_rate = {name for name, expected in table.theorems.items() if expected.plans == (None,)}

    assert every_rate
    assert of_plans
    assert not every_rate & of_plans


@pytest.mark.parametrize("mutant", FAULTS, ids=lambda mutant: mutant.name)
def test_planted_faults_still_apply(mutant: Mutant) -> None:
    """Each fault can be planted in the code as it is: what it replaces stands there once, and the result compiles."""
    text = mutant.of((SOURCE / "keepa_tokens" / mutant.place).read_text())
    compile(text, mutant.place, "exec")
    assert mutant.becomes in text


def test_a_fault_that_no_longer_applies_is_told() -> None:
    """A planted fault whose place is gone fails the run; it isn't left out."""
    gone = replace(FAULTS[0], was="no such line")

    assert noticed(gone, load()).verdict is Verdict.FAILED


def test_a_fault_whose_code_cannot_run_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault that names what isn't there is no fault: every check would notice."""
    fault = next(mutant for mutant in FAULTS if mutant.by in load().theorems)
    answer = Report(Verdict.REFUTED, "NameError: name 'NEVER' is not defined when calling f(0)")
    monkeypatch.setattr(runs, "check", lambda *_, **__: answer)

    assert noticed(fault, load()).verdict is Verdict.FAILED


@pytest.mark.parametrize("world", QUICK, ids=lambda world: world.name)
def test_small_worlds_keep_the_promise(world: Alone | Synced) -> None:
    """In the smallest worlds no step breaks safety, and each state leads to a grant or a probe."""
    count = explore(world)

    assert not count.broken
    assert count.states > 1


def test_all_interleavings_are_there() -> None:
    """Three calls of four steps each can be put in 12! / (4!)**3 orders, and the world has every one."""
    assert {explore(world).orders for world in QUICK if world.name.startswith("three calls, charged")} == {34_650}


def test_a_world_notices_a_planted_fault() -> None:
    """A transition that believes answers in whatever order they come is refuted by the world of three calls."""
    (fault,) = (mutant for mutant in FAULTS if mutant.name.startswith("every answer of a call is believed"))

    assert noticed(fault, load()).verdict is Verdict.REFUTED


def test_a_check_that_hangs_confirms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has to be ended is told as not checked, whatever it had written by then."""
    monkeypatch.setattr(solver, "GIVE_UP_S", 0.2)

    hung = explored("three calls, two refills, charged at admission")

    assert hung.verdict is Verdict.FAILED
    assert "ended by signal 9" in hung.words
    assert 0 <= hung.seconds < 60


def test_a_world_that_shrank_is_told() -> None:
    """A world with fewer states than the table has seen is no confirmation, and one that doesn't exist neither."""
    name = "three calls on 2 tokens, charged at completion"

    assert explored(name, least=2).verdict is Verdict.CONFIRMED
    assert explored(name, least=10**6).verdict is Verdict.FAILED
    assert explored("nowhere").verdict is Verdict.FAILED


@pytest.mark.parametrize("least,code", [(2, 0), (10**6, 1)])
def test_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], least: int, code: int
) -> None:
    """The run ends with 0 if all came out as the table says, else with 1 and a line that says what fell short."""
    table = load()
    short = Table(table.theorems, {**table.worlds, "three calls on 2 tokens, charged at completion": least})
    monkeypatch.setattr(command_line, "load", lambda: short)

    assert command_line.main(["--only", "three calls on 2 tokens, charged at completion"]) == code
    assert ("FAILED: three calls on 2 tokens" in capsys.readouterr().out) == bool(code)


def test_a_run_of_nothing_fails() -> None:
    """A run that was asked for what isn't there ends with 1."""
    assert command_line.main(["--only", "no such line"]) == 1


def test_confirmed_theorems_of_one_subject_share_a_row() -> None:
    """The page names every theorem that was confirmed, in one row a module and rate, with the time of all of them."""
    names = ("refill.a", "waiting.a", "refill.b")
    lines = [Line(PARTS[1], name, "every rate", "confirmed", 1.0) for name in names]
    assert list(tables(lines))[4:6] == ["| refill | every rate | a, b | 2 |", "| waiting | every rate | a | 1 |"]


def test_the_page_is_renewed_between_its_marks(tmp_path: Path) -> None:
    """What came out goes between the two marks of a page, and a page without them is refused."""
    path = tmp_path / "proof.md"
    path.write_text(f"before\n{begin('proof-page')}\nold\n{END}\nafter\n")
    lines = list(tables([Line("Theorems", "a.b", "every rate", "confirmed: 1 | 2", 1.0)]))

    assert not says(path, "proof-page", lines)
    renew(path, "proof-page", lines)

    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| a.b | every rate | confirmed: 1 \\| 2 | 1 |" in text
    assert says(path, "proof-page", lines)
    with pytest.raises(ValueError, match="no place"):
        renew(path, "another", lines)
