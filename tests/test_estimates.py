"""The estimator: starts from the table of costs, and learns from what settled calls have cost."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepa_tokens import KeepaSync, TokenBucket, keepa_quota
from keepa_tokens.events import Event, EventKind
from keepa_tokens.keepa.costs import estimate
from keepa_tokens.keepa.estimates import Estimator
from keepa_tokens.testing import FakeKeepa, ManualClock
from tests.helpers import in_a_child, in_threads
from tests.keepa_world import asins

PRODUCT = "product"


def codes(count: int, **more: object) -> dict[str, object]:
    return {"code": ",".join(f"{number:013d}" for number in range(count)), **more}


def learned(path: str, *calls: tuple[Mapping[str, object], int | None], window: int = 16) -> Estimator:
    estimator = Estimator(window=window)
    for params, tokens in calls:
        estimator.learn(path, params, tokens)
    return estimator


def test_it_starts_from_the_table() -> None:
    """Before anything was settled the estimate is the table's, free calls included."""
    estimator = Estimator()
    for path, params in ((PRODUCT, codes(7)), ("query", {}), ("token", {}), ("/product/", asins(3, offers=20))):
        assert estimator.estimate(path, params) == estimate(path, params)


OFFERS, CHEAP = asins(10, offers=20), (codes(1), 2)


@pytest.mark.parametrize(
    "why, settled, asked, tokens",
    [
        ("too low an estimate happens once", [(codes(100), 386)], codes(100), 386),
        ("the dearest counts", [(codes(100), 386), (codes(100), 190)], codes(100), 386),
        ("half as many at half", [(codes(50), 193)], codes(25), 97),
        ("twice as many at twice", [(codes(50), 193)], codes(100), 386),
        ("a dear code is expected again", [CHEAP] * 15 + [(codes(1), 1500)], codes(1), 1500),
        ("once, the others at the average", [CHEAP] * 15 + [(codes(1), 1500)], codes(100), 1500 + -(-99 * 1530 // 16)),
        ("an oddity is remembered", [(codes(1), 1500), *[CHEAP] * 15], codes(1), 1500),
        ("and forgotten with the window", [(codes(1), 1500), *[CHEAP] * 16], codes(1), 2),
        ("some cheap calls prove little", [(OFFERS, 60)] * 15, OFFERS, 120),
        ("a window full of them is enough", [(OFFERS, 60)] * 15 + [(OFFERS, 66)], OFFERS, 66),
        ("dear small calls break no ceiling", [(asins(1, rating=1), 2)] * 16, asins(100, rating=1), 200),
        ("one that broke its own counts", [(asins(1, rating=1), 2), (asins(1, rating=1), 5)], asins(1, rating=1), 5),
        ("codes say nothing of ASINs", [(codes(10), 90)], asins(10), 10),
        ("or of offers", [(codes(10), 90)], OFFERS, 120),
        ("or of what has a switch on", [(codes(10), 90)], codes(10, rating=1), 20),
        ("or what has another one", [(codes(10, rating=1), 90)], codes(10, **{"historical-variations": 1}), 20),
        ("a switch is off by any word", [(codes(10, rating=" FALSE"), 90)], codes(10, rating=0), 90),
        ("and on by any other", [(codes(10, rating=True), 90)], codes(10, rating="1"), 90),
        ("or another limit", [(codes(10), 90)], codes(10, **{"code-limit": 3}), 30),
        (
            "the domain, the API key and the dates of stats make no kind",
            [(codes(10, domain=1, key="a", stats="2026-01-01,2026-02-01"), 90)],
            codes(10, domain=3, key="b", stats=90),
            90,
        ),
        *(
            ("what says nothing of a price is not learned", [(asins(10), nothing)], asins(10), 10)
            for nothing in (None, 0, -5, 2**60)
        ),
    ],
)
def test_an_estimate_follows_what_calls_of_its_kind_have_cost(
    why: str, settled: list[tuple[Mapping[str, object], int | None]], asked: Mapping[str, object], tokens: int
) -> None:
    """By the rule at the head of the module: from the table, up at once, down when the window is full."""
    assert learned(PRODUCT, *settled).estimate(PRODUCT, asked) == tokens, why


def test_a_ceiling_that_was_broken_holds_no_more() -> None:
    """After a dear small call more than the table's number may be needed for a large one too."""
    small = asins(1, rating=1)
    assert learned(PRODUCT, *[(small, 2)] * 16, (small, 5)).estimate(PRODUCT, asins(100, rating=1)) > 200


def test_the_number_of_a_page_makes_no_kind_but_its_being_there_does() -> None:
    """A search for a page costs 10, one without 40; and no other path learns from it."""
    estimator = learned("search", ({"term": "x", "page": 0}, 14))
    assert estimator.estimate("search", {"term": "y", "page": 7}) == 14
    assert estimator.estimate("/Search/", {"term": "y", "page": 1}) == 14
    assert estimator.estimate("search", {"term": "y"}) == 40
    assert estimator.estimate("seller", {"seller": "A1"}) == 1


def test_free_calls_stay_free() -> None:
    """Whatever is said of it, a call that the table knows to be free is estimated at 0, and kept nowhere."""
    estimator = learned("token", ({}, 7))
    assert estimator.estimate("token", {}) == 0
    assert repr(estimator) == "Estimator(window=16, kinds=0)"


def test_memory_is_bounded_and_the_last_ones_used_stay() -> None:
    """Of more kinds than it may remember, those go that were not asked about for longest."""
    estimator = Estimator(kinds=3)
    for offers in (10, 20, 30):
        estimator.learn(PRODUCT, asins(1, offers=offers), 100)
    estimator.estimate(PRODUCT, asins(1, offers=10))
    estimator.learn(PRODUCT, asins(1, offers=40), 100)
    assert repr(estimator) == "Estimator(window=16, kinds=3)"
    assert estimator.estimate(PRODUCT, asins(1, offers=10)) == 100
    assert estimator.estimate(PRODUCT, asins(1, offers=20)) == 12


settled = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 3000)), min_size=1, max_size=16)


@given(settled, st.integers(1, 100))
def test_no_estimate_is_below_the_dearest_call_of_its_size_or_less(calls: list[tuple[int, int]], size: int) -> None:
    """Whatever was settled lately, asking again for as much or more is never estimated below it."""
    estimator = learned(PRODUCT, *((codes(items), tokens) for items, tokens in calls))
    known = [tokens for items, tokens in calls if items <= size]
    assert estimator.estimate(PRODUCT, codes(size)) >= max(known, default=1)


@given(settled, st.integers(1, 99))
def test_more_items_are_never_estimated_below_fewer(calls: list[tuple[int, int]], size: int) -> None:
    """One code more costs at least as much."""
    estimator = learned(PRODUCT, *((codes(items), tokens) for items, tokens in calls))
    assert estimator.estimate(PRODUCT, codes(size)) <= estimator.estimate(PRODUCT, codes(size + 1))


@given(settled, st.integers(1, 100))
def test_calls_within_their_ceiling_lift_no_estimate_above_it(calls: list[tuple[int, int]], size: int) -> None:
    """Where no call cost more than its own ceiling, no estimate is above the table's, whatever the sizes."""
    estimator = Estimator()
    for items, tokens in calls:
        estimator.learn(PRODUCT, asins(items, offers=20), 1 + tokens % (12 * items))
    assert estimator.estimate(PRODUCT, asins(size, offers=20)) <= 12 * size


@given(settled)
def test_an_estimate_stays_within_what_was_seen(calls: list[tuple[int, int]]) -> None:
    """It never exceeds the dearest code seen, times the number of codes, nor falls short of 1."""
    estimator = learned(PRODUCT, *((codes(items), tokens) for items, tokens in calls))
    dearest = max(-(-tokens // items) for items, tokens in calls)
    for size in (1, 10, 100):
        most = max([dearest * size, size, *(tokens for items, tokens in calls if items <= size)])
        assert 1 <= estimator.estimate(PRODUCT, codes(size)) <= most + 1


def test_threads_may_share_one() -> None:
    """Eight threads that learn and ask at once over more kinds than it remembers raise nothing, and the bound holds."""
    estimator = Estimator(kinds=5)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            params = codes(chance.randint(1, 9), **{"code-limit": chance.randint(1, 20)})
            estimator.learn(PRODUCT, params, chance.randint(1, 500))
            estimator.estimate(PRODUCT, params)

    in_threads(8, work)
    assert repr(estimator) == "Estimator(window=16, kinds=5)"


# --- how the cost of a call reaches it


def test_a_settled_call_says_what_it_cost() -> None:
    """`consumed` is None before, then what the answer says: the cost, 0 for a refusal, None where it says nothing."""
    fake = FakeKeepa(initial=10, clock=(clock := ManualClock()), products_per_code=(3, 3))
    events: list[Event] = []
    bucket = TokenBucket(keepa_quota(5), clock=clock, listener=events.append)
    sync = KeepaSync(bucket, probe=fake.probe)
    call = sync.request(5)
    before = call.consumed
    answer = fake.request("/product", codes(5))
    call.settle(answer.content, status=answer.status)
    assert (before, call.consumed) == (None, 15)
    refused = fake.request("/product", codes(5))
    call = sync.try_request(0)
    call.settle(refused.content, status=refused.status)
    assert (refused.status, call.consumed, call.refused) == (429, 0, True)
    for nothing in (b"", b"<html>", None):
        call = sync.try_request(0)
        call.settle(nothing, status=200)
        assert call.consumed is None
    settled = [event.why for event in events if event.kind is EventKind.SETTLED]
    assert settled == ["", "", "the server refused the call (429)", "", ""]  # of the 429 the bucket's own event first


@pytest.mark.deep
def test_estimates_of_codes_follow_what_they_cost() -> None:
    """Of 300 calls for codes the table estimates all at half of the cost, the estimator one; none is far too high."""
    fake = FakeKeepa(refill_rate=60, clock=ManualClock(), products_per_code=(1, 5), seed=3)
    chance = random.Random(5)
    table = learning = 0
    estimator = Estimator()
    for _ in range(300):
        params = {"code": ",".join(str(chance.randint(10**12, 10**13)) for _ in range(chance.randint(20, 100)))}
        fake.clock.sleep(600.0)
        answer = fake.request("/product", params).body
        assert answer is not None
        consumed = answer["tokensConsumed"]
        assert isinstance(consumed, int)
        table += estimate("product", params) < consumed / 2
        learning += estimator.estimate("product", params) < consumed / 1.25
        assert estimator.estimate("product", params) <= 3 * consumed
        estimator.learn("product", params, consumed)
    assert table == 300
    assert learning == 1


def test_a_forked_child_goes_on() -> None:
    """Forked while another thread is in the estimator, a child estimates by what was learned, learns, and ends."""
    estimator = learned("product", ({"code": "1"}, 7))

    def learns() -> int:
        estimator.learn("product", {"code": "1"}, 9)
        return estimator.estimate("product", {"code": "1"})

    with estimator._lock:  # as the other thread
        ended = in_a_child(learns)
    assert ended() == 9
