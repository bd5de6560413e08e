"""Safety: net spending never exceeds what there was, what was refilled as the clock moved forward, and the overdraft.

Each test keeps its own books beside the bucket: what was granted and given back, how far the clock moved forward,
and what a loss may rightly forgive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checks.models.strategies import (
    DAY,
    EPOCH,
    HOUR,
    MINUTE,
    NONSENSE,
    SECOND,
    gaps,
    ids,
    instants,
    quotas,
    readings,
    with_fields,
)
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import (
    Acquire,
    Cancel,
    Command,
    Outcome,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Verdict,
)
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import LIMIT, TOLERANCE_US, UNLIMITED
from tests.strategies import SPARING, Bucket, Direct, Make, either_way

# --- the books


class Books:
    """Counts what a bucket gave, by what it answered alone."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.most = quota.starts_at or 0
        self.ceiling = quota.capacity
        self.net = 0
        self.last_grant = 0
        self.forward = 0
        self.forgiven = 0
        self.refill = quota.refill
        self.period = quota.period_us
        self.open: dict[str, int] = {}

    def record(self, command: Command, outcome: Outcome) -> None:
        match command:
            case Acquire(tokens) if outcome.granted:
                self._grant(tokens)
            case Reserve(hold_id, tokens) if outcome.granted and hold_id not in self.open:
                self.open[hold_id] = tokens
                self._grant(tokens)
            case Settle(hold_id, actual, reading):
                self._settle(hold_id, actual, reading, outcome)
            case Cancel(hold_id) if outcome.found and hold_id in self.open:
                self.net -= self.open.pop(hold_id)
            case Refund(_, tokens) if outcome.found:
                self.net -= tokens
            case Reconcile(reading) if outcome.reading is Verdict.TAKEN:
                self._begin(reading)
            case _:
                pass

    def _grant(self, tokens: int) -> None:
        self.net += tokens
        self.last_grant = tokens

    def _settle(self, hold_id: str, actual: int | None, reading: Reading | None, outcome: Outcome) -> None:
        estimate = self.open.pop(hold_id, None)
        if outcome.reading is Verdict.TAKEN and reading is not None:
            self._begin(reading)
        elif outcome.found and estimate is not None and actual is not None:
            self.net -= estimate - actual

    def _begin(self, reading: Reading) -> None:
        """A reading begins a new account; what was granted before it isn't given back to it."""
        self.most = max(reading.balance, 0)
        self.net = self.forward = self.forgiven = 0
        self.open = {}

    def forget(self, hold_id: str) -> None:
        """The bucket lost a hold: its tokens are no longer set aside, so they may be spent once more."""
        self.forgiven += self.open.get(hold_id, 0)

    @property
    def refilled(self) -> int:
        """The most that the clock's way forward can have brought."""
        if self.quota.stepped:
            # One step more than whole periods fit: the phase is the server's.
            return (self.forward // self.period + 1) * self.refill
        return -(-self.forward * self.refill // self.period)

    def check(self) -> None:
        overdraft = self.last_grant if self.quota.overdraft == UNLIMITED else self.quota.overdraft
        assert self.net <= max(self.most, 0) + self.refilled + self.forgiven + overdraft


# --- what happens


@dataclass(frozen=True)
class Spend:
    """A command, and how long after the one before it comes (negative: the clock steps back)."""

    after: int
    command: Command


@dataclass(frozen=True)
class Damage:
    """Stored fields are lost or become nonsense."""

    fields: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Again:
    """A command that was carried out before arrives once more; `ago` counts backwards."""

    ago: int


Step = Spend | Damage | Again

waits = st.one_of(gaps, gaps, st.integers(-TOLERANCE_US, -1), st.integers(-HOUR, -1))
forward_waits = gaps
spends = st.one_of(st.integers(1, 6), st.integers(1, 400))
estimates = st.integers(1, 40)
spending = st.one_of(
    st.builds(Acquire, spends, st.integers(0, 3)),
    st.builds(Reserve, ids, estimates, st.integers(1, 10 * MINUTE), st.integers(0, 3)),
    st.builds(Settle, ids, st.integers(0, 1)),
    st.builds(Cancel, ids),
)
losable = st.sampled_from(("refilled_at", "balance", "carry", "sequence", "closed_until", "probe_until", "format"))
damage = st.builds(Damage, st.lists(st.tuples(losable, st.sampled_from(NONSENSE)), min_size=1, max_size=2).map(tuple))
again = st.builds(Again, st.integers(1, 5))


def histories(*, back: bool = True, lossy: bool = True, commands: st.SearchStrategy[Any] = spending) -> Any:
    steps: list[st.SearchStrategy[Any]] = [st.builds(Spend, waits if back else forward_waits, commands)] * 4
    steps.append(again)
    if lossy:
        steps.append(damage)
    return st.lists(st.one_of(steps), max_size=25)


def run(bucket: Bucket, books: Books, now: int, history: list[Step]) -> None:
    """Let a history happen, with the promise checked after every step."""
    done: list[Command] = []
    for step in history:
        command: Command | None = None
        match step:
            case Spend(after, command):
                books.forward += max(0, after)
                now = max(0, now + after)
            case Again(ago):
                command = done[-ago] if ago <= len(done) else None
            case Damage(fields):
                harm(bucket, books, dict(fields))
        if command is not None:
            books.record(command, bucket.apply(command, now))
            done.append(command)
        books.check()


def harm(bucket: Bucket, books: Books, fields: dict[str, object]) -> None:
    """Damage what is stored; a lost balance forgives its debt, one token's part of a carry is a token at most."""
    state = bucket.state
    if state is None:
        return
    if "balance" in fields:
        stored = state.balance if type(state.balance) is int else 0  # earlier damage is of any type
        books.forgiven += max(0, -stored)
    bucket.put(with_fields(state, fields))


@either_way
@SPARING
@given(data=st.data())
def test_a_plain_bucket_never_gives_more_than_it_had_and_got(make: Make, data: st.DataObject) -> None:
    """Whatever is lost, repeated or stepped back in time, grants minus returns stay within the promise."""
    quota = data.draw(quotas(synced=False))
    run(make(quota), Books(quota), data.draw(instants), data.draw(histories()))


@either_way
@SPARING
@given(data=st.data())
def test_a_synced_bucket_never_gives_more_than_the_last_reading_and_the_refill(make: Make, data: st.DataObject) -> None:
    """Since the last reading that was taken, net spending is within its balance, the refill and the overdraft."""
    quota = data.draw(quotas(synced=True))
    known = readings.map(lambda reading: replace(reading, refill=None, period=None, capacity=None))
    settles = st.builds(Settle, ids, st.integers(0, 1), known)
    commands = st.one_of(spending, spending, settles, st.builds(Reconcile, known))
    bucket, books = make(quota), Books(quota)
    run(bucket, books, data.draw(instants), data.draw(histories(commands=commands)))


@pytest.mark.parametrize("stepped", [False, True])
@either_way
@SPARING
@given(data=st.data())
def test_what_is_taken_and_what_is_left_add_up_to_what_was_refilled(
    make: Make, stepped: bool, data: st.DataObject
) -> None:
    """On a clock that goes forwards the balance and all that was taken are what there was and was refilled, or less.

    Below the cap they are exactly that: no token is lost either.
    """
    quota = data.draw(quotas(synced=False, stepped=stepped, recharge=False, capacities=st.just(LIMIT // 4)))
    quota = replace(quota, initial=data.draw(st.integers(0, 1000)))
    bucket, now, taken = make(quota), data.draw(instants), 0
    bucket.apply(Acquire(0), now)
    start = now
    for _ in range(data.draw(st.integers(1, 20))):
        now += data.draw(gaps)
        tokens = data.draw(spends)
        taken += tokens * bucket.apply(Acquire(tokens), now).granted
    left = bucket.apply(Acquire(0), now).balance  # a refusal stores nothing where only time has passed
    assert left is not None
    periods, rest = divmod(now - start, quota.period_us)
    refilled = periods * quota.refill + (0 if stepped else rest * quota.refill // quota.period_us)
    assert left + taken == (quota.initial or 0) + refilled


@either_way
@given(
    quota=quotas(synced=False, least_refill=1),
    balance=st.integers(-1000, 1000),
    now=instants,
    losses=st.lists(st.integers(0, 3 * SECOND), min_size=1, max_size=10),
)
def test_a_lost_timestamp_mints_nothing(make: Make, quota: Quota, balance: int, now: int, losses: list[int]) -> None:
    """Lost before every single attempt, the timestamp never brings more than the time that passed since the first."""
    bucket = make(quota, BucketState(balance=balance, refilled_at=None))
    start = now
    for after in losses:
        now += after
        bucket.apply(Acquire(0), now)
        assert bucket.stored.balance is not None
        assert (bucket.stored.balance - balance) * quota.period_us <= (now - start) * quota.refill
        bucket.put(replace(bucket.stored, refilled_at=None))


@given(
    quota=quotas(synced=False, stepped=False, recharge=False, least_refill=1),
    now=st.integers(HOUR, EPOCH),
    skews=st.lists(st.integers(-TOLERANCE_US, TOLERANCE_US), min_size=1, max_size=12),
)
def test_two_skewed_writers_mint_nothing(quota: Quota, now: int, skews: list[int]) -> None:
    """Writers whose clocks stand up to the tolerance apart get the refill of the furthest clock, not one each."""
    bucket = Direct(quota, BucketState(balance=-(10**9), refilled_at=now))
    furthest = now
    for skew in skews:
        at = now + skew // 2  # apart from each other by the tolerance at most
        furthest = max(furthest, at)
        bucket.apply(Acquire(0), at)
    assert bucket.stored.balance is not None
    assert (bucket.stored.balance + 10**9) * quota.period_us <= (furthest - now) * quota.refill


@given(
    quota=quotas(synced=False, least_refill=1, recharge=False),
    now=st.integers(2 * DAY, EPOCH),
    jumps=st.lists(st.integers(1, DAY), min_size=1, max_size=10),
)
def test_a_clock_that_jumps_to_and_fro_mints_only_its_way_forward(quota: Quota, now: int, jumps: list[int]) -> None:
    """Jumping back brings nothing; jumping forward again brings the refill of that way, as if time had passed."""
    bucket = Direct(quota, BucketState(balance=-(10**9), refilled_at=now))
    forward = 0
    for jump in jumps:
        bucket.apply(Acquire(0), now - jump)
        before = bucket.state
        bucket.apply(Acquire(0), now - jump)
        assert bucket.state == before
        bucket.apply(Acquire(0), now)
        forward += jump
    assert bucket.stored.balance is not None
    assert (bucket.stored.balance + 10**9) * quota.period_us <= forward * quota.refill


@either_way
@pytest.mark.parametrize("synced", [False, True])
@given(data=st.data(), now=instants)
def test_a_lost_balance_forgives_at_most_the_debt(make: Make, synced: bool, data: st.DataObject, now: int) -> None:
    """Without it a plain bucket goes on from 0, whatever refill was due; of a synced one the server is asked."""
    lost = BucketState(balance=None, refilled_at=max(0, now - DAY), reading_at=now if synced else None)
    outcome = make(data.draw(quotas(synced=synced)), lost).apply(Acquire(1), now)
    assert not outcome.granted
    assert (outcome.balance, outcome.probe) == ((None, True) if synced else (0, False))
    assert "balance" in outcome.repaired


@either_way
@SPARING
@given(data=st.data())
def test_every_command_twice_is_every_command_with_an_id_once(make: Make, data: st.DataObject) -> None:
    """If each reserve, settle, cancel and refund arrives twice in a row, the bucket ends as if each had come once."""
    quota = data.draw(quotas())
    now = data.draw(instants)
    once, twice = make(quota), make(quota)
    repeatable = st.one_of(
        st.builds(Reserve, ids, estimates, st.integers(1, 10 * MINUTE)),
        st.builds(Settle, ids, st.integers(0, 60)),
        st.builds(Cancel, ids),
        st.builds(Refund, st.sampled_from(("r", "s")), st.integers(0, 9)),
    )
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(gaps)
        command = data.draw(repeatable)
        first = once.apply(command, now)
        assert twice.apply(command, now).granted == first.granted
        again_outcome = twice.apply(command, now)
        if isinstance(command, Reserve):
            assert again_outcome.granted == first.granted
        assert once.apply(Peek(), now).snapshot == twice.apply(Peek(), now).snapshot


SKEWS: Final = st.one_of(st.integers(0, TOLERANCE_US), st.sampled_from([0, TOLERANCE_US]))
"""How far the clock of whoever asks is ahead of the true time: no two of them are further apart than the tolerance."""


@given(
    now=st.integers(HOUR, EPOCH),
    counted=SKEWS,
    later=st.lists(st.tuples(st.integers(0, 595 * SECOND - 1), SKEWS, st.booleans()), max_size=4).map(sorted),
)
@example(now=HOUR, counted=0, later=[(595 * SECOND - 1, TOLERANCE_US, True)])
# Counted by a clock behind, looked at by one ahead, repeated by one behind.
@example(now=HOUR, counted=0, later=[(594 * SECOND, TOLERANCE_US, False), (595 * SECOND - 1, 0, True)])
def test_a_refund_counts_once_however_often_it_is_repeated(
    now: int, counted: int, later: list[tuple[int, int, bool]]
) -> None:
    """For ten minutes, less the tolerance of clocks, a refund that is sent again gives its tokens back once."""
    bucket = Direct(Quota(1000, 0, 1.0, initial=0))
    refund = Refund("r", 7)
    assert bucket.apply(refund, now + counted).found
    for passed, skew, repeated in later:
        outcome = bucket.apply(refund if repeated else Acquire(0), now + passed + skew)
        assert outcome.balance == 7
