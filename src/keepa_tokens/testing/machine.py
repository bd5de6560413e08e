"""A state machine that drives a plain bucket on any storage, beside `Reference`, and looks at both after each step.

Workers whose clocks differ by up to 5 s take, wait for places, hold, settle, cancel and give back; stored fields are
lost. What a synced bucket does with readings is not modelled: `programs` compare it with the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ..commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle
from ..quota import Quota
from ..state import Reason, Snapshot
from ..storage.base import Storage
from ..units import UNLIMITED
from .reference import END_OF_TIME, Answer, Reference
from .strategies import DAY, EPOCH, HOUR, MINUTE, SECOND, costs, gaps, hold_lives, ids, keeps, quotas

WORKERS: Final = 3
SKEWS: Final = st.integers(0, 5 * SECOND)
_CALLS: Final = st.sampled_from(("r", "s", "t"))
_PATIENCE: Final = st.none() | st.integers(0, HOUR)
_WORKER: Final = st.integers(0, WORKERS - 1)


@dataclass
class Bench:
    """A bucket's storage, and what reads and writes its stored fields, where there is such a thing."""

    storage: Storage
    key: str
    fields: Callable[[], Mapping[str, str]] | None = None
    store: Callable[[Mapping[str, str]], None] | None = None

    @property
    def may_be_damaged(self) -> bool:
        """Whether stored fields can be read and written."""
        return self.fields is not None and self.store is not None


class PlainMachine(RuleBasedStateMachine):
    """One plain bucket, on a storage and as the reference has it."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.now = EPOCH
        self.forward = 0
        self.forgiven = 0
        self.largest = 0

    @initialize(quota=quotas(synced=False), skews=st.tuples(*[SKEWS] * WORKERS))
    def begin(self, quota: Quota, skews: tuple[int, ...]) -> None:
        """Make a bucket."""
        self.quota, self.skews = quota, skews
        self.model = Reference.new(quota, self.at(0))
        self.start = self.model.balance
        self.apply(Acquire(0), 0)

    # --- what workers do

    @rule(gap=gaps)
    def time_passes(self, gap: int) -> None:
        """All clocks go on."""
        self.now += gap
        self.forward += gap

    @rule(worker=_WORKER, tokens=costs, keep=keeps)
    def take(self, worker: int, tokens: int, keep: int) -> None:
        """Take tokens now or not at all."""
        self.ask(worker, tokens, keep)

    @rule(worker=_WORKER, tokens=costs, patience=st.integers(0, HOUR))
    def queue(self, worker: int, tokens: int, patience: int) -> None:
        """Take tokens, or a place."""
        outcome = self.apply(Acquire(tokens, 0, patience), worker)
        self.agree(outcome, self.model.acquire(tokens, 0, self.at(worker), patience), tokens)

    @rule(worker=_WORKER, name=ids, tokens=costs, lives=hold_lives, keep=keeps, patience=_PATIENCE)
    def hold(self, worker: int, name: str, tokens: int, lives: int, keep: int, patience: int | None) -> None:
        """Set tokens aside for a call, which may be in flight already."""
        outcome = self.apply(Reserve(name, tokens, lives, keep, patience), worker)
        self.agree(outcome, self.model.reserve(name, tokens, lives, keep, self.at(worker), patience), tokens)

    @rule(worker=_WORKER, name=ids, actual=st.none() | costs)
    def settle(self, worker: int, name: str, actual: int | None) -> None:
        """End a call at what it cost, in time or late."""
        outcome = self.apply(Settle(name, actual), worker)
        assert outcome.found == self.model.settle(name, actual, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=_WORKER, name=ids)
    def cancel(self, worker: int, name: str) -> None:
        """Give a call up."""
        outcome = self.apply(Cancel(name), worker)
        assert outcome.found == self.model.cancel(name, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=_WORKER, name=_CALLS, tokens=costs, ago=st.integers(-SECOND, 11 * MINUTE))
    def give_back(self, worker: int, name: str, tokens: int, ago: int) -> None:
        """Give tokens back, once; perhaps long after they were offered first."""
        issued = self.at(worker) - ago
        outcome = self.apply(Refund(name, tokens, issued), worker)
        assert outcome.found == self.model.refund(name, tokens, issued, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=_WORKER, tokens=costs)
    def take_when_told(self, worker: int, tokens: int) -> None:
        """Exactness: who was refused and waits exactly as long as he was told is granted, a microsecond less is not."""
        answer = self.ask(worker, tokens, 0)
        if answer.granted or answer.wait > DAY:
            return
        # A look a microsecond early, not an attempt: it must not count as somebody else who asked.
        early = self.bench.storage.apply(
            self.bench.key, self.quota, Peek(tokens), now_us=self.at(worker) + answer.wait - 1
        )
        assert not early.granted
        self.time_passes(answer.wait)
        assert self.ask(worker, tokens, 0).granted

    # --- what goes wrong

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(
        worker=_WORKER, field=st.sampled_from(("balance", "refilled_at", "carry")), text=st.sampled_from((None, "NaN"))
    )
    def lose(self, worker: int, field: str, text: str | None) -> None:
        """A stored field is lost or garbled; the next step notices."""
        if self.bench.fields is None or self.bench.store is None:
            return
        fields = dict(self.bench.fields())
        fields.pop(field, None)
        self.bench.store(fields if text is None else fields | {field: text})
        now = self.at(worker)
        if field == "balance":
            self.forgiven += max(0, -self.model.balance)
            self.model.lose_balance(now)
        elif field == "refilled_at":
            self.model.lose_time(now)
        else:
            self.model.lose_part()
        outcome = self.apply(Acquire(0), worker)
        self.model.live_until(now)
        assert field in outcome.repaired
        self.is_as_modelled(outcome)

    # --- what always holds

    @invariant()
    def both_show_the_same(self) -> None:
        """Conservation: what is left and held is what there was and was minted, less what went out; by the fraction."""
        worker = 0
        shown = self.shown(worker)
        twin = self.model.alike()
        twin.live_until(self.at(worker))
        assert (shown.balance, shown.held) == (twin.balance, twin.held)
        in_flight = [call for call in twin.calls.values() if not call.charged]
        assert shown.holds == len(in_flight)

    @invariant()
    def nobody_got_too_much(self) -> None:
        """Safety: what went out in all is within what there was, what time brought, and the overdraft."""
        given = sum(event.given for event in self.model.events)
        passed = self.forward + 5 * SECOND
        steps = self.quota.stepped
        refill = (
            (passed // self.quota.period_us + 1) * self.quota.refill
            if steps
            else -(-passed * self.quota.refill // self.quota.period_us)
        )
        overdraft = self.largest if self.quota.overdraft == UNLIMITED else self.quota.overdraft
        # A place is taken now and paid for by the refill of up to an hour to come.
        ahead = HOUR * self.quota.refill // self.quota.period_us + (self.quota.refill if steps else 0)
        assert given <= self.start + refill + overdraft + self.forgiven + ahead

    @invariant()
    def it_never_stands_still(self) -> None:
        """Liveness: by the bound that a look states an attempt is granted, though others fail meanwhile."""
        shown = self.shown(0)
        if shown.bound > DAY / SECOND:
            return
        now = self.at(0)
        twin = self.model.alike()
        twin.acquire(1, 0, now, None)
        assert twin.acquire(1, 0, now + round(shown.bound * SECOND), None).granted or shown.retry_after == 0

    # --- helpers

    def at(self, worker: int) -> int:
        """Return a worker's time."""
        return self.now + self.skews[worker]

    def apply(self, command: Command, worker: int) -> Outcome:
        """Give a command by a worker's clock."""
        now = self.at(worker)
        outcome = self.bench.storage.apply(self.bench.key, self.quota, command, now_us=now)
        assert outcome.now_us == now
        return outcome

    def shown(self, worker: int) -> Snapshot:
        """Return a look at the bucket."""
        shown = self.bench.storage.inspect(self.bench.key, now_us=self.at(worker))
        assert shown is not None
        return shown

    def ask(self, worker: int, tokens: int, keep: int) -> Answer:
        """Take tokens on both sides, and return what both came to."""
        outcome = self.apply(Acquire(tokens, keep), worker)
        answer = self.model.acquire(tokens, keep, self.at(worker), None)
        self.agree(outcome, answer, tokens)
        return answer

    def agree(self, outcome: Outcome, answer: Answer, tokens: int) -> None:
        """Assert that a request came to the same on both sides."""
        assert (outcome.granted, outcome.reason) == (answer.granted, answer.reason)
        assert outcome.place_us == answer.place
        if answer.reason is not Reason.GRANTED:
            assert min(outcome.retry_after_us, END_OF_TIME) == answer.wait
        else:
            self.largest = max(self.largest, tokens)
        self.is_as_modelled(outcome)

    def is_as_modelled(self, outcome: Outcome) -> None:
        """Assert that the bucket is the same on both sides after a step."""
        assert outcome.balance == self.model.balance
        assert outcome.closed == (self.model.closed_until is not None)
