"""The machines are no blind ones: ways to be broken between a bucket and its server, and which machine finds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from checks.models.broken import FAULTS, Fault, KitWithFields, Simple
from checks.models.machine import Bench, ReadingMachine, Word
from checks.models.strategies import EPOCH, MINUTE, SECOND
from checks.models.synced_machine import SyncedMachine
from keepa_tokens import Quota
from keepa_tokens.units import UNLIMITED
from tests.stories import command, steps

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
LAST_AGAIN: Final = "whom the server refused comes back as the last"
NOT_HEARD: Final = "a refusal by the server is not heard"

OF_THE_LINE: Final = frozenset(name for name in FAULTS if "line" in name or "ticket" in name)

BEYOND_THE_REFERENCE: Final = {NEVER_HALVES, NO_BACKOFF, NO_BEGINNING, NOT_HEARD, LAST_AGAIN} | OF_THE_LINE
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


def bench(fault: Fault) -> Bench:
    kit = KitWithFields(partial(Simple, fault=fault))
    return replace(kit.bench(kit.make_storage(), ExitStack()), anew=None, end=None)


def drive(kind: Callable[[Bench], RuleBasedStateMachine], fault: Fault, examples: int = 1000) -> None:
    made: Any = lambda: kind(bench(fault))  # noqa: E731 - Hypothesis takes any factory, though it says a class
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


HISTORIES: Final = {
    # What was kept back for somebody else is halved when an hour without others passes.
    NEVER_HALVES: "0 hears 200; 1s hears 100; 2s hears 40; 3603s hears 300",
    # Nobody comes back from the server: the bucket starts at 0 then, and refills; the next one is sent later each time.
    **dict.fromkeys(
        (NO_BACKOFF, NO_BEGINNING),
        """0 take 5 probe=600s; 30s take 300 probe=60s; 120s take 300 probe=60s
        210s take 300 probe=60s; 300s take 300 probe=60s; 390s look""",
    ),
    # The answer says nothing of the balance, but that it isn't above 0.
    NOT_HEARD: "0 hears 100, hold a 5 life=60s, settle a refused=1",
    # The first has its turn, and comes again while the second waits for its own.
    LAST_AGAIN: """0 hears 0, hold a 5 probe=- ticket=u, hold b 20 probe=- ticket=v
        61s hold a 5 probe=- ticket=u, settle a 0 refused=1, again c 10 probe=-""",
    # The first asks again, and is granted; the other never comes, and somebody passes it.
    **dict.fromkeys(
        OF_THE_LINE,
        """0 hears 0, take 20 probe=- ticket=u, take 5 probe=- ticket=v, look
        0 take 20 probe=- ticket=u, take 5 probe=-
        61s take 20 probe=- ticket=u, look; 421s take 5 probe=-; 541s look""",
    ),
}
"""What chance finds rarely, told as in `tests/stories.py`; `hears` is what the server says, `again` who was let go."""


def go_through(fault: str | None, text: str) -> None:
    """Let the machine do what a history says, and look at what always holds."""
    machine = ReadingMachine(bench(FAULTS[fault] if fault else Fault()))
    machine.begin(Quota(300, 5, 60.5, stepped=True, synced=True, overdraft=UNLIMITED), (0, 0, 0))
    for after, what, _ in steps(text):
        machine.time_passes(EPOCH + after - machine.now)
        verb, _, rest = what.partition(" ")
        if verb == "hears":
            machine.hear(0, Word(None, int(rest), 0, None, None, None))
        elif verb == "look":
            machine.both_show_the_same()
        elif verb == "again":
            machine.stand_again(0, command(f"hold {rest}"), 0)
        else:
            machine.do(0, command(what))
    machine.both_show_the_same()
    machine.nobody_got_too_much()
    machine.it_never_stands_still()


@pytest.mark.parametrize("fault", sorted(HISTORIES))
def test_a_history_in_which_the_machine_finds_what_shows_rarely(fault: str) -> None:
    """In these histories the machine parts from the broken storage, and not from the sound one."""
    go_through(None, HISTORIES[fault])
    with pytest.raises(AssertionError):
        go_through(fault, HISTORIES[fault])


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
def test_in_a_history_of_a_line_the_machine_beside_a_server_finds(fault: str) -> None:
    """Whoever is forgotten, passed, sent to the end, waited for in vain, or stays when it is granted, is missed."""
    tasks_stand_in_line(SyncedMachine(bench(Fault())))
    with pytest.raises(AssertionError):
        tasks_stand_in_line(SyncedMachine(bench(FAULTS[fault])))
