"""The line of those who wait without a place (rule 11): its tickets, and whose turn it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote

from ..units import LIMIT, MICROSECONDS, MINUTE_US

LATE_US: Final = MICROSECONDS
"""A ticket is late, and others may pass it, if its caller hasn't come back this long after the told instant."""

LAPSES_US: Final = MINUTE_US
"""A ticket leaves the line if its caller hasn't come back this long after the told instant."""

LONGEST_LINE: Final = 256
"""The most tickets in line; more callers get the plain refusal. The line is one field, read and written whole."""

_NUMBERS: Final = 4


@dataclass(frozen=True, slots=True)
class Ticket:
    """A caller in line. tokens and keep: as asked for. arrived: a sequence number. told_at: when to come again."""

    id: str
    tokens: int
    keep: int
    arrived: int
    told_at: int

    @property
    def rank(self) -> tuple[int, int]:
        """The order of the line: the smallest `keep` first, then by arrival."""
        return self.keep, self.arrived

    def text(self) -> str:
        """Return the text that is stored."""
        return f"{quote(self.id, errors='replace')}:{self.tokens}:{self.keep}:{self.arrived}:{self.told_at}"

    @classmethod
    def from_text(cls, text: str) -> Self | None:
        """Return what `text` wrote; None if it can't be read."""
        name, *parts = text.split(":")
        if len(parts) != _NUMBERS or not all(part.isascii() and part.isdigit() and len(part) <= 16 for part in parts):  # noqa: PLR2004 - digits of LIMIT
            return None
        tokens, keep, arrived, told_at = map(int, parts)
        if max(tokens, keep, arrived, told_at) >= LIMIT or not name:
            return None
        return cls(unquote(name), tokens, keep, arrived, told_at)


def lapses_at(ticket: Ticket) -> int:
    """Return when a ticket leaves the line if its caller doesn't come back."""
    return ticket.told_at + LAPSES_US


def standing(line: Iterable[Ticket], now: int) -> list[Ticket]:
    """Return the tickets that have not lapsed, in the order of the line."""
    return sorted((ticket for ticket in line if lapses_at(ticket) > now), key=lambda ticket: ticket.rank)


def ahead_of(line: Iterable[Ticket], rank: tuple[int, int], now: int) -> list[Ticket]:
    """Return the tickets before `rank` that are not late."""
    return [each for each in line if each.rank < rank and now <= each.told_at + LATE_US]


def wanted_by(tickets: Iterable[Ticket]) -> int:
    """Return the tokens that tickets ask for."""
    return min(LIMIT - 1, sum(each.tokens for each in tickets))
