"""`keepa-tokens demo`, as click sees it."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import click

from . import shell
from .demo import REFILL_RATE, SECONDS, Scenario
from .demo_show import document, picture, summary
from .view import Screen, fits
from .words import count


@shell.command(
    "see it work, without a key",
    examples="""
    keepa-tokens demo
    keepa-tokens demo --seconds 10 --plain
    keepa-tokens demo --json          at once, as a document
    """,
    then="keepa-tokens simulate --help     the same question for your own plan and load",
)
@click.option(
    "--seconds", type=shell.Number(0, 3600), default=34, show_default=True, help="How long it takes, in real seconds."
)
@click.option("--workers", type=click.IntRange(1, 16), default=4, show_default=True, help="Workers that share the key.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the calls that the workers make.")
@click.option("--plain", is_flag=True, help="Plain lines, in a terminal too.")
@click.option("--json", "as_json", is_flag=True, help="Only one JSON document, at once.")
@click.pass_context
def demo_command(ctx: click.Context, *, seconds: float, workers: int, seed: int, plain: bool, as_json: bool) -> None:
    """Watch several workers share one key of a fake Keepa server, in accelerated time.

    Half-way the demo does what broke the system before this one: while the balance is -79, the stored time of the last
    refill is lost. All the while it compares the projected balance with the server's own. It ends with 0 if that was
    never further off than it may be, with 1 if it was.
    """
    scene = Scenario(workers, seed)
    screen = None if as_json or plain or not fits(sys.stdout) else Screen()
    if screen is None and not as_json:
        click.echo(f"{count(workers, 'worker')} on one key of {REFILL_RATE} tokens a minute of a fake Keepa server")
    started = time.monotonic()
    with screen or nullcontext():
        for at in scene.play():
            if as_json:
                continue
            if screen is None:
                _print_news(scene)
            else:
                screen.show(picture(scene, seconds))
            time.sleep(max(0.0, started + at / SECONDS * seconds - time.monotonic()))
    if as_json:
        shell.print_json(document(scene, seed))
        ctx.exit(shell.FINDINGS if scene.meter.broken else shell.WELL)
    if screen is None:
        _print_news(scene)
    console = shell.console()
    console.print()
    shell.print_table(summary(scene))
    for words in scene.meter.broken.values():
        console.print(f"broken: {words}", style="bold red")
    if not scene.meter.broken:
        console.print("Every bound held.", style="bold green")
    ctx.exit(shell.FINDINGS if scene.meter.broken else shell.WELL)


def _print_news(scene: Scenario) -> None:
    for line in scene.news:
        click.echo(line)
    scene.news.clear()
    sys.stdout.flush()
