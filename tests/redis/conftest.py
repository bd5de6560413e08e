"""Real servers, and what is before and on them, as fixtures. A server that is missing is a failure, never a skip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from keepa_tokens.storage.redis import RedisStorage
from tests.redis.flavours import FLAVOURS, Flavour
from tests.redis.proxy import Proxy, proxied
from tests.servers import SYSTEM, Server, running

KINDS = ["valkey", pytest.param("redis", marks=pytest.mark.deep), pytest.param(SYSTEM, marks=pytest.mark.system_redis)]
"""Every kind of server; `make test` takes the newest alone."""


@pytest.fixture(scope="session", params=KINDS)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server, once per worker. Its contents are anybody's: use `server`."""
    with running(request.param) as server:
        yield server


@pytest.fixture(scope="session")
def shared_client(shared_server: Server) -> Iterator[redis.Redis]:
    """One client of it for a whole session: a new one for each example costs more than the example."""
    with shared_server.client() as client:
        yield client


@pytest.fixture
def server(shared_server: Server) -> Server:
    """Each kind of server, emptied of data and scripts."""
    with shared_server.client() as client:
        client.flushall()
        client.script_flush()
    return shared_server


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with server.client() as made:
        yield made


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server, for this test alone: it may be stopped."""
    with running(request.param) as server:
        yield server


@pytest.fixture
def storage(server: Server) -> Iterator[RedisStorage]:
    with RedisStorage.from_url(server.url) as storage:
        yield storage


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server.port) as proxy:
        yield proxy


@pytest.fixture(params=FLAVOURS, ids=str)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Each library, blocking and asyncio."""
    flavour: Flavour = request.param
    return flavour
