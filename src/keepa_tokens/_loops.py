"""Which event loop a coroutine runs on: asyncio, or trio where that is what runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress


def on_trio() -> bool:
    """Whether the running coroutine is trio's."""
    if "trio" not in sys.modules:
        return False
    import trio  # noqa: PLC0415 - only where the program has imported it already

    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


async def sleep(seconds: float) -> None:
    """Suspend the running coroutine."""
    if not on_trio():
        await asyncio.sleep(seconds)
        return
    import trio  # noqa: PLC0415 - the same

    await trio.sleep(seconds)


@asynccontextmanager
async def limited(seconds: float) -> AsyncGenerator[None, None]:
    """End the block after `seconds` with a TimeoutError."""
    if not on_trio():
        async with asyncio.timeout(seconds):
            yield
        return
    import trio  # noqa: PLC0415 - the same

    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise TimeoutError(f"not done within {seconds:g} s") from error


async def nap(sleeping: Awaitable[None], register: Callable[[Callable[[], None]], None]) -> bool:
    """Await `sleeping`; give `register` what ends it early, from any thread. Return whether it was ended early."""
    if on_trio():
        import trio  # noqa: PLC0415 - the same

        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            register(lambda: token.run_sync_soon(scope.cancel))
            await sleeping
        return scope.cancelled_caught
    loop, limit, over = asyncio.get_running_loop(), asyncio.timeout(None), False

    def end() -> None:
        if not over:
            limit.reschedule(loop.time())

    register(lambda: _ended_from_any_thread(loop, end))
    try:
        async with limit:
            await sleeping
    except TimeoutError:
        if not limit.expired():
            raise
    finally:
        over = True
    return limit.expired()


def _ended_from_any_thread(loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
        loop.call_soon_threadsafe(end)


def shielded(seconds: float) -> AbstractContextManager[object]:
    """Hold off cancellation by scopes within the block: on trio for up to `seconds`; on asyncio those of anyio.

    asyncio's own `task.cancel()` is not held off.
    """
    if on_trio():
        import trio  # noqa: PLC0415 - the same

        return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)
    if "anyio" not in sys.modules:
        return nullcontext()
    import anyio  # noqa: PLC0415 - the same

    return anyio.CancelScope(shield=True)
