"""A state machine that drives a synced bucket on any storage, beside `SyncedReference`, and looks at both.

Beside what `machine` does to a plain bucket: a server tells the balance, in time, late, again, or with an older word
than was heard before; it changes the plan and stops the refill; somebody else spends; calls are refused, and their
ends are lost; workers ask the server, or don't come back from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from checks.models.machine import (
    ALWAYS_STORED,
    PLAIN_LOST,
    SKEWS,
    Bench,
    BucketMachine,
    damages,
    owns,
    refund_ids,
    workers,
)
from checks.models.reference import CLOCKS_APART_US, END_OF_TIME, Held, Waiting
from checks.models.strategies import (
    DAY,
    HOUR,
    IDS,
    MINUTE,
    SECOND,
    costs,
    hold_lives,
    ids,
    keeps,
    probe_afters,
    quotas,
    tickets,
)
from checks.models.synced_reference import Ended, SyncedReference, Told
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Outcome,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
    Verdict,
)
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import NUMBERS
from keepa_tokens.units import PROBE_AFTER_US, UNLIMITED


@dataclass(frozen=True)
class Word:
    """What the server says, in terms of what is known: its balance is `off` from the projection, or `balance`.

    ago: how many seconds earlier it said so by its own clock; None: it doesn't say when.
    """

    off: int | None
    balance: int
    ago: float | None
    next_refill_in: float | None
    refill: float | None
    capacity: int | None


words: Final = st.builds(
    Word,
    off=st.none() | st.sampled_from((0, -1, 3, -30)) | st.integers(-100, 40),
    balance=st.one_of(st.integers(-20, 30), st.integers(1, 300), st.integers(-2000, 2000)),
    ago=st.sampled_from((0, 0, 0, 0.5, 1, 4, 30, 118, 130, -4, None)),
    next_refill_in=st.none() | st.floats(0, 90),
    refill=st.sampled_from((None, None, None, 5, 20, 0.25, 0)),
    capacity=st.sampled_from((None, None, None, 10, 300, 1200)),
)

buckets: Final = quotas(synced=True) | st.builds(
    Quota,
    st.sampled_from((10, 60, 300)),
    st.sampled_from((1, 5, 20)),
    st.sampled_from((60.0, 60.5)),
    stepped=st.booleans(),
    overdraft=st.sampled_from((0, 3, UNLIMITED)),
    recharge_to=st.sampled_from((None, None, 40)),
    initial=st.sampled_from((None, None, 10, -5)),
    synced=st.just(value=True),
)
"""Any, and those that refill as slowly as Keepa's, so that what a call costs shows for a while."""

SIMPLE: Final[dict[str, tuple[str, int | None]]] = {
    **PLAIN_LOST,
    "server_time": ("server_time", None),
    "server_time_at": ("server_time_at", 0),
    "drift": ("drift", None),
    "kept_back": ("kept", 0),
    "kept_back_at": ("kept_at", None),
    "probe_until": ("claimed_until", None),
    "probe_failures": ("failures", 0),
    "probe_returned": ("returned", False),
    "stretched_us": ("stretched_us", 0),
    "reported_capacity": ("told_capacity", None),
}
"""What the reference calls a field that stands for itself, and what it is when it is lost."""


class ReadingMachine(BucketMachine[SyncedReference]):
    """One synced bucket, on a storage and as the reference has it."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.said: list[Reading] = []
        self.fastest = (0, 1)
        self.scouted = 0

    @initialize(quota=buckets, skews=SKEWS)
    def begin(self, quota: Quota, skews: tuple[int, ...]) -> None:
        """Make a bucket."""
        self.quota, self.skews = quota, skews
        self.model = SyncedReference.new(quota, self.at(0))
        self.start_over(0)

    # --- what workers do

    @rule(worker=workers, tokens=costs, keep=keeps, probe_after=probe_afters, ticket=tickets)
    def take(self, worker: int, tokens: int, keep: int, probe_after: int | None, ticket: str | None = None) -> None:
        """Take tokens now, or stand in line."""
        self.ask(worker, tokens, keep, probe_after, ticket)

    @rule(
        worker=workers,
        name=ids,
        tokens=costs,
        lives=hold_lives,
        keep=keeps,
        after=probe_afters,
        ticket=tickets,
        scout=st.booleans(),
    )
    def hold(
        self,
        worker: int,
        name: str,
        tokens: int,
        lives: int,
        keep: int,
        after: int | None,
        ticket: str | None = None,
        *,
        scout: bool,
    ) -> None:
        """Set tokens aside for a call, which may be in flight already, or go though refused, to learn the truth."""
        now = self.at(worker)
        outcome = self.apply(Reserve(name, tokens, lives, keep, after, scout=scout, ticket=ticket), worker)
        told = self.model.open(name, Held(tokens, now + lives, lives), keep, now, after, ticket, scout=scout)
        self.agree(outcome, told, tokens)

    @rule(worker=workers, name=ids, tokens=st.integers(0, 3), lives=st.integers(MINUTE, HOUR))
    def hold_little(self, worker: int, name: str, tokens: int, lives: int) -> None:
        """Set a few tokens aside for long, so that several calls are in flight at once."""
        self.hold(worker, name, tokens, lives, 0, PROBE_AFTER_US, scout=False)

    @rule(worker=workers, name=ids, actual=st.none() | costs, refused=st.booleans())
    def settle(self, worker: int, name: str, actual: int | None, refused: bool) -> None:  # noqa: FBT001 - as above
        """End a call whose answer says nothing of the balance."""
        self.end(worker, self.rather_open(name), actual, None, refused=refused)

    @rule(worker=workers, name=ids, actual=st.none() | costs, word=words, refused=st.sampled_from((False, False, True)))
    def answer(self, worker: int, name: str, actual: int | None, word: Word, refused: bool) -> None:  # noqa: FBT001 - as above
        """End a call, in time or late, with what the server says of its balance."""
        self.end(worker, self.rather_open(name), actual, self.spoken(word), refused=refused)

    @precondition(lambda self: self.said)
    @rule(worker=workers, name=ids, actual=costs, which=st.integers(1, 4))
    def answer_late(self, worker: int, name: str, actual: int, which: int) -> None:
        """End a call with what the server said before, and others may have heard since."""
        self.end(worker, name, actual, self.said[-min(which, len(self.said))], refused=False)

    @rule(worker=workers, name=ids)
    def cancel(self, worker: int, name: str) -> None:
        """Give a call up."""
        outcome = self.apply(Cancel(name), worker)
        self.ended(outcome, self.model.give_up(name, self.at(worker)))

    @rule(worker=workers, name=refund_ids, tokens=costs, own=owns)
    def give_back(self, worker: int, name: str, tokens: int, own: int | None) -> None:
        """Give tokens back, once; from when they might have gone does not matter here."""
        place = None if own is None else max(0, self.at(worker) + own)
        outcome = self.apply(Refund(name, tokens, place), worker)
        assert outcome.found == self.model.refund(name, tokens, place, self.at(worker))
        self.is_as_modelled(outcome)

    # --- what the server says

    @rule(worker=workers, word=words)
    def hear(self, worker: int, word: Word) -> None:
        """Hear the server's word outside a call: from a probe, or an answer seen elsewhere."""
        self.listen(worker, self.spoken(word))

    @precondition(lambda self: self.said)
    @rule(worker=workers, which=st.integers(1, 4))
    def hear_again(self, worker: int, which: int) -> None:
        """Hear what was said before, once more or for the first time."""
        self.listen(worker, self.said[-min(which, len(self.said))])

    @rule(worker=workers)
    def claim(self, worker: int) -> None:
        """Ask for the claim on the probe; the answer may never come."""
        outcome = self.apply(ClaimProbe(), worker)
        assert outcome.probe == self.model.claim(self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=workers, off=st.sampled_from((0, 0, 0, 1)))
    def unclaim(self, worker: int, off: int) -> None:
        """Give the claim back that is under way, or another one."""
        until = (self.model.claimed_until or self.at(worker)) + off
        outcome = self.apply(Unclaim(until), worker)
        assert outcome.found == self.model.unclaim(until, self.at(worker))
        self.is_as_modelled(outcome)

    @rule(worker=workers, tokens=costs)
    def take_when_told(self, worker: int, tokens: int) -> None:
        """Exactness: who was refused and waits exactly as long as told is granted, a microsecond less is not.

        With a call in flight what is told is the earliest instant only; with others before in line, when to ask again.
        """
        told = self.ask(worker, tokens, 0, PROBE_AFTER_US)
        if told.reason not in {Reason.EMPTY, Reason.RECHARGING} or told.wait >= DAY or self.model.held:
            return
        if self.model.before(0, None, self.at(worker)):
            return
        early = self.at(worker) + told.wait - 1
        assert not self.bench.storage.apply(self.bench.key, self.quota, Peek(tokens), now_us=early).granted
        self.model.look(early)
        self.time_passes(told.wait)
        assert self.ask(worker, tokens, 0, PROBE_AFTER_US).granted

    # --- what goes wrong

    @precondition(lambda self: self.bench.may_be_damaged and self.model.begun)
    @rule(worker=workers, field=st.sampled_from(NUMBERS), text=damages)
    def lose(self, worker: int, field: str, text: str | None) -> None:
        """A stored field is lost or garbled; the next step notices, and names what it can't do without."""
        now = self.at(worker)
        missed = text is not None or field in self.needed(now)
        self.loses(field, now)
        outcome = self.lost(field, text, worker)
        name = "reported_refill" if field == "reported_period_us" and text is None else field
        assert (name in outcome.repaired) == missed
        self.is_as_modelled(outcome)

    @precondition(lambda self: self.bench.may_be_damaged)
    @rule(worker=workers, name=ids, text=damages)
    def lose_a_call(self, worker: int, name: str, text: str | None) -> None:
        """What is stored of a call is lost or garbled: its tokens are free again."""
        call = self.model.calls.get(name)
        if call is None:
            return
        self.model.give(0 if call.charged else -call.tokens)
        self.model.lose_call(name)
        outcome = self.lost(f"hold:{name}", text, worker)
        assert (f"hold:{name}" in outcome.repaired) == (text is not None)
        self.is_as_modelled(outcome)

    def needed(self, now: int) -> frozenset[str]:
        """Return the fields that are missed when they are gone.

        A reading further ahead than clocks may differ, after they were set back, is named itself and counts as none.
        A bucket without a reading may rightly have no balance: then that isn't missed.
        """
        read_at = self.model.read_at
        is_believed = read_at is not None and read_at <= now + CLOCKS_APART_US
        heard = {"balance", "reading_sequence"} if is_believed else set[str]()
        plan = {"reported_refill", "reported_period_us"} if self.model.told_flow is not None else set[str]()
        ordered = {"sequence"} if self.is_remembered() else set[str]()
        summed = {"held"} if self.model.held else set[str]()
        return ALWAYS_STORED | heard | plan | ordered | summed

    def loses(self, field: str, now: int) -> None:
        """Let the reference lose what a field says."""
        match field:
            case "balance":
                self.model.unlearn()
            case "refilled_at":
                self.forward += CLOCKS_APART_US  # the time by which clocks differ may come again
                self.model.lose_time(now)
            case "carry":
                self.model.lose_part()
            case "reading_at":
                self.model.lose_reading()
            case "reading_sequence":
                self.model.lose_order()
            case "reported_refill" | "reported_period_us":
                self.model.lose_flow()
            case _ if field in SIMPLE:
                name, lost = SIMPLE[field]
                setattr(self.model, name, lost)
            case _:
                pass  # nothing depends on it, or it is found again

    # --- what always holds

    @invariant()
    def both_show_the_same(self) -> None:
        """Conservation: what is left and held is what the server told and time brought, less what went out."""
        shown, twin = self.shown(0), self.model.seen(self.at(0))
        assert (shown.balance, shown.held) == (twin.told_balance, twin.held)
        assert shown.holds == sum(not call.charged for call in twin.calls.values())
        assert (shown.capacity, shown.refill, shown.period) == (twin.capacity, twin.refill, twin.period_us / SECOND)
        assert (shown.kept_back, shown.drift) == (twin.kept_for_others, twin.drift)
        age = None if twin.read_at is None else max(0, self.at(0) - twin.read_at) / SECOND
        assert shown.reading_age == age
        assert (shown.waiting, shown.wanted) == (len(twin.line), sum(each.tokens for each in twin.line))
        assert shown.paused_for == ((twin.paused_until or self.at(0)) - self.at(0)) / SECOND

    @invariant()
    def nobody_got_too_much(self) -> None:
        """Safety: since the last reading no more went out than it told, time brought, and may be overdrawn."""
        given = sum(event.given for event in self.model.events)
        refilled = max(self.refilled(*flow) for flow in (self.model.flow, self.fastest))
        assert given <= max(0, self.model.start + refilled + self.overdraft) + self.scouted

    @invariant()
    def it_never_stands_still(self) -> None:
        """Liveness: by the bound that a look states an attempt is granted or asks the server, though others fail."""
        shown = self.shown(0)
        if shown.bound > DAY / SECOND:
            assert self.model.refill == 0 or shown.bound * SECOND < END_OF_TIME
            return
        now = self.at(0)
        twin = self.model.alike()
        at_once = twin.take(1, 0, now, PROBE_AFTER_US)
        by_then = twin.take(1, 0, now + round(shown.bound * SECOND), PROBE_AFTER_US)
        assert at_once.granted or at_once.probe or by_then.granted or by_then.probe

    # --- helpers

    def forgotten(self, model: SyncedReference) -> None:
        """What neither holds anything nor is paused may be forgotten, if no more is let go then than is there."""
        assert not model.held
        assert model.paused_until is None
        assert not model.line
        assert self.quota.initial is None or (model.known and model.balance >= self.quota.capacity)
        self.model = SyncedReference.new(self.quota, model.at)
        self.fastest, self.scouted = (0, 1), 0
        self.forward = self.forgiven = self.largest = 0

    def start_over(self, worker: int) -> None:
        """Begin with a bucket never seen: nothing is known of it, or one `initial`."""
        self.fastest, self.scouted = (0, 1), 0
        super().start_over(worker)

    def rather_open(self, name: str) -> str:
        """Return a call that is known, as most that end are; now and then another."""
        known = sorted(self.model.calls.keys() & set(IDS[:-1]))
        return known[IDS.index(name) % len(known)] if known and name != IDS[-1] else name

    def spoken(self, word: Word) -> Reading:
        """Return what the server says, and remember it."""
        off = None if self.model.told_balance is None else word.off
        reading = Reading(
            word.balance if off is None else self.model.balance + off,
            next_refill_in=word.next_refill_in,
            refill=word.refill,
            capacity=word.capacity,
            server_time=None if word.ago is None else self.now // SECOND - word.ago,
        )
        self.said.append(reading)
        return reading

    def ask(self, worker: int, tokens: int, keep: int, probe_after: int | None, ticket: str | None = None) -> Told:
        """Take tokens on both sides, and return what both came to."""
        twin = self.model.seen(self.at(worker))
        ahead = twin.before(keep, ticket, self.at(worker)) if tokens and twin.known else 0
        outcome = self.apply(Acquire(tokens, keep, None, probe_after, ticket), worker)
        told = self.model.take(tokens, keep, self.at(worker), probe_after, ticket)
        self.agree(outcome, told, tokens)
        self.in_turn(outcome, ahead, keep)
        return told

    def try_again(self, worker: int, waiting: Waiting) -> tuple[bool, bool]:
        """Ask again, and perhaps the server."""
        told = self.ask(worker, waiting.tokens, waiting.keep, PROBE_AFTER_US, waiting.name)
        return told.granted, told.probe

    def end(self, worker: int, name: str, actual: int | None, reading: Reading | None, *, refused: bool) -> None:
        """End a call on both sides."""
        outcome = self.apply(Settle(name, actual, reading, refused), worker)
        self.ended(outcome, self.model.end(name, actual, reading, self.at(worker), refused=refused))

    def listen(self, worker: int, reading: Reading) -> None:
        """Hear a reading on both sides."""
        outcome = self.apply(Reconcile(reading), worker)
        self.ended(outcome, self.model.hear(reading, self.at(worker)))

    def agree(self, outcome: Outcome, told: Told, tokens: int) -> None:
        """Assert that a request came to the same on both sides."""
        assert (outcome.granted, outcome.reason) == (told.granted, told.reason)
        assert (outcome.probe, outcome.scout, outcome.place_us) == (told.probe, told.scout, told.place)
        assert min(outcome.retry_after_us, END_OF_TIME) == told.wait
        self.largest = max(self.largest, tokens if told.granted else 0)
        self.scouted += tokens if told.scout else 0
        self.is_as_modelled(outcome)

    def ended(self, outcome: Outcome, ended: Ended) -> None:
        """Assert that a call, or a reading, came to the same on both sides."""
        assert (outcome.found, outcome.reading, outcome.drift) == (ended.found, ended.verdict, ended.drift)
        if ended.verdict is Verdict.TAKEN:
            self.forward = self.scouted = 0
            self.fastest = self.model.flow
        self.is_as_modelled(outcome)

    def is_as_modelled(self, outcome: Outcome) -> None:
        """Assert that the bucket is the same on both sides after a step."""
        twin = self.model.after
        assert twin is not None
        assert (outcome.balance, outcome.held) == (twin.told_balance, twin.held)
        assert outcome.closed == (twin.closed_until is not None)
        assert outcome.kept_back == twin.kept_for_others
