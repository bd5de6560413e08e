"""What a call to Keepa may cost, before it is made. Pure.

A hold sets an estimate aside until the answer says what the call really cost. So an estimate is the highest cost
wherever that is known, and never 0 for a call that can cost something. Where Keepa names no highest cost, the estimate
is a guess, and its comment says so. The numbers are from Keepa's API documentation; "measured": from recorded answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, cast

__all__ = ["estimate"]

Params: TypeAlias = Mapping[str, object]

UNKNOWN_PATH: Final = 1
"""The estimate for a path that isn't in the table: what most calls cost."""

LARGEST: Final = 10_000
"""The largest number that Keepa takes (perPage). Keepa rejects a larger one, so it must not raise an estimate."""

# Tokens for each product. Offer pages replace PRODUCT; measured: 5 to 7.7 a product at offers=20, where 12 is the most.
PRODUCT: Final = 1
OFFER_PAGE: Final = 6
OFFERS_PER_PAGE: Final = 10
REFRESHED: Final = 1  # each of rating, update=0 and historical-variations: charged only if it brought something new
BUYBOX: Final = 2  # the offer pages include it
STOCK: Final = 2  # only together with offers

# Tokens for each seller: the basic price, or with a storefront, or where `update` makes Keepa collect that anew.
SELLER, STOREFRONT, COLLECTED = 1, 10, 50

# Tokens for each call of the Product Finder. With stats comes 1 per million matches too, which nobody knows before.
QUERY: Final = 10
ASINS_PER_QUERY_TOKEN: Final = 100
QUERY_PAGE: Final = 50  # results where no perPage is given
QUERY_STATS: Final = 30

# Tokens for each page of a search, and how many pages a search without `page` returns.
SEARCH_PAGE, SEARCH_PAGES = 10, 4
CATEGORY: Final = 1


def estimate(path: str, params: Mapping[str, object]) -> int:
    """Return the tokens to set aside for a call of `path` (`product`, `/product/`) with `params`.

    The highest cost where that is known; 0 only for calls that are always free. Guesses: 1 for each product code
    (measured: 1.9 on average, one code up to 1500; with `code-limit` the highest cost), nothing for a query's millions
    of matches, 1 for an unknown path. Values may be numbers, booleans, texts with commas or sequences; one that can't
    be read counts as one item. Never raises.
    """
    name = path.strip("/?").rpartition("/")[2].lower()  # a proxy may put a path of its own before it
    if name == "token" or (name == "tracking" and params.get("type") != "add"):
        return 0
    price = _PRICES.get(name, UNKNOWN_PATH)
    return max(1, price if isinstance(price, int) else price(params))


def _products(params: Params) -> int:
    codes = _count(params.get("code")) * max(1, _number(params.get("code-limit")))
    return (_count(params.get("asin")) or codes) * _one_product(params)


def _one_product(params: Params) -> int:
    refreshed = REFRESHED * sum((is_on(params, "rating"), is_on(params, "historical-variations"), _live(params)))
    pages = -(-_number(params.get("offers")) // OFFERS_PER_PAGE)
    if pages > 0:
        return OFFER_PAGE * pages + STOCK * is_on(params, "stock") + refreshed
    return PRODUCT + BUYBOX * is_on(params, "buybox") + refreshed


def _live(params: Params) -> bool:
    """Return whether `update` is 0 and so asks for live data; another number (a greatest age in hours) is free."""
    return str(params.get("update")).strip().lower() in {"0", "0.0", "false"}


def _query(params: Params) -> int:
    selection = _json(params.get("selection"))
    chosen = cast("Params", selection) if isinstance(selection, Mapping) else params
    results = _number(chosen.get("perPage", QUERY_PAGE), unreadable=LARGEST)
    return QUERY + -(-results // ASINS_PER_QUERY_TOKEN) + QUERY_STATS * is_on(params, "stats")


def _search(params: Params) -> int:
    if params.get("type") == "category":
        return CATEGORY
    return SEARCH_PAGE * (SEARCH_PAGES if params.get("page") is None else 1)


def _sellers(params: Params) -> int:
    storefront = STOREFRONT if is_on(params, "storefront") else SELLER
    return _count(params.get("seller")) * (storefront if params.get("update") is None else COLLECTED)


def _trackings(params: Params) -> int:
    """Return a token for each one added; any other tracking call is free."""
    added = _json(params.get("selection") or params.get("tracking"))
    return len(cast("list[object]", added)) if isinstance(added, list) else 1


_PRICES: Final[Mapping[str, int | Callable[[Params], int]]] = MappingProxyType(
    {
        "product": _products,
        "query": _query,
        "search": _search,
        "bestsellers": 50,
        "topseller": 50,
        "deal": 5,
        "lightningdeal": lambda params: _count(params.get("asin")) or 500,  # without asin it returns all deals
        "seller": _sellers,
        "category": CATEGORY,
        "graphimage": 1,  # 0 if repeated within 90 minutes
        "tracking": _trackings,
    }
)
_OFF: Final = frozenset({"", "0", "false", "none", "no", "off"})


def _count(value: object) -> int:
    """Return the number of items in a text with commas, or in a collection of such texts."""
    if value is None:
        return 0
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return sum(1 for item in value.split(",") if item.strip())
    if isinstance(value, (list, tuple, set, frozenset)):
        return sum(_count(item) for item in cast("list[object]", value))
    return 1


def is_on(params: Params, name: str) -> bool:
    """Return whether a parameter is switched on."""
    return str(params.get(name, "")).strip().lower() not in _OFF


def _number(value: object, *, unreadable: int = 1) -> int:
    """Return the nearest whole number from 0 to LARGEST; 0 for None or an empty text."""
    if value is None or value == "":
        return 0
    try:
        number = float(str(int(value) if isinstance(value, bool) else value))
    except ValueError:
        return unreadable
    return int(max(0.0, min(number, float(LARGEST))))  # NaN: 0


def _json(value: object) -> object:
    """Return the value of a JSON text, None for a text that is no JSON, and anything else as it is."""
    try:
        parsed: object = json.loads(value) if isinstance(value, (str, bytes)) else value
    except (ValueError, RecursionError):
        return None
    return parsed
