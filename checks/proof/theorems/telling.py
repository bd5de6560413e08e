"""Readings and probes: nothing stored shuts the server's word out, and somebody always gets to ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from keepa_tokens.rules.commands import Acquire, ClaimProbe, Settle, Unclaim, Verdict
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import CLAIM_US, LIMIT, MAX_BACKOFF_US, MINUTE_US, NEAR_US, REORDER_US, TOLERANCE_US

from .terms import CAPACITY, DEBT, LATEST, SYNCED, pick

READING: Final = Reading(7, server_time=1_000_000.0)
FAILURES: Final = (0, 1, 2, 3, 30)
"""From 3 on the backoff is an hour; a shift by an open number is beyond the solver."""

SEEN: Final = Settle("nobody's", reading=READING)
"""A reading seen outside any call, by the door that leaves out the snapshot, whose floats slow the solver down."""


def _told(balance: int | None, now: int, **others: int | None) -> BucketState:
    stored = BucketState(balance=balance, refilled_at=now, sequence=1, reading_at=now, reading_sequence=1, quota=SYNCED)
    return replace(stored, **cast("dict[str, Any]", others))


def no_field_shuts_out_a_reading(reading_at: int, server_time: int, server_time_at: int, now: int) -> bool:
    """Whatever instants are stored, a reading refused now is taken after two minutes and the tolerance of clocks.

    pre: 0 <= now <= LATEST
    post: _
    """
    # So deep in debt, no reading counts as the lower of two.
    stored = _told(-DEBT, now, reading_at=reading_at, server_time=server_time, server_time_at=server_time_at)
    state, first = transition(SYNCED, stored, now, SEEN)
    if first.reading is Verdict.TAKEN:
        return first.balance == READING.balance
    _, second = transition(SYNCED, state, now + REORDER_US + TOLERANCE_US + 1, SEEN)
    return second.reading is Verdict.TAKEN and second.balance == READING.balance


def no_sequence_shuts_out_a_reading(sequence: int, reading_sequence: int, now: int) -> bool:
    """Whatever sequence numbers are stored, a reading seen two minutes after the last one is taken.

    pre: REORDER_US < now <= LATEST
    post: _
    """
    stored = _told(
        0,
        now,
        sequence=sequence,
        reading_at=now - REORDER_US - 1,
        reading_sequence=reading_sequence,
        server_time=2**51,
        server_time_at=now,
    )
    _, outcome = transition(SYNCED, stored, now, SEEN)
    return outcome.reading is Verdict.TAKEN and outcome.balance == READING.balance


def two_minutes_sharp(reading_at: int, server_time: int, now: int) -> bool:
    """The same without the tolerance: false, since `reading_at` is kept when it lies ahead of now within it.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = _told(0, now, reading_at=reading_at, server_time=server_time, server_time_at=now)
    state, first = transition(SYNCED, stored, now, SEEN)
    _, second = transition(SYNCED, state, now + REORDER_US + 1, SEEN)
    return Verdict.TAKEN in {first.reading, second.reading}


def only_a_newer_reading_raises(balance: int, server_time: int, server_time_at: int, age: int, now: int) -> bool:
    """Within two minutes of the last one, only a reading that is newer raises the balance; where nothing tells, none.

    One that is older by more than 5 s leaves everything as it is.

    pre: -DEBT < balance <= CAPACITY and 0 <= age <= REORDER_US and age <= now <= LATEST
    pre: 0 <= server_time < LIMIT and 0 <= server_time_at <= now
    post: _
    """
    stored = _told(balance, now, reading_at=now - age, server_time=server_time, server_time_at=server_time_at)
    state, outcome = transition(SYNCED, stored, now, SEEN)
    told, passed = 1_000_000_000_000 - server_time, now - server_time_at
    if abs(told - passed) <= MINUTE_US and told > 0:
        return outcome.balance == READING.balance
    if abs(told - passed) > MINUTE_US or told >= -NEAR_US:
        return outcome.balance == min(balance, READING.balance)
    return outcome.reading is Verdict.STALE and state is stored


def one_probes_at_a_time(probe_until: int | None, now: int, later: int) -> bool:
    """Who got the claim has it alone for its length; however far ahead a claim is stored, it then ends.

    pre: 0 <= now <= later <= LATEST
    post: _
    """
    state, first = transition(SYNCED, _told(0, now, probe_until=probe_until), now, ClaimProbe())
    _, second = transition(SYNCED, state, later, ClaimProbe())
    if first.probe and second.probe:
        return later >= now + CLAIM_US
    return second.probe or later < now + CLAIM_US + TOLERANCE_US


def giving_claims_back_is_no_way_to_hammer(probe_until: int | None, returned: int | None, now: int) -> bool:
    """A claim given back is free at once the first time; whoever gives it back again without a reading counts failures.

    pre: 0 <= now <= LATEST
    post: _
    """
    state, first = transition(
        SYNCED, _told(0, now, probe_until=probe_until, probe_returned=returned), now, ClaimProbe()
    )
    if first.claimed_until_us is None:
        return True
    state, _ = transition(SYNCED, state, now, Unclaim(first.claimed_until_us))
    state, second = transition(SYNCED, state, now, ClaimProbe())
    if state is None or second.claimed_until_us is None:
        return False
    state, _ = transition(SYNCED, state, now, Unclaim(second.claimed_until_us))
    state, third = transition(SYNCED, state, now, ClaimProbe())
    return third.probe and state is not None and (state.probe_failures or 0) >= 1


def backoff_ends(reading_at: int | None, probe_until: int | None, failures: int, now: int, *, known: bool) -> bool:
    """Whatever is stored of readings, claims and failures, a refused caller gets the probe within an hour and a claim.

    Or, where nothing is known of the balance, a grant from one that has started at 0 by then.

    pre: 0 <= now <= LATEST and 0 <= failures < len(FAILURES)
    post: _
    """
    stored = _told(-DEBT if known else None, now, reading_at=reading_at if known else None)
    stored = replace(stored, probe_until=probe_until, probe_failures=pick(failures, FAILURES))
    state, first = transition(SYNCED, stored, now, Acquire(1))
    if first.probe or (first.granted and not known):
        return True
    _, second = transition(SYNCED, state, now + CLAIM_US + TOLERANCE_US + MAX_BACKOFF_US, Acquire(1))
    return second.probe or (second.granted and not known)
