"""What `KeepaSync` and `AsyncKeepaSync` have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable, iscoroutine, iscoroutinefunction, signature
from typing import cast

from .._arguments import NotCopied, checked_label, checked_name, hold_for_us, index, microseconds, redacted, shown
from .._door import CALL_ADVICE, Door, cost, new_id, watched
from .._interrupts import interrupt_in
from .._plans import Grant
from ..errors import ConfigError
from ..quota import Quota
from ..units import MICROSECONDS
from ._plans import Answer, Request, checked_synced
from .backoff import asked_by
from .place import PLACE
from .reading import REFUSED, Body, Envelope, unpacked

__all__ = ["KeepaDoor"]

LONGEST_WHY = 200


class KeepaDoor(NotCopied):
    """The terms on which calls are made: how long a hold lives, how old a reading may be before a refusal probes."""

    def __init__(self, quota: Quota, *, has_probe: bool, probe_interval: float, hold_for: float) -> None:
        self._quota = checked_synced(quota)
        self._has_probe = has_probe
        self._probe_after_us = microseconds("probe_interval", probe_interval)
        if self._probe_after_us < 1:
            raise ConfigError(f"probe_interval={probe_interval!r} must be longer than 0 s")
        self._hold_for_us = hold_for_us(hold_for)

    def _cost(self, estimate: int, keep: int) -> tuple[int, int]:
        return cost(self._quota, estimate, keep)

    def _wanted(self, estimate: int, keep: int, place: str | None, label: str, *, waits: bool) -> Request:
        estimate, keep = self._cost(estimate, keep)
        return Request(
            new_id(),
            estimate,
            keep,
            self._hold_for_us,
            self._probe_after_us,
            scout=not self._has_probe,
            waits=waits,
            place=PLACE.get() if place is None else checked_name("place", place),
            label=checked_label(label),
        )

    def _check_probe(self) -> None:
        if not self._has_probe:
            raise ConfigError("refresh() needs a probe: give KeepaSync one, e.g. probe=http_probe(api_key)")


class KeepaCall(NotCopied):
    """What `Call` and `AsyncCall` have in common."""

    def __init__(self, door: Door[object], grant: Grant) -> None:
        self._door, self._grant = door, grant
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.waited = grant.decision.waited
        self.refused = False
        self.consumed: int | None = None
        self.told = False
        self.retry_after: float | None = None
        self._watch: object = watched(self, door, "call", CALL_ADVICE, self.tokens)

    def _given(self, body: Body, status: int | None) -> tuple[Body, int | None]:
        answer, number = unpacked(body, status)
        self._watch = None
        self.refused = number == REFUSED
        self.retry_after = asked_by(body)
        return answer, number

    def _learned(self, said: Envelope) -> None:
        self.consumed, self.told = said.consumed, said.reading is not None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, tokens={self.tokens}, refused={self.refused})"


def checked_bucket(bucket: object, kind: type, *, twin: str) -> None:
    """Raise unless `bucket` is of `kind`. What it is instead is named, not shown: it may be an API key."""
    if isinstance(bucket, kind):
        return
    if isinstance(bucket, str):
        raise ConfigError("bucket is a text: for an API key there is from_key(api_key)")
    raise ConfigError(f"bucket must be a {kind.__name__}, not {type(bucket).__name__}; its twin goes with {twin}")


def checked_api_key(api_key: object) -> str:
    """Return `api_key` if it can be one. It is never shown."""
    if not isinstance(api_key, str):
        raise TypeError(
            f"api_key must be the API key, a text, not {type(api_key).__name__}: is the environment variable set?"
        )
    if not api_key or any(not 32 < ord(letter) < 127 for letter in api_key):  # noqa: PLR2004 - printable ASCII
        raise ConfigError("api_key is empty, or has spaces, line breaks or letters in it that no API key has")
    return api_key


def takes_timeout(probe: object) -> bool:
    """Whether a probe can be told how long it may take."""
    try:
        return "timeout" in signature(cast("type", probe)).parameters
    except (TypeError, ValueError):
        return False


def checked_probe(probe: object, *, waits: bool) -> None:
    """Raise unless `probe` can be called; a coroutine function for threads (`waits`) is a ConfigError."""
    if probe is None:
        return
    if not callable(probe) or isinstance(probe, type):
        raise TypeError(f"probe must be callable, as http_probe(api_key) is, not {shown(probe)}")
    if waits and (iscoroutinefunction(probe) or iscoroutinefunction(type(probe).__call__)):
        raise ConfigError(
            "this probe is a coroutine function: KeepaSync needs one that blocks, AsyncKeepaSync takes it"
        )
    try:
        signature(probe).bind(**({"timeout": 1.0} if takes_timeout(probe) else {}))
    except TypeError as error:
        raise TypeError(
            f"probe is called with nothing, or with timeout= alone: {shown(probe)} won't do ({error})"
        ) from None
    except ValueError:  # it says nothing of what it takes
        return


async def ask(probe: Callable[..., object] | None, limit_us: int, *, waits: bool) -> Answer:
    """Ask the server for its balance. waits: for threads, so nothing is awaited."""
    if probe is None:
        return Answer(None, None, "there is no probe")
    try:
        result = probe(timeout=limit_us / MICROSECONDS) if takes_timeout(probe) else probe()
        awaited = not waits and isawaitable(result)
        if awaited:
            result = await cast("Awaitable[object]", result)
    except Exception as error:  # noqa: BLE001 - whatever fails in a probe, it brought no reading
        interrupt = interrupt_in(error)
        if interrupt is None:
            return failed(error)
        raise interrupt from None
    if not waits and not awaited:
        raise ConfigError(
            f"a probe for AsyncKeepaSync must be awaitable, this one returned {type(result).__name__}: one that"
            " blocks goes with KeepaSync"
        )
    return answered(result, waits=waits)


def answered(result: object, *, waits: bool) -> Answer:
    """Return what a probe returned; ConfigError for what is no answer. waits: for threads."""
    given = type(result).__name__
    if iscoroutine(result):
        result.close()
    if isinstance(result, tuple):
        given = f"tuple ({', '.join(type(part).__name__ for part in cast('tuple[object, ...]', result))})"
    if isinstance(result, tuple) and len(cast("tuple[object, ...]", result)) == 2:  # noqa: PLR2004 - a pair
        status, body = cast("tuple[object, object]", result)
        if (number := index(status)) is not None and (body is None or isinstance(body, Mapping)):
            return Answer(number, cast("Mapping[str, object] | None", body))
    kind = "KeepaSync" if waits else "AsyncKeepaSync"
    raise ConfigError(f"a probe for {kind} must return (status, parsed body or None), not {given}")


def failed(error: Exception) -> Answer:
    """Return a probe's failure in its own words, but without what may be a secret."""
    text = redacted(str(error))[:LONGEST_WHY]
    return Answer(None, None, f"the probe raised {type(error).__name__}{': ' if text else ''}{text}")
