"""Units and bounds: whole tokens, whole microseconds, and the largest number that Lua and Python both hold exactly."""

from __future__ import annotations

import math
from typing import Final, TypeVar

from .errors import ConfigError

T = TypeVar("T")

MICROSECONDS: Final = 1_000_000
"""Microseconds in a second."""

LIMIT: Final = 2**52
"""Tokens, balances and instants stay within this, so that Lua's doubles compute them exactly."""

NEVER: Final = LIMIT
"""The instant that does not come."""

UNLIMITED: Final = LIMIT
"""An overdraft without limit: one grant may take any positive balance as far below zero as it likes."""

TOLERANCE_US: Final = 5 * MICROSECONDS
"""How far two writers' clocks may stand apart before a stored time ahead of now counts as damage."""

MAX_HOLD_US: Final = 86_400 * MICROSECONDS
"""The longest `hold_for`: a day."""

CLAIM_US: Final = 20 * MICROSECONDS
"""How long one worker's claim on the probe lasts. A probe must time out sooner."""

PROBE_AFTER_US: Final = 600 * MICROSECONDS
"""A refusal that rests on a reading older than this calls for a probe, unless the caller says otherwise."""

MAX_BACKOFF_US: Final = 3_600 * MICROSECONDS
"""Failed probes back off up to this (or to the probe interval, if that is longer)."""

REORDER_US: Final = 120 * MICROSECONDS
"""No stored field can shut out an observed reading for longer than this, and the tolerance of clocks on top."""

REFUND_MEMORY_US: Final = 600 * MICROSECONDS
"""How long a refund's id is remembered; a refund issued longer ago might be a repeat and is refused."""


def microseconds(name: str, seconds: object) -> int:
    """Return `seconds` in whole microseconds, rounded; ConfigError or TypeError name the argument."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        msg = f"{name} must be a number of seconds, not {shown(seconds)}"
        raise TypeError(msg)
    if not -LIMIT < seconds * MICROSECONDS < LIMIT:
        msg = f"{name}={shown(seconds)} is out of range: give a finite number of seconds below 4.5e9"
        raise ConfigError(msg)
    return round(seconds * MICROSECONDS)


def seconds(duration_us: int) -> float:
    """Return whole microseconds as seconds; `NEVER` and beyond as inf."""
    return math.inf if duration_us >= NEVER else duration_us / MICROSECONDS


def whole(name: str, value: object, *, least: int = 0, most: int = LIMIT - 1) -> int:
    """Return `value` if it is a whole number from `least` to `most`; else a TypeError or ConfigError that names it."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a whole number (int), not {shown(value)}"
        raise TypeError(msg)
    if not least <= value <= most:
        msg = f"{name}={shown(value)} is out of range: it must be from {least} to {most}"
        raise ConfigError(msg)
    return int(value)


def instance(name: str, value: object, kind: type[T]) -> T:
    """Return `value` if it is of `kind`; else a TypeError that names it. For callers whose types nobody checked."""
    if not isinstance(value, kind):
        msg = f"{name} must be a {kind.__name__}, not {shown(value)}"
        raise TypeError(msg)
    return value


def shown(value: object) -> str:
    """Return `value` for a message, in short: a huge one must not become a huge line."""
    if isinstance(value, int) and value.bit_length() > 192:  # noqa: PLR2004 - as long as the line below
        # Python refuses to print an int of over 4,300 digits.
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line of a log
