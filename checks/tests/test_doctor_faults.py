"""The doctor finds each fault of the fault table where it is planted: each field of each kind of bucket, every way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Final

import pytest

from checks.benchmarks.daysim import contenders
from checks.benchmarks.daysim.ours import KEY as DAY_KEY
from checks.benchmarks.daysim.ours import Ours
from checks.benchmarks.daysim.rows import ROWS
from checks.benchmarks.daysim.world import World
from checks.faults.fields import FAULTS, expected
from checks.faults.runs import HOUR, KINDS, Kind, Moment, moments, twin
from keepa_tokens import BucketState, Reading
from keepa_tokens.cli.doctor import could_go, examine
from keepa_tokens.cli.doctor_command import APART, APART_IN_LINE, LOOKS
from keepa_tokens.cli.finding import Finding
from keepa_tokens.cli.look import Look
from keepa_tokens.rules.commands import Peek
from keepa_tokens.rules.state import FIELDS, HOLD, QUOTA
from tests.cli import KEY, Workers, document, run, valkey_with_workers
from tests.redis.common import stored

BELIEVED: Final = {
    ("balance", "far future"): {"above-capacity"},
    ("probe_failures", "far future"): {"probes-fail"},
    ("kept_back", "far future"): {"kept-back"},
}
"""What a field that says something else is found by, though it is believed."""


@cache
def run_of(kind: Kind) -> list[Moment]:
    """Return a bucket in the middle of random work, a few dozen times."""
    bucket = twin(kind)
    return moments(kind, bucket, lambda: {**bucket.stored.to_fields()})


def with_field(kind: Kind, name: str) -> tuple[Moment, str]:
    """Return a moment at which a bucket has such a field, if there is one, and its whole name."""
    found = [
        (moment, at)
        for moment in run_of(kind)
        for at in moment.fields
        if at == name or (name == HOLD and at.startswith(HOLD))
    ]
    return random.Random(name).choice(found or [(moment, name) for moment in run_of(kind)])


def found_in(moment: Moment, fields: Mapping[str, str]) -> list[Finding]:
    return list(examine(Look(KEY, moment.at, dict(fields), BucketState.from_fields(fields))))


def damage_in(findings: list[Finding]) -> str:
    """Return what the doctor says of damaged fields."""
    return " ".join(found.what for found in findings if found.code.startswith("damaged-") or found.code == "terms-lost")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [*FIELDS, HOLD])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_damaged_field_is_found(kind: Kind, name: str, fault: str) -> None:
    """What the rules would mend the doctor names, with effect and cure; where they mend nothing it finds no damage. A
    text that can't be read, or a field that is always there, is found in any case.
    """
    moment, name = with_field(kind, name)
    damaged = {at: text for at, text in moment.fields.items() if at != name}
    text = FAULTS[fault]
    if text is not None:
        damaged[name] = text
    elif name not in moment.fields:
        return  # there is nothing to delete
    before, findings = found_in(moment, moment.fields), found_in(moment, damaged)
    assert damage_in(before) == ""

    if BucketState.from_fields(damaged).quota is None:
        assert [found.code for found in findings][:1] == ["terms-lost"]
    else:
        bucket = twin(kind, replace(moment, fields=damaged))
        mended = bucket.apply(Peek(), moment.at).repaired
        said = damage_in(findings)
        assert all(f"its field {one} " in said for one in mended), (mended, said)
        assert bool(mended) == bool(said)
    certain = expected(name, fault)
    if certain is not None and name != QUOTA:
        assert f"its field {certain} " in damage_in(findings)
    codes = {found.code for found in findings}
    if kind.quota.synced:
        assert codes >= BELIEVED.get((name, fault), set())
    assert all(found.effect and found.cure for found in findings)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_clock_that_went_back_is_found(kind: Kind) -> None:
    """After the server's clock went back by an hour the doctor names the instants that lie ahead."""
    moment = replace(run_of(kind)[-1], at=run_of(kind)[-1].at - HOUR)
    assert "its field refilled_at says what can't be" in damage_in(found_in(moment, moment.fields))


@pytest.fixture(scope="module")
def valkey() -> Iterator[Workers]:
    with valkey_with_workers() as server:
        yield server


def test_something_else_in_a_buckets_place_is_found(valkey: Workers) -> None:
    """A key that holds something else where a bucket would be is a fault; the other buckets are looked at all the same,
    and what lies there is left as it was.
    """
    valkey.bucket("other").reconcile(Reading(5, server_time=1.0))
    with valkey.client() as client:
        client.set(f"keepa_tokens:{KEY}", "x")
        told = document("doctor", "--redis", valkey.url, code=1)
        assert client.get(f"keepa_tokens:{KEY}") == b"x"
        assert [(found["code"], found["about"]) for found in told["findings"] if found["fault"]] == [("no-bucket", KEY)]
        assert told["healthy"] == ["other"]


def test_a_bucket_that_is_gone_is_said(valkey: Workers) -> None:
    """A bucket that was deleted, evicted or lost with its server is none: asked for by its name, that is said."""
    with valkey.client() as client:
        client.flushall()
        assert stored(client, KEY) == {}
    assert "no bucket" in run("doctor", "--redis", valkey.url, KEY, code=2).stderr


@pytest.mark.parametrize("name", ["8 workers, 5/min", "8 workers, 20/min", "1 worker, 5/min", "recharge to 40"])
def test_a_day_of_the_benchmarks_load_leaves_nothing_to_find(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examined every ten minutes of the benchmark's day as the command does it, a bucket under load has no finding."""
    found: list[Finding] = []
    examined: list[asyncio.Task[None]] = []

    class Watched(Ours):
        def __init__(self, world: World) -> None:
            super().__init__(world)
            self.due = 0.0

        def seen(self) -> Look:
            state = self._storage.dump(DAY_KEY)
            assert state is not None
            return Look(KEY, self._world.loop.clock.now_us(), state.to_fields(), state)

        async def doctor(self) -> None:
            first, later = self.seen(), list[Look]()
            for _ in range(LOOKS):
                await asyncio.sleep(APART_IN_LINE if could_go(first) else APART)
                later.append(self.seen())
            found.extend(examine(first, later=later))

        async def call(self, worker: int, cost: int, estimate: int) -> None:
            await super().call(worker, cost, estimate)
            now = self._world.loop.time()
            if now >= self.due:
                self.due = now + 600
                examined.append(asyncio.ensure_future(self.doctor()))

    monkeypatch.setitem(contenders.WITHOUT_PEERS, contenders.OURS, Watched)
    day = next(row for row in ROWS if row.name == name)
    contenders.run(contenders.OURS, day, 24.0)
    assert len(examined) > 50
    assert found == []
