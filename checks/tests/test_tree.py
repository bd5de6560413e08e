"""What a clone must not bring is found, each planted in a repository of its own; what only looks like it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from checks import tree

HOME = "/" + "home/somebody"  # in two parts: this file is tracked too


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a file in a folder, and a .gitignore."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text(".venv\ndist/\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("A page.\n")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def found(repository: Path) -> list[str]:
    git(repository, "add", "--all", "--force")
    return list(tree.findings(repository))


def test_the_project_itself_brings_nothing_of_the_kind() -> None:
    """The tree that these tests are in is clean."""
    assert list(tree.findings(tree.ROOT)) == []


def test_a_clean_repository_has_no_findings(repository: Path) -> None:
    """Files, links to a file and to a folder of the tree, and bytes that are no text, are all right."""
    (repository / "docs" / "link").symlink_to("../docs/page.md")
    (repository / "folder").symlink_to("docs")
    (repository / "docs" / "all").symlink_to("..")
    (repository / "a.png").write_bytes(b"\x00" + HOME.encode())
    assert found(repository) == []


IGNORED = "tracked, though .gitignore names it"


@pytest.mark.parametrize(
    "link, target, findings",
    [
        (".venv", f"{HOME}/venv", [IGNORED, f"a link that leaves the tree, to {HOME}/venv"]),  # it once was there
        ("docs/link", "/etc/hosts", ["a link that leaves the tree, to /etc/hosts"]),
        *(("docs/link", up, [f"a link that leaves the tree, to {up}"]) for up in ("../..", "../../x", "../../../x")),
        ("link", "docs/gone.md", ["a link to docs/gone.md, which is not tracked"]),
    ],
)
def test_a_link_that_a_clone_cannot_follow_is_found(
    repository: Path, link: str, target: str, findings: list[str]
) -> None:
    """An absolute link, one that climbs too high, and one to what a clone will not have are named."""
    (repository / link).symlink_to(target)
    assert found(repository) == [f"{link}: {finding}" for finding in findings]


@pytest.mark.parametrize("ignored", [".venv", "dist/a.whl"])
def test_an_ignored_file_that_is_tracked_is_found(repository: Path, ignored: str) -> None:
    """A file that was added by force is named, in an ignored folder too."""
    (repository / ignored).parent.mkdir(exist_ok=True)
    (repository / ignored).write_text("x")
    assert found(repository) == [f"{ignored}: {IGNORED}"]


@pytest.mark.parametrize(
    "text, findings",
    [
        (f"see {HOME}/notes", 1),
        (f'"file://{HOME}"', 1),
        ("PATH=" + "/root" + "/bin", 1),
        ("(" + "/Users" + "/ann/x)", 1),
        ("cd " + "/work" + "/project", 1),
        ("C:" + "\\Users\\ann", 1),
        ("/usr/bin/env, /etc/hosts, /tmp/s, /path/to/python3, /bin/sh", 0),
        ("https://example.com/home/page and https://work/x and example.com/work/y", 0),
        ("under docs/work/ or ./root/x or ~/work/", 0),
        ("/home/<name>/, network/root/, {ROOT}/homework/", 0),
    ],
)
def test_a_path_of_a_machine_is_found(repository: Path, text: str, findings: int) -> None:
    """A home and a working folder are named with their line; not system folders, URLs, relative paths, placeholders."""
    (repository / "notes.md").write_text(f"Notes.\n{text}\n")
    assert [finding[: len("notes.md:2: ")] for finding in found(repository)] == ["notes.md:2: "] * findings


def test_without_a_repository_it_says_so(tmp_path: Path) -> None:
    """Outside a clone it ends with what git says, not with a pass."""
    with pytest.raises(SystemExit, match="git ls-files failed"):
        list(tree.findings(tmp_path))


# --- the start of .ci/run


def start_ci(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run .ci/run in a folder that has nothing but it and .gitignore: past its first look it has no Makefile."""
    (folder / ".ci").mkdir()
    shutil.copy(tree.ROOT / ".ci" / "run", folder / ".ci")
    shutil.copy(tree.ROOT / ".gitignore", folder)
    # A make that runs these tests tells its own child through MAKE*, which would then call itself "make[1]".
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | {"CI": "true"}
    return subprocess.run(
        [str(folder / ".ci" / "run")], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("left", [".venv", ".mypy_cache", "src/x/__pycache__", "x.egg-info"])
def test_ci_ends_at_once_where_a_clone_is_not_fresh(tmp_path: Path, left: str) -> None:
    """What a clone never brings ends it by name: a folder deep inside, and a link that leads nowhere."""
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).symlink_to(tmp_path / "nowhere") if left == ".venv" else (tmp_path / left).mkdir()
    ended = start_ci(tmp_path)
    assert ended.returncode == 1
    assert f"not a fresh clone: ./{left}" in ended.stderr
    assert "make" not in ended.stdout + ended.stderr


def test_ci_goes_on_in_a_fresh_clone(tmp_path: Path) -> None:
    """The look at the start is no blind one: where there is nothing, it goes on to make."""
    ended = start_ci(tmp_path)
    assert "not a fresh clone" not in ended.stderr
    assert "make: ***" in ended.stderr
