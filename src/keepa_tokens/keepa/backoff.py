"""How long to wait before a call that the server refused is made again, and when to stop. Pure.

A refusal (429) whose envelope leaves the bucket without tokens explains itself: the bucket says when there will be
some. One that leaves the bucket open, has no envelope or comes with a `Retry-After` doesn't: the bucket would let the
next call through, to be refused again. So:

1. Where the server said how long (`Retry-After`), that long, LONGEST_ASKED at most.
2. Else FIRST, doubled each time. Both are jittered upwards, so that many workers don't come back together.
3. After TRIES of them the server's own answer is the last word.
4. After a refusal that explains itself the bucket's wait is enough. One that promises tokens sooner than in FIRST
   explains nothing: a server that promises so each time would be asked without an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, cast

__all__ = ["FIRST", "LONGEST_ASKED", "SERVER_REFUSES", "TRIES", "Refusals", "asked_by", "retry_after"]

SERVER_REFUSES: Final = "REFUSED"
"""The reason of a wait, or of NotEnoughTokens, where the server refuses though the bucket would not."""

TRIES: Final = 5
"""Refusals of one request, none of them explained by an empty bucket, after which it is not made again."""

FIRST: Final = 1.0
"""Seconds before the second try."""

LONGEST_ASKED: Final = 3600.0
"""The longest `Retry-After` that is obeyed, in seconds."""


class Refusals:
    """The refusals of one request so far."""

    def __init__(self) -> None:
        self.unexplained = 0

    def pause(self, wait: float, *, retry_after: float | None = None) -> float | None:
        """Count a refusal and return the seconds to wait before the bucket is asked again; None: make no other try.

        wait: seconds that the bucket, having heard the refusal, would keep the same request; 0 where the answer had no
        envelope. retry_after: what the server asked for, None if nothing.
        """
        if retry_after is None and wait >= FIRST:
            return 0.0
        self.unexplained += 1
        if self.unexplained >= TRIES:
            return None
        if retry_after is not None:
            return min(retry_after, LONGEST_ASKED)
        return FIRST * 2.0 ** (self.unexplained - 1)


def asked_by(answer: object) -> float | None:
    """Return the seconds that a response of httpx or requests asks for; None: it asks for nothing, or is none."""
    headers: object = getattr(answer, "headers", None)
    return retry_after(cast("Mapping[str, str]", headers)) if isinstance(headers, Mapping) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a `Retry-After` asks for, None if there is none or it can't be read.

    A date counts from the answer's own `Date`: the server's clock, and ours is not asked.
    """
    asked = headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdecimal():
        return float(asked[:9])
    try:
        until, sent = (parsedate_to_datetime(text).timestamp() for text in (asked, headers.get("Date", "")))
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, until - sent)
