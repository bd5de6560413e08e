"""How long to wait before a call that the server refused is made again, and when to stop.

A refusal (429) is explained if its envelope leaves the bucket without tokens: the bucket says when there will be some.
It is unexplained if it leaves the bucket open, has no envelope or comes with a `Retry-After`: the bucket would grant
the next call at once, and the server would refuse it again. So:

1. After an unexplained refusal wait as long as `Retry-After` says, LONGEST_ASKED_S at most.
2. Without a `Retry-After` wait FIRST_PAUSE_S, doubled each time. Both waits get a random extra, so that many workers
   don't come back together.
3. After TRIES unexplained refusals the caller gets the server's answer.
4. After an explained refusal the bucket's own wait is enough. A refusal whose envelope promises tokens in less than
   FIRST_PAUSE_S is unexplained: a server that promises that each time would be asked without an end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import Final, Generic, Protocol, TypeVar, cast

from .._plans import Patience, Steps, snapshot_of
from ..errors import AcquireTimeout
from ..rules.commands import Peek
from ..units import MICROSECONDS

SERVER_REFUSES: Final = "REFUSED"
"""The reason of a wait, or of NotEnoughTokens, if the server refuses although the bucket would grant."""

TRIES: Final = 5
"""After so many unexplained refusals a request is not made again."""

FIRST_PAUSE_S: Final = 1.0
"""Seconds before the second try."""

LONGEST_ASKED_S: Final = 3600.0
"""The longest `Retry-After` that is obeyed, in seconds."""

STOOD: Final = ContextVar[int | None]("the number in line of a call that the server refused", default=None)
"""By this number the next try stands where the last one stood, or as if it had come when that was let go."""


class Tried(Protocol):
    """A call that was made. arrived: its number in line; told: its answer had an envelope; retry_after: in seconds."""

    arrived: int | None
    told: bool
    retry_after: float | None


C = TypeVar("C", bound=Tried)


class Attempts(Generic[C]):
    """The tries of one request. ask: sets tokens aside, waiting so many microseconds at most.

    The time that the caller takes for its calls doesn't count towards the timeout.
    """

    def __init__(
        self, tokens: int, keep: int, timeout_us: int | None, ask: Callable[[Steps[object], int | None], Awaitable[C]]
    ) -> None:
        self._tokens, self._keep, self._left_us, self._ask = tokens, keep, timeout_us, ask
        self._unexplained = 0
        self._arrived: int | None = None
        self._last: C | None = None

    async def next(self, steps: Steps[object]) -> C | None:
        """Return the next call, its estimate set aside; None: make no other, the last answer stands.

        After a StorageUnavailable it may be called again, and goes on where it was.
        """
        patience = Patience(steps.door, self._left_us)
        if self._last is not None:
            # The first number that it had: a later one is only that of the call that was refused just now.
            self._arrived = min((n for n in (self._arrived, self._last.arrived) if n is not None), default=None)
            if not await self._goes_on(steps, self._last, patience.left_us()):
                return None
        self._last = None
        STOOD.set(self._arrived)
        try:
            call = await self._ask(steps, None if self._left_us is None else max(0, patience.left_us()))
        finally:
            STOOD.set(None)  # not back by its token: a coroutine that is thrown away ends in somebody else's context
        self._left_us = None if self._left_us is None else patience.left_us()
        self._last = call
        return call

    async def _goes_on(self, steps: Steps[object], last: C, left_us: int) -> bool:
        """Wait after an unexplained refusal; return False if no other call is to be made.

        Raises AcquireTimeout if the wait would be too long.
        """
        seen = snapshot_of(await steps.apply(Peek(self._tokens, self._keep, arrived=self._arrived)))
        wait = seen.retry_after if last.told and last.retry_after is None else 0.0
        seconds = self._pause(wait, last.retry_after)
        if seconds is None:
            return False
        pause_us = round(seconds * MICROSECONDS)
        if pause_us > left_us:
            if not wait:
                raise AcquireTimeout(self._tokens, max(seconds, seen.retry_after), SERVER_REFUSES, seen.balance)
            pause_us = left_us  # the bucket then raises, with its own reason
        if pause_us:
            spread_us = pause_us // 2 if last.retry_after is None else MICROSECONDS
            await steps.sleep(pause_us, min(spread_us, left_us - pause_us), SERVER_REFUSES, alert=False)
        return True

    def _pause(self, wait: float, retry_after: float | None) -> float | None:
        """Count a refusal and return the seconds to wait before the bucket is asked again; None: make no other try.

        wait: seconds that the bucket, having heard the refusal, would keep the request where it stood; 0 where the
        answer had no envelope, or asked for a time of its own. retry_after: what it asked for, None if nothing.
        """
        if wait >= FIRST_PAUSE_S:
            return 0.0
        self._unexplained += 1
        if self._unexplained >= TRIES:
            return None
        if retry_after is not None:
            return min(retry_after, LONGEST_ASKED_S)
        return FIRST_PAUSE_S * 2.0 ** (self._unexplained - 1)


def retry_after_of(answer: object) -> float | None:
    """Return the `Retry-After` of a response of httpx or requests in seconds; None: it has none, or is no response."""
    headers: object = getattr(answer, "headers", None)
    return retry_after(cast("Mapping[str, str]", headers)) if isinstance(headers, Mapping) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a `Retry-After`, None if there is none or it can't be read.

    A `Retry-After` with a date counts from the answer's own `Date`, by the server's clock alone.
    """
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked[:9])
    try:
        until, sent = (parsedate_to_datetime(text).timestamp() for text in (asked, headers.get("Date", "")))
    except (ValueError, OverflowError):
        return None
    return max(0.0, until - sent)
