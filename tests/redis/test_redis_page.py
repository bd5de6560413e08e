"""docs/reference/redis.md and stored.md tell the truth: programs run, tables and the hash are what servers do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from keepa_tokens import BucketState, Reading, TokenBucket, keepa_quota
from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.state import FIELDS
from keepa_tokens.storage.redis import AsyncRedisStorage, RedisStorage
from keepa_tokens.testing import ManualClock
from tests.redis.common import PLAIN, stored
from tests.redis.flavours import SENT_BY_DEFAULT
from tests.redis.test_tls_acl import NEEDED
from tests.servers import HOST, MASTER, SYSTEM, Server, cluster, replicated, running

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGE = (REFERENCE / "redis.md").read_text(encoding="utf-8")
STORED = (REFERENCE / "stored.md").read_text(encoding="utf-8")
PROGRAMS: list[str] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
HASH: list[str] = re.findall(r"> HGETALL keepa_tokens:my-plan\n(.*?)```", STORED, re.DOTALL)[0].splitlines()


def rows(page: str, heading: str) -> Iterator[list[str]]:
    """Yield the rows of the table under a heading, cell by cell."""
    section = page.split(f"# {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    for line in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]:
        yield line.split(" | ")


@pytest.fixture(scope="module")
def places() -> Iterator[Callable[[str], str]]:
    """Put the address of a real server, of its kind, where a program of the page has an example's."""
    with ExitStack() as stack:

        def placed(program: str) -> str:
            if "RedisCluster" in program:
                server = stack.enter_context(cluster("valkey"))[0]
            elif "Sentinel" in program:
                server = stack.enter_context(replicated("valkey")).sentinel
                assert f'"{MASTER}"' in program
            else:
                server = stack.enter_context(running("valkey"))
            return re.sub(r"\b2?6379\b", str(server.port), program).replace("localhost", HOST)

        yield placed


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
@pytest.mark.deep
def test_each_program_connects(places: Callable[[str], str], number: int) -> None:
    """Each program of the page, run against a server of its kind, leaves a storage that works."""
    names: dict[str, Any] = {}
    exec(places(PROGRAMS[number]), names)
    storage = names["storage"]
    if isinstance(storage, RedisStorage):
        assert storage.apply("k", PLAIN, Acquire(1)).granted
        storage.close()
    else:
        asyncio.run(used(storage))
    if "client" in names:
        names["client"].close()
    for asked in getattr(names.get("sentinel"), "sentinels", []):
        asked.close()


async def used(storage: AsyncRedisStorage) -> None:
    assert (await storage.apply("k", PLAIN, Acquire(1))).granted
    await storage.aclose()


def test_there_is_a_program_for_each_topology() -> None:
    """The page has programs for URLs, coroutines, a cluster, Sentinel and a pool."""
    kinds = [" RedisStorage.from_url", "AsyncRedisStorage.from_url", "RedisCluster(", "Sentinel(", "BlockingConnection"]
    assert len(PROGRAMS) == len(kinds)
    for kind, program in zip(kinds, PROGRAMS, strict=True):
        assert kind in program


def test_the_hash_is_what_is_stored(storage: RedisStorage, client: redis.Redis) -> None:
    """The hash that the page shows is what these steps leave, name by name, in this order."""
    clock = ManualClock(1_780_000_000)
    bucket = TokenBucket(keepa_quota(refill_rate=5), key="my-plan", storage=storage, clock=clock)
    bucket.reconcile(Reading(120, next_refill_in=31.5, server_time=1_780_000_000.25))
    clock.advance(5)
    reservation = bucket.reserve(50)
    clock.advance(1)
    reservation.settle(42, Reading(78, next_refill_in=25.5, server_time=1_780_000_006.25))
    opened = bucket.reserve(10)
    fields = stored(client, "my-plan").items()
    assert [f"{name.replace(opened.id, '2f6c'):<16} {text}" for name, text in fields] == HASH
    assert (client.memory_usage("keepa_tokens:my-plan") or 0) in range(1, 1024)


def test_every_field_is_told() -> None:
    """The table of fields has each field of a state once, and no other."""
    told = [name for row in rows(STORED, "What is stored") for name in re.findall(r"`([^`]+)`", row[0])]
    assert told == [*FIELDS, "hold:<id>"]


def test_sendings_are_as_measured() -> None:
    """The table of clients that send again has the numbers that the tests of each kind measure."""
    told = {row[0]: {"redis": int(row[1]), "valkey": int(row[2])} for row in rows(PAGE, "A call that is sent twice")}
    assert told == SENT_BY_DEFAULT


def test_the_rights_are_those_needed() -> None:
    """The page's user has the rights that the tests of users find needed, each of them."""
    (line,) = re.findall(r"^ACL SETUSER .*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"\+(\w+)", line)) == set(NEEDED)


def test_clients_are_those_named() -> None:
    """The tests run with the libraries whose first numbers the page names."""
    assert f"redis-py {version('redis').split('.')[0]} and valkey-py {version('valkey').split('.')[0]}" in PAGE


def test_servers_are_those_named(server: Server, client: redis.Redis) -> None:
    """The tests run on the servers that the page names."""
    told: Any = client.info("server")
    named = {
        "valkey": f"Valkey {str(told.get('valkey_version')).split('.')[0]}",
        "redis": f"Redis {told['redis_version'][:3]}",
        SYSTEM: f"Debian's Redis {told['redis_version'][:3]}",
    }
    assert named[server.name] in PAGE


@pytest.mark.parametrize("missing", ["redis", "valkey"])
@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_one_library_opens_the_others_urls(
    server: Server, monkeypatch: pytest.MonkeyPatch, missing: str, scheme: str
) -> None:
    """Where one of the libraries is not installed, the other opens its URLs."""
    monkeypatch.setattr(
        "keepa_tokens.storage._clients.find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with RedisStorage.from_url(server.url.replace("redis", scheme)) as storage:
        assert type(storage._client).__module__.partition(".")[0] == ({"redis", "valkey"} - {missing}).pop()
        assert storage.apply("k", PLAIN, Acquire(1)).granted


def test_the_state_reads_back() -> None:
    """The hash of the page is read as the state that it says."""
    state = BucketState.from_fields(dict(line.split(maxsplit=1) for line in HASH))
    assert state.unreadable == ()
    assert (state.balance, state.holds["2f6c"].tokens, state.quota) == (78, 10, keepa_quota(refill_rate=5))
