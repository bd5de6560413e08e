"""A state machine that drives a synced bucket beside the server that owns the tokens, and compares them at each step.

It knows nothing of the bucket's rules. It plays the server, the calls on their way to it, their answers on the way
back, in any order or lost, those who wait in line for their turn, and whoever else spends; what must hold is said of
the two balances, and of who came first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from checks.models.machine import Bench
from checks.models.strategies import DAY, EPOCH, HOUR, MINUTE, SECOND
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Reserve, Settle, Verdict
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import LINE, NUMBERS
from keepa_tokens.units import CLAIM_US, MICROSECONDS, MINUTE_US, REORDER_US, SWEEP_US, TOLERANCE_US, UNLIMITED

HOLD_FOR: Final = 2 * MINUTE
"""How long a call may be on its way; one that takes longer never arrives."""

PLANS: Final = (0, 5, 20)
"""Tokens a minute; the capacity is 60 times that, and stays when a plan is gone."""

SHARE: Final = 3
"""At most this part of the capacity is kept back for others."""

FIELDS: Final = (*(name for name in NUMBERS if name != "format"), LINE, "hold:")
"""What may be lost; a name with a colon is the beginning of several."""

LATER: Final = str(EPOCH + 400 * DAY)
"""An instant that is far ahead in every run."""

gaps: Final = st.one_of(st.integers(0, 3 * SECOND), st.integers(0, 3 * MINUTE), st.sampled_from((MINUTE, HOUR, DAY)))
amounts: Final = st.one_of(st.integers(1, 12), st.integers(1, 400))
tasks: Final = st.sampled_from(("task-1", "task-2", "task-3", "task-4"))
"""Who stands in line."""


@dataclass(frozen=True)
class Envelope:
    """What the server said, and after how many of its doings it said so."""

    reading: Reading
    number: int
    cost: int = 0
    refused: bool = False


@dataclass
class Call:
    """A call that was let through.

    known_of: the last thing that a bucket didn't know of, if it knew all when it granted this; else -1. said: the
    server's answer, once the call has arrived there. ended: it was settled.
    """

    name: str
    tokens: int
    cost: int
    expires_at: int
    known_of: int = -1
    said: Envelope | None = None
    ended: bool = False


class SyncedMachine(RuleBasedStateMachine):
    """One synced bucket on a storage, and the server that it follows.

    sure: whether the bucket was told all that it could know: a reading was taken that the server gave after whatever
    it didn't know of (somebody else's spending, another plan, damage). lag: how long ago the server had given its last
    time when the bucket heard it; None: what is stored of it is damaged. Where that differs by over a minute, a word of
    the server's tells no order. line: who waits, in the order in which they came, for how many tokens, and when it was
    told to come.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.now = EPOCH
        self.calls: list[Call] = []
        self.answers: list[Call] = []
        self.wandering: list[Envelope] = []
        self.names = 0
        self.doings = 0
        self.sure = False
        self.unknown_of = 0
        self.newest = (0, 0)
        self.claimed_until = 0
        self.foggy_until = 0
        self.lag: int | None = 0
        self.kept = (0, 0)
        self.line: dict[str, tuple[int, int]] = {}

    @initialize(rate=st.sampled_from(PLANS[1:]), balance=st.integers(-200, 300), phase=st.integers(1, MINUTE))
    def begin(self, rate: int, balance: int, phase: int) -> None:
        """Buy a plan, of which some was used before."""
        self.quota = Quota(60 * rate, rate, 60.0, stepped=True, synced=True, overdraft=UNLIMITED)
        self.rate, self.capacity, self.balance = rate, 60 * rate, balance
        self.next_step = self.now + phase
        self.apply(Acquire(0))

    # --- the server

    def flow(self) -> None:
        """Let the server refill, step by step."""
        while self.next_step <= self.now:
            missed = (self.now - self.next_step) // MINUTE
            steps = 1 if missed < self.capacity else missed
            self.balance = max(self.balance, min(self.capacity, self.balance + steps * self.rate))
            self.next_step += steps * MINUTE

    def speak(self, cost: int = 0, *, refused: bool = False) -> Envelope:
        """Let the server say what it has, in a moment of its own."""
        self.now += 1
        self.flow()
        self.doings += 1
        reading = Reading(
            self.balance,
            next_refill_in=(self.next_step - self.now) / MICROSECONDS,
            refill=self.rate,
            period=60.0,
            capacity=self.capacity,
            server_time=self.now / MICROSECONDS,
        )
        return Envelope(reading, self.doings, cost, refused)

    def hide(self) -> None:
        """Note that the server did something of which the bucket can't know yet."""
        self.doings += 1
        self.unknown_of, self.sure = self.doings, False

    # --- what workers do

    @rule(gap=gaps)
    def time_passes(self, gap: int) -> None:
        """Time goes on. A call that isn't there by the end of its hold never arrives."""
        self.now += gap
        self.flow()
        self.calls = [call for call in self.calls if call.said is not None or self.now < call.expires_at]
        self.forget_who_lapsed()

    @rule(tokens=amounts, cheaper=st.integers(0, 5), scout=st.booleans(), task=st.none() | tasks)
    def call(self, tokens: int, cheaper: int, scout: bool = False, task: str | None = None) -> None:  # noqa: FBT001, FBT002 - drawn
        """Set tokens aside for a call, which is on its way if that was granted. It may cost less.

        A task that is refused stands in line, and keeps its place when it asks again.
        """
        before = self.shown()
        ahead = self.ahead_of(task)
        self.names += 1
        name = f"call-{self.names}"
        outcome = self.apply(Reserve(name, tokens, HOLD_FOR, scout=scout, ticket=task))
        self.claims(outcome)
        if not outcome.granted:
            least = ahead + tokens if ahead or before.holds else 1
            assert before.available is None or before.kept_back or before.available < least
            if task is not None and outcome.reason not in {"UNKNOWN", "TOO_LARGE"}:
                self.line[task] = (tokens, self.now + min(outcome.retry_after_us, DAY))
            return
        self.line.pop(task or "", None)
        self.let_through(name, tokens, max(0, tokens - cheaper))
        if outcome.scout:
            return
        assert before.available is not None
        # More than there is only alone: calls may overtake each other.
        assert before.available >= (1 if not before.holds else tokens)
        # Nor does anybody pass those before who are not late, unless their tokens are left.
        assert not ahead or before.available >= ahead + tokens

    @precondition(lambda self: self.line)
    @rule(cheaper=st.integers(0, 5))
    def everybody_comes_when_told(self, cheaper: int) -> None:
        """Whoever stands in line comes at the instant that it was told, again and again, until it is let through."""
        for _ in range(4):
            task, (tokens, told) = min(self.line.items(), key=lambda item: item[1][1])
            self.time_passes(max(0, told - self.now))
            self.call(tokens, cheaper, task=task)
            if not self.line:
                return

    @rule(task=tasks)
    def leave_the_line(self, task: str) -> None:
        """Somebody doesn't wait any longer."""
        assert self.apply(Cancel(task)).found == (task in self.line)
        self.line.pop(task, None)

    @precondition(lambda self: self.on_the_way())
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A call arrives, and is answered: charged, or refused for nothing where there is no token."""
        self.serve(data.draw(st.sampled_from(self.on_the_way())))

    def serve(self, call: Call) -> None:
        """Let the server charge a call, or refuse it, and say so."""
        self.flow()
        refused = self.balance <= 0
        # Safety: a call is never refused if the bucket that granted it knew all there is to know.
        assert not (refused and call.known_of == self.unknown_of), f"{call} was refused at {self.balance}"
        cost = 0 if refused else call.cost
        self.balance -= cost
        call.said = self.speak(cost, refused=refused)
        self.answers.append(call)

    @precondition(lambda self: self.answers)
    @rule(data=st.data(), again=st.booleans())
    def answer(self, data: st.DataObject, again: bool) -> None:  # noqa: FBT001 - drawn, not called
        """An answer comes, in whatever order, and perhaps once more."""
        call = data.draw(st.sampled_from(self.answers))
        if not again:
            self.answers.remove(call)
        self.settle(call)

    def settle(self, call: Call) -> None:
        """End a call with its answer; again, it changes nothing."""
        if call.said is None:
            return
        self.now += 1
        self.flow()
        told, was_ended = call.said, call.ended
        before = self.shown()
        outcome = self.apply(Settle(call.name, told.cost, told.reading, refused=told.refused))
        call.ended = True
        self.taken(told, outcome, found=outcome.found)
        if was_ended and self.now >= self.foggy_until:
            assert not outcome.found
        if was_ended and outcome.reading is not Verdict.TAKEN:
            after = self.shown()
            assert (after.balance, after.held) == (before.balance, before.held)

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def lose_an_answer(self, data: st.DataObject) -> None:
        """An answer never comes: its hold is left to run out."""
        self.answers.remove(data.draw(st.sampled_from(self.answers)))

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
        self.apply(Cancel(call.name))
        self.calls.remove(call)

    @rule(later=st.booleans())
    def look_at_the_server(self, later: bool) -> None:  # noqa: FBT001 - drawn, not called
        """Somebody asks the server, and tells the bucket, now or later."""
        said = self.speak()
        if later:
            self.wandering.append(said)
            return
        tells_order = self.tells_order(said)
        outcome = self.apply(Reconcile(said.reading))
        self.taken(said, outcome, found=False)
        if outcome.reading is not Verdict.TAKEN and not tells_order:
            before = self.shown().balance
            assert before is not None
            assert before <= self.balance
            return
        self.claimed_until = 0
        assert self.shown().balance == self.balance

    @precondition(lambda self: self.wandering)
    @rule(data=st.data())
    def tell_late(self, data: st.DataObject) -> None:
        """What the server said a while ago comes to the bucket."""
        said = data.draw(st.sampled_from(self.wandering))
        self.wandering.remove(said)
        self.now += 1
        self.flow()
        self.taken(said, self.apply(Reconcile(said.reading)), found=False)

    @rule()
    def wait_as_long_as_stated(self) -> None:
        """Liveness: by the bound that a look states, who asks is let through or told to ask the server."""
        shown = self.shown()
        if shown.bound > 2 * DAY / SECOND:
            return
        self.time_passes(round(shown.bound * SECOND))
        self.names += 1
        outcome = self.apply(Reserve(f"call-{self.names}", 1, HOLD_FOR))
        self.claims(outcome)
        assert outcome.granted or outcome.probe
        if outcome.granted:
            self.let_through(f"call-{self.names}", 1, 1)

    # --- what the bucket can't know

    @rule(tokens=amounts)
    def somebody_else_spends(self, tokens: int) -> None:
        """Another program takes tokens with the same key."""
        self.flow()
        self.balance -= tokens
        self.hide()

    @rule(tokens=st.integers(21, 400))
    def somebody_else_is_seen(self, tokens: int) -> None:
        """Who spends while nobody else does, and is seen by it, has as much kept back from then on."""
        before = self.shown()
        quiet = self.sure and not before.holds
        if not quiet:
            return
        self.balance -= tokens
        self.hide()
        self.look_at_the_server(later=False)
        gap = (before.balance or 0) - self.balance
        if gap > self.rate and self.shown().reading_age == 0:
            self.kept = (min(self.capacity // SHARE, gap), self.now)

    @rule(rate=st.sampled_from(PLANS))
    def another_plan(self, rate: int) -> None:
        """The plan changes; at refill 0 it is gone, and what it held stays."""
        self.flow()
        self.rate = rate
        self.capacity = 60 * rate or self.capacity
        self.kept = (0, 0)
        self.hide()

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(field=st.sampled_from(FIELDS), text=st.sampled_from((None, "NaN", "-1", LATER)))
    def damage(self, field: str, text: str | None) -> None:
        """A stored field is lost or garbled, and everybody in flight gives up."""
        stored = self.bench.stored()
        if not stored:
            return
        hit = [name for name in stored if name == field or (":" in field and name.startswith(field))]
        for name in hit:
            self.bench.damage(name, text)
        self.apply(Acquire(0))
        self.calls, self.answers, self.wandering = [], [], []
        for task in self.line:
            self.apply(Cancel(task))
        self.line = {}
        if hit in (["server_time"], ["server_time_at"]):
            self.lag = None
        self.foggy_until = self.now + 3 * HOLD_FOR + TOLERANCE_US
        self.claimed_until, self.kept, self.newest = 0, (0, 0), (0, 0)
        self.hide()

    # --- what always holds

    @invariant()
    def it_never_has_more_than_there_is(self) -> None:
        """Safety: what is available is at most what the server has, less what calls on their way will still cost."""
        shown = self.shown()
        if not self.sure or shown.available is None:
            return
        self.flow()
        assert shown.available <= self.balance - sum(call.cost for call in self.on_the_way())

    @invariant()
    def what_is_in_flight_is_held(self) -> None:
        """Conservation: what is set aside is what calls that were neither ended nor ran out have set aside.

        What ran out within the last second may be swept with what follows it.
        """
        if self.now < self.foggy_until:
            return
        shown = self.shown()
        held = [call.tokens for call in self.calls if not call.ended and self.now < call.expires_at]
        due = [call.tokens for call in self.calls if not call.ended and 0 <= self.now - call.expires_at < SWEEP_US]
        assert sum(held) <= shown.held <= sum(held) + sum(due)
        assert len(held) <= shown.holds <= len(held) + len(due)

    @invariant()
    def whoever_waits_stands_in_line(self) -> None:
        """Nobody is lost, nor waited for after it left, or is a minute late."""
        self.forget_who_lapsed()
        shown = self.shown()
        assert (shown.waiting, shown.wanted) == (len(self.line), sum(tokens for tokens, _ in self.line.values()))

    @invariant()
    def others_get_a_third_at_most_and_are_not_forgotten(self) -> None:
        """What is kept back is what was seen, halved by the hour, and a third of the capacity at most."""
        shown = self.shown()
        assert 0 <= shown.kept_back <= shown.capacity // SHARE
        kept, since = self.kept
        assert shown.kept_back >= min(kept >> min(60, (self.now - since) // HOUR), shown.capacity // SHARE)

    # --- helpers

    def ahead_of(self, task: str | None) -> int:
        """Return the tokens of those who came before, and are not a second late."""
        came = list(self.line)
        before = came[: came.index(task)] if task in self.line else came
        return sum(tokens for tokens, told in map(self.line.__getitem__, before) if self.now <= told + SECOND)

    def forget_who_lapsed(self) -> None:
        """Forget those who are a minute late."""
        self.line = {task: (tokens, told) for task, (tokens, told) in self.line.items() if self.now < told + MINUTE}

    def on_the_way(self) -> list[Call]:
        """Return the calls that haven't arrived."""
        return [call for call in self.calls if call.said is None and self.now < call.expires_at]

    def let_through(self, name: str, tokens: int, cost: int) -> None:
        """Send a call on its way."""
        self.calls.append(Call(name, tokens, cost, self.now + HOLD_FOR, self.unknown_of if self.sure else -1))

    def claims(self, outcome: Outcome) -> None:
        """Politeness: one at a time is sent to ask, until an answer comes or the claim is over."""
        if outcome.probe:
            assert self.now >= self.claimed_until
            self.claimed_until = self.now + CLAIM_US

    def tells_order(self, said: Envelope) -> bool:
        """Whether the server's time, as it was given and is heard now, can be compared with the last one."""
        return self.lag is not None and abs(self.lag_of(said) - self.lag) <= MINUTE_US

    def lag_of(self, said: Envelope) -> int:
        """Return how long ago the server said so."""
        return self.now - round((said.reading.server_time or 0) * MICROSECONDS)

    def taken(self, said: Envelope, outcome: Outcome, *, found: bool) -> None:
        """Note what became of a reading. Where it isn't the latest for sure, only a lower balance may be taken.

        One given before the newest is not the latest, unless that is old itself.
        """
        newest, at = self.newest
        is_latest = self.shown().reading_age == 0 and outcome.reading is Verdict.TAKEN
        if is_latest or not self.tells_order(said):
            self.lag = self.lag_of(said)
        if outcome.reading is not Verdict.TAKEN:
            return
        if not is_latest:
            # The bucket has less than it believed before, and knows no more.
            assert outcome.drift is not None
            assert outcome.drift < 0
            return
        if said.number < newest:
            assert not found
            assert self.now - at > REORDER_US
        self.newest, self.claimed_until = (said.number, self.now), 0
        # What was spent after it and isn't set aside any more is in no book.
        charged_since = any(
            call.said is not None and call.said.number > said.number and (call.ended or self.now >= call.expires_at)
            for call in self.calls
        )
        self.sure = said.number > self.unknown_of and not charged_since

    def apply(self, command: Command) -> Outcome:
        """Give a command; all share one clock, as on a server's own time."""
        outcome = self.bench.storage.apply(self.bench.key, self.quota, command, now_us=self.now)
        assert outcome.now_us == self.now
        return outcome

    def shown(self) -> Snapshot:
        """Return a look at the bucket; of one whose lifetime is over, at the new one that begins."""
        shown = self.apply(Peek()).snapshot
        assert shown is not None
        inspected = self.bench.storage.inspect(self.bench.key, now_us=self.now)
        assert inspected in {None, shown}
        if inspected is None:
            assert not self.line
            self.kept, self.newest, self.lag = (0, 0), (0, 0), 0
            self.hide()
        return shown
