"""The settings and the servers of tests/, for the tests of what checks. All of them are deep."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import conftest  # noqa: F401 - how hard Hypothesis looks is set by importing it
from tests.redis.conftest import client, own_server, server, shared_client, shared_server

__all__ = ["client", "own_server", "server", "shared_client", "shared_server"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Mark each test of this folder, so that no run of `make test` takes one along."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("deep")
