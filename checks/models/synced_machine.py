"""A state machine that drives a synced bucket beside the server that owns the tokens, and compares them at each step.

What the server demands knows nothing of the bucket's rules. The machine plays the server, the calls on their way to it,
their answers on the way back, in any order or lost, those who wait in line for their turn, and whoever else spends;
what must hold is said of the two balances. Beside that the bucket is as its reference, as in `machine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from checks.models.lapse import Waiting
from checks.models.machine import Bench, BucketMachine
from checks.models.reference import Came
from checks.models.strategies import DAY, EPOCH, HOUR, MINUTE, SECOND
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Reconcile, Reserve, Settle, Verdict
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import LINE, NUMBERS
from keepa_tokens.units import MICROSECONDS, REORDER_US, UNLIMITED

HOLD_FOR: Final = 2 * MINUTE
"""How long a call may be on its way; one that takes longer never arrives."""

PLANS: Final = (0, 5, 20)
"""Tokens a minute; the capacity is 60 times that, and stays when a plan is gone."""

FIELDS: Final = (*(name for name in NUMBERS if name != "format"), LINE, "hold:")
"""What may be lost; a name with a colon is the beginning of several."""

LATER: Final = str(EPOCH + 400 * DAY)
"""An instant that is far ahead in every run."""

gaps: Final = st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 3 * MINUTE), st.sampled_from((MINUTE, HOUR, DAY)))
amounts: Final = st.one_of(st.integers(1, 12), st.integers(1, 400))
tasks: Final = st.sampled_from(("task-1", "task-2", "task-3", "task-4"))
"""Who stands in line."""


@dataclass
class Call:
    """A call that was let through; without a name somebody's look at the server.

    known_of: the last thing that a bucket didn't know of, if it knew all when it granted this; else -1. said: the
    server's answer, once the call has arrived there, after so many of its doings (`number`). ended: it was settled.
    """

    name: str = ""
    cost: int = 0
    expires_at: int = 0
    known_of: int = -1
    said: Reading | None = None
    number: int = 0
    refused: bool = False
    ended: bool = False


class SyncedMachine(BucketMachine):
    """One synced bucket on a storage, and the server that it follows; all share one clock, as on a server's own time.

    sure: whether the bucket was told all that it could know: a reading was taken that the server gave after whatever
    it didn't know of (somebody else's spending, another plan, damage). newest: the last word that was taken, and when.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.calls: list[Call] = []
        self.answers: list[Call] = []
        self.names = 0
        self.doings = 0
        self.sure = False
        self.unknown_of = 0
        self.newest = (0, 0)

    @initialize(rate=st.sampled_from(PLANS[1:]), balance=st.integers(-200, 300), phase=st.integers(1, MINUTE))
    def begin(self, rate: int, balance: int, phase: int) -> None:
        """Buy a plan, of which some was used before."""
        self.rate, self.capacity, self.balance = rate, 60 * rate, balance
        self.next_step = self.now + phase
        quota = Quota(60 * rate, rate, 60.0, stepped=True, synced=True, overdraft=UNLIMITED)
        self.begin_with(quota, (0, 0, 0))

    # --- the server

    def flow(self) -> None:
        """Let the server refill, step by step."""
        while self.next_step <= self.now:
            missed = (self.now - self.next_step) // MINUTE
            steps = 1 if missed < self.capacity else missed
            self.balance = max(self.balance, min(self.capacity, self.balance + steps * self.rate))
            self.next_step += steps * MINUTE

    def speak(self, call: Call) -> Reading:
        """Let the server answer, in a moment of its own."""
        self.time_passes(1)
        self.doings += 1
        call.number = self.doings
        call.said = Reading(
            self.balance,
            next_refill_in=(self.next_step - self.now) / MICROSECONDS,
            refill=self.rate,
            period=60.0,
            capacity=self.capacity,
            server_time=self.now / MICROSECONDS,
        )
        self.answers.append(call)
        return call.said

    def hide(self) -> None:
        """Note that the server did something of which the bucket can't know yet."""
        self.doings += 1
        self.unknown_of, self.sure = self.doings, False

    # --- what workers do

    @rule(gap=gaps)
    def time_passes(self, gap: int) -> None:
        """Time goes on, here and there. A call that isn't there by the end of its hold never arrives."""
        super().time_passes(gap)
        self.flow()

    @rule(tokens=amounts, cheaper=st.integers(0, 5), scout=st.booleans(), task=st.none() | tasks)
    def call(self, tokens: int, cheaper: int, scout: bool = False, task: str | None = None) -> None:  # noqa: FBT001, FBT002 - drawn
        """Set tokens aside for a call. A refused task stands in line, and keeps its place when it asks again."""
        self.request(tokens, cheaper, task, scout=scout)

    def request(self, tokens: int, cheaper: int = 0, task: str | None = None, *, scout: bool = False) -> Came:
        """Set tokens aside for a call, which is on its way if that was granted. It may cost less."""
        self.names += 1
        name, before = f"call-{self.names}", self.shown(0)
        came = self.do(0, Reserve(name, tokens, HOLD_FOR, scout=scout, ticket=task))
        if came.granted:
            # More than there is only alone: calls may overtake each other.
            assert came.scout or (before.available or 0) >= (tokens if before.holds else 1)
            known_of = self.unknown_of if self.sure else -1
            self.calls.append(Call(name, max(0, tokens - cheaper), self.now + HOLD_FOR, known_of))
        return came

    def try_again(self, worker: int, waiting: Waiting) -> Came:  # noqa: ARG002 - all share one clock
        """Let a task that stands in line come again."""
        return self.request(waiting.tokens, task=waiting.name)

    @rule(task=tasks)
    def leave_the_line(self, task: str) -> None:
        """Somebody doesn't wait any longer."""
        self.do(0, Cancel(task))

    @precondition(lambda self: self.on_the_way())
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A call arrives, and is answered: charged, or refused for nothing where there is no token."""
        self.serve(data.draw(st.sampled_from(self.on_the_way())))

    def serve(self, call: Call) -> None:
        """Let the server charge a call, or refuse it, and say so."""
        self.flow()
        call.refused = self.balance <= 0
        # Safety: a call is never refused if the bucket that granted it knew all there is to know.
        assert not (call.refused and call.known_of == self.unknown_of), f"{call} was refused at {self.balance}"
        call.cost = 0 if call.refused else call.cost
        self.balance -= call.cost
        self.speak(call)

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:  # noqa: FBT001 - drawn, not called
        """An answer comes, in whatever order, and perhaps once more, or never."""
        call = data.draw(st.sampled_from(self.answers))
        if not again:
            self.answers.remove(call)
        self.settle(call)

    @rule(tokens=st.tuples(amounts, amounts), cheaper=st.integers(0, 5), data=st.data())
    def overtake(self, tokens: tuple[int, int], cheaper: int, data: st.DataObject) -> None:
        """Calls that are on their way together arrive in one order, and are answered in another, and then once more."""
        for wanted in tokens:
            self.call(wanted, cheaper)
        together = self.on_the_way()
        for call in data.draw(st.permutations(together)):
            self.serve(call)
        for call in data.draw(st.permutations(together)):
            self.answers.remove(call)
            self.settle(call)
            self.it_never_has_more_than_there_is()
        for call in together:
            self.settle(call)  # again

    @rule(tokens=amounts)
    def vanish(self, tokens: int) -> None:
        """A call is charged, and nobody ever hears of it: its hold runs out."""
        self.call(tokens, 0)
        for call in self.on_the_way():
            self.serve(call)
            self.answers.remove(call)
        self.time_passes(HOLD_FOR)

    @precondition(lambda self: self.on_the_way())
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """A call is never sent."""
        call = data.draw(st.sampled_from(self.on_the_way()))
        self.do(0, Cancel(call.name))
        self.calls.remove(call)

    @rule(later=st.booleans())
    def look_at_the_server(self, later: bool) -> None:  # noqa: FBT001 - drawn, not called
        """Somebody asks the server, and tells the bucket, now or later."""
        look = Call()
        said = self.speak(look)
        if later:
            return
        self.answers.remove(look)
        came = self.settle(look)
        balance = self.shown(0).balance
        # Where nothing tells the order of what the server said, the lower balance counts.
        assert balance is not None
        assert balance == said.balance or (balance < said.balance and came.verdict is not Verdict.TAKEN)

    @rule()
    def wait_as_long_as_stated(self) -> None:
        """Liveness: by the bound that a look states, who asks is let through or told to ask the server."""
        shown = self.shown(0)
        if shown.bound > 2 * DAY / SECOND:
            return
        self.time_passes(round(shown.bound * SECOND))
        came = self.request(1)
        assert came.granted or came.probe

    # --- what the bucket can't know

    @rule(tokens=amounts)
    def somebody_else_spends(self, tokens: int) -> None:
        """Another program takes tokens with the same key."""
        self.flow()
        self.balance -= tokens
        self.hide()

    @rule(rate=st.sampled_from(PLANS))
    def another_plan(self, rate: int) -> None:
        """The plan changes; at refill 0 it is gone, and what it held stays."""
        self.flow()
        self.rate = rate
        self.capacity = 60 * rate or self.capacity
        self.hide()

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(field=st.sampled_from(FIELDS), text=st.sampled_from((None, "NaN", "-1", LATER)))
    def damage(self, field: str, text: str | None) -> None:
        """A stored field is lost or garbled, or anything else that fits, and everybody in flight gives up.

        Nobody else knows what is stored then.
        """
        stored = self.bench.stored()
        if not stored:
            return
        for name in stored:
            if name == field or (":" in field and name.startswith(field)):
                self.bench.damage(name, text)
        self.followed = False
        self.do(0, Acquire(0))
        self.calls, self.answers, self.newest = [], [], (0, 0)
        self.hide()

    def forgotten(self, now: int) -> None:
        """Of a new bucket nothing is known."""
        super().forgotten(now)
        self.newest = (0, 0)
        self.hide()

    # --- what always holds

    @invariant()
    def it_never_has_more_than_there_is(self) -> None:
        """Safety: what is available is at most what the server has, less what calls on their way will still cost."""
        shown = self.shown(0)
        if not self.sure or shown.available is None:
            return
        self.flow()
        assert shown.available <= self.balance - sum(call.cost for call in self.on_the_way())

    # --- helpers

    def on_the_way(self) -> list[Call]:
        """Return the calls that haven't arrived."""
        return [call for call in self.calls if call.said is None and self.now < call.expires_at]

    def settle(self, call: Call) -> Came:
        """Tell the bucket what the server said. Where that isn't the latest for sure, only a lower balance counts.

        What was said before the newest is not the latest, unless that is old itself.
        """
        assert call.said is not None
        call.ended = True
        self.time_passes(1)
        end: Command = Settle(call.name, call.cost, call.said, refused=call.refused)
        came = self.do(0, end if call.name else Reconcile(call.said))
        if came.verdict is not Verdict.TAKEN:
            return came
        if self.shown(0).reading_age != 0:
            # The bucket has less than it believed before, and knows no more.
            assert came.drift is not None
            assert came.drift < 0
            return came
        newest, at = self.newest
        if call.number < newest:
            assert not (call.name and came.found)
            assert self.now - at > REORDER_US
        self.newest = call.number, self.now
        # What was spent after it and isn't set aside any more is in no book.
        charged_since = any(
            each.said is not None and each.number > call.number and (each.ended or self.now >= each.expires_at)
            for each in self.calls
        )
        self.sure = call.number > self.unknown_of and not charged_since
        return came
