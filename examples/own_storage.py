"""A storage of one's own: buckets in one SQLite file. It passes the whole conformance kit (docs/howto/storage.md)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from keepa_tokens import BucketState, Quota, Snapshot, StorageUnavailable, SystemClock
from keepa_tokens.rules.commands import Command, Outcome, Peek
from keepa_tokens.rules.transition import transition


class FileStorage:
    """A row a bucket, for threads and processes: each step opens the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._step() as db:
            db.execute("CREATE TABLE IF NOT EXISTS buckets (key TEXT PRIMARY KEY, fields TEXT)")

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` and return the outcome."""
        with self._step() as db:
            stored = _state(db, key)
            state, outcome = transition(quota, stored, _now(now_us), command)
            if state is not None and state is not stored:
                fields = json.dumps(state.to_fields())
                db.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?)", (key, fields))
            return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands; None if there is none."""
        with self._step() as db:
            state = _state(db, key)
        if state is None or state.quota is None:
            return None
        return transition(state.quota, state, _now(now_us), Peek())[1].snapshot

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets, as they were at the call."""
        with self._step() as db:
            return iter([key for (key,) in db.execute("SELECT key FROM buckets")])

    def delete(self, key: str) -> None:
        """Forget the bucket `key`."""
        with self._step() as db:
            db.execute("DELETE FROM buckets WHERE key = ?", (key,))

    def close(self) -> None:
        """Nothing stays open between two steps."""

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        """Nobody else steps in between; what raises is undone."""
        try:
            # SQLite doesn't serve in turn: of many who wait one may wait long.
            with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as db, db:
                db.execute("BEGIN IMMEDIATE")
                yield db
        except sqlite3.Error as error:
            raise StorageUnavailable(f"{self._path}: {error}") from error


def _now(now_us: int | None) -> int:
    return SystemClock().now_us() if now_us is None else now_us


def _state(db: sqlite3.Connection, key: str) -> BucketState | None:
    row = db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone()
    try:
        fields = json.loads(row[0]) if row else None
    except ValueError:
        fields = {}  # damaged counts as missing: the rules know what to do then
    return None if fields is None else BucketState.from_fields(fields)
