"""One request by aiohttp as the guards' flow makes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import cast

import aiohttp

from ._flow import Exchange


class AiohttpExchange(AsyncExitStack, Exchange[aiohttp.ClientResponse]):
    """One request by aiohttp, in a session of its own: no session stays open while the request waits for tokens."""

    def __init__(self, url: str, options: dict[str, object]) -> None:
        super().__init__()
        self._url = url
        self._options = options
        self._went_out = False
        self._trace = aiohttp.TraceConfig()
        self._trace.on_request_headers_sent.append(self._note)

    async def _note(self, *_: object) -> None:
        self._went_out = True

    async def send(self) -> aiohttp.ClientResponse:
        """Close an earlier answer, and send the request."""
        await self.aclose()
        self._went_out = False
        session = await self.enter_async_context(aiohttp.ClientSession(trace_configs=[self._trace]))
        get = cast("Callable[..., AbstractAsyncContextManager[aiohttp.ClientResponse]]", session.get)
        try:
            return await self.enter_async_context(get(self._url, **self._options))
        except aiohttp.ClientConnectorError as error:
            if self._went_out:  # aiohttp tried again by itself: now it can't connect, but the first try was sent
                raise aiohttp.ClientOSError(*error.args) from None
            raise

    async def read(self, answer: aiohttp.ClientResponse) -> tuple[aiohttp.ClientResponse, bytes]:
        """Read the body, which stays in the answer."""
        return answer, await answer.read()
