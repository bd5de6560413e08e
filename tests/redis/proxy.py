"""A TCP proxy on loopback that loses answers, never gives any, is slow, or drops its connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import HOST

_CHUNK = 1 << 16


class Proxy:
    """Passes bytes between clients and one server.

    spared: so many scripts are let through first. cuts: for as many to come after them, the connection is reset when
    the script's answer arrives: it ran, and its caller is not told. mute: what clients say is read and not passed on.
    deaf: what the server answers is. delay_s: either way takes so long. All may be set at any time. scripts,
    connections, bytes_muted: seen so far.
    """

    def __init__(self, server_port: int = 0) -> None:
        self.server_port = server_port
        self.port = 0
        self.spared = 0
        self.cuts = 0
        self.mute = False
        self.deaf = False
        self.delay_s = 0.0
        self.scripts = 0
        self.connections = 0
        self.bytes_muted = 0
        self._links: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://{HOST}:{self.port}"

    def start(self) -> None:
        """Start to listen."""
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """Drop every connection and stop to listen."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def drop(self) -> None:
        """Drop every connection, in the middle of whatever it carries; new ones are welcome."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for link in self._links:
            link.cancel()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            link = asyncio.ensure_future(self._carry(reader, writer))
            self._links.add(link)
            link.add_done_callback(self._links.discard)

        listener = await asyncio.start_server(accept, HOST, 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        listener.close()
        self._drop()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        writers = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self.server_port)
            writers.append(server_writer)
            script = asyncio.Event()
            ways = {
                asyncio.ensure_future(self._to_server(reader, server_writer, script)),
                asyncio.ensure_future(self._to_client(server_reader, writer, script)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the server is away, and so is the connection then
        finally:
            for end in writers:
                end.transport.abort()

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: asyncio.Event
    ) -> None:
        while data := await reader.read(_CHUNK):
            if self.mute:
                self.bytes_muted += len(data)
                continue
            if b"EVAL" in data:
                self.scripts += 1
                script.set()
            await self._dawdle()
            writer.write(data)
            await writer.drain()

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
            if self.deaf:
                continue
            await self._dawdle()
            writer.write(data)
            await writer.drain()

    async def _dawdle(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)


@contextmanager
def proxied(server_port: int = 0) -> Iterator[Proxy]:
    """Run a proxy before a server; its `server_port` may be set later."""
    proxy = Proxy(server_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
