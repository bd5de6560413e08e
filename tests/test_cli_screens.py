"""What people see of the commands: colours, columns, whole words, and a help for each option."""

from __future__ import annotations

import ast
import io
import re
import sys
from pathlib import Path
from typing import Literal

import click
import pytest
from rich.color import Color
from rich.console import Console
from rich.text import Text

from keepa_tokens.cli import colours, shell
from keepa_tokens.cli.app import app
from keepa_tokens.cli.demo import Scenario
from keepa_tokens.cli.demo_command import picture
from tests.cli import drawn, run

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


@pytest.mark.parametrize("late", [False, True])
def test_a_picture_has_no_other_colours(*, late: bool) -> None:
    """A picture is drawn in the colours that can be read anywhere, in bold and in dim, and in nothing else."""
    scene = Scenario(4, 0)
    for _ in scene.play():
        if scene.now_us > 700_000_000 and (not late or scene.fault is not None):
            break
    shown = re.findall(r"\x1b\[([\d;]*)m", drawn(picture(scene, 34.0), 80, 24, colours="256"))
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
    scene = Scenario(workers, 0)
    for _ in scene.play():
        assert max(map(len, picture(scene, 34.0).facts)) <= 78


def test_the_demo_tells_a_loss_before_what_mends_it() -> None:
    """In plain lines the lost timestamp comes first, then what mended it."""
    scene = Scenario(4, 0)
    for _ in scene.play():
        pass
    told = [line.split(maxsplit=2)[2] for line in scene.news if " demo " in line]
    lost = next(place for place, words in enumerate(told) if words.startswith("The timestamp is lost"))

    assert told[lost + 1].startswith("mended refilled_at")


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


@pytest.mark.parametrize("name", sorted(app.list_commands(click.Context(app))))
def test_each_option_says_what_it_is(name: str) -> None:
    """Every option of every command has a help, and no number in it is written as a computer would."""
    command = app.get_command(click.Context(app), name)
    assert command is not None
    options = [param for param in command.params if isinstance(param, click.Option)]
    help_text = command.get_help(click.Context(command))

    assert not [option.name for option in options if not option.help]
    assert not re.search(r"\d{4,}\.0", help_text)
    assert max(map(len, help_text.splitlines())) <= 80
