"""What `make release-check` does: it looks at what would be published, and tries it where it is installed.

1. Wheel and sdist are built twice, in different folders, with files of different ages. They are the same byte by byte.
2. They hold what they should and nothing else: no test or proof code.
3. An index on loopback serves both, and what the extras need. From there alone they are installed into empty
   environments, the wheel without extras and with each, the sdist once. Each is tried, out of reach of `src`.

`--keep FOLDER` leaves there what was checked, to be published, and `--tag v0.1.0` wants that version. It prints a line
a step, and ends with 1 at the first thing that isn't so. But for fetching what the extras need it uses no network.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOOPBACK: Final = "127.0.0.1"
EPOCH: Final = "1767225600"
"""2026-01-01: the time that stands in the archives where a release gives none by SOURCE_DATE_EPOCH."""

NEEDED: Final = {
    "wheel": ("keepa_tokens/py.typed", "keepa_tokens/storage/bucket.lua", "/METADATA", "/LICENSE"),
    "sdist": ("/src/keepa_tokens/py.typed", "/src/keepa_tokens/storage/bucket.lua", "/README.md", "/LICENSE"),
}
ONLY: Final = {
    "wheel": re.compile(r"keepa_tokens/|_keepa_tokens_pytest\.py$|keepa_tokens-[^/]+\.dist-info/"),
    "sdist": re.compile(r"[^/]+/(?:src/|README\.md$|CHANGELOG\.md$|LICENSE$|PKG-INFO$|pyproject\.toml$|\.gitignore$)"),
}
FOREIGN: Final = re.compile(
    r"(?:^|/)(?:(?:tests?|checks|proof|theorems|torture|mutation|benchmarks|examples)(?:/|$)|test_)"
)

TRIED: Final[Mapping[str, str]] = {
    "": "import keepa_tokens, keepa_tokens.testing; keepa_tokens.testing.FakeKeepa()",
    "redis": "from keepa_tokens import RedisStorage; RedisStorage.from_url('redis://127.0.0.1:1').close()",
    "valkey": "from keepa_tokens import RedisStorage; RedisStorage.from_url('valkey://127.0.0.1:1').close()",
    "http": "import httpx, keepa_tokens; keepa_tokens.http_probe('k'); import keepa_tokens.guards.httpx",
    "httpx2": "import httpx2, keepa_tokens.guards.httpx",
    "requests": "import keepa_tokens.guards.requests",
    "celery": "import keepa_tokens.guards.celery",
    "metrics": "import keepa_tokens.metrics",
    "cli": "import keepa_tokens.cli.app",
    "testing": "import keepa_tokens.testing.conformance",
}
"""What must work with each extra installed, and no other."""


class ReleaseError(Exception):
    """What would be published isn't as it should be."""


def main() -> int:
    """Check all of it; return the exit code."""
    options = argparse.ArgumentParser(prog="python -m checks.release", description="Check what would be published.")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave the wheel and the sdist")
    options.add_argument("--tag", help="the tag of the release: v and its version")
    given = options.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            tagged(given.tag)
            _check(Path(folder), lambda text: print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True))
        except ReleaseError as wrong:
            print(f"FAILED {wrong}")
            return 1
        if given.keep:
            shutil.copytree(Path(folder) / "first" / "dist", given.keep)
    return 0


def _check(folder: Path, tell: Callable[[str], None]) -> None:
    wheel, sdist = built(folder / "first")
    for one, other in zip((wheel, sdist), built(folder / "second"), strict=True):
        same(one, other)
        tell(f"{one.name}: the same twice, {one.stat().st_size:,} bytes")
    for kind, archive in (("wheel", wheel), ("sdist", sdist)):
        names = names_in(archive)
        holds_what_it_should(kind, names)
        tell(f"{archive.name}: {len(names)} files, no test or proof code")
    packages = folder / "packages"
    fetch(wheel, packages)
    for archive in (wheel, sdist):
        shutil.copy(archive, packages)
    with index(packages, folder / "index") as url:
        for extra in ("", *PROJECT["optional-dependencies"]):
            try_installed(folder / f"wheel-{extra or 'alone'}", url, extra)
            tell(f"the wheel works with {extra}" if extra else "the wheel works")
        try_installed(folder / "sdist", url, "", "--no-binary", PROJECT["name"])
        tell("the sdist works")


def tagged(tag: str | None) -> None:
    """Raise if a release's tag doesn't say its version."""
    if tag not in {None, f"v{PROJECT['version']}"}:
        raise ReleaseError(f"the tag is {tag}, and the version {PROJECT['version']}")


# --- building


def built(folder: Path) -> tuple[Path, Path]:
    """Build wheel and sdist from a copy of what git tracks, made now; return both."""
    tree, out = folder / "tree", folder / "dist"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout  # noqa: S607 - git by PATH
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    environment = os.environ | {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", EPOCH)}
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree), env=environment)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def same(one: Path, other: Path) -> None:
    """Raise unless two files are the same byte by byte."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, other)]
    if digests[0] != digests[1]:
        raise ReleaseError(f"{one.name}: built twice, it differs: {digests[0]}, {digests[1]}")


def names_in(archive: Path) -> list[str]:
    """Return the names of the files in a wheel or an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return [name for name in wheel.namelist() if not name.endswith("/")]
    with tarfile.open(archive) as sdist:
        return [member.name for member in sdist.getmembers() if member.isfile()]


def holds_what_it_should(kind: str, names: list[str]) -> None:
    """Raise if a file is missing, or there is one that nobody needs who installs it."""
    for needed in NEEDED[kind]:
        if not any(name.endswith(needed) for name in names):
            raise ReleaseError(f"the {kind} has no {needed}")
    for name in names:
        if FOREIGN.search(name) or not ONLY[kind].match(name):
            raise ReleaseError(f"the {kind} has a file that doesn't belong there: {name}")


# --- an index of its own


def fetch(wheel: Path, packages: Path) -> None:
    """Fetch what the extras and the building of the sdist need."""
    extras = ",".join(PROJECT["optional-dependencies"])
    _pip("download", "--dest", str(packages), f"{wheel}[{extras}]", "hatchling>=1.27")


@contextmanager
def index(packages: Path, folder: Path) -> Iterator[str]:
    """Serve packages on loopback as a package index, and yield its address."""
    for package in packages.iterdir():
        project = re.sub(r"[-_.]+", "-", package.name.split("-")[0]).lower()
        if package.name.endswith(".tar.gz"):
            project = re.sub(r"[-_.]+", "-", package.name.rpartition("-")[0]).lower()
        page = folder / "simple" / project / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        shutil.copy(package, page.parent)
        with page.open("a") as links:
            links.write(f'<a href="{package.name}#sha256={digest}">{package.name}</a>\n')
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(_Quiet, directory=str(folder)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/simple/"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        """Say nothing of each request."""


# --- installed


def try_installed(environment: Path, url: str, extra: str, *options: str) -> None:
    """Install from the index into an empty environment, and try what must work there."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = str(environment / "bin" / "python")
    wanted = f"{PROJECT['name']}[{extra}]" if extra else PROJECT["name"]
    pinned = f"{wanted}=={PROJECT['version']}"
    _pip("--isolated", "--python", python, "install", "--no-cache-dir", "--index-url", url, *options, pinned)
    away = environment / "away"
    away.mkdir()

    def tried(program: str) -> str:
        return _run(python, "-I", "-W", "error", "-c", program, cwd=away)

    place, version = tried(
        "import keepa_tokens, importlib.metadata as m; print(keepa_tokens.__file__); print(m.version('keepa-tokens'))"
    ).split()
    if not Path(place).is_relative_to(environment) or version != PROJECT["version"]:
        raise ReleaseError(f"installed {version} at {place}")
    tried(TRIED[extra])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (ten_lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    if tried(ten_lines) not in readme:
        raise ReleaseError("README's program doesn't print what README shows")
    if extra == "http":
        page = (ROOT / "docs" / "start" / "tutorial.md").read_text(encoding="utf-8")
        blocks = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "output"))
        program, shown = map("".join, blocks)
        if tried(program) != shown:
            raise ReleaseError("the programs of the first page don't print what it shows")
    if extra == "cli":
        _run(str(environment / "bin" / "keepa-tokens"), "demo", "--seconds", "3", "--plain", cwd=away)


def _pip(*arguments: str) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def _run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
