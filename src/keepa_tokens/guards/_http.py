"""What the guards of HTTP clients share: what a request asks for, what it may cost, who gets the key. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias, cast
from urllib.parse import parse_qsl, quote, urlsplit

from .._arguments import LONGEST_LABEL, instance, shown, timeout_us, whole
from ..errors import ConfigError
from ..keepa._door import checked_api_key
from ..keepa.costs import estimate as table_estimate
from ..keepa.estimates import Estimator

KEEPA_HOST: Final = "api.keepa.com"
KEY: Final = "key"
HTTPS_PORT: Final = 443

Estimate: TypeAlias = Callable[[str, Mapping[str, object]], int]
"""Says what a call may cost: the path and the parameters, without the API key, to whole tokens."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's path and parameters, for the table of costs; the API key is not among them."""

    path: str
    params: Mapping[str, object]

    @property
    def label(self) -> str:
        """The path, as a label for people."""
        return self.path[:LONGEST_LABEL] if self.path.isprintable() else ""


def asked_of(url: str, body: bytes | str | None = None) -> Asked:
    """Return the path of a request and its parameters: those of its query, and the selection that it posts."""
    parts = urlsplit(url)
    params: dict[str, object] = dict(parse_qsl(parts.query, keep_blank_values=True))
    params.pop(KEY, None)
    if body:
        params.setdefault("selection", body.decode(errors="replace") if isinstance(body, bytes) else body)
    return Asked(parts.path.strip("/"), params)


class Meter:
    """How the requests of one guard are paid. Raises ConfigError or TypeError for impossible arguments."""

    def __init__(
        self,
        *,
        keep: int,
        timeout: float | None,
        again: bool,
        estimate: Estimate | None = None,
        estimator: Estimator | None = None,
    ) -> None:
        if estimate is not None and estimator is not None:
            raise ConfigError("give estimate= or estimator=, not both: an estimator estimates by itself")
        if estimate is not None and not callable(cast("object", estimate)):
            raise TypeError(f"estimate must be callable with a path and its parameters, not {shown(estimate)}")
        if estimator is not None:
            instance("estimator", estimator, Estimator)
        timeout_us(timeout)
        self.keep = whole("keep", keep)
        self.timeout = timeout
        self.again = again
        self._estimator = estimator
        self._estimate = estimate or (table_estimate if estimator is None else estimator.estimate)

    def cost(self, asked: Asked) -> int:
        """Return the tokens to set aside; 0: the request needs no hold, its answer is only a reading."""
        return whole("estimate", self._estimate(asked.path, asked.params))

    def learn(self, asked: Asked, consumed: int | None) -> None:
        if self._estimator is not None:
            self._estimator.learn(asked.path, asked.params, consumed)


class Origin:
    """The host whose requests are metered. Those by https to the API's own port get the API key.

    host: a name, or a loopback address, on which a test's server may listen on any port and without TLS.
    """

    def __init__(self, host: str, api_key: str | None) -> None:
        self.host = instance("host", host, str).lower()
        if not _is_host(self.host):
            # The error doesn't show the value: it may be an address with a password.
            raise ConfigError(
                "host must be the name of the API's host alone, e.g. api.keepa.com: no scheme, port or path"
            )
        self._api_key = None if api_key is None else checked_api_key(api_key)
        self._is_loopback = _is_loopback(self.host)

    def meters(self, url: str) -> bool:
        """Return whether a request is paid from the bucket."""
        return urlsplit(url).hostname == self.host

    def may_have_key(self, url: str) -> bool:
        parts = urlsplit(url)
        is_api = parts.scheme == "https" and (parts.port or HTTPS_PORT) == HTTPS_PORT
        return self.meters(url) and (is_api or self._is_loopback)

    def key_for(self, url: str) -> str | None:
        """Return the API key to add to `url`; None if it may not have it or has one already, or if none was given."""
        return self._api_key if self.may_have_key(url) and not has_key(url) else None


def has_key(url: str) -> bool:
    """Return whether a URL, or a path with a query, carries an API key."""
    return any(name == KEY for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))


def with_key(url: str, api_key: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{KEY}={quote(api_key, safe='')}"


def _is_host(host: str) -> bool:
    """Return whether a text can be a URL's host; with any other no request would ever be metered."""
    try:
        return bool(ip_address(host))
    except ValueError:
        return re.fullmatch(r"[^\s/@?#:\[\]]+", host) is not None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
