"""Which event loop a coroutine runs on: asyncio, or trio where that is what runs."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractContextManager, nullcontext


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
