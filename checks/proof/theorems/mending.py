"""Repair: any stored thing becomes a sound state. Garbage is a text, a float, a bool, nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, TypeAlias

from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.flow import flow_in_effect
from keepa_tokens.rules.repair import repair
from keepa_tokens.rules.state import BucketState, Hold, SoundState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import CLAIM_US, DAY_US, LIMIT, LONGEST_STRETCH_US, MAX_HOLD_US, SWEEP_US, TOLERANCE_US, YEAR_US

from .terms import CAPACITY, DEBT, LATEST, RATE, RATE_PERIOD_US, SMOOTH, SYNCED, pick, plain

Garbage: TypeAlias = str | float | bool | None
Number: TypeAlias = int | None
"""Out of its range as well."""


def numbers_are_sound(balance: Number, refilled_at: Number, carry: Number, now: int) -> bool:
    """Whatever numbers are stored, balance, refilled_at and carry come out within their ranges.

    Sound ones come out as they went in, and nothing is said to have been mended.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(balance=balance, refilled_at=refilled_at, carry=carry)
    state, names = repair(SMOOTH, stored, now)
    if not _is_sound(state, now):
        return False
    if not _is_sound(stored, now) or now > (refilled_at or 0) + YEAR_US:
        return True
    return names == () and (state.balance, state.refilled_at, state.carry) == (balance, refilled_at, carry)


def _stored(balance: Garbage, refilled_at: Garbage, carry: Garbage = 0) -> BucketState:
    return BucketState(balance=balance, refilled_at=refilled_at, carry=carry)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def _is_sound(state: BucketState | SoundState, now: int) -> bool:
    if type(state.balance) is not int or type(state.refilled_at) is not int or type(state.carry) is not int:
        return False
    return (
        -LIMIT < state.balance < LIMIT
        and 0 <= state.refilled_at <= now + TOLERANCE_US
        and 0 <= state.carry < RATE_PERIOD_US
    )


MENDED: Final = {("refilled_at",), ("refilled_at", "carry")}


def lost_timestamp_keeps_the_balance(balance: int, refilled_at: Garbage, carry: Garbage, now: int) -> bool:
    """Without its timestamp a bucket keeps its balance, and refills from now; a remainder that is none is 0.

    pre: 0 <= now <= LATEST and -LIMIT < balance < LIMIT
    post: _
    """
    state, names = repair(SMOOTH, _stored(balance, refilled_at, carry), now)
    return (state.balance, state.refilled_at, state.carry) == (balance, now, 0) and names in MENDED


def a_senseless_age_fills_nothing(balance: int, refilled_at: int, now: int) -> bool:
    """A timestamp of over a year, which no refill needs at Keepa's plans, is as one lost; any other is believed.

    pre: 0 <= now <= LATEST and 0 <= refilled_at <= now and -DEBT < balance <= CAPACITY
    post: _
    """
    state, names = repair(SMOOTH, BucketState(balance=balance, refilled_at=refilled_at), now)
    if now - refilled_at > YEAR_US:
        return (state.balance, state.refilled_at, names) == (balance, now, ("refilled_at",))
    return (state.balance, state.refilled_at, names) == (balance, refilled_at, ())


def lost_balance_mints_nothing(balance: Garbage, refilled_at: Number, now: int) -> bool:
    """A plain bucket without its balance goes on from 0, refilling from now; a synced one is unknown.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = _stored(balance, refilled_at)
    plain, names = repair(SMOOTH, stored, now)
    synced, _ = repair(SYNCED, stored, now)
    return (
        (plain.balance, plain.refilled_at, plain.carry) == (0, now, 0) and "balance" in names and synced.balance is None
    )


LENGTHS: Final = (
    *(("probe_until", CLAIM_US), ("paused_until", DAY_US), ("due_at", 2 * MAX_HOLD_US)),
    *(("reading_at", 0), ("terms_at", 0), ("server_time_at", 0)),
)
"""Instants, and how far ahead of now each may rightly be."""


def instants_are_never_far_ahead(which: int, stored: Number, now: int, *, synced: bool) -> bool:
    """However far ahead it is stored, an instant lies within its length and the tolerance from now.

    pre: 0 <= which < len(LENGTHS) and 0 <= now <= LATEST
    post: _
    """
    name, length = pick(which, LENGTHS)
    state, _ = repair(SYNCED if synced else SMOOTH, _with(BucketState(balance=0, refilled_at=now), name, stored), now)
    at = getattr(state, name)
    return at is None or 0 <= at <= now + length + TOLERANCE_US


def _with(state: BucketState, name: str, stored: Number) -> BucketState:
    return replace(state, **{name: stored})  # type: ignore[arg-type] # all of these are instants


def holds_are_sound(
    sequence: int, reading_sequence: int, opened: int, tokens: int, expires_at: int, hold_for: int, now: int
) -> bool:
    """However far ahead its end is stored, a synced bucket's hold ends within its lifetime and the tolerance.

    No stored number puts a hold or a reading ahead of the sequence, where later ones would count as older.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(
        balance=0,
        refilled_at=now,
        sequence=sequence,
        reading_sequence=reading_sequence,
        holds={"a": Hold(tokens, opened, expires_at, hold_for)},
        reading_at=now,
    )
    state, _ = repair(SYNCED, stored, now)
    if not 0 <= state.reading_sequence <= state.sequence:
        return False
    return all(
        hold.opened <= state.sequence and hold.expires_at <= now + hold.hold_for + TOLERANCE_US
        for hold in state.holds.values()
    )


def sums_are_what_the_holds_are(held: Number, tokens: int, due_at: Number, now: int) -> bool:
    """Where all holds were read, the stored sum is theirs; none stays unseen for over a second and what clocks differ.

    pre: 0 <= now <= LATEST and 0 <= tokens < LIMIT
    post: _
    """
    hold = Hold(tokens, 1, now + 1, 1)
    stored = BucketState(balance=0, refilled_at=now, sequence=1, held=held, due_at=due_at, holds={"a": hold})
    state, _ = repair(SYNCED, stored, now)
    soon = now + 1 + SWEEP_US + TOLERANCE_US
    return (state.held, state.open) == (tokens, 1) and state.due_at is not None and state.due_at <= soon


def places_are_never_far_ahead(balance: int, last: Number, firm: Number, now: int) -> bool:
    """However far ahead they are stored, places lie within the refill from the balance to full, a period and 5 s.

    pre: 0 <= now <= LATEST and -DEBT < balance <= CAPACITY
    post: _
    """
    stored = BucketState(balance=balance, refilled_at=now, last_place=last, firm_place=firm)
    state, _ = repair(SMOOTH, stored, now)
    furthest = now + ((CAPACITY - min(0, balance)) // RATE + 2) * RATE_PERIOD_US + TOLERANCE_US
    return 0 <= state.last_place <= furthest and 0 <= state.firm_place <= furthest


def sound_places_are_left_alone(balance: int, tokens: int, at: int, now: int) -> bool:
    """The place that a bucket gave is never taken for damage, however much later or on a clock 5 s behind.

    pre: -DEBT < balance < CAPACITY and 0 <= at <= now <= LATEST and 1 <= tokens <= CAPACITY
    pre: now <= at + YEAR_US
    post: _
    """
    given, _ = transition(SMOOTH, plain(SMOOTH, balance, at), at, Acquire(tokens, wait_us=LIMIT - 1))
    for looked in (max(0, at - TOLERANCE_US), now):
        _, names = repair(SMOOTH, given, looked)
        if names:
            return False
    return True


def a_wider_capacity_is_for_a_change(terms_at: Number, wide: Number, now: int) -> bool:
    """No wider capacity without a change of terms, and none out of its range.

    pre: 0 <= now <= LATEST
    post: _
    """
    state, _ = repair(SYNCED, BucketState(balance=0, refilled_at=now, terms_at=terms_at, wide_capacity=wide), now)
    return state.wide_capacity is None or (state.terms_at is not None and 1 <= state.wide_capacity < LIMIT)


def reported_terms_are_sound(refill: Number, period: Number, stretched: Number, reading_at: Number, now: int) -> bool:
    """A stored refill of 0 counts only where a reading brought it; a stored rate is always one that is exact.

    A period that a server's `refillIn` stretched is ten minutes at most, and the refill in effect stays exact.

    pre: 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(
        balance=0,
        refilled_at=now,
        reading_at=reading_at,
        reported_refill=refill,
        reported_period_us=period,
        stretched_us=stretched,
    )
    state, _ = repair(SYNCED, stored, now)
    flow, refill, period = flow_in_effect(state, now), state.reported_refill, state.reported_period_us
    if flow.period_us < 1 or flow.refill * (flow.period_us + 1) >= LIMIT:
        return False
    if state.stretched_us is not None and not 1 <= state.stretched_us <= LONGEST_STRETCH_US:
        return False
    if refill is None or period is None:
        return refill is None and period is None
    return refill * (period + 1) < LIMIT and period >= 1 and (refill > 0 or state.reading_at is not None)
