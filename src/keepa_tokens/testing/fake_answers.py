"""What the fake server's endpoints cost and answer: pure functions of the request and a `World`.

Where Keepa's price depends on what it finds (found offer pages, products of a code, a rating that was refreshed), a
checksum of the seed and the item decides. So a call costs the same whenever and in whatever order it is made.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, cast

JsonObject = dict[str, object]
Params = Mapping[str, str]

MAX_ITEMS: Final = 100
MAX_OFFERS: Final = 100
MAX_DIGITS: Final = 18
OFFERS_PER_PAGE: Final = 10
RESULTS_PER_PAGE: Final = 10
SEARCH_PAGES: Final = 4
CSV_FIELDS: Final = 36
KEEPA_EPOCH_MINUTES: Final = 21_564_000  # Keepa counts minutes from 2011-01-01

GREY_PIXEL: Final = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""A PNG."""


@dataclass(frozen=True, slots=True)
class World:
    """What Keepa would find for a request.

    seed: decides every result of a lookup. products_per_code: lowest and highest number of products of one code.
    query_matches: products that any query matches. minute: the server's time in Keepa minutes.
    """

    seed: int
    products_per_code: tuple[int, int]
    query_matches: int
    minute: int

    def draw(self, low: int, high: int, *about: object) -> int:
        """Return a number from low to high, always the same for the same `about`."""
        subject = "|".join(map(str, (self.seed, *about)))
        return low + zlib.crc32(subject.encode()) % (high - low + 1)

    def asin(self, *about: object) -> str:
        """Return an ASIN, always the same for the same `about`."""
        return f"B0{self.draw(0, 99_999_999, 'asin', *about):08d}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path: its price in tokens, its answer without the envelope, and a function that names a request's mistake."""

    price: int | Callable[[Params, World], int]
    body: Callable[[Params, World], JsonObject] = lambda _params, _world: {}
    fault: Callable[[Params], str | None] = lambda _params: None

    def cost(self, params: Params, world: World) -> int:
        """Return what a call costs."""
        return self.price if isinstance(self.price, int) else self.price(params, world)


def flag(params: Params, name: str) -> bool:
    """Return whether a parameter is switched on."""
    return params.get(name, "").lower() in {"1", "true"}


def items(params: Params, name: str) -> tuple[str, ...]:
    """Return the distinct items of a comma-separated parameter, in order."""
    return tuple(dict.fromkeys(item for item in params.get(name, "").split(",") if item))


def number(params: Params, name: str, default: int) -> int:
    """Return a whole-number parameter, or the default if it is missing, no number or longer than MAX_DIGITS."""
    text = params.get(name, "")
    try:
        return int(text) if len(text) <= MAX_DIGITS else default
    except ValueError:
        return default


def selection(params: Params) -> JsonObject:
    """Return the JSON selection of a query, deal or tracking request, empty where it is no JSON object."""
    parsed = _parsed(params.get("selection", ""))
    return cast("JsonObject", parsed) if isinstance(parsed, dict) else {}


def _parsed(text: str) -> object:
    """Return the value of a JSON text, None if it is no JSON."""
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed


def _selection_fault(params: Params) -> str | None:
    unreadable = params.get("selection") and _parsed(params["selection"]) is None
    return "parameter selection must be JSON" if unreadable else None


def _needs(name: str) -> Callable[[Params], str | None]:
    def check(params: Params) -> str | None:
        if not 1 <= len(items(params, name)) <= MAX_ITEMS:
            return f"parameter {name} must have 1 to {MAX_ITEMS} items"
        return None

    return check


# --- products


def _product_fault(params: Params) -> str | None:
    offers = params.get("offers", "")
    if offers.isdecimal() and number(params, "offers", MAX_OFFERS + 1) > MAX_OFFERS:
        return f"parameter offers must be at most {MAX_OFFERS}"
    return _needs("asin" if "asin" in params else "code")(params)


def _asins(params: Params, world: World) -> list[str]:
    if "asin" in params:
        return list(items(params, "asin"))
    limit = number(params, "code-limit", MAX_ITEMS * MAX_ITEMS)
    low, high = world.products_per_code
    return [
        world.asin(code, place)
        for code in items(params, "code")
        for place in range(min(limit, world.draw(low, high, "products", code)))
    ]


def _one_product_cost(params: Params, world: World, asin: str) -> int:
    extras = sum(world.draw(0, 1, name, asin) for name in ("rating", "historical-variations") if flag(params, name))
    extras += world.draw(0, 1, "update", asin) if number(params, "update", -1) == 0 else 0
    offers = number(params, "offers", 0)
    if offers <= 0:
        return 1 + extras + (2 if flag(params, "buybox") else 0)
    stock = world.draw(0, 2, "stock", asin) if flag(params, "stock") else 0
    # The pages replace the base 1 and include the buy box.
    return 6 * _offer_pages(offers, world, asin) + extras + stock


def _offer_pages(offers: int, world: World, asin: str) -> int:
    return world.draw(1, -(-offers // OFFERS_PER_PAGE), "pages", asin)


def _product(params: Params, world: World, asin: str) -> JsonObject:
    price = world.draw(500, 50_000, "price", asin)
    product: JsonObject = {
        "asin": asin,
        "domainId": number(params, "domain", 1),
        "title": f"Product {asin}",
        "lastUpdate": world.minute,
        "csv": _history(world, price) if number(params, "history", 1) else None,
    }
    if "stats" in params:
        product["stats"] = {"current": _per_field(price, -1), "avg": _per_field(price, -1)}
    if (offers := number(params, "offers", 0)) > 0:
        product["offersSuccessful"] = True
        product["offers"] = [
            {"offerId": place, "sellerId": f"A{place:012d}", "condition": 1, "offerCSV": [world.minute, price, 0]}
            for place in range(_offer_pages(offers, world, asin) * OFFERS_PER_PAGE)
        ]
    return product


def _per_field(value: int, other: int) -> list[int]:
    return [value, value, *[other] * (CSV_FIELDS - 2)]


def _history(world: World, price: int) -> list[list[int] | None]:
    series = [world.minute - 1440, price + 100, world.minute - 60, price]
    return [series, series, *[None] * (CSV_FIELDS - 2)]


# --- everything else


def _found(params: Params, world: World) -> int:
    per_page = selection(params).get("perPage", 50)
    return max(0, min(world.query_matches, per_page if isinstance(per_page, int) else 50))


def _query_cost(params: Params, world: World) -> int:
    cost = 10 + -(-_found(params, world) // 100)
    return cost + (30 + -(-world.query_matches // 1_000_000) if flag(params, "stats") else 0)


def _query_body(params: Params, world: World) -> JsonObject:
    asins = [world.asin("query", place) for place in range(_found(params, world))]
    return {"asinList": asins, "totalResults": world.query_matches}


def _search_cost(params: Params, _: World) -> int:
    if params.get("type") == "category":
        return 1
    return 10 if "page" in params else 10 * SEARCH_PAGES


def _search_body(params: Params, world: World) -> JsonObject:
    if params.get("type") == "category":
        return {"categories": _categories(["281052", "493964"], params)}
    pages = range(number(params, "page", 0), number(params, "page", 0) + 1) if "page" in params else range(SEARCH_PAGES)
    places = [page * RESULTS_PER_PAGE + place for page in pages for place in range(RESULTS_PER_PAGE)]
    return {"products": [_product(params, world, world.asin("search", params.get("term"), place)) for place in places]}


def _categories(ids: Iterable[str], params: Params) -> JsonObject:
    domain = number(params, "domain", 1)
    return {
        each: {"domainId": domain, "catId": int(each), "name": f"Category {each}", "children": [], "parent": 0}
        for each in ids
        if each.isdecimal() and len(each) <= MAX_DIGITS
    }


def _seller_cost(params: Params, world: World) -> int:
    def one(seller: str) -> int:
        if "update" in params and world.draw(0, 1, "collected", seller):
            return 50
        return 10 if flag(params, "storefront") else 1

    return sum(map(one, items(params, "seller")))


def _seller(params: Params, world: World, seller: str) -> JsonObject:
    answer: JsonObject = {
        "sellerId": seller,
        "sellerName": f"Seller {seller}",
        "domainId": number(params, "domain", 1),
        "lastUpdate": world.minute,
    }
    if flag(params, "storefront"):
        answer["asinList"] = [world.asin("storefront", seller, place) for place in range(20)]
    return answer


def _deal_body(_: Params, world: World) -> JsonObject:
    deals = [{"asin": (asin := world.asin("deal", place)), "title": f"Product {asin}"} for place in range(10)]
    return {"deals": {"dr": deals, "categoryIds": [281052], "categoryCount": [len(deals)]}}


def _bestsellers_body(params: Params, world: World) -> JsonObject:
    category = number(params, "category", 0)
    asins = [world.asin("bestsellers", category, place) for place in range(50)]
    return {"bestSellersList": {"categoryId": category, "lastUpdate": world.minute, "asinList": asins}}


def _lightning_body(params: Params, world: World) -> JsonObject:
    asins = items(params, "asin") or tuple(world.asin("lightning", place) for place in range(50))
    return {"lightningDeals": [{"asin": asin, "title": f"Product {asin}"} for asin in asins]}


def adds_tracking(params: Params) -> bool:
    """Return whether a tracking request adds trackings: only such a tracking request costs tokens."""
    return params.get("type") == "add"


def _tracking_cost(params: Params, _: World) -> int:
    if not adds_tracking(params):
        return 0
    parsed = _parsed(params.get("selection", "") or params.get("tracking", ""))
    return len(cast("list[object]", parsed)) if isinstance(parsed, list) else 1


ENDPOINTS: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "/token": Endpoint(0),
        "/product": Endpoint(
            lambda params, world: sum(_one_product_cost(params, world, asin) for asin in _asins(params, world)),
            lambda params, world: {"products": [_product(params, world, asin) for asin in _asins(params, world)]},
            _product_fault,
        ),
        "/query": Endpoint(_query_cost, _query_body, _selection_fault),
        "/search": Endpoint(_search_cost, _search_body),
        "/deal": Endpoint(5, _deal_body, _selection_fault),
        "/bestsellers": Endpoint(50, _bestsellers_body),
        "/topseller": Endpoint(50, lambda _params, _world: {"sellerIdList": [f"A{place:012d}" for place in range(50)]}),
        "/lightningdeal": Endpoint(lambda params, _: len(items(params, "asin")) or 500, _lightning_body),
        "/seller": Endpoint(
            _seller_cost,
            lambda params, world: {"sellers": {each: _seller(params, world, each) for each in items(params, "seller")}},
            _needs("seller"),
        ),
        "/category": Endpoint(
            1,
            lambda params, _: {"categories": _categories(items(params, "category"), params), "categoryParents": {}},
            _needs("category"),
        ),
        "/graphimage": Endpoint(1, fault=_needs("asin")),
        "/tracking": Endpoint(_tracking_cost, lambda _params, _world: {"trackings": []}, _selection_fault),
    }
)
