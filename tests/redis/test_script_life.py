"""Two releases at once, two texts of the script, one bucket; and a server that was killed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import redis

from keepa_tokens.rules.commands import Acquire, Reserve, Settle
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.common import NAME, NOW, PLAIN, SECOND, calls, script_runs, stored
from tests.redis.flavours import FLAVOURS, Flavour
from tests.servers import BINARIES, Server, running


def as_release(storage: Any, comment: bytes) -> None:
    """Make a storage send another text of the script, as another release would."""
    storage._script += b"\n-- " + comment
    storage._digest = hashlib.sha1(storage._script, usedforsecurity=False).hexdigest()


def test_two_releases_share_a_bucket(server: Server, client: redis.Redis, flavour: Flavour) -> None:
    """Two texts of the script run side by side on one bucket, each loaded once, and again when both are lost; one
    settles the other's holds.
    """
    with flavour.at(server.url) as old, flavour.at(server.url) as new:
        as_release(new.storage, b"the next release")
        client.config_resetstat()
        for number in range(10):
            old.apply("k", PLAIN, Reserve(f"x{number}", 10, 60 * SECOND), now_us=NOW)
            new.apply("k", PLAIN, Settle(f"x{number}", 3), now_us=NOW)
        assert new.apply("k", PLAIN, Acquire(0), now_us=NOW).balance == 970
        assert (calls(client, "eval"), script_runs(client)) == (2, 21)

        for left, release in ((969, old), (968, new)):
            client.script_flush()
            assert release.apply("k", PLAIN, Acquire(1), now_us=NOW).balance == left


def test_the_field_of_a_later_release_is_left_alone(storage: RedisStorage, client: redis.Redis) -> None:
    """A field that this release doesn't know, in a state of its own format, is neither read nor removed."""
    storage.apply("k", PLAIN, Acquire(1), now_us=NOW)
    client.hset(NAME, "mood", "sunny")
    assert storage.apply("k", PLAIN, Acquire(1), now_us=NOW).repaired == ()
    assert stored(client)["mood"] == "sunny"


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_a_killed_server_with_an_append_only_file_remembers(name: str) -> None:
    """With `appendonly yes` a server that was killed has the bucket as it was, and the script is loaded anew."""
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
            assert client.pttl(NAME) > 0
