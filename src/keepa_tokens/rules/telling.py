"""What is told of a bucket at one moment, and by when an attempt is granted or calls for a probe."""

from __future__ import annotations

from ..units import CLAIM_US, LIMIT, NEVER, SWEEP_US, seconds
from .admission import Admission
from .arithmetic import saturated
from .commands import Peek
from .decision import InFlight, Reason, Snapshot
from .flow import clipped_at, flow_in_effect
from .line import LATE_US
from .readings import kept_back
from .state import Hold


def until(at: int, now: int) -> int:
    """Return the time from `now` to an instant; NEVER stays NEVER."""
    return NEVER if at >= NEVER else at - now


class Telling(Admission):
    """What a look at a bucket tells."""

    __slots__ = ()

    def _snapshot(self, command: Peek, reason: Reason, at: int) -> Snapshot:
        s, now = self.s, self.now
        by = at if reason in {Reason.GRANTED, Reason.TOO_LARGE} else self._granted_by(command)
        bound = min(by, max(self._probe_at(command.probe_after_us), s.paused_until or 0))
        full_at = NEVER if s.balance is None else self._reached(self.flow.capacity)
        return Snapshot(
            balance=s.balance,
            held=s.held,
            holds=s.open,
            retry_after=seconds(until(at, now)),
            full_in=seconds(until(full_at, now)),
            closed_for=seconds((s.closed_until or now) - now),
            bound=seconds(until(bound, now)),
            quota=s.quota,
            capacity=self.flow.capacity,
            refill=self.flow.refill,
            period=seconds(self.flow.period_us),
            paused_for=seconds((s.paused_until or now) - now),
            reading_age=None if s.reading_at is None else seconds(max(0, now - s.reading_at)),
            drift=s.drift,
            kept_back=kept_back(s, self.flow),
            waiting=len(s.line),
            wanted=sum(each.tokens for each in s.line),
            in_flight=tuple(
                InFlight(
                    id=hold_id,
                    tokens=hold.tokens,
                    label=hold.label,
                    age=seconds(max(0, now - hold.expires_at + hold.hold_for)),
                    runs_out_in=seconds(max(0, hold.expires_at - now)),
                )
                for hold_id, hold in self._holds_in_flight()
            ),
            repaired=self.repaired,
        )

    def _holds_in_flight(self) -> list[tuple[str, Hold]]:
        """Return the holds in flight that were read, in the order in which they run out."""
        holds = [(hold_id, hold) for hold_id, hold in self.s.holds.items() if hold.in_flight]
        holds.sort(key=lambda item: (item[1].expires_at, item[1].opened))
        return holds

    def _granted_by(self, command: Peek) -> int:
        """Return the instant by which one of the attempts is granted, if attempts go on.

        Calls in flight may cost all that they hold, and an attempt that fails may begin a recharge.
        """
        s = self.s
        wanted, _ = self._wanted(command.tokens, command.keep)
        latest = max(self._charged_all(wanted), s.paused_until or 0)
        if s.held + command.tokens >= LIMIT:
            latest = max(latest, *(each.expires_at + SWEEP_US for _, each in self._holds_in_flight()))
        if s.quota.recharge_to is None:
            return latest
        # A recharge, under way or begun meanwhile, has ended by then.
        end = self._charged_all(min(s.quota.recharge_to, self._lasting_capacity()))
        return max(latest, end) if end < NEVER else latest

    def _charged_all(self, wanted: int) -> int:
        """Return when `wanted` tokens are there if every call in flight runs out, and nobody else asks.

        Those in line come first, each at the latest that it may. The larger of two capacities is not counted on.
        """
        s, flow = self.s, self.flow
        if s.wide_capacity is not None:
            flow = flow_in_effect(s, clipped_at(s))
        balance, refilled_at, carry, start = s.balance, s.refilled_at, s.carry, self.now
        if balance is None:
            start = self.now + CLAIM_US if s.probe_until is None else s.probe_until
            balance, refilled_at, carry = 0, max(refilled_at, start), 0
        if s.quota.synced:
            for _, hold in self._holds_in_flight():
                start = max(hold.expires_at + SWEEP_US, s.due_at or 0)
                balance, refilled_at, carry = flow.refilled(balance, refilled_at, carry, start)
                balance = saturated(balance - hold.tokens)
        line = self._waited_for()
        if not line:
            return self._reached_from(balance, refilled_at, carry, wanted, start)
        if wanted > self._lasting_capacity():
            return NEVER
        start = max(start, s.paused_until or 0, *(each.told_at + LATE_US + 1 for each in line))
        balance, refilled_at, carry = flow.refilled(balance, refilled_at, carry, start)
        if s.wide_capacity is not None and not s.quota.synced:
            balance = min(balance, flow.capacity)
        if flow.stepped:
            # Of the step that brings what a ticket waits for, a part may run over the capacity and be lost.
            most = flow.capacity - flow.refill
            wanted += sum(max(0, self._wanted(each.tokens, each.keep)[0] - 1 - most) for each in line)
        need = saturated(wanted + sum(each.tokens for each in line) - balance)
        return max(start, flow.instant(need, refilled_at, carry)) + LATE_US
