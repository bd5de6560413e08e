"""What all commands have in common: help that begins with examples, exit codes, where data and messages go.

Data goes to the standard output, messages to the standard error. Exit codes: 0 well, 1 findings, 2 usage, 3 the storage
is away, 4 the API key was refused, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from ..errors import ConfigError, StorageUnavailable
from .colours import readable
from .words import plain

WELL: Final = 0
FINDINGS: Final = 1
USAGE: Final = 2
STORAGE_AWAY: Final = 3
KEY_REFUSED: Final = 4
INTERRUPTED: Final = 130


class RefusedError(Exception):
    """The command makes no sense here: the message says why, and what to do."""


class KeyRefusedError(Exception):
    """The server does not take the API key."""


class Number(click.FloatRange):
    """A number in a range. NaN, which no comparison would catch, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("give a number", param, ctx)
        return number


class Command(click.Command):
    """A command whose help begins with `examples` and ends with exit codes and `then`, the command that comes next."""

    examples = ""
    codes = ""
    then = ""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help: examples, usage, what it does, options, what next."""
        write_list(formatter, "Examples", self.examples)
        formatter.write_paragraph()
        super().format_help(ctx, formatter)
        for title, text in (("Exit codes", self.codes), ("Next", self.then)):
            if text:
                formatter.write_paragraph()
                write_list(formatter, title, text)


def command(summary: str, *, examples: str, then: str) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function. summary: its line in the list of commands. examples, then: see `Command`."""

    def make(function: Callable[..., None]) -> Command:
        made = click.command(cls=Command)(function)
        made.short_help, made.examples, made.then = summary, examples, then
        return made

    return make


def write_list(formatter: click.HelpFormatter, title: str, text: str) -> None:
    """Write lines as they are, under a title."""
    formatter.write(f"{title}:\n")
    for line in text.strip().splitlines():
        formatter.write(f"  {line.strip()}\n")


class Group(Command, click.Group):
    """All commands, each loaded when it is used. An error in a command becomes a line and an exit code."""

    examples = """
    keepa-tokens status --redis redis://127.0.0.1:6379     how is the bucket?
    keepa-tokens doctor --redis redis://127.0.0.1:6379     why does nothing move?
    keepa-tokens demo                                      see it work, no key
    """
    codes = """
    0 well, 1 findings, 2 usage, 3 storage away, 4 API key refused,
    130 interrupted
    """
    then = "keepa-tokens status --help"

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own
        """Return the commands in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's own
        """Load a command."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f".{COMMANDS[cmd_name]}", __package__), f"{cmd_name}_command")
        return found

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("interrupted; nothing is left running")
            ctx.exit(INTERRUPTED)
        except click.Abort:
            complain("no answer was given; nothing was changed")
            ctx.exit(INTERRUPTED)
        except click.UsageError as error:
            if error.ctx is not None:
                help_of = f"Try '{error.ctx.command_path} --help' for help."
                click.echo(f"{error.ctx.get_usage()}\n{help_of}\n", err=True)
            complain(error.format_message())
            ctx.exit(USAGE)
        except (ModuleNotFoundError, BrokenPipeError):
            raise  # `main` says how to get it; click ends without a word, as the reader of the pipe has gone
        except (StorageUnavailable, KeyRefusedError, RefusedError, ConfigError, ImportError) as error:
            complain(str(error))
            away, refused = isinstance(error, StorageUnavailable), isinstance(error, KeyRefusedError)
            ctx.exit(STORAGE_AWAY if away else KEY_REFUSED if refused else USAGE)
        except OSError as error:
            complain(f"this can't be written: {error}")
            ctx.exit(USAGE)


COMMANDS: Final = {
    "status": "status",
    "doctor": "doctor_command",
    "adopt": "adopt",
    "watch": "watch",
    "pause": "manage",
    "resume": "manage",
    "reset": "manage",
    "release": "manage",
    "simulate": "simulate_command",
    "completion": "app",
    "demo": "demo_command",
}
"""The commands, and the modules that they are in."""


def complain(message: str) -> None:
    """Write a message to the standard error."""
    say(f"keepa-tokens: {' '.join(message.split())}", err=True)


def say(words: str, style: str = "", indent: str = "", *, err: bool = False) -> None:
    """Write a sentence: in a terminal wrapped between words, in a pipe on one line."""
    to = console(err=err)
    for line in wrap(words, to, indent):
        to.print(Text(line, style))


def wrap(words: str, to: Console, indent: str = "", beside: int = 0) -> list[str]:
    """Return the lines of a sentence: one in a pipe; in a terminal wrapped to its width less `beside` characters.

    No word is cut, nor a key or an option with hyphens. Control characters, as in keys that somebody made by hand, are
    shown as escapes.
    """
    words = plain(words)
    if not to.is_terminal:
        return [words]
    width = max(20, to.width - beside)
    return textwrap.wrap(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def print_json(document: Mapping[str, object]) -> None:
    """Print a document to the standard output."""
    click.echo(json.dumps({"schema": 1, **document}, indent=2))


def console(*, err: bool = False) -> Console:
    """Return a console for data or messages, which breaks no line: `wrap` does. In a pipe it is plain."""
    plain_text = not (sys.stderr if err else sys.stdout).isatty()
    pipe: dict[str, Any] = {"color_system": None, "force_terminal": False} if plain_text else {}
    made = Console(soft_wrap=True, stderr=err, **pipe)
    if made.width < 1:  # some terminals set COLUMNS to 0
        made.width = 80
    return made if plain_text else readable(made)


def print_table(lines: Sequence[tuple[str, str]]) -> None:
    """Print names and texts side by side; in a terminal a long text goes on in the next line, at the same column."""
    to, room = console(), max(len(name) for name, _ in lines) + 2
    for name, words in lines:
        for place, line in enumerate(wrap(words, to, beside=room)):
            to.print(Text.assemble((f"{name if place == 0 else '':<{room}}", "dim"), line))
