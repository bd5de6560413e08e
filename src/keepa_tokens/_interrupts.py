"""What interrupts a call, as opposed to what fails in it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from inspect import currentframe
from itertools import islice
from types import CodeType, FrameType


def interrupt_in(error: BaseException) -> BaseException | None:
    """Return what interrupted, if `error` is that or hides it; None for a mere failure.

    An interrupt is no `Exception` (Ctrl-C, a cancellation), or was raised by a signal's handler, whatever its type: a
    time limit's `TimeoutError`, Celery's `SoftTimeLimitExceeded`. A client in whose midst it struck may have turned it
    into an error of its own.
    """
    handlers, callers = set(_handlers()), list(_callers())
    link: BaseException | None = error
    while link is not None:
        if not isinstance(link, Exception) or not handlers.isdisjoint(frame.f_code for frame in _frames(link)):
            return link
        link = link.__cause__ or link.__context__
        if link is not None and any(frame in callers for frame in islice(_frames(link), 1)):
            # It was being handled when the call began.
            return None
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _callers() -> Iterator[FrameType]:
    frame = currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _handlers() -> Iterator[CodeType]:
    """Yield the code of every handler of a signal that is written in Python."""
    for number in signal.valid_signals():
        handler: object = signal.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        for found in (handler, getattr(handler, "__func__", None), vars(type(handler)).get("__call__")):
            code = getattr(found, "__code__", None)
            if isinstance(code, CodeType):
                yield code
