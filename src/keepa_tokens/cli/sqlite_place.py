"""A place in a SQLite file, and what is wrong with such a file."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast

from ..clock import SystemClock
from ..storage.sqlite import SQLiteStorage
from .doctor import Finding
from .words import count

LEAST_FREE: Final = 50_000_000


class SqlitePlace(SQLiteStorage):
    """Buckets in a SQLite file: one row a bucket, its fields as a JSON object."""

    def now_us(self) -> int:
        """Return the machine's time in microseconds, which is the storage's own."""
        return SystemClock().now_us()

    def fields(self, key: str) -> dict[str, str] | None:
        """Return a bucket's fields as they are stored."""
        with self._reading() as db:
            return self._fields(db, key)

    def lifetime(self, key: str) -> float | None:  # noqa: ARG002 - rows have none
        """Return None: a row stays until it is deleted."""
        return None

    def put(self, key: str, fields: Mapping[str, str], lifetime: float) -> bool:  # noqa: ARG002 - rows have none
        """Store a bucket, unless there is one already; return whether it was stored."""
        row = key, json.dumps(dict(fields))
        with self._step() as db:
            return db.execute("INSERT OR IGNORE INTO buckets (key, fields) VALUES (?, ?)", row).rowcount == 1

    def drop(self, key: str, field: str) -> None:
        """Remove one field of a bucket."""
        with self._step() as db:
            left = {name: text for name, text in (self._fields(db, key) or {}).items() if name != field}
            db.execute("UPDATE buckets SET fields = ? WHERE key = ?", (json.dumps(left), key))

    def keep_for(self, key: str, seconds: float) -> None:
        """Do nothing: a row stays until it is deleted."""

    def _fields(self, db: sqlite3.Connection, key: str) -> dict[str, str] | None:
        row = cast("tuple[str] | None", db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone())
        if row is None:
            return None
        try:
            read: object = json.loads(row[0])
        except ValueError:
            return {}
        if not isinstance(read, dict):
            return {}
        return {str(name): str(text) for name, text in cast("dict[object, object]", read).items()}

    def examine(self) -> tuple[list[str], list[Finding]]:
        """Return what is right with the file, in words, and what is wrong."""
        with self._reading() as db:
            (journal,) = cast("tuple[str]", db.execute("PRAGMA journal_mode").fetchone())
            (check,) = cast("tuple[str]", db.execute("PRAGMA quick_check(1)").fetchone())
            (buckets,) = cast("tuple[int]", db.execute("SELECT COUNT(*) FROM buckets").fetchone())
        free, size = shutil.disk_usage(self._path.resolve().parent).free, self._path.stat().st_size
        facts = [
            f"SQLite {sqlite3.sqlite_version}, {count(buckets, 'bucket')} in {size:,} bytes, journal {journal}",
            f"{free // 1_000_000:,} MB are free beside it",
        ]
        findings = list[Finding]()
        if check != "ok":
            findings.append(
                Finding(
                    "file-damaged",
                    f"the file is damaged: {check}",
                    "buckets in it may be lost, or can't be written",
                    "move it away: workers make a new one, plain buckets begin full, synced ones ask the server",
                )
            )
        if free < LEAST_FREE:
            findings.append(
                Finding(
                    "disk-full",
                    f"{free // 1_000_000:,} MB are free beside the file",
                    "once there is none, nothing can be written and no token is granted",
                    "make room on that disk",
                )
            )
        return facts, [replace(found, about="file") for found in findings]
