"""Places that were given up while others lie ahead, each for the next one who fits in (rule 6). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

MOST_FREE: Final = 256
"""The most free places that are kept, the latest ones. They are one field, read and written whole."""

_TEXT: Final = re.compile("([0-9]{1,16}):([0-9]{1,16})")


@dataclass(frozen=True, slots=True, order=True)
class FreePlace:
    """A place that nobody waits for. at: its instant. tokens: those taken for it that didn't come back."""

    at: int
    tokens: int

    def text(self) -> str:
        """Return the text that is stored."""
        return f"{self.at}:{self.tokens}"

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """Return what `text` wrote; None if it can't be read."""
        numbers = _TEXT.fullmatch(text)
        return None if numbers is None else cls(int(numbers[1]), int(numbers[2]))


Free: TypeAlias = tuple[FreePlace, ...]
"""The free places of a bucket, the nearest first."""


def with_free(free: Free, place: FreePlace) -> Free:
    """Return the free places with another one."""
    return tuple(sorted([*free, place])[-MOST_FREE:])


def nearest(free: Free, tokens: int, until: int) -> FreePlace | None:
    """Return the nearest free place for `tokens` up to the instant `until`; None: there is none."""
    return next((each for each in free if each.tokens >= tokens and each.at <= until), None)


def without(free: Free, place: FreePlace, tokens: int) -> Free:
    """Return the free places once `tokens` of one are taken; what is left of it stays free."""
    others = list(free)
    others.remove(place)
    left = place.tokens - tokens
    return tuple(sorted([*others, FreePlace(place.at, left)])) if left else tuple(others)
