"""`keepa-tokens simulate`: a load at several rates, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from keepa_tokens import ConfigError
from keepa_tokens.cli.simulate import Load, demand, parse_mix, simulate
from keepa_tokens.cli.simulate_command import verdict
from tests.cli import document, run

LOAD = Load(parse_mix("product:10"), backlog=60)


def test_a_backlog_takes_as_long_as_its_tokens_refill() -> None:
    """600 tokens on a full bucket of 300 and 5 a minute take an hour, in which the other 300 come; 20 a minute none."""
    slow, quick = simulate(LOAD, 5), simulate(LOAD, 20)
    assert slow.done_after is not None
    assert quick.done_after is not None
    assert 58 * 60 < slow.done_after < 64 * 60
    assert quick.done_after < 10 * 60
    assert (slow.curve[0], slow.curve[-1]) == ((0.0, 60), (slow.done_after, 0))
    assert 3 <= len(slow.curve) <= 6
    assert slow.calls == quick.calls == 60
    assert slow.tokens == quick.tokens == 600


def test_a_seed_decides_the_whole_run() -> None:
    """The same seed is the same run; another one is another."""
    load = replace(LOAD, mix=parse_mix("product:10, search,offers:2"))
    assert simulate(load, 5) == simulate(load, 5)
    assert simulate(load, 5) != simulate(replace(load, seed=1), 5)


def test_others_and_faults_make_it_slower() -> None:
    """What others spend and calls without an answer cost time, and the calls are all done none the less."""
    plain = simulate(LOAD, 5)
    others = simulate(replace(LOAD, outside=200), 5)
    faults = simulate(replace(LOAD, faults=0.2), 5)
    assert plain.done_after is not None
    for result in (others, faults):
        assert result.done_after is not None
        assert result.done_after > plain.done_after
        assert result.calls == 60
    assert faults.failed > 0


def test_a_plan_that_is_too_small_is_told() -> None:
    """Where more comes than refills, the plan is not enough however long it runs, and the sentence says what is."""
    load = Load(parse_mix("product:10"), backlog=0, per_hour=60, days=0.25)
    small, large = simulate(load, 5), simulate(load, 20)
    assert (demand(load), demand(replace(load, mix=parse_mix("offers:2")))) == (600, 1440)
    assert not small.enough
    assert large.enough
    enough = verdict(load, [small, large])
    assert enough.startswith("20 tokens a minute are enough: done after ")
    assert enough.endswith("; 10.0 tokens a minute are needed for what comes on top.")
    assert verdict(load, [small]) == "None of these plans is enough: more than 10.0 tokens a minute are needed."


@pytest.mark.parametrize(
    "load, rate, said",
    [
        (replace(LOAD, backlog=0), 5, "5 tokens a minute are enough: done after 0:00."),
        (replace(LOAD, backlog=1), 1, "1 token a minute is enough: done after 0:0"),
        # What others spend is too much for the plan in the long run, however soon the work is done.
        (replace(LOAD, backlog=5, outside=400), 5, "None of these plans is enough: more than 6.7 tokens a minute"),
        # What comes on top is little; it is the backlog that takes longer.
        (
            replace(LOAD, backlog=600, per_hour=1, days=0.1),
            5,
            "None of these plans is enough: it takes more than 0.1 days",
        ),
    ],
)
def test_the_answer_is_true_where_there_is_little_to_say(load: Load, rate: int, said: str) -> None:
    """Nothing to do is done at once; where no plan is enough, the reason is the one that holds."""
    assert verdict(load, [simulate(load, rate)]).startswith(said)


@pytest.mark.parametrize(
    "wrong", ["", "nonsense", "product:0", "product:101", "product:x", "product=0", "product:5=-1"]
)
def test_a_mix_that_makes_no_sense_is_refused(wrong: str) -> None:
    """A kind of call that there is not, and items or weights that can't be, are named."""
    with pytest.raises(ConfigError):
        parse_mix(wrong)


def test_the_table_and_the_answer(tmp_path: Path) -> None:
    """The command prints a line a plan and the answer in a sentence; the chart has a line for each plan."""
    said = run(
        "simulate", "--backlog", "60", "--mix", "product:10", "--rates", "20,5", "--svg", str(tmp_path / "plan.svg")
    )
    heading, five, twenty, answer = said.stdout.splitlines()
    assert heading.split()[:3] == ["PLAN", "DONE", "AFTER"]
    assert (five.split()[0], five.split()[1][:3], five.split()[-1]) == ("5/min", "58:", "yes")
    assert twenty.startswith("20/min")
    assert answer.startswith("5 tokens a minute are enough: done after 58:")
    assert said.stderr == ""
    chart = ET.fromstring((tmp_path / "plan.svg").read_text())
    lines = chart.findall("{http://www.w3.org/2000/svg}polyline")
    assert len({line.get("stroke-dasharray") for line in lines}) == len(lines) == 2
    assert run("simulate", "--backlog", "0", "--rates", "5", "--svg", "-").stdout.startswith("<svg")


def test_no_plan_that_is_enough_ends_with_1() -> None:
    """If no plan is enough, the exit code is 1; rates that are none are a usage error."""
    options = ("--rates", "5", "--days", "0.05", "--mix", "product:10", "--faults", "50")
    (plan,) = document("simulate", *options, code=1)["plans"]
    assert (plan["enough"], plan["done_after"], "curve" in plan) == (False, None, False)
    assert plan["failed"] > 5
    row = run("simulate", *options, code=1).stdout.splitlines()[1].split()
    assert (row[1], row[-1]) == ("-", "no")
    for rates in ("fast", "0", "5,10001"):
        assert "tokens a minute, such as 5,20,60" in run("simulate", "--rates", rates, code=2).stderr
    for path, why in (("/not/there/plan.svg", "No such file"), ("/dev/full", "No space left")):
        assert why in run("simulate", "--backlog", "9", "--rates", "20", "--svg", path, code=2).stderr
