"""`keepa-tokens`: the group of commands. Each command is in a module of its own."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from . import shell

__all__ = ["app"]

SHELLS: Final = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.group(cls=shell.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keepa-tokens", message="%(version)s")
def app() -> None:
    """Look at, mend and try out buckets of tokens that are in step with the balance that Keepa reports."""


@shell.command(
    "make a shell complete commands and options",
    examples="""
    eval "$(keepa-tokens completion bash)"     for this shell
    keepa-tokens completion zsh > ~/.zfunc/_keepa-tokens
    keepa-tokens completion fish > ~/.config/fish/completions/keepa-tokens.fish
    """,
    then="keepa-tokens status --help",
)
@click.argument("kind", metavar="SHELL", type=click.Choice(list(SHELLS)))
def completion_command(kind: str) -> None:
    """Print a script that makes a shell complete commands and options."""
    click.echo(SHELLS[kind](app, {}, "keepa-tokens", "_KEEPA_TOKENS_COMPLETE").source())
