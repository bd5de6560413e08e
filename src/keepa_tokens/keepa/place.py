"""Under which id the calls of a task that comes back stand in line, so that it keeps its place in whatever worker."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

__all__ = ["PLACE"]

PLACE: Final[ContextVar[str | None]] = ContextVar("keepa_tokens place", default=None)
"""The task's id, for calls that name no `place=` of their own; None: they stand under an id of their own."""
