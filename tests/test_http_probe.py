"""The ready probes, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping

import httpx
import pytest

from keepa_tokens import AsyncKeepaSync, AsyncTokenBucket, KeepaSync, NotEnoughTokens, TokenBucket, keepa_quota
from keepa_tokens.keepa.probe import async_http_probe, http_probe
from keepa_tokens.testing import FakeKeepa, FakeKeepaServer

KEY = "a-secret-key-0123456789-abcdefghij"


def test_the_probes_ask_token_with_the_key_and_return_the_envelope() -> None:
    """Sync and async: status 200 and the envelope that the server made, for the key that it knows."""
    with FakeKeepaServer(FakeKeepa(initial=-31, key=KEY)) as server:
        for status, body in (
            http_probe(KEY, base_url=server.url)(),
            asyncio.run(_ask(async_http_probe(KEY, base_url=server.url))),
        ):
            assert status == 200
            assert body is not None
            assert body["tokensLeft"] == -31
        assert server.fake.token_calls == 2
        status, body = http_probe("another", base_url=server.url)()
        assert status == 400


async def _ask(probe: async_http_probe) -> tuple[int, Mapping[str, object] | None]:
    # A client of its own for each probe: nothing is left open.
    return await probe()


def test_a_body_that_is_no_json_object_is_none() -> None:
    """A proxy's page, an empty body: the status, and no body."""
    with FakeKeepaServer(FakeKeepa()) as server:
        probe = http_probe(KEY, base_url=server.url)
        for kind in ("html", "empty"):
            server.fake.fail_next(1, kind)
            assert probe()[1] is None
    answers = iter(["[1, 2]", "null"])
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=next(answers)))
    for _ in range(2):
        assert http_probe(KEY, transport=transport)() == (200, None)


def test_keepa_sync_probes_over_http_and_a_dead_server_is_a_failed_probe() -> None:
    """The first request asks over HTTP; with nobody listening it is refused, and nothing is raised but the refusal."""
    with FakeKeepaServer(FakeKeepa(initial=7, key=KEY)) as server:
        sync = KeepaSync(TokenBucket(keepa_quota()), probe=http_probe(KEY, base_url=server.url))
        with sync.try_request(3):
            assert sync.bucket.peek().balance == 7
        url = server.url
        twin = AsyncKeepaSync(AsyncTokenBucket(keepa_quota()), probe=async_http_probe(KEY, base_url=url))
        assert asyncio.run(_balance(twin)) == 7
    with pytest.raises(NotEnoughTokens):
        KeepaSync(TokenBucket(keepa_quota()), probe=http_probe(KEY, base_url=url)).try_request(1)


async def _balance(sync: AsyncKeepaSync) -> int | None:
    return (await sync.refresh()).balance


def test_the_key_is_in_no_log_line_error_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level of every logger, in a connection error and in reprs: no trace of the key."""
    caplog.set_level(logging.DEBUG)
    with FakeKeepaServer(FakeKeepa(key=KEY)) as server:
        probe = http_probe(KEY, base_url=server.url)
        probe()
        url = server.url
    with pytest.raises(httpx.HTTPError) as error:
        probe()
    assert caplog.records
    assert KEY not in caplog.text
    assert KEY not in repr(error.value) + str(error.value) + str(error.value.request.url)
    assert KEY not in repr(probe) + repr(async_http_probe(KEY, base_url=url))


def test_from_key_probes_if_httpx_is_there_and_scouts_if_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without httpx the first request goes ahead as the scout; with it the adapter has a probe. Neither asks yet."""
    for make in (KeepaSync.from_key, AsyncKeepaSync.from_key):
        assert vars(make(KEY))["_probe"] is not None
    monkeypatch.setitem(sys.modules, "keepa_tokens.keepa.probe", None)
    sync = KeepaSync.from_key(KEY)
    assert sync.try_request(1).decision.probe
    assert vars(AsyncKeepaSync.from_key(KEY))["_probe"] is None
