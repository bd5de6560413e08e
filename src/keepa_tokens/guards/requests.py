"""A requests adapter that pays for requests to Keepa from a bucket: held before, settled by the answer.

    session = requests.Session()
    session.mount("https://api.keepa.com/", KeepaAdapter(KeepaSync.from_key(key), api_key=key))
    answer = session.get("https://api.keepa.com/product", params={"domain": 1, "asin": "B0088PUEPK"})

- Each request waits until its estimate may be spent, and holds it. The answer is read once and settled; with
  `stream=True` when its reader has come to the end. What was closed before, an image, a timeout and a broken connection
  settle nothing: charged or not, nobody knows, so the hold runs out. Only where no connection came about are the tokens
  free again.
- A 429 settles at once, at nothing, and corrects the bucket. It is handed out as it is (mind that a `Response` of 400
  and above is false); `retry_refused=True` waits for tokens and makes the request again. With `timeout=0` as well
  nothing ever waits: a 429 becomes NotEnoughTokens, with a `retry_after`.
- What costs nothing (`/token`) is not held: its answer is a reading.
- urllib3 logs the URL of every request, and requests puts it into exceptions. Give the key here, as `api_key`, and
  leave it out of the requests' parameters: it is added at the connection, where no log, exception or repr sees it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import cast
from urllib.parse import urlsplit

try:
    import requests
    from requests.adapters import HTTPAdapter
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guard for requests needs it: pip install 'keepa-tokens[requests]'"
    raise ImportError(msg) from missing

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import DecodeError, NewConnectionError

from ..errors import ConfigError, StorageUnavailable
from ..keepa.estimates import Estimator
from ..keepa.sync import Call, KeepaSync
from ._http import KEEPA_HOST, REFUSED, Asked, Estimate, Terms, has_key, is_image, keyed, not_taken_down

__all__ = ["KeepaAdapter"]


class KeepaAdapter(HTTPAdapter):
    """Pays for requests to Keepa from the bucket of `sync`. Mount it at `https://api.keepa.com/`.

    api_key: added to requests that don't bring a `key`. host: the only one it serves; ConfigError for any other, which
    must not get the key. estimate: says what a call may cost, by path and parameters (default: the table in
    `keepa_tokens.keepa.costs`); or estimator: one that learns, and is taught by each answer. keep: tokens to leave for
    others. timeout: seconds that a request may wait for tokens (None: as long as it takes); AcquireTimeout, nothing
    spent, when it would be longer. retry_refused: make a request that the server refused (429) again, once there are
    tokens; else the 429 is handed out. pool_connections, pool_maxsize, pool_block: as `HTTPAdapter`.

    It takes no `max_retries`: urllib3 would send one request several times on one hold.
    """

    def __init__(
        self,
        sync: KeepaSync,
        *,
        api_key: str | None = None,
        host: str = KEEPA_HOST,
        estimate: Estimate | None = None,
        estimator: Estimator | None = None,
        keep: int = 0,
        timeout: float | None = None,
        retry_refused: bool = False,
        pool_connections: int = 10,
        pool_maxsize: int = 10,
        pool_block: bool = False,
    ) -> None:
        self._sync = sync
        self._api_key = api_key
        self._terms = Terms(
            api_key=api_key,
            host=host,
            estimate=estimate,
            estimator=estimator,
            keep=keep,
            timeout=timeout,
            retry_refused=retry_refused,
        )
        super().__init__(pool_connections=pool_connections, pool_maxsize=pool_maxsize, pool_block=pool_block)
        _key_connections(self.poolmanager, api_key)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: object) -> urllib3.ProxyManager:
        """Return the manager of a proxy's connections, which add the key too."""
        is_new = proxy not in self.proxy_manager
        manager = cast("urllib3.ProxyManager", super().proxy_manager_for(proxy, **proxy_kwargs))
        if is_new:
            _key_connections(manager, self._api_key)
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - the adapter's own signature
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,  # noqa: FBT001, FBT002 - the same
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """Make one request, metered."""
        terms = self._terms
        url = request.url or ""
        if not terms.meters(urlsplit(url).hostname):
            msg = f"a KeepaAdapter serves {terms.host} alone: mount it at https://{terms.host}/"
            raise ConfigError(msg)

        def send() -> requests.Response:
            return super(KeepaAdapter, self).send(request, stream, timeout, verify, cert, proxies)

        body = request.body if isinstance(request.body, (bytes, str)) else None
        asked = terms.asked(url, body)
        cost = terms.cost(asked)
        if cost == 0:
            return self._observed(send())
        # A body that is read from somewhere is gone once it was sent.
        again = terms.retry_refused and body is request.body
        left = terms.timeout
        while True:
            call = self._sync.request(cost, keep=terms.keep, timeout=left)
            response = self._answer(call, asked, send, stream=stream)
            if not (call.refused and again):
                return response
            response.close()
            left = terms.left(left, call)

    def _answer(
        self, call: Call, asked: Asked, send: Callable[[], requests.Response], *, stream: bool
    ) -> requests.Response:
        try:
            response = send()
        except requests.ConnectionError as error:
            if _never_sent(error):
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
            _read(response, end)
        elif is_image(response.headers.get("Content-Type")):
            pass
        elif stream:
            response.raw = _Settling(response.raw, end)
        else:
            _read(response, end)
        return response

    def _observed(self, response: requests.Response) -> requests.Response:
        body = response.content
        try:
            self._sync.observe(body, status=response.status_code)
        except StorageUnavailable as error:
            not_taken_down(error)
        return response

    def __repr__(self) -> str:
        return f"KeepaAdapter({self._sync!r}, host={self._terms.host!r})"


def _read(response: requests.Response, end: Callable[[bytes | None], None]) -> None:
    """Read a body, which stays in the response, and end its call."""
    body: bytes | None = None
    try:
        body = response.content
    finally:
        end(body)


class _Settling:
    """Stands before `response.raw`. At the body's end it is settled whole; closed before, as one that nobody knows.

    What it doesn't know itself it leaves to the raw response.
    """

    def __init__(self, raw: urllib3.HTTPResponse, end: Callable[[bytes | None], None]) -> None:
        self._raw = raw
        self._end: Callable[[bytes | None], None] | None = end
        self._chunks: list[bytes] = []
        self._encoded = False

    def stream(self, amt: int | None = 2**16, decode_content: bool | None = None) -> Iterator[bytes]:  # noqa: FBT001 - urllib3's own
        for chunk in self._raw.stream(amt, decode_content):
            yield self._noted(chunk, decode_content)
        self._whole()

    def __iter__(self) -> Iterator[bytes]:
        for line in self._raw:
            yield self._noted(line, decode_content=True)
        self._whole()

    def read(
        self,
        amt: int | None = None,
        decode_content: bool | None = None,  # noqa: FBT001 - urllib3's own
        cache_content: bool = False,  # noqa: FBT001, FBT002 - the same
    ) -> bytes:
        data = self._noted(self._raw.read(amt, decode_content, cache_content), decode_content)
        if amt is None or amt < 0 or (not data and amt > 0):
            self._whole()
        return data

    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:  # noqa: FBT001 - urllib3's own
        data = self._noted(self._raw.read1(amt, decode_content), decode_content)
        if not data and amt != 0:
            self._whole()
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        try:
            self._raw.close()
        finally:
            self._once(None)

    def release_conn(self) -> None:
        self._raw.release_conn()
        self._once(None)

    def _noted(self, chunk: bytes, decode_content: bool | None) -> bytes:  # noqa: FBT001 - as it was passed on
        if self._end is not None:
            self._chunks.append(chunk)
            self._encoded |= not (self._raw.decode_content if decode_content is None else decode_content)
        return chunk

    def _whole(self) -> None:
        if self._end is not None:
            body = b"".join(self._chunks)
            self._once(_decoded(self._raw, body) if self._encoded else body)

    def _once(self, body: bytes | None) -> None:
        end, self._end = self._end, None
        self._chunks.clear()
        if end is not None:
            end(body)

    def __getattr__(self, name: str) -> object:
        return getattr(self._raw, name)


def _decoded(raw: urllib3.HTTPResponse, body: bytes) -> bytes:
    """Return a body without its content encoding; as it is, if it can't be decoded."""
    response = urllib3.HTTPResponse(io.BytesIO(body), headers=raw.headers, preload_content=False)
    try:
        return response.read(decode_content=True)
    except DecodeError:
        return body


class _KeyedConnection:
    """Goes before a connection class, and adds the API key to the request line: below all that logs or raises."""

    api_key = ""

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:  # noqa: FBT001, FBT002 - http.client's own
        own = cast("HTTPConnection", super())
        own.putrequest(method, url if has_key(url) else keyed(url, self.api_key), skip_host, skip_accept_encoding)


def _key_connections(manager: urllib3.PoolManager, api_key: str | None) -> None:
    """Let the connections that a manager makes from now on add the key."""
    if api_key is None:
        return

    def pool(kind: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        connection = type("KeyedConnection", (_KeyedConnection, kind.ConnectionCls), {"api_key": api_key})
        return cast("type[HTTPConnectionPool]", type("KeyedPool", (kind,), {"ConnectionCls": connection}))

    kinds = cast("dict[str, type[HTTPConnectionPool]]", vars(manager)["pool_classes_by_scheme"])  # untyped there
    manager.pool_classes_by_scheme = {scheme: pool(kind) for scheme, kind in kinds.items()}


def _never_sent(error: requests.ConnectionError) -> bool:
    """Return whether no connection came about, so that the server can't have charged the request."""
    reason: object = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError)
