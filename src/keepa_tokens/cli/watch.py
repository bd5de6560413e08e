"""`keepa-tokens watch`: a bucket over time, as a picture and as lines."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

import click

from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..units import MICROSECONDS, MINUTE_US
from . import shell
from .colours import BUSY, CARE, GOOD
from .look import Look, look
from .status import CALLS, WHY, state_of
from .view import Curve, Lane, Picture, Screen, fits
from .where import Where, with_bucket
from .words import count, duration, known, plain

HOUR_US: Final = 60 * MINUTE_US
MOST_POINTS: Final = 7200


@dataclass(slots=True)
class Story:
    """What was seen of a bucket so far. Times are microseconds.

    points: time, balance, and available tokens. steps: time, and what happened since the look before. waits: by the
    tokens of a call, the longest wait that it was told. line: by ticket, since when it stands in line.
    """

    points: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    steps: deque[tuple[int, Counter[str]]] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    waits: dict[int, float] = field(default_factory=dict[int, float])
    line: dict[str, int] = field(default_factory=dict[str, int])
    latest: Look | None = None
    told: str = ""

    def take(self, look: Look) -> str:
        """Add a look; return a line about it if something has changed."""
        snapshot = look.snapshot()
        self.steps.append((look.now_us, self._moved(look)))
        self.latest = look
        if snapshot is not None and snapshot.balance is not None:
            self.points.append((look.now_us, snapshot.balance, snapshot.available or 0))
        for tokens in CALLS if snapshot is not None else ():
            if look.ask(tokens):
                self.waits.pop(tokens, None)
            else:
                self.waits[tokens] = max(look.latest(tokens), self.waits.get(tokens, 0.0))
        words = _line(look, snapshot)
        changed, self.told = words != self.told, words
        return words if changed else ""

    def seen(self, look: Look) -> Counter[str]:
        """Return what was seen in the last minute: calls begun, tokens spent, readings, probes.

        joined: callers that were refused and put in line. left: callers that left it, after `waited_us` in all.
        """
        return sum((step for at_us, step in self.steps if at_us > look.now_us - MINUTE_US), Counter[str]())

    def _moved(self, look: Look) -> Counter[str]:
        """Return what changed since the last look; a call that began and ended in between is not seen."""
        there = {ticket.id for ticket in look.line()}
        stood = [look.now_us - since for ticket, since in self.line.items() if ticket not in there]
        joined = there - self.line.keys()
        self.line = {ticket: self.line.get(ticket, look.now_us) for ticket in there}
        before = self.latest
        if before is None:
            return Counter()
        projected, found = replace(before, now_us=look.now_us).snapshot(), look.snapshot()
        spent = 0
        if projected and found and projected.balance is not None and found.balance is not None:
            spent = max(0, projected.balance - found.balance)
        return Counter(
            calls=len(look.state.holds.keys() - before.state.holds.keys()),
            tokens=spent,
            readings=look.state.reading_at != before.state.reading_at,
            probes=(look.state.probe_until or 0) > (before.state.probe_until or 0),
            joined=len(joined),
            left=len(stood),
            waited_us=sum(stood),
        )


def _line(look: Look, snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return look.trouble
    balance = f"{known(snapshot.balance)} of {snapshot.capacity:,}"
    held = f", {snapshot.held:,} held in {count(snapshot.holds, 'call')}" if snapshot.holds else ""
    line = f", {count(snapshot.waiting, 'caller')} waiting for {snapshot.wanted:,}" if snapshot.waiting else ""
    return f"{state_of(look)}: {balance}{held}{line}"


def picture(story: Story, look: Look, clock: str) -> Picture:
    """Return the story so far as a picture."""
    snapshot = look.snapshot()
    points = story.points
    span = max(HOUR_US // 60, min(HOUR_US, look.now_us - points[0][0] if points else 0))
    start = look.now_us - span
    balances = [((at_us - start) / span, balance) for at_us, balance, _ in points if at_us >= start]
    free = [((at_us - start) / span, available) for at_us, _, available in points if at_us >= start]
    seen = story.seen(look)
    begun = f"{count(seen['calls'], 'call')} begun, {count(seen['tokens'], 'token')} spent"
    told = f"{count(seen['readings'], 'reading')}, {count(seen['probes'], 'probe')}"
    after = f" after {duration(seen['waited_us'] / seen['left'] / MICROSECONDS)} on average" if seen["left"] else ""
    queued = f"{count(seen['joined'], 'caller')} refused and put in line, {seen['left']:,} left it{after}"
    balance, available = (snapshot.balance, snapshot.available) if snapshot else (None, None)
    return Picture(
        title="keepa-tokens watch",
        about=plain(look.key),
        aside=clock,
        curves=[
            Curve("available", free, GOOD, known(available), (1, 1)),
            Curve("balance", balances, BUSY, known(balance)),
        ],
        low=min([0, *(value for _, value in free)]),
        high=max([10, *(value for _, value in balances)]),
        beside_legend=f"the last {duration(span / MICROSECONDS)}",
        facts=[f"last minute: {begun}, {told}", f"             {queued}"],
        lanes=_lanes(story, look, snapshot),
        box_title=state_of(look),
        box=_box(look, snapshot),
        box_style="" if snapshot is not None and snapshot.retry_after <= 0 else CARE,
    )


def _lanes(story: Story, look: Look, snapshot: Snapshot | None) -> list[Lane]:
    if snapshot is None:
        return []
    lanes = [_wait_lane(story, look, tokens) for tokens in CALLS]
    step = look.next_step(snapshot)
    if step is not None:
        lanes.insert(0, Lane("next step", f"{step.gain:+,}", BUSY, 1 - step.left / step.length, duration(step.left)))
    if look.line():
        lanes.insert(0, _first_lane(story, look))
    for call in snapshot.in_flight:
        words = f"in flight, {count(call.tokens, 'token')}"
        lanes.append(
            Lane(
                plain(call.label or call.id[:8]),
                words,
                "",
                call.age / (call.age + call.runs_out_in),
                duration(call.runs_out_in),
            )
        )
    return lanes


def _first_lane(story: Story, look: Look) -> Lane:
    """Return the lane of the next grant, that of the first in line."""
    first = look.line()[0]
    since = story.line.get(first.id, look.now_us)
    left = max(0, first.told_at - look.now_us)
    part = 1 - left / max(1, first.told_at - since)
    words = f"{count(first.tokens, 'token')}, first of {len(look.line())}"
    return Lane("next grant", words, CARE, part, duration(left / MICROSECONDS))


def _wait_lane(story: Story, look: Look, tokens: int) -> Lane:
    decision = look.ask(tokens)
    if decision.granted:
        return Lane(f"call of {tokens}", "goes at once", GOOD)
    latest = look.latest(tokens)
    whole = story.waits.get(tokens, latest)
    part = 1 - latest / whole if whole < math.inf else 0.0
    return Lane(f"call of {tokens}", f"waits: {decision.reason}", CARE, part, duration(latest))


def _box(look: Look, snapshot: Snapshot | None) -> list[str]:
    if snapshot is None:
        more = "`keepa-tokens doctor` says more" if look.fields else "the next call of a worker makes a new one"
        return [f"{look.trouble.capitalize()}: {more}."]
    decision = look.ask(1)
    lines = [f"{_line(look, snapshot).capitalize()}."]
    if not decision.granted:
        lines.append(f"A call waits because of this: {WHY.get(decision.reason, str(decision.reason))}.")
    if snapshot.reading_age is not None:
        lines.append(f"The server last spoke {duration(snapshot.reading_age)} ago.")
    if snapshot.kept_back:
        lines.append(f"{count(snapshot.kept_back, 'token')} are kept back for somebody else who spends.")
    if snapshot.repaired:
        lines.append(f"Damaged: {', '.join(snapshot.repaired)}; `keepa-tokens doctor` says more.")
    return lines


@shell.command(
    "a bucket live",
    examples="""
    keepa-tokens watch --redis redis://127.0.0.1:6379
    keepa-tokens watch --redis URL --plain | tee bucket.log     a line a change
    """,
    then="keepa-tokens doctor     if it doesn't move",
)
@with_bucket
@click.option("--every", type=shell.Number(0.1, 3600), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--looks", type=click.IntRange(1), help="End after so many looks.  [default: go on until Ctrl-C]")
@click.option("--plain", is_flag=True, help="Plain lines, one a change, in a terminal too.")
def watch_command(where: Where, *, every: float, looks: int | None, plain: bool) -> None:
    """Watch a bucket live: balance and holds of the last hour, what a call would get and when, what is in flight.

    It only looks, and writes nothing. The curve begins when the watch does. Calls are counted by what they hold, so one
    that begins and ends between two looks is not seen, nor is a refusal of somebody who doesn't wait: the metrics count
    those.
    """
    key, story = where.bucket(), Story()
    screen = None if plain or not fits(sys.stdout) else Screen()
    with screen or nullcontext():
        while True:
            # One that nobody uses is gone once it would be full: it may come back.
            seen = look(where.place, key) or Look(key, where.place.now_us(), {}, BucketState())
            clock, line = datetime.now().astimezone().strftime("%H:%M:%S"), story.take(seen)
            if screen is not None:
                screen.show(picture(story, seen, clock))
            elif line:
                click.echo(f"{clock}  {line}")
                sys.stdout.flush()
            looks = None if looks is None else looks - 1
            if looks == 0:
                return
            time.sleep(every)
