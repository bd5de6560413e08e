"""Whether a client's exception shows that a request never reached the server; and how the API key is kept out of it.

For every client, sync or async. Classes are told by their library's name and theirs, so none has to be installed.
"""

from __future__ import annotations

import gc
from traceback import walk_tb
from types import FrameType
from typing import Any, Final
from urllib.parse import quote

NO_CONNECTION: Final = frozenset(
    {
        # httpx and httpx2: no connection, no TLS, the proxy refused; no free connection in time; no such URL
        *("httpx.ConnectError", "httpx.ConnectTimeout", "httpx.PoolTimeout", "httpx.ProxyError"),
        *("httpx.UnsupportedProtocol", "httpx.InvalidURL"),
        # requests, and urllib3 below it; not their ProxyError, which may also come after the tunnel was open
        *("requests.ConnectTimeout", "requests.InvalidHeader", "requests.InvalidURL"),
        *("requests.InvalidSchema", "requests.MissingSchema"),
        *("urllib3.ConnectTimeoutError", "urllib3.LocationValueError", "urllib3.NewConnectionError"),
        # aiohttp: ClientConnectorError is DNS, TCP, TLS and the proxy's own connection
        *("aiohttp.ClientConnectorError", "aiohttp.ClientConnectorCertificateError", "aiohttp.ClientHttpProxyError"),
        *("aiohttp.ConnectionTimeoutError", "aiohttp.InvalidURL", "aiohttp.ServerFingerprintMismatch"),
        "ssl.SSLCertVerificationError",
    }
)

MISTAKES: Final = frozenset({OSError, FileNotFoundError, TypeError, UnicodeEncodeError, UnicodeError, ValueError})
"""Exactly these classes, not subclasses, are a client's checks of its arguments: a timeout of 0, a header with a line
break, a missing file of certificates. Failures of the network come in the client's own exceptions."""

CONNECTING: Final = {
    "httpcore._sync.connection": "_connect",
    "httpcore._sync.connection_pool": "wait_for_connection",
    "httpcore._sync.socks_proxy": "_init_socks5_connection",
    "urllib3.connection": "connect",
    "aiohttp.connector": "connect",
}
"""By module, the function that connects: a request that fails or is interrupted in it was not sent.

httpcore's async twins and httpcore2 have the same.
"""

REDIRECTED: Final = ("requests.sessions", "resolve_redirects")
"""A request that fails here was sent and answered, with a redirect."""

TUNNEL: Final = "httpcore._sync.http_proxy"
"""In this module one function opens a tunnel through a proxy, sets `_connected`, and sends the request through it."""


def never_sent(error: BaseException) -> bool:
    """Return whether the request of `error` certainly never reached the server, so that it can't have been charged.

    With an unknown exception it may have been sent. The exception and its causes count, not an exception that only
    happened to be handled when it was raised (`__context__`).
    """
    if REDIRECTED in _places(error):
        return False
    if type(error) in MISTAKES and getattr(error, "errno", None) in {None, 2}:
        return True
    return any(_names(link) & NO_CONNECTION or _ill_formed(link) or _is_connecting(link) for link in _links(error))


def forget_locals(error: BaseException) -> None:
    """Empty the frames in the tracebacks of `error` and of its causes; the tracebacks keep their lines.

    The frames' local variables hold the request with the API key, and tools that report errors show them.
    """
    for link in _links(error, also_handled=True):
        for frame, _ in walk_tb(link.__traceback__):
            if _is_over(frame):
                frame.clear()


def _is_over(frame: FrameType) -> bool:
    """Return whether the function of a frame has ended: clearing the frame of a suspended coroutine would end it.

    Streams of HTTP/2 share their connection's exception, and so each other's frames. A frame shows the
    garbage collector its references only once its function has ended.
    """
    return any(each is frame.f_code for each in gc.get_referents(frame))


def forget_key(error: BaseException, key: str) -> None:
    """Take the API key out of an exception and those behind it: requests puts the whole URL into its messages."""
    forget_locals(error)
    if not key:
        return
    links = _links(error, also_handled=True)
    for link in links:
        if "aiohttp.ClientResponseError" in _names(link):  # its message is made of the request's URL
            _forget_request(link)
        link.args = tuple(_without(arg, key) for arg in link.args)
        for holder in (link, getattr(link, "request", None)):  # requests adds the whole request to its exceptions
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, str):
                    setattr(holder, name, _without(value, key))
    for link in links:  # an exception that still shows the key is dropped
        for name in ("__context__", "__cause__"):
            behind = getattr(link, name)
            if behind is not None and key in f"{behind!s}{behind!r}":
                setattr(link, name, None)


def _forget_request(error: Any) -> None:  # noqa: ANN401 - aiohttp need not be installed
    bare = error.request_info.url.with_query(None)
    error.request_info = error.request_info._replace(url=bare, real_url=bare)
    error.args = (error.request_info, ())
    error.history = ()


def _without(value: object, key: str) -> object:
    return value.replace(quote(key, safe=""), "***").replace(key, "***") if isinstance(value, str) else value


def _names(error: BaseException) -> frozenset[str]:
    """Return the names of an exception's classes by their library: `httpx.ConnectError`; httpx2's as httpx's."""
    return frozenset(
        f"{kind.__module__.partition('.')[0].removesuffix('2')}.{kind.__name__}" for kind in type(error).__mro__
    )


def _ill_formed(error: BaseException) -> bool:
    """Return whether a header or a URL was refused before it was sent; the class alone doesn't show that."""
    return "httpx.LocalProtocolError" in _names(error) and str(error).startswith(("Illegal ", "Missing mandatory "))


def _places(error: BaseException) -> list[tuple[object, str]]:
    """Return the functions in an exception's traceback, each with its module."""
    return [(frame.f_globals.get("__name__"), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]


def _is_connecting(error: BaseException) -> bool:
    for frame, _ in walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        module = module.replace("httpcore2.", "httpcore.").replace("httpcore._async.", "httpcore._sync.")
        if CONNECTING.get(module) == frame.f_code.co_name:
            return True
        if module == TUNNEL and getattr(frame.f_locals.get("self"), "_connected", True) is False:
            return True
    return False


def _links(error: BaseException, *, also_handled: bool = False) -> list[BaseException]:
    """Return an exception, its causes, and the exceptions among its arguments."""
    found: list[BaseException] = []
    ahead: list[object] = [error]
    while ahead:
        link = ahead.pop()
        if isinstance(link, BaseException) and not any(link is each for each in found):
            found.append(link)
            ahead += [link.__cause__, getattr(link, "reason", None), *link.args]
            ahead += [link.__context__] if also_handled else []
    return found
