"""The rule that once stood still for days, kept to show that the properties of liveness would have caught it.

A missing timestamp means now; a refusal writes nothing; and who finds the balance below the threshold doesn't
bother the server.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire
from keepa_tokens.rules.state import BucketState

THRESHOLD: Final = 10


class OldRule:
    """One worker's view of the shared state, by the old rule."""

    def __init__(self, quota: Quota, state: BucketState) -> None:
        self.quota = quota
        self.state = state
        self.started_at: int | None = None

    def attempt(self, command: Acquire, now: int) -> bool:
        """Return whether the attempt was granted or called for the server."""
        # Missing means now: for every worker, every time.
        refilled_at = now if self.state.refilled_at is None else self.state.refilled_at
        gained = (now - refilled_at) * self.quota.rate // self.quota.rate_period_us
        balance = min(self.quota.capacity, (self.state.balance or 0) + gained)
        if balance < command.tokens:
            return balance >= THRESHOLD  # "too low, don't bother the server"
        self.state = replace(self.state, balance=balance - command.tokens, refilled_at=now)
        return True

    def restart(self) -> None:
        """Forget what only this worker knew: nothing."""
