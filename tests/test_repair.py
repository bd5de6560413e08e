"""What is mended, field by field, at the edge of what is sound; and what a state reads back from texts."""

from __future__ import annotations

import re
from typing import Any, Final, cast

import pytest

from keepa_tokens import BucketState, ConfigError, Hold, Quota
from keepa_tokens.rules.repair import repair
from keepa_tokens.rules.state import FORMAT
from keepa_tokens.units import CLAIM_US, LIMIT, MAX_HOLD_US, TOLERANCE_US

NOW: Final = 1_780_000_000_000_000
PLAIN: Final = Quota(10, 1, 60.0)
SYNCED: Final = Quota(10, 1, 60.0, synced=True)
SOUND: Final[dict[str, Any]] = {"balance": 5, "refilled_at": NOW}
HOLD: Final = Hold(2, 0, NOW + 60_000_000, 60_000_000)


def stored(**fields: Any) -> BucketState:
    """Return a sound state with other fields."""
    return BucketState(**{**SOUND, **fields})


def names(quota: Quota, **fields: Any) -> tuple[str, ...]:
    """Return what is mended of a sound state with other fields."""
    return repair(quota, stored(**fields), NOW)[1]


def test_a_sound_state_is_left_as_it_is() -> None:
    """Nothing to mend, nothing named; only the rate at which nothing was earned yet is filled in."""
    for quota in (PLAIN, SYNCED):
        state, mended = repair(quota, stored(), NOW)
        assert mended == ()
        assert (state.balance, state.refilled_at, state.holds) == (5, NOW, {})


EDGES: Final[list[tuple[str, int, int]]] = [
    ("balance", 1 - LIMIT, LIMIT - 1),
    ("refilled_at", 0, NOW + TOLERANCE_US),
    ("carry", 0, 59_999_999),
    ("drift", 1 - LIMIT, LIMIT - 1),
    ("kept_back", 0, LIMIT - 1),
    ("server_time", 0, LIMIT - 1),
    ("closed_until", 0, LIMIT - 1),
    ("probe_failures", 0, LIMIT - 1),
    ("reported_capacity", 1, LIMIT - 1),
    ("kept_back_at", 0, NOW + TOLERANCE_US),
    ("reading_at", 0, NOW + TOLERANCE_US),
    ("probe_until", 0, NOW + CLAIM_US + TOLERANCE_US),
    ("sequence", 0, LIMIT // 2),
]


@pytest.mark.parametrize("name, least, most", EDGES)
def test_a_field_is_sound_from_its_least_to_its_most(name: str, least: int, most: int) -> None:
    """Both edges are kept, one beyond either is mended, and so are a float, a flag and a text."""
    for value in (least, most):
        state, mended = repair(SYNCED, stored(**{name: value}), NOW)
        assert (name not in mended, getattr(state, name)) == (True, min(value, 30) if "failures" in name else value)
    for damage in (least - 1, most + 1, 1.0, True, "1"):
        assert name in names(SYNCED, **{name: damage})


@pytest.mark.parametrize(
    "refill, period_us, sound",
    [(1, LIMIT - 2, True), (1, LIMIT - 1, False), (0, 1, True), (None, 1, False), (1, None, False), (1, 0, False)],
)
def test_a_reported_rate_is_sound_if_it_can_be_computed(refill: int | None, period_us: int | None, sound: bool) -> None:
    """Half of one is none, and one that is too large for exact products would not be refilled exactly."""
    state, mended = repair(SYNCED, stored(reading_at=NOW, reported_refill=refill, reported_period_us=period_us), NOW)
    assert ("reported_refill" not in mended) == sound
    assert (state.reported_refill, state.reported_period_us) == ((refill, period_us) if sound else (None, None))


@pytest.mark.parametrize(
    "hold, sound",
    [
        (Hold(0, 0, NOW, 1), True),
        (Hold(-1, 0, NOW, 1), False),
        (Hold(1, -1, NOW, 1), False),
        (Hold(1, 0, -1, 1), False),
        (Hold(1, 0, 0, 1), True),
        (Hold(1, 0, NOW, 0), False),
        (Hold(1, 0, NOW, MAX_HOLD_US), True),
        (Hold(1, 0, NOW, MAX_HOLD_US + 1), False),
        (Hold(1, 0, NOW, 1, charged=-1), False),
        (Hold(LIMIT - 1, 0, NOW, 1), True),
        (Hold(LIMIT, 0, NOW, 1), False),
        (cast("Hold", (1, 0, NOW, 1, 0)), False),
    ],
)
def test_a_hold_is_sound_or_gone(hold: Hold, sound: bool) -> None:
    """One that can't be is forgotten and named; the others stay as they are."""
    state, mended = repair(PLAIN, stored(holds={"a": hold}), NOW)
    assert (dict(state.holds), mended) == (({"a": hold}, ()) if sound else ({}, ("hold:a",)))


def test_holds_are_looked_at_in_the_order_of_their_names_whatever_those_are() -> None:
    """Of two that are too large together the later name goes; a name that is no text stops nothing."""
    large = Hold(LIMIT // 2, 0, NOW + 1, 1)
    state, mended = repair(PLAIN, stored(holds={"b": large, "a": large}), NOW)
    assert (list(state.holds), mended) == (["a"], ("hold:b",))
    odd = cast("dict[str, Hold]", {2: HOLD, "a": HOLD, "1": HOLD})
    assert list(repair(PLAIN, stored(holds=odd), NOW)[0].holds) == ["1", 2, "a"]


def test_where_nothing_sound_remembers_an_order_it_begins_anew() -> None:
    """A lost sequence goes on from the latest that anything remembers; if that can't be, from 0."""
    state, mended = repair(SYNCED, stored(sequence=None, reading_at=NOW, reading_sequence=7), NOW)
    assert (state.sequence, state.reading_sequence, mended) == (7, 7, ("sequence",))
    state, mended = repair(SYNCED, stored(sequence=None, reading_at=NOW, reading_sequence=LIMIT // 2 + 1), NOW)
    assert (state.sequence, state.reading_sequence) == (0, 0)
    assert mended == ("sequence", "reading_sequence")


def test_what_is_set_aside_is_added_up_and_what_ran_out_is_not() -> None:
    """Holds in flight count together, however many; one that was charged counts no more."""
    half, quarter = Hold(LIMIT // 2, 0, NOW + 1, 1), Hold(LIMIT // 4, 0, NOW + 1, 1)
    assert names(PLAIN, holds={"a": half, "b": quarter, "c": half}) == ("hold:c",)
    charged, rest = Hold(LIMIT // 2, 0, NOW, 1, charged=1), Hold(LIMIT // 2 - 1, 0, NOW + 1, 1)
    assert names(PLAIN, sequence=1, holds={"a": charged, "b": half, "c": rest}) == ()


@pytest.mark.parametrize("late, mended", [(0, ()), (1, ("hold:a",))])
def test_a_hold_of_a_plain_bucket_ends_by_its_lifetime_from_where_all_debt_is_refilled(
    late: int, mended: tuple[str, ...]
) -> None:
    """At the beginning of time too: five tokens of debt are five minutes, and then its lifetime and the tolerance."""
    hold = Hold(5, 0, 300_000_000 + 1 + TOLERANCE_US + late, 1)
    assert repair(PLAIN, BucketState(balance=10, refilled_at=0, holds={"a": hold}), 0)[1] == mended


def test_a_remainder_of_a_whole_token_is_none() -> None:
    """It would be a token that nothing brought."""
    state, mended = repair(PLAIN, stored(carry=60_000_000), NOW)
    assert (state.carry, mended) == (0, ("carry",))


@pytest.mark.parametrize("holds", [None, 3, "a", [HOLD]])
def test_holds_that_are_no_mapping_are_none(holds: Any) -> None:
    """They are named as a whole."""
    state, mended = repair(PLAIN, stored(holds=holds), NOW)
    assert (dict(state.holds), mended) == ({}, ("holds",))


def test_the_format_of_a_newer_release_says_what_to_do() -> None:
    """The error has both numbers; garbage for a format is mended."""
    message = (
        f"the stored state has format {FORMAT + 1}, this release knows format {FORMAT}:"
        " it was written by a newer release. Upgrade this one; nothing was changed."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        repair(PLAIN, stored(format=FORMAT + 1), NOW)
    assert names(PLAIN, format=FORMAT - 1) == names(PLAIN, format=None) == names(PLAIN, format="2") == ("format",)


@pytest.mark.parametrize(
    "text, value",
    [
        (str(LIMIT), LIMIT),
        (str(-LIMIT), -LIMIT),
        (str(LIMIT + 1), None),
        (str(-LIMIT - 1), None),
        ("0", 0),
        ("-0", 0),
        ("00", None),
        ("+1", None),
        ("", None),
    ],
)
def test_a_text_is_a_whole_number_that_lua_can_hold_or_unreadable(text: str, value: int | None) -> None:
    """Up to 2**52 either way, without signs and zeros that nobody wrote; anything else is named."""
    state = BucketState.from_fields({"balance": text})
    assert (state.balance, state.unreadable) == (value, ("balance",) if value is None else ())
