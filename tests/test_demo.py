"""`keepa-tokens demo`: what it measures, what it shows, and how it ends."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from keepa_tokens import EventKind, MemoryStorage, TokenBucket, keepa_quota
from keepa_tokens.cli import demo, old_rule
from keepa_tokens.cli.app import app
from keepa_tokens.cli.demo_command import speed_for
from keepa_tokens.cli.demo_measure import Meter, Sample
from keepa_tokens.cli.demo_scene import Chapter, Fault, Scene, Settings
from keepa_tokens.cli.demo_show import picture
from keepa_tokens.cli.demo_worker import Note
from keepa_tokens.cli.view import chart, draw, fits
from keepa_tokens.keepa.reading import envelope
from keepa_tokens.testing import FakeKeepa, ManualClock

COMMAND = [sys.executable, "-W", "error", "-m", "keepa_tokens"]
EPOCH = 1_780_000_000.0
MINUTE_US = 60_000_000
SETTINGS = Settings(seconds=34, workers=4, speed=40, seed=0)


# --- a whole run


@pytest.fixture(scope="module")
def finished() -> subprocess.CompletedProcess[str]:
    """A short run, as a program of its own."""
    command = [*COMMAND, "demo", "--json", "--seconds", "5"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def report(finished: subprocess.CompletedProcess[str]) -> Any:
    """What that run reported."""
    return json.loads(finished.stdout)


def test_a_run_ends_well_with_one_json_document(finished: subprocess.CompletedProcess[str], report: Any) -> None:
    """With --json the standard output is one document, nothing is said beside it, and the exit code is 0."""
    assert (finished.returncode, finished.stderr) == (0, "")
    assert report["ok"] is True
    assert report["broken"] == []


def test_the_projection_stays_within_its_bounds(report: Any) -> None:
    """All through a run the projection is never further from the server's truth than the tokens in flight and one
    refill step (two after the fault), and never above it with nothing in flight.
    """
    bounds = report["bounds"]
    assert report["samples"]["judged"] > 100
    assert report["samples"]["quiet"] > 50
    assert report["samples"]["torn"] == 0
    for sample in (bounds["furthest_apart"], bounds["nearest_to_bound"]):
        assert abs(sample["projection"] - sample["truth"]) == sample["apart"] <= sample["allowed"]
        assert sample["allowed"] == sample["in_flight"] + 20 * sample["steps"]
        # More than two only where the machine stalled for longer than a refill takes, and then it says so.
        assert sample["steps"] <= 2 or report["samples"]["slow"]
    assert bounds["highest_above_truth_with_nothing_in_flight"] <= 0


def test_the_bucket_recovers_and_the_old_rule_stands_still(report: Any) -> None:
    """The timestamp lost at -79 is mended and a grant follows about when peek() said; put the same requests, the old
    rule grants nothing, never asks the server, and stays at -79.
    """
    fault, old = report["fault"], report["old_rule"]
    assert (fault["balance"], fault["truth"], fault["repaired"]) == (-79, -79, "refilled_at")
    assert 180 < fault["recovered_after"] < fault["promised"] + 120
    assert (old["balance"], old["granted"], old["asked"]) == (-79, 0, 0)
    assert old["refused"] > report["workers"]
    assert old["stood_still"] > fault["recovered_after"]


def test_the_server_is_asked_rarely_and_refuses_nobody(report: Any) -> None:
    """Workers that start together and wait together send a few probes between them, and the server refuses no call."""
    counts = report["counts"]
    assert counts["grants"] >= counts["answers"] > 10
    assert 1 <= counts["probes"] <= 5
    assert (counts["refused"], counts["failed"]) == (0, 0)
    assert set(counts["waits"]) <= {"EMPTY", "IN_FLIGHT", "UNKNOWN"}


def test_an_interrupt_ends_it_cleanly() -> None:
    """Ctrl-C ends the run and everything it started with a last line, exit code 130 and no traceback; a pipe gets plain
    lines, of which the first says what is to be seen.
    """
    with subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        lines = [line for line, _ in zip(running.stdout, range(6), strict=False)]
        running.send_signal(signal.SIGINT)
        rest, errors = running.communicate(timeout=30)

    assert (running.returncode, errors) == (130, "keepa-tokens: interrupted; nothing is left running\n")
    assert lines[0] == "4 workers on one key of 20 tokens a minute; a fake Keepa server over HTTP, 40 times as fast\n"
    assert lines[1].endswith("  demo        Workers ingest; each answer brings the server's balance.\n")
    assert "waits for" in "".join(lines)
    assert not [line for line in lines if line.endswith(" \n")]
    assert "\x1b" not in "".join(lines) + rest


class SecretSpender(FakeKeepa):
    """A server whose key another program spends from, once, behind the workers' backs."""

    finished = 0

    def finish(self, ticket: Any) -> Any:
        answer = super().finish(ticket)
        self.finished += 1
        if self.finished == 5:
            self.spend_outside(100)
        return answer


@pytest.mark.deep
def test_a_broken_bound_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection above the truth with nothing in flight is found: exit code 1, and the summary in plain text says
    what broke; no thread outlives the run.
    """
    monkeypatch.setattr(demo, "FakeKeepa", SecretSpender)
    before = set(threading.enumerate())

    result = CliRunner().invoke(app, ["demo", "--seconds", "3", "--workers", "1", "--speed", "200"])

    assert result.exit_code == 1, result.output
    assert "with nothing in flight" in result.output.split("broken:")[-1]
    assert "Every bound held" not in result.output
    assert "\x1b" not in result.output
    assert set(threading.enumerate()) == before


# --- measuring


@pytest.fixture
def server() -> FakeKeepa:
    return FakeKeepa(refill_rate=20, initial=100, clock=ManualClock(), epoch=EPOCH)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def bucket(server: FakeKeepa, storage: MemoryStorage) -> TokenBucket:
    return TokenBucket(keepa_quota(20), key="demo", storage=storage, clock=server.clock)


@pytest.fixture
def meter(server: FakeKeepa, storage: MemoryStorage, bucket: TokenBucket) -> Meter:
    return Meter(server, bucket, lambda: storage.dump("demo"), EPOCH)


def take_reading(server: FakeKeepa, bucket: TokenBucket, *, travels: float = 0.0) -> None:
    """Let the bucket take what the server says, `travels` seconds later."""
    said = envelope(server.request("/token").body).reading
    assert said is not None
    server.clock.sleep(travels)
    bucket.reconcile(said)


def test_a_balance_not_known_is_not_judged(meter: Meter) -> None:
    """Before the first reading there is nothing to compare; a run without one quiet sample does not count as good."""
    assert meter.sample() == Sample(0, None, 100)
    assert (meter.judged, meter.unknown) == (0, 1)
    assert meter.broken() == ["no sample was taken with nothing in flight"]


def test_tokens_in_flight_and_a_late_step_are_allowed_for(server: FakeKeepa, bucket: TokenBucket, meter: Meter) -> None:
    """A charge that nobody was told of is covered by its hold, a step believed late by one refill."""
    take_reading(server, bucket)
    with bucket.try_reserve(30) as held:
        server.spend_outside(30)
        sample = meter.sample()
        assert sample is not None
        assert (sample.ahead, sample.allowed) == (30, 30 + 20)
        held.settle(30)
    server.clock.sleep(server.refill_in)
    server.clock.sleep(server.refill_in)  # it comes earlier than projected
    late = meter.sample()

    assert late is not None
    assert (late.ahead, late.allowed) == (-20, 20)
    assert meter.broken() == []


def test_a_projection_above_the_truth_is_broken(server: FakeKeepa, bucket: TokenBucket, meter: Meter) -> None:
    """One token above the truth with nothing in flight is too much; further above than allowed is two faults."""
    take_reading(server, bucket)
    server.spend_outside(1)
    meter.sample()
    assert meter.broken() == ["projection 100 above truth 99 with nothing in flight"]

    server.spend_outside(20)
    meter.sample()
    assert meter.broken() == [
        "projection 100 and truth 79: 21 apart, 20 allowed",
        "projection 100 above truth 79 with nothing in flight",
    ]


def test_a_projection_too_far_below_is_broken(server: FakeKeepa, bucket: TokenBucket, meter: Meter) -> None:
    """Two refill steps below the truth are one too many."""
    take_reading(server, bucket)
    server.spend_outside(-40)
    meter.sample()

    assert meter.broken() == ["projection 100 and truth 140: 40 apart, 20 allowed"]


def test_a_lost_timestamp_allows_for_a_second_step_until_the_next_reading(
    server: FakeKeepa, storage: MemoryStorage, bucket: TokenBucket, meter: Meter
) -> None:
    """The fault costs the phase: two steps are allowed after it, one again once the server has spoken."""
    take_reading(server, bucket)
    server.clock.sleep(1)
    state = storage.dump("demo")
    assert state is not None
    storage.load("demo", replace(state, refilled_at=None))
    meter.fault_at_us = server.clock.now_us()
    lost = meter.sample()
    server.clock.sleep(1)
    take_reading(server, bucket)
    found = meter.sample()

    assert lost is not None
    assert found is not None
    assert (lost.steps, found.steps) == (2, 1)


def test_an_answer_slower_than_a_refill_allows_for_a_step_more_and_is_counted(
    server: FakeKeepa, bucket: TokenBucket, meter: Meter
) -> None:
    """An answer that travelled for longer than a refill takes was a step out of date when it came."""
    take_reading(server, bucket, travels=59.0)
    quick = meter.sample()
    take_reading(server, bucket, travels=61.0)
    slow = meter.sample()

    assert quick is not None
    assert slow is not None
    assert (quick.steps, slow.steps, meter.slow) == (1, 2, 1)


# --- the old rule


def test_the_old_rule_stands_still_without_its_timestamp() -> None:
    """However long it waits and whatever it is asked for, the old rule stays at -79 and never asks the server."""
    state = old_rule.OldState(-79, None)
    for minutes in (0, 1, 60, 60 * 24 * 30):
        now_us = minutes * MINUTE_US
        assert old_rule.balance_seen(state, 20, now_us) == -79
        state, verdict = old_rule.attempt(state, 1, 20, now_us)
        assert (state, verdict) == (old_rule.OldState(-79, None), old_rule.Verdict.REFUSED)


def test_the_old_rule_works_with_its_timestamp() -> None:
    """The comparison is no rigged one: with the time in place the same rules refill, grant, and ask the server."""
    state = old_rule.OldState(-79, 0)
    assert old_rule.attempt(state, 1, 20, 5 * MINUTE_US)[1] is old_rule.Verdict.REFUSED  # 21 is below the threshold
    assert old_rule.attempt(state, 42, 20, 6 * MINUTE_US)[1] is old_rule.Verdict.ASKED
    granted = old_rule.attempt(state, 41, 20, 6 * MINUTE_US)
    assert granted == (old_rule.OldState(0, 6 * MINUTE_US), old_rule.Verdict.GRANTED)


# --- showing


def refused(worker: int, at_us: int, text: str = "EMPTY") -> Note:
    return Note(worker, at_us, EventKind.REFUSED, 5, 0, 30.0, text)


def test_a_poll_is_no_news(meter: Meter) -> None:
    """A worker that asks again in the same wait gets no second line and no second wait; another reason is news."""
    scene = Scene.at_start(SETTINGS, meter)
    notes = (refused(0, 1), refused(0, 2), refused(0, 3), refused(0, 4, "UNKNOWN"), refused(1, 5))
    lines = [line for line in map(scene.take, notes) if line]

    assert scene.counts.waits == {"EMPTY": 2, "UNKNOWN": 1}
    assert lines == [
        "    0:01  prices      waits for 5: EMPTY, 0:30 to go",
        "    0:01  prices      waits for 5: UNKNOWN, until the server says",
        "    0:01  offers      waits for 5: EMPTY, 0:30 to go",
    ]


@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("size", [(72, 20), (80, 24), (100, 30), (200, 60)])
@pytest.mark.parametrize("after_the_fault", [False, True])
def test_the_picture_fits_its_terminal(
    meter: Meter, workers: int, size: tuple[int, int], after_the_fault: bool
) -> None:
    """No picture is wider or higher than its terminal, however many workers there are, before the fault and after."""
    scene = Scene.at_start(replace(SETTINGS, workers=workers), meter)
    for worker in range(workers):
        scene.take(refused(worker, 1000))
    if after_the_fault:
        scene.fault = Fault(2000, -79, -79, 242.0, "refilled_at", old_rule.OldState(-79, None))
    for at_us in range(0, 34 * 40 * 1_000_000, 4_000_000):
        scene.now_us = at_us
        scene.latest = Sample(at_us, at_us // 1_000_000 % 300 - 90, at_us // 1_000_000 % 300 - 70, 10, 20)
        scene.remember()
    console = Console(file=io.StringIO(), width=size[0], height=size[1], color_system=None)
    with console.capture() as captured:
        console.print(draw(picture(scene), *size))
    lines = captured.get().splitlines()

    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    assert "prices" in captured.get()
    text = " ".join(captured.get().replace("│", " ").split())
    assert ("the old rule: -79, unmoved" if after_the_fault else "it didn't ask the server. It stood still") in text


@pytest.mark.parametrize("width", [72, 80])
def test_the_key_sentence_is_whole_at_80_columns(meter: Meter, width: int) -> None:
    """The sentence that the demo is made for, that the bucket recovered where the old rule stood still, isn't cut."""
    scene = Scene.at_start(SETTINGS, meter)
    scene.chapter = Chapter.RECOVERED
    scene.fault = Fault(0, -79, -79, 4242.0, "refilled_at", old_rule.OldState(-79, None), recovered_after=4300.0)
    console = Console(file=io.StringIO(), width=width, height=24, color_system=None)
    with console.capture() as captured:
        console.print(draw(picture(scene), width, 24))

    text = " ".join(captured.get().replace("│", " ").split())
    assert "Recovered: a grant after 1:11:40, 1:10:42 promised. The old rule stands at -79." in text
    assert "…" not in text or width < 80


def test_curves_differ_without_colour(meter: Meter) -> None:
    """Where there is no colour, each curve has a sign of its own in the legend, and draws other dots."""
    scene = Scene.at_start(SETTINGS, meter)
    scene.fault = Fault(0, -79, -79, 242.0, "refilled_at", old_rule.OldState(-79, None))
    curves = picture(scene).curves
    level = [(x / 100, 0) for x in range(101)]
    alone = [
        "".join(row.plain for row in chart(replace(picture(scene), curves=[replace(curve, points=level)]), 60, 4))
        for curve in curves
    ]

    assert [curve.name for curve in curves] == ["server", "projection", "old rule"]
    assert len({curve.sign for curve in curves}) == len(set(alone)) == 3


def test_a_speed_is_said_in_few_digits() -> None:
    """A speed worked out from the seconds of a run is a whole number in what people and machines read."""
    assert [speed_for(seconds) for seconds in (2, 2.3, 6, 34, 3600)] == [375, 327, 125, 40, 40]


def test_a_pipe_and_a_dumb_terminal_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is drawn only in a terminal that can show it."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert not fits(out)
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setenv("TERM", "xterm")
    assert fits(out)
    monkeypatch.setenv("TERM", "dumb")
    assert not fits(out)


# --- the command line itself


@pytest.mark.parametrize("package", ["click", "httpx", "rich"])
def test_a_missing_extra_is_named_in_one_line(package: str) -> None:
    """Without a package of the extra every command says in one line how to get it, and exits with 2."""
    code = f"import sys; sys.modules[{package!r}] = None; from keepa_tokens.cli import main; sys.exit(main())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert package in line
    assert "pip install 'keepa-tokens[cli]'" in line


@pytest.mark.parametrize("wrong", [["--seconds", "1"], ["--seconds", "nan"], ["--workers", "0"], ["--speed", "0"]])
def test_an_option_out_of_range_is_refused(wrong: list[str]) -> None:
    """An option that makes no sense is a usage error, and nothing is started."""
    result = CliRunner().invoke(app, ["demo", *wrong])

    assert result.exit_code == 2
    assert wrong[0] in result.output
