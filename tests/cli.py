"""What the tests of the command line share: run a command in this process, and look at what it said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from click.testing import CliRunner, Result
from rich.console import Console

from keepa_tokens import RedisStorage, TokenBucket, keepa_quota
from keepa_tokens.cli.app import app
from keepa_tokens.cli.demo import Scenario
from keepa_tokens.cli.look import Look
from keepa_tokens.cli.view import Picture, draw
from keepa_tokens.keepa.quota import bucket_key
from keepa_tokens.rules.state import BucketState, Hold
from tests.servers import Server, running

KEY = bucket_key("right")
SECOND = 1_000_000
NOW = 1_780_000_000 * SECOND


def run(*arguments: str, code: int = 0, stdin: str | None = None, env: dict[str, str | None] | None = None) -> Result:
    """Run a command and return what came; its exit code is as expected."""
    clean: dict[str, str | None] = {"KEEPA_API_KEY": None, "KEEPA_TOKENS_REDIS": None, "KEEPA_TOKENS_SQLITE": None}
    result = CliRunner().invoke(app, arguments, input=stdin, env=clean | (env or {}))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result


def document(*arguments: str, code: int = 0, **rest: Any) -> Any:
    """Run a command with --json and return its document, which is all there is on the standard output."""
    said = json.loads(run(*arguments, "--json", code=code, **rest).stdout)
    assert said.pop("schema") == 1
    return said


def program(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python` with these arguments, as a program of its own; a warning ends it."""
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60)


class Place:
    where: tuple[str, str]

    def run(self, command: str, *arguments: str, **rest: Any) -> Result:
        return run(command, *self.where, *arguments, **rest)

    def document(self, command: str, *arguments: str, **rest: Any) -> Any:
        return document(command, *self.where, *arguments, **rest)


class Workers(Place):
    """A server with doors to buckets on it, as workers have them; all are closed with it."""

    def __init__(self, server: Server) -> None:
        self.url, self.where = server.url, ("--redis", server.url)
        self.client: Callable[[], AbstractContextManager[Any]] = server.client
        self.storage = RedisStorage.from_url(server.url)

    def bucket(self, key: str = KEY, refill_rate: int = 20) -> TokenBucket:
        """Return a worker's door to a synced bucket."""
        return TokenBucket(keepa_quota(refill_rate), key=key, storage=self.storage, listener=lambda _: None)


@contextmanager
def valkey_with_workers() -> Generator[Workers]:
    with running("valkey") as server:
        workers = Workers(server)
        yield workers
        workers.storage.close()


def seen(**given: Any) -> Look:
    """Return a look at a bucket of 20 tokens a minute with these fields."""
    holds: dict[str, Hold] = given.get("holds", {})
    known: dict[str, Any] = {
        "balance": 412,
        "refilled_at": NOW - 38 * SECOND,
        "sequence": 7,
        "reading_at": NOW - 45 * SECOND,
        "reading_sequence": 5,
        "drift": -3,
        "quota": keepa_quota(20),
        "held": sum(hold.tokens for hold in holds.values()),
        "open": len(holds),
        "due_at": min((hold.expires_at for hold in holds.values()), default=None),
    }
    state = BucketState(**known | given)
    return Look(KEY, NOW, state.to_fields(), state)


@cache
def scene(workers: int = 4, until: Literal["before", "after", "end"] = "end") -> Scenario:
    """Return a run of the demo: just before the fault, after it while all wait, or at its end."""
    made = Scenario(workers, 0)
    for _ in made.play():
        if until != "end" and made.now_us > 700_000_000 and (until == "before" or made.fault is not None):
            break
    return made


def hold(age: float, tokens: int = 15, hold_for: int = 120) -> Hold:
    """Return what a call has held for so many seconds."""
    return Hold(tokens, 6, NOW + round((hold_for - age) * SECOND), hold_for * SECOND)


def drawn(shown: Picture, width: int, height: int, colours: Literal["256"] | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=colours, force_terminal=True)
    with console.capture() as captured:
        console.print(draw(shown, width, height))
    return captured.get()
