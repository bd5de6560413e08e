"""A guard for the `keepa` package (1.6): its clients spend from the bucket, one hold for each HTTP request.

    api = guard(keepa.Keepa(key), KeepaSync.from_key(key))
    products = api.query(asins)   # 300 ASINs: three requests, three holds, three settles

One `query` makes several requests, so a guard around the call can't meter it; and the client drops most of an answer's
envelope. So the guard replaces `_request` on the instance. Its `_request` runs the client's own code, but with another
`requests` (or `aiohttp`) module in place of the imported one. That module waits for tokens, makes the request, and
settles the call before the client sees the answer. URLs, parsing, errors and attributes stay the client's.

- After a 429 the guard waits for tokens and makes the request again; the client never sees a 429, so it never sleeps by
  itself. With `wait=False` nothing waits: NotEnoughTokens if the bucket refuses, the client's RuntimeError if the
  server does.
- `/token` is answered from the bucket, without HTTP while the balance is known. `status.timestamp` is by this machine's
  clock: the client compares it with that clock, and the server's may be minutes off.
- A timeout or a broken connection is raised as it is, and the hold runs out: nobody knows whether the call was charged.
  If there was no connection at all, the tokens are free again. aiohttp repeats a GET once after a broken connection,
  which the guard can't see: one hold serves for both, and the answer has the true balance.
- The API key is taken out of exceptions. But urllib3, below `requests`, still logs whole URLs at level DEBUG.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import partial, wraps
from math import isfinite
from types import FunctionType, SimpleNamespace
from typing import ClassVar, Final, ParamSpec, TypeAlias, TypeVar, cast, overload

try:
    import keepa
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guard for the keepa package needs it: pip install 'keepa>=1.6,<1.7'"
    raise ImportError(msg) from missing

import aiohttp
import requests

from .._blocking import run
from ..errors import ConfigError, CostTooLarge, NotEnoughTokens, StorageUnavailable
from ..keepa.async_sync import AsyncKeepaSync
from ..keepa.quota import CAPACITY_MINUTES
from ..keepa.sync import KeepaSync
from ..rules.decision import Snapshot
from ._aiohttp import AiohttpExchange
from ._errors import forget_key
from ._flow import AnyCall, AnySync, Ask, GuardBase, ask_of, done, metered, patience
from ._http import KEY, Asked, Meter
from .requests import RequestsExchange

__all__ = ["guard", "unguard"]

SyncApi = TypeVar("SyncApi", bound=keepa.Keepa)
AsyncApi = TypeVar("AsyncApi", bound=keepa.AsyncKeepa)
Api: TypeAlias = keepa.Keepa | keepa.AsyncKeepa
P = ParamSpec("P")
T = TypeVar("T")

TOKEN: Final = "token"  # noqa: S105 - a path
IMAGE: Final = "graphimage"
MILLISECONDS: Final = 1000


@overload
def guard(api: SyncApi, sync: KeepaSync, *, keep: int = 0, timeout: float | None = None) -> SyncApi: ...
@overload
def guard(api: AsyncApi, sync: AsyncKeepaSync, *, keep: int = 0, timeout: float | None = None) -> AsyncApi: ...
def guard(
    api: keepa.Keepa | keepa.AsyncKeepa,
    sync: KeepaSync | AsyncKeepaSync,
    *,
    keep: int = 0,
    timeout: float | None = None,
) -> keepa.Keepa | keepa.AsyncKeepa:
    """Let `api` spend from the bucket of `sync`, and return it: the same object, every method as it was.

    Each HTTP request sets its estimate (`keepa_tokens.keepa.costs`) aside and is settled by its answer. A graph image
    has no envelope, so it is charged one token when its hold runs out. keep: tokens to leave for others. timeout:
    seconds that one request may wait for tokens (None: as long as it takes); raises AcquireTimeout, nothing spent, if
    the wait would be longer.

    A query of several requests that may not wait as long as it takes (`wait=False` or a timeout) gets the tokens of all
    of them before the first is made, or raises NotEnoughTokens: so a task that comes back pays for nothing twice. It
    raises CostTooLarge if the bucket could never have so many at once.

    Guarding again replaces the guard: a request is never metered twice. Raises ConfigError for a sync client with
    an async bucket or the reverse, and for a client whose requests the guard can't see (another release, a subclass
    with its own `_request`, a status that is a dict).
    """
    kind: type[_Guard]
    if isinstance(api, keepa.Keepa) and isinstance(sync, KeepaSync):
        kind = _SyncGuard
    elif isinstance(api, keepa.AsyncKeepa) and isinstance(sync, AsyncKeepaSync):
        kind = _AsyncGuard
    else:
        raise ConfigError(
            f"a {type(api).__name__} can't spend through a {type(sync).__name__}: guard keepa.Keepa with KeepaSync, and"
            " keepa.AsyncKeepa with AsyncKeepaSync"
        )
    if isinstance(getattr(api, "status", None), dict):
        raise ConfigError(
            f"keepa {keepa.__version__} keeps its status in a dict, which this guard doesn't understand: it is for"
            " keepa 1.6 (pip install 'keepa>=1.6,<1.7')"
        )
    guarded = kind(api, sync, keep, timeout)
    vars(api).update({name: getattr(guarded, name) for name in kind.shadows})
    return api


def unguard(api: keepa.Keepa | keepa.AsyncKeepa) -> None:
    """Take the guard off; without one, do nothing. Requests under way end as they began, their holds settled."""
    for name in _AsyncGuard.shadows:
        vars(api).pop(name, None)


class _Guard(GuardBase):
    """The methods that replace those of one client, sync or async.

    shadows: their names. reaches: the names by which the client's own code reaches the network.
    """

    shadows: ClassVar[tuple[str, ...]] = ("_request", "wait_for_tokens", "query")
    reaches: ClassVar[tuple[str, str]]

    def __init__(self, api: Api, sync: AnySync, keep: int, timeout: float | None) -> None:
        self._api = api
        self._sync = sync
        self._meter = Meter(keep=keep, timeout=timeout, again=True)
        self._meter_without_retry = Meter(keep=keep, timeout=timeout, again=False)
        self._own_request = _own_method(api, "_request", *self.reaches)

    def metered_library(self, asked: Asked, ask: Ask, meter: Meter) -> dict[str, object]:
        """Return the module that the client's code gets as its HTTP library for one request, by the import's name."""
        raise NotImplementedError

    async def make_request(
        self,
        request_type: str,
        payload: dict[str, object],
        wait: bool = True,  # noqa: FBT001, FBT002 - the client's own signature
        raw_response: bool = False,  # noqa: FBT001, FBT002 - the same
        is_json: bool = True,  # noqa: FBT001, FBT002 - the same
    ) -> object:
        """Make one request as the client does, metered; wait=False: don't wait for tokens."""
        payload[KEY] = "***"  # the client's methods hold the same dict, and an exception shows their frames
        if request_type == TOKEN and is_json and not raw_response:
            return await self.token_answer()
        return await self._http(request_type, payload, wait, raw_response=raw_response, is_json=is_json)

    async def query_pages(self, items: Iterable[object], *args: object, **options: object) -> object:
        """Query products as the client does, a request for each hundred of them."""
        pages = _Pages(1 if isinstance(items, str) else len({*map(str, items)}))  # the client drops repeated items
        outer = _PAGES.set(pages)
        try:
            return await done(_own_method(self._api, "query")(self._api, items, *args, **options))
        finally:
            with suppress(ValueError):  # thrown away, and closed in another context: there is nothing to put back there
                _PAGES.reset(outer)
            await _cancel(pages.held)

    async def wait_for_balance(self) -> None:
        """Wait until the balance is above 0, by the bucket. Takes nothing."""
        await self.token_answer()
        while self._api.tokens_left <= 0:
            call = await self._call(1, waits=True)
            await done(call.cancel())
            # A scout was granted whatever the balance: the server must be asked.
            _ = await (self._ask_server() if call.decision.probe else self.token_answer())

    async def token_answer(self) -> object:
        """Answer `/token` from the bucket; if the balance is unknown and there is no probe, let the client ask."""
        bucket: Snapshot = await done(self._sync.bucket.peek())
        if bucket.balance is None:
            try:
                bucket = await done(self._sync.refresh())
            except ConfigError:  # there is no probe: the client asks, unless another worker is asking just now
                with suppress(NotEnoughTokens):
                    call = await self._call(1, waits=False)
                    await done(call.cancel())
                    return await self._ask_server()
        return _show(self._api, bucket)

    async def _ask_server(self) -> object:
        return await self._http(TOKEN, {}, False)  # noqa: FBT003 - the client's own signature

    async def _http(self, request_type: str, payload: dict[str, object], wait: bool, **options: bool) -> object:  # noqa: FBT001 - the same
        asked = Asked(request_type, payload)
        wait = wait or patience(0.0) is None
        page = await self._next_page(asked, waits=wait)

        async def ask(cost: int, left: float | None) -> AnyCall:
            return page or await self._call(cost, left, waits=wait, label=asked.label)

        # A page held with the others is refused only if somebody else spends: then the client raises its own error.
        library = self.metered_library(asked, ask, self._meter if wait and page is None else self._meter_without_retry)
        request = _with_modules(self._own_request, **library)
        with _tidy(self._api):
            # The key is kept out of variables: tools that report errors show them.
            return await done(
                request(self._api, request_type, {**payload, KEY: self._api.accesskey}, wait=False, **options)
            )

    async def _call(
        self, cost: int, left: float | None = None, *, waits: bool, keep: int = 0, label: str = ""
    ) -> AnyCall:
        keep += self._meter.keep
        if waits:
            return await ask_of(self._sync, cost, keep, left, label)
        return await done(self._sync.try_request(cost, keep=keep, label=label))

    async def _next_page(self, asked: Asked, *, waits: bool) -> AnyCall | None:
        """Return the hold of a query's next page if it must not wait between pages; None: it may, or has one page."""
        pages = _PAGES.get()
        if pages is None or (waits and patience(self._meter.timeout) is None):
            return None
        if not pages.begun:
            pages.begun = True
            costs = pages.costs(asked, self._meter.cost(asked))
            if len(costs) > 1:
                pages.held = await self._hold_all(costs, waits=waits, label=asked.label)
        return pages.held.pop(0) if pages.held else None

    async def _hold_all(self, costs: list[int], *, waits: bool, label: str) -> list[AnyCall]:
        """Set the tokens of all pages aside, or none; each page has a hold of its own, settled by its own answer."""
        held: list[AnyCall] = []
        left, total = self._meter.timeout, sum(costs)
        try:
            for _ in range(2):  # are all of them there? ask for one token, with the others as `keep`
                first = await self._call(1, left, waits=waits, keep=total - 1)
                await done(first.cancel())
                if not first.decision.probe:
                    break
                await self._ask_server()  # a scout's grant: the balance is unknown, so ask for it by the free `/token`
            for cost in costs:
                held += [await self._call(cost, left, waits=waits, label=label)]
        except BaseException as error:
            await _cancel(held)
            if isinstance(error, CostTooLarge):
                keep = self._meter.keep
                raise CostTooLarge(total, keep, self._sync.bucket.quota.capacity - keep) from None
            if isinstance(error, NotEnoughTokens):
                raise type(error)(total, error.retry_after, error.reason, error.balance) from None
            raise
        return held


@dataclass
class _Pages:
    """The pages of one query, one request each. items: how many it asks for. held: the calls of the pages to come."""

    items: int
    begun: bool = False
    held: list[AnyCall] = field(default_factory=list[AnyCall])

    def costs(self, first: Asked, cost: int) -> list[int]:
        """Return what each page may cost, from the cost of the first one."""
        size = len(str(first.params.get("asin") or first.params.get("code")).split(","))
        return [cost * min(size, self.items - begin) // size for begin in range(0, self.items, size)]


_PAGES: Final = ContextVar[_Pages | None]("the query under way, in this thread or task", default=None)


async def _cancel(calls: list[AnyCall]) -> None:
    """Free the tokens of requests that were never sent."""
    for call in calls:
        with suppress(StorageUnavailable):  # then its hold runs out by itself
            await done(call.cancel())


def _blocking(method: Callable[P, Coroutine[object, None, T]]) -> Callable[P, T]:
    """Return a coroutine method whose steps never suspend as a blocking one."""

    @wraps(method)
    def blocking(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(lambda: method(*args, **kwargs))

    return blocking


class _SyncGuard(_Guard):
    """For `keepa.Keepa`, which makes its requests by `requests.get`."""

    reaches = ("requests", "get")
    _request = _blocking(_Guard.make_request)
    query = _blocking(_Guard.query_pages)
    wait_for_tokens = _blocking(_Guard.wait_for_balance)

    def metered_library(self, asked: Asked, ask: Ask, meter: Meter) -> dict[str, object]:
        def get(url: str, params: object, **options: object) -> requests.Response:
            send = partial(cast("Callable[..., requests.Response]", requests.get), url, params, **options)
            return run(lambda: metered(self._sync, meter, asked, RequestsExchange(send), ask))

        return {"requests": SimpleNamespace(get=get)}


class _AsyncGuard(_Guard):
    """For `keepa.AsyncKeepa`: each request has an `aiohttp.ClientSession`; images are not requested by `_request`."""

    shadows = (*_Guard.shadows, "download_graph_image")
    reaches = ("aiohttp", "ClientSession")
    _request = _Guard.make_request
    query = _Guard.query_pages
    wait_for_tokens = _Guard.wait_for_balance

    def __init__(self, api: Api, sync: AnySync, keep: int, timeout: float | None) -> None:
        super().__init__(api, sync, keep, timeout)
        self._own_download = _own_method(api, "download_graph_image", *self.reaches)

    async def download_graph_image(self, asin: str, *args: object, **options: object) -> None:
        """Download an image as the client does, metered: the client doesn't use `_request` for this."""
        asked = Asked(IMAGE, {"asin": asin})
        library = self.metered_library(asked, partial(self._call, waits=True), self._meter)
        download = _with_modules(self._own_download, **library)
        with _tidy(self._api):
            await done(download(self._api, asin, *args, **options))

    def metered_library(self, asked: Asked, ask: Ask, meter: Meter) -> dict[str, object]:
        @asynccontextmanager
        async def get(url: str, **options: object) -> AsyncGenerator[aiohttp.ClientResponse, None]:
            async with AiohttpExchange(url, options) as exchange:
                yield await metered(self._sync, meter, asked, exchange, ask)

        # A real session is opened for each request, once there are tokens.
        return {"aiohttp": SimpleNamespace(ClientSession=lambda: nullcontext(SimpleNamespace(get=get)))}


@contextmanager
def _tidy(api: Api) -> Generator[None, None, None]:
    """Around the client's own code: keep its status usable, and the API key out of what it raises."""
    tokens_left, status = api.tokens_left, replace(api.status)
    try:
        yield
    except BaseException as error:
        forget_key(error, api.accesskey)
        raise
    finally:
        if api.status.refillRate == 0:
            # The answer to a bad key has 0 in all fields, which says nothing; and the client divides by this one.
            api.tokens_left, api.status = tokens_left, status
        elif api.status.timestamp != status.timestamp:
            # The client compares the timestamp with this machine's clock; the server's may be minutes off.
            api.status.timestamp = _now_ms()


def _own_method(api: object, name: str, *needed: str) -> FunctionType:
    """Return the client's own method as a function; ConfigError if it doesn't reach the network by `needed`."""
    function: object = getattr(type(api), name, None)
    if not isinstance(function, FunctionType) or not {*needed} <= {*function.__code__.co_names}:
        raise ConfigError(
            f"{type(api).__name__}.{name} doesn't call {'.'.join(needed)} itself, so its requests can't be metered:"
            f" this guard is for the clients of keepa 1.6 as they come (installed: {keepa.__version__})"
        )
    return function


def _with_modules(function: FunctionType, **modules: object) -> Callable[..., object]:
    """Return a copy of a function in which `modules` replace those that it imported."""
    names = function.__globals__ | modules
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


def _show(api: keepa.Keepa | keepa.AsyncKeepa, bucket: Snapshot) -> dict[str, object]:
    """Set the client's status by the bucket, and return it as the answer of `/token`.

    While the balance is unknown, `tokens_left` stays as it was.
    """
    status = api.status
    if bucket.balance is not None:
        api.tokens_left = status.tokensLeft = bucket.balance
    # The plan's rate, which the client divides by; the net one may be 0.
    status.refillRate = max(1, bucket.capacity // CAPACITY_MINUTES)
    # From the next step to a full bucket it takes whole periods, so the rest is the time to the next step.
    to_step = bucket.full_in % bucket.period if isfinite(bucket.full_in) else 0.0
    status.refillIn = round((to_step or bucket.period) * MILLISECONDS)
    status.timestamp = _now_ms()
    return {**asdict(status), "tokensLeft": api.tokens_left, "tokensConsumed": 0}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
