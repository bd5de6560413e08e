"""What else `make torture` looks for in a log: bounds that are not kept, what is left over; and the plan of a run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.tests.torture_log import LIFETIME, NOW, TENTH, Log, each_log, rules, wiped
from checks.torture import liveness, plan, report, server, story
from checks.torture.steps import FREEZE, lurks_until, story_of
from checks.torture.story import (
    Answered,
    Asked,
    Broke,
    Calm,
    Charged,
    Entry,
    Failed,
    Fault,
    Journal,
    Killed,
    Left,
    Remains,
    Sent,
    Told,
    Total,
)
from checks.torture.terms import KEEPA, PLAIN, QUOTAS, SECOND
from keepa_tokens import Reading
from keepa_tokens.rules.commands import Acquire, Peek, Reconcile, Reserve

LOGS: Final = """
# Before the bound it may be refused; at it it is granted, or gets the probe; who wants more, or leaves some, may wait.
a look states a bound, by which a token is granted: plain (nothing|nothing|nothing|nothing|nothing|stand-still)
    0 peek -> bound=0.1s; 0.1s-1 take 1 -> !granted
    0.1s (peek|take 1|take 1 -> !granted probe|take 2 -> !granted|take 1 keep=1 -> !granted|take 1 -> !granted)
what was sent before a look, and lost, may count after it, and take the token, or the probe: keepa (nothing|stand-still)
    0 hold a 1 -> lost; (1|3s) peek -> bound=0; (2|3s+1) hold b 1 -> !granted
what was decided before a look may be stored after it, until its caller has heard of it: plain (nothing|stand-still)
    -0.1s take 5 -> heard=@(0|-1); 0 peek -> bound=0; 1 take 1 -> !granted
a look finds the bucket open, then more is refused: who asks for less waits for that recharge, too: held nothing
    0 peek -> bound=0; 1 hold a 8 -> !granted; 2s hold b 1 -> !granted
# It may be late a second, besides the time of its tokens; who names no ticket is before nobody.
for one token too: plain (nothing|stand-still|stand-still)
    0 peek -> bound=1s; 1 take 1 ticket=(a|a|-) -> !granted; (2.1s-1|2.1s|1s) take 1 -> !granted
who was refused in line is served first: plain (nothing|stand-still|stand-still)
    0 peek -> bound=0; 1 take 10 wait=0.1s ticket=(a|a|-) -> !granted; (2s-1|2s|1) take 1 -> !granted
# Who asks in between moves it by its own tokens.
a recharge under way must end when a look said: held (nothing|stand-still)
    0 peek -> bound=1s; 1 hold a 8 ticket=a -> !granted; (1s-1|3s) hold b 1 -> !granted
a bound ends with another's grant, with a command that may have been granted, and with a loss: plain nothing
    0 peek -> bound=0.1s; 1 (take 5|take 5 -> lost|wiped); 0.2s take 1 -> !granted
"""


@each_log(LOGS)
def test_a_bound_that_is_not_kept_is_found(log: Log, found: list[str]) -> None:
    """Each title says what a look promises, and what not."""
    assert log.liveness() == found


def test_a_recovery_is_measured_from_the_end_of_the_fault() -> None:
    """The time runs from the end of the fault to the next grant; the bound is that of the first look after it."""
    fault = Fault("director", NOW, plan.DELETE, PLAIN, NOW + TENTH, (PLAIN,))
    log = Log().add(fault).told(NOW + 2 * TENTH, Peek(), bound=5 * TENTH).told(NOW + 4 * TENTH, Acquire(1))
    (recovery,) = liveness.watch(PLAIN, QUOTAS[PLAIN], story_of(log.entries)).recoveries
    assert (recovery.kind, recovery.took, recovery.bound) == (plan.DELETE, 3 * TENTH, 6 * TENTH)


def test_a_command_lies_in_the_socket_of_a_frozen_server() -> None:
    """It may count until a second after its caller gave up, or after the server goes on."""
    frozen = Fault("director", NOW, FREEZE, "", NOW + 3 * SECOND)
    assert lurks_until(NOW, NOW + TENTH, []) == NOW + TENTH + SECOND
    assert lurks_until(NOW, NOW + TENTH, [frozen]) == NOW + 4 * SECOND
    assert lurks_until(NOW + 4 * SECOND, NOW + 5 * SECOND, [frozen]) == NOW + 6 * SECOND


@pytest.mark.parametrize(
    "error, found", [("StorageUnavailable", []), ("CancelledError", []), ("RuntimeError", ["error"])]
)
def test_a_command_may_fail_for_a_documented_reason_or_be_cancelled(error: str, found: list[str]) -> None:
    """Of both nobody knows whether they counted; any other error of a storage is a finding."""
    assert rules(liveness.only_documented_errors(story_of([Failed("w", NOW, 1, error)]))) == found


# --- a whole run


def sound() -> list[Entry]:
    entries: list[Entry] = []
    for number, bucket in enumerate(QUOTAS):
        log = Log(bucket)
        log.steps = 100 * number
        if bucket == KEEPA:
            log.told(NOW, Reconcile(Reading(9)), taken=True)
        log.told(NOW + SECOND, Acquire(1) if bucket == PLAIN else Reserve(bucket, 1, LIFETIME))
        entries += [*log.entries, Remains("director", NOW + 9 * SECOND, bucket, 0, 0, QUOTAS[bucket].capacity)]
    return [
        *entries,
        Fault("director", NOW, plan.CUT, "0", NOW),
        Calm("director", NOW + TENTH, last=True),
        Asked("w", NOW + SECOND + 1, KEEPA, 1),
        Charged("api", NOW + SECOND + 2, KEEPA, refused=False, cost=1),
        Answered("w", NOW + SECOND + 3, KEEPA, 200, 1),
        Left("w", NOW + 2 * SECOND),
        Total("director", NOW + 9 * SECOND, 1),
    ]


def without(kind: type[Entry]) -> list[Entry]:
    return [entry for entry in sound() if not isinstance(entry, kind)]


LATE = NOW + 3600 * SECOND
ODD = Sent("w", NOW, 999, PLAIN, "peek")

BROKEN: dict[str, tuple[list[Entry], str]] = {
    "a worker hangs": ([*sound(), ODD], "hung"),
    "a worker does not end": (without(Left), "hung"),
    "nothing is granted at last": ([*without(Calm), Calm("director", LATE, last=True)], "no progress"),
    "the run has no end": (without(Calm), "no end"),
    "nobody looks at what remains": (without(Remains), "no end"),
    "a hold of nothing remains": ([*sound(), Remains("director", LATE, KEEPA, 0, 1, 8)], "leak"),
    "a hold remains": ([*sound(), Remains("director", LATE, KEEPA, 1, 1, 8)], "leak"),
    "a bucket does not refill": ([*sound(), Remains("director", LATE, PLAIN, 0, 0, 11)], "leak"),
    "an error that is none of the storage's": ([*sound(), ODD, Failed("w", NOW, 999, "TypeError")], "error"),
    "an error that nothing documents": ([*sound(), Broke("w", NOW, "KeyError: 1")], "error"),
    "a repair": ([*sound(), ODD, Told("w", NOW, 999, repaired="carry")], "damage"),
    "a call without a grant": ([*sound(), Asked("w", NOW, "x", 1)], "ledger"),
    "a call that nobody made": ([*sound(), Charged("api", NOW, "x", refused=False, cost=0)], "ledger"),
    "a call served twice": (
        [*without(Total), Charged("api", LATE, KEEPA, refused=False, cost=1), Total("director", LATE, 2)],
        "ledger",
    ),
    "an answer that nobody gave": ([*sound(), Answered("w", LATE, "x", 200, 0)], "ledger"),
    "a cost that was told wrong": ([*without(Answered), Answered("w", LATE, KEEPA, 200, 2)], "ledger"),
    "books that don't add up": ([*without(Total), Total("director", LATE, 2)], "ledger"),
}


def test_a_sound_run_is_found_sound() -> None:
    """In a log in which nothing broke nothing is found, and its table says so."""
    result = report.check(story_of(sound()))
    assert result.findings == []
    assert report.table(result).endswith("nothing broke")


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_break_is_found(name: str) -> None:
    """One line too many, missing or changed in a sound log is found, under its own rule."""
    entries, rule = BROKEN[name]
    result = report.check(story_of(entries))
    assert set(rules(result.findings)) == {rule}
    assert f"x {rule}" in report.table(result)


def test_a_refusal_by_the_api_needs_an_explanation() -> None:
    """A refused call is explained by what was wrong shortly before it, and by nothing else."""
    late = NOW + 60 * SECOND

    def found(*others: Entry) -> list[str]:
        call = Charged("api", late, "x", refused=True, cost=0)
        log = Log(KEEPA).told(NOW, Reserve("x", 1, LIFETIME)).told(NOW, Reserve("y", 1, LIFETIME))
        log.add(Asked("w", late, "x", 1), call, Answered("w", late, "x", 429, 0), *others)
        return rules(server.audit(story_of(log.entries)).findings)

    def dear(at: int) -> list[Entry]:
        call = Charged("api", at, "y", refused=False, cost=2)
        return [Asked("v", NOW + 1, "y", 1), call, Answered("v", at, "y", 200, 2)]

    assert found() == ["refused"]
    assert found(wiped(NOW, KEEPA)) == ["refused"]
    assert found(wiped(late - SECOND, KEEPA)) == []
    assert found(Killed("director", late - SECOND, "v")) == []
    assert found(*dear(late - 1)) == []
    assert found(*dear(NOW + 1)) == ["refused"]


# --- the plan and the log


def test_a_seed_is_a_schedule() -> None:
    """One seed is one schedule, another seed another one; nothing is left to the moment."""
    assert plan.schedule(7, 60, 4) == plan.schedule(7, 60, 4)
    assert plan.schedule(7, 60, 4) != plan.schedule(8, 60, 4)


@given(seed=st.integers(0, 10**6), seconds=st.sampled_from([1, 9, 60, 600]))
def test_storms_end_and_calms_are_calm(seed: int, seconds: int) -> None:
    """No fault reaches into a calm, and of those that hit one worker none begins before the last has ended."""
    drawn = plan.schedule(seed, seconds, 3)
    assert drawn.calms[-1] + plan.LAST_CALM == pytest.approx(drawn.end)
    for calm in drawn.calms:
        assert not any(fault.at < calm + plan.CALM - 1e-6 and fault.until > calm for fault in drawn.faults)
    on_one = [fault for fault in drawn.faults if fault.kind in {plan.PAUSE, plan.KILL} and fault.target == "1"]
    assert all(one.until <= other.at for one, other in pairwise(on_one))


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every kind of line comes back; a last line that was cut short is none."""
    entries = [*sound(), *Log().lost(NOW, Acquire(1)).entries, Killed("d", 1, "w"), Broke("w", 1, "é"), wiped(1, "a")]
    journal = Journal(tmp_path, "w")
    for entry in entries:
        journal.write(entry)
    journal.close()
    with (tmp_path / "w.log").open("a") as log:
        log.write('["Left", {"who')
    assert list(story.read(tmp_path)) == entries
    assert {type(entry) for entry in entries} == set(story._KINDS.values())
