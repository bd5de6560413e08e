"""The most that a bucket may have: an independent count of what the promise allows. Pure.

The library keeps a bucket's balance; this keeps an upper bound of it from the log alone. Where the log doesn't say when
something happened, or whether, the bound takes what allows more: what was taken counts at the earliest, what was given
back at the latest, and in between both are allowed for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from keepa_tokens import Quota


@dataclass(frozen=True, slots=True)
class Hold:
    """Tokens of a call. Synced: set aside until it ends; ran_out: they were charged, and may yet be given back.

    On a plain bucket they are taken at once, and running out changes nothing.
    seen_at: when it surely was there. doubtful: that was while the state was being lost, before or after it; the ledger
    goes on without it. spilled: what the ledger had spilled at `seen_at`.
    """

    tokens: int
    expires_at: int
    seen_at: int
    ran_out: bool = False
    doubtful: bool = False
    spilled: int = 0


@dataclass(slots=True)
class Ledger:
    """One bucket, from the beginning of a life or its last reading on.

    level: its balance at `at`, in tokens times the period in microseconds, so that all is whole; None: not known yet.
    starts_at: when a failed probe lets an unknown one start from 0. next_step: of a stepped refill; in_phase: whether
    it is known. adopted_at: when it took its last reading; server_time: of the newest one. lost_since: it may be
    lost at any moment since then. allowed: what may be there besides, each up to an instant. readings: balances that it
    may take up to an instant.
    """

    quota: Quota
    at: int
    level: int | None = None
    starts_at: int | None = None
    next_step: int = 0
    in_phase: bool = True
    adopted_at: int = 0
    server_time: float = 0
    lost_since: int | None = None
    holds: dict[str, Hold] = field(default_factory=dict[str, Hold])
    allowed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    readings: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    spilled: int = 0

    def restart(self) -> None:
        """Become the ledger of a bucket that was lost or never seen: with what its quota starts with."""
        starts = self.quota.starts_at
        self.level = None if starts is None else starts * self.quota.period_us
        self.server_time = 0
        self.next_step = self.at + self.quota.period_us

    def copy(self) -> Ledger:
        """Return another one, to look ahead with."""
        return replace(self, holds=dict(self.holds), allowed=list(self.allowed), readings=list(self.readings))

    def advance(self, to: int) -> None:
        """Let time pass: refill, and charge each hold that runs out at its own instant."""
        running = [(hold.expires_at, name) for name, hold in self.holds.items() if not hold.ran_out]
        for at, name in sorted(running):
            if at > to:
                break
            self._flow(at)
            hold = self.holds[name]
            self.holds[name] = replace(hold, ran_out=True)
            if self.quota.synced:
                self._add(-hold.tokens)
        self._flow(to)
        self.allowed = [(until, tokens) for until, tokens in self.allowed if until >= to]
        for _, balance in self.readings:
            self._may_be(balance)
        self.readings = [(until, balance) for until, balance in self.readings if until > to]

    def room(self) -> int:
        """Return the most tokens that may be available, rounded down; far below 0 while nothing is known."""
        if self.level is None:
            return -(2**52)
        in_flight = sum(hold.tokens for hold in self.holds.values() if not hold.ran_out) if self.quota.synced else 0
        allowed = sum(tokens for _, tokens in self.allowed)
        step = 0 if self.in_phase else self.quota.refill
        return self.level // self.quota.period_us - in_flight + allowed + step

    def take(self, tokens: int) -> None:
        """Take tokens for good."""
        self._add(-tokens)

    def give(self, tokens: int) -> None:
        """Give tokens back that were taken for good: up to capacity."""
        self._give(tokens * self.quota.period_us)

    def lose(self, begin: int, starts_at: int | None = None) -> None:
        """Become a new bucket, lost at some moment since `begin`: what was told since then may be of either.

        So a reading stays, and holds that were seen on a plain bucket may be there.
        """
        if self.quota.starts_at is not None or self.adopted_at < begin:
            self.restart()
            self.starts_at = starts_at
        self.lost_since = None
        self.holds = {
            # Full again from here on, where the bucket may still be refilling: that much has been spilled already.
            name: replace(hold, doubtful=True, spilled=self.spilled - (self.at - hold.seen_at) * self.quota.refill)
            for name, hold in self.holds.items()
            if not self.quota.synced and hold.seen_at >= begin
        }

    def open(self, name: str, tokens: int, expires_at: int) -> None:
        """Set tokens aside (synced) or take them (plain); a hold that is there already stays as it is."""
        if name in self.holds:
            return
        self.holds[name] = Hold(tokens, expires_at, self.at)
        if not self.quota.synced:
            self.take(tokens)

    def see(self, name: str) -> None:
        """Know that a hold is there."""
        if name in self.holds:
            self.holds[name] = replace(self.holds[name], seen_at=self.at)

    def end(self, name: str, cost: int) -> None:
        """End a hold at what it cost; what was charged or taken already corrects by the difference."""
        hold = self.holds.pop(name, None)
        if hold is None:
            return
        if hold.doubtful:
            # If it was opened in the life that goes on, the bucket had room for what this ledger spilled since.
            spilled = min((hold.tokens - cost) * self.quota.period_us, max(0, self.spilled - hold.spilled))
            self.spilled -= spilled
            self._give(spilled)
        elif self.quota.synced:
            self._add(hold.tokens - cost if hold.ran_out else -cost)
        elif cost < hold.tokens:
            self.give(hold.tokens - cost)
        else:
            self.take(cost - hold.tokens)

    def adopt(self, balance: int, next_refill_in: int | None, server_time: float = 0) -> None:
        """Take a reading: it replaces the balance, and what was charged before is in it.

        One that is no newer than the last may only lower the balance: then the phase stays that of the last one.
        """
        period, before = self.quota.period_us, self.next_step if 0 < server_time <= self.server_time else None
        self.level, self.adopted_at, self.starts_at = balance * period, self.at, None
        # A charge that a reading has replaced is not given back.
        self.holds = {name: hold for name, hold in self.holds.items() if not hold.ran_out}
        self.next_step = self.at + min(period if next_refill_in is None else next_refill_in, period)
        if before is not None:
            self.next_step = min(self.next_step, before)
        self.server_time = max(self.server_time, server_time)
        self.in_phase = not self.readings

    def may_adopt(self, balance: int, until: int) -> None:
        """Allow for a reading that may be taken at any moment up to `until`, and for the phase that it would bring."""
        self.readings.append((until, balance))
        self.in_phase = False
        self._may_be(balance)

    def allow(self, until: int, tokens: int) -> None:
        """Allow for tokens that may be there, up to `until`."""
        self.allowed.append((until, tokens))

    def _add(self, tokens: int) -> None:
        if self.level is not None:
            self.level += tokens * self.quota.period_us

    def _may_be(self, balance: int) -> None:
        level = balance * self.quota.period_us
        self.level, self.starts_at = level if self.level is None else max(self.level, level), None

    def _flow(self, to: int) -> None:
        if self.level is None and self.starts_at is not None and to >= self.starts_at:
            self.level, self.at, self.next_step = 0, self.starts_at, self.starts_at + self.quota.period_us
        passed = max(0, to - self.at)
        self.at = max(self.at, to)
        if not self.quota.stepped:
            self._give(passed * self.quota.refill)
            return
        if to >= self.next_step:
            steps = (to - self.next_step) // self.quota.period_us + 1
            self.next_step += steps * self.quota.period_us
            self._give(steps * self.quota.refill * self.quota.period_us)

    def _give(self, amount: int) -> None:
        if self.level is not None:
            before, full = self.level, self.quota.capacity * self.quota.period_us
            self.level = max(before, min(full, before + amount))
            self.spilled += before + amount - self.level
