"""`keepa-tokens demo`, as click sees it."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import click

from .._door import new_id
from . import shell
from .colours import BAD, GOOD
from .demo import BUCKET, REFILL_RATE, SECONDS, Scenario
from .demo_show import document, picture, summary
from .place import Place
from .view import Screen, fits
from .where import Where
from .words import count


@shell.command(
    "see it work, without a key",
    examples="""
    keepa-tokens demo
    keepa-tokens demo --seconds 10 --plain
    keepa-tokens demo --json          at once, as a document
    keepa-tokens demo --redis URL     its bucket on a server of your own
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
@click.option(
    "--redis-url", "--redis", metavar="URL", help="Keep the bucket on this Redis or Valkey, under a key of its own."
)
@click.pass_context
def demo_command(
    ctx: click.Context, *, seconds: float, workers: int, seed: int, plain: bool, as_json: bool, redis_url: str | None
) -> None:
    """Watch several workers share one key of a fake Keepa server, in accelerated time.

    Half-way the demo does what broke the system before this one: while the balance is -79, the stored time of the last
    refill is lost. All the while it compares the projected balance with the server's own. It ends with 0 if that was
    never further off than it may be, with 1 if it was.
    """
    with _place(redis_url) as place:
        broken = _play(Scenario(workers, seed, place), seconds, seed, plain=plain, as_json=as_json)
    ctx.exit(shell.FINDINGS if broken else shell.WELL)


@contextmanager
def _place(url: str | None) -> Generator[Place | None]:
    """Yield where the bucket lives; afterwards nothing of it is there."""
    if url is None:
        yield None
        return
    with Where(url, None, f"keepa_tokens:demo:{new_id()}:").opened() as place:
        try:
            yield place
        finally:
            place.delete(BUCKET)


def _play(scene: Scenario, seconds: float, seed: int, *, plain: bool, as_json: bool) -> bool:
    """Show a run; return whether a bound was broken."""
    screen = None if as_json or plain or not fits(sys.stdout) else Screen()
    if screen is None and not as_json:
        click.echo(
            f"{count(len(scene.workers), 'worker')} on one key of {REFILL_RATE} tokens a minute of a fake Keepa server"
        )
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
        return bool(scene.meter.broken)
    if screen is None:
        _print_news(scene)
    console = shell.console()
    console.print()
    shell.print_table(summary(scene))
    for words in scene.meter.broken.values():
        console.print(f"broken: {words}", style=f"bold {BAD}")
    if not scene.meter.broken:
        console.print("Every bound held.", style=f"bold {GOOD}")
    return bool(scene.meter.broken)


def _print_news(scene: Scenario) -> None:
    for line in scene.news:
        click.echo(line)
    scene.news.clear()
    sys.stdout.flush()
