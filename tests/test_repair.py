"""What is mended, field by field, at the edge of what is sound; and what a state reads back from texts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import commands, gaps, instants, quotas
from keepa_tokens import BucketState, ConfigError, Hold, Quota
from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.free_places import FreePlace
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.repair import repair
from keepa_tokens.rules.state import FORMAT, NEWEST_FORMAT, FastTerms, SoundState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import CLAIM_US, DAY_US, LIMIT, LONGEST_STRETCH_US, MAX_HOLD_US, SWEEP_US, TOLERANCE_US, YEAR_US
from tests.stories import Story, each_story
from tests.strategies import SPARING, Make, either_way

NOW: Final = 1_780_000_000_000_000
PLAIN: Final = Quota(10, 1, 60.0)
SYNCED: Final = Quota(10, 1, 60.0, synced=True)
SOUND: Final[dict[str, Any]] = {"balance": 5, "refilled_at": NOW}
HOLD: Final = Hold(2, 0, NOW + 60_000_000, 60_000_000)


def stored(**fields: Any) -> BucketState:
    return BucketState(**{**SOUND, **fields})


def names(quota: Quota, **fields: Any) -> tuple[str, ...]:
    """Return what is mended of a sound state with other fields."""
    return repair(quota, stored(**fields), NOW)[1]


EDGES: Final[list[tuple[str, int, int]]] = [
    ("balance", 1 - LIMIT, LIMIT - 1),
    ("refilled_at", NOW - YEAR_US, NOW + TOLERANCE_US),
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
    ("paused_until", 0, NOW + DAY_US + TOLERANCE_US),
    ("due_at", 0, NOW + 2 * MAX_HOLD_US + TOLERANCE_US),
    ("terms_at", 0, NOW + TOLERANCE_US),
    ("server_time_at", 0, NOW + TOLERANCE_US),
    ("stretched_us", 1, LONGEST_STRETCH_US),
    # Ten tokens from empty are ten minutes, then a period and the tolerance.
    ("last_place", 0, NOW + 660_000_000 + TOLERANCE_US),
    ("firm_place", 0, NOW + 660_000_000 + TOLERANCE_US),
    ("version", 0, LIMIT - 1),
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


FAST: Final = Quota(2**24, 2**23, 60.0, stepped=True, synced=True)
SOUND_HOLDS: Final = (Hold(0, 0, NOW, 1), Hold(1, 0, 0, 1), Hold(1, 0, NOW, MAX_HOLD_US), Hold(LIMIT - 1, 0, NOW, 1))
BAD_HOLDS: Final = (
    *(Hold(-1, 0, NOW, 1), Hold(LIMIT, 0, NOW, 1), Hold(1, -1, NOW, 1), Hold(1, 0, -1, 1), Hold(1, 0, NOW, 0)),
    *(Hold(1, 0, NOW, MAX_HOLD_US + 1), Hold(1, 0, NOW, 1, charged=-1), (1, 0, NOW, 1, 0)),
)


def rate(refill: int | None, period_us: int | None) -> dict[str, Any]:
    return {"reported_refill": refill, "reported_period_us": period_us}


READ: Final = {"reading_at": NOW, "sequence": 1, "reading_sequence": 1}


@pytest.mark.parametrize(
    "quota, fields, mended, left",
    [
        # Nothing to mend, nothing named.
        *((quota, {}, (), {"balance": 5, "refilled_at": NOW, "holds": {}}) for quota in (PLAIN, SYNCED)),
        # A remainder of a whole token would be a token that nothing brought.
        (PLAIN, {"carry": 60_000_000}, ("carry",), {"carry": 0}),
        # One hold that can't be is forgotten; what is no mapping, as a whole.
        *((PLAIN, {"holds": {"a": hold}}, (), {"holds": {"a": hold}}) for hold in SOUND_HOLDS),
        *((PLAIN, {"holds": {"a": hold}}, ("hold:a",), {"holds": {}}) for hold in BAD_HOLDS),
        (PLAIN, {"holds": {"a": BAD_HOLDS[0], "b": HOLD}}, ("hold:a",), {"holds": {"b": HOLD}}),
        *((PLAIN, {"holds": holds}, ("holds",), {"holds": {}}) for holds in (None, 3, "a", [HOLD])),
        # Terms that are none are the caller's; those that aren't there are no damage.
        (PLAIN, {"quota": "10 1 60000000"}, ("quota",), {"quota": PLAIN}),
        (PLAIN, {"quota": None}, (), {"quota": PLAIN}),
        # 0 for a time, or seconds, fill no bucket in debt: the balance stays at -79 and refills from now.
        *(
            (
                quota,
                {"balance": -79, "refilled_at": at, "carry": 7},
                ("refilled_at",),
                {"balance": -79, "refilled_at": NOW, "carry": 0},
            )
            for at in (0, NOW // 1_000_000)
            for quota in (PLAIN, SYNCED)
        ),
        # Half of a rate is none, and one that is too large for exact products would not be refilled exactly.
        *((SYNCED, READ | sound, (), sound) for sound in (rate(1, LIMIT - 2), rate(0, 1))),
        *(
            (SYNCED, READ | rate(*bad), ("reported_refill",), rate(None, None))
            for bad in ((1, LIMIT - 1), (None, 1), (1, None))
        ),
        (SYNCED, READ | rate(1, 0), ("reported_period_us", "reported_refill"), rate(None, None)),
        # Nor one in a stretched period: then the terms' own period goes on, at once.
        (FAST, {"stretched_us": 2**29 - 2, "carry": 60_000_000}, (), {"stretched_us": 2**29 - 2}),
        (FAST, {"stretched_us": 2**29 - 1, "carry": 60_000_000}, ("stretched_us", "carry"), {"stretched_us": None}),
        # A balance that is lost is 0, and refills from now; or it is unknown, and so is what was read of it.
        (
            PLAIN,
            {"balance": None, "refilled_at": NOW - 1, "carry": 7, "sequence": 1},
            ("balance",),
            {"balance": 0, "refilled_at": NOW, "carry": 0, "reading_at": None},
        ),
        *(
            (
                SYNCED,
                {"balance": None, "refilled_at": NOW - 1, "carry": 7, "reading_at": at, "sequence": 1},
                mended,
                {"balance": None, "refilled_at": NOW - 1, "carry": 7, "reading_at": None},
            )
            # A bucket that awaits its first reading has lost none.
            for at, mended in ((None, ()), (NOW, ("balance",)))
        ),
    ],
)
def test_what_is_mended_is_named_and_the_rest_is_left(
    quota: Quota, fields: dict[str, Any], mended: tuple[str, ...], left: dict[str, Any]
) -> None:
    """Each field alone: what can't be is named and replaced, what can be stays."""
    state, named = repair(quota, stored(**fields), NOW)
    assert named == mended
    assert {name: getattr(state, name) for name in left} == left


def test_holds_are_looked_at_in_the_order_of_their_names_whatever_those_are() -> None:
    """Of two that are too large together the later name goes; a name that is no text stops nothing."""
    large = Hold(LIMIT // 2, 0, NOW + 1, 1)
    state, mended = repair(PLAIN, stored(holds={"b": large, "a": large}), NOW)
    assert (list(state.holds), mended) == (["a"], ("hold:b",))
    odd = cast("dict[str, Hold]", {2: HOLD, "a": HOLD, "1": HOLD})
    assert list(repair(PLAIN, stored(holds=odd), NOW)[0].holds) == ["1", 2, "a"]


def test_where_nothing_sound_remembers_an_order_it_begins_anew() -> None:
    """A lost sequence goes on from the latest that anything remembers, else from the first reading's number."""
    state, mended = repair(SYNCED, stored(sequence=None, reading_at=NOW, reading_sequence=7), NOW)
    assert (state.sequence, state.reading_sequence, mended) == (7, 7, ("sequence",))
    state, mended = repair(SYNCED, stored(sequence=None, reading_at=NOW, reading_sequence=LIMIT // 2 + 1), NOW)
    assert (state.sequence, state.reading_sequence) == (1, 1)
    assert mended == ("reading_sequence",)
    for remembers in (
        {"holds": {"a": replace(HOLD, opened=7)}},
        {"holds": {"a": replace(HOLD, opened=3, charged=7), "b": replace(HOLD, opened=LIMIT)}},
        {"line": (Ticket("t", 1, 0, 7, NOW),)},
    ):
        for lost in (None, 0):  # 0 is stored as nothing
            assert repair(PLAIN, stored(sequence=lost, **remembers), NOW)[0].sequence == 7
            assert "sequence" in names(PLAIN, sequence=lost, **remembers)
    for lost in (None, 0):
        state, mended = repair(SYNCED, stored(sequence=7, reading_at=NOW, reading_sequence=lost), NOW)
        assert (state.reading_sequence, mended) == (7, ("reading_sequence",))


def test_what_is_set_aside_is_added_up_and_what_ran_out_is_not() -> None:
    """Holds in flight count together, however many; one that was charged counts no more."""
    half, quarter = Hold(LIMIT // 2, 0, NOW + 1, 1), Hold(LIMIT // 4, 0, NOW + 1, 1)
    assert names(PLAIN, holds={"a": half, "b": quarter, "c": half}) == ("hold:c",)
    charged, rest = Hold(LIMIT // 2, 0, NOW, 1, charged=1), Hold(LIMIT // 2 - 1, 0, NOW + 1, 1)
    assert names(PLAIN, sequence=1, holds={"a": charged, "b": half, "c": rest}) == ()


CENTURIES: Final = Quota(10, 1, 100 * 86_400.0)
SLOW, FASTER = Quota(100, 1, 3600.0, initial=0), Quota(100, 2, 3600.0)
QUICK: Final = Quota(10, 100, 1.0)
YEARLY: Final = Quota(1, 1, YEAR_US / 1_000_000, overdraft=5)

STORIES: Final = """
a hold ends by its lifetime and the tolerance, at the beginning of time too: \
(PLAIN|SYNCED) start=0 balance=5 holds=a:5:0:5000001:1
    0 peek -> !mended; 0 take 0 -> due_at=@5s+1
one that ends later is drawn in: (PLAIN|SYNCED) start=0 balance=5 holds=a:5:0:5000002:1
    0 peek -> mended=hold:a; 0 take 0 -> due_at=@5s+1
# The sequence goes on from what the mended hold says, so that the next command finds nothing lost.
a charge beyond a sequence of 0 is mended once: \
SYNCED balance=5 sequence=0 reading_at=- reading_sequence=0 holds=a:2:0:@60s:60s:4503599627370495
    0 take 0 -> mended=hold:a, take 0 -> !mended
clocks that differ mend nothing of who stands in line a day ahead: SLOW
    0 stand a 100; -5s take 0 -> !mended
nor of a place that other terms drew in, by a clock ahead of the next one's: SLOW
    0 take 100 wait=4503599627370496, on FASTER, take 0 -> terms; -5s take 0 -> !mended
# Ten tokens at one in 100 days are 1,200 days.
a slow bucket may rightly not have been touched for years, up to the time to full and two periods: \
CENTURIES balance=(5|0)
    (60480000s|103680000s) put refilled_at=@0, peek -> !mended; (60480000s+1|103680000s+1) peek -> mended=refilled_at
so may one that refills in steps: CENTURIES stepped balance=(5|0)
    (60480000s|103680000s) put refilled_at=@0, peek -> !mended; (60480000s+1|103680000s+1) peek -> mended=refilled_at
an unknown balance may be 0: CENTURIES synced balance=- reading_at=-
    103680000s put refilled_at=@0, peek -> !mended; 103680000s+1 peek -> mended=refilled_at
in debt by two years of refill it may have stood for four, a full one may not: (YEARLY balance=-2|PLAIN balance=5)
    126144000s put refilled_at=@0, peek -> (!mended|mended=refilled_at)
a place lies no further ahead than the refill of debt and capacity, a period, and the tolerance: PLAIN balance=(10|0|-5)
    0 put last_place=@(665s|665s|965s), peek -> !mended
    0 put last_place=@(665s|665s|965s)+1, take 1 wait=9999s -> GRANTED mended=last_place
    0 put last_place=@9999s, peek -> last_place=-
nor does one before which tokens came back: PLAIN balance=(10|0|-5)
    0 put firm_place=@(665s|665s|965s), peek -> !mended
    0 put firm_place=@(665s|665s|965s)+1, take 1 wait=9999s -> GRANTED mended=firm_place
a place told by slower terms, ten minutes ahead, is no damage under faster ones: PLAIN
    0 take 10, take 10 wait=86400s, on QUICK, take 0 -> !mended, take 0 -> !mended
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_what_is_mended_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


@pytest.mark.parametrize("quota", [PLAIN, SYNCED])
@pytest.mark.parametrize("held, number", [(3, 1), (2, 2), (0, 0), (None, 1)])
def test_sums_that_say_something_else_than_the_holds_are_added_up_again(
    quota: Quota, held: int | None, number: int
) -> None:
    """With all holds there they are right; where only some were read, nothing but the sums tells of the others."""
    sound, mended = repair(quota, stored(held=held, open=number, holds={"a": HOLD}), NOW)
    assert (sound.held, sound.open) == (2, 1)
    # A plain bucket leaves the sums out where they are 0, and its balance doesn't hang on them.
    assert mended == (() if held is None and not quota.synced else ("held",))
    sound, mended = repair(quota, stored(held=held, open=number, holds={"a": HOLD}, partial=True), NOW)
    assert (sound.held, sound.open, mended) == (held or 0, number, ())


@pytest.mark.parametrize("lost", ["due_at", None])
def test_a_hold_is_swept_in_time_whatever_its_sweep_was_put_off_to(lost: str | None) -> None:
    """At its own end, at once where that is past; so it is also where no command writes the mended instant back."""
    due_at = None if lost else NOW + 2 * MAX_HOLD_US
    for now in (NOW, HOLD.expires_at, HOLD.expires_at + 1):
        sound, mended = repair(PLAIN, stored(held=2, open=1, holds={"a": HOLD}, due_at=due_at), now)
        assert (sound.due_at, mended) == (HOLD.expires_at, () if lost else ("due_at",))


@pytest.mark.parametrize("late", [0, 1])
def test_a_sweep_that_a_clock_ahead_put_off_stays(late: int) -> None:
    """By as much as clocks may be apart: one who reads all holds sweeps no earlier than one who reads a part."""
    due_at = NOW + SWEEP_US + TOLERANCE_US + late
    hold = replace(HOLD, expires_at=NOW)
    kept = repair(PLAIN, stored(held=2, open=1, holds={"a": hold}, due_at=due_at), NOW)[0].due_at
    assert kept == (NOW if late else due_at)


@pytest.mark.parametrize("synced", [False, True])
@SPARING
@given(data=st.data())
def test_what_the_rules_wrote_needs_no_mending(synced: bool, data: st.DataObject) -> None:
    """Whatever is asked, also by callers with different terms: as long as the clock goes forwards nothing is damage."""
    terms = data.draw(st.lists(quotas(synced=synced), min_size=1, max_size=2))
    state, now = None, data.draw(instants)
    for _ in range(data.draw(st.integers(1, 15))):
        now += data.draw(gaps)
        state, outcome = transition(data.draw(st.sampled_from(terms)), state, now, data.draw(commands(now)))
        assert outcome.repaired == ()
        state = None if state is None else BucketState.from_fields(state.to_fields())


def test_the_format_of_a_newer_release_says_what_to_do() -> None:
    """The error has both numbers; garbage for a format is mended."""
    message = (
        f"the stored state has format {FORMAT + 1}, this release knows format {FORMAT}:"
        " it was written by a newer release. Upgrade this one; nothing was changed."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        repair(PLAIN, stored(format=FORMAT + 1), NOW)
    with pytest.raises(ConfigError):
        repair(PLAIN, stored(format=NEWEST_FORMAT), NOW)
    for damage in (FORMAT - 1, None, "2", NEWEST_FORMAT + 1):
        assert names(PLAIN, format=damage) == ("format",)


def test_a_long_name_is_named_by_its_beginning() -> None:
    """Sixty letters at most, of a text that says nothing and of a hold."""
    for length, shown in ((60, "x" * 60), (61, "x" * 57 + "...")):
        name = "x" * length
        assert names(PLAIN, unreadable=(name,)) == (shown,)
        assert names(PLAIN, holds={name: replace(HOLD, tokens=-1)}) == (f"hold:{shown}",)
        assert names(PLAIN, holds={name: replace(HOLD, expires_at=NOW * 2)}) == (f"hold:{shown}",)


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


WHOLE: Final = BucketState(
    version=3,
    balance=-4,
    refilled_at=7,
    quota=Quota(10, 3, 1 / 3, recharge_to=5, initial=-2),
    fast=FastTerms(9, 10, 3, 2_000_000, 1),
    holds={"a": Hold(2, 1, 9, 5), "b c": Hold(2, 1, 9, 5, charged=3, label="a task%")},
    line=(Ticket("x y", 1, 0, 2, 9), Ticket("z", 4, 5, 6, 7)),
    free=(FreePlace(8, 1), FreePlace(9, 4)),
)


def test_a_state_is_plain_texts_and_comes_back_from_them() -> None:
    """Each field by its name, whole numbers in plain text, labels without spaces; the usual format isn't written."""
    texts = {
        "version": "3",
        "balance": "-4",
        "refilled_at": "7",
        "quota": "10 3 333333 0 0 5 -2 0",
        "fast": "9 10 3 2000000 1",
        "line": "x%20y:1:0:2:9 z:4:5:6:7",
        "free": "8:1 9:4",
        "hold:a": "2 1 9 5 0",
        "hold:b c": "2 1 9 5 3 a%20task%25",
    }
    assert WHOLE.to_fields() == texts
    assert BucketState.from_fields(texts) == WHOLE
    assert BucketState.from_fields({"format": "2"}).format == 2
    assert BucketState.from_fields({"hold:a": "2 1 9 5 0 a b"}).holds["a"].label == "a b"


@pytest.mark.parametrize(
    "name, text",
    [
        *[
            ("quota", text)
            for text in ("10 3", "10 3 2000000 0 0 - - 0", "0 3 2000000", "10 3 0", "10\t3 2000000", "x")
        ],
        *[("fast", text) for text in ("9 10 3 4", "9 10 3 4 x", "9\t10 3 4 1", "9 10 3 4 1 2")],
        *[("hold:a", text) for text in ("2 1 9 5", "2 1 9 5 x", "2\t1 9 5 0", "")],
    ],
)
def test_a_text_that_nobody_wrote_is_named(name: str, text: str) -> None:
    """Too few numbers, other spaces, terms that no bucket can work with or that are spelled in another way."""
    assert BucketState.from_fields({name: text}) == BucketState(version=None, unreadable=(name,))


@pytest.mark.parametrize(
    "quota, more",
    [
        (PLAIN, {"quota": "10 1 60000000"}),
        (SYNCED, {"quota": "10 1 60000000 0 0 - - 1", "held": "0", "open": "0", "sequence": "0"}),
    ],
)
def test_what_is_0_by_itself_is_not_stored(quota: Quota, more: dict[str, str]) -> None:
    """But the sums of what is set aside at a synced bucket: to lose those is damage."""
    fast = FastTerms(9, 10, 3, 2_000_000, 1)
    state = SoundState(quota, NOW, balance=0).stored(fast)
    assert (state.quota, state.fast) == (quota, fast)
    assert state.to_fields() == {"version": "0", "balance": "0", "refilled_at": str(NOW), "fast": fast.text(), **more}


@pytest.mark.parametrize("sequence, charged", [(1, 1), (2, 2), (3, 2)])
def test_what_is_numbered_beyond_the_sequence_is_numbered_by_it(sequence: int, charged: int) -> None:
    """A hold opened, or charged, and a ticket with a number not given yet: they count as the latest."""
    hold, ticket = replace(HOLD, opened=7, charged=2), Ticket("t", 1, 0, 7, NOW)
    sound, mended = repair(SYNCED, stored(sequence=sequence, holds={"h": hold}, line=(ticket,)), NOW)
    assert (sound.holds["h"].opened, sound.holds["h"].charged, sound.line[0].arrived) == (sequence, charged, sequence)
    assert {"line", "hold:h"} <= set(mended)


def test_a_line_that_is_none_is_dropped() -> None:
    """From a storage that keeps something else there, one that can be iterated over too."""
    assert repair(PLAIN, stored(line=cast("tuple[Ticket, ...]", [Ticket("t", 1, 0, 0, NOW)])), NOW)[0].line == []


FURTHEST: Final = NOW + 660_000_000 + TOLERANCE_US


@pytest.mark.parametrize(
    "quota, free, left",
    [
        (PLAIN, [(1, 1), (FURTHEST, 10)], [(1, 1), (FURTHEST, 10)]),
        (replace(PLAIN, overdraft=5), [(NOW, 15), (NOW, 16)], [(NOW, 15)]),
        (PLAIN, [(NOW, 0), (NOW, 1), (FURTHEST + 1, 1), (NOW, 11)], [(NOW, 1)]),
        (PLAIN, [(9, 1), (8, 1)], [(8, 1), (9, 1)]),
        (PLAIN, [(at, 1) for at in range(1, 258)], [(at, 1) for at in range(1, 257)]),
        (PLAIN, None, []),
        (SYNCED, [(NOW, 1)], []),
        (replace(PLAIN, recharge_to=5), [(NOW, 1)], []),
    ],
)
def test_free_places_are_such_as_somebody_could_have_given_up(
    quota: Quota, free: list[tuple[int, int]] | None, left: list[tuple[int, int]]
) -> None:
    """Not too far ahead, for no more than one caller can ask for, in order, 256 at most, where there are places."""
    places: Any = 7 if free is None else tuple(FreePlace(*each) for each in free)
    sound, mended = repair(quota, stored(free=places, held=0, open=0, sequence=1), NOW)
    assert sound.free == tuple(FreePlace(*each) for each in left)
    assert mended == (() if free == left else ("free",))


def test_a_stretch_that_nothing_could_count_leaves_the_flow_of_the_terms() -> None:
    """Ten minutes at a refill near the limit: the stretch goes, and the carry is held to the period of the terms."""
    quota = Quota(LIMIT // 2, LIMIT // 2_000_000, 1.0, stepped=True, synced=True)
    too_long = stored(stretched_us=LONGEST_STRETCH_US, carry=1_000_000, terms_at=NOW, wide_capacity=LIMIT - 1)
    sound, mended = repair(quota, too_long, NOW)
    assert (sound.stretched_us, sound.carry) == (None, 0)
    assert mended == ("stretched_us", "carry")


@pytest.mark.parametrize("name, text", [("line", "\udcff:1:0:1:{now}"), ("hold:a", "1 1 {now} 1 0 \udcff")])
def test_what_is_no_text_in_a_name_stops_nothing(name: str, text: str) -> None:
    """A byte that no letter has, in a ticket's id or a hold's label: the rest is right, and can be stored again."""
    sound = {"balance": "5", "refilled_at": str(NOW), "sequence": "1", "held": "1", "open": "1"}
    state = BucketState.from_fields({**sound, name: text.format(now=NOW)})
    after, _ = transition(PLAIN, state, NOW - 1, Acquire(1))
    assert after is not None
    assert after.to_fields()[name].isascii()


@pytest.mark.parametrize("name", ["quota", "fast", "balance", "hold:a"])
def test_what_a_storage_answers_instead_of_a_text_is_unreadable(name: str) -> None:
    """A number, or nothing, where a text belongs: named, and the rest is read."""
    for instead in (5, None):
        state = BucketState.from_fields(cast("dict[str, str]", {name: instead, "version": "7"}))
        assert (state.version, state.unreadable) == (7, (name,))
