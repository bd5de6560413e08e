"""The example of a storage of one's own passes the conformance kit, several processes included."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from examples.sqlite_storage import SqliteStorage, main
from keepa_tokens import ConfigError, Quota, StorageUnavailable
from keepa_tokens.rules.commands import Acquire, Peek
from keepa_tokens.testing.conformance import SharedStorageConformance
from tests.storages import PART, OnSqlite, write_row

pytestmark = pytest.mark.deep  # what it teaches stands in the package, tested by test_sqlite.py

QUOTA = Quota.per_minute(60)


@pytest.mark.drawn
class TestTheExample(OnSqlite, SharedStorageConformance):
    effort = PART

    def make_storage(self) -> SqliteStorage:  # type: ignore[override]
        return SqliteStorage(self.path)

    def elsewhere(self) -> Callable[[], SqliteStorage]:  # type: ignore[override]
        return partial(SqliteStorage, self.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file of buckets may be."""
    return tmp_path / "buckets.sqlite"


@pytest.fixture
def storage(path: Path) -> Iterator[SqliteStorage]:
    """A storage that doesn't wait for others."""
    with closing(SqliteStorage(path, timeout=0)) as made:
        yield made


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"x"', '{"balance": 7}', "\x00"])
def test_a_row_that_is_no_state_is_mended(storage: SqliteStorage, path: Path, text: str) -> None:
    """Whatever stands in a row instead of fields, the bucket goes on from 0 and says what was mended."""
    write_row(path, "k", text)
    assert storage.inspect("k") is None
    outcome = storage.apply("k", QUOTA, Acquire(1))
    assert "balance" in outcome.repaired
    assert outcome.balance == 0
    assert storage.apply("k", QUOTA, Peek()).repaired == ()


def test_a_file_that_is_locked_is_said(storage: SqliteStorage, path: Path) -> None:
    """While another process writes for too long a step is StorageUnavailable, with its cause, and takes nothing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match="locked") as locked:
            storage.apply("k", QUOTA, Acquire(1))
        assert isinstance(locked.value.__cause__, sqlite3.Error)
        assert storage.inspect("k") is None
    assert storage.apply("k", QUOTA, Acquire(1)).balance == 59


def test_a_file_that_is_no_database_is_said(path: Path) -> None:
    """A file that holds something else is StorageUnavailable, and left as it is."""
    path.write_text("no database" * 100)
    with pytest.raises(StorageUnavailable, match="not a database"):
        SqliteStorage(path)
    assert path.read_text() == "no database" * 100


def test_a_newer_format_undoes_the_step(storage: SqliteStorage, path: Path) -> None:
    """A step that raises leaves no lock behind."""
    write_row(path, "k", '{"format": "2"}')
    with pytest.raises(ConfigError, match="newer release"):
        storage.apply("k", QUOTA, Acquire(1))
    write_row(path, "other", "{}")
    assert storage.apply("other", QUOTA, Acquire(0)).granted


def test_the_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script, run twice on one file, goes on from where it was."""
    main(str(path))
    assert capsys.readouterr().out == "GRANTED: 55 tokens left\n"
    script = Path(__file__).parent.parent / "examples" / "sqlite_storage.py"
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("GRANTED: 5")
