"""Whether a request is admitted, or when to ask again: the part of rules 4, 5, 8 and 11 that changes nothing."""

from __future__ import annotations

from ..quota import Quota
from ..units import DAY_US, LIMIT, LOOK_AGAIN_US, MAX_BACKOFF_US, MINUTE_US, NEVER
from .arithmetic import required, saturated, set_aside
from .decision import Reason
from .flow import clipped_at, flow_in_effect
from .line import LATE_US, Ticket, ahead_of, wanted_by
from .state import SoundState


class Admission:
    """A sound bucket at one moment, as a request finds it.

    flow: the refill in effect. terms_from: when the caller's own terms may replace those that it is served by.
    repaired: the names of mended fields.
    """

    __slots__ = ("flow", "now", "repaired", "s", "terms_from")

    def __init__(self, callers: Quota, sound: SoundState, now: int, repaired: tuple[str, ...]) -> None:
        self.s = sound
        self.now = now
        self.repaired = repaired
        self.flow = flow_in_effect(sound, sound.refilled_at)
        since = None if callers == sound.quota else sound.terms_at
        self.terms_from = now if since is None else since + MINUTE_US

    def _judge(self, tokens: int, keep: int, ticket: str | None = None, arrived: int = LIMIT) -> tuple[Reason, int]:
        """Return whether `tokens` are admitted now, or why not, and the instant at which to ask again.

        ticket: the id by which the caller stands in line, or would. arrived: its number there, if it doesn't stand now.
        """
        s = self.s
        if tokens == 0:
            return Reason.GRANTED, self.now
        reason, at = self._judge_unpaused(tokens, keep, ticket, arrived)
        if s.paused_until is not None:
            return Reason.PAUSED, max(s.paused_until, at)
        return reason, at

    def _judge_unpaused(self, tokens: int, keep: int, ticket: str | None, arrived: int) -> tuple[Reason, int]:
        s = self.s
        if s.balance is None:
            # When the claim has ended unanswered, it counts from 0.
            return Reason.UNKNOWN, min(self.now + LOOK_AGAIN_US, s.probe_until or NEVER)
        if s.held + tokens >= LIMIT:
            # These tokens and those held can't be counted exactly together until a call in flight has ended.
            return Reason.IN_FLIGHT, self._soon()
        wanted, aside = self._wanted(tokens, keep)
        in_flight, before = self._in_flight(), self._before(keep, ticket, arrived)
        ahead = wanted_by(before)
        available = s.balance - in_flight
        reached = self._reached(wanted)
        # 13: more than the smaller capacity is too large as well, if it isn't there before that capacity bounds.
        never = wanted > self.flow.capacity or (wanted > self._lasting_capacity() and reached == NEVER)
        if available < wanted and never:
            # While it is served by others' terms, the caller's own may still admit it.
            return Reason.TOO_LARGE, self.terms_from if self.terms_from > self.now else NEVER
        # 11: told is when the refill, capacity aside, has also brought what is ahead and what calls in flight hold.
        stands = ahead or ticket is not None
        need, at = saturated(wanted + ahead - available), reached
        if stands:
            at = self.flow.instant(need, s.refilled_at, s.carry) if need > 0 else self.now
        if ahead:
            # In a day those before it have come, or have lapsed.
            at = min(at, max(reached, self.now + DAY_US))
        closed_until = self._recharge_ends_at(tokens, keep)
        if closed_until is not None:
            return Reason.RECHARGING, max(closed_until, at)
        others = in_flight or ahead
        if available - ahead >= (tokens + aside if others else wanted):
            return Reason.GRANTED, self.now
        if in_flight and s.balance - ahead >= wanted:
            return Reason.IN_FLIGHT, at if self.now < at < NEVER and self._early(ticket) else self._soon()
        if at <= self.now and before:
            # Those before it may be told later: by then they have come, or are late, unless there is enough for all.
            late_at = min(each.told_at for each in before) + LATE_US + 1
            beside = self.flow.instant(saturated(tokens + aside + ahead - available), s.refilled_at, s.carry)
            at = min(late_at, beside)
        return Reason.EMPTY, at

    def _wanted(self, tokens: int, keep: int) -> tuple[int, int]:
        """Return what must be available for a request, and the part of that which it leaves to others.

        It goes by the capacity that lasts, so that waiting doesn't change it.
        """
        alone = required(tokens, self.s.quota.overdraft)
        aside = set_aside(keep, self.s.kept_back, self._lasting_capacity(), alone)
        return alone + aside, aside

    def _before(self, keep: int, ticket: str | None, arrived: int = LIMIT) -> list[Ticket]:
        """Return those who are before a request in line; arrived: its number, if it doesn't stand there."""
        line = self.s.line
        if not line:
            return line
        rank = next((each.rank for each in line if each.id == ticket), (keep, arrived))
        return ahead_of(self._waited_for(), rank, self.now)

    def _waited_for(self) -> list[Ticket]:
        """Return the tickets that others wait for; not those of more than can be admitted (garbled, of other terms)."""
        most, overdraft = self.flow.capacity, self.s.quota.overdraft
        return [each for each in self.s.line if required(each.tokens, overdraft) + each.keep <= most]

    def _soon(self) -> int:
        """Return when to ask again behind calls in flight: a settle may free tokens any moment, or a hold runs out."""
        return min(self.now + LOOK_AGAIN_US, self.s.due_at or NEVER)

    def _early(self, ticket: str | None) -> bool:
        """Return whether the caller stands in line and asks before the instant that it was told."""
        return any(each.id == ticket and each.told_at > self.now for each in self.s.line)

    def _in_flight(self) -> int:
        """Return the tokens that are set aside beside the balance; a plain bucket has taken them already."""
        return self.s.held if self.s.quota.synced else 0

    def _reached(self, wanted: int) -> int:
        """Return the first instant from now on at which the balance has refilled to `wanted`; NEVER if none."""
        return self._reached_from(self.s.balance or 0, self.s.refilled_at, self.s.carry, wanted, self.now)

    def _reached_from(self, balance: int, refilled_at: int, carry: int, wanted: int, start: int) -> int:
        if balance >= wanted:
            return start
        if wanted > self.flow.capacity:
            return NEVER
        at = max(start, self.flow.instant(wanted - balance, refilled_at, carry))
        return at if wanted <= self._lasting_capacity() or at < clipped_at(self.s) else NEVER

    def _lasting_capacity(self) -> int:
        """Return the capacity in effect, without the larger one that bounds for a minute only."""
        s = self.s
        return self.flow.capacity if s.wide_capacity is None else flow_in_effect(s, clipped_at(s)).capacity

    def _recharged_at(self) -> int:
        s = self.s
        if s.balance is None:
            return NEVER
        lacking = min(s.quota.recharge_to or 0, self._lasting_capacity()) - (s.balance - self._in_flight())
        return self.now if lacking <= 0 else max(self.now, self.flow.instant(lacking, s.refilled_at, s.carry))

    def _recharge_ends_at(self, tokens: int, keep: int) -> int | None:
        """Return the end of the recharge that a request for `tokens` finds, or begins; None: the bucket is open."""
        s = self.s
        if s.quota.recharge_to is None or s.balance is None:
            return None
        lacking = required(tokens, s.quota.overdraft)
        enough = tokens == 0 or s.balance - self._in_flight() >= lacking
        if s.closed_until is not None or enough or lacking + keep > self._lasting_capacity():
            return s.closed_until
        end = self._recharged_at()
        return end if self.now < end < NEVER else None

    def _probe_at(self, probe_after_us: int | None) -> int:
        """Return the first instant at which a refusal gets the claim on the probe."""
        s = self.s
        if probe_after_us is None or not s.quota.synced:
            return NEVER
        at = self.now
        if s.balance is not None and s.reading_at is not None:
            at = max(at, s.reading_at + probe_after_us)
        if s.probe_until is None:
            return at
        return max(at, s.probe_until + min(probe_after_us << s.probe_failures, max(probe_after_us, MAX_BACKOFF_US)))
