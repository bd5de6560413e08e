"""The fast path beside the reference model in fractions, on numbers drawn where its branches meet."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks.models.lapse import END_OF_TIME
from checks.models.reference import Reference
from keepa_tokens.quota import Quota
from keepa_tokens.rules import fast_path
from keepa_tokens.rules.commands import Cancel
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.fast_path import Numbers
from keepa_tokens.rules.flow import Flow
from keepa_tokens.rules.line import Ticket
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, NEVER

NOW: Final = 1_000_000
PERIOD_US: Final = 6
EXAMPLES: Final = 300
"""Cheap ones: each is a few sums."""


def among(least: int, most: int) -> st.SearchStrategy[int]:
    """Draw any of them alike, where integers would prefer the smallest."""
    return st.sampled_from(range(least, most + 1))


PLAIN: Final = st.builds(
    Quota,
    among(1, 8),
    among(0, 7),
    st.just(PERIOD_US / 1_000_000),
    stepped=st.booleans(),
    overdraft=st.sampled_from([0, 0, 3]),
)


def numbers(quota: Quota, balance: int, since: int = 0, carry: int = 0, **others: int) -> Numbers:
    """Return a sound bucket that last flowed `since` microseconds before NOW."""
    rate, period_us = (quota.refill, quota.period_us) if quota.stepped else (quota.rate, quota.rate_period_us)
    rest = dict.fromkeys(("held", "open", "sequence", "last_place", "firm_place", "largest_place", "kept_back"), 0)
    return Numbers(
        level=(balance, NOW - since, carry),
        flow=Flow(quota.capacity, rate, period_us, quota.stepped),
        quota=quota,
        **rest | others,
    )


def reference(n: Numbers) -> Reference:
    """Return the same bucket as the reference has it, as it stands at NOW."""
    balance, at, carry = n.level
    model = Reference(n.quota, balance + Fraction(carry, n.flow.period_us), at, at)
    model.last_place, model.firm_place, model.largest_place = n.last_place, n.firm_place, n.largest_place
    model.flow_until(NOW)
    return model


def agree(n: Numbers, model: Reference) -> None:
    """Both have the same balance, to the part of a token that is under way, and the same places."""
    assert n.balance + Fraction(n.carry, n.flow.period_us) == model.level
    assert (n.last_place, n.firm_place) == (model.last_place, model.firm_place)


def drawn(data: st.DataObject, quota: Quota, **others: int) -> Numbers:
    """Draw a bucket of this quota that was used up to two periods ago."""
    period_us = quota.period_us if quota.stepped else quota.rate_period_us
    balance, since = data.draw(among(-9, quota.capacity)), data.draw(among(-3, 2 * PERIOD_US))
    part = not quota.stepped and quota.rate and balance < quota.capacity
    carry = data.draw(st.integers(0, period_us - 1)) if part else 0
    return numbers(quota, balance, since, carry, **others)


@settings(max_examples=EXAMPLES)
@given(PLAIN, among(1, 9), among(0, 2), st.data())
def test_what_is_taken_or_refused_is_as_the_reference_has_it(
    quota: Quota, tokens: int, held: int, data: st.DataObject
) -> None:
    """Granted, what is left is the same; refused, so is the wait, and nothing has changed. Plain holds don't count."""
    n = drawn(data, quota, held=held)
    before, model = n.level, reference(n)
    told = model.judged(tokens, 0, NOW, None)
    refusal = fast_path.take(n, NOW, tokens, 0)
    assert (refusal is None) == told.granted
    if refusal is None:
        model.level -= tokens
        agree(n, model)
        return
    assert n.level == before
    never = told.wait >= END_OF_TIME or told.reason is Reason.TOO_LARGE
    assert refusal == (model.balance, NEVER if never else told.wait)


@settings(max_examples=EXAMPLES)
@given(PLAIN, among(0, 9), st.data())
def test_what_comes_back_is_as_the_reference_has_it(quota: Quota, tokens: int, data: st.DataObject) -> None:
    """Given back for a place that is past, now, or ahead, before or behind others: balance and places are the same."""
    last = data.draw(among(NOW - 1, NOW + 5 * PERIOD_US))
    own = data.draw(st.sampled_from([last, NOW]) | among(NOW - PERIOD_US, max(NOW, last)))
    firm = data.draw(st.sampled_from([0, last]) | among(NOW - 2, max(NOW - 2, last)))
    n = drawn(data, quota, last_place=last, firm_place=firm, largest_place=data.draw(among(0, quota.capacity)))
    model = reference(n)
    model.take_back(tokens, own, NOW)
    if not fast_path.refund(n, NOW, tokens, own):
        assert NOW < own < last
        n.level = n.flowed(NOW)
        fast_path.give_back(n, NOW, tokens, own)
    agree(n, model)


@settings(max_examples=EXAMPLES)
@given(PLAIN, among(1, 9), st.data())
def test_a_place_is_told_and_noted_as_the_reference_has_it(quota: Quota, tokens: int, data: st.DataObject) -> None:
    """Behind places that are past, just come or ahead, before which something came back or nothing."""
    last = data.draw(among(NOW - 1, NOW + 5 * PERIOD_US))
    firm = data.draw(st.sampled_from([0, last]) | among(NOW - 2, max(NOW - 2, last)))
    n = drawn(data, quota, last_place=last, firm_place=firm, largest_place=data.draw(among(0, quota.capacity)))
    model = reference(n)
    told = model.judged(tokens, 0, NOW, None)
    at = fast_path.acquire(n, NOW, tokens, 0, LIMIT)
    if at is None:
        assert told.wait >= END_OF_TIME or told.reason is Reason.TOO_LARGE
        return
    assert at == NOW + told.wait
    model.level -= tokens
    if told.wait:
        model.wait(tokens, at, NOW)
    agree(n, model)
    assert n.largest_place == model.largest_place


@pytest.mark.parametrize(
    "stepped, until, tokens", [(False, 1, 1), (False, 6, 1), (False, 7, 2), (True, 5, 0), (True, 6, 1)]
)
def test_what_flows_in_counts_what_is_under_way(stepped: bool, until: int, tokens: int) -> None:
    """Of a smooth refill a sixth of a token is lacking to the next; a step comes whole."""
    assert Flow(9, 1, PERIOD_US, stepped).brought((0, NOW, 5), NOW, NOW + until) == tokens


RECHARGING: Final = Quota(10, 1, 60.0, recharge_to=5)
SYNCED: Final = Quota(10, 1, 60.0, synced=True)


@pytest.mark.parametrize(
    "quota, unusual",
    [
        (RECHARGING, {"closed_until": NOW + 1_000_000}),
        (RECHARGING, {"paused_until": NOW + 1_000_000}),
        (RECHARGING, {"line": (Ticket("t", 1, 0, 0, NOW + 1),)}),
        (RECHARGING, {"wide_capacity": 20, "terms_at": NOW}),
        (SYNCED, {"balance": None, "reading_at": None}),
        (SYNCED, {"paused_until": NOW + 1_000_000}),
    ],
)
def test_the_fast_path_is_shut_while_anything_unusual_is_there(quota: Quota, unusual: dict[str, Any]) -> None:
    """What is stored says so, whatever the script would look at by itself; without it it is open for a minute."""
    usual: dict[str, Any] = {"balance": 1, "refilled_at": NOW, "reading_at": NOW if quota.synced else None}
    for fields, until in ((usual | unusual, 0), (usual, NOW + 60_000_000)):
        damaged = BucketState(quota=quota, carry=LIMIT - 1, held=0, open=0, sequence=1, **fields)
        state, _ = transition(quota, damaged, NOW, Cancel("nobody"))
        assert state is not None
        assert state.fast is not None
        assert state.fast.until == until


@pytest.mark.parametrize("held, done", [(LIMIT - 6, True), (LIMIT - 5, False)])
def test_more_than_can_be_counted_exactly_is_not_set_aside(held: int, done: bool) -> None:
    """A hold of 5 is opened as long as all that is held stays below 2**52."""
    n = numbers(Quota(10, 1, 1.0), 10, held=held)
    assert fast_path.reserve(n, NOW, 5, 0) is done
