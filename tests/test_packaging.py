"""What an installed copy contains, and what importing it brings along."""

from __future__ import annotations

import email
import importlib.metadata
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TypedDict

import pytest

import keepa_tokens

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "keepa_tokens"
PLUGIN = "_keepa_tokens_pytest"

# Runs in an isolated interpreter: what site-packages loads at start-up by itself is not counted.
PROBE = """
import sys
before = set(sys.modules)
import importlib
importlib.import_module(sys.argv[1])
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
import json, logging, threading
loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
handlers = [repr(h) for logger in loggers for h in logger.handlers if not isinstance(h, logging.NullHandler)]
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
print(json.dumps({"loaded": loaded, "handlers": handlers, "threads": threads}))
"""


class Imported(TypedDict):
    loaded: list[str]
    handlers: list[str]
    threads: list[str]


def import_fresh(module: str) -> Imported:
    """Import `module` in an interpreter of its own and return what that left behind."""
    command = [sys.executable, "-I", "-W", "error", "-c", PROBE, module]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    imported: Imported = json.loads(result.stdout)
    return imported


def third_party(imported: Imported) -> set[str]:
    """Return the top-level modules that were loaded and are neither Python's nor ours."""
    return set(imported["loaded"]) - sys.stdlib_module_names - {"keepa_tokens"}


@pytest.mark.parametrize("module", ["keepa_tokens", "keepa_tokens.testing.clock", "keepa_tokens.testing.fake_keepa"])
def test_importing_brings_no_third_party_module(module: str) -> None:
    """Importing the package, or a stand-in for tests, loads only the standard library."""
    imported = import_fresh(module)
    assert "keepa_tokens" in imported["loaded"]
    assert third_party(imported) == set()


def test_importing_starts_nothing() -> None:
    """Importing the package adds no logging handler and starts no thread."""
    imported = import_fresh("keepa_tokens")
    assert imported["handlers"] == []
    assert imported["threads"] == []


def test_a_copy_without_metadata_can_be_imported() -> None:
    """A program that is packed without the metadata of what is in it has all of the package but its version."""
    program = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import keepa_tokens"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, timeout=60)


def test_the_probe_sees_what_it_looks_for() -> None:
    """The check above is no blind one: importing an extra shows up in it."""
    assert "hypothesis" in third_party(import_fresh("hypothesis"))


def test_versions_agree() -> None:
    """The version in pyproject.toml, in the installed metadata and, where it is stated, in `__version__` is one."""
    installed = importlib.metadata.version("keepa-tokens")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert installed == project["version"]
    assert getattr(keepa_tokens, "__version__", installed) == installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from this source tree by the build backend itself, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    """The wheel has every file of the package, `py.typed` and the Lua script included, and the plugin beside it."""
    files = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*") if path.is_file()]
    # What tools leave behind is hidden, or in __pycache__.
    in_tree = {
        path.as_posix() for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "keepa_tokens/py.typed" in in_wheel
    assert in_wheel == in_tree | {f"{PLUGIN}.py"}


def test_wheel_requires_nothing(wheel: Path) -> None:
    """Installing without extras installs no other package, and Python older than 3.11 is refused."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line] == []
    assert metadata["Requires-Python"] == ">=3.11"
