"""A guard for the `keepa` package (1.6): its clients spend from the bucket, one hold for each HTTP request.

    api = guard(keepa.Keepa(key), KeepaSync.from_key(key))
    products = api.query(asins)   # 300 ASINs: three requests, three holds, three settles

One `query` makes several requests, so a guard around the call can't meter it; and the client drops most of an answer's
envelope. So the guard shadows `_request` on the instance. The shadow runs the client's own code, with a `requests` (or
`aiohttp`) of its own in the place of the imported one: one that waits for tokens, makes the request, and settles by the
answer before the client sees it. Building URLs, parsing, errors and attributes stay the client's.

- A 429 goes back to the bucket and is made again; the client never sees one, so it never sleeps by itself. With
  `wait=False` nothing waits: NotEnoughTokens where the bucket refuses, the client's RuntimeError where the server does.
- `/token` is answered from the bucket, without HTTP while the balance is known. `status.timestamp` is by this machine's
  clock: the client compares the two, and the server's may be minutes off.
- A timeout or a broken connection surfaces as it is, and its hold runs out: whether it was charged, nobody knows. Where
  no connection was made at all, the tokens are free again. aiohttp repeats a GET once after a broken connection, unseen
  from here: one hold for both, and the answer has the true balance.
- The API key is taken out of the exceptions' texts. Below `requests`, urllib3 logs whole URLs at level DEBUG, still.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Final, Self, TypeVar, cast, overload
from urllib.parse import quote

try:
    import keepa
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guard for the keepa package needs it: pip install 'keepa>=1.6,<1.7'"
    raise ImportError(msg) from missing

import aiohttp
import requests
import urllib3.exceptions

from .._arguments import timeout_us, whole
from ..async_bucket import Pending
from ..errors import ConfigError
from ..keepa.async_sync import AsyncCall, AsyncKeepaSync
from ..keepa.costs import estimate
from ..keepa.quota import CAPACITY_MINUTES
from ..keepa.sync import Call, KeepaSync
from ..rules.decision import Snapshot

__all__ = ["guard", "unguard"]

SyncApi = TypeVar("SyncApi", bound=keepa.Keepa)
AsyncApi = TypeVar("AsyncApi", bound=keepa.AsyncKeepa)

TOKEN: Final = "token"  # noqa: S105 - a path
IMAGE: Final = "graphimage"
SHADOWED: Final = ("_request", "wait_for_tokens", "download_graph_image")
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

    Each HTTP request sets its estimate (`keepa_tokens.keepa.costs`) aside and is settled by its answer; a graph image,
    which says nothing, is charged one token when its hold runs out. keep: tokens to leave for others. timeout: seconds
    that one request may wait for tokens (None: as long as it takes); AcquireTimeout, nothing spent, when it would be
    longer.

    Guarding again replaces the guard: a request is never metered twice. Raises ConfigError for a sync client with
    an async bucket or the reverse, and for a client whose own requests can't be seen (another release, a subclass
    with its own `_request`).
    """
    whole("keep", keep)
    timeout_us(timeout)
    if isinstance(api, keepa.Keepa) and isinstance(sync, KeepaSync):
        vars(api).update(_SyncGuard(api, sync, keep, timeout).shadows())
    elif isinstance(api, keepa.AsyncKeepa) and isinstance(sync, AsyncKeepaSync):
        vars(api).update(_AsyncGuard(api, sync, keep, timeout).shadows())
    else:
        raise ConfigError(
            f"a {type(api).__name__} can't spend through a {type(sync).__name__}: guard keepa.Keepa with KeepaSync, and"
            " keepa.AsyncKeepa with AsyncKeepaSync"
        )
    return api


def unguard(api: keepa.Keepa | keepa.AsyncKeepa) -> None:
    """Take the guard off; without one, do nothing. Requests under way end as they began, their holds settled."""
    for name in SHADOWED:
        vars(api).pop(name, None)


class _SyncGuard:
    """What stands in for the methods of one `keepa.Keepa`."""

    def __init__(self, api: keepa.Keepa, sync: KeepaSync, keep: int, timeout: float | None) -> None:
        self._api = api
        self._sync = sync
        self._keep = keep
        self._timeout = timeout
        self._own_request = _own(api, "_request", "requests", "get")

    def shadows(self) -> dict[str, object]:
        return {"_request": self.request, "wait_for_tokens": self.wait_for_tokens}

    def request(
        self,
        request_type: str,
        payload: dict[str, object],
        wait: bool = True,  # noqa: FBT001, FBT002 - the client's own signature
        raw_response: bool = False,  # noqa: FBT001, FBT002 - the same
        is_json: bool = True,  # noqa: FBT001, FBT002 - the same
    ) -> object:
        """Make one request as the client does, metered; wait=False: don't wait for tokens."""
        if request_type == TOKEN and is_json and not raw_response:
            return self._token()
        return self._http(request_type, payload, wait=wait, raw_response=raw_response, is_json=is_json)

    def wait_for_tokens(self) -> None:
        """Wait until the balance is above 0, by the bucket. Takes nothing."""
        self._token()
        while self._api.tokens_left <= 0:
            call = self._sync.request(1, keep=self._keep, timeout=self._timeout)
            call.cancel()
            # The scout was let through to bring the truth, whatever the balance.
            _ = self._ask() if call.decision.probe else self._token()

    def _token(self) -> object:
        bucket = self._sync.bucket.peek()
        if bucket.balance is None:
            try:
                bucket = self._sync.refresh()
            except ConfigError:  # there is no probe: the client asks, unless another worker is just doing so
                if self._sync.claim_probe():
                    return self._ask()
        return _show(self._api, bucket)

    def _ask(self) -> object:
        return self._http(TOKEN, {"key": self._api.accesskey}, wait=False, raw_response=False, is_json=True)

    def _http(
        self, request_type: str, payload: dict[str, object], *, wait: bool, raw_response: bool, is_json: bool
    ) -> object:
        cost = estimate(request_type, payload)

        def get(url: str, params: object, **options: object) -> requests.Response:
            return self._answer(self._calls(cost, wait=wait), url, params, options)

        request = _seeing(self._own_request, requests=SimpleNamespace(get=get))
        with _Tidy(self._api):
            return request(self._api, request_type, payload, wait=False, raw_response=raw_response, is_json=is_json)

    def _calls(self, cost: int, *, wait: bool) -> Iterator[Call]:
        if wait:
            return self._sync.attempts(cost, keep=self._keep, timeout=self._timeout)
        return iter((self._sync.try_request(cost, keep=self._keep),))

    def _answer(self, calls: Iterator[Call], url: str, params: object, options: dict[str, object]) -> requests.Response:
        """Make the request until it isn't refused; settle each answer before anybody reads it."""
        get = cast("Callable[..., requests.Response]", requests.get)
        answer: requests.Response | None = None
        for call in calls:
            try:
                answer = get(url, params, **options)
            except requests.RequestException as error:
                if _never_sent(error):
                    call.cancel()
                raise
            image = _is_image(answer.headers.get("Content-Type", ""))
            call.settle(None if image else answer.content, status=answer.status_code)
        return cast("requests.Response", answer)  # there is always a first call


class _AsyncGuard:
    """What stands in for the methods of one `keepa.AsyncKeepa`; `_SyncGuard` for coroutines."""

    def __init__(self, api: keepa.AsyncKeepa, sync: AsyncKeepaSync, keep: int, timeout: float | None) -> None:
        self._api = api
        self._sync = sync
        self._keep = keep
        self._timeout = timeout
        self._own_request = _own(api, "_request", "aiohttp", "ClientSession")
        self._own_download = _own(api, "download_graph_image", "aiohttp", "ClientSession")

    def shadows(self) -> dict[str, object]:
        return {
            "_request": self.request,
            "wait_for_tokens": self.wait_for_tokens,
            "download_graph_image": self.download_graph_image,
        }

    async def request(
        self,
        request_type: str,
        payload: dict[str, object],
        wait: bool = True,  # noqa: FBT001, FBT002 - the client's own signature
        raw_response: bool = False,  # noqa: FBT001, FBT002 - the same
        is_json: bool = True,  # noqa: FBT001, FBT002 - the same
    ) -> object:
        """Make one request as the client does, metered; wait=False: don't wait for tokens."""
        if request_type == TOKEN and is_json and not raw_response:
            return await self._token()
        return await self._http(request_type, payload, wait=wait, raw_response=raw_response, is_json=is_json)

    async def wait_for_tokens(self) -> None:
        """Wait until the balance is above 0, by the bucket. Takes nothing."""
        await self._token()
        while self._api.tokens_left <= 0:
            call = await self._sync.request(1, keep=self._keep, timeout=self._timeout)
            await call.cancel()
            # The scout was let through to bring the truth, whatever the balance.
            _ = await (self._ask() if call.decision.probe else self._token())

    async def download_graph_image(
        self,
        asin: str,
        filename: str | Path,
        domain: str | keepa.Domain = "US",
        wait: bool = True,  # noqa: FBT001, FBT002 - the client's own signature
        **graph_kwargs: object,
    ) -> None:
        """Download an image as the client does, metered: it makes this request past its `_request`."""
        download = _seeing(self._own_download, aiohttp=self._aiohttp(estimate(IMAGE, {"asin": asin}), wait=wait))
        with _Tidy(self._api):
            await _awaited(download(self._api, asin, filename, domain, wait, **graph_kwargs))

    async def _token(self) -> object:
        bucket = await self._sync.bucket.peek()
        if bucket.balance is None:
            try:
                bucket = await self._sync.refresh()
            except ConfigError:  # there is no probe: the client asks, unless another worker is just doing so
                if await self._sync.claim_probe():
                    return await self._ask()
        return _show(self._api, bucket)

    async def _ask(self) -> object:
        return await self._http(TOKEN, {"key": self._api.accesskey}, wait=False, raw_response=False, is_json=True)

    async def _http(
        self, request_type: str, payload: dict[str, object], *, wait: bool, raw_response: bool, is_json: bool
    ) -> object:
        request = _seeing(self._own_request, aiohttp=self._aiohttp(estimate(request_type, payload), wait=wait))
        with _Tidy(self._api):
            return await _awaited(
                request(self._api, request_type, payload, wait=False, raw_response=raw_response, is_json=is_json)
            )

    def _aiohttp(self, cost: int, *, wait: bool) -> SimpleNamespace:
        """Return what the client's code sees as `aiohttp` for one call of `cost` tokens."""

        def get(url: str, **options: object) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
            return self._answer(self._calls(cost, wait=wait), url, options, wait=wait)

        return SimpleNamespace(ClientSession=lambda: _Session(get))

    def _calls(self, cost: int, *, wait: bool) -> AsyncIterator[AsyncCall]:
        if wait:
            return self._sync.attempts(cost, keep=self._keep, timeout=self._timeout)
        return _once(self._sync.try_request(cost, keep=self._keep))

    @asynccontextmanager
    async def _answer(
        self, calls: AsyncIterator[AsyncCall], url: str, options: dict[str, object], *, wait: bool
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Make the request until it isn't refused; settle each answer before anybody reads it."""
        async for call in calls:
            try:
                # A session for each request, as the client does: none stays open while this waits for tokens.
                async with aiohttp.ClientSession() as session, _get(session, url, options) as answer:
                    # An image is left unread, for the client reads it as a stream.
                    body = None if _is_image(answer.content_type) else await answer.read()
                    await call.settle(body, status=answer.status)
                    if not (wait and call.refused):
                        yield answer
            except aiohttp.ClientConnectorError:  # never sent
                await call.cancel()
                raise


class _Session:
    """Stands in for `aiohttp.ClientSession`: a real one is opened for each request, once there are tokens."""

    def __init__(self, get: Callable[..., AbstractAsyncContextManager[aiohttp.ClientResponse]]) -> None:
        self.get = get

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Have nothing to close."""


class _Tidy:
    """Around one use of the client's own code: keeps its status usable, and the API key out of what it raises."""

    def __init__(self, api: keepa.Keepa | keepa.AsyncKeepa) -> None:
        self._api = api
        self._tokens_left = api.tokens_left
        self._status = replace(api.status)

    def __enter__(self) -> None:
        """Have nothing to open."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        api = self._api
        if api.status.refillRate == 0:
            # All fields are 0 in a bad key's answer, which knows nothing; and the client divides by this one.
            api.tokens_left, api.status = self._tokens_left, self._status
        elif api.status.timestamp != self._status.timestamp:
            # The client compares it with its own clock; the server's may be minutes off.
            api.status.timestamp = _now_ms()
        if error is not None:
            _forget(error, api.accesskey)


def _own(api: object, name: str, *needed: str) -> FunctionType:
    """Return the client's own method as a function, if it reaches the network by the names that are `needed`."""
    function: object = getattr(type(api), name, None)
    if not isinstance(function, FunctionType) or not {*needed} <= {*function.__code__.co_names}:
        raise ConfigError(
            f"{type(api).__name__}.{name} doesn't call {'.'.join(needed)} itself, so its requests can't be metered:"
            f" this guard is for the clients of keepa 1.6 as they come (installed: {keepa.__version__})"
        )
    return function


def _seeing(function: FunctionType, **modules: object) -> Callable[..., object]:
    """Return the same code with other modules in the place of those it imported."""
    names = function.__globals__ | modules
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


async def _awaited(result: object) -> object:
    return await cast("Awaitable[object]", result)


async def _once(call: Pending[AsyncCall]) -> AsyncIterator[AsyncCall]:
    yield await call


def _get(
    session: aiohttp.ClientSession, url: str, options: dict[str, object]
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    get = cast("Callable[..., AbstractAsyncContextManager[aiohttp.ClientResponse]]", session.get)
    return get(url, **options)


def _is_image(content_type: str) -> bool:
    """Return whether an answer is an image, which carries no envelope."""
    return content_type.lower().startswith("image/")


def _never_sent(error: requests.RequestException) -> bool:
    """Return whether no connection was made, so that the server can't have charged the request."""
    cause = error.args[0] if error.args else None
    reason: object = getattr(cause, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError)


def _show(api: keepa.Keepa | keepa.AsyncKeepa, bucket: Snapshot) -> dict[str, object]:
    """Let the client's status say what the bucket knows, and return it as the answer of `/token`.

    While the balance is unknown `tokens_left` stays as it was.
    """
    status = api.status
    if bucket.balance is not None:
        api.tokens_left = status.tokensLeft = bucket.balance
    # The plan's rate, which the client divides by; the net one may be 0.
    status.refillRate = max(1, bucket.capacity // CAPACITY_MINUTES)
    # Whole periods after the next step the bucket is full.
    to_step = bucket.full_in % bucket.period if isfinite(bucket.full_in) else 0.0
    status.refillIn = round((to_step or bucket.period) * MILLISECONDS)
    status.timestamp = _now_ms()
    return {
        "timestamp": status.timestamp,
        "tokensLeft": api.tokens_left,
        "refillIn": status.refillIn,
        "refillRate": status.refillRate,
        "tokensConsumed": 0,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _forget(error: BaseException, key: str) -> None:
    """Take the API key out of what an exception and those behind it say: requests puts the whole URL into its texts."""
    if not key:
        return
    links = _links(error)
    for link in links:
        if isinstance(link, aiohttp.ClientResponseError):  # it makes its text up from the request's URL
            bare = link.request_info.url.with_query(None)
            link.request_info = link.request_info._replace(url=bare, real_url=bare)
            link.args = (link.request_info, ())
            link.history = ()
        link.args = tuple(_without(arg, key) for arg in link.args)
        for name, value in list(vars(link).items()):
            if isinstance(value, str):
                setattr(link, name, _without(value, key))
    for link in links:  # what makes its text up from other things goes whole
        for name in ("__context__", "__cause__"):
            behind = getattr(link, name)
            if behind is not None and key in f"{behind!s}{behind!r}":
                setattr(link, name, None)


def _without(value: object, key: str) -> object:
    return value.replace(quote(key, safe=""), "***").replace(key, "***") if isinstance(value, str) else value


def _links(error: BaseException) -> list[BaseException]:
    """Return the exception and all that it carries or came from."""
    found: list[BaseException] = []
    ahead: list[object] = [error]
    while ahead:
        link = ahead.pop()
        if isinstance(link, BaseException) and link not in found:
            found.append(link)
            ahead += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
    return found
