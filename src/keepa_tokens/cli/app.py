"""The commands, as typer sees them. Each is thin: what it does stands in a module of its own."""

from __future__ import annotations

import math
import sys
from importlib.metadata import version
from typing import Annotated, Final

import typer

from ..errors import ConfigError, StorageUnavailable
from .demo import Show
from .demo import run as run_demo
from .demo_crew import GaveUpError
from .demo_plain import PlainShow, SilentShow
from .demo_report import document, summary
from .demo_scene import Settings
from .demo_view import LiveShow, fits

__all__ = ["app", "run"]

OK: Final = 0
BROKEN: Final = 1
UNUSABLE: Final = 2
INTERRUPTED: Final = 130

SLOWEST: Final = 40.0
"""Server seconds in a real one, where there is time: slow enough for a busy machine to keep up, and to be watched."""

RECOVERY: Final = 300.0
"""Server seconds to leave for the recovery."""

RECOVERY_PART: Final = 0.4
"""The part of a run to leave for it."""

# Plain help: it wraps whole paragraphs, and a command line is read in logs too.
app = typer.Typer(
    name="keepa-tokens",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else BROKEN
    return OK


def _show_version(wanted: bool) -> None:
    if wanted:
        print(version("keepa-tokens"))
        raise typer.Exit


@app.callback()
def keepa_tokens(
    _: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """A token bucket in step with the balance that Keepa reports."""


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=2, max=3600, help="How long it takes, about, in real seconds.")] = 34,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers that share the key.")] = 4,
    speed: Annotated[
        float | None,
        typer.Option(min=1, max=400, help="Server seconds in a real one [default: 40, more in a short run]."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the calls that the workers make.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, in a terminal too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only one JSON document, at the end.")] = False,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Run the workers as processes that share the bucket on this Redis or Valkey: redis://..."),
    ] = None,
) -> None:
    """Watch several workers share one key of a fake Keepa server, over real HTTP in accelerated time.

    Half-way the demo does what broke the system before this one: while the balance is -79, the stored time of the last
    refill is lost. All the while it compares the projected balance with the server's own. Exit code 0: it was never
    further off than it may be; 1: it was; 2: it could not run, for example because the Redis can't be reached.
    """
    for name, value in (("--seconds", seconds), ("--speed", speed)):
        if value is not None and math.isnan(value):  # passes any check of a range
            raise typer.BadParameter("give a number", param_hint=name)
    settings = Settings(seconds, workers, speed or max(SLOWEST, RECOVERY / (RECOVERY_PART * seconds)), seed, redis_url)
    show: Show
    try:
        if as_json:
            outcome = run_demo(settings, SilentShow())
        elif plain or not fits(sys.stdout):
            outcome = run_demo(settings, PlainShow(sys.stdout))
        else:
            with LiveShow() as show:
                outcome = run_demo(settings, show)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (ConfigError, StorageUnavailable, GaveUpError, ImportError) as error:
        if redis_url is None:  # then nothing of this kind can happen, but by a defect
            raise
        print(f"keepa-tokens: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(UNUSABLE) from None
    if as_json:
        print(document(outcome))
    else:
        summary(outcome, sys.stdout)
    raise typer.Exit(BROKEN if outcome.broken else OK)
