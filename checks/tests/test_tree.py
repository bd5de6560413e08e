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
    """Files, and links to a file and to a folder of the tree, are all right."""
    (repository / "docs" / "link").symlink_to("../docs/page.md")
    (repository / "folder").symlink_to("docs")
    (repository / "docs" / "all").symlink_to("..")
    assert found(repository) == []


@pytest.mark.parametrize("ignored", [".venv", "dist/a.whl"])
def test_an_ignored_file_that_is_tracked_is_found(repository: Path, ignored: str) -> None:
    """A file that was added by force is named, in an ignored folder too."""
    (repository / ignored).parent.mkdir(exist_ok=True)
    (repository / ignored).write_text("x")
    assert found(repository) == [f"{ignored}: tracked, though .gitignore names it"]


def test_the_link_that_once_was_there_is_found_twice(repository: Path) -> None:
    """A link named .venv to a folder of a machine is ignored, is tracked, and leaves the tree."""
    (repository / ".venv").symlink_to(f"{HOME}/venv")
    assert found(repository) == [
        ".venv: tracked, though .gitignore names it",
        f".venv: a link that leaves the tree, to {HOME}/venv",
    ]


@pytest.mark.parametrize("target", ["..", "../x", "../../docs/page.md", "/etc/hosts"])
def test_a_link_that_leaves_the_tree_is_found(repository: Path, target: str) -> None:
    """An absolute link and one that climbs too high are named."""
    (repository / "docs" / "link").symlink_to(f"../{target}" if target.startswith(".") else target)
    (finding,) = found(repository)
    assert finding.startswith("docs/link: a link that leaves the tree, to ")


def test_a_link_to_what_is_not_tracked_is_found(repository: Path) -> None:
    """A link to a file that a clone will not have is named."""
    (repository / "link").symlink_to("docs/gone.md")
    assert found(repository) == ["link: a link to docs/gone.md, which is not tracked"]


@pytest.mark.parametrize(
    "text",
    [
        f"see {HOME}/notes",
        f'"file://{HOME}"',
        "PATH=" + "/root" + "/bin",
        "(" + "/Users" + "/ann/x)",
        "cd " + "/work" + "/project",
        "C:" + "\\Users\\ann",
    ],
)
def test_a_path_of_a_machine_is_found(repository: Path, text: str) -> None:
    """A home and a working folder in a text are named with their line."""
    (repository / "notes.md").write_text(f"Notes.\n{text}\n")
    (finding,) = found(repository)
    assert finding.startswith("notes.md:2: ")


@pytest.mark.parametrize(
    "text",
    [
        "/usr/bin/env, /etc/hosts, /tmp/s, /path/to/python3, /bin/sh",
        "https://example.com/home/page and https://work/x and example.com/work/y",
        "under docs/work/ or ./root/x or ~/work/",
        "/home/<name>/",
        "network/root/",
        "{ROOT}/homework/",
    ],
)
def test_what_is_the_same_everywhere_is_no_finding(repository: Path, text: str) -> None:
    """System folders, URLs, relative paths and placeholders are left alone."""
    (repository / "notes.md").write_text(text)
    assert found(repository) == []


def test_bytes_that_are_no_text_are_left_alone(repository: Path) -> None:
    """A picture may hold any bytes."""
    (repository / "a.png").write_bytes(b"\x00" + HOME.encode())
    assert found(repository) == []


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
