"""What `KeepaSync` and `AsyncKeepaSync` have in common."""

from __future__ import annotations

from ..door import Door, new_id
from ..errors import ConfigError
from ..events import Event
from ..plans import hold_for_us
from ..units import microseconds
from .plans import Answer, Request, Tell, checked_synced

__all__ = ["SyncDoor"]


class SyncDoor:
    """The terms on which calls are made: how long a hold lives, how old a reading may be before a refusal probes."""

    def __init__(self, bucket: Door, *, has_probe: bool, probe_interval: float, hold_for: float) -> None:
        checked_synced(bucket.quota)
        self._door = bucket
        self._has_probe = has_probe
        self._probe_after_us = microseconds("probe_interval", probe_interval)
        if self._probe_after_us < 1:
            msg = f"probe_interval={probe_interval!r} must be longer than 0 s"
            raise ConfigError(msg)
        self._hold_for_us = hold_for_us(hold_for)

    def _wanted(self, estimate: int, keep: int) -> Request:
        return Request(new_id(), estimate, keep, self._hold_for_us, self._probe_after_us, scout=not self._has_probe)

    def _tell(self, tell: Tell) -> None:
        self._door.listener(Event(tell.kind, self._door.key, why=tell.why))

    def _check_probe(self) -> None:
        if not self._has_probe:
            msg = "refresh() needs a probe: give KeepaSync one, e.g. probe=http_probe(api_key)"
            raise ConfigError(msg)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._door!r})"


def failed(error: Exception) -> Answer:
    """Return a probe's failure by its type alone: an HTTP error's text can carry the URL, and so the API key."""
    return Answer(None, None, f"the probe raised {type(error).__name__}")
