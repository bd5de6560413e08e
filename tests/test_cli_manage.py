"""`keepa-tokens reset` and `release`, completion, and what all commands have in common."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from keepa_tokens import Reading
from keepa_tokens.cli import shell
from keepa_tokens.cli.app import app
from keepa_tokens.cli.shell import COMMANDS
from tests.cli import KEY, Workers, document, run


@pytest.fixture
def server(valkey: Workers) -> Workers:
    """The same, with one bucket."""
    valkey.bucket().reconcile(Reading(300, refill=20.0, capacity=1200))
    return valkey


def test_reset_forgets_a_bucket_after_two_answers(server: Workers) -> None:
    """Reset says what is lost, asks twice, and forgets the bucket; the next call makes a new one."""
    result = run("reset", "--redis", server.url, stdin=f"y\n{KEY}\n")

    assert f"This forgets the bucket {KEY} (balance 300 of 1,200" in result.stderr
    assert result.stdout == f"{KEY} is forgotten: the next call of a worker makes a new bucket.\n"
    with server.client() as client:
        assert client.keys("*") == []


@pytest.mark.parametrize("answers", ["n\n", "y\nyes\n", "y\n\n"])
def test_reset_without_both_answers_changes_nothing(server: Workers, answers: str) -> None:
    """A no, and a word that is not the bucket's key, leave everything as it was."""
    assert "nothing was changed" in run("reset", "--redis", server.url, stdin=answers, code=2).stderr
    assert server.bucket().peek().balance == 300


def test_reset_with_nobody_to_answer_changes_nothing(server: Workers) -> None:
    """Where nobody can answer, nothing is changed; --yes is the answer of a script."""
    assert "nothing was changed" in run("reset", "--redis", server.url, stdin="", code=130).stderr
    assert server.bucket().peek().balance == 300
    run("reset", "--redis", server.url, "--yes")
    assert server.bucket().peek().balance is None


def test_release_gives_back_what_a_dead_call_holds(server: Workers) -> None:
    """Release ends one hold, found by the beginning of its id, and says how much it gave back; others stay."""
    dead, other = server.bucket().try_reserve(30), server.bucket().try_reserve(5)
    said = run("release", "--redis", server.url, dead.id[:10], "--yes").stdout

    assert said.startswith("30 tokens, held for 0:0")
    assert said.endswith(": given back.\n")
    assert (server.bucket().peek().held, server.bucket().peek().balance) == (5, 300)
    wrong = run("release", "--redis", server.url, "zzz", "--yes", code=2).stderr
    assert f"there are: {other.id} (5 tokens)" in wrong


@pytest.mark.parametrize("wrong", ["2", "1x", "25h", "0s", "-1h", "h"])
def test_a_pause_is_a_duration_up_to_a_day(server: Workers, wrong: str) -> None:
    """What is no duration, or longer than a day, is a usage error that shows how to write one."""
    assert "write 90s, 30m, 1h30m" in run("pause", "--redis", server.url, "--for", wrong, code=2).stderr


def test_a_pause_is_seen_and_ended(server: Workers) -> None:
    """A paused bucket lets no call go, status says for how long, and resume ends it."""
    said = run("pause", "--redis", server.url, "--for", "30m").stdout
    assert said == f"{KEY} is paused for 30:00: no call goes, what is in flight is settled as ever.\n"
    told = document("status", "--redis", server.url)["bucket"]
    assert told["state"] == "paused"
    assert 1790 < told["paused_for"] <= 1800
    assert [call["reason"] for call in told["calls"]] == ["PAUSED", "PAUSED"]
    assert not server.bucket().try_acquire(1)
    assert "of its pause were left" in run("resume", "--redis", server.url).stdout
    assert server.bucket().try_acquire(1)


def test_resume_of_what_is_not_paused_says_so(server: Workers) -> None:
    """Resuming a bucket that isn't paused changes nothing and says so."""
    assert run("resume", "--redis", server.url).stdout == f"{KEY} was not paused; nothing was changed.\n"


# --- what all commands have in common


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_begins_with_examples_and_ends_with_the_next_command(command: str) -> None:
    """Each command's help begins with examples that run this command, and ends with the one that comes next; no line
    is wider than a terminal.
    """
    said = CliRunner().invoke(app, [command, "--help"], terminal_width=80).output
    examples, _, rest = said.partition("\n\n")

    assert examples.startswith("Examples:\n  ")
    assert all(f"keepa-tokens {command}" in line for line in examples.splitlines()[1:])
    assert rest.startswith("Usage: ")
    assert said.rstrip().splitlines()[-2] == "Next:"
    following = said.rstrip().splitlines()[-1].split()
    assert following[0] == "keepa-tokens"
    assert following[1] in COMMANDS
    assert max(map(len, said.splitlines())) <= 80


def test_the_first_help_shows_every_command_in_a_line() -> None:
    """`keepa-tokens` alone shows examples, every command with what it is for, uncut, the exit codes and what next."""
    said = CliRunner().invoke(app, ["--help"], terminal_width=80).output

    for command in COMMANDS:
        assert f"\n  {command} " in said
    assert "..." not in said.partition("Commands:")[2]
    codes = "0 well, 1 findings, 2 usage, 3 storage away, 4 API key refused, 130 interrupted"
    assert codes in " ".join(said.split())
    assert said.rstrip().splitlines()[-1] == "  keepa-tokens status --help"
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    "wrong", [["watch", "--every", "nan"], ["simulate", "--days", "nan"], ["simulate", "--outside", "nan"]]
)
def test_a_number_that_is_none_is_refused(wrong: list[str]) -> None:
    """NaN passes any comparison with a range, and is a usage error none the less."""
    assert "give a number" in run(*wrong, code=2).stderr


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(kind: str) -> None:
    """The completion of each shell is printed, and asks this program for what can come next."""
    assert "_KEEPA_TOKENS_COMPLETE" in run("completion", kind).stdout


def test_completion_knows_the_commands() -> None:
    """Asked as a shell does, the program names the commands that begin so."""
    env = {"COMP_WORDS": "keepa-tokens re", "COMP_CWORD": "1", "_KEEPA_TOKENS_COMPLETE": "bash_complete"}
    command = [sys.executable, "-m", "keepa_tokens"]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60)

    assert [line.split(",")[1] for line in done.stdout.splitlines()] == ["resume", "reset", "release"]


def test_as_a_module_it_is_the_same_program() -> None:
    """`python -m keepa_tokens` runs the commands, and a wrong one ends with 2 and a hint."""
    command = [sys.executable, "-W", "error", "-m", "keepa_tokens"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, timeout=60)
    wrong = subprocess.run([*command, "nonsense"], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0.")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "No such command 'nonsense'" in wrong.stderr


# --- how it looks


@pytest.mark.parametrize("err", [False, True])
def test_a_sentence_is_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, err: bool
) -> None:
    """In a terminal a sentence goes on in the next line between two words, and a key is never cut; in a pipe it is one
    line.
    """
    words = f"{KEY} is paused for 10:00: no call goes, what is in flight is settled as ever."
    shell.say(words, err=err)
    monkeypatch.setattr(sys.stderr if err else sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    shell.say(words, err=err)
    told = capsys.readouterr()
    whole, *broken = (told.err if err else told.out).splitlines()
    assert whole == words
    assert " ".join(broken) == words
    assert max(map(len, broken)) <= 40
    assert len(broken) == 3
