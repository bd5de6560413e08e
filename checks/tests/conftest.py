"""What the tests of the library have too: profiles of Hypothesis, and real servers."""

from __future__ import annotations

import tests.conftest  # noqa: F401 - sets the profile
from tests.redis.conftest import client, clients, own_server, server, shared_server

__all__ = ["client", "clients", "own_server", "server", "shared_server"]
