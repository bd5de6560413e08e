"""Hypothesis strategies for whole programs: commands and damage on one bucket, up to the limits of the numbers.

Whoever runs one on a storage and on the rules can hold the storage to them, after every act, to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from hypothesis import strategies as st

from checks.models.strategies import (
    DAY,
    EPOCH,
    HOUR,
    MINUTE,
    SECOND,
    TERMS,
    gaps,
    instants,
    issued,
    placed,
    quotas,
    relative_commands,
)
from keepa_tokens.errors import ConfigError
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
)
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import NUMBERS
from keepa_tokens.rules.transition import HALF_LIFE_US
from keepa_tokens.units import (
    CLAIM_US,
    LIMIT,
    MAX_HOLD_US,
    MICROSECONDS,
    REFUND_MEMORY_US,
    REORDER_US,
    TOLERANCE_US,
    UNLIMITED,
)

HOLDS: Final = ("hold:a", "hold:b", "hold:c", "hold:d", "hold:", "hold:é", "hold:hold:a", "hold:a b%41")
OTHERS: Final = ("hold", "Balance", "", "note")
"""Names that are nobody's: left alone."""

GARBAGE: Final = (
    *("", " ", "NaN", "nan", "inf", "-inf", "Infinity", "1e308", "1e3", "0x10", "None", "null", "[]", "{}", "true"),
    *("-0", "00", "007", "-007", "+5", "5.0", "5.", ".5", " 5", "5 ", "5\n", "\n5", "-", "--5", "- 5"),
    *("9" * 15, "9" * 16, "9" * 17, "9" * 400, "-" + "9" * 16, "1" + "0" * 15, "1" + "0" * 16, "0" * 20),
    *("\u0663", "\uff15", "é", "x" * 70),
    *(
        "1 2 3",
        "1 2 3 4 5",
        "1 2 3 4 5 6",
        "1  2 3 4",
        "1 2 3 4 ",
        " 1 2 3 4 5",
        "1 2 3 4 x",
        "0 0 0 0 0",
        "-1 -1 -1 -1 -1",
    ),
)
"""Texts that are no number, or only look like one, or are one where another is meant."""

EDGES: Final = (
    *(-LIMIT - 1, -LIMIT, 1 - LIMIT, -(2**51), -(2**31), -2, -1, 0, 1, 2, 3, 2**31, 2**51 - 1, 2**51, 2**51 + 1),
    *(LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1, 2**53 - 1, 2**53, 2**53 + 1),
)
edges = st.sampled_from(EDGES)


@dataclass(frozen=True)
class Act:
    """One step of a program: damage to the hash, then a command under one of the quotas."""

    now: int
    quota: Quota
    damage: tuple[tuple[str, str | None], ...]
    command: Command


@dataclass(frozen=True)
class Program:
    """What is done to one bucket, in order."""

    acts: tuple[Act, ...]


# Strategies that depend on `now` would be built anew for every step, which costs more than the step: a time is drawn
# as "so long from now" or "at", and put in place afterwards.


@dataclass(frozen=True)
class Time:
    """An instant: `number` microseconds from now, or the instant `number` itself."""

    number: int
    from_now: bool = True

    def at(self, now: int) -> int:
        """Return the instant; it may be out of any range."""
        return now + self.number if self.from_now else self.number


_REFUNDABLE_US: Final = REFUND_MEMORY_US - TOLERANCE_US
BOUNDS: Final = (
    *(0, CLAIM_US, TOLERANCE_US, CLAIM_US + TOLERANCE_US, REORDER_US, HALF_LIFE_US),
    *(_REFUNDABLE_US, REFUND_MEMORY_US, MAX_HOLD_US, MAX_HOLD_US + TOLERANCE_US),
)
"""Durations at which a rule changes its mind; a microsecond less or more is as interesting."""

_bounds = st.builds(int.__add__, st.sampled_from(BOUNDS), st.integers(-1, 1))

times = st.one_of(
    st.builds(Time, st.integers(-HOUR, HOUR)),
    st.builds(Time, _bounds | _bounds.map(int.__neg__)),
    st.builds(Time, st.integers(-2 * TOLERANCE_US, 2 * TOLERANCE_US)),
    st.builds(Time, st.integers(0, LIMIT) | edges, from_now=st.just(value=False)),
)


# --- damage: a text for a field, or None to delete it


@dataclass(frozen=True)
class Damage:
    """What a field is set to: a text, None (deleted), or numbers and times in a row."""

    name: str
    text: str | tuple[Time | int, ...] | None

    def at(self, now: int) -> tuple[str, str | None]:
        """Return the name and the text."""
        if not isinstance(self.text, tuple):
            return self.name, self.text
        return self.name, " ".join(str(part.at(now) if isinstance(part, Time) else part) for part in self.text)


_hold_texts = st.tuples(
    st.one_of(st.integers(0, 50), st.integers(0, 50), edges),
    st.one_of(st.integers(0, 20), st.integers(0, 20), edges),
    times,
    st.one_of(st.integers(1, 5 * MINUTE), st.integers(1, MAX_HOLD_US + 1), edges),
    st.one_of(st.just(0), st.integers(0, 20), edges),
)
_numbers = st.one_of(st.integers(-100, 100), times, edges).map(lambda number: (number,))


def damages_of(holds: tuple[str, ...], garbage: tuple[str, ...]) -> st.SearchStrategy[Damage]:
    """Draw damage to any field: numbers about its limits, times, nothing, and these texts; to these holds too."""
    texts = st.sampled_from(garbage)
    return st.one_of(
        st.builds(
            Damage, st.sampled_from((*NUMBERS, *TERMS, *OTHERS)), st.one_of(_numbers, _numbers, texts, st.none())
        ),
        st.builds(Damage, st.sampled_from(holds), st.one_of(_hold_texts, _hold_texts, texts)),
    )


damages = damages_of(HOLDS, GARBAGE)


# --- quotas and commands, up to the limits

_large = st.one_of(st.sampled_from([1, 2, 2**31, 2**51, LIMIT - 2, LIMIT - 1]), st.integers(1, LIMIT - 1))


def _extreme_quota(
    capacity: int,
    refill: int,
    period_us: int,
    *,
    stepped: bool,
    synced: bool,
    overdraft: int,
    recharge_to: int | None,
    initial: int | None,
) -> Quota:
    if initial is not None:
        initial = min(initial, capacity)
    for tried in (refill, refill % max(1, (LIMIT - 1) // (period_us + 1)), 0):
        try:
            return Quota(
                capacity,
                tried,
                period_us / MICROSECONDS,
                stepped=stepped,
                synced=synced,
                overdraft=overdraft,
                recharge_to=recharge_to,
                initial=initial,
            )
        except ConfigError:
            continue
    raise AssertionError(refill, period_us)


extreme_quotas = st.builds(
    _extreme_quota,
    _large,
    st.one_of(st.sampled_from([0, 1, 2**25, 2**26 + 1, 2**50, 2**51]), st.integers(0, LIMIT - 1)),
    st.one_of(st.sampled_from([1, 2, 3, 2**25, 2**26, 10**15]), st.integers(1, LIMIT // 4)),
    stepped=st.booleans(),
    synced=st.booleans(),
    overdraft=st.one_of(st.sampled_from([0, 1, LIMIT - 1, UNLIMITED]), st.integers(0, UNLIMITED)),
    recharge_to=st.none() | _large,
    initial=st.none() | st.sampled_from([1 - LIMIT, -1, 0, 1, LIMIT - 1]),
)

_durations = st.one_of(st.none(), st.sampled_from([0.0, 1e-6, 60.5, 1e6, 4.5e9]), st.floats(0, 4.5e9))
_extreme_readings = st.builds(
    Reading,
    st.sampled_from([1 - LIMIT, -(2**51), -1, 0, 1, 2**51, LIMIT - 1]),
    next_refill_in=_durations,
    refill=st.none() | st.sampled_from([0, 1e-7, 1e-6, 0.3, 1 / 3, 1, 5, 1e6, 2**30, 4.5e9]),
    capacity=st.none() | st.sampled_from([1, 2**51, LIMIT - 1]),
    server_time=_durations,
)

_other_ids = st.sampled_from(["a", "b", "c", "", "é", "a b%41"])
_tokens = st.sampled_from([0, 1, 2, 2**31, 2**51, LIMIT - 2, LIMIT - 1])
_keeps = st.just(0) | _tokens
_waits = st.none() | st.sampled_from([-1, 0, 1, HOUR, LIMIT - 1, LIMIT])
_afters = st.none() | st.sampled_from([0, 1, MINUTE, 2**51, LIMIT - 1])

extreme_commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Acquire, _tokens, _keeps, _waits, _afters),
    st.builds(Reserve, _other_ids, _tokens, st.sampled_from([1, MINUTE, MAX_HOLD_US]), _keeps, _waits, _afters),
    st.builds(Settle, _other_ids, st.none() | _tokens, st.none() | _extreme_readings, st.booleans()),
    st.builds(Cancel, _other_ids),
    st.builds(Refund, _other_ids, _tokens, issued | st.sampled_from([-LIMIT, LIMIT])),
    st.builds(Reconcile, _extreme_readings),
    st.just(ClaimProbe()),
    st.builds(Peek, _tokens, _keeps, _afters),
)


# --- the same in coarse numbers, so that times and balances often meet exactly

_few = st.integers(0, 4)
_seconds = st.sampled_from([0, 1, 1, 2, 3, 5, 20, 60, 120, 121, 600]).map(lambda number: number * MICROSECONDS)
_coarse_ids = st.sampled_from(["a", "b"])
_coarse_readings = st.builds(
    Reading,
    st.integers(-2, 5),
    next_refill_in=st.none() | st.integers(0, 2),
    refill=st.none() | st.integers(0, 2),
    server_time=st.none() | st.integers(1, 3),
)
_coarse_afters = st.sampled_from([None, 0, MICROSECONDS, 2 * MICROSECONDS])


def _coarse_quotas(*, synced: bool) -> st.SearchStrategy[Quota]:
    return st.builds(
        Quota,
        st.integers(1, 5),
        st.integers(0, 3),
        st.sampled_from([1.0, 2.0]),
        stepped=st.booleans(),
        overdraft=st.sampled_from([0, 0, 2]),
        recharge_to=st.sampled_from([None, None, 3]),
        initial=st.sampled_from([None, None, 0, 1]),
        synced=st.just(synced),
    )


coarse_commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Acquire, _few, st.sampled_from([0, 0, 1]), st.none() | _seconds, _coarse_afters),
    *[
        st.builds(
            Reserve,
            _coarse_ids,
            _few,
            _seconds.filter(bool),
            st.just(0),
            st.none() | _seconds,
            _coarse_afters,
            st.booleans(),
        )
    ]
    * 3,
    *[st.builds(Settle, _coarse_ids, st.none() | _few, st.none() | _coarse_readings, st.booleans())] * 3,
    st.builds(Cancel, _coarse_ids),
    st.builds(
        Refund,
        st.sampled_from(["a", "r"]),
        _few,
        st.sampled_from([0, 1 - _REFUNDABLE_US, -_REFUNDABLE_US, TOLERANCE_US]),
    ),
    *[st.builds(Reconcile, _coarse_readings)] * 2,
    st.just(ClaimProbe()),
    st.builds(Peek, _few, _few, _coarse_afters),
)


# --- programs

_Draft = tuple[Time, int, list[Damage], Command]

_forward = st.builds(Time, st.one_of(st.just(0), gaps, gaps, _bounds.filter(lambda gap: gap >= 0)))
_moves = st.one_of(*[_forward] * 9, times)


_ROOT: Final = 2**26
"""Its square is the limit."""

_products = st.tuples(st.integers(_ROOT - 2, _ROOT + 1), st.integers(_ROOT - 2, _ROOT + 1))
_pairs = st.one_of(
    st.tuples(st.just("reported_refill"), st.just("reported_period_us"), _products),
    st.tuples(st.just("refill"), st.just("period_us"), _products),
    st.tuples(st.just("capacity"), st.just("initial"), st.tuples(st.integers(9, 11), st.integers(9, 11))),
).map(lambda pair: [Damage(pair[0], (pair[2][0],)), Damage(pair[1], (pair[2][1],))])
"""Two fields that are sound or not only together, about the limit."""

_Faults = st.SearchStrategy[list[Damage]]
_no_faults: _Faults = st.builds(list[Damage])


def _program(quotas_of_it: list[Quota], start: int, drafts: list[_Draft]) -> Program:
    now = start
    acts: list[Act] = []
    for move, which, faults, command in drafts:
        quota = quotas_of_it[which % len(quotas_of_it)]
        acts.append(Act(now, quota, tuple(fault.at(now) for fault in faults), placed(command, now)))
        now = max(0, min(LIMIT - 1, move.at(now)))
    return Program(tuple(acts))


def _programs(
    kinds: st.SearchStrategy[Quota],
    starts: st.SearchStrategy[int],
    commands: st.SearchStrategy[Command],
    faults: _Faults,
    moves: st.SearchStrategy[Time] = _moves,
) -> st.SearchStrategy[Program]:
    act = st.tuples(moves, st.integers(0, 1), faults, commands)
    return st.builds(_program, st.lists(kinds, min_size=1, max_size=2), starts, st.lists(act, min_size=1, max_size=20))


_limits = st.sampled_from([0, EPOCH, LIMIT - 1 - DAY, LIMIT - 1])


def programs(damage: st.SearchStrategy[Damage] | None = damages) -> st.SearchStrategy[Program]:
    """Draw up to twenty acts on one bucket under one or two quotas: in coarse numbers, in any, at the limits.

    damage: what may befall the stored fields in two of five programs; None: nothing.
    """
    faults = _no_faults if damage is None else st.one_of(_no_faults, st.lists(damage, max_size=4), _pairs)
    return st.one_of(
        *[
            _programs(
                _coarse_quotas(synced=synced), st.just(EPOCH), coarse_commands, _no_faults, st.builds(Time, _seconds)
            )
            for synced in (False, True)
        ],
        _programs(quotas(), instants, relative_commands, _no_faults),
        _programs(quotas(), instants, relative_commands, faults),
        _programs(extreme_quotas | quotas(), instants | _limits, relative_commands | extreme_commands, faults),
    )


# --- stories: programs told by hand


def _story(quota: Quota, *told: tuple[float, Command], then: Quota | None = None) -> Program:
    """Return the program of commands at so many seconds from its start; the last one under another quota, if given."""
    acts = [Act(EPOCH + round(at * SECOND), quota, (), placed(command, EPOCH)) for at, command in told]
    if then is not None:
        acts[-1] = replace(acts[-1], quota=then)
    return Program(tuple(acts))


_UNEVEN: Final = Quota(10, 3, 7.0)
_SERVED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
_OVERDRAWN: Final = replace(_SERVED, overdraft=UNLIMITED)
_ASK: Final = Acquire(400, probe_after_us=SECOND)
"""What a synced bucket refuses, and what claims the probe early."""

STORIES: Final = {
    "parts of a token": _story(_UNEVEN, (0, Acquire(10)), (1, Acquire(0)), (2, Acquire(0)), (2.4, Acquire(1))),
    "parts of a token at another rate": _story(
        _UNEVEN, (0, Acquire(10)), (2, Acquire(0)), (2.4, Acquire(1)), then=Quota(10, 6, 7.0)
    ),
    "a token short of full": _story(_UNEVEN, (0, Acquire(10)), (21, Acquire(0)), (24, Acquire(0))),
    "a bucket that begins empty": _story(Quota(10, 1, 1.0, initial=0), (0, Acquire(1)), (1, Acquire(1))),
    "recharge": _story(
        Quota(10, 1, 1.0, recharge_to=8), (0, Acquire(10)), (0, Acquire(1)), (3, Acquire(1)), (8, Acquire(1))
    ),
    "a hold runs out and is settled late": _story(
        _UNEVEN, (0, Reserve("a", 6, 5 * SECOND)), (5, Acquire(0)), (9, Settle("a", 2)), (9, Settle("a", 2))
    ),
    "a hold runs out and is forgotten": _story(
        _UNEVEN, (0, Reserve("a", 6, 5 * SECOND)), (5, Acquire(0)), (10, Settle("a", 2))
    ),
    "a call after a reading": _story(
        _SERVED,
        *((0, Reconcile(Reading(50))), (1, Reserve("a", 6, MINUTE)), (2, Settle("a", 6, Reading(44)))),
        *((3, Reserve("b", 6, MINUTE)), (4, Reconcile(Reading(30))), (5, Settle("b", 6, Reading(99)))),
    ),
    "a charge before a reading and one after it": _story(
        _SERVED,
        *((0, Reconcile(Reading(50))), (1, Reserve("a", 6, 2 * SECOND)), (2, Reserve("b", 7, 2 * SECOND))),
        *((3, Reconcile(Reading(40))), (4, Acquire(0)), (4, Settle("a", 0)), (4.5, Settle("b", 0))),
    ),
    "readings by the server's time": _story(
        _SERVED,
        *((0, Reconcile(Reading(50, server_time=100))), (1, Reconcile(Reading(60, server_time=99)))),
        *((2, Reconcile(Reading(70, server_time=101, refill=20, capacity=1200, next_refill_in=7.5))), (30, Peek())),
        (200, Reconcile(Reading(80, server_time=98))),
    ),
    "somebody else spends": _story(
        _SERVED,
        *((0, Reconcile(Reading(200))), (1, Reconcile(Reading(150))), (2, Acquire(1)), (3, Reconcile(Reading(149)))),
        *((3_602, Reconcile(Reading(300))), (3_603, Peek())),
    ),
    "somebody else spends twice, and a request for all there can be": _story(
        _SERVED,
        *((0, Reconcile(Reading(200))), (1, Reconcile(Reading(150))), (2, Reconcile(Reading(130)))),
        *((3, Acquire(300)), (4, Peek(300))),
    ),
    "somebody else spends beside a call": _story(
        _SERVED,
        *((0, Reconcile(Reading(200))), (1, Reserve("a", 10, MINUTE)), (2, Settle("a", 10, Reading(150))), (3, Peek())),
    ),
    "a call that is cancelled late": _story(
        _UNEVEN, (0, Reserve("a", 6, 5 * SECOND)), (5, Acquire(0)), (7, Cancel("a")), (7, Peek())
    ),
    "a scout's hold that ends with its claim": _story(
        _SERVED, (0, Reserve("a", 6, 20 * SECOND, scout=True)), (1, Peek()), (21, Peek())
    ),
    "what is lacking only for keep begins no recharge": _story(
        Quota(10, 1, 1.0, recharge_to=8), (0, Acquire(5)), (0, Acquire(1, keep=5)), (0, Acquire(1))
    ),
    "a place exactly as far ahead as its caller waits": _story(
        Quota(10, 1, 1.0), (0, Acquire(10)), (0, Acquire(3, wait_us=3 * SECOND)), (0, Acquire(1, wait_us=3 * SECOND))
    ),
    "a hold that begins at its place": _story(
        Quota(10, 1, 1.0), (0, Acquire(10)), (0, Reserve("a", 3, 2 * SECOND, wait_us=10 * SECOND)), (4, Peek())
    ),
    "no places beside a recharge": _story(
        Quota(10, 1, 1.0, recharge_to=2), (0, Acquire(7)), (0, Acquire(5, wait_us=10 * SECOND))
    ),
    "a call that overdraws beside another": _story(
        _OVERDRAWN,
        *((0, Reconcile(Reading(4))), (1, Reserve("a", 2, MINUTE)), (2, Reserve("b", 16, MINUTE)), (3, Peek(16))),
        *((4, Settle("a", 2, Reading(2))), (5, Reserve("b", 16, MINUTE))),
    ),
    "a call that overdraws beside another, on a plain bucket": _story(
        Quota(10, 1, 1.0, overdraft=5), (0, Reserve("a", 8, MINUTE)), (0, Reserve("b", 6, MINUTE)), (1, Peek(6))
    ),
    "a call that overdraws beside one that costs nothing": _story(
        _OVERDRAWN,
        *((0, Reconcile(Reading(-1))), (1, Reserve("a", 0, 10 * MINUTE)), (2, Reserve("b", 16, MINUTE)), (3, Peek(16))),
    ),
    "no places beside a server": _story(_SERVED, (0, Reconcile(Reading(4))), (1, Acquire(9, wait_us=10 * MINUTE))),
    "an older reading two minutes after the last": _story(
        _SERVED,
        *((0, Reconcile(Reading(50, server_time=100))), (120, Reconcile(Reading(60, server_time=99)))),
        (120.000001, Reconcile(Reading(60, server_time=99))),
    ),
    "answers that a newer reading had counted": _story(
        _SERVED,
        *((0, Reconcile(Reading(50, server_time=100))), (1, Reserve("a", 6, MINUTE)), (1, Reserve("b", 7, MINUTE))),
        *((2, Reconcile(Reading(30, server_time=102))), (3, Settle("a", 6, Reading(44, server_time=101)))),
        (4, Settle("b", 7, Reading(37, server_time=102))),
    ),
    "a refusal that comes after a reading": _story(
        _SERVED,
        *((0, Reconcile(Reading(50))), (1, Reserve("a", 6, MINUTE)), (2, Reconcile(Reading(40)))),
        *((3, Reserve("b", 6, MINUTE)), (4, Settle("a", 0, refused=True)), (5, Settle("b", 0, refused=True))),
    ),
    "a reading in the middle of a token": _story(
        replace(_SERVED, stepped=False), (0, Reconcile(Reading(50))), (1, Acquire(0)), (2, Reconcile(Reading(40)))
    ),
    "a reading that ends a recharge": _story(
        replace(_SERVED, recharge_to=40), (0, Reconcile(Reading(2))), (1, Acquire(9)), (2, Reconcile(Reading(90)))
    ),
    "a refill too large to be exact": _story(
        _SERVED, (0, Reconcile(Reading(50, refill=1e8))), (60, Acquire(0)), (61, Reconcile(Reading(50, refill=1e7)))
    ),
    "a slower refill": _story(
        Quota(300, 20, 60.0, synced=True),
        *((0, Reconcile(Reading(-5, refill=0.25, period=60.5))), (300, Acquire(1)), (1500, Acquire(1))),
    ),
    "a claim taken just when the last one ends": _story(_SERVED, (0, ClaimProbe()), (20, ClaimProbe())),
    "probes that fail, asked for every two hours": _story(
        _SERVED,
        *((at, Acquire(400, probe_after_us=2 * HOUR)) for at in (7_200, 7_221, 10_900, 14_500)),
    ),
    "probes that fail": _story(
        _SERVED,
        *((0, Reconcile(Reading(50, server_time=100))), (1, _ASK), (2, _ASK), (21, _ASK), (22, _ASK), (23, _ASK)),
        *((44, _ASK), (45, _ASK), (46, _ASK), (47, ClaimProbe()), (70, ClaimProbe()), (80, _ASK)),
    ),
}
"""Programs in which every field of a state matters to some outcome."""


def is_ours(name: str) -> bool:
    """Whether a field is one that a state has."""
    return name in NUMBERS or name in TERMS or name.startswith("hold:")
