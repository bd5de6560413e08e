"""How a blocking door runs a plan that is written once, as a coroutine, for both doors."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TypeVar

T = TypeVar("T")


def run(made: Callable[[], Coroutine[object, None, T]]) -> T:
    """Run the plan that `made` returns to its end in one go and return its result.

    What it awaits must block and not suspend: the steps of a blocking door never yield. RuntimeError if one does. The
    plan is made here, so that no signal strikes before its first step: Python warns of a coroutine that never ran.
    """
    plan = made()
    try:
        plan.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return] # the plan's T
    plan.close()
    raise RuntimeError("a step of a blocking door waited for an event loop: give it blocking steps")
