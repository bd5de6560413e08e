"""From envelopes to readings: the recorded ones, and every kind of nonsense."""

from __future__ import annotations

import json
from typing import Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepa_tokens import ConfigError, Reading
from keepa_tokens._blocking import run
from keepa_tokens.keepa.reading import LARGE, PIECE, Body, Envelope, envelope, envelope_of, searched, unpacked

# Recorded against the live API.
FREE: dict[str, object] = {"tokensConsumed": 0, "tokenFlowReduction": 0, "processingTimeInMs": 0}
RECORDED: Final[list[tuple[dict[str, object], tuple[int, float, int, int, float | None, int]]]] = [
    (
        {"timestamp": 1780141957832, "tokensLeft": 1200, "refillIn": 39592, "refillRate": 20, **FREE},
        (1200, 39.592, 20, 1200, 1780141957.832, 0),
    ),
    (
        {"timestamp": 1594177158252, "tokensLeft": -46, "refillIn": 38205, "refillRate": 20, **FREE},
        (-46, 38.205, 20, 1200, 1594177158.252, 0),
    ),
    (
        {"timestamp": 1778386768884, "refillIn": 53441, "refillRate": 60, "tokensLeft": 94, "tokensConsumed": 4},
        (94, 53.441, 60, 3600, 1778386768.884, 4),
    ),
    # A 200 with an error has no timestamp, and its balance counts all the same.
    (
        {"tokensLeft": 59, "tokensConsumed": 0, "refillIn": 26645, "refillRate": 5, "error": {"message": "..."}},
        (59, 26.645, 5, 300, None, 0),
    ),
]


@pytest.mark.parametrize("body, expected", RECORDED)
def test_a_recorded_envelope_becomes_its_reading(
    body: dict[str, object], expected: tuple[int, float, int, int, float | None, int]
) -> None:
    """Each recorded envelope gives balance, time to the next step, refill, capacity, server time and cost."""
    said = envelope(body)
    assert said.reading is not None
    reading = said.reading
    told = [reading.balance, reading.next_refill_in, reading.refill, reading.capacity, reading.server_time]
    assert [*told, said.consumed] == list(expected)
    assert envelope(json.dumps(body)) == envelope(json.dumps(body).encode()) == said


def test_flow_reduction_lowers_the_refill_and_not_the_capacity() -> None:
    """Refill lost to tracking is taken off; a net rate below zero is 0, a fraction is kept for the rule to round."""
    for reduction, net in ((0, 20.0), (2.5, 17.5), (19.6, 0.4), (25, 0.0)):
        body = {"tokensLeft": 10, "refillIn": 1, "refillRate": 20, "tokenFlowReduction": reduction}
        reading = envelope(body).reading
        assert reading is not None
        assert reading.refill == pytest.approx(net)
        assert reading.capacity == 1200


@pytest.mark.parametrize(
    "body, refill",
    [
        ({"tokensLeft": 5, "refillRate": 0}, 0.0),
        ({"tokensLeft": -5, "refillRate": 0}, 0.0),
        ({"tokensLeft": 0, "refillRate": 1}, 1.0),
        ({"tokensLeft": 5, "refillRate": 1, "error": {"type": "invalidParameter"}}, 1.0),
        ({"tokensLeft": 0}, None),
        ({"tokensLeft": 5, "error": {"type": "invalidParameter"}}, None),
    ],
)
def test_a_refill_of_0_alone_is_a_reading(body: dict[str, object], refill: float | None) -> None:
    """Only rate 0 with an error, or with nothing left, is an envelope of zeros; each alone is news of the bucket."""
    reading = envelope(body).reading
    assert reading is not None
    assert (reading.balance, reading.refill) == (body["tokensLeft"], refill)
    assert reading.capacity == (60 if refill else None)


NO_REFILL = "refillRate is 0 beside an error or an empty envelope: no reading"
ZEROS = dict.fromkeys(("tokensLeft", "refillIn", "refillRate", "tokensConsumed"), 0)
NO_BALANCE = "there is no tokensLeft"
NO_WHOLE_BALANCE = "tokensLeft is no whole number"
NO_JSON = ("<html>bad gateway</html>", b"\x89PNG\r\n\x1a\n", bytearray(b"\xff\xfe"), "[" * 100_000, "9" * 5000)
NO_NUMBER = "is no number from 0 to 2**52 - 1"
TOO_LARGE = "balance must be a whole number from -4503599627370495 to 2**52 - 1, not a whole number"


@pytest.mark.parametrize(
    "body, why",
    [
        (None, "there is no JSON object"),
        *((body, "the body is no JSON (0 long)") for body in ("", b"")),
        *((body, f"the body is no JSON object but {kind}") for body, kind in (("null", "NoneType"), ("[]", "list"))),
        *(
            (body, f"the body is no JSON object but {kind}")
            for body, kind in (("3", "int"), ('"text"', "str"), ([], "list"))
        ),
        *((body, f"the body is no JSON ({len(body)} long)") for body in NO_JSON),
        *((body, NO_BALANCE) for body in ({}, {"tokensLeft": None})),
        *(({"tokensLeft": odd}, NO_WHOLE_BALANCE) for odd in ("12", True, 1.5, float("nan"), [5])),
        *(({"tokensLeft": huge}, f"{TOO_LARGE} of {bits} bits") for huge, bits in ((10**400, 1329), (1e308, 1024))),
        *(({"tokensLeft": 5, "refillIn": odd}, f"refillIn {NO_NUMBER}") for odd in (float("nan"), -1, True, 2**52)),
        *(({"tokensLeft": 5, "refillRate": odd}, f"refillRate {NO_NUMBER}") for odd in ("5", float("inf"))),
        ({"tokensLeft": 5, "refillRate": 2.5}, "refillRate is no whole number"),
        ({"tokensLeft": 5, "refillRate": 5, "timestamp": 10**30}, f"timestamp {NO_NUMBER}"),
        ({"tokensLeft": 5, "refillRate": 5, "tokenFlowReduction": {}}, f"tokenFlowReduction {NO_NUMBER}"),
        # All token fields 0, as with a bad key, say nothing of the bucket.
        ({**ZEROS, "timestamp": 1790277678673, "error": {"type": "invalidParameter"}}, NO_REFILL),
        ({**ZEROS, "timestamp": 1790277678673}, NO_REFILL),
        ({"refillRate": 0, "tokensLeft": 5, "error": {}}, NO_REFILL),
        ({"refillRate": 0, "tokensLeft": 0}, NO_REFILL),
    ],
)
def test_nonsense_is_no_reading_and_says_why(body: object, why: str) -> None:
    """Whatever a proxy or a fault sends: no exception, no reading, and a sentence that says what is wrong."""
    said = envelope(cast("Body", body))
    assert (said.reading, said.why) == (None, why)


@pytest.mark.parametrize(
    "said, consumed",
    [(0, 0), (4.0, 4), (2**52 - 1, 2**52 - 1), (2**52, None), (-1, None), (1.5, None), ("4", None), (True, None)],
)
def test_a_cost_is_a_whole_number_of_tokens_or_not_said(said: object, consumed: int | None) -> None:
    """A cost from 0 to what can be counted is taken, whatever else the envelope lacks; any other counts as none."""
    assert envelope({"tokensConsumed": said}).consumed == consumed


@pytest.mark.parametrize("said", [0, 1, 2**52 - 1])
def test_the_smallest_and_the_largest_times_are_taken(said: int) -> None:
    """Milliseconds from 0 up become seconds."""
    reading = envelope({"tokensLeft": 5, "refillIn": 1, "timestamp": 0}).reading
    assert reading is not None
    assert (reading.next_refill_in, reading.server_time) == (0.001, 0.0)
    assert envelope({"tokensLeft": said}).reading == Reading(said)


class Answered:
    status_code = 200


class Unread(Answered):
    """One whose body nobody has read."""

    @property
    def content(self) -> bytes:
        raise RuntimeError


def test_a_status_that_is_given_counts_before_the_responses_own() -> None:
    """A body that can't be had says nothing; a status is a number up to 999."""
    assert [unpacked(Answered(), status) for status in (None, 429)] == [(None, 200), (None, 429)]
    assert unpacked(Unread(), None) == (b"", 200)
    assert unpacked(None, 999) == (None, 999)
    with pytest.raises(ConfigError, match=r"^status=1000 is out of range: it must be from 0 to 999$"):
        unpacked(None, 1000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["tokensLeft", "refillIn", "refillRate", "tokensConsumed", "timestamp", "tokenFlowReduction", "error"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values) | st.binary() | st.text() | json_values)
def test_no_body_raises(body: object) -> None:
    """Any body at all gives an Envelope: a sound reading or a reason, and a cost from 0 if it said one."""
    said = envelope(cast("Body", body))
    assert (said.reading is None) == bool(said.why)
    assert said.consumed is None or said.consumed >= 0


# --- large bodies


async def turn() -> None:
    pass


TREES: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(st.characters(codec="utf-8"), max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('abc"\\[]{},:', max_size=4), inner, max_size=4),
    max_leaves=12,
)
ENVELOPES: Final = st.dictionaries(
    st.sampled_from(["tokensLeft", "tokensConsumed", "refillRate", "refillIn", "timestamp", "error", "products", "x"]),
    st.integers(-5, 10**6) | TREES,
)


@given(fields=ENVELOPES, spaces=st.sampled_from([None, 1]), escaped=st.booleans())
def test_searching_a_body_for_its_envelope_finds_what_parsing_it_finds(
    fields: dict[str, object], spaces: int | None, escaped: bool
) -> None:
    """Whatever stands beside and inside the fields: the same reading, the same cost, the same fault."""
    body = json.dumps(fields, indent=spaces, ensure_ascii=escaped).encode()
    assert run(lambda: searched(body, turn)) == envelope(body)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"a": [', b"{} x", b'x {"tokensLeft": 5}', b'"{}"', b"<html>{}</html>", b"}"]
)
def test_a_large_body_that_is_no_json_object_is_none(body: bytes) -> None:
    """Cut off, a list, something before or after it: no reading, and no error."""
    assert run(lambda: searched(body, turn)) == Envelope(None, why=f"the body is no JSON ({len(body)} long)")
    assert envelope(body + b" " * LARGE) == Envelope(None, why=f"the body is no JSON ({LARGE + len(body)} long)")


def test_a_large_body_is_searched_in_pieces_and_not_parsed() -> None:
    """Nested deeper than a parser goes it still says its balance, and others have their turn meanwhile."""
    body = b'{"x": ' + b"[" * LARGE + b"]" * LARGE + b', "tokensLeft": 5}'
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    assert envelope(body) == run(lambda: envelope_of(body, turn)) == Envelope(Reading(5))
    assert turns == len(body) // PIECE


def test_a_large_text_is_searched_too() -> None:
    """Space before it, letters in it that no encoding has: its balance is read."""
    assert envelope(' {"x": "\ud800' + "y" * LARGE + '", "tokensLeft": 5}') == Envelope(Reading(5))


def test_a_body_is_large_from_its_size_on() -> None:
    """What is nested too deep to be parsed is read from `LARGE` bytes on, and no body a byte shorter."""
    body = b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "tokensLeft": 5}'
    assert envelope(body.ljust(LARGE)) == Envelope(Reading(5))
    assert envelope(body.ljust(LARGE - 1)).reading is None
