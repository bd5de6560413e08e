"""Programs of commands and damage on one hash, as Hypothesis draws them: what only Redis can hold included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from hypothesis import strategies as st

from checks.models.strategies import EPOCH, HOUR, IDS, MINUTE, SECOND, readings
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
from keepa_tokens.rules.free_places import FreePlace
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.state import FAST, FIELDS, FREE, LINE, NUMBERS, QUOTA, FastTerms, Hold, hold_text, quota_text
from keepa_tokens.units import CLAIM_US, DAY_US, LIMIT, MINUTE_US, REFUND_MEMORY_US, TOLERANCE_US, UNLIMITED, YEAR_US

GARBAGE: Final = (
    *("", " ", "NaN", "nan", "inf", "-inf", "1e308", "1e3", "0x10", "None", "null", "[]", "true"),
    *("-0", "00", "007", "-007", "+5", "5.0", "5.", ".5", " 5", "5 ", "5\n", "\n5", "-", "--5", "- 5"),
    *("9" * 15, "9" * 16, "9" * 17, "9" * 400, "-" + "9" * 16, "1" + "0" * 15, "1" + "0" * 16, "0" * 20),
    *("\u0663", "\uff15", "é", "x" * 70, "1 2 3", "1 2 3 4 5", "1 2 3 4 0", "1 2 3 4 0 a%20b", "1 2 3 4 0x"),
    *("1  2 3 4", "1 2 3 4 5 ", " 1 2 3 4 5", "1 2 3 4 x", "0 0 0 0 0", "-1 -1 -1 -1 -1"),
    *("\udcff\udc80", "\udc80", "5\udcff", "5\0", "5\0005"),
)
"""Texts that are no number, or only look like one; bytes that are no UTF-8 (as lone surrogates), and NUL."""

EDGES: Final = (
    *(-LIMIT - 1, -LIMIT, 1 - LIMIT, -(2**51), -2, -1, 0, 1, 2, 3, 2**31, 2**51 - 1, 2**51, 2**51 + 1),
    *(LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1, 2**53 - 1, 2**53, 2**53 + 1),
)

SPANS: Final = (
    *(0, CLAIM_US, TOLERANCE_US, MINUTE_US, REFUND_MEMORY_US, DAY_US, 2 * DAY_US, YEAR_US),
    DAY_US + TOLERANCE_US,
)
"""Durations at which somebody changes his mind; a microsecond less or more is as interesting."""

QUOTAS: Final = (
    Quota(10, 1, 1.0),
    Quota(10, 3, 7.0),
    Quota(12, 5, 60.0, stepped=True),
    Quota(10, 0, 1.0),
    Quota(8, 2, 0.000007, overdraft=3),
    Quota(20, 7, 60.5, overdraft=UNLIMITED),
    Quota(2**51, 2**20, 0.5, overdraft=UNLIMITED),
    Quota(5, 2**31, 0.001),
    Quota(10, 3, 7.0, initial=-4),
    Quota(10, 3, 7.0, stepped=True, recharge_to=8),
    Quota(30, 5, 2.0, recharge_to=40),
    Quota(20, 5, 60.5, stepped=True, synced=True, overdraft=UNLIMITED),
    Quota(300, 5, 60.0, synced=True, overdraft=20),
    Quota(40, 5, 60.0, synced=True, initial=30, recharge_to=10),
)


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


HOLDS: Final = ("hold:a", "hold:b", "hold:c", "hold:d", "hold:", "hold:é", "hold:hold:a", "hold:a b%41", "hold:\udcff")
OTHERS: Final = ("hold", "Balance", "", "note")
"""Names that are nobody's: left alone."""

_ids = st.sampled_from([*("a", "b") * 6, *IDS, "é", "a b%41", "hold:a"])
_edges = st.sampled_from(EDGES)
_tokens = st.one_of(st.integers(0, 6), st.integers(0, 6), st.integers(0, 400), st.sampled_from([2**51, LIMIT - 1]))
_keeps = st.one_of(st.just(0), st.just(0), st.integers(0, 20))
_waits = st.one_of(st.none(), st.integers(-1, MINUTE), st.sampled_from([HOUR, LIMIT, LIMIT + 5]))
_lives = st.one_of(st.integers(1, 10), st.integers(1, 3 * MINUTE), st.just(DAY_US))
_labels = st.sampled_from(["", "", "a task", "é\n%"])
_owns = st.none() | st.integers(-MINUTE, HOUR)
_tickets = st.sampled_from(["a", "b", "t", "é u%"])
_maybe_tickets = st.none() | _tickets
_probe_afters = st.none() | st.sampled_from([0, SECOND, HOUR])

_usual = st.one_of(
    st.builds(Acquire, st.integers(1, 3)),
    st.builds(Acquire, st.integers(1, 5), st.just(0), _waits),
    st.builds(Acquire, st.integers(1, 9), st.just(0), st.sampled_from([MINUTE, HOUR])),
    st.builds(Reserve, _ids, st.integers(1, 3), _lives),
    st.builds(Settle, _ids),
    st.builds(Settle, _ids, st.integers(0, 4)),
    st.builds(Cancel, _ids),
    st.builds(Refund, _ids, st.integers(1, 4), _owns),
)
_unusual = st.one_of(
    st.builds(Acquire, _tokens, _keeps, _waits, _probe_afters, _maybe_tickets),
    st.builds(Acquire, st.integers(1, 12), _keeps, ticket=_tickets),
    st.builds(Reserve, _ids, _tokens, _lives, _keeps, _probe_afters, st.booleans(), _labels, _maybe_tickets),
    st.builds(Reserve, _ids, st.integers(1, 12), _lives, ticket=_tickets, arrived=st.none() | st.integers(0, 9)),
    st.builds(Cancel, _tickets),
    st.builds(Settle, _ids, st.none() | _tokens),
    st.builds(Settle, _ids, st.none() | _tokens, st.none() | readings, st.booleans(), _labels),
    st.builds(Cancel, _ids),
    st.builds(Refund, _ids, _tokens, _owns),
    st.builds(Reconcile, readings),
    st.just(ClaimProbe()),
    st.builds(Unclaim, st.sampled_from([0, CLAIM_US])),
    st.builds(Pause, st.sampled_from([0, 0, 0, SECOND])),
    st.builds(Peek, _tokens, _keeps, _probe_afters, st.none() | st.integers(0, 9)),
)
_commands = st.one_of(_usual, _usual, _unusual)  # flat: each line above as often as any other, the usual twice
_rarely = st.integers(0, 4).map(lambda number: number == 0)

# An instant is drawn as "so long from now", and put in place afterwards: strategies that depend on it would be slow.

_spans = st.builds(int.__add__, st.sampled_from(SPANS), st.integers(-1, 1))
_near = st.one_of(_spans, _spans.map(int.__neg__), st.integers(-HOUR, HOUR))
_texts = st.sampled_from(GARBAGE)
_numbers = st.one_of(st.integers(0, 9), _edges, st.integers(0, LIMIT))
_few = st.integers(0, 9)
_untils = st.one_of(st.just(MINUTE_US), st.just(1), _near)
_fasts = st.builds(FastTerms, _untils, _numbers, _few, _numbers, _few)
_holds = st.builds(Hold, _few, _few, _near, _lives | st.sampled_from([0, DAY_US + 1]), st.integers(0, 2), _labels)
_stood = st.builds(Ticket, _tickets, _few | _edges, st.integers(0, 3), _few, _near | st.just(SECOND))


@dataclass(frozen=True)
class Damage:
    """What a field is set to: a text, None (deleted), or something whose instants count from now."""

    name: str
    what: str | int | FastTerms | Hold | Ticket | FreePlace | None
    from_now: bool = False

    def text(self, now: int) -> str | None:
        what = self.what
        if isinstance(what, int):
            return str(now + what if self.from_now else what)
        if isinstance(what, Ticket):
            return replace(what, told_at=max(0, now + what.told_at)).text()
        if isinstance(what, FreePlace):
            return replace(what, at=max(0, now + what.at)).text()
        if isinstance(what, FastTerms):
            return replace(what, until=now + what.until).text()
        return hold_text(replace(what, expires_at=now + what.expires_at)) if isinstance(what, Hold) else what


def _with_part(quota: Quota, at: int, part: int | str) -> str:
    """Return a quota's text with one of its parts replaced."""
    return " ".join(str(part) if place == at else was for place, was in enumerate(quota_text(quota).split(" ")))


_odd_terms = st.builds(_with_part, st.sampled_from(QUOTAS), _few, _edges | st.sampled_from(["-", "01"]))
_damages = st.one_of(
    st.builds(Damage, st.sampled_from((*FIELDS, *OTHERS)), st.none() | _texts),
    st.builds(Damage, st.sampled_from(NUMBERS), _near, st.just(value=True)),
    st.builds(Damage, st.sampled_from(NUMBERS), _numbers),
    st.builds(Damage, st.sampled_from(HOLDS), st.none() | _texts | _holds),
    st.builds(Damage, st.just(FAST), _fasts),
    st.builds(Damage, st.just(LINE), _stood),
    st.builds(Damage, st.just(FREE), st.builds(FreePlace, _near, _few | _edges)),
    st.builds(Damage, st.just(QUOTA), st.sampled_from(QUOTAS).map(quota_text)),
    st.builds(Damage, st.just(QUOTA), _odd_terms),
)

_gaps = st.one_of(
    st.integers(0, 3),
    st.integers(0, 2 * SECOND),
    st.integers(0, 2 * SECOND),
    st.integers(0, 5 * MINUTE),
    st.integers(-SECOND, 0),
)
_harm = st.integers(0, 9).flatmap(
    lambda number: st.just(()) if number < 8 else st.tuples(_damages) if number < 9 else st.tuples(_damages, _damages)
)


@st.composite
def programs(draw: st.DrawFn, *, damaged: bool = True, most: int = 14) -> Program:
    """Draw a program: mostly one set of terms, at instants that mostly go on."""
    mine = draw(st.sampled_from(QUOTAS))
    others = st.sampled_from([mine, mine, mine, mine, mine, draw(st.sampled_from(QUOTAS))])
    now = draw(st.sampled_from([EPOCH, 0, EPOCH, LIMIT // 2]))
    # A bucket that nobody has told anything of is refused at once: most programs on a synced one begin with a reading.
    begun = mine.synced and not draw(_rarely)
    acts = [Act(now, mine, (), Reconcile(draw(readings)))] if begun else []
    opened, claimed = "", now
    for gap, harm, command, is_new in draw(
        st.lists(st.tuples(_gaps, _harm if damaged else st.just(()), _commands, _rarely), min_size=6, max_size=most)
    ):
        now = max(0, now + gap)
        if isinstance(command, Settle | Cancel) and opened and not is_new:
            command = replace(command, id=opened)  # noqa: PLW2901 - most of them end what was opened last
        if isinstance(command, Reserve):
            opened = command.id
        if isinstance(command, ClaimProbe):
            claimed = now
        since = claimed if isinstance(command, Unclaim) and not is_new else now
        hurt = tuple((each.name, each.text(now)) for each in harm)
        acts.append(Act(now, draw(others), hurt, _placed(command, since)))
    return Program(tuple(acts))


def _placed(command: Command, now: int) -> Command:
    if isinstance(command, Refund) and command.own_us is not None:
        return replace(command, own_us=max(0, now + command.own_us))
    return Unclaim(now + command.until_us) if isinstance(command, Unclaim) else command
