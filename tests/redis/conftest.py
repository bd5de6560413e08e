"""Real servers as fixtures. One that is missing is a failure, never a skip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.servers import SYSTEM, Server, running

KINDS = [
    "valkey",
    pytest.param("redis", marks=pytest.mark.deep),
    pytest.param(SYSTEM, marks=pytest.mark.system_redis),
]
"""Every kind of server; `make test` takes the newest alone."""


@pytest.fixture(scope="session", params=KINDS)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server, once per worker. Its contents are anybody's: use `server`."""
    with running(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """Each kind of server, emptied of data and scripts."""
    with shared_server.client() as client:
        client.flushall()
        client.script_flush()
    return shared_server


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    """A plain client of `server`."""
    with server.client() as made:
        yield made


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server, for this test alone: it may be stopped."""
    with running(request.param) as server:
        yield server


@pytest.fixture(scope="session")
def clients(shared_server: Server) -> Iterator[dict[str, redis.Redis]]:
    """One client for a whole session, by the server's name: a new one for each example costs more than the example."""
    with shared_server.client() as made:
        yield {shared_server.name: made}
