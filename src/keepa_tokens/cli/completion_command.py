"""`keepa-tokens completion`, as click sees it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import shell

NAME = "keepa-tokens"
VARIABLE = "_KEEPA_TOKENS_COMPLETE"


@shell.command(
    "make a shell complete commands and options",
    examples="""
    eval "$(keepa-tokens completion bash)"     for this shell
    keepa-tokens completion zsh > ~/.zfunc/_keepa-tokens
    keepa-tokens completion fish > ~/.config/fish/completions/keepa-tokens.fish
    """,
    then="keepa-tokens status --help",
)
@click.argument("kind", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, kind: str) -> None:
    """Print what makes a shell complete commands and options."""
    made = get_completion_class(kind)
    if made is None:
        raise shell.RefusedError(f"no completion for {kind}")
    click.echo(made(ctx.find_root().command, {}, NAME, VARIABLE).source())
