"""A state machine that drives a plain bucket on any storage, beside `Reference`, and looks at both after each step.

Workers whose clocks differ by up to 5 s take, wait for places, hold, settle, cancel and give back. Stored fields are
lost or garbled, and whole buckets; the storage is opened anew; all clocks are set. `reading_machine` does the same to
a bucket that follows a server, `synced_machine` plays that server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from checks.models.reference import CLOCKS_APART_US, END_OF_TIME, Answer, Reference
from checks.models.strategies import (
    DAY,
    EPOCH,
    HOUR,
    MINUTE,
    SECOND,
    costs,
    gaps,
    hold_lives,
    ids,
    keeps,
    quotas,
)
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Reason, Snapshot
from keepa_tokens.storage.base import Storage
from keepa_tokens.units import UNLIMITED

R = TypeVar("R", bound=Reference)

WORKERS: Final = 3
SKEWS: Final = st.tuples(*[st.integers(0, CLOCKS_APART_US)] * WORKERS)
workers: Final = st.integers(0, WORKERS - 1)
refund_ids: Final = st.sampled_from(("r", "s", "t"))
_PATIENCE: Final = st.none() | st.integers(0, HOUR)

UNREADABLE: Final = ("", "NaN", "inf", "1e308", "1.5", "[]", "99999999999999999999")
damages: Final = st.none() | st.sampled_from(UNREADABLE)
"""What becomes of a stored field: gone, or no whole number."""

ALWAYS_STORED: Final = frozenset({"format", "refilled_at", "carry", "sequence", "probe_failures"})
"""Fields that are missed when they are gone, on a bucket of any kind."""


@dataclass
class Bench:
    """A bucket's storage, and what else can be done to it.

    fields, store: read and write the bucket's stored fields. anew: open the storage anew, over what is stored; what
    that opened is closed by the next one, and by `end`. forget: take the bucket away.
    """

    storage: Storage
    key: str
    fields: Callable[[], Mapping[str, str]] | None = None
    store: Callable[[Mapping[str, str]], None] | None = None
    anew: Callable[[], Storage] | None = None
    end: Callable[[], None] | None = None
    forget: Callable[[], None] | None = None

    @property
    def may_be_damaged(self) -> bool:
        """Whether stored fields can be read and written."""
        return self.fields is not None and self.store is not None

    def damage(self, field: str, text: str | None) -> None:
        """Take a stored field away, or put a text in its place."""
        if self.fields is None or self.store is None:
            return
        fields = {name: stored for name, stored in self.fields().items() if name != field}
        self.store(fields if text is None else fields | {field: text})


class BucketMachine(RuleBasedStateMachine, Generic[R]):
    """What buckets of both kinds go through: time, clocks that are set, storages opened anew."""

    model: R
    quota: Quota
    skews: tuple[int, ...]

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.now = EPOCH
        self.forward: int = 0
        self.forgiven: int = 0
        self.largest: int = 0

    @rule(gap=gaps)
    def time_passes(self, gap: int) -> None:
        """All clocks go on."""
        self.now += gap
        self.forward += gap

    @rule(by=st.integers(-CLOCKS_APART_US, -1) | st.integers(-DAY, DAY))
    def clocks_are_set(self, by: int) -> None:
        """All clocks are set, back or forward; what refills is the time by which they go forward."""
        self.now += by
        # Set back, each worker's clock may bring once more the time by which it is ahead of the others'.
        self.forward += by if by > 0 else CLOCKS_APART_US

    @precondition(lambda self: self.bench.anew is not None)
    @rule()
    def begin_anew(self) -> None:
        """All workers end, and others begin: what they know is what is stored."""
        if self.bench.anew is not None:
            self.bench.storage = self.bench.anew()

    def teardown(self) -> None:
        """Close what was opened on the way."""
        if self.bench.end is not None:
            self.bench.end()

    @precondition(lambda self: self.bench.forget is not None)
    @rule(worker=workers)
    def lose_everything(self, worker: int) -> None:
        """The whole bucket is lost: the next step makes a new one."""
        if self.bench.forget is not None:
            self.bench.forget()
            self.start_over(worker)

    def start_over(self, worker: int) -> None:
        """Begin with a bucket never seen, on both sides."""
        self.forward = self.forgiven = self.largest = 0
        self.model = type(self.model).new(self.quota, self.at(worker))
        self.apply(Acquire(0), worker)

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

    def refilled(self, refill: int, period_us: int) -> int:
        """Return what has flowed in at most, by the time by which the bucket's clock went forward."""
        passed = self.forward + CLOCKS_APART_US
        return (passed // period_us + 1) * refill if self.quota.stepped else -(-passed * refill // period_us)

    @property
    def overdraft(self) -> int:
        """How far below zero grants may have gone."""
        return self.largest if self.quota.overdraft == UNLIMITED else self.quota.overdraft


class PlainMachine(BucketMachine[Reference]):
    """One plain bucket, on a storage and as the reference has it."""

    @initialize(quota=quotas(synced=False), skews=SKEWS)
    def begin(self, quota: Quota, skews: tuple[int, ...]) -> None:
        """Make a bucket."""
        self.quota, self.skews = quota, skews
        self.model = Reference.new(quota, self.at(0))
        self.start_over(0)

    def start_over(self, worker: int) -> None:
        """Begin with a bucket never seen: one `initial`."""
        super().start_over(worker)
        self.start = self.model.balance

    # --- what workers do

    @rule(worker=workers, tokens=costs, keep=keeps)
    def take(self, worker: int, tokens: int, keep: int) -> None:
        """Take tokens now or not at all."""
        self.ask(worker, tokens, keep)

    @rule(worker=workers, tokens=costs, patience=st.integers(0, HOUR))
    def queue(self, worker: int, tokens: int, patience: int) -> None:
        """Take tokens, or a place."""
        outcome = self.apply(Acquire(tokens, 0, patience), worker)
        self.agree(outcome, self.model.acquire(tokens, 0, self.at(worker), patience), tokens)

    @rule(worker=workers, name=ids, tokens=costs, lives=hold_lives, keep=keeps, patience=_PATIENCE)
    def hold(self, worker: int, name: str, tokens: int, lives: int, keep: int, patience: int | None) -> None:
        """Set tokens aside for a call, which may be in flight already."""
        outcome = self.apply(Reserve(name, tokens, lives, keep, patience), worker)
        self.agree(outcome, self.model.reserve(name, tokens, lives, keep, self.at(worker), patience), tokens)

    @rule(worker=workers, name=ids, tokens=st.integers(0, 2), lives=st.integers(MINUTE, HOUR))
    def hold_little(self, worker: int, name: str, tokens: int, lives: int) -> None:
        """Set a few tokens aside for long, so that several calls are in flight at once."""
        self.hold(worker, name, tokens, lives, 0, None)

    @rule(worker=workers, name=ids, actual=st.none() | costs)
    def settle(self, worker: int, name: str, actual: int | None) -> None:
        """End a call at what it cost, in time or late."""
        outcome = self.apply(Settle(name, actual), worker)
        assert outcome.found == self.model.settle(name, actual, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=workers, name=ids)
    def cancel(self, worker: int, name: str) -> None:
        """Give a call up."""
        outcome = self.apply(Cancel(name), worker)
        assert outcome.found == self.model.cancel(name, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=workers, name=refund_ids, tokens=costs, ago=st.integers(-SECOND, 11 * MINUTE))
    def give_back(self, worker: int, name: str, tokens: int, ago: int) -> None:
        """Give tokens back, once; perhaps long after they were offered first."""
        issued = self.at(worker) - ago
        outcome = self.apply(Refund(name, tokens, issued), worker)
        assert outcome.found == self.model.refund(name, tokens, issued, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=workers, tokens=costs)
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
        worker=workers,
        field=st.sampled_from(
            ("balance", "refilled_at", "carry", "closed_until", "sequence", "carry_refill", "carry_period_us", "format")
        ),
        text=damages,
    )
    def lose(self, worker: int, field: str, text: str | None) -> None:
        """A stored field is lost or garbled; the next step notices."""
        now = self.at(worker)
        self.bench.damage(field, text)
        if field == "balance":
            self.forgiven += max(0, -self.model.balance)
            self.model.lose_balance(now)
        elif field == "refilled_at":
            self.forward += CLOCKS_APART_US  # the time by which clocks differ may come again
            self.model.lose_time(now)
        elif field == "carry":
            self.model.lose_part()
        elif field == "closed_until":
            self.model.closed_until = None
        outcome = self.apply(Acquire(0), worker)
        self.model.live_until(now)
        assert (field in outcome.repaired) == (text is not None or field in ALWAYS_STORED | {"balance"})
        self.is_as_modelled(outcome)

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(worker=workers, far=st.integers(CLOCKS_APART_US + 1, DAY))
    def reach_ahead(self, worker: int, far: int) -> None:
        """The instant of the last refill is stored too far ahead: it refills from when that is noticed."""
        now = self.at(worker)
        self.bench.damage("refilled_at", str(now + far))
        self.forward += CLOCKS_APART_US
        self.model.lose_time(now)
        outcome = self.apply(Acquire(0), worker)
        self.model.live_until(now)
        assert "refilled_at" in outcome.repaired
        self.is_as_modelled(outcome)

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(worker=workers, name=ids, text=damages)
    def lose_a_call(self, worker: int, name: str, text: str | None) -> None:
        """What is stored of a call is lost or garbled: its tokens are free again."""
        if name not in self.model.calls:
            return
        self.bench.damage(f"hold:{name}", text)
        self.model.lose_call(name)
        outcome = self.apply(Acquire(0), worker)
        self.model.live_until(self.at(worker))
        assert (f"hold:{name}" in outcome.repaired) == (text is not None)
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
        steps = self.quota.stepped
        # A place is taken now and paid for by the refill of up to an hour to come.
        ahead = HOUR * self.quota.refill // self.quota.period_us + (self.quota.refill if steps else 0)
        refilled = self.refilled(self.quota.refill, self.quota.period_us)
        assert given <= self.start + refilled + self.overdraft + self.forgiven + ahead

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
