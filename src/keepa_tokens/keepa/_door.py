"""What `KeepaSync` and `AsyncKeepaSync` have in common."""

from __future__ import annotations

from .._arguments import hold_for_us, microseconds
from .._door import new_id
from ..errors import ConfigError
from ..quota import Quota
from ._plans import Answer, Request, checked_synced

__all__ = ["KeepaDoor"]


class KeepaDoor:
    """The terms on which calls are made: how long a hold lives, how old a reading may be before a refusal probes."""

    def __init__(self, quota: Quota, *, has_probe: bool, probe_interval: float, hold_for: float) -> None:
        self._quota = checked_synced(quota)
        self._has_probe = has_probe
        self._probe_after_us = microseconds("probe_interval", probe_interval)
        if self._probe_after_us < 1:
            raise ConfigError(f"probe_interval={probe_interval!r} must be longer than 0 s")
        self._hold_for_us = hold_for_us(hold_for)

    def _wanted(self, estimate: int, keep: int) -> Request:
        self._quota.check_cost(estimate, keep)
        return Request(new_id(), estimate, keep, self._hold_for_us, self._probe_after_us, scout=not self._has_probe)

    def _check_probe(self) -> None:
        if not self._has_probe:
            raise ConfigError("refresh() needs a probe: give KeepaSync one, e.g. probe=http_probe(api_key)")


def failed(error: Exception) -> Answer:
    """Return a probe's failure by its type alone: an HTTP error's text can carry the URL, and so the API key."""
    return Answer(None, None, f"the probe raised {type(error).__name__}")
