"""The commands on a SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import time
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from keepa_tokens import Quota, Reading, TokenBucket, keepa_quota
from keepa_tokens.cli.app import app
from keepa_tokens.cli.sqlite_place import SqlitePlace
from keepa_tokens.testing import ManualClock
from tests.cli import KEY, Place, document, run


class File(Place):
    def __init__(self, path: Path) -> None:
        self.path, self.where = path, ("--sqlite", str(path))
        self.place = SqlitePlace(str(path))
        self.bucket = TokenBucket(keepa_quota(20), key=KEY, storage=self.place, listener=lambda _: None)
        self.bucket.reconcile(Reading(300, refill=20.0, capacity=1200))

    def sql(self, statement: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as db, db:
            return db.execute(statement, values).fetchall()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "buckets.sqlite")
    yield made
    made.place.close()


def test_status_shows_a_bucket_in_a_file(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only bucket of a file is shown without being named, and nothing is written."""
    file.bucket.try_reserve(7)
    monkeypatch.chdir(file.path.parent)
    told = document("status", "--sqlite", file.path.name)["bucket"]
    assert (told["key"], told["balance"], told["held"]) == (KEY, 300, 7)


def test_the_doctor_looks_at_a_file(file: File) -> None:
    """On a sound file the doctor finds nothing and says what it looked at; a damaged field is found and mended."""
    told = file.document("doctor")
    assert (told["findings"], told["healthy"]) == ([], [KEY])
    assert told["facts"][0].startswith("SQLite 3")
    file.sql("UPDATE buckets SET fields = json_remove(fields, '$.refilled_at')")
    found = file.document("doctor", code=1)["findings"]
    assert [one["code"] for one in found] == ["damaged-refilled_at"]
    file.document("doctor", "--repair")
    assert file.document("doctor")["findings"] == []


def test_a_bucket_that_follows_no_server_is_not_asked_for(file: File) -> None:
    """With --probe the doctor says that a plain bucket follows no server, and that is no fault."""
    TokenBucket(Quota.per_minute(60), key="plain", storage=file.place).try_acquire()
    told = file.document("doctor", "plain", "--probe", env={"KEEPA_API_KEY": "any"})
    assert told["facts"][-1] == "Keepa no balance: this bucket follows no server"


def test_a_file_on_a_full_disk_or_damaged_is_found(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little room is left, or pages of the file are damaged, the doctor says so of the file."""
    monkeypatch.setattr("keepa_tokens.cli.sqlite_place.shutil.disk_usage", lambda _: Mock(free=1_000_000))
    ((root,),) = file.sql("SELECT rootpage FROM sqlite_master WHERE name = 'buckets_by_end'")
    ((size,),) = file.sql("PRAGMA page_size")
    file.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.path.open("r+b") as pages:
        pages.seek((root - 1) * size)
        pages.write(b"\xff" * size)
    told = file.document("doctor", code=1)
    assert [(found["code"], found["about"]) for found in told["findings"]] == [
        ("file-damaged", "file"),
        ("disk-full", "file"),
    ]
    assert "1 MB are free beside it" in told["facts"]


def test_a_bucket_in_a_file_is_seen_by_its_own_clock(file: File) -> None:
    """A bucket whose workers bring a clock of another epoch is seen by that clock, in a file as on a server."""
    clock = ManualClock(5_000.0)
    bucket = TokenBucket(keepa_quota(20), key="own", storage=file.place, clock=clock, listener=lambda _: None)
    bucket.reconcile(Reading(-79, refill=20.0, capacity=1200, next_refill_in=30.0))
    told = file.document("status", "own")["bucket"]
    assert "clock        its workers' own: all of this is as of their last step" in file.run("status", "own").stdout
    assert (told["balance"], told["repaired"]) == (-79, [])
    assert [found["code"] for found in file.document("doctor", "own")["findings"]] == ["own-clock"]


def test_a_row_without_an_end_is_given_one(file: File) -> None:
    """What would stay in the file for ever, and need not, is worth knowing; --repair lets it end."""
    file.sql("UPDATE buckets SET ends = NULL")
    (found,) = file.document("doctor", "--repair")["findings"]
    assert (found["code"], found["fault"]) == ("no-lifetime", False)
    assert file.document("doctor")["findings"] == []
    ((ends,),) = file.sql("SELECT ends FROM buckets")
    assert ends / 1_000_000 == pytest.approx(time() + 86_400 + 45 * 60, abs=120)
    assert not file.place.is_endless("none")


def test_reset_and_release_work_on_a_file(file: File) -> None:
    """A hold is given back and a bucket forgotten in a file as on a server."""
    held = file.bucket.try_reserve(30)
    file.run("release", held.id, "--yes")
    assert file.bucket.peek().held == 0
    file.run("reset", "--yes")
    assert file.bucket.peek().balance is None


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Looking makes no file: a name that is mistyped says so."""
    path = tmp_path / "none.sqlite"
    assert "there is no file" in run("status", "--sqlite", str(path), code=2).stderr
    assert not path.exists()


def test_a_file_that_is_no_database_is_wrong_usage(file: File) -> None:
    """A file that SQLite can't read is named; the next try would say the same."""
    other = file.path.with_name("other.sqlite")
    other.write_text("this is no database, however long it is" * 50)
    assert "other.sqlite can't hold buckets" in run("status", "--sqlite", str(other), code=2).stderr


def test_a_database_of_somebody_else_stays_as_it_is(tmp_path: Path) -> None:
    """A mistyped name that is another program's database is said to have no buckets; not a byte of it is changed."""
    path = tmp_path / "app.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE customers (name)")
    before = path.read_bytes()
    assert "has no buckets in it" in run("status", "--sqlite", str(path), code=2).stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_adopt_needs_a_server(file: File) -> None:
    """A hand-made manager's keys are in Redis; with a file that is said."""
    options = ("--sqlite", str(file.path), KEY, "--balance-key", "tokens")
    assert "give --redis" in run("adopt", *options, code=2).stderr


def test_a_byte_that_is_no_text_is_damage_of_its_field(file: File) -> None:
    """A byte that no text has in it damages the field that it is in: the doctor names that, and a worker goes on."""
    sound, damaged = b'"balance": "300"'.hex(), b'"balance": "3\xff0"'.hex()
    file.sql(f"UPDATE buckets SET fields = CAST(replace(CAST(fields AS BLOB), x'{sound}', x'{damaged}') AS TEXT)")
    assert [found["code"] for found in file.document("doctor", code=1)["findings"]] == ["damaged-balance"]
    assert file.bucket.peek().repaired == ("balance",)
    assert file.document("doctor")["findings"] == []


def test_a_row_that_holds_no_fields_is_an_empty_bucket(file: File) -> None:
    """A row of garbage is shown as a bucket of which nothing is known, not as none."""
    file.sql("UPDATE buckets SET fields = 'garbage'")
    assert file.place.fields(KEY) == {}
    assert file.place.fields("other") is None


def test_what_others_have_stored_writes_no_lines_of_its_own(file: File) -> None:
    """A line break and a colour in a key, a hold's id, its label and a field are shown in the line they stand in."""
    file.bucket.try_reserve(3, label="mine")
    evil = "x\n\x1b[31mEVIL"
    fields = json.loads(file.sql("SELECT fields FROM buckets")[0][0])
    hold = next(text for name, text in fields.items() if name.startswith("hold:"))
    fields |= {f"hold:{evil}": hold.replace("mine", quote(evil)), evil: evil, "carry": evil}
    file.sql("UPDATE buckets SET fields = ?", json.dumps(fields))
    file.sql("INSERT INTO buckets VALUES (?, '{}', NULL)", evil)
    assert KEY in file.run("status", "--all", env={"COLUMNS": "0"}).stdout
    shown = ""
    for command in (
        *(("status",), ("status", "--all"), ("doctor",), ("watch", "--looks", "1"), ("release", "none")),
        *(("status", KEY), ("status", "nobody"), ("reset",), ("doctor", "--repair")),
    ):
        said = CliRunner().invoke(app, [command[0], *file.where, *command[1:]], color=True)
        assert said.exit_code in {0, 1, 2, 130}, command
        assert "\x1b" not in said.output, command
        assert not any(line.lstrip().startswith("EVIL") for line in said.output.splitlines()), command
        shown += said.output
    assert "x \\x1b[31mEVIL" in shown
    assert "\\n" in shown
