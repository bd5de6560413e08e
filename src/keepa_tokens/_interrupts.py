"""What interrupts a call, as opposed to what fails in it."""

from __future__ import annotations

import _thread
import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from inspect import currentframe
from traceback import walk_stack, walk_tb
from types import CodeType, FrameType
from typing import Any, Final

LONGEST_PUT_OFF_S: Final = 5.0
"""How long a signal is put off while a storage doesn't answer, whatever its own timeouts."""

_signal: Any = import_module("_signal")  # `signal` makes an enumeration of each number, which costs more than all else
_NUMBERS: Final = tuple(sorted(map(int, signal.valid_signals())))


class WholeLock:
    """A `threading.Lock` whose `with` a signal's exception never leaves held.

    From Python 3.14 on (python/cpython#148874) it may strike after the lock is taken and before the block begins, so
    nobody releases it. Here a `for` takes it, at whose steps no signal strikes. Only `with` is safe, not `acquire`.
    """

    __slots__ = ("__exit__", "acquire", "locked", "release")

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked
        # The method in C: a signal may strike where a Python function begins, and then nobody would release the lock.
        self.__exit__ = lock.__exit__

    def __enter__(self) -> None:
        for _ in iter(self.acquire, None):
            return


if sys.version_info >= (3, 14):
    Lock = WholeLock
else:
    Lock = threading.Lock


class NoAnswer(Exception):
    """Ends a clean-up that takes too long. It is no TimeoutError, after which clients would try again."""


class PutOff:
    """Puts off signals within `with`: what the thread does there is done whole, and then their handlers run.

    So no exception of a handler strikes between a storage's step and its outcome. Handlers run in the main thread, so
    elsewhere there is nothing to put off. After LONGEST_PUT_OFF_S a signal strikes all the same. ends: the block is
    itself the clean-up after a signal, and NoAnswer ends it after that time.
    """

    __slots__ = ("_before", "_came", "_ends", "_handlers", "_late", "_over")

    def __init__(self, *, ends: bool = False) -> None:
        self._ends = ends
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._before: list[tuple[int, Callable[[int, FrameType | None], Any]]] = []  # those still to be put back
        self._came: list[tuple[int, FrameType | None]] = []
        self._over: _thread.LockType | None = None  # held until the block is over: that ends the watch
        self._late = False

    def __enter__(self) -> None:
        if _thread.get_ident() != threading.main_thread().ident or _threads_are_green():
            return
        try:
            for number in _NUMBERS:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    self._before.append((number, handler))
                    _signal.signal(number, self.take_note)
            if self._ends and self._before:
                self._limit(self._before[0][0])
        except ValueError:
            # The main thread of a subinterpreter, where handlers don't run either.
            self._before.clear()
        except BaseException:
            self._restore()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._restore()
        finally:
            self._strike()

    def take_note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal that comes within the block; once it was put off for too long, run its handler."""
        if self._late and not self._ends:
            self._handlers[number](number, frame)
            return
        if self._late:
            self._ends = False
            raise NoAnswer(f"the storage did not answer within {LONGEST_PUT_OFF_S:g} s")
        self._came.append((number, frame))
        if self._over is None:
            self._limit(number)

    def handler(self, number: int) -> object:
        """Return the handler that is put off for now."""
        return self._handlers[number]

    def _limit(self, number: int) -> None:
        # Not `threading.Thread`: its locks may be held where the signal struck.
        self._over = _thread.allocate_lock()
        self._over.acquire()
        with suppress(RuntimeError):  # no new thread, as at the program's end: only the client's own timeouts are left
            _thread.start_new_thread(self._watch, (self._over, number, _thread.get_ident()))

    def _watch(self, over: _thread.LockType, number: int, main: int) -> None:
        if over.acquire(timeout=LONGEST_PUT_OFF_S):
            return
        self._late = True
        if not self._ends:
            try:
                self._came.pop(0)  # the signal that began this watch
            except IndexError:
                return  # its handler has run at this moment
        if sys.platform == "win32":
            signal.raise_signal(number)
        else:
            signal.pthread_kill(main, number)

    def _restore(self) -> None:
        try:
            while self._before:
                _signal.signal(*self._before[-1])
                self._before.pop()
        finally:
            if self._before:  # a signal struck whose handler was restored already
                self._restore()

    def _strike(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over.release()
        while self._came:
            number, frame = self._came.pop(0)
            try:
                self._handlers[number](number, frame)
            finally:
                self._strike()


def _threads_are_green() -> bool:
    """Whether gevent or eventlet runs the program: a handler's exception strikes whichever greenlet runs just then."""
    return socket.socket.__module__ != socket.__name__


def interrupt_in(error: BaseException) -> BaseException | None:
    """Return the interrupt, if `error` is one or hides one; None for a mere failure.

    An interrupt is no `Exception` (Ctrl-C, a cancellation), or was raised by a signal's handler, whatever its type: a
    time limit's `TimeoutError`, Celery's `SoftTimeLimitExceeded`. A client in which it struck may have turned it into
    an error of its own. A cancellation behind an error counts only while the task is being cancelled: a client's own
    timeout cancels inside, too, but has taken that back.
    """
    if isinstance(error, asyncio.CancelledError):
        return error
    handlers, callers = set(_handlers()), {frame for frame, _ in walk_stack(currentframe())}
    link: BaseException | None = error
    while link is not None:
        if _is_interrupt(link) or not handlers.isdisjoint(frame.f_code for frame, _ in walk_tb(link.__traceback__)):
            return link
        link = link.__cause__ or link.__context__
        if link is not None and link.__traceback__ is not None and link.__traceback__.tb_frame in callers:
            # This error was being handled when the call began: it did not interrupt it.
            return None
    return None


def _is_interrupt(error: BaseException) -> bool:
    if not isinstance(error, asyncio.CancelledError):
        return not isinstance(error, Exception)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop is running: the cancellation is of a loop that is over
        return False
    return task is not None and task.cancelling() > 0


def _handlers() -> Iterator[CodeType]:
    """Yield the code of every handler of a signal that is written in Python, those that are put off too."""
    for number in _NUMBERS:
        handler: object = _signal.getsignal(number)
        while isinstance(puts_off := getattr(handler, "__self__", None), PutOff):
            handler = puts_off.handler(number)
        while isinstance(handler, partial):
            handler = handler.func
        for found in (handler, getattr(handler, "__func__", None), vars(type(handler)).get("__call__")):
            code = getattr(found, "__code__", None)
            if isinstance(code, CodeType):
                yield code
