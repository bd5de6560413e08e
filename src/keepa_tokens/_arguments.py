"""Checks of what callers pass in. Each error names the argument, shows what came, and says what it may be."""

from __future__ import annotations

import operator
import re
from inspect import iscoroutinefunction
from typing import ClassVar, NoReturn, SupportsIndex, TypeVar, cast

from .errors import ConfigError
from .units import LIMIT, MAX_HOLD_US, MICROSECONDS

T = TypeVar("T")

LONGEST_KEY = 256

LONGEST_NAME = 200

LONGEST_LABEL = 100

_SECRET = re.compile(r"(?<=key=)[^&\s'\"]+|(?<=://)[^/@\s'\"]+(?=@)|\b[A-Za-z0-9]{40,}\b")
"""What may be an API key or a password."""


def whole(name: str, value: object, *, least: int = 0, most: int = LIMIT - 1) -> int:
    """Return `value` as an int if it is a whole number from `least` to `most`, of any type with `__index__` but bool.

    Raises TypeError or ConfigError otherwise.
    """
    number = index(value)
    if number is None:
        raise TypeError(f"{name} must be a whole number (int), not {shown(value)}")
    if not least <= number <= most:
        raise ConfigError(f"{name}={shown(value)} is out of range: it must be from {least} to {most}")
    return number


def microseconds(name: str, seconds: object) -> int:
    """Return `seconds` in whole microseconds, rounded; a TypeError or ConfigError names the argument."""
    number = seconds if isinstance(seconds, float) else index(seconds)
    if number is None:
        raise TypeError(f"{name} must be a number of seconds, not {shown(seconds)}")
    if not -LIMIT < number * MICROSECONDS < LIMIT:
        raise ConfigError(f"{name}={shown(seconds)} is out of range: give a finite number of seconds below 4.5e9")
    return round(number * MICROSECONDS)


def timeout_us(timeout: float | None) -> int | None:
    """Return a timeout in microseconds; None, for None and inf: there is no limit."""
    if timeout is None or timeout == float("inf"):
        return None
    value = microseconds("timeout", timeout)
    if value < 0:
        raise ConfigError(
            f"timeout={timeout!r} is out of range: give seconds from 0, or None to wait for as long as it takes"
        )
    return value


def hold_for_us(hold_for: float) -> int:
    """Return the lifetime of a hold in microseconds: more than 0, a day at most."""
    value = microseconds("hold_for", hold_for)
    if not 0 < value <= MAX_HOLD_US:
        raise ConfigError(f"hold_for={hold_for!r} is out of range: give seconds above 0, up to 86400 (a day)")
    return value


def checked_key(key: str) -> str:
    """Return `key` if it can name a bucket: 1 to 256 printable characters without spaces."""
    instance("key", key, str)
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable() or any(letter.isspace() for letter in key):
        raise ConfigError(
            f"key={shown(key)} can't name a bucket: give 1 to {LONGEST_KEY} printable characters without spaces"
        )
    return key


def printable(name: str, value: str, least: int, most: int) -> str:
    """Return `value` if it is `least` to `most` printable characters; raises TypeError or ConfigError otherwise."""
    instance(name, value, str)
    if not least <= len(value) <= most or not value.isprintable():
        raise ConfigError(f"{name}={shown(value)} must be {least} to {most} printable characters")
    return value


def instance(name: str, value: object, kind: type[T]) -> T:
    """Return `value` if it is of `kind`; else raise a TypeError that names it. For callers that use no type checker."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {shown(value)}")
    return value


class NotCopied:
    """Refuses to be pickled and copied, at once, and says what to do instead."""

    _instead: ClassVar[str] = "make one in each process, with the same key and a storage that they share"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be pickled or copied: {self._instead}")


def shown(value: object) -> str:
    """Return `value` for a message, in short: a huge one must not become a huge line."""
    if isinstance(value, int) and value.bit_length() > 192:  # noqa: PLR2004 - as long as the line below
        # Python refuses to print an int of over 4,300 digits.
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value) if isinstance(value, int) else redacted(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - one line of a log


def suspends(function: object) -> bool:
    """Whether a call of `function` is to be awaited."""
    # The flags of a mock's code may be a mock, too: then Python takes it for a coroutine function whatever its spec is.
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return isinstance(flags, int) and (iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__))


def redacted(text: str) -> str:
    """Return `text` without what may be a secret."""
    return _SECRET.sub("***", text)


def index(value: object) -> int | None:
    """Return `value` as an int if its `__index__` says that it is a whole number; else, and for a bool, None."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(cast("SupportsIndex", value))
    except TypeError:
        return None
