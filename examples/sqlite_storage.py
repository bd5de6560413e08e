"""A bucket in one SQLite file that several processes share, as an example of a storage of your own.

python examples/sqlite_storage.py buckets.sqlite

It passes the whole conformance kit: see docs/howto/storage.md.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from keepa_tokens import BucketState, Quota, Snapshot, StorageUnavailable, SystemClock, TokenBucket
from keepa_tokens.rules.commands import Command, Outcome, Peek
from keepa_tokens.rules.transition import transition

SCHEMA = "CREATE TABLE IF NOT EXISTS buckets (key TEXT PRIMARY KEY, fields TEXT NOT NULL) WITHOUT ROWID"


class SqliteStorage:
    """Buckets in a file: one row a bucket. Its own time is the machine's wall clock. For threads; not over a fork.

    timeout: seconds to wait for others that are writing; then StorageUnavailable, and nothing was taken.
    """

    def __init__(self, path: str | Path, *, timeout: float = 5.0) -> None:
        self._path, self._clock, self._lock = path, SystemClock(), threading.Lock()
        with self._errors_named():
            self._db = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")  # readers don't wait for writers
            self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last steps, not the file
            self._db.execute(SCHEMA)

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Carry `command` to the bucket `key` and return what it came to."""
        # Leaving `self._db` commits, or undoes the step if it raised.
        with self._errors_named(), self._lock, self._db:
            # The write lock from the start: no other process steps between what is read and what is written.
            self._db.execute("BEGIN IMMEDIATE")
            stored = self._state(key)
            state, outcome = transition(quota, stored, self._now(now_us), command)
            if state is not None and state is not stored:
                self._write(key, state)
            return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the quota last used on it; None if there is none."""
        with self._errors_named(), self._lock:
            state = self._state(key)
        if state is None or state.quota is None:
            return None
        return transition(state.quota, state, self._now(now_us), Peek())[1].snapshot

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets, as they were at the call."""
        with self._errors_named(), self._lock:
            rows = self._db.execute("SELECT key FROM buckets").fetchall()
        return (key for (key,) in rows)

    def delete(self, key: str) -> None:
        """Forget the bucket `key`."""
        with self._errors_named(), self._lock, self._db:
            self._db.execute("DELETE FROM buckets WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _now(self, now_us: int | None) -> int:
        return self._clock.now_us() if now_us is None else now_us

    def _state(self, key: str) -> BucketState | None:
        row = self._db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone()
        return None if row is None else BucketState.from_fields(fields_of(row[0]))

    def _write(self, key: str, state: BucketState) -> None:
        self._db.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?)", (key, json.dumps(state.to_fields())))

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageUnavailable(f"{self._path}: {error}") from error


def fields_of(text: str) -> Mapping[str, str]:
    """Return the stored fields. Whatever is damaged counts as missing: the rules know what to do then."""
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def main(path: str) -> None:
    """Take five tokens of sixty a minute, and show what is left for whoever opens the file."""
    storage = SqliteStorage(path)
    decision = TokenBucket(Quota.per_minute(60), key="example", storage=storage).try_acquire(5)
    storage.close()
    print(
        f"{decision.reason}: {decision.balance} tokens left"
        + f", again in {decision.retry_after:.1f} s" * (not decision)
    )


if __name__ == "__main__":
    main(sys.argv[1])
