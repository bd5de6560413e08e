"""The simulated day, shortened: what must hold of `KeepaSync`, and that the model of the keepa client is the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keepa
import pytest

from checks.benchmarks.daysim.checks import failures
from checks.benchmarks.daysim.contenders import CLIENT, OLD, OURS, run
from checks.benchmarks.daysim.keepa_client import EPOCH, KeepaClient
from checks.benchmarks.daysim.rows import ROWS, Row
from keepa_tokens.testing import FakeKeepa, ManualClock
from keepa_tokens.testing.fake_keepa import Response

HOURS = 3.0


def row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


@pytest.mark.parametrize(
    "name",
    [
        "8 workers, 5/min",
        "8 workers, 20/min",
        "64 workers, 20/min",
        "cost taken at admission",
        "estimates 2x high",
        "timestamp lost at -79",
        "state flushed",
        "crash with a hold",
        "/token down, state flushed",
    ],
)
def test_what_must_hold_of_a_day_holds_of_three_hours(name: str) -> None:
    """Every check of the benchmark that concerns this row holds."""
    day = row(name)
    result = run(OURS, day, HOURS)
    assert result.paid > 40
    assert failures({name: (day, result)}) == []


@pytest.mark.parametrize("name", ["outside spender", "estimates 5x low"])
def test_what_must_hold_of_a_share_of_the_calls_holds_of_a_day(name: str) -> None:
    """Every check of the row holds where some calls are refused, most in the first hours: 3 of 92 in three of them."""
    day = row(name)
    assert failures({day.name: (day, run(OURS, day, 24.0))}) == []


def test_the_checks_can_fail() -> None:
    """The old manager, in our place, is caught standing still with the tokens wasted; the client, passing who waits."""
    day = row("timestamp lost at -79")
    found = failures({day.name: (day, run(OLD, day, 6.0))})
    assert any("back after the refill" in failure for failure in found)
    assert any("unspent" in failure for failure in found)
    crowd = row("64 workers, 20/min")
    found = failures({crowd.name: (crowd, run(CLIENT, crowd, HOURS))})
    assert any("none waits longer" in failure for failure in found)


def test_a_day_is_the_same_in_every_run() -> None:
    """The same seed gives the same counts, another seed others."""
    day = row("outside spender")
    assert run(OURS, day, 2.0) == run(OURS, day, 2.0)
    assert run(OURS, day, 2.0) != run(OURS, replace(day, seed=2), 2.0)


def test_the_keepa_clients_own_waiting_gets_calls_refused() -> None:
    """The world is hard enough to show a difference: to clients that share nothing refusals are daily bread."""
    assert run(CLIENT, row("8 workers, 5/min"), HOURS).share_refused > 0.3


class Wire:
    """FakeKeepa behind `requests.get`, `time.time` and `time.sleep`, with somebody else spending beside.

    log: the requests and the waits of one client, by its clock.
    """

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.costs = iter(COSTS)
        cost: Callable[[str, object], int | None] = lambda path, _: next(self.costs) if path == "/product" else None  # noqa: E731
        self.fake = FakeKeepa(initial=30, clock=self.clock, seed=3, latency=(0.2, 2.0), cost=cost)
        self.sent = 0
        self.log: list[tuple[float, str, float]] = []

    def note(self, what: str, value: float) -> None:
        self.log.append((self.clock.now_us() / 1e6, what, round(value, 6)))

    def get(self, path: str) -> Response:
        self.sent += 1
        self.fake.spend_outside(OUTSIDE.get(self.sent, 0))
        response = self.fake.request(path, {"asin": "B000000001", "history": 0})
        self.note(path, response.status)
        return response

    def sleep(self, seconds: float) -> None:
        self.note("sleep", seconds)
        self.clock.sleep(seconds)

    def time(self) -> float:
        return EPOCH + self.clock.now_us() / 1e6


COSTS = [7, 12, 20, 1, 3, 18, 20, 20, 5, 2, 9, 14]
OUTSIDE = {4: 25, 9: 60, 15: 300}


def test_the_model_of_the_keepa_client_is_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same requests, answers and waits, to the microsecond, in debt and out of it."""
    real, modelled = Wire(), Wire()

    def get(url: str, *_: Any, **__: Any) -> Any:
        response = real.get("/" + url.removeprefix("https://api.keepa.com/").removesuffix("/?"))
        return SimpleNamespace(status_code=response.status, json=lambda: response.body)

    async def get_modelled(path: str, _: int) -> tuple[int, Mapping[str, object] | None]:
        response = modelled.get(path)
        return response.status, response.body

    async def sleep(seconds: float) -> None:
        modelled.sleep(seconds)

    monkeypatch.setattr("keepa.keepa_sync.requests.get", get)
    monkeypatch.setattr("keepa.keepa_sync.time", real)
    client = keepa.Keepa("a" * 64, logging_level="CRITICAL")
    model = KeepaClient(get_modelled, modelled.time, sleep)
    for cost in COSTS:
        client.query("B000000001", history=False, progress_bar=False)
        asyncio.run(model.query(cost))

    assert modelled.log == real.log
    waits = [value for _, what, value in real.log if what == "sleep"]
    assert len(waits) > 5
    assert max(waits) > 3600
