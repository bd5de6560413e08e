"""A requests adapter that pays for requests to Keepa from a bucket.

    session = requests.Session()
    adapter = KeepaAdapter(KeepaSync.from_key(key), api_key=key)
    session.mount("https://api.keepa.com/", adapter)
    answer = session.get("https://api.keepa.com/product?domain=1&asin=B0088PUEPK")

It does what `keepa_tokens.guards.httpx` does, with these differences:

- With `stream=True` the call is settled once your code has read the body to its end, else before `get` returns.
- Mind that a `Response` of 400 and above is false. A request whose body is read from a file or a generator is not
  repeated.
- It serves Keepa alone: mount it there. A request to another host raises ConfigError.
- urllib3 logs the URL of every request, and requests puts it into exceptions. So give the key here, as `api_key`, and
  leave it out of the requests' parameters: the adapter adds it at the connection, only by https to the API's own port.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, cast

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
from ._flow import End, Exchange, GuardBase, checked_sync, metered
from ._http import KEEPA_HOST, Estimate, Meter, Origin, asked_of, has_key, with_key

__all__ = ["KeepaAdapter"]


class KeepaAdapter(GuardBase, HTTPAdapter):
    """Pays for requests to Keepa from the bucket of `sync`. Mount it at `https://api.keepa.com/`.

    api_key: added to requests that don't bring a `key`. host: the only host that it serves; a request to another one
    raises ConfigError, as that must not get the key. estimate, estimator, keep, timeout, retry_refused: as for
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
        return run(lambda: metered(self._sync, self._meter, asked_of(url, body), exchange))

    def __repr__(self) -> str:
        return f"KeepaAdapter({self._sync!r}, host={self._origin.host!r})"


class RequestsExchange(Exchange[requests.Response]):
    """One request by requests, sent by `send`. streams: the caller reads the body."""

    def __init__(
        self, send: Callable[[], requests.Response], *, streams: bool = False, repeatable: bool = True
    ) -> None:
        self._send = send
        self._streams = streams
        self.repeatable = repeatable

    def send(self) -> requests.Response:
        return self._send()

    def read(self, answer: requests.Response) -> tuple[requests.Response, bytes]:
        """Read the body, which stays in the answer; for a caller that streams also in its `raw`, undecoded."""
        if not self._streams:
            return answer, answer.content or b""
        raw = answer.raw
        passed = _Passed(raw)
        answer.raw = _with_body(raw, io.BufferedReader(passed))
        body = answer.content or b""
        answer.raw = _with_body(raw, io.BytesIO(b"".join(passed.chunks)))
        return answer, body

    def streamed(self, answer: requests.Response, end: End) -> requests.Response | None:
        if not self._streams:
            return None
        answer.raw = _with_body(answer.raw, io.BufferedReader(_Settling(answer.raw, end)))
        return answer


def _with_body(raw: urllib3.HTTPResponse, body: io.BufferedIOBase) -> urllib3.HTTPResponse:
    made = urllib3.HTTPResponse(
        body,
        headers=raw.headers,
        status=raw.status,
        version=raw.version,
        reason=raw.reason,
        preload_content=False,
        decode_content=raw.decode_content,
        original_response=cast("Any", raw)._original_response,  # noqa: SLF001 - requests takes the cookies from it
        request_url=raw.geturl(),
    )
    made.length_remaining = None  # so that it reads on to the end, and closes no earlier
    return made


class _Passed(io.RawIOBase):
    """A body as it comes over the wire; it remembers the chunks that have come so far."""

    def __init__(self, raw: urllib3.HTTPResponse) -> None:
        self._raw = raw
        self.chunks: list[bytes] = []

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever can be written to
        chunk = self._raw.read(len(buffer), decode_content=False)
        buffer[: len(chunk)] = chunk
        self.chunks.append(chunk)
        return len(chunk)

    def close(self) -> None:
        super().close()
        self._raw.close()
        self._raw.release_conn()


class _Settling(_Passed):
    """A body that settles its call: by the whole body once it was read to the end, without a body if closed early."""

    def __init__(self, raw: urllib3.HTTPResponse, end: End) -> None:
        super().__init__(raw)
        self._end = end

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - the same
        size = super().readinto(buffer)
        if not size:
            body = _decoded(self._raw, b"".join(self.chunks))
            run(lambda: self._end(body))
        return size

    def close(self) -> None:
        try:
            super().close()
        finally:
            run(lambda: self._end(None))


def _decoded(raw: urllib3.HTTPResponse, body: bytes) -> bytes:
    """Return a body without its content encoding; as it is, if it can't be decoded."""
    response = urllib3.HTTPResponse(io.BytesIO(body), headers=raw.headers, preload_content=False)
    try:
        return response.read(decode_content=True)
    except DecodeError:
        return body


class _KeyedConnection:
    """Put before a connection class, it adds the API key to the request line, below all code that logs or raises."""

    api_key = ""

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:  # noqa: FBT001, FBT002 - http.client's own
        own = cast("HTTPConnection", super())
        own.putrequest(method, url if has_key(url) else with_key(url, self.api_key), skip_host, skip_accept_encoding)


def _key_connections(manager: urllib3.PoolManager, api_key: str | None) -> None:
    """Let the connections that a manager makes from now on add the key."""
    if api_key is None:
        return

    def pool(kind: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        connection = type("KeyedConnection", (_KeyedConnection, kind.ConnectionCls), {"api_key": api_key})
        return cast("type[HTTPConnectionPool]", type("KeyedPool", (kind,), {"ConnectionCls": connection}))

    kinds = cast("dict[str, type[HTTPConnectionPool]]", vars(manager)["pool_classes_by_scheme"])  # untyped there
    manager.pool_classes_by_scheme = {scheme: pool(kind) for scheme, kind in kinds.items()}
