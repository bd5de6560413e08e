"""How a probe is checked and called, for threads and coroutines alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine, iscoroutinefunction, signature
from typing import TypeVar, cast

from .._arguments import index, redacted, shown
from .._interrupts import interrupt_in
from ..errors import ConfigError
from ..units import MICROSECONDS

P = TypeVar("P")

LONGEST_WHY = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe brought: a status and a body, or why it failed."""

    status: int | None
    body: Mapping[str, object] | None
    why: str = ""


def checked_probe(probe: P, *, waits: bool) -> P:
    """Return `probe` if it can be called; a coroutine function for threads (`waits`) is a ConfigError."""
    if probe is None:
        return probe
    if not callable(probe) or isinstance(probe, type):
        raise TypeError(f"probe must be callable, as http_probe(api_key) is, not {shown(probe)}")
    if waits and (iscoroutinefunction(probe) or iscoroutinefunction(type(probe).__call__)):
        raise ConfigError(
            "this probe is a coroutine function: KeepaSync needs one that blocks, AsyncKeepaSync takes it"
        )
    try:
        signature(probe).bind(**({"timeout": 1.0} if _takes_timeout(probe) else {}))
    except TypeError as error:
        raise TypeError(
            f"probe is called with nothing, or with timeout= alone: {shown(probe)} won't do ({error})"
        ) from None
    except ValueError:  # it says nothing of what it takes
        pass
    return probe


async def ask(probe: Callable[..., object] | None, limit_us: int, *, waits: bool) -> Answer:
    """Ask the server for its balance. waits: for threads, so nothing is awaited."""
    if probe is None:
        return Answer(None, None, "there is no probe")
    try:
        result = probe(timeout=limit_us / MICROSECONDS) if _takes_timeout(probe) else probe()
        awaited = not waits and isawaitable(result)
        if awaited:
            result = await cast("Awaitable[object]", result)
    except Exception as error:  # noqa: BLE001 - whatever fails in a probe, it brought no reading
        interrupt = interrupt_in(error)
        if interrupt is not None:
            raise interrupt from None
        text = redacted(str(error))[:LONGEST_WHY]
        return Answer(None, None, f"the probe raised {type(error).__name__}{': ' if text else ''}{text}")
    if not waits and not awaited:
        raise ConfigError(
            f"a probe for AsyncKeepaSync must be awaitable, this one returned {type(result).__name__}: one that"
            " blocks goes with KeepaSync"
        )
    return _answered(result, "KeepaSync" if waits else "AsyncKeepaSync")


def _answered(result: object, kind: str) -> Answer:
    """Return what a probe returned; ConfigError for what is no answer."""
    given = type(result).__name__
    if iscoroutine(result):
        result.close()
    if isinstance(result, tuple):
        parts = cast("tuple[object, ...]", result)
        given = f"tuple ({', '.join(type(part).__name__ for part in parts)})"
        if len(parts) == 2:  # noqa: PLR2004 - a pair
            status, body = index(parts[0]), parts[1]
            if status is not None and (body is None or isinstance(body, Mapping)):
                return Answer(status, cast("Mapping[str, object] | None", body))
    raise ConfigError(f"a probe for {kind} must return (status, parsed body or None), not {given}")


def _takes_timeout(probe: object) -> bool:
    try:
        return "timeout" in signature(cast("type", probe)).parameters
    except (TypeError, ValueError):
        return False
