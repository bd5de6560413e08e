"""The API: the fake server, with a ledger of every call that it finished."""

from __future__ import annotations

from collections.abc import Mapping

from checks.torture.story import Charged, Journal, machine_us
from checks.torture.terms import LATENCY, RATE
from keepa_tokens.testing.fake_keepa import FakeKeepa, Response, Ticket

KEY = "no-key"
PATH = "/category"


class LoggedKeepa(FakeKeepa):
    """A fake server that refills every second, takes for a call what the call says, and logs what it took.

    dearer: so many tokens more than that, as long as it is set.
    """

    def __init__(self, seed: int, journal: Journal) -> None:
        super().__init__(
            refill_rate=RATE, initial=2 * RATE, seed=seed, period=(0.995, 0.999), latency=LATENCY, cost=self._cost_of
        )
        self.dearer = 0
        self._journal = journal

    def finish(self, ticket: Ticket) -> Response:
        """Complete a call, and log it."""
        try:
            return super().finish(ticket)
        finally:
            if ticket.path == PATH:
                refused = ticket.verdict == "refused"
                entry = Charged("api", machine_us(), ticket.params["call"], refused, ticket.cost, ticket.fault or "")
                self._journal.write(entry)

    def _cost_of(self, path: str, params: Mapping[str, str]) -> int | None:
        return int(params["cost"]) + self.dearer if path == PATH else None


def parameters(call: str, cost: int) -> dict[str, str]:
    """Return what a call to `PATH` sends: its own id, and what it shall cost."""
    return {"key": KEY, "category": "1", "call": call, "cost": str(cost)}
