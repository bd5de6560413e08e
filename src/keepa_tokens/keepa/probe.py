"""Ready probes over httpx or httpx2 (extras): they ask Keepa's `/token`, which costs nothing and always works.

Both clients log the URL of each request, and Keepa takes the API key in the URL. So the key is added below the client,
in the transport: no log line, exception or repr has it. Proxies and CA files come from the environment, as with the
clients themselves. A probe ends after `timeout` seconds in all, however slowly the server answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import urlsplit

from .._arguments import NotCopied, instance, redacted, shown
from .._interrupts import interrupt_in
from .._loops import limited
from ..errors import ConfigError
from ._door import checked_api_key
from ._httpx import LIBRARIES, keyed, library_of, proxy_for
from ._probing import LONGEST_PROBE_S
from .quota import KEEPA

if TYPE_CHECKING:
    import httpx
    import httpx2

    Transport: TypeAlias = httpx.BaseTransport | httpx2.BaseTransport
    AsyncTransport: TypeAlias = httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport

__all__ = ["async_http_probe", "http_probe"]

if not any(map(find_spec, LIBRARIES)):
    raise ImportError(
        "the ready probes need httpx or httpx2: pip install 'keepa-tokens[http]', or give KeepaSync your own"
    )


class _Probe(NotCopied):
    """The API's address, the key, and the client library that asks."""

    _instead = "make one in each process, with the same API key"

    def __init__(self, api_key: str, base_url: str, transport: object, sends: str) -> None:
        checked_api_key(api_key)
        if transport is not None and not callable(getattr(transport, sends, None)):
            raise TypeError(f"transport must be one of httpx or httpx2, with {sends}(), not {shown(transport)}")
        if not _is_address(instance("base_url", base_url, str)):
            # Not the address itself: it may hold a password.
            raise ConfigError(
                "base_url must be the address of the API, such as https://api.keepa.com, with percent codes for special"
                " characters in it"
            )
        self._base_url = base_url
        self._api_key = api_key
        self._transport: Any = transport
        self._http = library_of(transport) or import_module(next(filter(find_spec, LIBRARIES)))

    def _client(self, kind: str, timeout: float) -> Any:  # noqa: ANN401 - either library's
        """Return a client of that kind, whose transport adds the key; so the client logs the URL without it."""
        http, key, parts, inner = self._http, self._api_key, urlsplit(self._base_url), self._transport
        sends: dict[str, Callable[[object, Any], object]] = {
            "handle_request": lambda _, request: inner.handle_request(keyed(http, request, key)),
            "handle_async_request": lambda _, request: inner.handle_async_request(keyed(http, request, key)),
        }
        closes: dict[str, Callable[[object], object]] = {}
        if inner is None:  # as the client would make it, with the proxy and the CA files of the environment
            proxy = proxy_for(parts.scheme, parts.netloc.rpartition("@")[2])
            inner = getattr(http, kind.replace("Client", "HTTPTransport"))(proxy=proxy)
            closes = {"close": lambda _: inner.close(), "aclose": lambda _: inner.aclose()}
        below = type("Below", (http.BaseTransport, http.AsyncBaseTransport), {**sends, **closes})
        # A host may have several addresses, and the client tries each for that long.
        limits = http.Timeout(timeout, connect=timeout / 2)
        return getattr(http, kind)(base_url=self._base_url, transport=below(), timeout=limits)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={redacted(repr(self._base_url))})"


class http_probe(_Probe):  # noqa: N801 - used as a function: `probe=http_probe(api_key)`
    """A probe for `KeepaSync`: a call returns the status and the parsed body, or None if that is no JSON object.

    A call takes `timeout` seconds at most. It raises the client's errors, which `KeepaSync` takes for a failed
    probe. transport: sends the request (default: one with the environment's proxy and CA files).
    """

    def __init__(self, api_key: str, *, base_url: str = KEEPA, transport: Transport | None = None) -> None:
        super().__init__(api_key, base_url, transport, "handle_request")

    def __call__(self, *, timeout: float = LONGEST_PROBE_S) -> tuple[int, Mapping[str, object] | None]:
        """Ask `/token`."""
        watch = {"trace": _Deadline(timeout).watch}
        try:
            with self._client("Client", timeout) as client:
                return _answer(client.get("/token", extensions=watch))
        except Exception as error:  # noqa: BLE001 - raised again, without its causes and traceback
            raise _told(error) from None


class async_http_probe(_Probe):  # noqa: N801 - used as a function: `probe=async_http_probe(api_key)`
    """`http_probe` for `AsyncKeepaSync`."""

    def __init__(self, api_key: str, *, base_url: str = KEEPA, transport: AsyncTransport | None = None) -> None:
        super().__init__(api_key, base_url, transport, "handle_async_request")

    async def __call__(self, *, timeout: float = LONGEST_PROBE_S) -> tuple[int, Mapping[str, object] | None]:
        """Ask `/token`."""
        try:
            async with limited(timeout), self._client("AsyncClient", timeout) as client:
                return _answer(await client.get("/token"))
        except Exception as error:  # noqa: BLE001 - raised again, without its causes and traceback
            raise _told(error) from None


class _Deadline:
    """Ends a blocking request after so many seconds in all.

    The client's own timeouts begin again with each byte. So each wait of a new connection is cut to the time that is
    left.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Hear from the client's `trace` extension what it does."""
        self._left()
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            stream = info["return_value"]
            stream.read = partial(self._limited, stream.read)
            stream.start_tls = partial(self._limited, stream.start_tls)

    def _limited(self, wait: Callable[..., object], *args: object, **options: object) -> object:
        given = signature(wait).bind(*args, **options)  # with `timeout` by name, by position, or without
        given.arguments["timeout"] = min(self._left(), given.arguments.get("timeout") or math.inf)
        return wait(*given.args, **given.kwargs)

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {self._seconds:g} s")
        return left


def _is_address(url: str) -> bool:
    """Return whether requests can be made to a URL; special characters in a password may break it."""
    with suppress(ValueError):  # the port is no number, or the host can't be encoded
        parts = urlsplit(url)
        is_whole = url.isprintable() and " " not in url and not (parts.query or parts.fragment) and parts.port != 0
        return is_whole and parts.scheme in {"https", "http"} and bool((parts.hostname or "").encode("idna"))
    return False


def _told(error: Exception) -> Exception:
    """Return an error without its causes and traceback, which may hold the key."""
    if interrupt_in(error) is None:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return error


def _answer(response: Any) -> tuple[int, Mapping[str, object] | None]:  # noqa: ANN401 - either library's
    try:
        body: object = response.json()
    except ValueError:
        return response.status_code, None
    return response.status_code, cast("dict[str, object]", body) if isinstance(body, dict) else None
