"""The machines are no blind ones: ways to be broken between a bucket and its server, and which machine finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from checks.models.broken import FAULTS, Broken, Fault, Place
from checks.models.machine import Bench, ReadingMachine, Word
from checks.models.strategies import HOUR, MINUTE, SECOND
from checks.models.synced_machine import SyncedMachine
from keepa_tokens import Quota
from keepa_tokens.rules.commands import Acquire, Reserve, Settle
from keepa_tokens.units import UNLIMITED

HUNT: Final = settings(
    deadline=None,
    max_examples=1000,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    # On a loaded machine a slow generator is no finding.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""Looks hard, and at the same runs each time."""

NEVER_HALVES: Final = "what is kept back never halves"
NO_BACKOFF: Final = "the next one is sent as soon as the last one failed"
NO_BEGINNING: Final = "nothing begins when the server can't be asked"
NOT_HEARD: Final = "a refusal by the server is not heard"

OF_THE_LINE: Final = frozenset(name for name in FAULTS if "line" in name or "ticket" in name)

BEYOND_THE_REFERENCE: Final = {NEVER_HALVES, NO_BACKOFF, NO_BEGINNING, NOT_HEARD} | OF_THE_LINE
"""These show in long histories; see below for those that are written down."""

BY_THE_SERVER: Final = (
    "whatever the server says last to arrive is the latest",
    "a call's cost is charged, though a newer reading had it",
    "more is given back than a late answer's call had set aside",
    "a reading drops what is in flight",
    "nobody is sent to ask the server",
    "a bucket of which nothing is known is full",
    "each call is admitted as if it were alone",
    "the server's plan is not heard",
    "the time of the server's next step is not heard",
    "the server's step is believed to come at once",
    "a hold that runs out is given back",
    "whoever asks takes now for the last refill",
)
"""With these the bucket has more than its server, or stands still."""


class ServerAlone(SyncedMachine):
    """The machine that plays the server, without the reference."""

    followed = False


def benches(fault: Fault) -> Iterator[Bench]:
    """Yield buckets on a broken storage."""
    place = Place()
    for number in count():
        key = f"k{number}"

        def fields(key: str = key) -> Mapping[str, str]:
            return place.rows.get(key, {})

        def store(texts: Mapping[str, str], key: str = key) -> None:
            place.rows[key] = dict(texts)

        yield Bench(Broken(place, fault), key, fields, store)


def drive(kind: Callable[[Bench], RuleBasedStateMachine], fault: Fault, examples: int = 1000) -> None:
    """Drive a broken storage."""
    each = benches(fault)
    made: Any = lambda: kind(next(each))  # noqa: E731 - Hypothesis takes any factory, though it says a class
    run_state_machine_as_test(made, settings=settings(HUNT, max_examples=examples))


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - BEYOND_THE_REFERENCE))
def test_the_machine_beside_the_reference_finds(fault: str) -> None:
    """In histories that nobody wrote, a bucket that goes wrong like this parts from its reference."""
    with pytest.raises(AssertionError):
        drive(ReadingMachine, FAULTS[fault])


@pytest.mark.parametrize("fault", BY_THE_SERVER)
def test_what_the_server_demands_finds_by_itself(fault: str) -> None:
    """The bucket has more than its server then, or less than was told, or neither grants nor asks."""
    with pytest.raises(AssertionError):
        drive(ServerAlone, FAULTS[fault])


@pytest.mark.parametrize("kind", [ReadingMachine, SyncedMachine, ServerAlone])
def test_a_sound_storage_is_not_found_out(kind: Callable[[Bench], RuleBasedStateMachine]) -> None:
    """The storage in whose steps they are broken passes."""
    drive(kind, Fault(), examples=60)


# --- what takes a longer history to show; chance comes by it at night


def hears(balance: int, **more: Any) -> Word:
    """Return what the server says now."""
    fields = {"off": None, "ago": 0, "next_refill_in": None, "refill": None, "capacity": None}
    return Word(**{**fields, "balance": balance, **more})


def an_hour_without_others_passes(machine: ReadingMachine) -> None:
    """What was kept back for somebody else is halved."""
    machine.hear(0, hears(200))
    machine.time_passes(SECOND)
    machine.hear(0, hears(100))
    machine.time_passes(SECOND)
    machine.hear(0, hears(40))
    machine.time_passes(HOUR + SECOND)
    machine.hear(0, hears(300))


def nobody_comes_back_from_the_server(machine: ReadingMachine) -> None:
    """The bucket starts at 0 then, and refills; and the next one is sent later each time."""
    machine.do(0, Acquire(5, probe_after_us=10 * MINUTE))
    machine.time_passes(30 * SECOND)
    for _ in range(4):
        machine.do(0, Acquire(300, probe_after_us=MINUTE))
        machine.time_passes(90 * SECOND)


def the_server_refuses_a_call(machine: ReadingMachine) -> None:
    """Its answer says nothing of the balance, but that it isn't above 0."""
    machine.hear(0, hears(100))
    machine.do(0, Reserve("a", 5, MINUTE))
    machine.do(0, Settle("a", refused=True))


def some_stand_in_line(machine: ReadingMachine) -> None:
    """The first asks again, and is granted; the other never comes, and somebody passes it."""
    machine.hear(0, hears(0))
    machine.do(0, Acquire(20, probe_after_us=None, ticket="u"))
    machine.do(0, Acquire(5, probe_after_us=None, ticket="v"))
    machine.both_show_the_same()
    machine.do(0, Acquire(20, probe_after_us=None, ticket="u"))
    machine.do(0, Acquire(5, probe_after_us=None))
    machine.time_passes(61 * SECOND)
    machine.do(0, Acquire(20, probe_after_us=None, ticket="u"))
    machine.both_show_the_same()
    machine.time_passes(6 * MINUTE)
    machine.do(0, Acquire(5, probe_after_us=None))
    machine.time_passes(2 * MINUTE)


def tasks_stand_in_line(machine: SyncedMachine) -> None:
    """The first never comes, and is passed once it is late; the second leaves; the third waits for a call in flight."""
    machine.begin(5, 0, MINUTE)
    machine.look_at_the_server(later=False)
    machine.call(20, 0, task="task-1")
    machine.call(5, 0, task="task-2")
    machine.both_show_the_same()
    machine.call(20, 0, task="task-1")
    machine.time_passes(MINUTE)
    machine.call(5, 0, task="task-2")
    machine.call(5, 0)
    machine.leave_the_line("task-2")
    machine.time_passes(3 * SECOND)
    machine.call(5, 0)
    machine.call(20, 0, task="task-3")
    machine.call(5, 0, task="task-4")
    for under_way in machine.on_the_way():
        machine.serve(under_way)
        machine.settle(under_way)
    machine.time_passes(MINUTE)
    machine.call(20, 0, task="task-3")
    machine.both_show_the_same()


@pytest.mark.parametrize("fault", sorted(OF_THE_LINE))
def test_in_histories_of_a_line_both_machines_find(fault: str) -> None:
    """Whoever is forgotten, passed, sent to the end, waited for in vain, or stays when it is granted, is missed."""
    go_through(Fault(), some_stand_in_line)
    with pytest.raises(AssertionError):
        go_through(FAULTS[fault], some_stand_in_line)
    tasks_stand_in_line(SyncedMachine(next(benches(Fault()))))
    with pytest.raises(AssertionError):
        tasks_stand_in_line(SyncedMachine(next(benches(FAULTS[fault]))))


def go_through(fault: Fault, history: Callable[[ReadingMachine], None]) -> None:
    """Let the machine do what a history says, and look at what always holds."""
    machine = ReadingMachine(next(benches(fault)))
    machine.begin(Quota(300, 5, 60.5, stepped=True, synced=True, overdraft=UNLIMITED), (0, 0, 0))
    history(machine)
    machine.both_show_the_same()
    machine.nobody_got_too_much()
    machine.it_never_stands_still()


@pytest.mark.parametrize(
    "fault, history",
    [
        (NEVER_HALVES, an_hour_without_others_passes),
        (NO_BACKOFF, nobody_comes_back_from_the_server),
        (NO_BEGINNING, nobody_comes_back_from_the_server),
        (NOT_HEARD, the_server_refuses_a_call),
    ],
)
def test_a_history_in_which_the_machine_finds_what_shows_rarely(
    fault: str, history: Callable[[ReadingMachine], None]
) -> None:
    """In these histories the machine parts from the broken storage, and not from the sound one."""
    go_through(Fault(), history)
    with pytest.raises(AssertionError):
        go_through(FAULTS[fault], history)
