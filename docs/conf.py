"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util.docutils import SphinxDirective

import keepa_tokens

sys.path.append(str(Path(__file__).resolve().parent))
from tables import day_table  # beside this file

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "keepa_tokens"
author = copyright = PROJECT["authors"][0]["name"]  # noqa: A001 - Sphinx's name for it
release = version = PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

highlight_language = "text"
html_theme = "furo"
html_title = f"keepa_tokens {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "source_repository": PROJECT["urls"]["Source"],
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_exclude = ".linenos, .gp, .go"  # from a console: the commands, without prompts and answers

# What a docstring puts between single backticks links to what it names, if it names anything.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # an argument, a value: shown as code
    # No inventory of other projects is fetched, so what belongs to them, or to Python, can't be looked up.
    ("py:.*", r"(typing|collections|types|logging|threading|asyncio|contextlib|enum|pathlib|fractions)\b.*"),
    ("py:.*", r"(celery|httpx|httpx2|requests|keepa|redis|valkey|prometheus_client|pytest)\.(?!reading).*"),
    ("py:class", r"[^.]*|tuple\[.*"),  # type variables, and what annotations leave of built-in types
    ("py:exc", r"[^.]*"),
]


class CommandHelp(Directive):
    """What a command of `keepa-tokens` says of itself: `{command-help} status`. Without a name: the whole."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Ask the command for its help."""
        from click.testing import CliRunner  # noqa: PLC0415 - only a page of the reference needs it

        from keepa_tokens.cli.app import app  # noqa: PLC0415

        said = CliRunner().invoke(app, [*self.arguments, "--help"], terminal_width=80, prog_name="keepa-tokens")
        if said.exit_code:
            raise self.error(f"keepa-tokens {' '.join(self.arguments)}: {said.output}")
        return [nodes.literal_block(said.output, said.output.strip("\n"), language="text")]


class DayTable(SphinxDirective):
    """One of the days of the benchmark: `{day-table} 8 workers, 5/min`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Take the figures from the benchmark's page."""
        return self.parse_text_to_nodes(day_table(self.arguments[0]))


def _in_public(app: Sphinx, _env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Find what an annotation names by the module that defines it: it has its page under the module that shows it.

    What is internal has no page, and stays a word. What isn't there at all stays a warning.
    """
    home, _, name = node["reftarget"].rpartition(".")
    if not home.startswith("keepa_tokens."):
        return None
    python: Any = app.env.get_domain("py")
    for public in ("keepa_tokens", "keepa_tokens.testing"):
        target = f"{public}.{name}"
        found = python.resolve_xref(app.env, node["refdoc"], app.builder, node["reftype"], target, node, content)
        if found is not None:
            return found
    return content if hasattr(import_module(home), name) else None


def _readable(_app: Sphinx, _what: str, _name: str, obj: object, _options: object, lines: list[str]) -> None:
    """Show a docstring as its writer meant it: indented code as code, explained arguments as a list.

    The docstrings are written for those who read the source: `capacity: what it holds. refill: tokens a period.`
    """
    known = _arguments(obj)
    explained = re.compile(rf"(?:^|(?<=[.;)] ))((?:{'|'.join(known) or '(?!)'})(?:, \\w+)*): ")
    paragraphs = "\n".join(lines).split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        text = " ".join(paragraph.split())
        if paragraph.startswith("    ") and place and not paragraphs[place - 1].startswith(("    ", "- ", "..")):
            paragraphs[place] = f".. code-block:: python\n\n{paragraph}"
        elif explained.search(text):
            before, *parts = explained.split(text)
            items = zip(parts[::2], parts[1::2], strict=True)
            listed = "\n".join(f"- **{names}**: {what.strip()}" for names, what in items)
            paragraphs[place] = f"{before.strip()}\n\n{listed}"
    lines[:] = "\n\n".join(paragraphs).split("\n")


def _arguments(obj: object) -> list[str]:
    """Return the names that a docstring may explain: parameters, and of a class its attributes."""
    try:
        names = set(inspect.signature(obj).parameters) if callable(obj) else set()
    except (TypeError, ValueError):
        names = set()
    if inspect.isclass(obj):
        names |= {name for name in dir(obj) if not name.startswith("_")}
        for kind in obj.__mro__:
            if kind.__module__.startswith("keepa_tokens"):
                names |= set(re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? =", inspect.getsource(kind)))
    return sorted(names, key=len, reverse=True)


def setup(app: Sphinx) -> None:
    """Tell Sphinx of the above."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("day-table", DayTable)
    app.connect("missing-reference", _in_public)
    app.connect("autodoc-process-docstring", _readable)


assert keepa_tokens.__version__  # the installed package is what the reference shows  # noqa: S101
