"""Repair: any stored thing becomes a sound state. Garbage is a text, a float, a bool, nothing."""

from __future__ import annotations

from typing import TypeAlias

from keepa_tokens.rules.repair import repair
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.units import CLAIM_US, LIMIT, TOLERANCE_US

from .terms import LATEST, RATE_PERIOD_US, SMOOTH, SYNCED

Garbage: TypeAlias = str | float | bool | None
Number: TypeAlias = int | None
"""Out of its range as well."""


def numbers_are_sound(balance: Number, refilled_at: Number, carry: Number, now: int) -> bool:
    """Whatever numbers are stored, balance, refilled_at and carry come out within their ranges.

    pre: 0 <= now <= LATEST
    post: _
    """
    state, _ = repair(SMOOTH, BucketState(balance, refilled_at, carry), now)
    return _is_sound(state, now)


def garbage_is_mended(balance: Garbage, refilled_at: Garbage, carry: Garbage, now: int) -> bool:
    """Texts, floats, bools and nothing in their place come out as 0, now and 0.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(balance, refilled_at, carry)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    state, _ = repair(SMOOTH, stored, now)
    return _is_sound(state, now) and (state.balance, state.refilled_at, state.carry) == (0, now, 0)


def _is_sound(state: BucketState, now: int) -> bool:
    if type(state.balance) is not int or type(state.refilled_at) is not int or type(state.carry) is not int:
        return False
    return (
        -LIMIT < state.balance < LIMIT
        and 0 <= state.refilled_at <= now + TOLERANCE_US
        and 0 <= state.carry < RATE_PERIOD_US
    )


def what_is_sound_is_left_alone(balance: int, refilled_at: int, carry: int, now: int) -> bool:
    """A sound state comes out as it went in, and nothing is said to have been mended.

    pre: 0 <= now <= LATEST and 0 <= refilled_at <= now + TOLERANCE_US
    pre: -LIMIT < balance < LIMIT and 0 <= carry < RATE_PERIOD_US
    post: _
    """
    state, names = repair(SMOOTH, BucketState(balance, refilled_at, carry), now)
    return names == () and (state.balance, state.refilled_at, state.carry) == (balance, refilled_at, carry)


def lost_timestamp_keeps_the_balance(balance: int, refilled_at: Garbage, now: int) -> bool:
    """Without its timestamp a bucket keeps its balance, and refills from now.

    pre: 0 <= now <= LATEST and -LIMIT < balance < LIMIT
    post: _
    """
    stored = BucketState(balance, refilled_at)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    state, names = repair(SMOOTH, stored, now)
    return (state.balance, state.refilled_at, names) == (balance, now, ("refilled_at",))


def lost_balance_mints_nothing(balance: Garbage, refilled_at: Number, now: int) -> bool:
    """A plain bucket without its balance goes on from 0, refilling from now; a synced one is unknown.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(balance, refilled_at)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    plain, names = repair(SMOOTH, stored, now)
    synced, _ = repair(SYNCED, stored, now)
    return (
        (plain.balance, plain.refilled_at, plain.carry) == (0, now, 0) and "balance" in names and synced.balance is None
    )


def claim_and_reading_are_never_far_ahead(probe_until: Number, reading_at: Number, now: int) -> bool:
    """However far ahead they are stored, a claim and a reading are at most the tolerance off.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(0, now, probe_until=probe_until, reading_at=reading_at)
    state, _ = repair(SYNCED, stored, now)
    claim_ends = state.probe_until is None or state.probe_until <= now + CLAIM_US + TOLERANCE_US
    return claim_ends and (state.reading_at is None or state.reading_at <= now + TOLERANCE_US)


def order_is_kept(sequence: int, reading_sequence: int, opened: int, now: int) -> bool:
    """No stored number puts a hold or a reading ahead of the sequence, where later ones would count as older.

    pre: 0 <= now <= LATEST
    post: _
    """
    hold = Hold(1, opened, now + 1, 1)
    stored = BucketState(
        0, now, sequence=sequence, reading_sequence=reading_sequence, holds={"a": hold}, reading_at=now
    )
    state, _ = repair(SYNCED, stored, now)
    if state.sequence is None or state.reading_sequence is None:
        return False
    return 0 <= state.reading_sequence <= state.sequence and all(
        h.opened <= state.sequence for h in state.holds.values()
    )


def holds_end(tokens: int, expires_at: int, hold_for: int, balance: int, now: int) -> bool:
    """However far ahead its end is stored, a synced bucket's hold ends within its lifetime and the tolerance.

    pre: 0 <= now <= LATEST and -LIMIT < balance < LIMIT
    post: _
    """
    stored = BucketState(balance, now, sequence=1, holds={"a": Hold(tokens, 1, expires_at, hold_for)})
    state, _ = repair(SYNCED, stored, now)
    return all(hold.expires_at <= now + hold.hold_for + TOLERANCE_US for hold in state.holds.values())


def refill_of_0_needs_a_reading(refill: int, period: int, reading_at: int, now: int) -> bool:
    """A stored refill of 0 counts only where a reading brought it; a stored rate is always one that is exact.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(0, now, reported_refill=refill, reported_period_us=period, reading_at=reading_at)
    state, _ = repair(SYNCED, stored, now)
    if state.reported_refill is None or state.reported_period_us is None:
        return state.reported_refill is None and state.reported_period_us is None
    exact = state.reported_refill * (state.reported_period_us + 1) < LIMIT and state.reported_period_us >= 1
    return exact and (state.reported_refill > 0 or state.reading_at is not None)
