"""The errors: each message names the value that is wrong, and says what to do.

A refusal is a value (`Decision`). Errors are for misuse, for methods that return tokens or raise, and for a storage
that is away.
"""

from __future__ import annotations

import math


class KeepaTokensError(Exception):
    """Any error of this library."""

    def __repr__(self) -> str:
        # Its sentence, not its arguments, which tell nobody anything: Celery logs it of each task that comes back.
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(KeepaTokensError, ValueError):
    """A value that no bucket can work with: a quota, a key, a duration, a storage of the wrong kind."""


class CostTooLarge(KeepaTokensError, ValueError):
    """More tokens than the quota could ever admit. Nothing was taken; no wait would help."""

    def __init__(self, tokens: int, keep: int, largest: int) -> None:
        super().__init__(tokens, keep, largest)
        self.tokens = tokens
        self.keep = keep
        self.largest = largest

    def __str__(self) -> str:
        kept = f" with keep={self.keep}" if self.keep else ""
        return (
            f"tokens={self.tokens}{kept} can never be admitted: this quota admits at most {self.largest}."
            " Split the work, or use a larger capacity or overdraft."
        )


class NotEnoughTokens(KeepaTokensError):
    """The bucket refused. Nothing was taken.

    `retry_after` is in seconds (inf: no refill will ever bring it), `reason` one of EMPTY, IN_FLIGHT, RECHARGING,
    PAUSED, UNKNOWN, TOO_LARGE. held, holds: tokens set aside for calls in flight, and how many those are.
    """

    def __init__(
        self, tokens: int, retry_after: float, reason: str, balance: int | None = None, held: int = 0, holds: int = 0
    ) -> None:
        super().__init__()  # TimeoutError would take arguments for an errno and the names of files
        # Pickle, and Celery's JSON too, carry an exception to another process as its `args`.
        self.args = (tokens, retry_after, str(reason), balance, held, holds)
        self.tokens = tokens
        self.retry_after = retry_after
        self.reason = reason
        self.balance = balance
        self.held = held
        self.holds = holds

    def __str__(self) -> str:
        balance = "unknown" if self.balance is None else str(self.balance)
        wait = "no refill will bring them" if math.isinf(self.retry_after) else f"ask again in {self.retry_after:.6g} s"
        held = f", {self.held} held by {self.holds} in flight" if self.reason == "IN_FLIGHT" else ""
        return f"{self.tokens} tokens refused ({self.reason}, balance {balance}{held}): {wait}."


class AcquireTimeout(NotEnoughTokens, TimeoutError):
    """The wait would be longer than the timeout; nothing was taken.

    Raised at once. Only where a settle or a probe could end the wait any moment it is raised when the time is over.
    """


class BadReading(KeepaTokensError):
    """A reading that makes no sense. Nothing changed."""


class StorageUnavailable(KeepaTokensError):
    """The storage did not answer: nobody knows the balance, so nothing is granted. The cause is chained."""
