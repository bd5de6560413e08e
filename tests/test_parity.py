"""The sync and the async names are twins: same methods, same parameters, same defaults, same results when awaited."""

from __future__ import annotations

import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Iterator

import pytest

from keepa_tokens import async_bucket, bucket, events
from keepa_tokens.storage import base, memory, redis, sqlite

pytestmark = pytest.mark.anyio

TWINS = {
    bucket.TokenBucket: async_bucket.AsyncTokenBucket,
    bucket.Reservation: async_bucket.AsyncReservation,
    base.Storage: base.AsyncStorage,
    base.Closing: base.AsyncClosing,
}
RENAMED = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}


def methods(kind: type) -> dict[str, inspect.Signature]:
    names = [name for name in dir(kind) if not name.startswith("_") or name in {"__enter__", "__aenter__"}]
    found = {name: getattr(kind, name) for name in names}
    return {name: inspect.signature(value) for name, value in found.items() if inspect.isfunction(value)}


def takes(signature: inspect.Signature) -> list[tuple[object, ...]]:
    return [(parameter.name, parameter.kind, parameter.default) for parameter in signature.parameters.values()]


@pytest.mark.parametrize("sync, twin", TWINS.items())
def test_each_method_has_its_twin(sync: type, twin: type) -> None:
    """No name is missing on either side."""
    assert {RENAMED.get(name, name) for name in methods(sync)} == set(methods(twin))


@pytest.mark.parametrize("sync, twin", TWINS.items())
def test_each_method_takes_the_same(sync: type, twin: type) -> None:
    """Names, kinds and defaults of all parameters are the same, so code moves from one to the other by adding await."""
    theirs = {"made": inspect.signature(twin), **methods(twin)}
    for name, mine in {"made": inspect.signature(sync), **methods(sync)}.items():
        assert takes(mine) == takes(theirs[RENAMED.get(name, name)]), name


def test_what_reaches_the_storage_is_awaited() -> None:
    """Every async method that may reach the storage is a coroutine function, or returns what can be awaited."""
    for kind in (async_bucket.AsyncTokenBucket, async_bucket.AsyncReservation):
        for name in methods(kind):
            method = getattr(kind, name)
            if name in {"with_key", "limit"}:
                assert not inspect.iscoroutinefunction(method)
            elif name in {"try_reserve", "reserve"}:
                assert typing.get_origin(typing.get_type_hints(method)["return"]) is async_bucket.Pending
            else:
                assert inspect.iscoroutinefunction(method), name
    assert hasattr(async_bucket.Pending, "__await__")
    assert hasattr(async_bucket.Pending, "__aenter__")
    assert issubclass(async_bucket.Pending, Awaitable)


def _translated(hint: object) -> object:
    if isinstance(hint, type) and hint in TWINS:
        return TWINS[hint]
    return hint


@pytest.mark.parametrize("sync, twin", TWINS.items())
def test_each_method_returns_the_same_when_awaited(sync: type, twin: type) -> None:
    """The types of all parameters and results are the same, but for the twins' own names."""
    for name in methods(sync):
        if name in {"apply", "limit"} or name.startswith("__"):  # limit: what it decorates is a twin too
            continue
        mine = typing.get_type_hints(getattr(sync, name))
        theirs = typing.get_type_hints(getattr(twin, RENAMED.get(name, name)))
        expected = {parameter: _translated(hint) for parameter, hint in mine.items()}
        returned = theirs["return"]
        if typing.get_origin(returned) is async_bucket.Pending:
            theirs["return"] = typing.get_args(returned)[0]
        if expected["return"] == Iterator[str]:
            expected["return"] = AsyncIterator[str]
        assert theirs == expected, name


def test_memory_storage_is_a_storage() -> None:
    """It has all that the protocol asks for, with the same parameters."""
    for name, signature in methods(base.Storage).items():
        assert inspect.signature(getattr(memory.MemoryStorage, name)).parameters.keys() == signature.parameters.keys()


def test_a_class_can_be_asked_whether_it_is_one_of_a_protocol() -> None:
    """A settings class with a field of that type asks so; a storage that blocks is none for coroutines."""
    assert issubclass(sqlite.SQLiteStorage, base.Storage)
    assert issubclass(sqlite.AsyncSQLiteStorage, base.AsyncStorage)
    assert not issubclass(sqlite.SQLiteStorage, base.AsyncStorage)
    assert isinstance(print, events.Listener)


def test_a_missing_parameter_would_be_noticed() -> None:
    """The comparison fails for a door whose twin lacks a keyword."""

    class Lacking(async_bucket.AsyncTokenBucket):
        async def acquire(self, tokens: int = 1, *, keep: int = 0) -> typing.Any:  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(AssertionError):
        test_each_method_takes_the_same(bucket.TokenBucket, Lacking)


@pytest.mark.parametrize(
    "kind",
    [
        *(memory.MemoryStorage, sqlite.SQLiteStorage, redis.RedisStorage),
        *(sqlite.AsyncSQLiteStorage, redis.AsyncRedisStorage),
    ],
)
async def test_a_storage_is_closed_at_the_end_of_its_block(kind: type[base.Closing | base.AsyncClosing]) -> None:
    """A storage is a context manager: it is what the block gets, and it is closed once, after an exception too."""
    closed: list[object] = []

    async def aclose(self: object) -> None:
        closed.append(self)

    def close(self: object) -> None:
        closed.append(self)

    storage = type("Noted", (kind,), {"__init__": lambda _: None, "close": close, "aclose": aclose})()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - one of two blocks
        if isinstance(storage, base.Closing):
            with storage as entered:
                raise ZeroDivisionError
        async with storage as entered:
            raise ZeroDivisionError
    assert closed == [entered] == [storage]
