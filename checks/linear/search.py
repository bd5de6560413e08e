"""Whether what concurrent callers saw can have come of one command after the other: Wing and Gong's search.

Each call is an interval in real time and, within it, one step of `transition`. A history is linearizable if its calls
can be put in an order in which no call comes before one that had ended when it began, and in which every outcome, field
by field, is what the rules say of the state that the calls before it left. A call whose outcome nobody knows may stand
anywhere from its beginning on, or nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Command, Outcome
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition

NEVER = 2**63


@dataclass(frozen=True)
class Call:
    """One call.

    began, ended: nanoseconds of the monotonic clock. now: the bucket's time. quota: the caller's terms. outcome None:
    lost.
    """

    began: int
    ended: int
    now: int
    quota: Quota
    command: Command
    outcome: Outcome | None


def order(history: Sequence[Call]) -> list[Call] | None:
    """Return an order in which the calls can have happened, lost ones that did not left out; None: there is none."""
    calls = sorted(history, key=lambda call: call.began)
    needed = sum(1 << number for number, call in enumerate(calls) if call.outcome is not None)
    seen: set[tuple[int, object]] = set()
    # Each entry: what is done, the state then, the calls in order.
    stack: list[tuple[int, BucketState | None, list[Call]]] = [(0, None, [])]
    while stack:
        done, state, path = stack.pop()
        if done & needed == needed:
            return path
        known = (done, _known_by(state))
        if known in seen:
            continue
        seen.add(known)
        left = [(number, call) for number, call in enumerate(calls) if not done >> number & 1]
        first_end = min(call.ended if call.outcome is not None else NEVER for _, call in left)
        for number, call in left:
            if call.began > first_end:
                break
            after, outcome = transition(call.quota, state, call.now, call.command)
            if call.outcome is None or outcome == call.outcome:
                stack.append((done | 1 << number, after, [*path, call]))
    return None


def _known_by(state: BucketState | None) -> object:
    # For how long the fast path may serve a bucket is no part of what it comes to.
    return None if state is None else tuple(sorted(replace(state, fast=None).to_fields().items()))
