"""What a call is estimated to cost, against Keepa's price list and against what the fake server charges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepa_tokens.keepa.costs import estimate
from keepa_tokens.testing import FakeKeepa

THREE = "B000000001,B000000002,B000000003"


@pytest.mark.parametrize(
    "path, params, tokens",
    [
        ("token", {}, 0),
        ("product", {"asin": THREE}, 3),
        ("product", {"asin": THREE, "stats": 90, "history": 1, "days": 30, "videos": 1, "aplus": 1}, 3),
        ("product", {"asin": THREE, "rating": 1}, 6),
        ("product", {"asin": THREE, "update": 0}, 6),
        ("product", {"asin": THREE, "update": 24}, 3),
        *(("query", {"selection": broken}, 11) for broken in ("{", "[" * 100_000)),
        ("query", {"perPage": "many"}, 110),
        ("tracking", {"type": "add", "tracking": "[1, 2]"}, 2),
        ("product", {"asin": THREE, "update": -1}, 3),
        ("product", {"asin": THREE, "historical-variations": True}, 6),
        ("product", {"asin": THREE, "buybox": 1}, 9),
        ("product", {"asin": THREE, "rating": 0, "buybox": "0", "update": None, "offers": None}, 3),
        ("product", {"asin": THREE, "rating": 1, "update": 0, "historical-variations": 1, "buybox": 1}, 18),
        *(("product", {"asin": asin}, 2) for asin in (b"A,B", b"\xff,B", "A,, B,", ("A", b"B"), {"A", 5})),
        ("product", {"asin": 5}, 1),
        *(("product", {"asin": THREE, "update": now}, 6) for now in (" 0 ", False)),
        *(("product", {"asin": THREE, "rating": off}, 3) for off in (" 0 ", "Off", False)),
        *(("product", {"asin": THREE, "offers": none}, 3) for none in ("", False)),
        ("product", {"asin": THREE, "offers": 20}, 36),
        ("product", {"asin": THREE, "offers": 21}, 54),
        ("product", {"asin": "B1", "offers": 100}, 60),
        ("product", {"asin": THREE, "offers": 20, "stock": 1}, 42),
        ("product", {"asin": THREE, "stock": 1}, 3),
        ("product", {"asin": THREE, "offers": 20, "buybox": 1, "rating": 1}, 39),
        ("product", {"code": "4006381333931,4006381333948"}, 2),
        ("product", {"code": "4006381333931,4006381333948", "code-limit": 10}, 20),
        ("product", {}, 1),
        ("/keepa/v1/bestsellers/", {}, 50),
        ("search", {"term": "lamp"}, 40),
        ("search", {"term": "lamp", "page": 0}, 10),
        ("search", {"term": "lamp", "type": "category"}, 1),
        ("query", {"selection": '{"perPage": 50}'}, 11),
        ("query", {"selection": '{"perPage": 101}'}, 12),
        ("query", {"selection": {"perPage": 10000}}, 110),
        ("query", {"selection": '{"perPage": 10000}', "stats": 1}, 140),
        ("query", {"selection": "{}"}, 11),
        ("query", {"perPage": 250}, 13),
        ("bestsellers", {"category": 1}, 50),
        ("topseller", {}, 50),
        ("deal", {"selection": "{}"}, 5),
        ("lightningdeal", {"asin": THREE}, 3),
        ("lightningdeal", {}, 500),
        ("seller", {"seller": "A1,A2"}, 2),
        ("seller", {"seller": "A1,A2", "storefront": 1}, 20),
        ("seller", {"seller": "A1,A2", "storefront": 1, "update": 48}, 100),
        ("category", {"category": "1,2,3"}, 1),
        ("graphimage", {"asin": "B1"}, 1),
        ("tracking", {"type": "add", "selection": '[{"asin": "B1"}, {"asin": "B2"}]'}, 2),
        ("tracking", {"type": "add", "tracking": {"asin": "B1"}}, 1),
        ("tracking", {"type": "list"}, 0),
        ("something-new", {"asin": THREE}, 1),
        *((path, {"asin": THREE}, 3) for path in ("/product", "product/", "/product/", "/product/?", "Product")),
        *(("product", {"asin": of(THREE.split(","))}, 3) for of in (list, tuple, set)),
        ("product", {"asin": [THREE]}, 3),
    ],
)
def test_the_price_list(path: str, params: Mapping[str, object], tokens: int) -> None:
    """Each line of Keepa's price list, as the ceiling where there is one; a path and its ASINs come in any form."""
    assert estimate(path, params) == tokens


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**30, "1e999", 10**400, -1, "many"])
@pytest.mark.parametrize("path, name", [("product", "offers"), ("product", "code-limit"), ("query", "perPage")])
def test_impossible_numbers_make_no_impossible_estimate(path: str, name: str, number: object) -> None:
    """A number that Keepa will reject neither raises nor makes an estimate that no bucket could hold."""
    assert 1 <= estimate(path, {"code": "1,2", name: number}) <= 20_000


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
names = st.sampled_from(
    [
        *("asin", "code", "code-limit", "offers", "update", "rating"),
        *("stock", "selection", "page", "type", "seller", "stats"),
    ]
)
paths = st.sampled_from(
    ["product", "query", "search", "deal", "bestsellers", "lightningdeal", "seller", "category", "tracking", "token"]
)


@given(paths | st.text(), st.dictionaries(names, anything))
def test_whatever_is_asked_has_a_price(path: str, params: dict[str, object]) -> None:
    """No path and no value of a parameter raises, and the estimate is one that a bucket can hold."""
    assert 0 <= estimate(path, params) < 2**40


asked = st.fixed_dictionaries(
    {},
    optional={
        "asin": st.lists(st.from_regex(r"B0[0-9]{4}", fullmatch=True), min_size=1, max_size=9).map(",".join),
        "offers": st.integers(20, 100),
        "stock": st.integers(0, 1),
        "rating": st.booleans(),
        "update": st.just(0),
        "historical-variations": st.integers(0, 1),
        "buybox": st.integers(0, 1),
        "seller": st.lists(st.from_regex(r"A[0-9]{4}", fullmatch=True), min_size=1, max_size=9).map(",".join),
        "storefront": st.integers(0, 1),
        "category": st.just("1"),
        "type": st.sampled_from(["category", "add", "list"]),
        "page": st.integers(0, 9),
        "selection": st.fixed_dictionaries({"perPage": st.integers(50, 10_000)}).map(json.dumps),
    },
)


@given(paths, asked, st.integers(0, 1000))
def test_the_estimate_is_a_ceiling(path: str, params: dict[str, Any], seed: int) -> None:
    """The fake server, which charges by what it finds, never charges more than the estimate."""
    fake = FakeKeepa(seed=seed, query_matches=1_000_000)
    answer = fake.request(path, params)
    assert fake.spent <= estimate(path, params) or answer.status != 200
