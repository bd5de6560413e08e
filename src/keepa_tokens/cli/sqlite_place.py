"""A place in a SQLite file, and what the doctor says of the file."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, Literal, cast

from ..clock import SystemClock
from ..storage.sqlite import SQLiteStorage, fields_of
from ..units import MICROSECONDS
from .finding import Finding
from .words import count

LEAST_FREE: Final = 50_000_000


def has_buckets(path: str) -> bool:
    """Return whether a file has the table of buckets. A storage would make that table in any file that it opens."""
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'buckets'").fetchone()
    except sqlite3.Error:
        return True  # the storage's own error says what is wrong
    return found is not None


class SqlitePlace(SQLiteStorage):
    """Buckets in a SQLite file: one row a bucket, its fields as a JSON object."""

    kind: Literal["file"] = "file"

    def now_us(self) -> int:
        """Return the machine's time in microseconds, which is the storage's own."""
        return SystemClock().now_us()

    def fields(self, key: str) -> Mapping[str, str] | None:
        """Return a bucket's fields as they are stored."""
        with self._reading() as db:
            row = cast("tuple[str] | None", db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone())
        return None if row is None else fields_of(row[0])

    def is_endless(self, key: str) -> bool:
        """Return whether a bucket is kept for ever."""
        with self._reading() as db:
            found = db.execute("SELECT 1 FROM buckets WHERE key = ? AND ends IS NULL", (key,)).fetchone()
        return found is not None

    def keep_for(self, key: str, seconds: float) -> None:
        """Let a bucket end in so many seconds."""
        with self._step() as db:
            db.execute(
                "UPDATE buckets SET ends = ? WHERE key = ?", (self.now_us() + round(seconds * MICROSECONDS), key)
            )

    def examine(self) -> Iterator[str | Finding]:
        """Yield sentences on what is right with the file, and findings on what is wrong."""
        with self._reading() as db:
            (journal,) = cast("tuple[str]", db.execute("PRAGMA journal_mode").fetchone())
            (check,) = cast("tuple[str]", db.execute("PRAGMA quick_check(1)").fetchone())
            (buckets,) = cast("tuple[int]", db.execute("SELECT COUNT(*) FROM buckets").fetchone())
        free, size = shutil.disk_usage(self._path.resolve().parent).free, self._path.stat().st_size
        yield f"SQLite {sqlite3.sqlite_version}, {count(buckets, 'bucket')} in {size:,} bytes, journal {journal}"
        yield f"{free // 1_000_000:,} MB are free beside it"
        if check != "ok":
            yield Finding(
                "file-damaged",
                f"the file is damaged: {check}",
                "buckets in it may be lost, or can't be written",
                "move it away: workers make a new one, plain buckets begin full, synced ones ask the server",
                about="file",
            )
        if free < LEAST_FREE:
            yield Finding(
                "disk-full",
                f"{free // 1_000_000:,} MB are free beside the file",
                "once there is none, nothing can be written and no token is granted",
                "make room on that disk",
                about="file",
            )
