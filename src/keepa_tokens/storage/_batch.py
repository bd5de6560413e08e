"""Carries out together what many coroutines ask for at one time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from ..errors import StorageUnavailable

_MOST_WAITING: Final = 20_000
"""The most items that wait to be sent. When there are more, the server or the network is too slow."""

GroupT = TypeVar("GroupT", bound=Hashable)
ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


class Batches(Generic[GroupT, ItemT, AnswerT]):
    """Carries out items: the first of its group by itself (`one`), those that come meanwhile by `many`.

    Meanwhile ends with the turn of the event loop, or with `by_turns` when the group's call under way has ended. So
    with `by_turns` a group has one call under way at most, and the more items come, the more go together. Each caller
    gets its own answer, or its own error. A caller that is cancelled before the sending takes its item back. `many`
    gets `largest` items at most, and returns an answer or an error for each.
    """

    def __init__(
        self,
        one: Callable[[GroupT, ItemT], Awaitable[AnswerT]],
        many: Callable[[GroupT, list[ItemT]], Awaitable[list[AnswerT | BaseException]]],
        largest: int,
        *,
        by_turns: bool = False,
    ) -> None:
        self._one, self._many, self._largest, self._by_turns = one, many, largest, by_turns
        self._waiting: dict[GroupT, list[tuple[ItemT, asyncio.Future[AnswerT]]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    async def send(self, group: GroupT, item: ItemT) -> AnswerT:
        """Carry `item` out and return its answer."""
        waiting = self._waiting.get(group)
        if waiting is None:
            self._waiting[group] = []
            if not self._by_turns:
                asyncio.get_running_loop().call_soon(self._close, group)
                return await self._one(group, item)
            try:
                return await self._one(group, item)
            finally:
                self._close(group)
        if len(waiting) >= _MOST_WAITING:
            raise StorageUnavailable(
                f"{_MOST_WAITING} commands wait for Redis already. This one was certainly not carried out."
            )
        answer: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        waiting.append((item, answer))
        return await answer

    async def aclose(self) -> None:
        """Wait for what is under way."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    def _close(self, group: GroupT) -> None:
        """Send what has come together."""
        waiting = [each for each in self._waiting.pop(group) if not each[1].done()]
        if not waiting:
            return
        if self._by_turns:
            waiting, self._waiting[group] = waiting[: self._largest], waiting[self._largest :]
        task = asyncio.get_running_loop().create_task(self._carry_all(group, waiting))

        def over(task: asyncio.Task[None]) -> None:
            self._under_way.discard(task)
            for _, answer in waiting:
                answer.cancel()  # where the task was cancelled before it began; else all are answered
            if self._by_turns:
                self._close(group)

        self._under_way.add(task)
        task.add_done_callback(over)

    async def _carry_all(self, group: GroupT, waiting: list[tuple[ItemT, asyncio.Future[AnswerT]]]) -> None:
        batch = [each for each in waiting if not each[1].done()]
        parts = [batch[first : first + self._largest] for first in range(0, len(batch), self._largest)]
        await asyncio.gather(*(self._carry(group, part) for part in parts))

    async def _carry(self, group: GroupT, batch: list[tuple[ItemT, asyncio.Future[AnswerT]]]) -> None:
        try:
            answers = await self._many(group, [item for item, _ in batch])
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(copied(error))
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), told in zip(batch, answers, strict=True):
            if answer.done():
                continue
            if isinstance(told, BaseException):
                answer.set_exception(told)
            else:
                answer.set_result(told)


def copied(error: BaseException) -> BaseException:
    """Return a copy of the error for one of several callers: each raises its own, with its own trace."""
    if not isinstance(error, Exception):
        return asyncio.CancelledError()
    try:
        made = type(error)(*error.args)
    except TypeError:
        return error
    made.__cause__ = error.__cause__
    return made
