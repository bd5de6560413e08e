"""Transports for httpx and httpx2 that pay for requests to Keepa from a bucket.

    transport = KeepaTransport(KeepaSync.from_key(key), api_key=key)
    with httpx.Client(base_url="https://api.keepa.com", transport=transport) as client:
        answer = client.get("/product", params={"domain": 1, "asin": "B0088PUEPK"})

- Each request to Keepa waits until its estimate may be spent, and holds the estimate. The call is settled once its
  body has been read to the end: `client.get` reads it, a stream is read by your code. After a stream that is closed
  early, an image, a timeout or a broken connection nobody knows whether the call was charged, so its hold runs out.
  Only if the request certainly never reached the server (no connection, no TLS, a proxy that refused) are its tokens
  free again at once.
- A 429 is settled at once, at 0 tokens, and its balance corrects the bucket. You get the 429 as it is; with
  `retry_refused=True` the transport waits for tokens and makes the request again, also after a 5xx with `Retry-After`.
  If the server refuses although there are tokens, it waits as long as the server asks, or longer each time, and returns
  the fifth refusal. With `timeout=0` as well it never waits: a 429 becomes NotEnoughTokens, with a `retry_after`.
- A free request (`/token`) holds nothing: its answer is a reading. Requests to other hosts pass through.
- httpx logs the URL of every request. So give the key here, as `api_key`, and leave it out of the requests' parameters:
  the transport adds it where no log, exception or repr sees it, and only by https to the API's own port.

This module imports neither library: the class of a request shows which one made it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast, overload

from .._arguments import shown
from .._blocking import run
from ..errors import ConfigError
from ..keepa._httpx import keyed, library_of, proxy_for
from ..keepa.async_sync import AsyncKeepaSync
from ..keepa.estimates import Estimator
from ..keepa.sync import KeepaSync
from ._flow import AnySync, End, Exchange, GuardBase, checked_sync, done, metered
from ._http import KEEPA_HOST, Estimate, Meter, Origin, asked_of

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Base(httpx.BaseTransport, httpx2.BaseTransport):
        def handle_request(self, request: Any) -> Any: ...  # noqa: ANN401 - of either library

    class _AsyncBase(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any: ...  # noqa: ANN401 - the same
else:  # the clients ask for no more than the methods
    _Base = _AsyncBase = object

__all__ = ["AsyncKeepaTransport", "KeepaTransport"]

Send: TypeAlias = "Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]"
Sync = TypeVar("Sync", KeepaSync, AsyncKeepaSync)


class _Transport(GuardBase, Generic[Sync]):
    """What both transports do. send: the method of `inner`. own: the class that is made if no `inner` is given."""

    kind: ClassVar[type[AnySync]]
    send: ClassVar[str]
    own: ClassVar[str]

    def __init__(
        self,
        sync: Sync,
        inner: object = None,
        *,
        api_key: str | None = None,
        host: str = KEEPA_HOST,
        estimate: Estimate | None = None,
        estimator: Estimator | None = None,
        keep: int = 0,
        timeout: float | None = None,
        retry_refused: bool = False,
    ) -> None:
        if inner is not None and not hasattr(inner, self.send):
            raise ConfigError(
                f"the inner transport of a {type(self).__name__} must have {self.send}(), not be {shown(inner)}"
            )
        self._sync = checked_sync(sync, self.kind, self)
        self._origin = Origin(host, api_key)
        self._meter = Meter(keep=keep, timeout=timeout, again=retry_refused, estimate=estimate, estimator=estimator)
        self._given = inner
        self._made: dict[str | None, object] = {}

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        library, url = cast("ModuleType", library_of(request)), str(request.url)
        send = getattr(self._inner(library, request), self.send)
        if not self._origin.meters(url):
            return cast("httpx.Response", await done(send(request)))
        blocking = isinstance(self._sync, KeepaSync)
        body = request.read() if blocking else await request.aread()
        exchange = _Exchange(library, send, request, self._origin.key_for(url), blocking=blocking)
        return await metered(self._sync, self._meter, asked_of(url, body), exchange)

    def _inner(self, library: ModuleType, request: httpx.Request) -> object:
        """Return the transport that sends a request: `inner`, or one that is made here as a client would make it."""
        if self._given is not None:
            return self._given
        proxy = proxy_for(request.url.scheme, request.url.host)
        if proxy not in self._made:
            self._made.setdefault(proxy, getattr(library, self.own)(proxy=proxy))
        return self._made[proxy]

    def _inners(self) -> list[object]:
        return [*self._made.values()] if self._given is None else [self._given]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._sync!r}, host={self._origin.host!r})"


class KeepaTransport(_Transport[KeepaSync], _Base):
    """Pays for requests to Keepa from the bucket of `sync`, on top of `inner`.

    inner: sends the requests (default: the library's own transport, with proxies and certificates from the
    environment). api_key: added to requests that don't bring a `key`. host: the host whose requests are metered.
    estimate: returns what a call may cost, from its path and parameters (default: the table in
    `keepa_tokens.keepa.costs`). estimator: instead of `estimate`, an Estimator, which learns from each answer. keep:
    tokens to leave for others. timeout: seconds that a request may wait for tokens (None: as long as it takes); raises
    AcquireTimeout, nothing spent, if the wait would be longer. retry_refused: make a request that the server refused
    (429) again, once there are tokens; else you get the 429.

    A client passes `verify`, `http2`, `proxy` and `limits` on only to a transport that it makes itself: give them to
    `inner`. Closing the client closes `inner`. A transport that repeats requests by itself must wrap this one: as
    `inner` it would spend several times on one hold.
    """

    kind: ClassVar[type[AnySync]] = KeepaSync
    send = "handle_request"
    own = "HTTPTransport"

    @overload
    def handle_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    def handle_request(self, request: httpx2.Request) -> httpx2.Response: ...
    def handle_request(self, request: httpx.Request | httpx2.Request) -> httpx.Response | httpx2.Response:
        """Make one request, metered if it goes to Keepa."""
        return run(lambda: self._handle(cast("httpx.Request", request)))

    def close(self) -> None:
        """Close the inner transport."""
        for inner in self._inners():
            cast("httpx.BaseTransport", inner).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object, **__: object) -> None:
        self.close()


class AsyncKeepaTransport(_Transport[AsyncKeepaSync], _AsyncBase):
    """`KeepaTransport` for the async clients: the same names, an `AsyncKeepaSync`, an async `inner`."""

    kind: ClassVar[type[AnySync]] = AsyncKeepaSync
    send = "handle_async_request"
    own = "AsyncHTTPTransport"

    @overload
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    @overload
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def handle_async_request(self, request: httpx.Request | httpx2.Request) -> httpx.Response | httpx2.Response:
        """Make one request, metered if it goes to Keepa."""
        return await self._handle(cast("httpx.Request", request))

    async def aclose(self) -> None:
        """Close the inner transport."""
        for inner in self._inners():
            await cast("httpx.AsyncBaseTransport", inner).aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object, **__: object) -> None:
        await self.aclose()


class _Exchange(Exchange["httpx.Response"]):
    """One request of a client of `library`, blocking or not; `send` sends it, with the API key."""

    def __init__(
        self, library: ModuleType, send: Send, request: httpx.Request, api_key: str | None, *, blocking: bool
    ) -> None:
        self._library = library
        self._send = send
        self._request = request
        self._api_key = api_key
        self._blocking = blocking

    def send(self) -> httpx.Response | Awaitable[httpx.Response]:
        api_key, request = self._api_key, self._request
        return self._send(request if api_key is None else keyed(self._library, request, api_key))

    async def read(self, answer: httpx.Response) -> tuple[httpx.Response, bytes]:
        """Return the answer, its raw body ready to be read again, and the decoded body."""
        stream = cast("httpx.ByteStream", answer.stream)
        try:
            raw = b"".join(stream) if self._blocking else b"".join([chunk async for chunk in stream])
        finally:
            await _close(stream, blocking=self._blocking)
        return self._with(answer, self._library.ByteStream(raw)), self._decoded(answer, raw)

    def streamed(self, answer: httpx.Response, end: End) -> httpx.Response:
        library = self._library
        kind = type("Settling", (_Settling, library.SyncByteStream, library.AsyncByteStream), {})

        async def ended(raw: bytes | None) -> None:
            await end(None if raw is None else self._decoded(answer, raw))

        return self._with(answer, kind(answer.stream, ended))

    def _with(self, answer: httpx.Response, stream: object) -> httpx.Response:
        made = self._library.Response(
            answer.status_code, headers=answer.headers, stream=stream, extensions=answer.extensions
        )
        return cast("httpx.Response", made)

    def _decoded(self, answer: httpx.Response, raw: bytes) -> bytes:
        """Return a body without its content encoding; as it is, if it can't be decoded."""
        try:
            return bytes(self._library.Response(answer.status_code, headers=answer.headers, content=raw).content)
        except self._library.DecodingError:
            return raw


class _Settling:
    """A body that settles its call: by the whole body once it was read to the end, without a body if closed early."""

    def __init__(self, stream: object, end: End) -> None:
        self._stream = cast("httpx.ByteStream", stream)
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        chunks: list[bytes] = []
        for chunk in self._stream:
            chunks.append(chunk)
            yield chunk
        run(lambda: self._end(b"".join(chunks)))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks: list[bytes] = []
        async for chunk in self._stream:
            chunks.append(chunk)
            yield chunk
        await self._end(b"".join(chunks))

    def close(self) -> None:
        run(lambda: self._closed(blocking=True))

    async def aclose(self) -> None:
        await self._closed(blocking=False)

    async def _closed(self, *, blocking: bool) -> None:
        try:
            await _close(self._stream, blocking=blocking)
        finally:
            await self._end(None)


async def _close(stream: httpx.SyncByteStream | httpx.AsyncByteStream, *, blocking: bool) -> None:
    if blocking:
        cast("httpx.SyncByteStream", stream).close()
    else:
        await cast("httpx.AsyncByteStream", stream).aclose()
