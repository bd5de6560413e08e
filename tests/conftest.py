"""Settings that every test shares: how hard Hypothesis looks, and which tests draw their examples.

`HYPOTHESIS_PROFILE` chooses a profile by name; without it a run takes `default`.
"""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from tests.cli import Workers

# No deadlines: on a loaded machine they measure the machine. For the same reason a slow generator is no finding.
# The same examples in every run, so that a change is judged by itself and not by luck; chance is for `nightly`.
settings.register_profile(
    "default",
    max_examples=20,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("default"), max_examples=200)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=5000, derandomize=False)
# For `make mutants`: a test only has to notice, in a process that is gone afterwards.
settings.register_profile(
    "mutants", settings.get_profile("default"), max_examples=25, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "").strip() or "default")


# A suite that a script started in the background begins with SIGINT ignored, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    """What runs the tests that are coroutines, in a file that is marked `anyio`."""
    return "asyncio"


@pytest.fixture(scope="module")
def alone() -> None:
    """Let a file begin without what tests before it threw away, and what its collection would warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[Workers]:
    """A Valkey for all tests of the command line, once per worker. Its contents are anybody's: use `valkey`."""
    from tests.cli import valkey_with_workers

    with valkey_with_workers() as server:
        yield server


@pytest.fixture
def valkey(shared_valkey: Workers) -> Workers:
    """The same, empty."""
    with shared_valkey.client() as client:
        client.flushall()
    return shared_valkey


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Mark each test whose examples Hypothesis draws."""
    for item in items:
        if item.get_closest_marker("hypothesis"):
            item.add_marker("drawn")
