"""Mistakes in what a caller gives are told at once and by name: never as an outage, a leak, or an error from inside."""

from __future__ import annotations

import asyncio
import http
import io
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import redis

from keepa_tokens import (
    AsyncKeepaSync,
    AsyncTokenBucket,
    BucketState,
    ConfigError,
    KeepaSync,
    MemoryStorage,
    NotEnoughTokens,
    Quota,
    RedisStorage,
    SQLiteStorage,
    TokenBucket,
    http_probe,
    keepa_quota,
    storage_from_url,
)
from keepa_tokens.guards.celery import LONGEST_COUNTDOWN, _countdown
from keepa_tokens.guards.httpx import KeepaTransport
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.testing import ManualClock

KEY: Final = "sEcReT" * 11


def sync() -> KeepaSync:
    """Return a door to a bucket with 10 tokens."""
    return KeepaSync(TokenBucket(keepa_quota(initial=10), clock=ManualClock(100.0)))


class StillToBeRead:
    """A response as aiohttp's: a status, and a body that has to be awaited."""

    status = 429
    headers: Mapping[str, str] = {}


@pytest.mark.parametrize(
    "answer",
    [
        StillToBeRead(),
        asyncio.Future[bytes](loop=asyncio.new_event_loop()),
        io.BytesIO(b"{}"),
        (200, {}),
        httpx.Response,
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_what_can_be_no_answer_is_a_type_error_and_the_call_stays_open(answer: Any) -> None:
    """A response not yet read, something not yet awaited, a file: the right answer can still be given."""
    door = sync()
    call = door.try_request(5)
    for give in (call.settle, door.observe):
        with pytest.raises(TypeError, match=f"not {type(answer).__name__}: read it first"):
            give(answer)
    assert door.bucket.peek().held == 5
    call.settle(memoryview(b'{"tokensLeft": 7, "tokensConsumed": 3}'))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert (door.bucket.peek().held, door.bucket.peek().balance) == (0, 7)


@pytest.mark.parametrize("odd", [[1], 5, 1.5, True, "nonsense", b"\x1f\x8b", {1: 2}])
def test_whatever_a_server_may_say_is_no_mistake(odd: Any) -> None:
    """What JSON can come to never raises: the server said it, not the caller."""
    door = sync()
    door.try_request(5).settle(odd)
    assert door.bucket.peek().held == 0


def takes_more(url: str) -> tuple[int, None]:
    raise AssertionError(url)


@pytest.mark.parametrize("probe", [takes_more, lambda *, key: (200, key), lambda timeout, more: (timeout, more)])
@pytest.mark.parametrize("make", [KeepaSync, AsyncKeepaSync])
def test_a_probe_that_wants_more_is_told_at_once(make: Any, probe: Any) -> None:
    """It would else fail at each call, as if the server were away."""
    bucket: Any = (TokenBucket if make is KeepaSync else AsyncTokenBucket)(keepa_quota())
    with pytest.raises(TypeError, match="probe is called with nothing"):
        make(bucket, probe=probe)


@pytest.mark.parametrize("status", [np.int64(200), http.HTTPStatus.OK])
def test_a_probes_status_is_any_whole_number(status: Any) -> None:
    """A number of numpy's too; of a tuple that is no answer the parts are named."""
    bucket = TokenBucket(keepa_quota(), clock=ManualClock(100.0))
    KeepaSync(bucket, probe=lambda: (status, {"tokensLeft": 5})).try_request(1).cancel()
    assert bucket.peek().balance == 5
    swapped: Any = lambda: ({"tokensLeft": 5}, 200)  # noqa: E731
    with pytest.raises(ConfigError, match=r"not tuple \(dict, int\)"):
        KeepaSync(TokenBucket(keepa_quota(), clock=ManualClock(1.0)), probe=swapped).try_request(1)


@pytest.mark.parametrize("make", [KeepaSync, AsyncKeepaSync])
@pytest.mark.parametrize("wrong", [{"base_url": httpx.URL("https://x")}, {"base_url": b"https://x"}, {"probe": False}])
def test_from_key_checks_what_the_probe_is_made_of(make: Any, wrong: dict[str, Any]) -> None:
    """A client's URL object, bytes, a False: named, no AttributeError from inside and no silent default."""
    with pytest.raises(TypeError, match=next(iter(wrong))):
        make.from_key("key", **wrong)


@pytest.mark.parametrize("make", [KeepaTransport, KeepaAdapter])
@pytest.mark.parametrize(
    "wrong",
    [
        {"estimate": "5"},
        {"estimator": 5},
        {"api_key": ""},
        {"api_key": 5},
        {"api_key": "k\n"},
        {"host": ""},
        {"host": None},
    ],
    ids=str,
)
def test_a_guard_checks_its_terms_at_once(make: Any, wrong: dict[str, Any]) -> None:
    """Not at its first request."""
    with pytest.raises((TypeError, ConfigError), match=next(iter(wrong))):
        make(sync(), **wrong)


@pytest.mark.parametrize(
    "misused",
    [
        lambda: KeepaTransport(KEY),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: KeepaAdapter([KEY]),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: KeepaSync(TokenBucket(keepa_quota()), probe=KEY),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: TokenBucket(KEY),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: KeepaSync.from_key("key", refill_rate=KEY),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: KeepaSync.from_key("key", clock=KEY),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        lambda: TokenBucket(keepa_quota(), key=f"a b {KEY}"),
        lambda: SQLiteStorage(f"/nowhere/{KEY}"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_shown(misused: Callable[[], object]) -> None:
    """An API key given where something else belongs is in no error's text."""
    with pytest.raises((TypeError, ConfigError)) as caught:
        misused()
    assert KEY[:12] not in str(caught.value)
    assert "hunter2" not in repr(http_probe("key", base_url="http://me:hunter2@127.0.0.1:1"))


@pytest.mark.parametrize(
    "url, says",
    [
        ("redis://127.0.0.1/99999999999", "database"),
        ("redis://127.0.0.1?db=-1", "database"),
        *((f"redis://127.0.0.1?socket_timeout={value}", "socket_timeout") for value in ("-1", "0", "nan", "inf")),
        ("redis://127.0.0.1?socket_connect_timeout=-1", "socket_connect_timeout"),
        ("redis://127.0.0.1?encoding=klingon", "encoding"),
        ("valkey://127.0.0.1?encoding=utf-16", "encoding"),
        ("redis://127.0.0.1?socket_type=1", "socket_type"),
        ("rediss://127.0.0.1?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs"),
        ("rediss://127.0.0.1?ssl_certfile=/nowhere.pem", "ssl_certfile"),
        ("rediss://127.0.0.1?ssl_keyfile=/etc/hostname", "ssl_keyfile"),
        ("sqlite:///file.sqlite?timeout=5", "no options"),
        ("sqlite:////nowhere/file.sqlite", "directory"),
        ("sqlite:////tmp", "directory"),
        ("sqlite:////tmp/a\0b", "can't be a file"),
    ],
)
def test_a_url_that_no_server_could_help_is_a_mistake(url: str, says: str) -> None:
    """What its first use would show, as an outage or as an error from inside, is told when the storage is made."""
    with pytest.raises(ConfigError, match=says):
        storage_from_url(url)


def test_a_client_that_could_not_work_is_a_mistake() -> None:
    """A class for its instance; one that writes no ASCII."""
    for client, says in ((redis.Redis, "class Redis"), (redis.Redis(encoding="utf-16"), "encoding")):
        with pytest.raises(ConfigError, match=says):
            RedisStorage(client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2/x@host", "redis://:hunter2@host:hunter2", "redis://:hunter2 [@host"]
)
def test_nothing_behind_an_error_has_the_password(url: str) -> None:
    """Neither its text nor what Python keeps behind it, which tools that report errors show too."""
    with pytest.raises(ConfigError) as caught:
        RedisStorage.from_url(url)
    assert caught.value.__context__ is None
    assert "hunter2" not in str(caught.value)


def test_a_file_storage_stays_where_it_is(tmp_path: Path) -> None:
    """A path in a directory that is there is a file, by a URL too."""
    for made in (SQLiteStorage(tmp_path / "a"), storage_from_url(f"sqlite:///{tmp_path}/b")):
        made.close()


def test_a_countdown_is_no_longer_than_a_broker_keeps_a_message() -> None:
    """A `Retry-After` of an hour too: a countdown beyond the visibility timeout would be run twice."""
    assert _countdown(NotEnoughTokens(5, 3600.5, "REFUSED"), 3) == LONGEST_COUNTDOWN


@pytest.mark.parametrize("make", [TokenBucket, AsyncTokenBucket])
def test_a_listener_is_not_awaited(make: Any) -> None:
    """A coroutine function would be called and never run; on the async door too."""

    async def hear(_: object) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="never awaited"):
        make(keepa_quota(), listener=hear)


@pytest.mark.parametrize("hold_id", ["x\nFAKE LINE", "x\r\nFAKE LINE", "\x1b[31mFAKE", "y" * 10_000, "\u2028FAKE"])
def test_what_is_stored_writes_no_lines_of_its_own(hold_id: str, caplog: pytest.LogCaptureFixture) -> None:
    """An id or a label with line breaks or a terminal's codes in it, or without an end, is one short line."""
    storage = MemoryStorage()
    bucket = TokenBucket(Quota(10, 1, 1.0), storage=storage, clock=ManualClock(100.0))
    fields = {"format": "1", "balance": "9", "refilled_at": "100000000", f"hold:{hold_id}": "garbage"}
    storage.load("default", BucketState.from_fields(fields))
    assert bucket.try_acquire(1).repaired
    fields = {**fields, f"hold:{hold_id}": f"3 0 1000000 1000000 0 {quote(hold_id)}"}
    storage.load("default", BucketState.from_fields(fields))
    bucket.try_acquire(1)
    probe: Any = raising(f"no answer: {hold_id}")
    with suppress(NotEnoughTokens):
        KeepaSync(TokenBucket(keepa_quota(), clock=ManualClock(1.0)), probe=probe).try_request(1)
    assert len(caplog.messages) >= 3
    assert all(message.isprintable() and len(message) < 1100 for message in caplog.messages)


def raising(text: str) -> Callable[[], tuple[int, None]]:
    """Return a probe that fails with these words."""

    def probe() -> tuple[int, None]:
        raise OSError(text)

    return probe


@pytest.mark.parametrize("place", ["a\nb", "\ud800", "", "x" * 201])
def test_a_place_is_a_name(place: str) -> None:
    """What can't be stored as text, or would break a line, is no id of a task."""
    with pytest.raises(ConfigError, match="place"):
        sync().try_request(1, place=place)


# --- refusals without an end


@pytest.mark.parametrize("refill_in", [0, 1, 400, 999])
def test_a_server_that_promises_tokens_at_once_and_gives_none_is_asked_five_times(refill_in: int) -> None:
    """429 with 0 left and the refill a moment away, each time: growing pauses, and the fifth answer is the last."""
    body = {"tokensLeft": 0, "refillIn": refill_in, "refillRate": 5}
    clock = ManualClock(100.0)
    door = KeepaSync(TokenBucket(keepa_quota(initial=100), clock=clock))
    asked: list[float] = []
    for call in door.attempts(5):
        asked.append(clock.slept)
        call.settle(body, status=429)
    assert len(asked) == 5
    assert [later - earlier >= 1 for earlier, later in pairwise(asked)] == [True] * 4

    def refuse(_: httpx.Request) -> httpx.Response:
        sent.append(clock.slept)
        return httpx.Response(429, json=body)

    sent: list[float] = []
    door = KeepaSync(TokenBucket(keepa_quota(initial=100), clock=clock))
    with httpx.Client(transport=KeepaTransport(door, httpx.MockTransport(refuse), retry_refused=True)) as client:
        assert client.get("https://api.keepa.com/product?domain=1&asin=B1").status_code == 429
    assert len(sent) == 5
    assert sent[-1] - sent[0] >= 10


# --- a client's own timeout is no interrupt


async def inner_timeout() -> tuple[int, None]:
    async with asyncio.timeout(0):
        await asyncio.sleep(60)
    raise AssertionError


async def waited_for() -> tuple[int, None]:
    await asyncio.wait_for(asyncio.sleep(60), 0.001)
    raise AssertionError


async def of_httpx() -> tuple[int, None]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with httpx.AsyncClient(timeout=0.05, trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{silent.getsockname()[1]}")
    raise AssertionError


@pytest.mark.parametrize("probe", [inner_timeout, waited_for, of_httpx])
def test_a_probes_own_timeout_is_a_failed_probe(probe: Any) -> None:
    """It is a cancellation inside, taken back: the caller is told that nothing is known, not cancelled."""
    events: list[Any] = []
    door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota(), clock=ManualClock(1.0), listener=events.append), probe=probe)

    async def main() -> None:
        with pytest.raises(NotEnoughTokens):
            await door.try_request(5)

    asyncio.run(main())
    assert any("the probe raised" in event.why for event in events)


def test_the_ready_probe_that_takes_too_long_leaves_a_timeout() -> None:
    """`/token` hangs: who waits half a second is told so after that, and not by a CancelledError."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            door = AsyncKeepaSync.from_key("key", base_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
            with pytest.raises(NotEnoughTokens):
                await door.request(5, timeout=0.6)

    asyncio.run(main())


@pytest.mark.parametrize("probe", [inner_timeout, of_httpx])
def test_a_task_that_is_cancelled_in_a_probe_is_cancelled(probe: Any) -> None:
    """Though the probe makes an error of its own of it."""

    async def hiding() -> tuple[int, None]:
        with suppress(Exception):
            await probe()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError("gone") from None
        raise AssertionError

    door = AsyncKeepaSync(AsyncTokenBucket(keepa_quota()), probe=hiding)

    async def main() -> None:
        with pytest.raises(TimeoutError) as late:
            async with asyncio.timeout(0.3):
                await door.try_request(5)
        assert not isinstance(late.value, NotEnoughTokens)

    asyncio.run(main())
