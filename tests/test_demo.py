"""`keepa-tokens demo`: what it measures, what it shows, and how it ends."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from keepa_tokens import Reading, TokenBucket, keepa_quota
from keepa_tokens.cli import demo, old_rule
from keepa_tokens.cli.demo import Meter, Sample, Scenario
from keepa_tokens.cli.demo_command import picture
from keepa_tokens.cli.shell import COMMANDS
from keepa_tokens.cli.view import chart, fits
from keepa_tokens.storage.sqlite import SQLiteStorage
from keepa_tokens.testing import FakeKeepa
from tests.cli import Workers, document, drawn, program, run, scene

MINUTE_US = 60_000_000


# --- a whole run


@pytest.fixture(scope="module", params=[1, 4, 16])
def report(request: pytest.FixtureRequest) -> Any:
    """What a run reported: with --json the output is one document, and the exit code is 0."""
    result = run("demo", "--json", "--workers", str(request.param))
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_the_projection_stays_within_its_bounds(report: Any) -> None:
    """The projection is never further from the truth than what is in flight and a step, nor above it without a call."""
    worst = report["furthest_apart"]
    assert (report["ok"], report["broken"]) == (True, [])
    assert report["samples"]["judged"] > 100
    assert report["samples"]["quiet"] > 50
    assert abs(worst["projection"] - worst["truth"]) == worst["apart"] <= worst["allowed"]
    assert worst["allowed"] == worst["in_flight"] + 20 * worst["steps"]


def test_on_a_real_server_a_run_is_the_same_and_leaves_nothing(valkey: Workers) -> None:
    """The same steps and figures as in memory, to the last digit; afterwards the server has no key of it."""
    assert document("demo") == document("demo", "--redis-url", valkey.url)
    with valkey.client() as client:
        assert client.keys("*demo*") == []


def test_the_bucket_recovers_and_the_old_rule_stands_still(report: Any) -> None:
    """The timestamp lost at -79 is mended, and a grant follows in time; the old rule stays at -79, never asks."""
    fault, old = report["fault"], report["old_rule"]
    assert (fault["balance"], fault["repaired"]) == (-79, "refilled_at")
    assert 180 < fault["recovered_after"] <= fault["promised"]
    assert (old["balance"], old["granted"], old["asked"]) == (-79, 0, 0)
    assert old["refused"] > report["workers"]
    assert old["stood_still"] > fault["recovered_after"]


def test_the_server_is_asked_rarely_and_refuses_nobody(report: Any) -> None:
    """Workers that start together and wait together send a few probes between them, and the server refuses no call."""
    counts = report["counts"]
    assert counts["grants"] >= counts["answers"] > 10
    assert 1 <= counts["probes"] <= 5
    assert counts["refused"] == 0
    assert set(counts["waits"]) <= {"EMPTY", "IN_FLIGHT", "UNKNOWN"}


def test_a_pipe_gets_plain_lines() -> None:
    """The first says what is to be seen, the lost timestamp comes before what mends it, the last one sums up."""
    lines = run("demo", "--seconds", "0").stdout.splitlines()
    told = [line.split(maxsplit=2)[2] for line in lines if " demo " in line]
    lost = next(place for place, words in enumerate(told) if words.startswith("The timestamp is lost"))
    assert lines[0] == "4 workers on one key of 20 tokens a minute of a fake Keepa server"
    assert told[0] == "Workers ingest; each answer brings the server's balance."
    assert told[lost + 1].startswith("mended refilled_at")
    assert (told[-1], told.count(told[0])) == ("The workers have ended.", 1)
    assert lines[-2].startswith("the old rule    at -79, unmoved for 11:")
    assert lines[-1] == "Every bound held."
    assert "\x1b" not in "".join(lines)


class SecretSpender(FakeKeepa):
    """A server whose key another program spends from, once, behind the workers' backs."""

    finished = 0

    def finish(self, ticket: Any) -> Any:
        answer = super().finish(ticket)
        self.finished += 1
        if self.finished == 5:
            self.spend_outside(100)
        return answer


def test_a_broken_bound_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection above the truth with nothing in flight is found: exit code 1, and the summary says what broke."""
    monkeypatch.setattr(demo, "FakeKeepa", SecretSpender)
    result = run("demo", "--seconds", "0", "--workers", "1", code=1)
    assert "above it with nothing in flight" in result.output.partition("\nbroken: projection ")[2]
    assert "Every bound held" not in result.output
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    "sample, broken",
    [
        (Sample(0, None, 100), []),
        (Sample(0, 100, 80, 30), []),
        (Sample(0, 100, 120), []),
        (Sample(0, 100, 140, 0, 2), []),
        (Sample(0, 100, 121), ["projection 100, truth 121: 21 apart, 20 allowed"]),
        (Sample(0, 100, 49, 30), ["projection 100, truth 49: 51 apart, 50 allowed"]),
        (Sample(0, 100, 99), ["projection 100, truth 99: above it with nothing in flight"]),
    ],
)
def test_a_sample_may_be_off_by_calls_in_flight_and_a_late_step(sample: Sample, broken: list[str]) -> None:
    """Tokens in flight and a late step are allowed for, two where the phase was lost; one token more breaks a bound."""
    meter = Meter()
    meter.judge(sample)
    assert list(meter.broken.values()) == broken
    assert meter.judged == (sample.projection is not None)
    assert meter.worst.ahead == sample.ahead


# --- the old rule


def test_the_old_rule_works_with_its_timestamp() -> None:
    """The comparison is no rigged one: with the time in place the same rules refill, grant, and ask the server."""
    state = old_rule.OldState(-79, 0)
    assert old_rule.attempt(state, 1, 20, 5 * MINUTE_US)[1] is old_rule.Verdict.REFUSED  # 21 is below the threshold
    assert old_rule.attempt(state, 42, 20, 6 * MINUTE_US)[1] is old_rule.Verdict.ASKED
    granted = old_rule.attempt(state, 41, 20, 6 * MINUTE_US)
    assert granted == (old_rule.OldState(0, 6 * MINUTE_US), old_rule.Verdict.GRANTED)


# --- showing


def test_a_poll_is_no_news() -> None:
    """A worker that asks again in the same wait gets no second line and no second wait; another reason is news."""
    alone = scene(1)
    told = [line.split(maxsplit=2)[2] for line in alone.news if " prices " in line]
    waits = [words.partition(", ")[0] for words in told]
    assert alone.fault is not None
    assert sum(alone.waits.values()) < sum(alone.fault.verdicts.values())
    assert sum(words.startswith("waits") for words in told) == sum(alone.waits.values())
    assert all(before != after for before, after in pairwise(waits))


@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("size", [(72, 20), (80, 24), (100, 30), (200, 60)])
@pytest.mark.parametrize(
    "until, said", [("before", "it didn't ask the server. It stood still"), ("after", "the old rule: -79, unmoved")]
)
def test_the_picture_fits_its_terminal(
    workers: int, size: tuple[int, int], until: Literal["before", "after"], said: str
) -> None:
    """No picture is wider or higher than its terminal, however many workers there are, before the fault and after."""
    text = drawn(picture(scene(workers, until), 34.0), *size)
    lines = text.splitlines()
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    assert "prices" in text
    assert said in " ".join(text.replace("│", " ").split())


def test_each_worker_says_what_it_does() -> None:
    """A worker starts, waits for tokens and says why, calls, and stores what it got; after the fault all wait."""
    begun = Scenario(4, 0)
    next(begun.play())
    first, then, after = (
        [lane.words for lane in picture(made, 34.0).lanes] for made in (begun, scene(16, "before"), scene(4, "after"))
    )
    assert "starts" in first
    for does in ("waits for", "calls for", "stores what it got"):
        assert any(words.startswith(does) for words in then)
    assert all(words.endswith(": EMPTY") for words in after)
    assert "this library:  -79, a grant in 4:0" in picture(scene(4, "after"), 34.0).box[1]


@pytest.mark.parametrize("width", [72, 80])
def test_the_key_sentence_is_whole_at_80_columns(width: int) -> None:
    """The sentence that the demo is made for, that the bucket recovered where the old rule stood still, isn't cut."""
    words = " ".join(drawn(picture(scene(), 34.0), width, 24).replace("│", " ").split())
    assert "Recovered: a grant after 3:49, 4:02 promised. The old rule stands at -79." in words
    assert "…" not in words or width < 80
    assert "━ ━ old rule -79" in words
    assert ("refill 0:" in words) == (width == 80)
    assert "this library: -3, server asked at 2:00, granted at 3:49 (promised 4:02)" in words


def test_curves_differ_without_colour() -> None:
    """Where there is no colour, each curve has a sign of its own in the legend, and draws other dots."""
    shown = picture(scene(4, "after"), 34.0)
    level = [(x / 100, 0) for x in range(101)]
    alone = [
        "".join(row.plain for row in chart(replace(shown, curves=[replace(curve, points=level)]), 60, 4))
        for curve in shown.curves
    ]
    assert [curve.name for curve in shown.curves] == ["server", "projection", "old rule"]
    assert len({curve.sign for curve in shown.curves}) == len(set(alone)) == 3


def test_a_pipe_and_a_dumb_terminal_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is drawn only in a terminal that can show it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert not fits(out)
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    good = {"COLUMNS": "72", "LINES": "20", "TERM": "xterm"}
    for name, value in good.items():
        monkeypatch.setenv(name, value)
    assert fits(out)
    for name, value in {"COLUMNS": "71", "LINES": "19", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
        assert not fits(out)
        monkeypatch.setenv(name, good[name])
    out.reconfigure(encoding="latin-1")
    assert not fits(out)


# --- the command line itself


@pytest.mark.parametrize("package", ["click", "httpx", "rich"])
def test_a_missing_extra_is_named_in_one_line(package: str, tmp_path: Path) -> None:
    """Without a package of the extra a command that needs it says in one line how to get it, and exits with 2."""
    path = tmp_path / "buckets"
    with closing(SQLiteStorage(path)) as storage:
        TokenBucket(keepa_quota(20), key="k", storage=storage).reconcile(Reading(300))
    code = f"import sys; sys.modules[{package!r}] = None; from keepa_tokens.cli import main; sys.exit(main())"
    result = program("-c", code, "status", "k", "--probe", "--sqlite", path, KEEPA_API_KEY="unused")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert package in line
    assert "pip install 'keepa-tokens[cli]'" in line


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_no_client_for_redis(command: str) -> None:
    """With the extra `cli` alone each help is shown: buckets may be in a file."""
    code = (
        "import sys; sys.modules |= dict(redis=None, valkey=None); from keepa_tokens.cli import main; sys.exit(main())"
    )
    result = program("-c", code, *command.split(), "--help")

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("wrong", [["--seconds", "-1"], ["--seconds", "nan"], ["--workers", "0"]])
def test_an_option_out_of_range_is_refused(wrong: list[str]) -> None:
    """An option that makes no sense is a usage error, and nothing is started."""
    assert wrong[0] in run("demo", *wrong, code=2).output
