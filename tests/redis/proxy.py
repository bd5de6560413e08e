"""A TCP proxy on loopback that loses answers, never gives any, is slow, or drops its connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress

from tests.servers import HOST

_CHUNK = 1 << 16


class Proxy:
    """Passes bytes between clients and one server.

    spared: so many scripts are let through first. cuts: for as many to come after them, the connection is reset when
    the script's answer arrives: it ran, and its caller is not told. mute: what clients say is read and not passed on.
    deaf: what the server answers is. delay_s: either way takes so long. All may be set at any time. scripts,
    connections: seen so far.
    """

    def __init__(self, server_port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.server_port = server_port
        self.port = 0
        self.spared = 0
        self.cuts = 0
        self.mute = False
        self.deaf = False
        self.delay_s = 0.0
        self.scripts = 0
        self.connections = 0
        self._loop = loop
        self._links: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def drop(self) -> None:
        """Drop every connection, in the middle of whatever it carries; new ones are welcome."""
        self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for link in self._links:
            link.cancel()

    async def listen(self) -> asyncio.Server:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            link = asyncio.ensure_future(self._carry(reader, writer))
            self._links.add(link)
            link.add_done_callback(self._links.discard)

        listener = await asyncio.start_server(accept, HOST, 0)
        self.port = listener.sockets[0].getsockname()[1]
        return listener

    async def end(self, listener: asyncio.Server) -> None:
        listener.close()
        self._drop()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it, or the server is away."""
        writers = [writer]
        with suppress(OSError):
            try:
                server_reader, server_writer = await asyncio.open_connection(HOST, self.server_port)
                writers.append(server_writer)
                script = asyncio.Event()
                await _first_of(
                    self._to_server(reader, server_writer, script), self._to_client(server_reader, writer, script)
                )
            finally:
                for end in writers:
                    end.transport.abort()

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: asyncio.Event
    ) -> None:
        while data := await reader.read(_CHUNK):
            if self.mute:
                continue
            if b"EVAL" in data:
                self.scripts += 1
                script.set()
            await self._pass_on(data, writer)

    async def _to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: asyncio.Event
    ) -> None:
        while data := await reader.read(_CHUNK):
            if script.is_set():
                script.clear()
                if self.spared:
                    self.spared -= 1
                elif self.cuts:
                    self.cuts -= 1
                    return
            if not self.deaf:
                await self._pass_on(data, writer)

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        writer.write(data)
        await writer.drain()


async def _first_of(*ways: Coroutine[object, object, None]) -> None:
    """Let both go until one has ended, then end the other."""
    tasks = {asyncio.ensure_future(way) for way in ways}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def proxied(server_port: int = 0) -> Iterator[Proxy]:
    """Run a proxy before a server; its `server_port` may be set later."""
    loop = asyncio.new_event_loop()
    proxy = Proxy(server_port, loop)
    listener = loop.run_until_complete(proxy.listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.end(listener), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
