"""What the guards for HTTP clients have in common: which request it is, what it may cost, what came of it. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, quote, urlsplit

from .._arguments import timeout_us, whole
from ..errors import ConfigError, StorageUnavailable
from ..keepa.async_sync import AsyncCall
from ..keepa.costs import estimate as table_estimate
from ..keepa.estimates import Estimator
from ..keepa.sync import Call

KEEPA_HOST: Final = "api.keepa.com"
KEY: Final = "key"
REFUSED: Final = 429

Estimate: TypeAlias = Callable[[str, Mapping[str, object]], int]
"""Says what a call may cost: the path and the parameters, without the API key, to whole tokens."""

_log: Final = logging.getLogger("keepa_tokens")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the table of costs sees it; the API key is not among the parameters."""

    path: str
    params: Mapping[str, object]


class Terms:
    """On what terms the requests of one guard are metered. Raises ConfigError or TypeError on impossible ones."""

    def __init__(
        self,
        *,
        api_key: str | None,
        host: str,
        estimate: Estimate | None,
        estimator: Estimator | None,
        keep: int,
        timeout: float | None,
        retry_refused: bool,
    ) -> None:
        if estimate is not None and estimator is not None:
            raise ConfigError("give estimate= or estimator=, not both: an estimator estimates by itself")
        timeout_us(timeout)
        self.host = host.lower()
        self.keep = whole("keep", keep)
        self.timeout = timeout
        self.retry_refused = retry_refused
        self._api_key = api_key
        self._estimator = estimator
        self._estimate = estimate or (table_estimate if estimator is None else estimator.estimate)

    def meters(self, host: str | None) -> bool:
        """Return whether requests to `host` are paid from the bucket."""
        return host is not None and host.lower() == self.host

    def asked(self, url: str, body: bytes | str | None = None) -> Asked:
        """Return what a request asks for: its query, and the selection that it posts."""
        parts = urlsplit(url)
        params: dict[str, object] = dict(parse_qsl(parts.query, keep_blank_values=True))
        params.pop(KEY, None)
        if body:
            params.setdefault("selection", body.decode(errors="replace") if isinstance(body, bytes) else body)
        return Asked(parts.path.strip("/"), params)

    def cost(self, asked: Asked) -> int:
        """Return the tokens to set aside; 0: nothing to hold, the answer is only observed."""
        return whole("estimate", self._estimate(asked.path, asked.params))

    def learn(self, asked: Asked, call: Call | AsyncCall) -> None:
        """Let the estimator, if there is one, know what a settled call cost."""
        if self._estimator is not None:
            self._estimator.learn(asked.path, asked.params, call.consumed)

    def key_for(self, url: str) -> str | None:
        """Return the API key to send along with `url`; None where it brings its own, or none was given."""
        return None if has_key(url) else self._api_key

    def left(self, left: float | None, call: Call | AsyncCall) -> float | None:
        """Return how long a refused call's next attempt may wait for tokens."""
        return None if left is None else max(0.0, left - call.waited)


def has_key(url: str) -> bool:
    """Return whether a URL, or the path and query of one, carries an API key."""
    return any(name == KEY for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))


def keyed(url: str, api_key: str) -> str:
    """Return a URL, or the path and query of one, with the API key added."""
    return f"{url}{'&' if '?' in url else '?'}{KEY}={quote(api_key, safe='')}"


def is_image(content_type: str | None) -> bool:
    """Return whether an answer is an image, which carries no envelope: its hold is left to run out."""
    return (content_type or "").lower().startswith("image/")


def not_taken_down(error: StorageUnavailable) -> None:
    """Report that the storage was away when an answer came. It is paid for, so it must not be lost for that.

    Nothing passes unmetered: the call's hold runs out by itself, and the next request is granted by the storage or not
    at all.
    """
    _log.warning("an answer could not be taken down, a hold of it runs out by itself: %s", error)
