"""`keepa-tokens demo`, as click sees it."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from typing import Final

import click

from . import shell
from .demo import run as run_demo
from .demo_scene import Scene, Settings
from .demo_show import document, picture, summary
from .demo_worker import GaveUpError
from .view import Screen, fits

SLOWEST: Final = 40.0
"""Server seconds in a real one, where there is time: slow enough for a busy machine to keep up, and to be watched."""

RECOVERY: Final = 300.0
"""Server seconds to leave for the recovery."""

RECOVERY_PART: Final = 0.4
"""The part of a run to leave for it."""


def speed_for(seconds: float) -> float:
    """Return the speed at which a run of so many real seconds has time for the recovery: a whole number."""
    return max(SLOWEST, math.ceil(RECOVERY / (RECOVERY_PART * seconds)))


@shell.command(
    "see it work, without a key",
    examples="""
    keepa-tokens demo
    keepa-tokens demo --seconds 10 --plain
    keepa-tokens demo --redis URL     workers as processes that share a bucket
    """,
    then="keepa-tokens simulate --help     the same question for your own plan and load",
)
@click.option(
    "--seconds",
    type=shell.Number(2, 3600),
    default=34,
    show_default=True,
    help="How long it takes, about, in real seconds.",
)
@click.option("--workers", type=click.IntRange(1, 16), default=4, show_default=True, help="Workers that share the key.")
@click.option(
    "--speed", type=shell.Number(1, 400), help="Server seconds in a real one.  [default: 40, more in a short run]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the calls that the workers make.")
@click.option("--plain", is_flag=True, help="Plain lines, in a terminal too.")
@click.option("--json", "as_json", is_flag=True, help="Only one JSON document, at the end.")
@click.option(
    "--redis-url",
    "--redis",
    metavar="URL",
    help="Run the workers as processes that share the bucket on this Redis or Valkey.",
)
@click.pass_context
def demo_command(
    ctx: click.Context,
    *,
    seconds: float,
    workers: int,
    speed: float | None,
    seed: int,
    plain: bool,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """Watch several workers share one key of a fake Keepa server, over real HTTP in accelerated time.

    Half-way the demo does what broke the system before this one: while the balance is -79, the stored time of the last
    refill is lost. All the while it compares the projected balance with the server's own. It ends with 0 if that was
    never further off than it may be, with 1 if it was.
    """
    settings = Settings(seconds, workers, speed or speed_for(seconds), seed, redis_url)
    screen = None if as_json or plain or not fits(sys.stdout) else Screen()
    say = _print if screen is None and not as_json else _say_nothing

    def show(scene: Scene) -> None:
        if screen is not None:
            screen.show(picture(scene))

    try:
        with screen or nullcontext():
            outcome = run_demo(settings, say, show)
    except GaveUpError as error:
        raise shell.RefusedError(str(error)) from None
    if as_json:
        shell.print_json(document(outcome))
        ctx.exit(shell.FINDINGS if outcome.broken else shell.WELL)
    console = shell.console()
    console.print()
    shell.print_table(summary(outcome))
    for words in outcome.broken:
        console.print(f"broken: {words}", style="bold red")
    if not outcome.broken:
        console.print("Every bound held.", style="bold green")
    ctx.exit(shell.FINDINGS if outcome.broken else shell.WELL)


def _print(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def _say_nothing(_: str) -> None:
    """Say nothing: a picture or a document does."""
