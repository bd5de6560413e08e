"""What a client's exception tells: whether the request can have reached the server. And what it must not: the API key.

Decided here for every client, sync or async. Libraries are told by name, so none has to be installed.
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
        # requests, and urllib3 below it; their ProxyError also tells of what came after the tunnel was there
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
"""Exactly these, bare, are a client's checks of what it was given: a timeout of 0, a header with a line break, a
missing file of certificates. What the network does comes in the client's own exceptions."""

CONNECTING: Final = {
    "httpcore._sync.connection": "_connect",
    "httpcore._sync.connection_pool": "wait_for_connection",
    "httpcore._sync.socks_proxy": "_init_socks5_connection",
    "urllib3.connection": "connect",
    "aiohttp.connector": "connect",
}
"""By module, the function in which there is no connection yet: who fails or is interrupted in it has sent nothing.

httpcore's async twins and httpcore2 have the same.
"""

REDIRECTED: Final = ("requests.sessions", "resolve_redirects")
"""Who fails here has had an answer: that of the server, which sent it elsewhere."""

TUNNEL: Final = "httpcore._sync.http_proxy"
"""Here one function asks a proxy for a tunnel, notes that it is there, and sends the request through it."""


def never_sent(error: BaseException) -> bool:
    """Return whether the request of `error` certainly never reached the server, which so can't have charged it.

    Whatever isn't known may have been sent. Only what the exception says and was raised from counts, not what happened
    to be handled when it was raised.
    """
    if REDIRECTED in _places(error):
        return False
    if type(error) in MISTAKES and getattr(error, "errno", None) in {None, 2}:
        return True
    return any(_names(link) & NO_CONNECTION or _ill_formed(link) or _is_connecting(link) for link in _links(error))


def forget_locals(error: BaseException) -> None:
    """Empty the frames that `error`, and what it came from, went through below the guard; their lines stay.

    Their local variables hold the request as it left, with the API key, and tools that report errors show them.
    """
    for link in _links(error, also_handled=True):
        for frame, _ in walk_tb(link.__traceback__):
            if _is_over(frame):
                frame.clear()


def _is_over(frame: FrameType) -> bool:
    """Return whether a function has ended: to clear the frame of a coroutine that is suspended would end that.

    Streams of HTTP/2 share the exception of their connection, and with it their frames. A frame shows the
    garbage collector what it refers to only once its function has ended.
    """
    return any(each is frame.f_code for each in gc.get_referents(frame))


def forget_key(error: BaseException, key: str) -> None:
    """Take the API key out of what an exception and those behind it say: requests puts the whole URL into its texts."""
    forget_locals(error)
    if not key:
        return
    links = _links(error, also_handled=True)
    for link in links:
        if "aiohttp.ClientResponseError" in _names(link):  # it makes its text up from the request's URL
            _forget_request(link)
        link.args = tuple(_without(arg, key) for arg in link.args)
        for holder in (link, getattr(link, "request", None)):  # requests hangs the whole request on
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, str):
                    setattr(holder, name, _without(value, key))
    for link in links:  # what makes its text up from other things goes whole
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
    """Return whether a header or a URL was refused before it was written; the same class tells of other mistakes."""
    return "httpx.LocalProtocolError" in _names(error) and str(error).startswith(("Illegal ", "Missing mandatory "))


def _places(error: BaseException) -> list[tuple[object, str]]:
    """Return the functions that an exception went through, by their modules."""
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
    """Return an exception and all that it carries or was raised from."""
    found: list[BaseException] = []
    ahead: list[object] = [error]
    while ahead:
        link = ahead.pop()
        if isinstance(link, BaseException) and not any(link is each for each in found):
            found.append(link)
            ahead += [link.__cause__, getattr(link, "reason", None), *link.args]
            ahead += [link.__context__] if also_handled else []
    return found
