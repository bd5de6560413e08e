"""`keepa-tokens demo --redis-url`: workers that are processes, and share one bucket on a real server."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from keepa_tokens.cli.place import address
from keepa_tokens.testing import ScaledClock
from tests.servers import HOST, Server, free_port, running

pytestmark = pytest.mark.deep  # each run takes seconds of real time

COMMAND = [sys.executable, "-W", "error", "-m", "keepa_tokens", "demo"]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Server]:
    """A Valkey for this file alone, so that what is in it is the demo's."""
    with running("valkey") as server:
        yield server


@pytest.fixture(scope="module")
def finished(valkey: Server) -> subprocess.CompletedProcess[str]:
    """A short run, as a program of its own."""
    command = [*COMMAND, "--json", "--seconds", "5", "--workers", "3", "--redis-url", f"{valkey.url}/0"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)


@pytest.fixture(scope="module")
def report(finished: subprocess.CompletedProcess[str]) -> Any:
    """What that run reported."""
    return json.loads(finished.stdout)


def is_there(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def keys_of(server: Server) -> Any:
    """Return all keys that a server has."""
    with server.client() as client:
        return client.keys("*")


def test_processes_on_one_redis_keep_the_bounds(finished: subprocess.CompletedProcess[str], report: Any) -> None:
    """With the bucket on a real Valkey a run ends with exit code 0, every bound held, and the fault was recovered."""
    assert (finished.returncode, finished.stderr) == (0, "")
    assert (report["ok"], report["broken"]) == (True, [])
    assert report["samples"]["judged"] > 30  # some 250, but on a busy machine
    assert report["samples"]["quiet"] > 10
    assert report["bounds"]["highest_above_truth_with_nothing_in_flight"] <= 0
    assert (report["counts"]["refused"], report["counts"]["failed"]) == (0, 0)
    fault, old = report["fault"], report["old_rule"]
    assert (fault["balance"], fault["truth"], fault["repaired"]) == (-79, -79, "refilled_at")
    assert 0 < fault["recovered_after"] < fault["promised"] + 120
    assert (old["balance"], old["granted"], old["asked"]) == (-79, 0, 0)


def test_each_worker_is_a_process_and_ends_with_the_run(report: Any) -> None:
    """Each worker has a process id of its own, other than the demo's, and none of them outlives the run."""
    demo, workers = report["redis"]["processes"]["demo"], report["redis"]["processes"]["workers"]

    assert len({demo, *workers}) == 1 + 3 == 1 + report["workers"]
    assert not any(map(is_there, (demo, *workers)))


def test_the_bucket_was_in_redis_and_is_gone(valkey: Server, report: Any) -> None:
    """The server ran the script for every step of the run, and holds no key of the demo's afterwards."""
    with valkey.client() as client:
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] > report["samples"]["judged"]
    assert keys_of(valkey) == []
    assert report["redis"]["url"] == f"redis://{HOST}:{valkey.port}/0"
    assert report["redis"]["key"].startswith("keepa_tokens:demo:")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(valkey: Server, number: signal.Signals) -> None:
    """Ctrl-C, which a terminal sends to all processes, ends the demo cleanly with exit code 130; killed outright, it
    takes its workers along. Either way its key is gone.
    """
    command = [*COMMAND, "--redis-url", valkey.url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        lines = [line for line, _ in zip(demo.stdout, range(6), strict=False)]
        assert keys_of(valkey)
        if number is signal.SIGINT:
            os.killpg(demo.pid, number)
        else:
            demo.kill()
        try:
            # The workers have the same pipes for their output: those end when the last process has.
            _, errors = demo.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(demo.pid, signal.SIGKILL)
            raise

    assert "worker processes on one key" in lines[0]
    if number is signal.SIGINT:
        assert (demo.returncode, errors) == (130, "keepa-tokens: interrupted; nothing is left running\n")
    assert keys_of(valkey) == []


@pytest.mark.parametrize("url, code", [(f"redis://{HOST}:{{port}}", 3), ("nonsense", 2)])
def test_a_redis_that_cannot_be_used_is_one_line(url: str, code: int) -> None:
    """A Redis that can't be reached is one line on the standard error and exit code 3; a URL that is none, 2."""
    command = [*COMMAND, "--json", "--redis-url", url.format(port=free_port())]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (result.returncode, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("keepa-tokens: ")


def test_a_redis_that_dies_ends_the_run() -> None:
    """A server that goes away half-way ends the run with one line and exit code 3."""
    with running("valkey") as server:
        command = [*COMMAND, "--redis-url", server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
            assert demo.stdout is not None
            _ = [line for line, _ in zip(demo.stdout, range(6), strict=False)]
            server.stop()
            _, errors = demo.communicate(timeout=40)

    assert demo.returncode == 3
    (line,) = errors.splitlines()
    assert "Redis did not" in line


def test_all_processes_share_one_clock() -> None:
    """A clock sent to another process goes on from the same origin: the monotonic clock is the machine's."""
    clock = ScaledClock(100)
    sent: ScaledClock = pickle.loads(pickle.dumps(clock))

    before, now, after = clock.now_us(), sent.now_us(), clock.now_us()
    assert before <= now <= after
    assert sent.speed == 100


def test_a_report_shows_no_password() -> None:
    """The address of a Redis is shown without user, password and options."""
    assert address("rediss://me:secret@example.org:6380/2?password=secret") == "rediss://example.org:6380/2"
    assert address("unix:///tmp/s?db=1") == "unix:///tmp/s"
