"""States of a bucket apart from when they are, what can befall them, and what must hold of each and of every step.

Times are kept relative to now and sequence numbers by their order alone, so the states of a tiny bucket are finitely
many: `worlds` visits them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from operator import attrgetter
from typing import Any, Final

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle, Verdict
from keepa_tokens.rules.flow import Flow, flow_in_effect
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.repair import new_state, repair
from keepa_tokens.rules.state import BucketState, Hold
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, MICROSECONDS, TOLERANCE_US, UNLIMITED

SECOND: Final = MICROSECONDS
NOW: Final = 10**6 * SECOND
"""Where every state is moved to: the instant of its last step."""

LONG_AGO: Final = 5400 * SECOND
"""Past ends and readings count as at most this old: nothing asks how much older they are."""

BASE_TIME: Final = 10**5 * SECOND
"""The server's time of the last reading, where only what comes after it counts."""

REFUND: Final = "refund"
"""What is remembered of a refund is left out: each is another one, and none comes twice."""


class Broken(Exception):
    """A step or a state breaks the promise; the message is the counterexample."""


# --- states, apart from when they are


def resting(quota: Quota, state: BucketState, now: int, oldest: int = LONG_AGO, *, terms: bool = False) -> BucketState:
    """Return a state moved from `now` to NOW, with its sequence numbers packed and what decides nothing left out.

    What has flowed in is in the balance: a step that stored nothing leaves the state in which the next one finds it. A
    place that is past by more than one step of the clock back is left out, and the instant of the next sweep where no
    hold is left. terms: keep the terms that the bucket runs on.
    """
    state, by = flowed(quota, state, now), NOW - now

    def moved(at: int | None) -> int | None:
        return None if at is None else max(NOW - oldest, at + by)

    known = {0, state.reading_sequence or 0}
    for hold in state.holds.values():
        known |= {hold.opened, hold.charged}
    known |= {ticket.arrived for ticket in state.line}
    # Without readings and a line it is only ever asked whether a hold was charged.
    in_order = state.reading_at is not None or state.line
    rank = {number: place if in_order else min(1, place) for place, number in enumerate(sorted(known))}
    holds = {
        name: Hold(hold.tokens, rank[hold.opened], hold.expires_at + by, hold.hold_for, rank[hold.charged])
        for name, hold in sorted(state.holds.items())
        if name != REFUND
    }
    instants: dict[str, Any] = {name: moved(getattr(state, name)) for name in INSTANTS}
    instants |= {name: None for name in PLACES if (getattr(state, name) or 0) <= now - LONGEST_BACK}
    if not holds:
        instants["due_at"] = None
    return replace(
        state,
        **instants,
        version=0,
        fast=None,
        carry=state.carry or 0,
        largest_place=state.largest_place if instants["last_place"] is not None else None,
        probe_failures=min(1, state.probe_failures or 0),
        sequence=max(rank.values()),
        reading_sequence=rank[state.reading_sequence or 0],
        holds=holds,
        line=tuple(replace(each, arrived=rank[each.arrived], told_at=each.told_at + by) for each in state.line),
        free=tuple(replace(each, at=each.at + by) for each in state.free),
        quota=state.quota if terms else None,
        drift=None,
    )


def flowed(quota: Quota, state: BucketState, now: int) -> BucketState:
    """Return a state in which the refill until `now` is in the balance, unless something is due before.

    That looking between changes nothing is proved: `refill.smooth_path_does_not_matter` and its twin.
    """
    due = state.wide_capacity is not None or any(hold.due_at <= now for hold in state.holds.values())
    if due or state.balance is None or state.refilled_at is None:
        return state
    flow = flow_of(state.quota or quota, state, now)
    balance, refilled_at, carry = flow.refilled(state.balance, state.refilled_at, state.carry or 0, now)
    return replace(state, balance=balance, refilled_at=refilled_at, carry=carry)


PLACES: Final = "last_place", "firm_place"
INSTANTS: Final = (*(field.name for field in fields(BucketState) if field.name.endswith(("_at", "_until"))), *PLACES)
LONGEST_BACK: Final = 2 * TOLERANCE_US
"""The furthest that a clock steps back in a world with places."""


Key = tuple[object, ...]


def key(state: BucketState) -> Key:
    """Return what tells one state from another."""
    return (*WITHOUT_HOLDS(state), *state.holds.items())


WITHOUT_HOLDS: Final = attrgetter(*(field.name for field in fields(BucketState) if field.name != "holds"))


def held(state: BucketState) -> int:
    """Return what calls in flight have set aside."""
    return sum(hold.tokens for hold in state.holds.values() if hold.in_flight)


def potential(state: BucketState, now: int, flow: Flow, *, synced: bool) -> int:
    """Return what there is to spend, in token microseconds at a flow's rate; an unknown balance counts as 0."""
    running = max(0, now - (state.refilled_at or 0)) * flow.refill if state.balance is not None else 0
    available = (state.balance or 0) - (held(state) if synced else 0) + sum(place.tokens for place in state.free)
    return available * flow.period_us + (state.carry or 0) + running


def flow_of(quota: Quota, state: BucketState, now: int) -> Flow:
    """Return the flow in effect."""
    told = (state.reported_refill, state.reported_capacity, state.stretched_us, state.wide_capacity)
    return flow_alone(quota) if told == (None,) * 4 else flow_in_effect(repair(quota, state, now)[0], now)


@cache
def flow_alone(quota: Quota) -> Flow:
    """Return the flow of terms of which nobody has said anything else."""
    return flow_in_effect(new_state(quota, NOW), NOW)


def gained(before: BucketState, command: Command, outcome: Outcome) -> int:
    """Return the tokens that a step gave away, less those that it got back."""
    match command:
        case Acquire(tokens) if outcome.granted:
            return tokens
        case Reserve(name, tokens) if outcome.granted and name not in before.holds:
            return tokens
        case Settle(name, actual, reading) if outcome.found and name in before.holds:
            tokens = before.holds[name].tokens
            if outcome.reading is Verdict.STALE and reading and _has_time(reading, before):
                return -tokens  # the last reading had the cost: the call belongs to the account before it
            return 0 if actual is None else actual - tokens
        case Cancel(name) if outcome.found and name in before.holds:
            return -before.holds[name].tokens
        case Refund(_, tokens) if outcome.found:
            return -tokens
        case _:
            return 0


def _has_time(reading: Reading, state: BucketState) -> bool:
    return reading.server_time_us is not None and type(state.server_time) is int


# --- faults

# What isn't a whole number is mended as what is missing or out of range (proved in theorems/mending.py), so one stands
# for all; where the far future is in range, it is a fault of its own, but for the next sweep: damage at every step
# would put it off for ever, a second at a time.
LOST_OR_SENSELESS: Final[dict[str, tuple[int | str | None, ...]]] = {
    "balance": (None,),
    "refilled_at": ("x", LIMIT - 1),
    "carry": (LIMIT - 1,),
    "closed_until": (None, LIMIT - 1),
    "held": (None, LIMIT - 1),
    "open": (None,),
    "due_at": (None, 0),
    "last_place": (None, LIMIT - 1),
    "firm_place": (LIMIT - 1,),
    "largest_place": (None,),
    "sequence": (None,),
    "reading_at": (None, LIMIT - 1),
    "reading_sequence": (None, LIMIT // 4),
    "server_time": (None, LIMIT - 1),
    "server_time_at": (None, LIMIT - 1),
    "probe_until": (None, LIMIT - 1),
    "probe_failures": (None, LIMIT - 1),
    "probe_returned": (None, LIMIT - 1),
    "reported_refill": (0,),
    "stretched_us": (LIMIT - 1,),
}


SYNCED_ALONE: Final = frozenset({"reading_sequence", "probe_failures", "reported_refill", "held", "open"})


def faults(quota: Quota, state: BucketState) -> Iterator[tuple[str, BucketState, int]]:
    """Yield what can befall a state, and how many tokens it forgives."""
    for name, values in LOST_OR_SENSELESS.items():
        # Some of a plain bucket's fields are always empty.
        if getattr(state, name) is None and not quota.synced:
            continue
        if name in SYNCED_ALONE and not quota.synced:
            continue
        if name == "closed_until" and quota.recharge_to is None:
            continue
        for value in values:
            forgiven = max(0, -(state.balance or 0)) if name == "balance" else 0
            yield f"{name}={value!r}", replace(state, **{name: value}), forgiven  # type: ignore[arg-type] # garbage
    for name, hold in state.holds.items():
        rest = {other: kept for other, kept in state.holds.items() if other != name}
        # One that was charged, or taken from a plain balance, is given back no longer: nothing is forgiven.
        forgiven = hold.tokens if hold.in_flight and quota.synced else 0
        yield f"hold {name} lost", replace(state, holds=rest), forgiven
        late = {**state.holds, name: replace(hold, expires_at=LIMIT - 1)}
        yield f"hold {name} without end", replace(state, holds=late), 0
        early = {**state.holds, name: replace(hold, opened=LIMIT // 4)}
        yield f"hold {name} out of order", replace(state, holds=early), 0


# --- a step, and what must hold of it


def step(
    quota: Quota, state: BucketState, now: int, command: Command, *, forgiven: int = 0, start: int = NOW
) -> tuple[BucketState, Outcome]:
    """Take one step from a state that rested at `start`, and raise Broken if it breaks safety."""
    after, outcome = transition(quota, state, now, command)
    if after is None:
        raise Broken(f"{command} left nothing")
    if outcome.granted and outcome.reason == "GRANTED" and not outcome.scout and quota.overdraft < UNLIMITED:
        available = (after.balance or 0) - (held(after) if quota.synced else 0)
        if outcome.place_us == 0 and isinstance(command, Acquire | Reserve) and command.tokens and command.keep == 0:
            fresh = not (isinstance(command, Reserve) and command.id in state.holds)
            if fresh and available < -quota.overdraft:
                raise Broken(f"{command} at {now - NOW} from {state} left {available}: below the overdraft")
    if outcome.reading is not Verdict.TAKEN and state.balance is not None and _sound(state.balance):
        flow, synced = flow_of(quota, after, now), quota.synced
        brought = max(0, now - start) * flow.refill + forgiven * flow.period_us
        end = potential(after, now, flow, synced=synced) + gained(state, command, outcome) * flow.period_us
        most = potential(_spendable(state), start, flow, synced=synced) + brought
        if end > most:
            raise Broken(f"{command} at {now - NOW} minted {end - most}: from {state} to {after}")
    return after, outcome


def _sound(balance: object) -> bool:
    return type(balance) is int and abs(balance) < LIMIT


def _spendable(state: BucketState) -> BucketState:
    """Return a damaged state with what its damage can't add to: its remainder and time count for nothing."""
    sound_carry = type(state.carry) is int and 0 <= state.carry < LIMIT - 1
    sound_time = type(state.refilled_at) is int and state.refilled_at >= 0
    return replace(state, carry=state.carry if sound_carry else 0, refilled_at=state.refilled_at if sound_time else NOW)


def check_liveness(quota: Quota, state: BucketState, probe_after_us: int | None, tokens: int) -> int:
    """Raise Broken unless the state keeps the bound that it states for a request; return the steps taken."""
    # A look writes its repairs back, like every command.
    mended, seen = transition(quota, state, NOW, Peek(tokens, 0, probe_after_us))
    bound = math.inf if seen.snapshot is None else seen.snapshot.bound
    if bound == math.inf:
        raise Broken(f"no bound for {tokens}: {state}")
    end = NOW + round(bound * MICROSECONDS)
    ask = Acquire(tokens, probe_after_us=probe_after_us)
    _, outcome = transition(quota, mended, end, ask)
    if not (outcome.granted or outcome.probe):
        raise Broken(f"bound {bound} s not kept for {tokens}: {state}")
    halfway, early = transition(quota, mended, (NOW + end) // 2, ask)
    if not (early.granted or early.probe):
        _, outcome = transition(quota, halfway, end, ask)
        if not (outcome.granted or outcome.probe):
            raise Broken(f"bound {bound} s moved by an attempt for {tokens}: {state}")
    return 3
