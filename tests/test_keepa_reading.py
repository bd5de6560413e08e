"""From envelopes to readings: the recorded ones, and every kind of nonsense."""

from __future__ import annotations

import json
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepa_tokens.keepa.reading import Body, envelope

# Recorded against the live API.
RECORDED = [
    (
        {
            "timestamp": 1780141957832,
            "tokensLeft": 1200,
            "refillIn": 39592,
            "refillRate": 20,
            "tokensConsumed": 0,
            "tokenFlowReduction": 0,
            "processingTimeInMs": 0,
        },
        (1200, 39.592, 20, 1200, 1780141957.832, 0),
    ),
    (
        {
            "timestamp": 1594177158252,
            "refillIn": 38205,
            "refillRate": 20,
            "tokensLeft": -46,
            "tokensConsumed": 0,
            "tokenFlowReduction": 0,
            "processingTimeInMs": 0,
        },
        (-46, 38.205, 20, 1200, 1594177158.252, 0),
    ),
    (
        {"timestamp": 1778386768884, "refillIn": 53441, "refillRate": 60, "tokensLeft": 94, "tokensConsumed": 4},
        (94, 53.441, 60, 3600, 1778386768.884, 4),
    ),
]


@pytest.mark.parametrize("body, expected", RECORDED)
def test_a_recorded_envelope_becomes_its_reading(
    body: dict[str, object], expected: tuple[int, float, int, int, float, int]
) -> None:
    """Each recorded envelope gives balance, time to the next step, refill, capacity, server time and cost."""
    said = envelope(body)
    assert said.reading is not None
    reading = said.reading
    told = [reading.balance, reading.next_refill_in, reading.refill, reading.capacity, reading.server_time]
    assert [*told, said.consumed] == list(expected)
    assert envelope(json.dumps(body)) == envelope(json.dumps(body).encode()) == said


def test_an_error_with_status_200_still_carries_its_reading() -> None:
    """The recorded 200 with an error has no timestamp, and its balance counts all the same."""
    said = envelope(
        {
            "error": {"message": "...", "type": "invalidParameter"},
            "tokensLeft": 59,
            "tokensConsumed": 0,
            "refillIn": 26645,
            "refillRate": 5,
        }
    )
    assert said.reading is not None
    assert (said.reading.balance, said.reading.server_time, said.consumed) == (59, None, 0)


@pytest.mark.parametrize("error", [{"error": {"type": "invalidParameter"}}, {}])
def test_an_all_zero_envelope_is_no_reading(error: dict[str, object]) -> None:
    """A bad key's envelope, all token fields 0, says nothing of the bucket, but that nothing was consumed."""
    said = envelope(
        {"tokensLeft": 0, "refillIn": 0, "refillRate": 0, "tokensConsumed": 0, "timestamp": 1790277678673, **error}
    )
    assert said.reading is None
    assert "refillRate" in said.why
    assert said.consumed == 0


def test_flow_reduction_lowers_the_refill_and_not_the_capacity() -> None:
    """Refill lost to tracking is taken off; a net rate below zero is 0, a fraction is kept for the rule to round."""
    for reduction, net in ((0, 20.0), (2.5, 17.5), (19.6, 0.4), (25, 0.0)):
        body = {"tokensLeft": 10, "refillIn": 1, "refillRate": 20, "tokenFlowReduction": reduction}
        reading = envelope(body).reading
        assert reading is not None
        assert reading.refill == pytest.approx(net)
        assert reading.capacity == 1200


@pytest.mark.parametrize(
    "body",
    [
        None,
        "",
        b"",
        "null",
        "[]",
        "3",
        '"text"',
        "<html>bad gateway</html>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xfe",
        "[" * 100_000,
        "9" * 5000,
        {},
        {"tokensLeft": None},
        {"tokensLeft": "12"},
        {"tokensLeft": True},
        {"tokensLeft": 1.5},
        {"tokensLeft": float("nan")},
        {"tokensLeft": 10**400},
        {"tokensLeft": 1e308},
        {"tokensLeft": [5]},
        {"tokensLeft": 5, "refillIn": float("nan")},
        {"tokensLeft": 5, "refillIn": -1},
        {"tokensLeft": 5, "refillRate": "5"},
        {"tokensLeft": 5, "refillRate": float("inf")},
        {"tokensLeft": 5, "refillRate": 5, "timestamp": 10**30},
        {"tokensLeft": 5, "refillRate": 5, "tokenFlowReduction": {}},
    ],
)
def test_nonsense_is_no_reading_and_says_why(body: object) -> None:
    """Whatever a proxy or a fault sends: no exception, no reading, and a sentence that says what is wrong."""
    said = envelope(cast("Body", body))
    assert said.reading is None
    assert said.why
    assert len(said.why) < 200


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
