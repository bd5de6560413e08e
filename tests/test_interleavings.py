"""All interleavings of three calls: each is opened here, admitted and completed there, and its envelope comes back.

The server is a tiny model: one balance, a call admitted while it is above 0, charged when it is admitted or when it
completes. With estimates that cover the cost the projection must never be above the truth, and end equal to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from checks.models.strategies import SECOND
from checks.proof import states
from checks.proof.worlds import THREE_CALLS, Synced, explore
from keepa_tokens.rules.commands import Command, Outcome, Reserve
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition

ORDERS: Final = 34_650
"""12! / 4!^3 orders of their steps."""

WORLDS: Final[dict[str, Synced]] = {
    "in any order": THREE_CALLS,
    # Calls in flight may be missed, and nothing else.
    "without a server's time nothing tells the order": replace(THREE_CALLS, behind=None, slack=5 + 8),
    "with a refill step between the calls": replace(THREE_CALLS, start=2, ticks=1, unit=60 * SECOND),
}

DEEPER: Final[dict[str, Synced]] = {
    "with a free call": replace(THREE_CALLS, costs=(8, 0, 1), estimates=(9, 1, 2)),
    "with calls of one price": replace(THREE_CALLS, costs=(5, 5, 5), estimates=(5, 5, 5)),
    "the server's clock is off": replace(THREE_CALLS, behind=600 * SECOND),
    "the server's clock is too coarse to tell answers apart": replace(THREE_CALLS, apart=0),
    # A reading that was made before it may lack its cost, until the next one; no more is missed.
    **{
        f"call {blind} is settled at its cost alone": replace(THREE_CALLS, blind=blind, slack=THREE_CALLS.costs[blind])
        for blind in range(3)
    },
    # Those that are refused there charge nothing.
    "another program has spent what they counted on": replace(THREE_CALLS, outside=98),
}


@pytest.mark.parametrize("at_admission", [False, True])
@pytest.mark.parametrize("world", [*WORLDS, *(pytest.param(name, marks=pytest.mark.deep) for name in DEEPER)])
def test_in_every_order_the_projection_is_never_above_and_ends_equal(world: str, at_admission: bool) -> None:
    """However charged, never above the truth, and, where something tells the order, equal at the end."""
    what = (WORLDS | DEEPER)[world]
    count = explore(replace(what, at_admission=at_admission))
    assert count.broken == ""
    # In some worlds not every call goes out.
    assert count.orders == ORDERS or (count.orders > 1000 and (what.ticks or what.outside))


def gullible(quota: Any, state: BucketState, now: int, command: Command) -> tuple[BucketState | None, Outcome]:
    """Forget what was told, so that every envelope looks fresh."""
    return transition(quota, replace(state, server_time=None, reading_sequence=1), now, command)


def forgetful(quota: Any, state: BucketState, now: int, command: Command) -> tuple[BucketState | None, Outcome]:
    """Count no call in flight."""
    return transition(quota, state, now, replace(command, tokens=0) if isinstance(command, Reserve) else command)


@pytest.mark.parametrize("broken", [gullible, forgetful])
def test_a_broken_bucket_is_caught(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that believes stale envelopes, or counts no call in flight, fails in some order: the check can fail."""
    monkeypatch.setattr(states, "transition", broken)
    assert explore(replace(THREE_CALLS, at_admission=broken is forgetful)).broken
