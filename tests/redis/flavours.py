"""The four flavours of client (redis-py and valkey-py, blocking and asyncio) behind one door: one test for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from keepa_tokens import Quota, Snapshot, StorageUnavailable
from keepa_tokens.rules.commands import Command, Outcome, Peek
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from tests.servers import HOST

T = TypeVar("T")


@dataclass
class Opened:
    """A storage, called by a test that is no coroutine, and the client below it. before: called before each command."""

    storage: RedisStorage | AsyncRedisStorage
    client: Any
    wait: Callable[[Awaitable[Any]], Any]
    before: Callable[[], None] = lambda: None

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        self.before()
        outcome: Outcome = self.done(self.storage.apply(key, quota, command, now_us=now_us))
        return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        shown: Snapshot | None = self.done(self.storage.inspect(key, now_us=now_us))
        return shown

    def delete(self, key: str) -> None:
        self.done(self.storage.delete(key))

    def keys(self) -> Iterator[str]:
        found = self.storage.keys()
        if isinstance(found, Iterator):
            return found

        async def collected() -> list[str]:
            return [key async for key in found]

        return iter(self.wait(collected()))

    def answers(self, key: str, quota: Quota) -> bool:
        """Whether a look at a bucket gets an answer; with short timeouts, a busy machine may take a second one."""
        try:
            self.apply(key, quota, Peek())
        except StorageUnavailable:
            return False
        return True

    def idle(self) -> None:
        """Let the event loop go round, as in a program that waits: so it hears of connections that were closed."""
        for _ in range(3):
            self.wait(asyncio.sleep(0))

    def close(self) -> None:
        """Leave it open: who opened it closes it."""

    def done(self, result: Any) -> Any:
        """Return what an answer is, or what a coroutine comes to."""
        return self.wait(result) if isinstance(result, Awaitable) else result


@dataclass(frozen=True)
class Flavour:
    """One library, blocking or not."""

    library: str
    asynchronous: bool

    def __str__(self) -> str:
        return f"{self.library}-asyncio" if self.asynchronous else self.library

    def named(self, name: str) -> Any:
        """Return what the library calls by this name: `Client`, `ClientCluster`, `Sentinel`, or any other."""
        module = import_module(f"{self.library}.asyncio" if self.asynchronous else self.library)
        return getattr(module, name.replace("Client", self.library.capitalize()))

    def retry(self, times: int) -> Any:
        """Return the library's Retry that sends a command up to `times` times more, without a pause."""
        infix = ".asyncio" if self.asynchronous else ""
        no_pause = import_module(f"{self.library}.backoff").NoBackoff()
        return import_module(f"{self.library}{infix}.retry").Retry(no_pause, times)

    def resending(self, times: int) -> dict[str, Any]:
        """Return the options of a client that sends a command up to `times` times more."""
        # valkey-py does so only for the errors that are named to it.
        named = [import_module(self.library).ConnectionError] if self.library == "valkey" else []
        return {"retry": self.retry(times), "retry_on_error": named}

    def url(self, url: str) -> str:
        """Return a redis:// or rediss:// URL as the one that `from_url` opens with this library."""
        scheme, rest = url.split("://")
        if self.library == "valkey":
            scheme = {"redis": "valkey", "rediss": "valkeys"}[scheme]
        return f"{scheme}://{rest}"

    def client(self, port: int, **options: Any) -> Any:
        return self.named("Client")(host=HOST, port=port, **options)

    @contextmanager
    def over(self, make: Callable[[], Any], *, prefix: str = "keepa_tokens:") -> Iterator[Opened]:
        """Open a storage over a client that was brought along; the client is closed at the end."""
        with asyncio.Runner() as runner:

            async def made() -> Any:
                return make()

            def wait(awaitable: Awaitable[T]) -> T:
                async def awaited() -> T:
                    return await awaitable

                return runner.run(awaited())

            client = wait(made()) if self.asynchronous else make()
            storage = (AsyncRedisStorage if self.asynchronous else RedisStorage)(client, prefix=prefix)
            try:
                yield Opened(storage, client, wait)
            finally:
                if self.asynchronous:
                    wait(client.aclose())
                else:
                    client.close()

    @contextmanager
    def at(self, url: str) -> Iterator[Opened]:
        kind = AsyncRedisStorage if self.asynchronous else RedisStorage
        storage: Any = kind.from_url(self.url(url))
        with self.over(lambda: storage._client) as opened:
            yield Opened(storage, opened.client, opened.wait)


SENT_BY_DEFAULT = {
    "standalone": {"redis": 11, "valkey": 1},
    "cluster": {"redis": 11, "valkey": 4},
    "Sentinel's primary": {"redis": 1, "valkey": 1},
    "by `from_url`": {"redis": 1, "valkey": 1},
}
"""How often a client, made without options, sends a command whose answer is lost: docs/reference/redis.md says so."""

FLAVOURS = [Flavour(library, asynchronous) for library in ("redis", "valkey") for asynchronous in (False, True)]

CLIENTS = [{"protocol": protocol, "decode_responses": decoding} for protocol in (2, 3) for decoding in (False, True)]
"""The options of clients of every kind."""
