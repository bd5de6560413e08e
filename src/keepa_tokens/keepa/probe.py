"""Ready probes over httpx (an extra): ask Keepa's `/token`. It costs no tokens and works while the balance is negative.

httpx logs the URL of each request, and Keepa takes the key in the URL. So the key is added below httpx's client, in the
transport: no log line, exception or repr ever has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

try:
    import httpx
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the ready probes need httpx: pip install 'keepa-tokens[http]', or give KeepaSync a probe of your own"
    raise ImportError(msg) from missing

__all__ = ["async_http_probe", "http_probe"]

KEEPA: Final = "https://api.keepa.com"

TIMEOUT_SECONDS: Final = 10.0
"""Shorter than the claim on the probe (20 s), so that nobody else is sent while this one is still out."""


class http_probe:  # noqa: N801 - used as a function: `probe=http_probe(api_key)`
    """A probe for `KeepaSync`: called, it returns the status and the parsed body, or None where that is no JSON object.

    Raises httpx errors, which `KeepaSync` takes for a failed probe. transport: for proxies and tests.
    """

    def __init__(self, api_key: str, *, base_url: str = KEEPA, transport: httpx.BaseTransport | None = None) -> None:
        self._base_url = base_url
        self._transport = _Keyed(api_key, transport)

    def __call__(self) -> tuple[int, Mapping[str, object] | None]:
        """Ask `/token`."""
        with httpx.Client(base_url=self._base_url, transport=self._transport, timeout=TIMEOUT_SECONDS) as client:
            return _answer(client.get("/token"))

    def __repr__(self) -> str:
        return f"http_probe(base_url={self._base_url!r})"


class async_http_probe:  # noqa: N801 - used as a function: `probe=async_http_probe(api_key)`
    """`http_probe` for `AsyncKeepaSync`."""

    def __init__(
        self, api_key: str, *, base_url: str = KEEPA, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._base_url = base_url
        self._transport = _AsyncKeyed(api_key, transport)

    async def __call__(self) -> tuple[int, Mapping[str, object] | None]:
        """Ask `/token`."""
        async with httpx.AsyncClient(
            base_url=self._base_url, transport=self._transport, timeout=TIMEOUT_SECONDS
        ) as client:
            return _answer(await client.get("/token"))

    def __repr__(self) -> str:
        return f"async_http_probe(base_url={self._base_url!r})"


class _Keyed(httpx.BaseTransport):
    """Adds the API key on the way out. A transport of its own lives for one request; one brought along is left open."""

    def __init__(self, api_key: str, inner: httpx.BaseTransport | None) -> None:
        self._api_key = api_key
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        keyed = _keyed(request, self._api_key)
        if self._inner is not None:
            return self._inner.handle_request(keyed)
        with httpx.HTTPTransport() as transport:
            response = transport.handle_request(keyed)
            response.read()
            return response


class _AsyncKeyed(httpx.AsyncBaseTransport):
    """`_Keyed` for coroutines."""

    def __init__(self, api_key: str, inner: httpx.AsyncBaseTransport | None) -> None:
        self._api_key = api_key
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        keyed = _keyed(request, self._api_key)
        if self._inner is not None:
            return await self._inner.handle_async_request(keyed)
        async with httpx.AsyncHTTPTransport() as transport:
            response = await transport.handle_async_request(keyed)
            await response.aread()
            return response


def _keyed(request: httpx.Request, api_key: str) -> httpx.Request:
    url = request.url.copy_merge_params({"key": api_key})
    return httpx.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


def _answer(response: httpx.Response) -> tuple[int, Mapping[str, object] | None]:
    try:
        body: object = response.json()
    except ValueError:
        return response.status_code, None
    return response.status_code, cast("dict[str, object]", body) if isinstance(body, dict) else None
