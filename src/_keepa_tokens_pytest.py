"""The pytest plugin of the testing kit: fixtures for tests of programs that use keepa_tokens.

pytest loads this module in every run on a machine where the library is installed. So it is beside the package, not in
it, and imports the package only when a test uses a fixture: other runs don't pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from keepa_tokens import KeepaSync
    from keepa_tokens.testing import FakeKeepa, FakeKeepaServer, ManualClock


@pytest.fixture
def manual_clock() -> ManualClock:
    """Return a clock that stands still until the test moves it; a sleeper moves it too, and waits no real time."""
    from keepa_tokens.testing import ManualClock  # noqa: PLC0415 - see the module's docstring

    return ManualClock()


@pytest.fixture
def fake_keepa(manual_clock: ManualClock) -> FakeKeepa:
    """Return a model of Keepa's server for one key, 5 tokens a minute and 300 at the start, on `manual_clock`."""
    from keepa_tokens.testing import FakeKeepa  # noqa: PLC0415

    return FakeKeepa(clock=manual_clock)


@pytest.fixture
def fake_keepa_server(fake_keepa: FakeKeepa) -> Iterator[FakeKeepaServer]:
    """Yield `fake_keepa` served by HTTP on loopback, at its `url`; the time is still that of `manual_clock`."""
    from keepa_tokens.testing import FakeKeepaServer  # noqa: PLC0415

    with FakeKeepaServer(fake_keepa, speed=None) as server:
        yield server


@pytest.fixture
def keepa_sync(fake_keepa: FakeKeepa, manual_clock: ManualClock) -> KeepaSync:
    """Return an adapter that meters calls to `fake_keepa`, with a bucket in memory, on `manual_clock`."""
    from keepa_tokens import KeepaSync, TokenBucket, keepa_quota  # noqa: PLC0415

    bucket = TokenBucket(keepa_quota(fake_keepa.refill_rate), clock=manual_clock)
    return KeepaSync(bucket, probe=fake_keepa.probe)
