"""Which event loop a coroutine runs on: asyncio, or trio where that is what runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from types import ModuleType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def on_trio() -> ModuleType | None:
    """Return trio if the running coroutine is trio's (then the program has imported it already); else None."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):
            trio.lowlevel.current_task()
            return trio
    return None


async def sleep(seconds: float) -> None:
    await (on_trio() or asyncio).sleep(seconds)


async def in_a_thread(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    trio = on_trio()
    if trio is None:
        return await asyncio.to_thread(function, *args, **options)
    result: T = await trio.to_thread.run_sync(partial(function, *args, **options))
    return result


@asynccontextmanager
async def limited(seconds: float) -> AsyncGenerator[None, None]:
    """End the block after `seconds` with a TimeoutError."""
    trio = on_trio()
    if trio is None:
        async with asyncio.timeout(seconds):
            yield
        return
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise TimeoutError(f"not done within {seconds:g} s") from error


async def nap(sleeping: Awaitable[None], register: Callable[[Callable[[], object]], None]) -> bool:
    """Await `sleeping`; give `register` a function that ends it early, from any thread. Return whether it did."""
    trio = on_trio()
    if trio is not None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            register(lambda: token.run_sync_soon(scope.cancel))
            await sleeping
        return bool(scope.cancelled_caught)
    loop, limit, over = asyncio.get_running_loop(), asyncio.timeout(None), False

    def end() -> None:
        if not over:
            limit.reschedule(loop.time())

    register(lambda: loop.call_soon_threadsafe(end))
    try:
        async with limit:
            await sleeping
    except TimeoutError:
        if not limit.expired():
            raise
    finally:
        over = True
    return limit.expired()


def shielded(seconds: float) -> AbstractContextManager[object]:
    """Within the block hold off cancellation by scopes: trio's for up to `seconds`; on asyncio, anyio's.

    asyncio's own `task.cancel()` is not held off.
    """
    trio, anyio = on_trio(), sys.modules.get("anyio")
    if trio is not None:
        scope: AbstractContextManager[object] = trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)
        return scope
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)
