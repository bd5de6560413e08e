"""Many coroutines' commands in one write: those of one turn of the event loop share a connection and a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from ..errors import StorageUnavailable

__all__ = ["Batches"]

_LARGEST: Final = 50
"""Commands in one write: so many that it is cheap, so few that the server works while the next is written."""

_MOST_WAITING: Final = 20_000
"""Commands that wait for their write. Beyond that the server or the network is too slow for what is asked."""

Argument = bytes | str | int


class Batches:
    """Sends commands by a client: the first of a turn by itself, the others of the same turn together.

    Each caller gets its own answer, or its own error. Whoever is cancelled before the writing takes its command back.
    """

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - either library's client
        self._client = client
        self._is_open = False
        self._waiting: list[tuple[Sequence[Argument], asyncio.Future[object]]] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def send(self, arguments: Sequence[Argument]) -> object:
        """Send one command and return its answer."""
        if not self._is_open:
            self._is_open = True
            asyncio.get_running_loop().call_soon(self._close)
            return await self._client.execute_command(*arguments)
        if len(self._waiting) >= _MOST_WAITING:
            raise StorageUnavailable(
                f"{_MOST_WAITING} commands wait for Redis already. This one was certainly not carried out."
            )
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting.append((arguments, answer))
        return await answer

    async def aclose(self) -> None:
        """Wait for what is under way."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    def _close(self) -> None:
        """End the turn: write what has come together."""
        self._is_open = False
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), _LARGEST):
            task = asyncio.get_running_loop().create_task(self._carry(waiting[first : first + _LARGEST]))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _carry(self, batch: list[tuple[Sequence[Argument], asyncio.Future[object]]]) -> None:
        batch = [item for item in batch if not item[1].done()]
        try:
            answers = await self._answers([arguments for arguments, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(_anew(error))
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), told in zip(batch, answers, strict=True):
            if answer.done():
                continue
            if isinstance(told, Exception):
                answer.set_exception(told)
            else:
                answer.set_result(told)

    async def _answers(self, commands: list[Sequence[Argument]]) -> list[object]:
        if not commands:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for arguments in commands:
            pipeline.execute_command(*arguments)
        answers: list[object] = await pipeline.execute(raise_on_error=False)
        return answers


def _anew(error: BaseException) -> BaseException:
    """Return the error for one of several callers: each raises its own, with its own trace."""
    if not isinstance(error, Exception):
        return asyncio.CancelledError()
    try:
        return type(error)(*error.args)
    except TypeError:
        return error
