"""`make release-check` finds an archive that differs, lacks something, or brings what doesn't belong there.

The whole of it, builds and installations, is `make release-check` itself.
"""

from __future__ import annotations

import hashlib
import re
import urllib.request
import zipfile
from pathlib import Path

import pytest

from checks.release import PROJECT, TRIED, ReleaseError, holds_what_it_should, index, names_in, same, tagged

WHEEL = [
    "keepa_tokens/__init__.py",
    "keepa_tokens/py.typed",
    "keepa_tokens/storage/bucket.lua",
    "keepa_tokens/testing/conformance.py",
    "_keepa_tokens_pytest.py",
    "keepa_tokens-0.1.0.dist-info/METADATA",
    "keepa_tokens-0.1.0.dist-info/licenses/LICENSE",
]


def test_a_whole_wheel_passes() -> None:
    """The files that a wheel should have, the testing kit among them, are let through."""
    holds_what_it_should("wheel", WHEEL)


FOREIGN = ["tests/test_doors.py", "keepa_tokens/tests/x.py", "checks/proof/runs.py", "keepa_tokens/test_x.py", "top.py"]


@pytest.mark.parametrize("changed", ["keepa_tokens/py.typed", "keepa_tokens/storage/bucket.lua", *FOREIGN])
def test_what_is_missing_or_does_not_belong_there_is_found(changed: str) -> None:
    """Without its marker of types or its script, with a test, a proof or a stray module, a wheel is refused by name."""
    with pytest.raises(ReleaseError, match=re.escape(changed)):
        holds_what_it_should("wheel", sorted({*WHEEL} ^ {changed}))


def test_two_builds_that_differ_are_found(tmp_path: Path) -> None:
    """Two archives of the same files with different times are not the same."""
    paths = [tmp_path / "one.whl", tmp_path / "other.whl"]
    for path, year in zip(paths, (2025, 2026), strict=True):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("keepa_tokens/__init__.py", (year, 1, 1, 0, 0, 0)), "")
    assert names_in(paths[0]) == names_in(paths[1])
    same(paths[0], paths[0])
    with pytest.raises(ReleaseError, match="differs"):
        same(*paths)


def test_the_index_serves_each_package_under_its_name(tmp_path: Path) -> None:
    """A wheel and an sdist are listed under the normalized name, with their digests, and can be fetched."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("Some_Thing-1.0-py3-none-any.whl", "some_thing-1.0.tar.gz"):
        (packages / name).write_bytes(name.encode())
    with index(packages, tmp_path / "served") as url:
        page = urllib.request.urlopen(f"{url}some-thing/").read().decode()
        links = re.findall(r'href="([^#]+)#sha256=([0-9a-f]+)"', page)
        fetched = [urllib.request.urlopen(f"{url}some-thing/{name}").read() for name, _ in links]
    assert sorted(name for name, _ in links) == ["Some_Thing-1.0-py3-none-any.whl", "some_thing-1.0.tar.gz"]
    assert [hashlib.sha256(content).hexdigest() for content in fetched] == [digest for _, digest in links]


def test_each_extra_is_tried() -> None:
    """No extra is left out."""
    assert set(TRIED) == {"", *PROJECT["optional-dependencies"]}


def test_a_tag_says_the_version() -> None:
    """A release is refused whose tag names another version than pyproject.toml."""
    tagged(f"v{PROJECT['version']}")
    with pytest.raises(ReleaseError, match=re.escape(PROJECT["version"])):
        tagged("v9.9.9")
