"""The fault that started it all, stated of the rule that stood still for days and of the one that took its place."""

from __future__ import annotations

from keepa_tokens.cli.old_rule import OldState, Verdict, attempt
from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import TOLERANCE_US

from .terms import CAPACITY, DEBT, LATEST, RATE, RATE_PERIOD_US, REFILL, SMOOTH


def lost_timestamp_stops_nobody(balance: int, stored: int | None, now: int, tokens: int) -> bool:
    """Its timestamp lost or anything, a bucket grants by the end of the refill time, a period and the tolerance.

    pre: -DEBT < balance < tokens <= CAPACITY and tokens >= 1 and 0 <= now <= LATEST
    post: _
    """
    state, first = transition(SMOOTH, BucketState(balance=balance, refilled_at=stored), now, Acquire(tokens))
    longest = TOLERANCE_US + ((tokens - balance) // RATE + 1) * RATE_PERIOD_US
    if first.granted:
        return True
    _, second = transition(SMOOTH, state, now + longest, Acquire(tokens))
    return second.granted


def lost_timestamp_stops_nobody_by_the_old_rule(balance: int, now: int, tokens: int) -> bool:
    """By the old rule a bucket in debt would, 35 years on, at least ask the server: false.

    pre: -DEBT < balance < 0 and 1 <= tokens <= CAPACITY and 0 <= now <= LATEST
    post: _
    """
    state, first = attempt(OldState(balance, None), tokens, REFILL, now)
    _, second = attempt(state, tokens, REFILL, now + LATEST)
    return first is not Verdict.REFUSED or second is not Verdict.REFUSED
