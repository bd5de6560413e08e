"""States in one SQLite file, shared by the processes of one machine: one row a bucket, one transaction a command."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import stat
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from .._arguments import NotCopied, checked_key, microseconds, shown, whole
from .._loops import in_a_thread
from ..errors import ConfigError, StorageUnavailable
from ..quota import Quota
from ..rules.commands import Command, Outcome
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..rules.transition import inspected, lifetime_us, transition
from .base import IN_ITS_MIDST, AsyncClosing, Closing

if sys.platform != "win32":
    import fcntl

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS buckets (key TEXT PRIMARY KEY, fields TEXT NOT NULL, ends INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS buckets_by_end ON buckets (ends) WHERE ends IS NOT NULL;
"""
_LONGEST_PAUSE_S: Final = 0.002  # between two tries
_PATIENCE_S: Final = 0.02  # then a caller stands in line
_SWEPT_PER_STEP: Final = 2
_NO_PLACE: Final = {
    *(sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
}
_NO_RIGHT: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
"""Errors that the next try would only repeat: another program's tables, damage, no database; no right, no place."""
_NETWORKS: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs")
"""File systems whose locks SQLite can't rely on."""


class SQLiteStorage(Closing, NotCopied):
    """Buckets in a file on this machine, for threads and processes. Its own time is the machine's wall clock.

    A bucket that would be full again is dropped as others are used. A forked child opens the file anew, and so does
    whoever finds that it was moved or replaced. A power cut may cost the last steps, never the file. Beside the file
    lie its `-wal` and `-shm`, and `-turn`, by which the caller that has waited longest goes next. timeout: seconds that
    a command waits for other writers; then StorageUnavailable, and nothing was taken. (The `timeout` of `acquire`
    doesn't shorten that.)

    Raises ConfigError for a file that can't hold buckets, such as one on a network's file system, and once closed.
    """

    _instead = "make one in each process, of the same path"

    def __init__(self, path: str | Path, *, timeout: float = 5.0) -> None:
        named = cast("object", path)  # nobody may have checked
        if not isinstance(named, (str, Path)) or str(named) in {"", ":memory:"}:
            raise ConfigError(f"path={shown(path)} names no file: give one, or use MemoryStorage")
        self._path = Path(path).absolute()
        if not _can_be_a_file(self._path):
            raise ConfigError(f"path={shown(path)} can't be a file: give one in a directory that is there")
        self._names = [f"{self._path}{end}" for end in ("", "-wal", "-shm")]
        self._timeout_s = microseconds("timeout", timeout) / 1_000_000
        if self._timeout_s < 0:
            raise ConfigError(f"timeout={timeout!r} is out of range: give seconds from 0")
        network = _network(self._path)
        if network:
            raise ConfigError(f"{self._path} is on a file system of kind {network}: give a file on this machine's disk")
        self._inherited: list[sqlite3.Connection] = []
        self._lock = threading.RLock()
        self._is_closed = self._is_busy = False
        _FORKS.locks.add(self._lock)
        with self._lock:
            self._open()

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` and return the outcome."""
        return self._applied(_ticks_us(), key, quota, command, now_us)

    def _applied(self, began_us: int, key: str, quota: Quota, command: Command, now_us: int | None) -> Outcome:
        """As `apply`, for a caller that has waited since `began_us`: for a thread, for other threads, for the file."""
        checked_key(key)
        with self._step(began_us) as db:
            own, now = now_us is None, _now(now_us)
            stored = _read(db, key)
            state, outcome = transition(quota, stored, now, command)
            if state is not None and state is not stored:
                lifetime = lifetime_us(state, now) if own else None
                ends = None if lifetime is None else now + lifetime
                db.execute(
                    "INSERT OR REPLACE INTO buckets VALUES (?, ?, ?)", (key, json.dumps(state.to_fields()), ends)
                )
                if own:
                    _sweep(db, now)
            return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands by the terms stored with it, writing nothing; None if there is none."""
        checked_key(key)
        with self._reading() as db:
            state = _read(db, key)
        return inspected(state, _now(now_us))

    def keys(self) -> Iterator[str]:
        """Yield the keys of all buckets, as they were at the call."""
        with self._reading() as db:
            rows = db.execute("SELECT key FROM buckets").fetchall()
        return (key for (key,) in rows)

    def delete(self, key: str) -> None:
        """Forget the bucket `key`: the next command finds a new one. Holds in flight are forgotten with it."""
        checked_key(key)
        with self._step() as db:
            db.execute("DELETE FROM buckets WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file. Closed twice is closed once."""
        with self._lock:
            self._close()
            self._is_closed = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def _open(self) -> None:
        self._opened = []
        with self._errors_named():
            self._line = os.open(f"{self._path}-turn", os.O_RDWR | os.O_CREAT, 0o666)
            self._let_go = weakref.finalize(self, os.close, self._line)
            self._let_go.atexit = False  # what runs at the exit may still settle its calls
            # SQLite's own waiting lets some callers wait for seconds, so `_execute_in_turn` waits instead.
            self._db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
            self._process = os.getpid()
            # Python 3.13 warns of a connection that is dropped open. At the process's end the system closes it.
            self._close_own = weakref.finalize(self, _close_own, self._db, self._process)
            self._close_own.atexit = False
            self._db.text_factory = _text_of
            try:
                self._execute_in_turn("PRAGMA journal_mode = WAL", _ticks_us())  # readers don't wait for writers
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._execute_in_turn("BEGIN IMMEDIATE", _ticks_us())
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute("COMMIT")
                self._opened = self._identities()
            except BaseException:
                self._db.close()
                self._let_go()
                raise

    def _close(self) -> None:
        if self._process == os.getpid():
            self._close_own()
        else:
            self._inherited.append(self._db)  # the parent's connection must not be used or closed here
        self._let_go()

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        with self._lock, self._errors_named():
            if self._is_busy:
                raise StorageUnavailable(IN_ITS_MIDST)
            if self._is_closed:
                raise ConfigError(f"the storage {self._path} is closed: open a new one. Nothing was done.")
            # SQLite would go on in the file that had this name, while newcomers open the one that has it now.
            if self._process != os.getpid() or self._opened != self._identities():
                self._close()
                self._open()
            self._is_busy = True
            try:
                yield self._db
            finally:
                self._is_busy = False

    @contextmanager
    def _step(self, began_us: int | None = None) -> Generator[sqlite3.Connection]:
        began_us = _ticks_us() if began_us is None else began_us
        with self._reading() as db:
            try:
                # The write lock from the start: no other process steps between what is read and what is written.
                self._execute_in_turn("BEGIN IMMEDIATE", began_us)
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # on a full disk SQLite has rolled back by itself
                    db.execute("ROLLBACK")
                raise

    def _execute_in_turn(self, statement: str, began_us: int) -> None:
        """Carry out a statement that waits for others, up to the timeout.

        A process that runs has the lock again before one that sleeps wakes up, so if chance alone decided, some would
        wait for seconds. A caller that has waited for a while stands in line, and goes before all that began later.
        """
        joined = False
        try:
            while True:
                others = sqlite3.OperationalError("database is locked, and others have waited for longer")
                failed = self._try(statement) if _is_first(self._line, began_us) else others
                if failed is None:
                    return
                waited_s = (_ticks_us() - began_us) / 1_000_000
                if waited_s > self._timeout_s:
                    raise failed
                if waited_s > _PATIENCE_S:
                    joined = True
                    _lock(self._line, began_us, 1)
                time.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311 - no secret
        finally:
            if joined:
                _unlock(self._line, began_us, 1)

    def _identities(self) -> list[object]:
        """Return the identities of SQLite's files, which tell them from other files of these names."""
        return [_identity(name) for name in self._names]

    def _try(self, statement: str) -> sqlite3.Error | None:
        """Carry out a statement; return why not, if others have the lock."""
        try:
            self._db.execute(statement)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return error
        return None

    @contextmanager
    def _errors_named(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            # The low byte says what happened; the rest says more closely where.
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _NO_PLACE or getattr(error, "errno", None) in _NO_RIGHT:
                raise ConfigError(
                    f"{self._path} can't hold buckets ({error}): give another file, which this user may write, in a"
                    " directory that it may write to"
                ) from error
            raise StorageUnavailable(f"{self._path}: {error}. The command was certainly not carried out.") from error


class _Forks:
    """Lets a step that is under way in a thread end before the process forks.

    SQLite keeps a process's locks in its memory too. A child that began in the middle of a step would find the file
    locked by a connection that is not there, for ever.
    """

    def __init__(self) -> None:
        self.locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._held: list[threading.RLock] = []

    def before(self) -> None:
        self._lock.acquire()
        for lock in list(self.locks):
            lock.acquire()
            self._held.append(lock)

    def after(self) -> None:
        while self._held:
            self._held.pop().release()
        self._lock.release()


_FORKS: Final = _Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_FORKS.before, after_in_parent=_FORKS.after, after_in_child=_FORKS.after)


# A caller that has waited for a while locks a byte of the `-turn` file: the one whose number is the microsecond at
# which the caller began. The file stays empty, and a lock ends with its process. Only processes are told apart, and on
# Windows nobody is: then chance decides. It does no harm if two are first.


def _is_first(file: int, began_us: int) -> bool:
    """Whether nobody in the line began earlier."""
    if not _lock(file, 0, began_us, shared=True):
        return False
    _unlock(file, 0, began_us)
    return True


def _lock(file: int, at: int, size: int, *, shared: bool = False) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, size, at)
        except (BlockingIOError, PermissionError):
            return False
    return True


def _unlock(file: int, at: int, size: int) -> None:
    if sys.platform != "win32":
        fcntl.lockf(file, fcntl.LOCK_UN, size, at)


class AsyncSQLiteStorage(AsyncClosing, NotCopied):
    """`SQLiteStorage` for coroutines: each step in a thread, so that no event loop waits for a file."""

    _instead = "make one in each process, of the same path"

    def __init__(self, path: str | Path, *, timeout: float = 5.0) -> None:
        self._storage = SQLiteStorage(path, timeout=timeout)

    async def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        """Apply `command` to the bucket `key` and return the outcome."""
        applied = self._storage._applied  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - its twin's
        return await in_a_thread(applied, _ticks_us(), key, quota, command, now_us)

    async def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        """Return the bucket as it stands; as `SQLiteStorage.inspect`."""
        return await in_a_thread(self._storage.inspect, key, now_us=now_us)

    async def keys(self) -> AsyncIterator[str]:
        """Yield the keys of all buckets, as they were at the call."""
        for key in await in_a_thread(self._storage.keys):
            yield key

    async def delete(self, key: str) -> None:
        """Forget the bucket `key`; as `SQLiteStorage.delete`."""
        await in_a_thread(self._storage.delete, key)

    async def aclose(self) -> None:
        """Close the file."""
        await in_a_thread(self._storage.close)

    def __repr__(self) -> str:
        return f"Async{self._storage!r}"


def _now(now_us: int | None) -> int:
    return time.time_ns() // 1000 if now_us is None else whole("now_us", now_us)


def _ticks_us() -> int:
    return time.monotonic_ns() // 1000


def _identity(name: str) -> tuple[int, int] | None:
    """Return what tells a file from another of its name; None: there is no file."""
    try:
        found = os.stat(name)  # noqa: PTH116 - before each step: a Path takes twice as long
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _close_own(db: sqlite3.Connection, process: int) -> None:
    if process == os.getpid():
        db.close()


def _can_be_a_file(path: Path) -> bool:
    try:
        real = path.resolve()
        with suppress(FileNotFoundError):
            return stat.S_ISREG(real.stat().st_mode)  # which tells a name that is too long, unlike `exists`
        return real.parent.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, with what no name may have in it, a loop of links
        return False


def _text_of(stored: bytes) -> str:
    """Return stored bytes as text. A byte that is no text damages its field alone: the row can still be read."""
    return stored.decode(errors="replace")


def _read(db: sqlite3.Connection, key: str) -> BucketState | None:
    row = db.execute("SELECT fields FROM buckets WHERE key = ?", (key,)).fetchone()
    return None if row is None else BucketState.from_fields(fields_of(row[0]))


def _sweep(db: sqlite3.Connection, now: int) -> None:
    """Forget buckets whose time has come, a few at each step."""
    due = "SELECT key FROM buckets WHERE ends IS NOT NULL AND ends < ? LIMIT ?"
    db.execute(f"DELETE FROM buckets WHERE key IN ({due})", (now, _SWEPT_PER_STEP))  # noqa: S608 - a text of our own


def fields_of(text: object) -> Mapping[str, str]:
    """Return the stored fields. Whatever is damaged counts as missing: the rules know what to do then."""
    try:
        fields: object = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, str]", fields) if isinstance(fields, dict) else {}


def _network(path: Path) -> str | None:
    """Return the kind of the network's file system that a file is on; None: it is on none, or nobody says."""
    try:
        # A mount's name may be in any encoding, as of a disk of another machine.
        mounts = [os.fsdecode(line).split(" ") for line in Path("/proc/self/mounts").read_bytes().splitlines()]
    except OSError:
        return None
    real = path.resolve()
    at = [(mount[1], mount[2]) for mount in mounts if real.is_relative_to(mount[1].replace("\\040", " "))]
    kind = max(at, key=lambda each: len(each[0]), default=("", ""))[1]
    return kind if kind in _NETWORKS else None
