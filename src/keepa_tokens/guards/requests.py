"""A requests adapter that pays for requests to Keepa from a bucket: held before, settled by the answer.

    session = requests.Session()
    session.mount("https://api.keepa.com/", KeepaAdapter(KeepaSync.from_key(key), api_key=key))
    answer = session.get("https://api.keepa.com/product", params={"domain": 1, "asin": "B0088PUEPK"})

It does what `keepa_tokens.guards.httpx` does, with these differences:

- With `stream=True` the answer is settled when its reader has come to the end, else before `get` returns.
- Mind that a `Response` of 400 and above is false. A body that is read from a file or a generator is not sent again.
- It serves Keepa alone: mount it there. What goes to other hosts is a ConfigError.
- urllib3 logs the URL of every request, and requests puts it into exceptions: give the key here, as `api_key`, and
  leave it out of the requests' parameters. It is added at the connection, by https to the API's own port only.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

try:
    import requests
    from requests.adapters import HTTPAdapter
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guard for requests needs it: pip install 'keepa-tokens[requests]'"
    raise ImportError(msg) from missing

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import DecodeError

from .._blocking import run
from ..errors import ConfigError
from ..keepa.estimates import Estimator
from ..keepa.sync import KeepaSync
from ._flow import End, Exchange, NotCopied, checked_sync, metered
from ._http import KEEPA_HOST, Estimate, Meter, Origin, asked_by, has_key, keyed

__all__ = ["KeepaAdapter"]


class KeepaAdapter(NotCopied, HTTPAdapter):
    """Pays for requests to Keepa from the bucket of `sync`. Mount it at `https://api.keepa.com/`.

    api_key: added to requests that don't bring a `key`. host: the only one it serves; ConfigError for any other, which
    must not get the key. estimate, estimator, keep, timeout, retry_refused: as for
    `keepa_tokens.guards.httpx.KeepaTransport`. pool_connections, pool_maxsize, pool_block: as for `HTTPAdapter`.

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
        self._sync = checked_sync(sync, KeepaSync, self)
        self._api_key = api_key
        self._origin = Origin(host, api_key)
        self._meter = Meter(keep=keep, timeout=timeout, again=retry_refused, estimate=estimate, estimator=estimator)
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
        url = request.url or ""
        if not self._origin.may_have_key(url):
            host = self._origin.host
            raise ConfigError(f"a KeepaAdapter serves {host} alone, by https: mount it at https://{host}/")
        body = request.body if isinstance(request.body, (bytes, str)) else None
        exchange = RequestsExchange(
            partial(super().send, request, stream, timeout, verify, cert, proxies),
            streams=stream,
            repeatable=body is request.body,
        )
        return run(lambda: metered(self._sync, self._meter, asked_by(url, body), exchange))

    def __repr__(self) -> str:
        return f"KeepaAdapter({self._sync!r}, host={self._origin.host!r})"


class RequestsExchange(Exchange[requests.Response]):
    """One request by requests, sent by `send`. streams: its reader reads the body."""

    def __init__(
        self, send: Callable[[], requests.Response], *, streams: bool = False, repeatable: bool = True
    ) -> None:
        self._send = send
        self._streams = streams
        self.repeatable = repeatable

    def send(self) -> requests.Response:
        """Send the request."""
        return self._send()

    def read(self, answer: requests.Response) -> tuple[requests.Response, bytes]:
        """Read the body, which stays in the answer."""
        return answer, answer.content or b""

    def streamed(self, answer: requests.Response, end: End) -> requests.Response | None:
        """Return the answer, whose body is settled at its end."""
        if not self._streams:
            return None
        answer.raw = _Settling(answer.raw, end)
        return answer


class _Settling:
    """Stands before `response.raw`. At the body's end it is settled whole; closed before, as one that nobody knows.

    What it doesn't know itself it leaves to the raw response.
    """

    def __init__(self, raw: urllib3.HTTPResponse, end: End) -> None:
        self._raw = raw
        self._end = end
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
            self._ended(None)

    def release_conn(self) -> None:
        self._raw.release_conn()
        self._ended(None)

    def _noted(self, chunk: bytes, decode_content: bool | None) -> bytes:  # noqa: FBT001 - as it was passed on
        self._chunks.append(chunk)
        self._encoded |= not (self._raw.decode_content if decode_content is None else decode_content)
        return chunk

    def _whole(self) -> None:
        body = b"".join(self._chunks)
        self._ended(_decoded(self._raw, body) if self._encoded else body)

    def _ended(self, body: bytes | None) -> None:
        self._chunks.clear()
        run(lambda: self._end(body))

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
