"""A place in a SQLite file, and what is wrong with such a file."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, cast

from ..clock import SystemClock
from ..errors import StorageUnavailable
from ..storage.base import Storage
from .doctor import Finding
from .words import count

WAIT_S: Final = 5.0
NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "glusterfs", "ceph"})
LEAST_FREE: Final = 50_000_000
FILE: Final = "file"


class SqlitePlace:
    """Buckets in a SQLite file: one row a bucket, its fields as a JSON object."""

    def __init__(self, path: str, storage: Storage) -> None:
        self.path = path
        self.storage = storage

    def now_us(self) -> int:
        """Return the machine's time in microseconds, which is the storage's own."""
        return SystemClock().now_us()

    def fields(self, key: str) -> dict[str, str] | None:
        """Return a bucket's fields as they are stored."""
        with self.opened() as db:
            return self._fields(db, key)

    def lifetime(self, key: str) -> float | None:  # noqa: ARG002 - rows have none
        """Return None: a row stays until it is deleted."""
        return None

    def put(self, key: str, fields: Mapping[str, str], lifetime: float) -> bool:  # noqa: ARG002 - rows have none
        """Store a bucket, unless there is one already; return whether it was stored."""
        with self.opened() as db:
            return (
                db.execute(
                    "INSERT OR IGNORE INTO buckets (key, fields) VALUES (?, ?)", (key, json.dumps(dict(fields)))
                ).rowcount
                == 1
            )

    def drop(self, key: str, field: str) -> None:
        """Remove one field of a bucket."""
        with self.opened() as db:
            db.execute("BEGIN IMMEDIATE")
            left = {name: text for name, text in (self._fields(db, key) or {}).items() if name != field}
            db.execute("UPDATE buckets SET fields = ? WHERE key = ?", (json.dumps(left), key))
            db.execute("COMMIT")

    def keep_for(self, key: str, seconds: float) -> None:
        """Do nothing: a row stays until it is deleted."""

    def delete(self, key: str) -> None:
        """Remove a bucket."""
        with self.opened() as db:
            db.execute("DELETE FROM buckets WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the storage."""
        self.storage.close()

    @contextmanager
    def opened(self) -> Generator[sqlite3.Connection]:
        """Have a connection of our own; StorageUnavailable says what the file did not do."""
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)) as db:
                yield db
        except sqlite3.Error as error:
            raise StorageUnavailable(f"{self.path}: {error}") from error

    def _fields(self, db: sqlite3.Connection, key: str) -> dict[str, str] | None:
        row = cast("tuple[str] | None", db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone())
        if row is None:
            return None
        try:
            read: object = json.loads(row[0])
        except ValueError:
            return {}
        return (
            {str(name): str(text) for name, text in cast("dict[object, object]", read).items()}
            if isinstance(read, dict)
            else {}
        )


def examine_file(place: SqlitePlace, mounts: str | None = None) -> tuple[list[str], list[Finding]]:
    """Return what is right with a file, in words, and what is wrong. mounts: the text of /proc/mounts."""
    path, findings = Path(place.path).resolve(), list[Finding]()
    with place.opened() as db:
        (journal,) = cast("tuple[str]", db.execute("PRAGMA journal_mode").fetchone())
        (check,) = cast("tuple[str]", db.execute("PRAGMA quick_check(1)").fetchone())
        (buckets,) = cast("tuple[int]", db.execute("SELECT COUNT(*) FROM buckets").fetchone())
    free = shutil.disk_usage(path.parent).free
    kind = file_system(path, _mounts() if mounts is None else mounts)
    size = f"{count(buckets, 'bucket')} in {path.stat().st_size:,} bytes"
    facts = [
        f"SQLite {sqlite3.sqlite_version}, {size}, journal {journal}",
        f"{free // 1_000_000:,} MB are free beside it" + (f", on {kind}" if kind else ""),
    ]
    if check != "ok":
        findings.append(
            Finding(
                "file-damaged",
                FILE,
                f"the file is damaged: {check}",
                "buckets in it may be lost, or can't be written",
                "move it away: workers make a new one, plain buckets begin full, synced ones ask the server",
            )
        )
    if kind in NETWORK:
        findings.append(
            Finding(
                "network-file",
                FILE,
                f"the file is on a network file system ({kind})",
                "its locks don't hold between machines: two of them may grant the same tokens",
                "put it on a disk of this machine, or use Redis or Valkey for several machines",
            )
        )
    if free < LEAST_FREE:
        findings.append(
            Finding(
                "disk-full",
                FILE,
                f"{free // 1_000_000:,} MB are free beside the file",
                "once there is none, nothing can be written and no token is granted",
                "make room on that disk",
            )
        )
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        findings.append(
            Finding(
                "read-only",
                FILE,
                "this user may not write the file, or not beside it",
                "no worker of this user gets a token from it",
                "let the user write the file and its folder, where SQLite keeps its journal",
            )
        )
    return facts, findings


def file_system(path: Path, mounts: str) -> str:
    """Return the kind of file system that a path is on, by the text of /proc/mounts; nothing if unknown."""
    lines = [line.split(" ") for line in mounts.splitlines() if line.count(" ") > 1]
    kinds = {folder.replace("\\040", " "): kind for _, folder, kind, *_ in lines}
    return next((kinds[str(folder)] for folder in path.parents if str(folder) in kinds), "")


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
