"""`keepa-tokens watch`: what is seen from one look to the next, as lines and as a picture."""

from __future__ import annotations

import re

import pytest

from keepa_tokens import KeepaSync, MemoryStorage, NotEnoughTokens, Quota, Reading, TokenBucket, keepa_quota
from keepa_tokens.cli.look import Look
from keepa_tokens.cli.view import Curve, Picture, chart
from keepa_tokens.cli.watch import Story, picture
from keepa_tokens.rules.state import BucketState
from keepa_tokens.testing import ManualClock
from tests.cli import KEY, NOW, Workers, drawn, seen


class Watched:
    def __init__(self) -> None:
        self.clock, self.storage, self.story = ManualClock(1000.0), MemoryStorage(), Story()
        self.bucket = TokenBucket(
            keepa_quota(20), key=KEY, storage=self.storage, clock=self.clock, listener=lambda _: None
        )

    def seen(self) -> Look:
        state = self.storage.dump(KEY)
        assert state is not None
        return Look(KEY, self.clock.now_us(), state.to_fields(), state)

    def line(self) -> str:
        return self.story.take(self.seen())

    def drawn(self, width: int, height: int) -> list[str]:
        return drawn(picture(self.story, self.seen(), "12:00:00"), width, height).splitlines()

    def lane(self, name: str) -> str:
        """Return the line of the picture with this name in it."""
        (line,) = [line for line in self.drawn(100, 30) if name in line]
        return line


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_line_is_written_only_where_something_changed(watched: Watched) -> None:
    """Each change is a line, and a moment without one is none."""
    watched.bucket.reconcile(Reading(100, next_refill_in=30.0, refill=20.0, capacity=1200))
    lines = [watched.line(), watched.line()]
    held = watched.bucket.try_reserve(30)
    lines += [watched.line()]
    held.settle(25)
    lines += [watched.line()]
    watched.clock.advance(30)
    lines += [watched.line()]

    assert lines == [
        "open: 100 of 1,200",
        "",
        "open: 100 of 1,200, 30 held in 1 call",
        "open: 75 of 1,200",
        "open: 95 of 1,200",
    ]


def test_what_happened_in_the_last_minute_is_counted(watched: Watched) -> None:
    """Calls begun, tokens spent, readings and probes are counted from look to look; the refill is no spending."""
    watched.bucket.reconcile(Reading(100, next_refill_in=10.0, refill=20.0, capacity=1200, server_time=5000.0))
    watched.line()
    watched.clock.advance(15)
    held = watched.bucket.try_reserve(7)
    watched.line()
    watched.clock.advance(59)
    held.settle(9, Reading(131, server_time=5074.0))
    watched.line()

    seen = watched.story.seen(watched.seen())
    assert [seen[what] for what in ("calls", "tokens", "readings", "probes")] == [1, 9, 1, 0]
    watched.clock.advance(61)
    assert watched.story.seen(watched.seen())["calls"] == 0
    assert KeepaSync(watched.bucket).claim_probe()
    watched.line()
    assert watched.story.seen(watched.seen())["probes"] == 1


def test_who_was_refused_and_waits_is_counted_with_the_time_that_it_took(watched: Watched) -> None:
    """Callers that were refused and stand in line are counted as they come, and as they go with how long they stood."""
    watched.bucket.reconcile(Reading(-9, next_refill_in=10.0, refill=20.0, capacity=1200))
    sync = KeepaSync(watched.bucket)
    watched.line()
    for place in ("one", "two"):
        with pytest.raises(NotEnoughTokens):
            sync.try_request(5, place=place)
    assert watched.line() == "empty: -9 of 1,200, 2 callers waiting for 10"
    watched.clock.advance(30)
    sync.try_request(5, place="one").cancel()
    watched.line()

    seen = watched.story.seen(watched.seen())
    assert (seen["joined"], seen["left"], seen["waited_us"]) == (2, 1, 30_000_000)
    assert "2 callers refused and put in line, 1 left it after 0:30 on average" in watched.lane("put in line")


def test_the_next_grant_has_a_bar(watched: Watched) -> None:
    """Where somebody waits, a bar fills until the first in line may go."""
    watched.bucket.reconcile(Reading(-39, next_refill_in=60.0, refill=20.0, capacity=1200))
    sync = KeepaSync(watched.bucket)
    for place in ("one", "two"):
        with pytest.raises(NotEnoughTokens):
            sync.try_request(5, place=place)
    watched.line()
    first = watched.lane("next grant")
    watched.clock.advance(90)
    watched.line()
    later = watched.lane("next grant")

    assert "5 tokens, first of 2" in first
    assert first.count("█") < later.count("█")
    assert "2:00" in first.replace("2:01", "2:00")
    assert "0:3" in later


@pytest.mark.parametrize("size", [(72, 20), (80, 24), (120, 40)])
@pytest.mark.parametrize("calls", [0, 3, 40])
def test_the_picture_fits_its_terminal(watched: Watched, size: tuple[int, int], calls: int) -> None:
    """No picture is wider or higher than its terminal, however many calls are in flight, and none of it is cut."""
    watched.bucket.reconcile(Reading(400, next_refill_in=30.0, refill=20.0, capacity=1200))
    for _ in range(calls):
        watched.bucket.try_reserve(3)
    for _ in range(50):
        watched.clock.advance(1)
        watched.line()
    lines = watched.drawn(*size)

    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    text = "\n".join(lines)
    assert KEY in text
    assert "12:00:00" in text
    assert "━━━ balance 420" in text
    assert "goes at once" in text or size[1] == 20
    assert f"{calls} call" in text or not calls
    assert re.search(r"\n and \d+ more", text) or calls < 40


def test_long_names_stay_in_their_column(watched: Watched) -> None:
    """What a call is for stands beside its label, in one column for all lanes; a label that is too long is cut."""
    watched.bucket.reconcile(Reading(400, next_refill_in=30.0, refill=20.0, capacity=1200))
    for label in ("deals page 3", "best sellers of toys", "best sellers of everything else"):
        watched.bucket.try_reserve(3, label=label)
    watched.line()
    lanes = [line for line in watched.drawn(80, 30) if "in flight" in line or "goes at once" in line]

    assert len({max(line.find("in flight"), line.find("goes at once")) for line in lanes}) == 1
    assert all(line.endswith("  2:00   ") for line in lanes if "in flight" in line)
    assert [line.split("in flight")[0] for line in lanes if "in flight" in line] == [
        " deals page 3         ",
        " best sellers of toys ",
        " best sellers of eve… ",
    ]


def test_large_numbers_beside_the_chart_cut_none_of_it() -> None:
    """The labels take as much room as the longest of them, and no row is wider than the terminal."""
    curve = Curve("balance", [(0.0, -1_200_000), (1.0, 2_000_000)], "", "")
    rows = chart(Picture("", "", "", [curve], -1_200_000, 2_000_000, "", [], [], "", []), 80, 8)
    assert {row.cell_len for row in rows} == {79}
    assert (rows[0].plain[:11], rows[-1].plain[:11]) == (" 2,000,000 ", "-1,200,000 ")


SPOKE = "The server last spoke 0:45 ago."
BOXES = [
    (seen(), ["Open: 412 of 1,200.", SPOKE]),
    (
        seen(balance=None, reading_at=None, drift=None),
        [
            "Unknown: unknown of 1,200.",
            "A call waits because of this: the balance is unknown; the next caller asks the server.",
        ],
    ),
    (
        seen(kept_back=60, kept_back_at=NOW),
        ["Open: 412 of 1,200.", SPOKE, "60 tokens are kept back for somebody else who spends."],
    ),
    (
        seen(balance=-79, refilled_at=None),
        [
            "Empty: -79 of 1,200.",
            "A call waits because of this: too few tokens.",
            SPOKE,
            "Damaged: refilled_at; `keepa-tokens doctor` says more.",
        ],
    ),
    (
        seen(balance=-5, reported_refill=0, reported_period_us=60_000_000, reported_capacity=1200),
        ["No refill: -5 of 1,200.", "A call waits because of this: too few tokens.", SPOKE],
    ),
    (seen(quota=None), ["Terms lost: `keepa-tokens doctor` says more."]),
    (Look(KEY, NOW, {}, BucketState()), ["Gone: the next call of a worker makes a new one."]),
]


@pytest.mark.parametrize("look, told", BOXES)
def test_the_box_says_how_it_is_now(look: Look, told: list[str]) -> None:
    """The box below the lanes says how the bucket is and why a call waits; one that can't be read is no crash."""
    story = Story()
    assert told[0].startswith(story.take(look).capitalize())
    assert story.take(look) == ""
    assert picture(story, look, "").box == told
    assert story.seen(look)["tokens"] == 0
    assert told[-1][:9] in drawn(picture(story, look, ""), 80, 30)


def test_the_picture_shows_the_last_hour(watched: Watched) -> None:
    """What was seen before the last hour has left the picture."""
    watched.bucket.reconcile(Reading(100, refill=20.0, capacity=1200))
    watched.line()
    watched.clock.advance(5400)
    watched.line()
    shown = picture(watched.story, watched.seen(), "")
    assert shown.beside_legend == "the last 1:00:00"
    assert [x for curve in shown.curves for x, _ in curve.points] == [1.0, 1.0]


def test_a_curve_is_drawn_in_steps() -> None:
    """Between two points a curve stays where the first is, and then goes straight up or down; zero is a dotted line."""
    curve = Curve("balance", [(0.0, 0), (0.3, 0), (0.7, 8), (0.99, 4)], "", "")
    rows = chart(Picture("", "", "", [curve], -8, 8, "", [], [], "", []), 18, 3)
    assert [row.plain for row in rows] == ["    8        ⢸⠉⠉⢹", "    0 ⠤⠤⠤⠤⠤⠤⠤⠼┈┈┈", "   -8            "]


def test_the_next_step_is_a_token_where_the_refill_is_smooth() -> None:
    """Of a smooth refill the next step is one token, with the bar of one; of a full bucket there is none."""
    watched = Watched()
    watched.bucket = TokenBucket(Quota(100, 7, 60.0), key=KEY, storage=watched.storage, clock=watched.clock)
    watched.bucket.try_acquire(50)
    watched.clock.advance(4)
    watched.line()
    lane = watched.lane("next step")
    watched.clock.advance(1000)
    watched.line()

    assert "+1 " in lane
    assert "0:05" in lane
    assert 0.4 < lane.count("█") / (lane.count("█") + lane.count("░")) < 0.5
    assert not [line for line in watched.drawn(80, 30) if "next step" in line]


def test_a_wait_has_a_bar_that_grows(watched: Watched) -> None:
    """What a call of 10 has to wait is a bar that fills as the time passes, with the reason in words."""
    watched.bucket.reconcile(Reading(-79, next_refill_in=60.0, refill=20.0, capacity=1200))
    watched.line()
    first = watched.lane("call of 10 ")
    watched.clock.advance(130)
    watched.line()
    assert "waits: EMPTY" in first
    assert first.count("█") < watched.lane("call of 10 ").count("█")
    assert "too few tokens" in " ".join(watched.drawn(100, 30))


def test_in_a_pipe_it_writes_lines(valkey: Workers) -> None:
    """In a pipe a watch writes plain lines with the time, and ends after as many looks as it was told."""
    valkey.bucket().reconcile(Reading(300, refill=20.0, capacity=1200))
    said = valkey.run("watch", "--looks", "2", "--every", "0.1").stdout
    (line,) = said.splitlines()
    assert line.endswith("  open: 300 of 1,200")
    assert line[2] == line[5] == ":"


def test_a_bucket_that_is_gone_is_watched_on(valkey: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that nobody uses ends by itself; its watch says so, and sees the next one."""
    bucket, balances = valkey.bucket(), [7, None]
    bucket.reconcile(Reading(300, refill=20.0, capacity=1200))

    def pause(_: float) -> None:
        balance = balances.pop()
        if balance is None:
            bucket.reset()
        else:
            bucket.reconcile(Reading(balance, capacity=1200))

    monkeypatch.setattr("keepa_tokens.cli.watch.time.sleep", pause)
    lines = valkey.run("watch", "--looks", "3").stdout.splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["open: 300 of 1,200", "gone", "open: 7 of 1,200"]
