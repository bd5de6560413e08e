"""Hypothesis strategies for whoever tests with buckets: quotas, instants, readings, commands, sound and damaged states.

Instants and durations are whole microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from keepa_tokens.rules.flow import has_places
from keepa_tokens.rules.free_places import FreePlace
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import NUMBERS, BucketState, Hold
from keepa_tokens.units import LIMIT, MICROSECONDS, TOLERANCE_US, UNLIMITED

SECOND: Final = MICROSECONDS
MINUTE: Final = 60 * SECOND
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
EPOCH: Final = 1_780_000_000 * SECOND
"""An instant of the wall clock."""

IDS: Final = ("a", "b", "c", "d")


# --- numbers, instants, durations

instants = st.one_of(
    st.integers(0, 10), st.integers(0, DAY), st.integers(EPOCH, EPOCH + DAY), st.integers(0, LIMIT // 2)
)
gaps = st.one_of(st.integers(0, 3), st.integers(0, 2 * SECOND), st.integers(0, 5 * MINUTE), st.integers(0, 3 * HOUR))
"""Microseconds from one step to the next."""

steps_back = st.one_of(st.integers(1, TOLERANCE_US), st.integers(1, DAY))
"""How far a clock jumps backwards."""

periods_us = st.one_of(
    st.sampled_from([1, 7, 1000, SECOND, MINUTE, 60_500_000, HOUR]), st.integers(1, 100), st.integers(1, 2 * MINUTE)
)


# --- quotas


def quotas(
    *,
    synced: bool | None = None,
    stepped: bool | None = None,
    recharge: bool | None = None,
    least_refill: int = 0,
    overdrafts: st.SearchStrategy[int] | None = None,
    capacities: st.SearchStrategy[int] | None = None,
) -> st.SearchStrategy[Quota]:
    """Draw a quota; None: either way."""
    either = st.booleans()
    targets = st.one_of(st.integers(1, 20), st.integers(1, 3000))
    return st.builds(
        Quota,
        st.one_of(st.integers(1, 12), st.integers(1, 5000)) if capacities is None else capacities,
        st.one_of(st.integers(least_refill, 7), st.integers(least_refill, 600)),
        periods_us.map(lambda period_us: period_us / MICROSECONDS),
        stepped=either if stepped is None else st.just(stepped),
        synced=either if synced is None else st.just(synced),
        overdraft=st.sampled_from([0, 0, 3, 50, UNLIMITED]) if overdrafts is None else overdrafts,
        recharge_to=st.none() if recharge is False else targets if recharge else st.none() | targets,
    )


def affordable(quota: Quota) -> st.SearchStrategy[int]:
    """Draw a cost that a full bucket admits beside keep 0."""
    most = min(quota.capacity + quota.overdraft, quota.capacity + 100)
    return st.one_of(st.integers(1, min(most, 5)), st.integers(1, most))


@st.composite
def requests(draw: st.DrawFn, quota: Quota) -> tuple[int, int]:
    """Draw tokens and keep that a full bucket admits together."""
    tokens = draw(affordable(quota))
    room = quota.capacity - max(1, tokens - quota.overdraft)
    keep = draw(st.one_of(st.just(0), st.integers(0, room)))
    return tokens, keep


# --- readings and commands

readings = st.builds(
    Reading,
    st.one_of(st.integers(-50, 60), st.integers(-5000, 5000)),
    next_refill_in=st.none() | st.floats(0, 120),
    refill=st.none() | st.sampled_from([0, 0.25, 1, 5, 20, 59.5]),
    period=st.none() | st.sampled_from([1.0, 60.0, 60.5]),
    capacity=st.none() | st.integers(1, 3000),
    server_time=st.none() | st.integers(1, 40).map(lambda n: 1_780_000_000 + n / 2),
)
"""What servers say, the net refill of 0 included."""

ids: st.SearchStrategy[str] = st.sampled_from(IDS)
costs = st.one_of(st.integers(0, 6), st.integers(0, 400))
keeps = st.one_of(st.just(0), st.integers(0, 20))
hold_lives = st.one_of(st.integers(1, 10), st.integers(1, 3 * MINUTE), st.integers(1, HOUR))
probe_afters = st.none() | st.sampled_from([1, SECOND, 10 * MINUTE])

tickets: st.SearchStrategy[str | None] = st.none() | st.sampled_from(("a", "u", "v", "w"))
"""By which names callers stand in line; a call of the same name may be in flight."""

takes = st.builds(Acquire, costs, keeps, st.none(), probe_afters, tickets)
reserves = st.builds(
    Reserve, ids, costs, hold_lives, keeps, probe_afters, label=st.sampled_from(["", "a task"]), ticket=tickets
)
settles = st.builds(Settle, ids, st.none() | costs, st.none() | readings, st.booleans())
cancels = st.builds(Cancel, ids | st.sampled_from(("u", "v", "w")))
owns = st.none() | st.integers(-MINUTE, HOUR)
"""The instant of a refund's own place, counted from now; `placed` puts it in its place."""

relative_commands: st.SearchStrategy[Command] = st.one_of(
    takes,
    st.builds(Acquire, costs, st.just(0), st.integers(0, HOUR), ticket=tickets),
    reserves,
    st.builds(
        Reserve,
        *(ids, costs, hold_lives, st.just(0)),
        scout=st.booleans(),
        ticket=tickets,
        arrived=st.none() | st.integers(0, 60),
    ),
    settles,
    cancels,
    st.builds(Refund, ids, costs, owns),
    st.builds(Reconcile, readings),
    st.just(ClaimProbe()),
    st.builds(Unclaim, st.integers(0, 20 * SECOND)),
    st.builds(Pause, st.sampled_from([0, SECOND, MINUTE])),
    st.builds(Peek, costs, keeps),
)
"""Any command, to be placed."""


def placed(command: Command, now: int) -> Command:
    """Return a command as it comes at `now`."""
    if isinstance(command, Unclaim):
        return Unclaim(min(LIMIT - 1, now + command.until_us))
    if not isinstance(command, Refund) or command.own_us is None:
        return command
    return replace(command, own_us=max(0, min(LIMIT - 1, now + command.own_us)))


def commands(now: int) -> st.SearchStrategy[Command]:
    """Draw any command, as it may come at `now`."""
    return relative_commands.map(lambda command: placed(command, now))


# --- states


def holds_near(now: int) -> st.SearchStrategy[Hold]:
    """Draw a hold as it may be stored about `now`: in flight, or run out and remembered."""
    return st.builds(
        Hold,
        st.integers(0, 300),
        st.integers(0, 50),
        st.integers(max(0, now - HOUR), now + HOUR),
        st.integers(1, HOUR),
        st.one_of(st.just(0), st.integers(0, 50)),
    )


@st.composite
def lines_near(draw: st.DrawFn, now: int) -> tuple[Ticket, ...]:
    """Draw who stands in line about `now`: in time, late, or lapsed."""
    told = st.integers(max(0, now - 2 * MINUTE), now + HOUR)
    names = draw(st.lists(st.sampled_from(("a", "u", "v", "w")), max_size=3, unique=True))
    return tuple(Ticket(name, draw(costs), draw(keeps), number, draw(told)) for number, name in enumerate(names, 51))


def free_near(quota: Quota, now: int) -> st.SearchStrategy[tuple[FreePlace, ...]]:
    """Draw places after `now` that nobody waits for."""
    tokens = st.integers(1, quota.capacity + quota.overdraft)
    places = st.builds(FreePlace, st.integers(now, now + quota.period_us), tokens)
    return st.lists(places, max_size=3).map(lambda some: tuple(sorted(some)))


@st.composite
def sound_states(draw: st.DrawFn, quota: Quota, now: int, *, debts: int = 10**6) -> BucketState:
    """Draw a state that may rightly be stored about `now`, reached or not."""
    past = st.one_of(st.integers(max(0, now - 3 * HOUR), now), st.integers(0, now))
    balance = st.one_of(st.integers(-20, 20), st.integers(-debts, quota.capacity + 100))
    period = quota.period_us if quota.stepped else quota.rate_period_us
    synced = quota.synced
    reading_at = draw(st.none() | past) if synced else None
    reported = draw(st.none() | st.sampled_from([0, 1, 5, 20])) if synced and reading_at is not None else None
    return summed(
        quota,
        BucketState(
            balance=draw(st.none() | balance) if synced and reading_at is None else draw(balance),
            refilled_at=draw(st.one_of(past, st.integers(now, now + TOLERANCE_US))),
            carry=0 if quota.stepped else draw(st.integers(0, period - 1)),
            closed_until=draw(st.none() | st.integers(now, now + HOUR)) if quota.recharge_to is not None else None,
            sequence=draw(st.integers(54, 60)),
            holds=draw(st.dictionaries(ids, holds_near(now), max_size=3)),
            quota=quota,
            reading_at=reading_at,
            reading_sequence=draw(st.integers(0, 50)),
            server_time=draw(st.none() | st.integers(EPOCH, EPOCH + MINUTE)) if reading_at is not None else None,
            kept_back=draw(st.none() | st.integers(0, 400)) if synced else None,
            kept_back_at=draw(st.none() | st.integers(max(0, now - 3 * HOUR), now)) if synced else None,
            probe_until=draw(st.none() | st.integers(max(0, now - HOUR), now + 20 * SECOND)) if synced else None,
            probe_failures=draw(st.integers(0, 5)) if synced else 0,
            reported_refill=reported,
            reported_period_us=None if reported is None else draw(st.sampled_from([SECOND, MINUTE, 60_500_000])),
            reported_capacity=draw(st.none() | st.integers(1, 3000)) if synced else None,
            paused_until=draw(st.none() | st.none() | st.integers(now, now + HOUR)),
            terms_at=draw(st.none() | st.integers(max(0, now - 3 * MINUTE), now)),
            last_place=draw(st.none() | st.integers(now, now + HOUR)) if not synced else None,
            line=draw(st.just(()) | lines_near(now)),
            free=draw(st.just(()) | free_near(quota, now)) if has_places(quota) else (),
        ),
    )


def summed(quota: Quota, state: BucketState) -> BucketState:
    """Return `state` with the sums that its holds come to, as they are stored."""
    flying = [hold for hold in state.holds.values() if hold.in_flight]
    held, number = sum(hold.tokens for hold in flying), len(flying)
    due_at = min((hold.due_at for hold in state.holds.values()), default=None)
    if not quota.synced:
        return replace(state, held=held or None, open=number or None, due_at=due_at)
    return replace(state, held=held, open=number, due_at=due_at)


COUNTS: Final = ("carry", "held", "open", "version", "probe_failures", "stretched_us", "wide_capacity")

NONSENSE: Final[tuple[object, ...]] = (
    *(None, math.nan, math.inf, -math.inf, "", "7", "x" * 50, b"7", 1.5, -1.0, True, [], [1], {}, (), object()),
    *(-1, LIMIT, LIMIT + 1, -LIMIT, 10**30, -(10**30)),
)
"""No stored number: wrong types, and whole numbers out of any range."""


def with_fields(state: BucketState, others: Mapping[str, Any]) -> BucketState:
    """Return `state` with other fields, of whatever type."""
    return replace(state, **others)


@st.composite
def damaged_states(draw: st.DrawFn, quota: Quota, now: int) -> BucketState:
    """Draw a state of which any fields are missing, garbled, of the wrong type, or far off in time."""
    state = draw(sound_states(quota, now))
    far = st.one_of(
        st.integers(0, 100),
        st.integers(max(0, now - 2 * TOLERANCE_US), now + 2 * TOLERANCE_US),
        st.integers(0, LIMIT - 1),
        st.just(LIMIT - 1),
    )
    nonsense = st.sampled_from(NONSENSE)
    spoilt: dict[str, Any] = draw(st.dictionaries(st.sampled_from(NUMBERS), nonsense))
    instants_stored = tuple(name for name in NUMBERS if name.endswith(("_at", "_until", "_place")))
    for name in draw(st.sets(st.sampled_from(instants_stored))):
        spoilt[name] = draw(far)
    for name in draw(st.sets(st.sampled_from(COUNTS))):
        spoilt[name] = draw(far)
    if draw(st.booleans()):
        spoilt["holds"] = draw(st.dictionaries(ids, damaged_holds(now) | nonsense, max_size=3))
    numbers = st.integers(0, LIMIT - 1)
    spoilt["line"] = draw(
        st.just(state.line)
        | st.lists(st.builds(Ticket, ids, costs | numbers, keeps | numbers, numbers, far), max_size=3).map(tuple)
    )
    spoilt["free"] = draw(
        nonsense | st.just(state.free) | st.lists(st.builds(FreePlace, far, numbers), max_size=3).map(tuple)
    )
    return with_fields(state, spoilt)


@st.composite
def damaged_holds(draw: st.DrawFn, now: int) -> Hold:
    """Draw a hold of which some numbers are nonsense, or which ends far off."""
    hold = draw(holds_near(now))
    spoilt: dict[str, Any] = draw(
        st.dictionaries(
            st.sampled_from(("tokens", "opened", "expires_at", "hold_for", "charged")),
            st.sampled_from(NONSENSE),
            max_size=2,
        )
    )
    if draw(st.booleans()):
        spoilt["expires_at"] = draw(st.integers(0, LIMIT - 1))
    return replace(hold, **spoilt)
