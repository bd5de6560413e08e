"""State machines that drive a bucket on any storage, beside `Reference`, and look at both after each step.

Workers whose clocks differ by up to 5 s take, wait for places, stand in line, hold, settle, cancel and give back.
Stored fields are lost or garbled, and whole buckets; the storage is opened anew; all clocks are set. To a synced bucket
a server tells the balance, in time, late, again, or with an older word than was heard before; it changes the plan and
stops the refill; somebody else spends; calls are refused, and their ends are lost; workers ask the server, or don't
come back from it. `synced_machine` plays that server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from checks.models.lapse import CLOCKS_APART_US, END_OF_TIME, Waiting
from checks.models.reference import Came, Reference
from checks.models.strategies import (
    DAY,
    EPOCH,
    HOUR,
    IDS,
    MINUTE,
    SECOND,
    costs,
    gaps,
    ids,
    quotas,
    reserves,
    takes,
    tickets,
)
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
    Verdict,
)
from keepa_tokens.rules.decision import Reason, Snapshot
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import NUMBERS
from keepa_tokens.storage.base import Storage
from keepa_tokens.units import UNLIMITED

WORKERS: Final = 3
SKEWS: Final = st.tuples(*[st.integers(0, CLOCKS_APART_US)] * WORKERS)
workers: Final = st.integers(0, WORKERS - 1)
refund_ids: Final = st.sampled_from(("r", "s", "t"))
pauses: Final = st.sampled_from((0, SECOND, MINUTE, HOUR))
scouts: Final = reserves.map(lambda command: replace(command, scout=True))
owns: Final = st.none() | st.integers(-MINUTE, MINUTE) | st.integers(-HOUR, HOUR)
"""From when the caller of what is given back might have gone, beside now."""

MOST_TRIES: Final = 2000
"""How often those in line come again in one rule."""

UNREADABLE: Final = ("", "NaN", "inf", "1e308", "1.5", "[]", "99999999999999999999")
damages: Final = st.none() | st.sampled_from(UNREADABLE)
"""What becomes of a stored field: gone, or no whole number."""

STANDS: Final = ("closed_until", "paused_until", "last_place", "firm_place", "largest_place", "drift")
LOST: Final = {
    "due_at": "swept_from",
    "kept_back": "kept",
    "kept_back_at": "kept_at",
    "probe_until": "claimed_until",
    "probe_failures": "failures",
    "probe_returned": "returned",
    "reported_capacity": "told_capacity",
    **{name: name for name in (*STANDS, "server_time", "server_time_at", "stretched_us")},
}
"""What the reference calls a field that stands for itself; lost it is what it is in a new bucket."""

LOSES: Final[dict[str, Callable[[Reference, int], None]]] = {
    "balance": Reference.lose_balance,
    "refilled_at": Reference.lose_time,
    "carry": lambda model, _: model.lose_part(),
    "reading_at": lambda model, _: model.lose_reading(),
    "reading_sequence": lambda model, _: model.lose_order(),
    "reported_refill": lambda model, _: model.lose_flow(),
    "reported_period_us": lambda model, _: model.lose_flow(),
}
"""What becomes of the reference when another one is lost. Of the rest none depends on it, or it is found again."""


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

    def stored(self) -> dict[str, str]:
        """Return the stored fields, as far as they can be seen."""
        return {} if self.fields is None else dict(self.fields())

    def damage(self, field: str, text: str | None) -> None:
        """Take a stored field away, or put a text in its place."""
        if self.store is not None:
            fields = {name: stored for name, stored in self.stored().items() if name != field}
            self.store(fields if text is None else fields | {field: text})


class BucketMachine(RuleBasedStateMachine):
    """One bucket, on a storage and as the reference has it.

    followed: whether the reference knows what is stored; else nothing is compared with it.
    forward: by how much clocks went forward since the balance was last told, or began. fastest: the fastest flow since.
    scouted: what calls took since that went though they were refused. largest: the largest grant. stood: the numbers
    that who was let go had in line, as stored and as the reference has it.
    """

    followed = True
    model: Reference
    quota: Quota
    skews: tuple[int, ...]

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.now = EPOCH
        self.said: list[Reading] = []

    def begin_with(self, quota: Quota, skews: tuple[int, ...]) -> None:
        """Make a bucket."""
        self.quota, self.skews = quota, skews
        self.start_over(0)

    def start_over(self, worker: int) -> None:
        """Begin with a bucket never seen, on both sides."""
        self.begin_account(Reference.new(self.quota, self.at(worker)))
        self.apply(Acquire(0), worker)
        self.model.carry_out(Peek(), self.at(worker))

    def begin_account(self, model: Reference) -> None:
        """Count from here."""
        self.model = model
        self.fastest = (0, 1)
        self.forward = self.scouted = self.largest = 0
        self.stood: dict[str, tuple[int, int]] = {}

    # --- clocks, storages

    @rule(gap=gaps)
    def time_passes(self, gap: int) -> None:
        """All clocks go on."""
        self.now += gap
        self.forward += gap

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

    # --- who waits

    @precondition(lambda self: self.followed)
    @rule(worker=workers)
    def come_when_told(self, worker: int) -> None:
        """A line makes nobody wait for ever: who comes when told is through by the bound that a look states.

        Unless the server is to be asked before. Of a call that is in flight for hours, only the first minutes: whoever
        waits for it asks twenty times a second.
        """
        begun = self.at(worker)
        bounds = {each.name: begun + self.bound(worker, each) for each in self.model.seen(begun).line}
        if max(bounds.values(), default=0) > begun + DAY:
            return
        for _ in range(MOST_TRIES):
            if not bounds:
                return
            waiting = [each for each in self.model.line if each.name in bounds]
            next_one = min(waiting, key=lambda each: min(each.told, bounds[each.name]))
            self.time_passes(max(0, min(next_one.told, bounds[next_one.name]) - self.at(worker)))
            at_last = self.at(worker) >= bounds[next_one.name]
            told = self.try_again(worker, next_one)
            if told.probe:
                return
            assert told.granted or not at_last
            if told.granted:
                del bounds[next_one.name]

    @precondition(lambda self: self.followed)
    @rule(worker=workers)
    def the_first_comes(self, worker: int) -> None:
        """Exactness: whom nobody is before is told when it is granted, and is, if no call is in flight."""
        line = self.model.seen(self.at(worker)).line
        if not line:
            return
        first = min(line, key=lambda each: each.turn)
        told = self.try_again(worker, first)
        at = next((each.told for each in self.model.line if each.name == first.name), END_OF_TIME)
        if told.granted or told.probe or told.reason is Reason.TOO_LARGE or at >= self.at(worker) + DAY:
            return
        if self.model.beside:
            return
        self.time_passes(at - self.at(worker))
        told = self.try_again(worker, first)
        assert told.granted or told.probe

    # --- what always holds

    @invariant()
    def both_show_the_same(self) -> None:
        """Conservation: what is left and held is what there was, was told and flowed in, less what went out.

        By the clock that is ahead of the others: if the bucket's lifetime is over by any, it is by that.
        """
        shown, now = self.shown(self.skews.index(max(self.skews))), self.now + max(self.skews)
        if not self.followed:
            return
        twin = self.model.seen(now)
        assert (shown.balance, shown.held) == (twin.told_balance, twin.held)
        assert shown.holds == sum(not call.charged for call in twin.calls.values())
        assert (shown.capacity, shown.refill, shown.period) == (twin.capacity, twin.refill, twin.period_us / SECOND)
        assert (shown.kept_back, shown.drift) == (twin.kept_for_others, twin.drift)
        age = None if twin.read_at is None else max(0, now - twin.read_at) / SECOND
        assert shown.reading_age == age
        assert (shown.waiting, shown.wanted) == (len(twin.line), sum(each.tokens for each in twin.line))
        assert shown.paused_for == ((twin.paused_until or now) - now) / SECOND

    @invariant()
    def nobody_got_too_much(self) -> None:
        """Safety: since the last reading no more went out than there was, time brought, and may be overdrawn."""
        if not self.followed:
            return
        refilled = max(self.refilled(*flow) for flow in (self.model.flow, self.fastest))
        overdraft = self.largest if self.quota.overdraft == UNLIMITED else self.quota.overdraft
        # A place is taken now and paid for by the refill of up to an hour to come.
        ahead = 0 if self.quota.synced else self.refilled(*self.model.flow, HOUR)
        assert self.model.given <= max(0, self.model.start + refilled + overdraft + ahead) + self.scouted

    def refilled(self, refill: int, period_us: int, passed: int | None = None) -> int:
        """Return what has flowed in at most, by the time by which the bucket's clock went forward."""
        passed = self.forward + CLOCKS_APART_US if passed is None else passed
        return (passed // period_us + 1) * refill if self.quota.stepped else -(-passed * refill // period_us)

    @invariant()
    def it_never_stands_still(self) -> None:
        """Liveness: by the bound that a look states an attempt is granted or asks the server, though others fail."""
        shown = self.shown(0)
        if not self.followed:
            return
        if shown.bound > DAY / SECOND:
            assert self.model.refill == 0 or shown.bound * SECOND < END_OF_TIME
            return
        now, twin = self.at(0), self.model.alike()
        at_once = twin.carry_out(Acquire(1), now)
        by_then = twin.carry_out(Acquire(1), now + round(shown.bound * SECOND))
        assert at_once.granted or at_once.probe or by_then.granted or by_then.probe

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
        if inspected is None and (self.model.begun or not self.followed):
            self.forgotten(self.at(worker))
        assert inspected in {None, replace(shown, repaired=())}
        self.model.carry_out(Peek(), self.at(worker))
        return shown

    def forgotten(self, now: int) -> None:
        """A bucket whose lifetime is over held nothing, nor was it paused, nor will the new one let go more."""
        model = self.model.seen(now)
        if not self.followed:
            return
        assert not model.held
        assert model.paused_until is None
        assert not model.line
        is_full = model.known and model.balance >= self.quota.capacity
        assert is_full or (self.quota.synced and self.quota.initial is None)
        self.begin_account(Reference.new(self.quota, model.at))

    def bound(self, worker: int, waiting: Waiting) -> int:
        """Return the bound that a look states for whoever stands in line."""
        shown = self.apply(Peek(waiting.tokens, waiting.keep), worker).snapshot
        assert shown is not None
        self.model.carry_out(Peek(), self.at(worker))
        return min(END_OF_TIME, round(shown.bound * SECOND)) if shown.bound < END_OF_TIME else END_OF_TIME

    def try_again(self, worker: int, waiting: Waiting) -> Came:
        """Let somebody who stands in line ask again, and perhaps the server."""
        return self.do(worker, Acquire(waiting.tokens, waiting.keep, ticket=waiting.name))

    def do(self, worker: int, command: Command, *, as_modelled: Command | None = None) -> Came:
        """Give a command on both sides, and assert that it came to the same.

        Who was granted before others left their tokens. as_modelled: the command as the reference is given it.
        """
        now, ahead = self.at(worker), 0
        number = None
        if isinstance(command, Reserve) and command.id not in self.model.seen(now).calls:
            number = self.model.seen(now).number(command.ticket)
        if isinstance(command, Acquire) and command.tokens:
            twin = self.model.seen(now)
            ahead = twin.before(command.keep, command.ticket, now) + command.keep if twin.known else 0
        outcome = self.apply(command, worker)
        came = Came(
            *(outcome.reason, min(outcome.retry_after_us, END_OF_TIME), outcome.place_us, outcome.probe),
            *(outcome.scout, outcome.found, outcome.reading, outcome.drift),
        )
        if not self.followed:
            return came
        assert came == self.model.carry_out(as_modelled or command, now)
        if isinstance(command, Acquire | Reserve):
            assert outcome.granted == came.granted
            self.largest = max(self.largest, command.tokens if came.granted else 0)
            self.scouted += command.tokens if came.scout else 0
        if as_modelled is None and outcome.granted and not outcome.scout:
            assert (outcome.arrived is None) == (number is None)
        if isinstance(command, Reserve) and command.ticket and outcome.arrived is not None and number is not None:
            self.stood[command.ticket] = outcome.arrived, number
        if outcome.granted and ahead > getattr(command, "keep", 0):
            assert (outcome.balance or 0) - (outcome.held if self.quota.synced else 0) >= ahead
        if came.verdict is Verdict.TAKEN:
            self.forward = self.scouted = 0
            self.fastest = self.model.flow
        self.is_as_modelled(outcome)
        return came

    def is_as_modelled(self, outcome: Outcome) -> None:
        """Assert that the bucket is the same on both sides after a step."""
        twin = self.model.after
        assert isinstance(twin, Reference)
        assert (outcome.balance, outcome.held) == (twin.told_balance, twin.held)
        assert outcome.closed == (twin.closed_until is not None)
        assert outcome.kept_back == twin.kept_for_others


class AnyHistory(BucketMachine):
    """A bucket that anybody uses anyhow, by clocks that differ, and of which any part may be lost."""

    @rule(by=st.integers(-CLOCKS_APART_US, -1) | st.integers(-DAY, DAY))
    def clocks_are_set(self, by: int) -> None:
        """All clocks are set, back or forward; what refills is the time by which they go forward."""
        self.now += by
        # Set back, each worker's clock may bring once more the time by which it is ahead of the others'.
        self.forward += by if by > 0 else CLOCKS_APART_US

    @precondition(lambda self: self.bench.forget is not None)
    @rule(worker=workers)
    def lose_everything(self, worker: int) -> None:
        """The whole bucket is lost: the next step makes a new one."""
        if self.bench.forget is not None:
            self.bench.forget()
            self.start_over(worker)

    @rule(worker=workers, command=takes)
    def take(self, worker: int, command: Acquire) -> None:
        """Take tokens now, or stand in line."""
        self.do(worker, command)

    @rule(worker=workers, command=reserves | scouts)
    def hold(self, worker: int, command: Reserve) -> None:
        """Take tokens for a call, which may be in flight already, or go though refused, to learn the truth."""
        self.do(worker, command)

    @precondition(lambda self: self.stood)
    @rule(worker=workers, command=reserves, which=st.integers(0, 3))
    def stand_again(self, worker: int, command: Reserve, which: int) -> None:
        """Whose call was refused by the server stands again where it stood."""
        ticket = sorted(self.stood)[which % len(self.stood)]
        stored, number = self.stood[ticket]
        command = replace(command, ticket=ticket, arrived=stored)
        self.do(worker, command, as_modelled=replace(command, arrived=number))

    @rule(worker=workers, command=st.builds(Reserve, ids, st.integers(0, 3), st.integers(MINUTE, HOUR)))
    def hold_little(self, worker: int, command: Reserve) -> None:
        """Take a few tokens for long, so that several calls are in flight at once."""
        self.do(worker, command)

    @rule(worker=workers, command=st.builds(Settle, ids, st.none() | costs, refused=st.booleans()))
    def settle(self, worker: int, command: Settle) -> None:
        """End a call, in time or late, whose answer says nothing of the balance."""
        self.do(worker, replace(command, id=self.rather_open(command.id)))

    @rule(worker=workers, command=st.builds(Cancel, ids) | st.builds(Cancel, tickets.filter(bool)))
    def cancel(self, worker: int, command: Cancel) -> None:
        """Give a call up, or a wait in line."""
        self.do(worker, command)

    @rule(worker=workers, name=refund_ids, tokens=costs, own=owns)
    def give_back(self, worker: int, name: str, tokens: int, own: int | None) -> None:
        """Give tokens back, once: a place that is given up, or a grant that was not used."""
        self.do(worker, Refund(name, tokens, None if own is None else max(0, self.at(worker) + own)))

    @rule(worker=workers, command=st.builds(Pause, pauses))
    def pause(self, worker: int, command: Pause) -> None:
        """Somebody pauses the bucket for a while, or ends a pause."""
        self.do(worker, command)

    @rule(worker=workers, tokens=costs)
    def take_when_told(self, worker: int, tokens: int) -> None:
        """Exactness: who was refused and waits exactly as long as told is granted, a microsecond less is not.

        With a call in flight what is told is the earliest instant only; with others before in line, when to ask again.
        """
        told = self.do(worker, Acquire(tokens))
        if told.reason not in {Reason.EMPTY, Reason.RECHARGING} or told.wait >= DAY or self.model.beside:
            return
        if self.model.before(0, None, self.at(worker)):
            return
        # A look a microsecond early, not an attempt: it must not count as somebody else who asked.
        early = self.at(worker) + told.wait - 1
        assert not self.bench.storage.apply(self.bench.key, self.quota, Peek(tokens), now_us=early).granted
        self.model.carry_out(Peek(), early)
        self.time_passes(told.wait)
        assert self.do(worker, Acquire(tokens)).granted

    # --- what goes wrong

    @precondition(lambda self: self.bench.may_be_damaged and self.model.begun)
    @rule(worker=workers, field=st.sampled_from(NUMBERS), text=damages)
    def lose(self, worker: int, field: str, text: str | None) -> None:
        """A stored field is lost or garbled; the next step notices, and names what it can't do without."""
        now = self.at(worker)
        missed = text is not None or field in self.needed(now)
        if field == "refilled_at":
            self.forward += CLOCKS_APART_US  # the time by which clocks differ may come again
        if field in LOSES:
            LOSES[field](self.model, now)
        elif field in LOST:
            setattr(self.model, LOST[field], getattr(Reference, LOST[field]))
        if field == "sequence":
            self.stood = {}  # it goes on from the numbers that are still there
        outcome = self.lost(field, text, worker)
        name = "reported_refill" if field == "reported_period_us" and text is None else field
        assert (name in outcome.repaired) == missed
        self.is_as_modelled(outcome)

    def needed(self, now: int) -> set[str]:
        """Return the fields that are missed when they are gone.

        A reading further ahead than clocks may differ, after they were set back, is named itself and counts as none.
        A synced bucket without a reading may rightly have no balance: then that isn't missed.
        """
        model, stored = self.model, self.bench.stored()
        needed = {"refilled_at"}
        if any(name.startswith("hold:") or name == "reading_sequence" for name in stored) or stored.get("line"):
            needed.add("sequence")
        if not self.quota.synced:
            return needed | {"balance"}
        if model.read_at is not None and model.read_at <= now + CLOCKS_APART_US:
            needed |= {"balance", "reading_sequence"}
        if model.told_flow is not None:
            needed |= {"reported_refill", "reported_period_us"}
        return needed | {"held"} if model.held else needed

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

    @precondition(lambda self: self.bench.may_be_damaged and self.model.line)
    @rule(worker=workers, which=st.integers(0, 3), text=st.sampled_from(UNREADABLE))
    def lose_a_ticket(self, worker: int, which: int, text: str) -> None:
        """What is stored of one who stands in line is lost or garbled: the others stay."""
        stored = self.bench.stored().get("line", "").split()
        name = stored.pop(which % len(stored)).split(":")[0]
        self.model.stay(each for each in self.model.line if each.name != name)
        outcome = self.lost("line", " ".join(filter(None, [*stored, text])), worker)
        assert not text or "line" in outcome.repaired

    @precondition(lambda self: self.bench.may_be_damaged and self.model.free)
    @rule(worker=workers, text=damages)
    def lose_the_free_places(self, worker: int, text: str | None) -> None:
        """What is stored of places that nobody waits for is lost or garbled: nobody gets them."""
        self.model.free = ()
        outcome = self.lost("free", text, worker)
        assert not text or "free" in outcome.repaired

    @precondition(lambda self: self.bench.may_be_damaged and self.model.line)
    @rule(worker=workers, text=damages)
    def lose_the_line(self, worker: int, text: str | None) -> None:
        """The whole line is lost or garbled: nobody stands there."""
        self.model.stay([])
        outcome = self.lost("line", text, worker)
        assert not text or "line" in outcome.repaired

    def lost(self, field: str, text: str | None, worker: int) -> Outcome:
        """Let a stored field be gone, or `text`, and take the next step on both sides."""
        self.bench.damage(field, text)
        outcome = self.apply(Acquire(0) if self.bench.reads_all else Peek(), worker)
        self.model.carry_out(Peek(), self.at(worker), mended=bool(outcome.repaired))
        return outcome

    def rather_open(self, name: str) -> str:
        """Return a call that is known, as most that end are; now and then another."""
        known = sorted(self.model.calls.keys() & set(IDS[:-1]))
        return known[IDS.index(name) % len(known)] if known and name != IDS[-1] else name


class PlainMachine(AnyHistory):
    """A plain bucket."""

    @initialize(quota=quotas(synced=False), skews=SKEWS)
    def begin(self, quota: Quota, skews: tuple[int, ...]) -> None:
        """Make a bucket."""
        self.begin_with(quota, skews)

    @rule(worker=workers, command=st.builds(Acquire, costs, st.just(0), st.integers(0, HOUR), st.none(), tickets))
    def queue(self, worker: int, command: Acquire) -> None:
        """Take tokens, or a place, or stand in line."""
        self.do(worker, command)


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

synced_quotas: Final = quotas(synced=True) | st.builds(
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


class ReadingMachine(AnyHistory):
    """A synced bucket."""

    @initialize(quota=synced_quotas, skews=SKEWS)
    def begin(self, quota: Quota, skews: tuple[int, ...]) -> None:
        """Make a bucket."""
        self.begin_with(quota, skews)

    @rule(worker=workers, name=ids, actual=st.none() | costs, word=words, refused=st.sampled_from((False, False, True)))
    def answer(self, worker: int, name: str, actual: int | None, word: Word, refused: bool) -> None:  # noqa: FBT001 - drawn, not called
        """End a call, in time or late, with what the server says of its balance."""
        self.do(worker, Settle(self.rather_open(name), actual, self.spoken(word), refused))

    @precondition(lambda self: self.said)
    @rule(worker=workers, name=ids, actual=costs, which=st.integers(1, 4))
    def answer_late(self, worker: int, name: str, actual: int, which: int) -> None:
        """End a call with what the server said before, and others may have heard since."""
        self.do(worker, Settle(name, actual, self.said[-min(which, len(self.said))]))

    @rule(worker=workers, word=words)
    def hear(self, worker: int, word: Word) -> None:
        """Hear the server's word outside a call: from a probe, or an answer seen elsewhere."""
        self.do(worker, Reconcile(self.spoken(word)))

    @precondition(lambda self: self.said)
    @rule(worker=workers, which=st.integers(1, 4))
    def hear_again(self, worker: int, which: int) -> None:
        """Hear what was said before, once more or for the first time."""
        self.do(worker, Reconcile(self.said[-min(which, len(self.said))]))

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

    @rule(worker=workers)
    def claim(self, worker: int) -> None:
        """Ask for the claim on the probe; the answer may never come."""
        self.do(worker, ClaimProbe())

    @rule(worker=workers, off=st.sampled_from((0, 0, 0, 1)))
    def unclaim(self, worker: int, off: int) -> None:
        """Give the claim back that is under way, or another one."""
        until = (self.model.claimed_until or self.at(worker)) + off
        self.do(worker, Unclaim(until))
