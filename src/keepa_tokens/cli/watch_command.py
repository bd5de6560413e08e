"""`keepa-tokens watch`, as click sees it."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from datetime import datetime

import click

from . import shell
from .view import Screen, fits
from .watch import Story, picture
from .where import Where, with_bucket


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

    It only looks, and writes nothing. The curve begins when the watch does. A refusal of somebody who doesn't wait
    leaves no trace in a bucket: the metrics count those.
    """
    with where.opened() as place:
        key, story = where.bucket(place), Story()
        screen = None if plain or not fits(sys.stdout) else Screen()
        with screen or nullcontext():
            while True:
                seen = where.look(place, key)
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
