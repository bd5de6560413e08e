"""What all commands have in common: colours, columns, whole words, help, completion, and how they end."""

from __future__ import annotations

import ast
import io
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner
from rich.color import Color
from rich.console import Console
from rich.text import Text

from keepa_tokens import Reading
from keepa_tokens.cli import colours, shell
from keepa_tokens.cli.app import app
from keepa_tokens.cli.demo import Scenario
from keepa_tokens.cli.demo_command import picture
from keepa_tokens.cli.shell import COMMANDS
from tests.cli import KEY, Workers, drawn, program, run, scene

OURS = (colours.GOOD, colours.BUSY, colours.CARE, colours.BAD)
NAMED = frozenset({"black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"})
SOURCES = sorted(Path(colours.__file__).parent.glob("*.py"))


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as the accessibility guidelines of the web reckon it."""
    parts = [part / 255 for part in Color.parse(colour).get_truecolor()]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", OURS)
def test_each_colour_can_be_read_on_white_and_on_black(colour: str) -> None:
    """The contrast of each colour is 3.8 or more against white and against black."""
    light = luminance(colour)
    assert 1.05 / (light + 0.05) >= 3.8
    assert (light + 0.05) / 0.05 >= 3.8


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_style_names_a_colour_of_the_terminal(source: Path) -> None:
    """No command writes plain yellow or the like, which a terminal may show as anything: there is one set of them."""
    texts = [node.value for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Constant)]
    styles = [text.split() for text in texts if isinstance(text, str) and 0 < len(text) < 20]
    assert not [words for words in styles if NAMED & {word.removeprefix("bright_") for word in words}]


@pytest.mark.parametrize("until", ["before", "after"])
def test_a_picture_has_no_other_colours(until: Literal["before", "after"]) -> None:
    """A picture is drawn in the colours that can be read anywhere, in bold and in dim, and in nothing else."""
    shown = re.findall(r"\x1b\[([\d;]*)m", drawn(picture(scene(4, until), 34.0), 80, 24, colours="256"))
    used = {code for codes in shown for code in re.findall(r"38;5;\d+|\d+", codes)}
    assert used <= {"0", "1", "2", *(f"38;5;{Color.parse(colour).number}" for colour in OURS)}
    assert len(used) > 4


@pytest.mark.parametrize("system, coloured", [("standard", False), ("256", True), ("truecolor", True)])
def test_a_terminal_of_16_colours_gets_bold_without_colours(
    monkeypatch: pytest.MonkeyPatch, system: Literal["standard", "256", "truecolor"], *, coloured: bool
) -> None:
    """Where a terminal has only 16 colours of its own, words are bold and have none; elsewhere they have ours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = colours.readable(Console(file=io.StringIO(), color_system=system, force_terminal=True))
    with console.capture() as captured:
        console.print(Text("open", f"bold {colours.GOOD}"))
    assert captured.get() == ("\x1b[1;38;5;28mopen\x1b[0m\n" if coloured else "\x1b[1mopen\x1b[0m\n")


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_what_a_run_counts_stands_in_whole_lines_at_80_columns(workers: int) -> None:
    """No name in the demo's counts is parted from its number by the end of a line."""
    made = Scenario(workers, 0)
    for _ in made.play():
        assert max(map(len, picture(made, 34.0).facts)) <= 78


def test_an_option_is_never_broken_at_a_hyphen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal a command in a sentence stays one that can be copied: no line ends within an option."""
    words = "stop it, then `keepa-tokens adopt --balance-key keepa:tokens --rate-key keepa:rate` takes its state over."
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    for width in range(34, 81):
        monkeypatch.setenv("COLUMNS", str(width))
        shell.print_table([("cure", words)])
        lines = [line[6:] for line in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()]
        assert " ".join(lines) == words


def test_a_wrong_option_is_told_in_one_voice() -> None:
    """A value that makes no sense is told as every other error is, with the way to the help."""
    said = run("pause", "--redis", "redis://x", "--for", "3x", code=2).stderr.splitlines()
    assert said[1].endswith(" pause --help' for help.")
    assert said[-1] == (
        "keepa-tokens: Invalid value for '--for': '3x' is no duration up to a day: write 90s, 30m, 1h30m"
    )


@pytest.mark.parametrize("err", [False, True])
def test_a_sentence_is_broken_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, err: bool
) -> None:
    """In a terminal a sentence is broken between two words, and a key is never cut; in a pipe it is one line."""
    words = f"{KEY} is paused for 10:00: no call goes, what is in flight is settled as ever."
    shell.say(words, err=err)
    monkeypatch.setattr(sys.stderr if err else sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "25")
    shell.say(words, err=err)
    told = capsys.readouterr()
    whole, *broken = (told.err if err else told.out).splitlines()
    assert whole == words
    assert " ".join(broken) == words
    assert broken[0] == KEY
    assert 15 < max(map(len, broken[1:])) <= 25


def test_a_narrow_terminal_breaks_no_line_by_itself(
    valkey: Workers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 40 columns every line of the commands fits, and the bar is as short as that takes."""
    valkey.bucket("b").reconcile(Reading(412, refill=20.0, capacity=1200))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    for command in (["status", *valkey.where], ["doctor", *valkey.where], ["demo", "--seconds", "0", "--plain"]):
        with suppress(SystemExit):
            app(command)
        said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
        lines = [line for line in said.splitlines() if not re.match(r" +\d+:\d\d  ", line)]  # not the demo's log
        assert max(map(len, lines[1:])) <= 40
        assert command[0] != "status" or "412 of 1,200\n" in said


# --- what all commands have in common


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_begins_with_examples_and_ends_with_the_next_command(command: str) -> None:
    """Each command's help begins with examples and ends with the next; every option is explained, no line too wide."""
    said = CliRunner().invoke(app, [command, "--help"], terminal_width=80).output
    examples, _, rest = said.partition("\n\n")

    assert examples.startswith("Examples:\n  ")
    assert all(f"keepa-tokens {command}" in line for line in examples.splitlines()[1:])
    assert rest.startswith("Usage: ")
    assert said.rstrip().splitlines()[-2] == "Next:"
    following = said.rstrip().splitlines()[-1].split()
    assert following[0] == "keepa-tokens"
    assert following[1] in COMMANDS
    found = app.get_command(click.Context(app), command)
    assert found is not None
    assert all(param.help for param in found.params if isinstance(param, click.Option))
    assert not re.search(r"\d{4,}\.0", said)
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
    done = program("-m", "keepa_tokens", **env)
    assert [line.split(",")[1] for line in done.stdout.splitlines()] == ["resume", "reset", "release"]


def test_as_a_module_it_is_the_same_program() -> None:
    """`python -m keepa_tokens` runs the commands, and a wrong one ends with 2 and a hint."""
    done = program("-m", "keepa_tokens", "--version")
    wrong = program("-m", "keepa_tokens", "nonsense")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0.")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "No such command 'nonsense'" in wrong.stderr


def test_a_program_may_catch_what_it_prints() -> None:
    """`main` called where the standard output is an object of the caller."""
    lines = (
        "import io, sys; from keepa_tokens.cli import main",
        "sys.stdout, sys.argv = io.StringIO(), ['', '-h']; main()",
    )
    done = program("-c", "\n".join(lines))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "redirected, code, said",
    [
        (">&-", 0, ""),
        ("--json >&-", 0, ""),
        ("--key-file - <&-", 2, "it is empty"),
        (">/dev/full", 2, "No space left on device"),
        ("--json >/dev/full", 2, "No space left on device"),
        ("| true", 0, ""),
        ("--json | true", 0, ""),
    ],
)
def test_a_stream_that_is_closed_or_full_is_no_crash(valkey: Workers, redirected: str, code: int, said: str) -> None:
    """A closed output takes nothing, a closed input has nothing, a full disk is one line: never a traceback."""
    valkey.bucket().reconcile(Reading(300))
    command = f'exec "{sys.executable}" -W error -m keepa_tokens status --redis {valkey.url} {redirected}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert ("can't be written" in done.stderr) == ("full" in redirected)
    assert "Traceback" not in done.stderr


def test_letters_that_an_output_lacks_are_no_crash(valkey: Workers) -> None:
    """Where the output takes ASCII alone, a bar is drawn with other signs; every word and number is there."""
    valkey.bucket().reconcile(Reading(300, capacity=1200))
    done = program("-m", "keepa_tokens", "status", "--redis", valkey.url, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 of 1,200  ?" in done.stdout


@pytest.mark.parametrize("command", ["demo", "watch"])
def test_an_interrupt_ends_a_command_with_a_last_line(valkey: Workers, command: str) -> None:
    """Ctrl-C ends what goes on by itself with a last line on the standard error, exit code 130 and no traceback."""
    valkey.bucket().reconcile(Reading(300, refill=20.0, capacity=1200))
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "keepa_tokens", command],
        env=os.environ | {"KEEPA_TOKENS_REDIS": valkey.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)

    assert (running.returncode, errors) == (130, "keepa-tokens: interrupted; nothing is left running\n")


@pytest.mark.parametrize("looks, code", [("1000", 128 + signal.SIGTERM), ("2", 0)])
def test_a_command_that_ends_leaves_the_terminal_as_it_was(valkey: Workers, looks: str, code: int) -> None:
    """A picture gives back the screen and the cursor that it took, ended by SIGTERM, as by `timeout`, and by itself.
    By itself it leaves its last chart.
    """
    valkey.bucket().reconcile(Reading(300, refill=20.0, capacity=1200))
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "keepa_tokens", "watch", "--redis", valkey.url, "--every", "0.1", "--looks", looks],
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as running:
        drawn = b""
        while b"last minute" not in drawn:
            drawn += os.read(ours, 65536)
        if code:
            running.send_signal(signal.SIGTERM)
        running.wait(timeout=30)
    os.close(theirs)
    left = b""
    with suppress(OSError):  # an error is how a terminal ends
        while more := os.read(ours, 65536):
            left += more
    os.close(ours)

    before, _, after = (drawn + left).partition(b"\x1b[?1049l")
    assert running.returncode == code
    assert b"\x1b[?1049h" in before
    assert b"\x1b[?25h" in drawn + left
    assert (b"the last 1:00" in after) == (code == 0)
