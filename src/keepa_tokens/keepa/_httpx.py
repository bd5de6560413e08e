"""What the ready probes and the transports do alike with httpx and httpx2. It imports neither."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..errors import ConfigError

LIBRARIES: Final = ("httpx", "httpx2")


def library_of(made: object) -> ModuleType | None:
    """Return the library, httpx or httpx2, that a request or a transport is made by; None: neither."""
    names = {kind.__module__.partition(".")[0] for kind in type(made).__mro__}
    name = next((name for name in LIBRARIES if name in names), None)
    return None if name is None else import_module(name)


def keyed(library: ModuleType, request: Any, api_key: str) -> Any:  # noqa: ANN401 - of either library
    """Return a request with the API key in its URL; the client's own, which it logs, stays without."""
    url = request.url.copy_merge_params({"key": api_key})
    return library.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy that the environment names for a URL, as the clients find it for transports of their own.

    ConfigError for one that can't be read.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    with suppress(ValueError):  # whose text has what should be the port
        _ = urlsplit(proxy).port
        return proxy
    raise ConfigError(
        "the proxy that the environment names has no port that is a number; write special characters of its user's name"
        " or password as percent codes (urllib.parse.quote)"
    )
