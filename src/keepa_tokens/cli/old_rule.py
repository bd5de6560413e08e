"""The old rule that stood still for days, to be shown beside the new one. Pure.

The system before this library kept a balance and the time of its last refill, each under a key of its own. One day the
time was gone and a balance of -79 was left. From then on three rules, each of them reasonable, blocked each other:

1. A missing time means now. So every worker, at every attempt, found that no time had passed and nothing had refilled.
2. A refusal writes nothing. So the time that was missing stayed missing.
3. Below a threshold of 40 the server isn't asked: with so little there, why bother it. So nobody learned that the
   server had long been full again.

The task ran every minute and was refused every minute, until somebody looked. With the time in place the same rules
work, which is why nobody had noticed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

THRESHOLD: Final = 40
"""Below this many tokens the old rule doesn't ask the server."""

MINUTE_US: Final = 60_000_000


class Verdict(StrEnum):
    """What the old rule said to a request."""

    GRANTED = "granted"
    REFUSED = "refused"
    ASKED = "asked the server"


@dataclass(frozen=True, slots=True)
class OldState:
    """What the old system stored. refilled_at: microseconds; None: lost."""

    balance: int
    refilled_at: int | None


def balance_seen(state: OldState, refill_rate: int, now_us: int) -> int:
    """Return the balance as a worker works it out: `refill_rate` tokens a minute since the last refill."""
    refilled_at = now_us if state.refilled_at is None else state.refilled_at  # rule 1
    capacity = 60 * refill_rate
    return min(capacity, state.balance + max(0, now_us - refilled_at) * refill_rate // MINUTE_US)


def attempt(state: OldState, tokens: int, refill_rate: int, now_us: int) -> tuple[OldState, Verdict]:
    """Return the state after a worker asked for `tokens`, and the verdict that it got."""
    balance = balance_seen(state, refill_rate, now_us)
    if balance < THRESHOLD:  # rule 3
        return state, Verdict.REFUSED  # rule 2
    if balance < tokens:
        return state, Verdict.ASKED
    return OldState(balance - tokens, now_us), Verdict.GRANTED
