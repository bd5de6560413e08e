"""httpx transports that pay for requests to Keepa from a bucket: held before, settled by the answer.

    sync = KeepaSync.from_key(key)
    with httpx.Client(base_url="https://api.keepa.com", transport=KeepaTransport(sync, api_key=key)) as client:
        products = client.get("/product", params={"domain": 1, "asin": "B0088PUEPK"}).json()["products"]

- Each request to Keepa waits until its estimate may be spent, and holds it. The answer is settled when its body has
  been read, once, by whoever reads it: `client.get` does, a stream's reader does. What was closed before its end, an
  image, a timeout and a broken connection settle nothing: charged or not, nobody knows, so the hold runs out. Only
  where no connection came about are the tokens free again.
- A 429 settles at once, at nothing, and corrects the bucket. It is handed out as it is, since whoever calls may have
  something better to do than to wait; `retry_refused=True` waits for tokens and makes the request again. With
  `timeout=0` as well nothing ever waits: a 429 becomes NotEnoughTokens, with a `retry_after`.
- What costs nothing (`/token`) is not held: its answer is a reading. Requests to other hosts pass through.
- httpx logs the URL of every request. Give the key here, as `api_key`, and leave it out of the requests' parameters:
  it is added on the way out, where no log, exception or repr sees it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

try:
    import httpx
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guards for httpx need it: pip install 'keepa-tokens[http]'"
    raise ImportError(msg) from missing

from ..errors import StorageUnavailable
from ..keepa.async_sync import AsyncCall, AsyncKeepaSync
from ..keepa.estimates import Estimator
from ..keepa.sync import Call, KeepaSync
from ._http import KEEPA_HOST, KEY, REFUSED, Asked, Estimate, Terms, is_image, not_taken_down

__all__ = ["AsyncKeepaTransport", "KeepaTransport"]

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""No connection came about, so the server can't have charged the request."""


class KeepaTransport(httpx.BaseTransport):
    """Pays for requests to Keepa from the bucket of `sync`, on top of `inner` (default: a plain `HTTPTransport`).

    api_key: added to requests that don't bring a `key`. host: whose requests are metered. estimate: says what a call
    may cost, by path and parameters (default: the table in `keepa_tokens.keepa.costs`); or estimator: one that learns,
    and is taught by each answer. keep: tokens to leave for others. timeout: seconds that a request may wait for tokens
    (None: as long as it takes); AcquireTimeout, nothing spent, when it would be longer. retry_refused: make a request
    that the server refused (429) again, once there are tokens; else the 429 is handed out.

    httpx takes `verify`, `http2`, `proxy` and `limits` from a client only where it makes the transport itself: give
    them to `inner`. Closing the client closes `inner`.
    """

    def __init__(
        self,
        sync: KeepaSync,
        inner: httpx.BaseTransport | None = None,
        *,
        api_key: str | None = None,
        host: str = KEEPA_HOST,
        estimate: Estimate | None = None,
        estimator: Estimator | None = None,
        keep: int = 0,
        timeout: float | None = None,
        retry_refused: bool = False,
    ) -> None:
        self._sync = sync
        self._terms = Terms(
            api_key=api_key,
            host=host,
            estimate=estimate,
            estimator=estimator,
            keep=keep,
            timeout=timeout,
            retry_refused=retry_refused,
        )
        self._inner = httpx.HTTPTransport() if inner is None else inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request, metered if it goes to Keepa."""
        terms = self._terms
        if not terms.meters(request.url.host):
            return self._inner.handle_request(request)
        asked = terms.asked(str(request.url), request.read())
        sent = _keyed(request, terms)
        cost = terms.cost(asked)
        if cost == 0:
            return self._observed(sent)
        left = terms.timeout
        while True:
            call = self._sync.request(cost, keep=terms.keep, timeout=left)
            response = self._answer(call, asked, sent)
            if not (call.refused and terms.retry_refused):
                return response
            left = terms.left(left, call)

    def _answer(self, call: Call, asked: Asked, request: httpx.Request) -> httpx.Response:
        try:
            response = self._inner.handle_request(request)
        except NEVER_SENT:
            with suppress(StorageUnavailable):  # then it runs out by itself
                call.cancel()
            raise

        def end(body: bytes | None) -> None:
            try:
                call.settle(body, status=response.status_code)
            except StorageUnavailable as error:
                not_taken_down(error)
            self._terms.learn(asked, call)

        if response.status_code == REFUSED:
            return _whole(response, _read(response, end))
        if is_image(response.headers.get("Content-Type")):
            return response
        return _streaming(response, _Settling(_sync_stream(response), response, end))

    def _observed(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)

        def end(body: bytes | None) -> None:
            if body is None:
                return
            try:
                self._sync.observe(body, status=response.status_code)
            except StorageUnavailable as error:
                not_taken_down(error)

        return _whole(response, _read(response, end))

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()

    def __repr__(self) -> str:
        return f"KeepaTransport({self._sync!r}, host={self._terms.host!r})"


class AsyncKeepaTransport(httpx.AsyncBaseTransport):
    """`KeepaTransport` for `httpx.AsyncClient`: the same names, an `AsyncKeepaSync`, an async `inner`."""

    def __init__(
        self,
        sync: AsyncKeepaSync,
        inner: httpx.AsyncBaseTransport | None = None,
        *,
        api_key: str | None = None,
        host: str = KEEPA_HOST,
        estimate: Estimate | None = None,
        estimator: Estimator | None = None,
        keep: int = 0,
        timeout: float | None = None,
        retry_refused: bool = False,
    ) -> None:
        self._sync = sync
        self._terms = Terms(
            api_key=api_key,
            host=host,
            estimate=estimate,
            estimator=estimator,
            keep=keep,
            timeout=timeout,
            retry_refused=retry_refused,
        )
        self._inner = httpx.AsyncHTTPTransport() if inner is None else inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request, metered if it goes to Keepa."""
        terms = self._terms
        if not terms.meters(request.url.host):
            return await self._inner.handle_async_request(request)
        asked = terms.asked(str(request.url), await request.aread())
        sent = _keyed(request, terms)
        cost = terms.cost(asked)
        if cost == 0:
            return await self._observed(sent)
        left = terms.timeout
        while True:
            call = await self._sync.request(cost, keep=terms.keep, timeout=left)
            response = await self._answer(call, asked, sent)
            if not (call.refused and terms.retry_refused):
                return response
            left = terms.left(left, call)

    async def _answer(self, call: AsyncCall, asked: Asked, request: httpx.Request) -> httpx.Response:
        try:
            response = await self._inner.handle_async_request(request)
        except NEVER_SENT:
            with suppress(StorageUnavailable):  # then it runs out by itself
                await call.cancel()
            raise

        async def end(body: bytes | None) -> None:
            try:
                await call.settle(body, status=response.status_code)
            except StorageUnavailable as error:
                not_taken_down(error)
            self._terms.learn(asked, call)

        if response.status_code == REFUSED:
            return _whole(response, await _aread(response, end))
        if is_image(response.headers.get("Content-Type")):
            return response
        return _streaming(response, _AsyncSettling(_async_stream(response), response, end))

    async def _observed(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)

        async def end(body: bytes | None) -> None:
            if body is None:
                return
            try:
                await self._sync.observe(body, status=response.status_code)
            except StorageUnavailable as error:
                not_taken_down(error)

        return _whole(response, await _aread(response, end))

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()

    def __repr__(self) -> str:
        return f"AsyncKeepaTransport({self._sync!r}, host={self._terms.host!r})"


class _Settling(httpx.SyncByteStream):
    """A body on its way to its reader. At its end it is settled whole; closed before, as one that nobody knows."""

    def __init__(
        self, stream: httpx.SyncByteStream, response: httpx.Response, end: Callable[[bytes | None], None]
    ) -> None:
        self._stream = stream
        self._response = response
        self._end: Callable[[bytes | None], None] | None = end

    def __iter__(self) -> Iterator[bytes]:
        chunks: list[bytes] = []
        for chunk in self._stream:
            chunks.append(chunk)
            yield chunk
        self._once(_decoded(self._response, b"".join(chunks)))

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._once(None)

    def _once(self, body: bytes | None) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(body)


class _AsyncSettling(httpx.AsyncByteStream):
    """`_Settling` for coroutines."""

    def __init__(
        self, stream: httpx.AsyncByteStream, response: httpx.Response, end: Callable[[bytes | None], Awaitable[None]]
    ) -> None:
        self._stream = stream
        self._response = response
        self._end: Callable[[bytes | None], Awaitable[None]] | None = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: list[bytes] = []
        async for chunk in self._stream:
            chunks.append(chunk)
            yield chunk
        await self._once(_decoded(self._response, b"".join(chunks)))

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._once(None)

    async def _once(self, body: bytes | None) -> None:
        end, self._end = self._end, None
        if end is not None:
            await end(body)


def _read(response: httpx.Response, end: Callable[[bytes | None], None]) -> bytes:
    """Read a small body at once and end its call; return it as it came over the wire."""
    stream = _Settling(_sync_stream(response), response, end)
    try:
        return b"".join(stream)
    finally:
        stream.close()


async def _aread(response: httpx.Response, end: Callable[[bytes | None], Awaitable[None]]) -> bytes:
    stream = _AsyncSettling(_async_stream(response), response, end)
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


def _whole(response: httpx.Response, raw: bytes) -> httpx.Response:
    """Return a response that was read, to be read once more by the client."""
    return _streaming(response, httpx.ByteStream(raw))


def _streaming(response: httpx.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.Response:
    return httpx.Response(response.status_code, headers=response.headers, stream=stream, extensions=response.extensions)


def _decoded(response: httpx.Response, raw: bytes) -> bytes:
    """Return a body without its content encoding; as it is, if it can't be decoded."""
    try:
        return httpx.Response(response.status_code, headers=response.headers, content=raw).content
    except httpx.DecodingError:
        return raw


def _sync_stream(response: httpx.Response) -> httpx.SyncByteStream:
    if not isinstance(response.stream, httpx.SyncByteStream):
        raise TypeError(f"the inner transport must answer with a sync stream, not {type(response.stream).__name__}")
    return response.stream


def _async_stream(response: httpx.Response) -> httpx.AsyncByteStream:
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError(f"the inner transport must answer with an async stream, not {type(response.stream).__name__}")
    return response.stream


def _keyed(request: httpx.Request, terms: Terms) -> httpx.Request:
    """Return the request as it leaves: with the API key. The one that the client holds, and logs, stays without."""
    api_key = terms.key_for(str(request.url))
    if api_key is None:
        return request
    url = request.url.copy_merge_params({KEY: api_key})
    return httpx.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )
