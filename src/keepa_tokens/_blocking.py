"""How a blocking door runs a plan that is written once, as a coroutine, for both doors."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


def run(plan: Coroutine[object, None, T]) -> T:
    """Run `plan` to its end in one go and return its result.

    What it awaits must block and not suspend: the steps of a blocking door never yield. RuntimeError if one does.
    """
    try:
        plan.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return] # the plan's T
    plan.close()
    raise RuntimeError("a step of a blocking door waited for an event loop: give it blocking steps")
