"""A pause: nobody is let through, nothing is taken, and it ends whatever is stored."""

from __future__ import annotations

from dataclasses import replace

from keepa_tokens.rules.commands import Acquire, Pause
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import DAY_US, TOLERANCE_US

from .terms import CAPACITY, DEBT, LATEST, SMOOTH, SYNCED, plain


def a_pause_always_ends(balance: int, paused_until: int | None, now: int) -> bool:
    """However far ahead its end is stored, a day and the tolerance later nobody is refused for a pause.

    Who is refused and waits `retry_after` is granted. A pause of 0 ends one at once.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= LATEST
    post: _
    """
    stored = replace(plain(SMOOTH, balance, now), paused_until=paused_until)
    ended, _ = transition(SMOOTH, stored, now, Pause(0))
    _, resumed = transition(SMOOTH, ended, now, Acquire(1))
    if resumed.granted != (balance >= 1) or resumed.reason is Reason.PAUSED:
        return False
    state, first = transition(SMOOTH, stored, now, Acquire(1))
    if first.granted:
        return True
    _, waited = transition(SMOOTH, state, now + first.retry_after_us, Acquire(1))
    if first.reason is not Reason.PAUSED:
        return waited.granted
    _, second = transition(SMOOTH, state, now + DAY_US + TOLERANCE_US, Acquire(1))
    return waited.granted and second.reason is not Reason.PAUSED


def a_pause_refuses_and_takes_nothing(balance: int, length: int, now: int, later: int) -> bool:
    """Until its end, a day at most, each request is refused as PAUSED; nothing is taken and nobody gets the probe.

    pre: -DEBT < balance <= CAPACITY and 0 <= now <= later <= LATEST
    pre: 1 <= length and later < now + length and later < now + DAY_US
    post: _
    """
    state, _ = transition(SYNCED, plain(SYNCED, balance, now), now, Pause(length))
    _, outcome = transition(SYNCED, state, later, Acquire(1))
    if outcome.balance is None or outcome.granted or outcome.probe:
        return False
    return outcome.reason is Reason.PAUSED and outcome.balance >= balance
