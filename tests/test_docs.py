"""The pages tell the truth: each program on them runs, and prints what the page says that it prints.

A page's `python` blocks run one after the other, as one program; one that asks for its `__name__` runs by itself. An
`output` block is what the `python` block before it printed; our commands in a `console` block are run too, and `...` in
an answer stands for anything. Keepa is played by a fake server, Redis by a real Valkey. To add to a page, write the
block: nothing else needs to be told.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

# `pytester` forgets what was imported meanwhile: numpy can't be loaded twice, and httpx would not know a second
# httpcore's errors, so that `test_guards_http` failed behind it.
import httpcore  # noqa: F401
import httpcore2  # noqa: F401
import numpy as np  # noqa: F401
import pytest
from click.testing import CliRunner
from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser

from keepa_tokens.cli.app import app
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer
from tests.servers import HOST, running

from tests.test_examples import KEY, send_to  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RUN_ELSEWHERE = {
    "redis.md"  # by tests/redis/test_redis_page.py, on servers of each kind
}
RUNS = re.compile(r"^```(?:python|console)$", re.MULTILINE)


def pages() -> list[str]:
    found = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts and RUNS.search(page.read_text("utf-8"))]
    return sorted(page.relative_to(DOCS).as_posix() for page in found if page.name not in RUN_ELSEWHERE)


def as_said(wanted: str, got: str) -> None:
    """Fail if `got` isn't what the page says."""
    checker = OutputChecker()
    if not checker.check_output(wanted, got, ELLIPSIS | NORMALIZE_WHITESPACE):
        pytest.fail(f"the page says\n{wanted}\nand what came is\n{got}")


class Page:
    def __init__(self, moved: Callable[[str], str], pytester: pytest.Pytester) -> None:
        self.moved = moved
        self.pytester = pytester
        self.printed = ""

    def python(self, example: Example) -> None:
        """Run a program, or, where it defines tests, the tests."""
        source = self.moved(str(example.parsed))
        if tests := re.findall(r"^(?:async )?def test_", source, re.MULTILINE):
            self.pytester.makepyfile(source)
            self.pytester.runpytest("-q", "-p", "no:cacheprovider").assert_outcomes(passed=len(tests))
            return
        if '__name__ == "__main__"' in source:
            Path("program.py").write_text(source, encoding="utf-8")
            command = [sys.executable, "program.py"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            self.printed = done.stdout
            return
        printed = io.StringIO()
        code = compile("\n" * (example.line + 1) + source, example.path, "exec", dont_inherit=True)
        with redirect_stdout(printed):
            exec(code, example.namespace)
        self.printed = printed.getvalue()

    def output(self, example: Example) -> None:
        """Compare with what the program before it printed."""
        as_said(str(example.parsed), self.printed)
        self.printed = ""

    def console(self, example: Example) -> None:
        """Run each command of ours, and compare with what the page shows of its answer, if anything."""
        for command in re.split(r"^\$ ", str(example.parsed), flags=re.MULTILINE)[1:]:
            line, _, wanted = command.replace("\\\n", "").partition("\n")
            program, *arguments = shlex.split(self.moved(line), comments=True)
            if program != "keepa-tokens":
                continue
            result = CliRunner().invoke(app, arguments)
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            assert result.exit_code in {0, 1}, result.output
            if wanted.strip():
                as_said(wanted, result.output)


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Play Keepa, and where a text names a Redis, put the address of a real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEPA_API_KEY", KEY)
    with running("valkey") as redis, FakeKeepaServer(FakeKeepa(key=KEY)) as server:
        send_to(server.url, monkeypatch)
        yield lambda text: text.replace("localhost:6379", f"{HOST}:{redis.port}")


@pytest.mark.parametrize("name", pages())
def test_each_program_of_a_page_does_what_the_page_says(
    name: str, moved: Callable[[str], str], pytester: pytest.Pytester
) -> None:
    """The page's programs run in their order, and what they print is what the page shows."""
    page = Page(moved, pytester)
    parsers = [CodeBlockParser(kind, getattr(page, kind)) for kind in ("python", "output", "console")]
    document = Sybil(parsers=parsers, path=str(DOCS)).parse(DOCS / name)
    for example in document.examples():
        example.evaluate()


def test_what_a_page_says_is_compared() -> None:
    """An output that differs in one figure is found, and `...` stands for anything."""
    as_said("balance 7 of ...\n", "balance 7 of 300\n")
    with pytest.raises(pytest.fail.Exception, match="the page says"):
        as_said("balance 7\n", "balance 8\n")


def test_each_page_has_its_place() -> None:
    """Each page stands in the contents once: nobody finds another one."""
    listed = re.findall(r"```\{toctree\}\n(.*?)```", "".join(map(_text, DOCS.rglob("*.md"))), re.DOTALL)
    names = [name for block in listed for name in block.split("\n") if name and not name.startswith(":")]
    own = [page.stem for page in DOCS.rglob("*.md") if "_build" not in page.parts and page != DOCS / "index.md"]
    assert sorted(name.rpartition("/")[2] for name in names) == sorted(own)


def _text(page: Path) -> str:
    return page.read_text("utf-8")
