"""`keepa-tokens`: the commands, as click sees them. What each does stands in a module of its own."""

from __future__ import annotations

import click

from . import shell

__all__ = ["app"]


@click.group(cls=shell.Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keepa-tokens", message="%(version)s")
def app() -> None:
    """Look at, mend and try out buckets of tokens that are in step with the balance that Keepa reports."""
