"""SQLite's storage: the conformance kit, what a file may be, forks, and storages by URL."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest.mock import patch

import pytest

from examples.own_storage import FileStorage
from keepa_tokens import ConfigError, Quota, StorageUnavailable, TokenBucket
from keepa_tokens.rules.commands import Acquire, Peek
from keepa_tokens.storage import sqlite
from keepa_tokens.storage.sqlite import AsyncSQLiteStorage, SQLiteStorage
from keepa_tokens.storage.urls import async_storage_from_url, storage_from_url
from keepa_tokens.testing.conformance import SharedStorageConformance
from tests.helpers import in_a_child
from tests.storages import PART, OnSqlite, OnSqliteByCoroutines, write_row

QUOTA = Quota.per_minute(60)


@pytest.mark.drawn
class TestSQLiteStorage(OnSqlite, SharedStorageConformance):
    effort = PART


@pytest.mark.drawn
class TestAsyncSQLiteStorage(OnSqliteByCoroutines, SharedStorageConformance):
    effort = PART / 2


@pytest.mark.deep
class TestAStorageOfOnesOwn(OnSqlite, SharedStorageConformance):
    """The storage that docs/howto/storage.md teaches with."""

    effort = PART / 10

    def make_storage(self) -> FileStorage:  # type: ignore[override]
        return FileStorage(self.path)

    def elsewhere(self) -> Callable[[], FileStorage]:  # type: ignore[override]
        return partial(FileStorage, self.path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "buckets.sqlite"


@pytest.fixture
def storage(path: Path) -> Iterator[SQLiteStorage]:
    """A storage that doesn't wait for others."""
    with closing(SQLiteStorage(path, timeout=0)) as made:
        yield made


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"x"', '{"balance": 7}', "\x00", "[" * 99_999, b"{\xff}"])
def test_a_row_that_is_no_state_is_mended(storage: SQLiteStorage, path: Path, text: str | bytes) -> None:
    """Whatever stands in a row instead of fields, the bucket goes on from 0 and says what was mended."""
    write_row(path, "k", text)
    assert storage.inspect("k") is None
    outcome = storage.apply("k", QUOTA, Acquire(1))
    assert "balance" in outcome.repaired
    assert outcome.balance == 0
    assert storage.apply("k", QUOTA, Peek()).repaired == ()


def test_a_file_that_is_locked_is_said(storage: SQLiteStorage, path: Path) -> None:
    """While another process writes for too long a step is StorageUnavailable, with its cause, and takes nothing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match="locked") as locked:
            storage.apply("k", QUOTA, Acquire(1))
        assert isinstance(locked.value.__cause__, sqlite3.Error)
        assert storage.inspect("k") is None
    assert storage.apply("k", QUOTA, Acquire(1)).balance == 59


def test_threads_wait_for_each_other_within_the_timeout(path: Path) -> None:
    """A thread that waits behind another for a locked file has waited for its own timeout, not for both."""
    with closing(SQLiteStorage(path, timeout=1)) as storage, closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")

        def waited(_: int) -> float:
            began = time.monotonic()
            with pytest.raises(StorageUnavailable):
                storage.apply("k", QUOTA, Acquire(1))
            return time.monotonic() - began

        with ThreadPoolExecutor(5) as threads:
            assert max(threads.map(waited, range(5))) < 3


def test_coroutines_wait_for_a_thread_within_the_timeout(path: Path) -> None:
    """More coroutines than there are threads wait for a locked file no longer than one does."""

    async def waited(storage: AsyncSQLiteStorage) -> float:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        began = time.monotonic()
        told = await asyncio.gather(*(storage.apply("k", QUOTA, Acquire(1)) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in told] == [StorageUnavailable] * 5
        return time.monotonic() - began

    opened = AsyncSQLiteStorage(path, timeout=1)
    with closing(opened._storage), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        assert asyncio.run(waited(opened)) < 3


def test_an_interrupt_as_a_step_begins_leaves_the_file_to_others(storage: SQLiteStorage, path: Path) -> None:
    """Struck when it has just locked the file, a step lets go of it."""
    begin = storage._execute_in_turn

    def struck(statement: str, began_us: int) -> None:
        begin(statement, began_us)
        raise KeyboardInterrupt

    with patch.object(storage, "_execute_in_turn", struck), pytest.raises(KeyboardInterrupt):
        storage.apply("k", QUOTA, Acquire(1))
    with closing(SQLiteStorage(path, timeout=0)) as other:
        assert other.apply("k", QUOTA, Acquire(1)).balance == 59
    assert storage.apply("k", QUOTA, Acquire(1)).balance == 58


def test_a_file_that_was_removed_is_opened_anew(storage: SQLiteStorage, path: Path) -> None:
    """Whoever had it open goes on in the one that is there now, with the processes that came later."""
    quota = Quota(60, 0, 1.0)
    storage.apply("k", quota, Acquire(1))
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink()
    left = [in_a_child(lambda: storage.apply("k", quota, Acquire(10)).balance or 0)()]
    left += [storage.apply("k", quota, Acquire(10)).balance or 0 for _ in range(2)]
    assert left == [50, 40, 30]


def test_a_file_that_is_removed_again_and_again_leaves_no_connection_behind(storage: SQLiteStorage, path: Path) -> None:
    """Each is closed, and forgotten."""

    def connections() -> int:
        gc.collect()
        return sum(type(each) is sqlite3.Connection for each in gc.get_objects())

    before = connections()
    for _ in range(5):
        path.unlink()
        assert storage.apply("k", QUOTA, Acquire(60)).granted
    assert connections() == before


def test_it_works_until_the_program_has_ended(path: Path) -> None:
    """What was registered before the storage was made, and so runs at the exit after what came later, can use it."""
    program = f"""if True:
        import atexit
        from keepa_tokens import Quota, SQLiteStorage
        from keepa_tokens.rules.commands import Acquire
        atexit.register(lambda: print(storage.apply("k", Quota.per_minute(60), Acquire(1)).balance))
        storage = SQLiteStorage({str(path)!r})
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("59\n", "")


def test_a_file_that_can_hold_no_buckets_is_a_mistake(path: Path) -> None:
    """What is no database, damaged, or another program's is a ConfigError: the next try would only say it again."""
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match=r"can't hold buckets .*not a database"):
        SQLiteStorage(path)
    assert path.read_bytes() == b"no database" * 1000
    path.unlink()
    with closing(sqlite3.connect(path)) as others:
        others.execute("CREATE TABLE buckets (water INTEGER)")
    with pytest.raises(ConfigError, match=r"can't hold buckets .*no such column"):
        SQLiteStorage(path)
    path.unlink()
    with SQLiteStorage(path) as storage:
        for n in range(100):
            TokenBucket(QUOTA, key=f"k{n}", storage=storage).try_acquire()
    os.truncate(path, 5000)
    with pytest.raises(ConfigError, match=r"can't hold buckets .*malformed"):
        SQLiteStorage(path)


@pytest.mark.parametrize(
    "place, says",
    [
        ("/sys/x.sqlite", "Permission denied"),  # to root too
        ("/proc/x.sqlite", "No such file"),
        pytest.param("x" * 249, "unable to open database", id="long"),  # its journal's name is too long
        ("/dev/null", "can't be a file"),
        ("/proc/self/fd/0/x", "can't be a file"),
    ],
)
def test_a_place_that_may_not_be_written_is_a_mistake(path: Path, place: str, says: str) -> None:
    """No right, no such place, no plain file: no outage that passes, so a ConfigError names the path."""
    with pytest.raises(ConfigError, match=says) as refused:
        SQLiteStorage(path.parent / place)
    assert place[:40] in str(refused.value)


def test_a_full_disk_is_an_outage(storage: SQLiteStorage) -> None:
    """SQLite rolls back by itself: the error told is the disk's, nothing was taken, and with room it goes on."""
    storage.apply("k", QUOTA, Acquire(1))
    storage._db.execute("PRAGMA max_page_count = 1")
    more = (storage.apply(f"k{n}", QUOTA, Acquire(1)) for n in range(1000))
    with pytest.raises(StorageUnavailable, match=r"full.* certainly not carried out"):
        list(more)
    storage._db.execute("PRAGMA max_page_count = 100000")
    assert storage.apply("k", QUOTA, Acquire(1)).balance in {58, 59}


def test_full_buckets_are_forgotten_as_others_are_used(storage: SQLiteStorage, path: Path) -> None:
    """A bucket whose lifetime is over goes when others write; one on a caller's clock stays."""
    storage.apply("old", QUOTA, Acquire(1))
    storage.apply("clocked", QUOTA, Acquire(1), now_us=5)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE buckets SET ends = 1 WHERE ends IS NOT NULL")
    storage.apply("new", QUOTA, Acquire(1))
    assert sorted(storage.keys()) == ["clocked", "new"]


def test_a_forked_child_opens_the_file_anew(storage: SQLiteStorage) -> None:
    """Parent and child go on with one bucket, each by a connection of its own; the lock of a thread is left behind."""
    storage.apply("k", QUOTA, Acquire(10))
    with storage._lock:  # as a thread in the middle of a step, which the child doesn't have
        ended = in_a_child(lambda: storage.apply("k", QUOTA, Acquire(10)).balance or 0)
    assert ended() in {40, 41}
    assert storage.apply("k", QUOTA, Acquire(10)).balance in {30, 31}


def test_a_child_that_could_not_open_the_file_leaves_its_parents_connection_alone(storage: SQLiteStorage) -> None:
    """Its first step fails for want of descriptors; the next one opens the file, and closes nothing of the parent's."""
    storage.apply("k", QUOTA, Acquire(10))
    parents = storage._db
    with patch.object(os, "getpid", return_value=1):  # as in the child
        with patch.object(os, "open", side_effect=OSError(errno.EMFILE, "")), pytest.raises(StorageUnavailable):
            storage.inspect("k")
        assert storage.apply("k", QUOTA, Acquire(10)).balance in {40, 41}
        storage.close()
    parents.execute("SELECT 1")  # an error, if it is closed


def test_a_closed_storage_says_so(storage: SQLiteStorage) -> None:
    """Used after it was closed, it is a ConfigError; closed twice is closed once."""
    storage.close()
    storage.close()
    for attempt in (lambda: storage.apply("k", QUOTA, Acquire(1)), lambda: storage.inspect("k"), storage.keys):
        with pytest.raises(ConfigError, match="is closed: open a new one"):
            attempt()


def test_a_file_on_a_network_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the locks can't be relied on, no file is opened; whatever the encoding of other mounts' names."""
    mounts = b"/dev/sda / ext4 rw 0 0\n/dev/sdb /mnt/M\xfcll ext4 rw 0 0\nserver:/x %s nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_bytes", lambda _: mounts % bytes(path.parent))
    with pytest.raises(ConfigError, match="file system of kind nfs4"):
        SQLiteStorage(path)
    assert not path.exists()


def test_who_has_waited_for_longest_goes_next(path: Path) -> None:
    """Behind who stands in line since earlier nobody steps; a place ends with its process, or where it is given up."""
    with closing(SQLiteStorage(path, timeout=0.2)) as storage:
        stand_in_line = (
            "import fcntl, sys; line = open(sys.argv[1], 'r+b'); fcntl.lockf(line, fcntl.LOCK_EX, 1, int(sys.argv[2]));"
            "print('mine', flush=True); sys.stdin.read()"
        )
        for since_us, left in ((1, 59), (2**60, 58)):
            command = [sys.executable, "-c", stand_in_line, f"{path}-turn", str(since_us)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
                assert other.stdout is not None
                assert other.stdin is not None
                assert other.stdout.readline() == b"mine\n"
                if since_us == 1:
                    with pytest.raises(StorageUnavailable, match="others have waited"):
                        storage.apply("k", QUOTA, Acquire(1))
                    other.stdin.close()
                    other.wait()
                assert storage.apply("k", QUOTA, Acquire(1)).balance == left
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageUnavailable, match="locked"):
                storage.apply("k", QUOTA, Acquire(1))
        assert storage.apply("k", QUOTA, Acquire(1)).balance == 57


def work(path: Path, seconds: float) -> tuple[int, float]:
    """Take as fast as possible for so long; return how many were granted, and the longest call."""
    storage, granted, longest = SQLiteStorage(path), 0, 0.0
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        granted += storage.apply("k", Quota(10**6, 0, 1.0), Acquire(1)).granted
        longest = max(longest, time.monotonic() - began)
    storage.close()
    return granted, longest


@pytest.mark.deep
def test_eight_processes_lose_nothing_and_nobody_waits_long(path: Path) -> None:
    """Eight processes take as fast as they can: every grant is counted, and nobody waits over a second."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(8, spawn, initializer=Barrier.wait, initargs=(spawn.Barrier(8, timeout=60),)) as pool:
        told = [done.result() for done in [pool.submit(work, path, 4.0) for _ in range(8)]]
    shown = SQLiteStorage(path).inspect("k")
    assert shown is not None
    assert sum(granted for granted, _ in told) == 10**6 - (shown.balance or 0)
    assert max(longest for _, longest in told) < 1


async def opened(url: str) -> str:
    """Return what a URL names for coroutines, which ends with its block."""
    async with async_storage_from_url(url) as storage:
        return type(storage).__name__


def test_a_storage_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scheme opens its storage, for threads and for coroutines; a path is from here, or from the root."""
    monkeypatch.chdir(tmp_path)
    for url, kind in (("memory://", "MemoryStorage"), ("redis://h:1/0", "RedisStorage"), ("unix:///s", "RedisStorage")):
        assert type(storage_from_url(url)).__name__ == kind
        assert type(async_storage_from_url(url)).__name__ == kind.replace("Redis", "AsyncRedis")
    for url in ("sqlite:///here.sqlite", f"sqlite:///{tmp_path}/there.sqlite"):
        with storage_from_url(url) as storage:
            assert storage.apply("k", QUOTA, Acquire(1)).granted
        assert asyncio.run(opened(url)) == "AsyncSQLiteStorage"
    assert asyncio.run(opened("memory://")) == "MemoryStorage"
    assert {each.name for each in tmp_path.iterdir()} >= {"here.sqlite", "there.sqlite"}


def test_children_that_are_forked_in_the_middle_of_steps_go_on(path: Path) -> None:
    """While threads step without a pause, a process forks ten times: each child steps at once, none finds a lock."""
    with closing(SQLiteStorage(path)) as storage:
        over = threading.Event()

        def step() -> int:
            storage.apply("k", Quota(1_000_000, 1, 1.0), Acquire(1))
            return 0

        def work() -> None:
            while not over.is_set():
                step()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = [in_a_child(step)() for _ in range(10)]
        over.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 10


def test_who_uses_a_bucket_in_the_midst_of_a_step_of_its_own_thread_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler where none is put off, or a finalizer: it gets StorageUnavailable, and the step is done."""
    with SQLiteStorage(path) as storage:
        bucket, refused = TokenBucket(QUOTA, key="default", storage=storage), list[StorageUnavailable]()

        def interrupted(*_: object) -> None:
            monkeypatch.undo()
            with pytest.raises(StorageUnavailable) as told:
                bucket.peek()
            refused.append(told.value)

        monkeypatch.setattr(sqlite, "_sweep", interrupted)
        assert bucket.try_acquire(2)
        assert (len(refused), bucket.peek().balance) == (1, 58)
