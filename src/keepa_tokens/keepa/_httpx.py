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
    """Return the library, httpx or httpx2, whose class a request or a transport is; None: neither's."""
    names = {kind.__module__.partition(".")[0] for kind in type(made).__mro__}
    name = next((name for name in LIBRARIES if name in names), None)
    return None if name is None else import_module(name)


def keyed(library: ModuleType, request: Any, api_key: str) -> Any:  # noqa: ANN401 - of either library
    """Return a copy of a request with the API key in its URL; the client logs its own request, which stays without."""
    url = request.url.copy_merge_params({"key": api_key})
    return library.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


def proxy_for(scheme: str, host: str) -> str | None:
    """Return the proxy that the environment names for a URL, found as the clients find it; None: there is none.

    Raises ConfigError for a proxy's address that can't be read.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    with suppress(ValueError):  # its text may hold a part of the password
        _ = urlsplit(proxy).port
        return proxy
    raise ConfigError(
        "the proxy that the environment names has no port that is a number; write special characters of its user's name"
        " or password as percent codes (urllib.parse.quote)"
    )
