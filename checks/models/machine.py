"""A state machine that drives a plain bucket on any storage, beside `Reference`, and looks at both after each step.

Workers whose clocks differ by up to 5 s take, wait for places, stand in line, hold, settle, cancel and give back.
Stored fields are lost or garbled, and whole buckets; the storage is opened anew; all clocks are set. `reading_machine`
does the same to a bucket that follows a server, `synced_machine` plays that server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from checks.models.reference import CLOCKS_APART_US, END_OF_TIME, Answer, Reference, Waiting
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
    tickets,
)
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Pause, Peek, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Reason, Snapshot
from keepa_tokens.storage.base import Storage
from keepa_tokens.units import UNLIMITED

R = TypeVar("R", bound=Reference)

WORKERS: Final = 3
SKEWS: Final = st.tuples(*[st.integers(0, CLOCKS_APART_US)] * WORKERS)
workers: Final = st.integers(0, WORKERS - 1)
refund_ids: Final = st.sampled_from(("r", "s", "t"))
pauses: Final = st.sampled_from((0, SECOND, MINUTE, HOUR))
owns: Final = st.none() | st.integers(-MINUTE, MINUTE) | st.integers(-HOUR, HOUR)
"""From when the caller of what is given back might have gone, beside now."""

UNREADABLE: Final = ("", "NaN", "inf", "1e308", "1.5", "[]", "99999999999999999999")
PLAIN_LOST: Final[dict[str, tuple[str, int | None]]] = {
    "closed_until": ("closed_until", None),
    "paused_until": ("paused_until", None),
    "due_at": ("swept_from", None),
    "last_place": ("last_place", 0),
    "firm_place": ("firm_place", 0),
    "largest_place": ("largest_place", 0),
}
"""What the reference calls a field that stands for itself, and what it is when it is lost."""

PLAIN_FIELDS: Final = (
    *("balance", "refilled_at", "carry", "sequence", "held", "open", "version", "format"),
    *PLAIN_LOST,
)
"""What a plain bucket stores."""

damages: Final = st.none() | st.sampled_from(UNREADABLE)
"""What becomes of a stored field: gone, or no whole number."""

ALWAYS_STORED: Final = frozenset({"refilled_at"})
"""Fields that are missed when they are gone, on a bucket of any kind."""


@dataclass
class Bench:
    """A bucket's storage, and what else can be done to it.

    fields, store: read and write the bucket's stored fields. anew: open the storage anew, over what is stored; what
    that opened is closed by the next one, and by `end`. forget: take the bucket away. reads_all: as the kit has it.
    """

    storage: Storage
    key: str
    fields: Callable[[], Mapping[str, str]] | None = None
    store: Callable[[Mapping[str, str]], None] | None = None
    anew: Callable[[], Storage] | None = None
    end: Callable[[], None] | None = None
    forget: Callable[[], None] | None = None
    reads_all: bool = True

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
        self.model.look(self.at(worker))

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
        """Return a look at the bucket; of one that is not stored, or no more, at a new one."""
        shown = self.apply(Peek(), worker).snapshot
        assert shown is not None
        inspected = self.bench.storage.inspect(self.bench.key, now_us=self.at(worker))
        if inspected is None and self.model.begun:
            self.forgotten(self.model.seen(self.at(worker)))
        assert inspected in {None, replace(shown, repaired=())}
        self.model.look(self.at(worker))
        return shown

    def forgotten(self, model: R) -> None:
        """A bucket whose lifetime is over was no different from a new one."""
        raise NotImplementedError

    @rule(worker=workers, lasts=pauses)
    def pause(self, worker: int, lasts: int) -> None:
        """Somebody pauses the bucket for a while, or ends a pause."""
        self.apply(Pause(lasts), worker)
        self.model.pause(lasts, self.at(worker))

    @rule(worker=workers, name=tickets.filter(bool))
    def leave_the_line(self, worker: int, name: str) -> None:
        """Somebody who stands in line gives up."""
        self.cancel(worker, name)

    @rule(worker=workers)
    def come_when_told(self, worker: int) -> None:
        """A line makes nobody wait for ever: who comes when told is through by the bound that a look states.

        Unless the server is to be asked before.
        """
        begun = self.at(worker)
        bounds = {each.name: begun + self.bound(worker, each) for each in self.model.seen(begun).line}
        if max(bounds.values(), default=0) > begun + DAY:
            return
        while bounds:
            waiting = [each for each in self.model.line if each.name in bounds]
            next_one = min(waiting, key=lambda each: min(each.told, bounds[each.name]))
            self.time_passes(max(0, min(next_one.told, bounds[next_one.name]) - self.at(worker)))
            at_last = self.at(worker) >= bounds[next_one.name]
            granted, asks = self.try_again(worker, next_one)
            if asks:
                return
            assert granted or not at_last
            if granted:
                del bounds[next_one.name]

    @rule(worker=workers)
    def the_first_comes(self, worker: int) -> None:
        """Exactness: whom nobody is before is told when it is granted, and is, if no call is in flight."""
        line = self.model.seen(self.at(worker)).line
        if not line:
            return
        first = min(line, key=lambda each: each.turn)
        granted, asks = self.try_again(worker, first)
        told = [each.told for each in self.model.line if each.name == first.name]
        if granted or asks or not told or told[0] >= self.at(worker) + DAY or self.model.beside:
            return
        self.time_passes(told[0] - self.at(worker))
        granted, asks = self.try_again(worker, first)
        assert granted or asks

    def bound(self, worker: int, waiting: Waiting) -> int:
        """Return the bound that a look states for whoever stands in line."""
        shown = self.apply(Peek(waiting.tokens, waiting.keep), worker).snapshot
        assert shown is not None
        self.model.look(self.at(worker))
        return min(END_OF_TIME, round(shown.bound * SECOND)) if shown.bound < END_OF_TIME else END_OF_TIME

    def try_again(self, worker: int, waiting: Waiting) -> tuple[bool, bool]:
        """Let somebody who stands in line ask again; return whether it was granted, and whether it asks the server."""
        raise NotImplementedError

    def cancel(self, worker: int, name: str) -> None:
        """Give a call up, or a wait."""
        raise NotImplementedError

    @precondition(lambda self: self.bench.may_be_damaged and self.model.line)
    @rule(worker=workers, which=st.integers(0, 3), text=st.sampled_from(UNREADABLE))
    def lose_a_ticket(self, worker: int, which: int, text: str) -> None:
        """What is stored of one who stands in line is lost or garbled: the others stay."""
        stored = self.stored_line()
        name = stored.pop(which % len(stored)).split(":")[0]
        self.model.stay(each for each in self.model.line if each.name != name)
        outcome = self.lost("line", " ".join(filter(None, [*stored, text])), worker)
        assert not text or "line" in outcome.repaired

    @precondition(lambda self: self.bench.may_be_damaged and self.model.line)
    @rule(worker=workers, text=damages)
    def lose_the_line(self, worker: int, text: str | None) -> None:
        """The whole line is lost or garbled: nobody stands there."""
        self.model.stay([])
        outcome = self.lost("line", text, worker)
        assert not text or "line" in outcome.repaired

    def stored_line(self) -> list[str]:
        """Return what is stored of those in line."""
        return ({} if self.bench.fields is None else self.bench.fields()).get("line", "").split()

    def in_turn(self, outcome: Outcome, ahead: int, keep: int) -> None:
        """Assert that who was granted before others left their tokens. ahead: what those wait for."""
        if outcome.granted and ahead:
            left = (outcome.balance or 0) - (outcome.held if self.quota.synced else 0)
            assert left >= ahead + keep

    def lost(self, field: str, text: str | None, worker: int) -> Outcome:
        """Let a stored field be gone, or `text`, and take the next step on both sides."""
        self.bench.damage(field, text)
        outcome = self.apply(Acquire(0) if self.bench.reads_all else Peek(), worker)
        self.model.look(self.at(worker), mended=bool(outcome.repaired))
        return outcome

    def is_remembered(self) -> bool:
        """Whether anything that is stored tells of the order of calls."""
        fields = {} if self.bench.fields is None else self.bench.fields()
        named = any(name.startswith("hold:") or name == "reading_sequence" for name in fields)
        return named or bool(fields.get("line"))

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

    def forgotten(self, model: Reference) -> None:
        """What is full, and neither holds anything nor is paused, may be forgotten: it begins anew."""
        assert model.balance >= self.quota.capacity
        assert not model.held
        assert model.paused_until is None
        assert not model.line
        events = self.model.events
        self.model = Reference.new(self.quota, model.at)
        self.model.events = events

    # --- what workers do

    @rule(worker=workers, tokens=costs, keep=keeps, ticket=tickets)
    def take(self, worker: int, tokens: int, keep: int, ticket: str | None = None) -> None:
        """Take tokens now, or stand in line."""
        self.ask(worker, tokens, keep, ticket)

    @rule(worker=workers, tokens=costs, patience=st.integers(0, HOUR), ticket=tickets)
    def queue(self, worker: int, tokens: int, patience: int, ticket: str | None = None) -> None:
        """Take tokens, or a place, or stand in line."""
        outcome = self.apply(Acquire(tokens, 0, patience, ticket=ticket), worker)
        self.agree(outcome, self.model.acquire(tokens, 0, self.at(worker), patience, ticket), tokens)

    @rule(worker=workers, name=ids, tokens=costs, lives=hold_lives, keep=keeps, ticket=tickets)
    def hold(self, worker: int, name: str, tokens: int, lives: int, keep: int, ticket: str | None = None) -> None:
        """Take tokens for a call, which may be in flight already, or stand in line."""
        outcome = self.apply(Reserve(name, tokens, lives, keep, ticket=ticket), worker)
        self.agree(outcome, self.model.reserve(name, tokens, lives, keep, self.at(worker), ticket), tokens)

    @rule(worker=workers, name=ids, tokens=st.integers(0, 2), lives=st.integers(MINUTE, HOUR))
    def hold_little(self, worker: int, name: str, tokens: int, lives: int) -> None:
        """Take a few tokens for long, so that several calls are in flight at once."""
        self.hold(worker, name, tokens, lives, 0)

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

    @rule(worker=workers, name=refund_ids, tokens=costs, own=owns)
    def give_back(self, worker: int, name: str, tokens: int, own: int | None) -> None:
        """Give tokens back, once: a place that is given up, or a grant that was not used."""
        place = None if own is None else max(0, self.at(worker) + own)
        outcome = self.apply(Refund(name, tokens, place), worker)
        assert outcome.found == self.model.refund(name, tokens, place, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=workers, tokens=costs)
    def take_when_told(self, worker: int, tokens: int) -> None:
        """Exactness: who was refused and waits exactly as long as told is granted, a microsecond less is not.

        With others before it in line what is told is when to ask again.
        """
        answer = self.ask(worker, tokens, 0)
        if answer.reason not in {Reason.EMPTY, Reason.RECHARGING} or answer.wait > DAY:
            return
        if self.model.before(0, None, self.at(worker)):
            return
        # A look a microsecond early, not an attempt: it must not count as somebody else who asked.
        early = self.at(worker) + answer.wait - 1
        assert not self.bench.storage.apply(self.bench.key, self.quota, Peek(tokens), now_us=early).granted
        self.model.look(early)
        self.time_passes(answer.wait)
        assert self.ask(worker, tokens, 0).granted

    # --- what goes wrong

    @precondition(lambda self: self.bench.may_be_damaged and self.model.begun)
    @rule(worker=workers, field=st.sampled_from(PLAIN_FIELDS), text=damages)
    def lose(self, worker: int, field: str, text: str | None) -> None:
        """A stored field is lost or garbled; the next step notices."""
        now = self.at(worker)
        missed = text is not None or field in ALWAYS_STORED | {"balance"}
        missed |= field == "sequence" and self.is_remembered()
        if field == "balance":
            self.forgiven += max(0, -self.model.balance)
            self.model.lose_balance(now)
        elif field == "refilled_at":
            self.forward += CLOCKS_APART_US  # the time by which clocks differ may come again
            self.model.lose_time(now)
        elif field == "carry":
            self.model.lose_part()
        elif field in PLAIN_LOST:
            name, lost = PLAIN_LOST[field]
            setattr(self.model, name, lost)
        outcome = self.lost(field, text, worker)
        assert (field in outcome.repaired) == missed
        self.is_as_modelled(outcome)

    @precondition(lambda self: self.bench.may_be_damaged and self.model.begun)
    @rule(worker=workers, far=st.integers(CLOCKS_APART_US + 1, DAY))
    def reach_ahead(self, worker: int, far: int) -> None:
        """The instant of the last refill is stored too far ahead: it refills from when that is noticed."""
        now = self.at(worker)
        self.forward += CLOCKS_APART_US
        self.model.lose_time(now)
        self.model.tell_nearer(far, now)
        outcome = self.lost("refilled_at", str(now + far), worker)
        assert "refilled_at" in outcome.repaired
        self.is_as_modelled(outcome)

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(worker=workers, name=ids, text=damages)
    def lose_a_call(self, worker: int, name: str, text: str | None) -> None:
        """What is stored of a call is lost or garbled: nobody can end it."""
        if name not in self.model.calls:
            return
        self.model.lose_call(name)
        outcome = self.lost(f"hold:{name}", text, worker)
        assert (f"hold:{name}" in outcome.repaired) == (text is not None)
        self.is_as_modelled(outcome)

    # --- what always holds

    @invariant()
    def both_show_the_same(self) -> None:
        """Conservation: what is left and held is what there was and flowed in, less what went out; by the fraction."""
        shown, twin = self.shown(0), self.model.seen(self.at(0))
        assert (shown.balance, shown.held) == (twin.balance, twin.held)
        assert shown.holds == sum(not call.charged for call in twin.calls.values())
        assert shown.paused_for == ((twin.paused_until or self.at(0)) - self.at(0)) / SECOND
        assert (shown.waiting, shown.wanted) == (len(twin.line), sum(each.tokens for each in twin.line))

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

    def ask(self, worker: int, tokens: int, keep: int, ticket: str | None = None) -> Answer:
        """Take tokens on both sides, and return what both came to."""
        ahead = self.model.seen(self.at(worker)).before(keep, ticket, self.at(worker)) if tokens else 0
        outcome = self.apply(Acquire(tokens, keep, ticket=ticket), worker)
        answer = self.model.acquire(tokens, keep, self.at(worker), None, ticket)
        self.agree(outcome, answer, tokens)
        self.in_turn(outcome, ahead, keep)
        return answer

    def try_again(self, worker: int, waiting: Waiting) -> tuple[bool, bool]:
        """Ask again; there is no server to be asked."""
        return self.ask(worker, waiting.tokens, waiting.keep, waiting.name).granted, False

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
        twin = self.model.after
        assert twin is not None
        assert (outcome.balance, outcome.held) == (twin.balance, twin.held)
        assert outcome.closed == (twin.closed_until is not None)
