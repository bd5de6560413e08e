"""What every guard does with one request, written once for threads and coroutines.

It asks for tokens, sends the request, settles the call by the answer, and makes the request again if that is wanted.
What `done` awaits may be a plain result, so a blocking client runs the same flow to its end in one go.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from .._arguments import NotCopied, timeout_us
from .._plans import Steps
from ..errors import AcquireTimeout, ConfigError, NotEnoughTokens, StorageUnavailable
from ..events import AWAY
from ..keepa._door import steps_of
from ..keepa.async_sync import AsyncCall, AsyncKeepaSync
from ..keepa.backoff import FIRST_PAUSE_S, Attempts, retry_after
from ..keepa.sync import Call, KeepaSync
from ..units import MICROSECONDS
from ._errors import forget_locals, never_sent
from ._http import Asked, Meter

R = TypeVar("R")
T = TypeVar("T")

AnySync: TypeAlias = KeepaSync | AsyncKeepaSync
AnyCall: TypeAlias = Call | AsyncCall
Ask: TypeAlias = Callable[[int, float | None], Awaitable[AnyCall]]
"""Sets so many tokens aside, waiting so many seconds at most."""
End: TypeAlias = Callable[[bytes | None], Coroutine[object, None, None]]
"""Ends a call by the body of its answer, once; None: the body was not read to its end, so the cost isn't known."""

LONGEST_AWAY_S: Final = 600.0
"""Seconds for which a task that has paid waits for a storage that is away."""

LONGEST_PAUSE_S: Final = 30.0
"""The longest pause between two tries to reach that storage."""

CLIENT_ERROR: Final = 400
SERVER_ERROR: Final = 500

_log: Final = logging.getLogger("keepa_tokens")


class Exchange(Generic[R]):
    """One request of some client, and how its answers are read. Results may be awaitable."""

    repeatable: bool = True
    """Whether it can be sent again: not if its body is read from a file or a generator."""

    def send(self) -> R | Awaitable[R]:
        """Send the request."""
        raise NotImplementedError

    def read(self, answer: R) -> tuple[R, bytes] | Awaitable[tuple[R, bytes]]:
        """Read an answer whole; return the answer for the caller, still to be read, and its decoded body."""
        raise NotImplementedError

    def streamed(self, answer: R, end: End) -> R | None:  # noqa: ARG002 - for those that stream
        """Return an answer that calls `end` once it was read or closed; None: there is no stream, read it now."""
        return None


@dataclass
class Run:
    """One run of a task, which runs again from its beginning if refused. paid: it has paid for a call, or may have."""

    paid: bool = False


RUN: Final = ContextVar[Run | None]("the task under way", default=None)


def patience(timeout: float | None) -> float | None:
    """Return how long a request may wait: without end once the task under way has paid for an earlier request.

    If the task were sent back, it would pay for that one again, and again.
    """
    run = RUN.get()
    return None if run is not None and run.paid else timeout


class GuardBase(NotCopied):
    """The base of all guards. They can't be copied: a copy would not share connections, or a bucket in memory."""

    _instead = "make one in each process, of the same bucket"


def checked_sync(sync: AnySync, kind: type[AnySync], guard: object) -> AnySync:
    """Return `sync` if it is of the kind that a guard runs on; ConfigError else."""
    if not isinstance(sync, kind):
        raise ConfigError(f"a {type(guard).__name__} needs a {kind.__name__}, not {type(sync).__name__}")
    return sync


async def done(result: T | Awaitable[T]) -> T:
    return cast("T", await result) if isawaitable(result) else result


async def metered(sync: AnySync, meter: Meter, asked: Asked, exchange: Exchange[R], ask: Ask | None = None) -> R:
    """Make one request, paid from the bucket; if the server refuses it and the guard is to repeat it, make it again."""
    cost = meter.cost(asked)
    if cost == 0:
        return await _observed(sync, exchange)

    def set_aside(_: object, left_us: int | None) -> Awaitable[AnyCall]:
        left = None if left_us is None else left_us / MICROSECONDS
        return ask_of(sync, cost, meter.keep, left, asked.label) if ask is None else ask(cost, left)

    attempts, steps = Attempts(cost, meter.keep, timeout_us(patience(meter.timeout)), set_aside), steps_of(sync)
    answer: R | None = None
    while (call := await _once_there(steps, lambda: attempts.next(steps))) is not None:
        answer = await _sent(call, meter, asked, exchange)
        call.retry_after = retry_after(_headers(answer))
        again = call.refused or (_status(answer) >= SERVER_ERROR and call.retry_after is not None)
        if not (again and meter.again and exchange.repeatable):
            break
    return cast("R", answer)


async def _once_there(steps: Steps[object], step: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `step`; for a task that has paid, repeat the step while the storage is away.

    If such a task were sent back, it would pay again. So it fails if the storage stays away for LONGEST_AWAY_S.
    """
    run, pause, waited = RUN.get(), FIRST_PAUSE_S, 0.0
    while True:
        try:
            return await step()
        except StorageUnavailable as away:
            if run is None or not run.paid:
                raise
            if waited >= LONGEST_AWAY_S:
                raise StorageUnavailable(
                    f"{away} The task has paid for earlier requests and would pay again, so it is not sent back."
                ) from away
            await steps.sleep(round(pause * MICROSECONDS), 0, AWAY, alert=False)
            waited += pause
            pause = min(2 * pause, LONGEST_PAUSE_S)


async def ask_of(sync: AnySync, cost: int, keep: int, left: float | None, label: str) -> AnyCall:
    """Set tokens aside, waiting so many seconds at most; AcquireTimeout if that is too short.

    A caller that can't wait at all uses `try_request`, which probes the server if the balance is unknown: `request`
    would send the call as the scout instead, and the server might refuse it.
    """
    if left is None or left > 0:
        return await done(cast("AnyCall", sync.request(cost, keep=keep, timeout=left, label=label)))
    try:
        return await done(cast("AnyCall", sync.try_request(cost, keep=keep, label=label)))
    except NotEnoughTokens as refused:
        raise AcquireTimeout(refused.tokens, refused.retry_after, refused.reason, refused.balance) from None


async def _sent(call: AnyCall, meter: Meter, asked: Asked, exchange: Exchange[R]) -> R:
    """Send the request and settle the call by its answer: at once, or when the caller has read a stream to its end."""
    try:
        answer = await done(exchange.send())
    except BaseException as error:  # interrupts and cancellations too; `settle()` without a body doesn't suspend
        with suppress(StorageUnavailable):  # then its hold runs out by itself
            if never_sent(error):
                await done(call.cancel())
            else:
                _paid(call)
                await done(call.settle())
        forget_locals(error)
        raise
    status, ended = _status(answer), False

    async def end(body: bytes | None) -> None:
        nonlocal ended
        if ended:
            return
        ended = True
        try:
            await done(call.settle(body, status=status))
        except StorageUnavailable as error:
            _not_taken_down(error)
        meter.learn(asked, call.consumed)
        _paid(call)

    # An error is read and settled at once: its caller may raise by the status alone, and never read the body.
    failed = status >= CLIENT_ERROR
    if _headers(answer).get("Content-Type", "").lower().startswith("image/") and not failed:
        await end(None)  # it carries no envelope, so its hold is left to run out
        return answer
    streaming = None if failed else exchange.streamed(answer, end)
    if streaming is not None:
        return streaming
    body: bytes | None = None
    try:
        answer, body = await done(exchange.read(answer))
    finally:
        await end(body)
    return answer


def _paid(call: AnyCall) -> None:
    """Note that the task under way has paid, or may have, as after an image, a stream cut short or a lost answer."""
    run = RUN.get()
    if run is not None and not call.refused and call.consumed != 0:
        run.paid = True


async def _observed(sync: AnySync, exchange: Exchange[R]) -> R:
    """Make a request that costs nothing; its answer is a reading."""
    try:
        answer, body = await done(exchange.read(await done(exchange.send())))
    except BaseException as error:
        forget_locals(error)
        raise
    try:
        await done(sync.observe(body, status=_status(answer)))
    except StorageUnavailable as error:
        _not_taken_down(error)
    return answer


def _status(answer: Any) -> int:  # noqa: ANN401 - of any client; aiohttp has another name for it
    return int(answer.status if isinstance(getattr(answer, "status", None), int) else answer.status_code)


def _headers(answer: Any) -> Mapping[str, str]:  # noqa: ANN401 - the same
    return cast("Mapping[str, str]", answer.headers)


def _not_taken_down(error: StorageUnavailable) -> None:
    """Report that the storage was away when an answer came. The caller has paid for the answer and still gets it.

    Nothing goes unmetered: the call's hold runs out by itself, and the next request needs a grant of the storage.
    """
    with suppress(Exception):  # a logging handler may raise
        _log.warning("the storage was away when an answer came: its call's hold runs out by itself: %s", error)
