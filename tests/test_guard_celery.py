"""The Celery guard: a real worker, a real broker, the fake server by HTTP."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from celery import Celery
from celery.exceptions import Retry
from celery.signals import task_retry

from keepa_tokens import (
    ConfigError,
    CostTooLarge,
    Event,
    EventKind,
    KeepaSync,
    NotEnoughTokens,
    Quota,
    Reading,
    RedisStorage,
    StorageUnavailable,
    TokenBucket,
)
from keepa_tokens.guards._flow import RUN
from keepa_tokens.guards.celery import _countdown
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.keepa._door import PLACE
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer
from keepa_tokens.units import UNLIMITED
from tests.celery_worker import MARKS, PATIENCE, Tasks, worker
from tests.servers import Server, running, wait_until

from tests.http_guards import HOST, asins  # isort: skip

pytestmark = MARKS

ROOT = Path(__file__).parents[1]

STEP = 0.25
"""Seconds between the fake's refills: the worker's countdowns are real time."""


@pytest.fixture(scope="module")
def tasks() -> Iterator[Tasks]:
    """Run one worker for all these tests."""
    with worker() as tasks:
        yield tasks


@pytest.fixture
def retries() -> Iterator[list[tuple[str, Any]]]:
    """Note which tasks were sent back, and for how long."""
    noted: list[tuple[str, Any]] = []

    def note(request: Any, reason: Retry, **_: object) -> None:
        noted.append((request.id, reason.when))

    task_retry.connect(note)
    yield noted
    task_retry.disconnect(note)


def refused(retry_after: float) -> NotEnoughTokens:
    return NotEnoughTokens(5, retry_after=retry_after, reason="EMPTY", balance=-3)


def test_a_refused_task_comes_back_and_is_done_once(tasks: Tasks, retries: list[tuple[str, Any]]) -> None:
    """Eight tasks on an empty bucket all look their products up, none waits in the worker, one is refused."""
    fake = FakeKeepa(refill_rate=5, initial=-5, period=STEP)
    events: list[Event] = []
    quota = Quota(300, 5, STEP, stepped=True, overdraft=UNLIMITED, synced=True)
    done: list[int] = []
    with FakeKeepaServer(fake) as server, requests.Session() as session:
        sync = KeepaSync(TokenBucket(quota, listener=events.append), probe=fake.probe)
        session.mount(server.url, KeepaAdapter(sync, host=HOST, timeout=0, retry_refused=True))

        def look_up(count: int) -> int:
            answer = session.get(server.url + "/product", params=asins(count), timeout=5)
            done.append(count)
            return len(answer.json()["products"])

        tasks.work = look_up
        results = [tasks.plain.delay(count) for count in range(1, 9)]
        assert [result.get(timeout=PATIENCE) for result in results] == list(range(1, 9))

    assert sorted(done) == list(range(1, 9))
    assert {task for task, _ in retries} <= {result.id for result in results}
    assert retries
    assert all(0 < when <= 5 for _, when in retries)
    assert not any(event.kind is EventKind.WAITING for event in events)
    # Nobody has time for a probe, so the first goes ahead as the scout: a refusal is free and tells the balance.
    assert fake.refused == 0
    assert (sync.bucket.peek().held, fake.spent) == (0, 36)


@pytest.mark.deep
def test_a_task_of_several_requests_pays_for_each_once(tasks: Tasks, retries: list[tuple[str, Any]]) -> None:
    """Six requests of ten on an empty bucket: refused before it has paid anything the task comes back; afterwards it
    waits in the worker, ends, and has spent what the work costs. The next task comes back again.
    """
    fake = FakeKeepa(refill_rate=5, initial=-43, period=STEP)  # empty still where the worker begins late
    events: list[Event] = []
    quota = Quota(300, 5, STEP, stepped=True, overdraft=UNLIMITED, synced=True)
    with FakeKeepaServer(fake) as server, requests.Session() as session:
        sync = KeepaSync(TokenBucket(quota, listener=events.append), probe=fake.probe)
        session.mount(server.url, KeepaAdapter(sync, host=HOST, timeout=0, retry_refused=True))

        def look_up(times: int) -> list[int]:
            answers = [session.get(server.url + "/product", params=asins(10), timeout=5) for _ in range(times)]
            return [answer.status_code for answer in answers]

        tasks.work = look_up
        assert tasks.plain.delay(6).get(timeout=PATIENCE) == [200] * 6
        assert (fake.spent, fake.refused) == (60, 0)
        assert any(event.kind is EventKind.WAITING for event in events)
        sent_back = len(retries)
        assert sent_back >= 1
        fake.spend_outside(40)  # however long the first one took, the next one finds nothing again
        sync.refresh()
        assert tasks.plain.delay(1).get(timeout=PATIENCE) == [200]
        assert len(retries) > sent_back
    assert (fake.spent, fake.refused) == (70, 0)


@pytest.mark.parametrize(
    "missing, countdown",
    [
        (refused(7 * 3600.0), 900.0),  # of hours: the balance may be better by then
        # While somebody asks the server, or the storage is away, it need not wait for the worst case.
        (NotEnoughTokens(5, 20.2, "UNKNOWN"), 2.0),
        (NotEnoughTokens(5, float("inf"), "UNKNOWN"), 2.0),
        (StorageUnavailable("the storage is away"), 2.0),
    ],
)
def test_a_task_comes_back_when_it_may_help(
    tasks: Tasks, retries: list[tuple[str, Any]], missing: Exception, countdown: float
) -> None:
    """It is sent back with a countdown of its own, and the worker goes on with other tasks meanwhile."""

    def work(wait: bool) -> str:
        if wait:
            raise missing
        return "done"

    tasks.work = work
    waiting = tasks.plain.delay(True)
    assert tasks.plain.delay(False).get(timeout=PATIENCE) == "done"
    assert retries == [(waiting.id, countdown)]
    assert waiting.state == "RETRY"
    waiting.revoke()


@pytest.mark.parametrize(
    "name, missing",
    [
        ("plain", refused(float("inf"))),  # no refill will ever bring the tokens
        ("retrying", CostTooLarge(400, 0, 300)),
        ("retrying", ConfigError("a quota that can't be")),
    ],
)
def test_what_no_waiting_helps_fails_at_once(
    tasks: Tasks, retries: list[tuple[str, Any]], name: str, missing: Exception
) -> None:
    """It fails with the error, all of it, and is not tried again, not even by a task that retries whatever fails."""

    def work(*_: object) -> None:
        raise missing

    tasks.work = work
    with pytest.raises(type(missing)) as caught:
        getattr(tasks, name).delay().get(timeout=PATIENCE)
    assert (vars(caught.value), retries) == (vars(missing), [])


def test_a_refusal_counts_for_no_retry_of_the_tasks_own(tasks: Tasks, retries: list[tuple[str, Any]]) -> None:
    """A task of one retry may be refused ten times: `max_retries` and `autoretry_for` are for its own failures."""
    runs: list[int] = []

    def work(task: Any) -> str:
        runs.append(task.request.retries)
        if len(runs) == 11:
            raise ConnectionError("once")
        if len(runs) <= 12:
            raise refused(0.01)
        return "done"

    tasks.work = work
    assert tasks.retrying.delay().get(timeout=PATIENCE) == "done"
    assert runs == [0] * 11 + [1, 1]
    assert [when for _, when in retries] == [0.01] * 10 + [0, 0.01]


def test_a_tasks_own_failures_are_left_alone(tasks: Tasks, retries: list[tuple[str, Any]]) -> None:
    """What is no refusal fails as it does without the guard, and arguments and results pass through."""

    def work(divisor: int, *, by: int) -> float:
        return by / divisor

    tasks.work = work
    assert tasks.plain.delay(2, by=3).get(timeout=PATIENCE) == 1.5
    with pytest.raises(ZeroDivisionError):
        tasks.plain.delay(0, by=3).get(timeout=PATIENCE)
    assert retries == []


def test_tasks_do_not_hammer_a_server_that_refuses(
    tasks: Tasks, retries: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server refuses though there are tokens a task comes back ever later, and as late as the server asks."""
    monkeypatch.setattr(tasks.app.tasks["plain"], "most_times", 2)
    waits = [0.5, 7.5, 0.5]

    def work() -> None:
        raise NotEnoughTokens(5, waits[len(retries)], "REFUSED", 250)

    tasks.work = work
    waiting = tasks.plain.delay()
    wait_until("it was sent back twice", lambda: len(retries) == 2)
    assert retries == [(waiting.id, 1.0), (waiting.id, 7.5)]
    waiting.revoke()
    assert [_countdown(NotEnoughTokens(5, 1.0, "REFUSED"), times) for times in (0, 1, 5, 6, 5000)] == [1, 2, 32, 60, 60]


@pytest.mark.parametrize("missing", [NotEnoughTokens(5, 0.01, "EMPTY", -3), NotEnoughTokens(5, 0.01, "UNKNOWN")])
def test_how_often_a_task_comes_back_can_be_bounded(
    tasks: Tasks, retries: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch, missing: NotEnoughTokens
) -> None:
    """With most_times a task fails with the refusal once it was sent back so often; other headers go with it."""
    monkeypatch.setattr(tasks.app.tasks["plain"], "most_times", 3)
    headers: list[Any] = []

    def work() -> None:
        headers.append(tasks.plain.request.headers)
        raise missing

    tasks.work = work
    with pytest.raises(NotEnoughTokens):
        tasks.plain.apply_async(headers={"of": "mine"}).get(timeout=PATIENCE)
    assert len(retries) == 3
    assert [each["of"] for each in headers] == ["mine"] * 4


def test_called_directly_or_eagerly_it_raises_the_refusal(tasks: Tasks) -> None:
    """Where there is no broker to send it back to, the caller gets NotEnoughTokens itself."""
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        raise refused(3.0)

    tasks.work = work
    with pytest.raises(NotEnoughTokens):
        tasks.plain()
    with pytest.raises(NotEnoughTokens):
        tasks.plain.apply().get()
    assert len(runs) == 2


@pytest.mark.parametrize("called", ["__call__", "apply"])
def test_what_a_task_calls_pays_and_stands_in_line_as_that_task(tasks: Tasks, called: str) -> None:
    """Only the task that was sent comes back: it has paid for what it called, whose place in line is its own."""
    seen: list[tuple[object, str | None]] = []

    def work(*task: object) -> None:
        seen.append((RUN.get(), PLACE.get()))
        if not task:
            getattr(tasks.retrying, called)()

    tasks.work = work
    sent = tasks.plain.delay()
    sent.get(timeout=PATIENCE)
    outer, inner = seen
    assert outer == inner
    assert outer[0] is inner[0] is not None
    assert outer[1] == sent.id


# --- a worker as in production: processes of its own, and JSON


@contextmanager
def prefork(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `tests.celery_app` by a worker with a pool of two forked processes, and end it by its id."""
    command = [sys.executable, "-m", "celery", "--app", "tests.celery_app", "worker", "--pool", "prefork"]
    command += ["--concurrency", "2", "--loglevel", "INFO", "--logfile", str(log)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


@pytest.mark.deep
def test_a_forking_worker_that_speaks_json_does_the_same(tmp_path: Path) -> None:
    """Two forked processes share the bucket over a connection from before the fork: each of twelve tasks is done once,
    none sleeps; a refusal for good arrives as NotEnoughTokens, with its wait, its reason and the balance.
    """
    fake = FakeKeepa(refill_rate=5, initial=-5, period=STEP, latency=0.05)
    log = tmp_path / "log"
    with running("valkey") as broker, FakeKeepaServer(fake) as server:
        environment = {"TEST_REDIS_URL": broker.url, "TEST_KEEPA_URL": server.url, "TEST_STEP": str(STEP)}
        app = Celery(broker=broker.url + "/0", backend=broker.url + "/1", set_as_current=False)
        with prefork(environment, log) as process:
            found = [app.send_task("look_up", (count,)) for count in range(1, 13)]
            done = [result.get(timeout=3 * PATIENCE) for result in found]
            with pytest.raises(NotEnoughTokens) as refused:
                app.send_task("never").get(timeout=PATIENCE)
        app.close()
        gc.collect()  # a result asks its backend to forget it, which must still be there

    assert [each["products"] for each in done] == list(range(1, 13))
    assert {each["waits"] for each in done} == {0}
    workers = {each["process"] for each in done}
    assert len(workers) == 2
    assert process.pid not in workers
    assert "retry: Retry in" in log.read_text()
    assert (fake.refused, fake.spent) == (0, 78)
    error = refused.value
    assert (error.tokens, error.retry_after, error.reason, error.balance) == (5, float("inf"), "EMPTY", -3)


@pytest.mark.deep
def test_all_is_done_though_the_bucket_was_stuck_and_its_server_away(tmp_path: Path) -> None:
    """86 deals, a balance of -79 without its timestamp, a server gone for six seconds: all done, each paid once."""
    deals = 86
    fake = FakeKeepa(refill_rate=5, initial=-79, period=STEP, latency=0.02)
    log = tmp_path / "log"
    with running("valkey") as broker, running("valkey") as bucket, FakeKeepaServer(fake) as server:
        seeded = seed(bucket)
        environment = {
            "TEST_REDIS_URL": broker.url,
            "TEST_BUCKET_URL": bucket.url,
            "TEST_KEEPA_URL": server.url,
            "TEST_STEP": str(STEP),
        }
        app = Celery(broker=broker.url + "/0", backend=broker.url + "/1", set_as_current=False)
        with prefork(environment, log):
            found = [app.send_task("look_up", (1,)) for _ in range(deals)]
            wait_until("a third is done", lambda: fake.spent >= deals // 3, within_s=3 * PATIENCE)
            bucket.stop()
            end = time.monotonic() + 6
            wait_until("it was gone for six seconds", lambda: time.monotonic() > end)
            paid_by_then = fake.spent
            bucket.start()
            done = [result.get(timeout=3 * PATIENCE) for result in found]
        app.close()
        gc.collect()  # a result asks its backend to forget it, which must still be there

    assert seeded == {b"balance": b"-79"}
    assert paid_by_then < deals
    assert [each["products"] for each in done] == [1] * deals
    assert (fake.admitted, fake.spent, fake.refused) == (deals, deals, 0)
    assert "StorageUnavailable" in log.read_text()


def seed(server: Server) -> dict[bytes, bytes]:
    """Leave a bucket at -79 without the time of its last refill; return what is stored of the two."""
    storage = RedisStorage.from_url(server.url)
    quota = Quota(300, 5, STEP, stepped=True, overdraft=UNLIMITED, synced=True)
    TokenBucket(quota, key="celery", storage=storage).reconcile(Reading(-79))
    storage.close()
    with server.client() as client:
        (key,) = client.keys()
        client.hdel(key, "refilled_at")
        stored: Any = client.hgetall(key)
        return {name: value for name, value in stored.items() if name in {b"balance", b"refilled_at"}}
