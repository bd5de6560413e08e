"""Two releases at once: two texts of the script, one bucket."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import redis

from keepa_tokens import Quota
from keepa_tokens.rules.commands import Acquire, Reserve, Settle
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.flavours import FLAVOURS, Flavour, script_runs
from tests.servers import BINARIES, Server, running

PLAIN = Quota(1000, 1, 1.0)
NOW = 1_780_000_000_000_000
SECOND = 1_000_000


def as_release(storage: Any, comment: bytes) -> None:
    """Make a storage send another text of the script, as another release would."""
    storage._script += b"\n-- " + comment
    storage._digest = hashlib.sha1(storage._script, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_two_releases_share_a_bucket(server: Server, client: redis.Redis, flavour: Flavour) -> None:
    """Two texts of the script run side by side on one bucket, each loaded once; one settles the other's holds."""
    with flavour.at(server.url) as old, flavour.at(server.url) as new:
        as_release(new.storage, b"the next release")
        client.config_resetstat()
        for number in range(10):
            old.apply("k", PLAIN, Reserve(f"x{number}", 10, 60 * SECOND), now_us=NOW)
            new.apply("k", PLAIN, Settle(f"x{number}", 3), now_us=NOW)
        assert new.apply("k", PLAIN, Acquire(0), now_us=NOW).balance == 970

        stats: Any = client.info("commandstats")
        assert stats["cmdstat_eval"]["calls"] == 2
        assert script_runs(client) == 21


def test_the_field_of_a_later_release_is_left_alone(server: Server, client: redis.Redis) -> None:
    """A field that this release doesn't know, in a state of its own format, is neither read nor removed."""
    storage = RedisStorage.from_url(server.url)
    storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
    client.hset("keepa_tokens:k", "mood", "sunny")
    assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).repaired == ()
    assert client.hget("keepa_tokens:k", "mood") == b"sunny"
    storage.close()


def test_a_killed_server_with_an_append_only_file_remembers() -> None:
    """With `appendonly yes` a server that was killed has the bucket as it was, and the script is loaded anew."""
    for name in sorted(BINARIES):
        # By itself it writes a busy disk's last second late.
        options = ("--appendonly", "yes", "--appendfsync", "always")
        with running(name, *options) as server, FLAVOURS[0].at(server.url) as opened:
            for _ in range(5):
                opened.apply("k", PLAIN, Acquire(10))
            opened.apply("k", PLAIN, Reserve("x", 10, 60 * SECOND))
            before = opened.inspect("k")
            server.stop()
            server.start()
            after = opened.inspect("k")
            assert before is not None
            assert after is not None
            assert (after.held, after.holds) == (before.held, before.holds) == (10, 1)
            assert 940 <= (before.balance or 0) <= (after.balance or 0) < 950
            with server.client() as client:
                assert client.pttl("keepa_tokens:k") > 0


def test_a_release_that_came_back_finds_its_script_lost(server: Server, client: redis.Redis) -> None:
    """Scripts flushed between every two calls of two releases are loaded again, in the same call each time."""
    old, new = RedisStorage.from_url(server.url), RedisStorage.from_url(server.url)
    as_release(new, b"the next release")
    for number in range(5):
        for storage in (old, new):
            client.script_flush()
            assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).granted, number
    assert client.hget("keepa_tokens:k", "balance") == b"990"
    for storage in (old, new):
        storage.close()
