"""The fast path beside the reference model in fractions, on numbers drawn where its branches meet."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks.models.lapse import END_OF_TIME
from checks.models.reference import Reference
from keepa_tokens.quota import Quota
from keepa_tokens.rules import fast_path
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.fast_path import Numbers
from keepa_tokens.rules.flow import Flow
from keepa_tokens.units import LIMIT, NEVER

NOW: Final = 1_000_000
PERIOD_US: Final = 6
EXAMPLES: Final = 300
"""Cheap ones: each is a few sums."""

PLAIN: Final = st.builds(
    Quota,
    st.integers(1, 8),
    st.integers(0, 7),
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
    balance, since = data.draw(st.integers(-9, quota.capacity)), data.draw(st.integers(-3, 2 * PERIOD_US))
    part = not quota.stepped and quota.rate and balance < quota.capacity
    carry = data.draw(st.integers(0, period_us - 1)) if part else 0
    return numbers(quota, balance, since, carry, **others)


@settings(max_examples=EXAMPLES)
@given(PLAIN, st.integers(1, 9), st.integers(0, 2), st.data())
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
@given(PLAIN, st.integers(0, 9), st.data())
def test_what_comes_back_is_as_the_reference_has_it(quota: Quota, tokens: int, data: st.DataObject) -> None:
    """Given back for a place that is past, now, or ahead, before or behind others: balance and places are the same."""
    last = data.draw(st.sampled_from([0, NOW, NOW + 1]) | st.integers(NOW, NOW + 5 * PERIOD_US))
    own = data.draw(st.sampled_from([last, NOW]) | st.integers(NOW - PERIOD_US, max(NOW, last)))
    firm = data.draw(st.sampled_from([0, last]) | st.integers(0, last))
    n = drawn(data, quota, last_place=last, firm_place=firm, largest_place=data.draw(st.integers(0, quota.capacity)))
    model = reference(n)
    model.take_back(tokens, own, NOW)
    fast_path.refund(n, NOW, tokens, own)
    agree(n, model)


@pytest.mark.parametrize("held, done", [(LIMIT - 6, True), (LIMIT - 5, False)])
def test_more_than_can_be_counted_exactly_is_not_set_aside(held: int, done: bool) -> None:
    """A hold of 5 is opened as long as all that is held stays below 2**52."""
    n = numbers(Quota(10, 1, 1.0), 10, held=held)
    assert fast_path.reserve(n, NOW, 5, 0) is done
