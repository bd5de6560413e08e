"""The checker of `make torture`, on logs made by hand: what breaks the promise is found, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.torture import liveness, plan, report, server, spending, story
from checks.torture.steps import FREEZE, Finding, Story, lurks_until, story_of
from checks.torture.story import (
    Answered,
    Asked,
    Broke,
    Calm,
    Charged,
    Entry,
    Failed,
    Fault,
    Journal,
    Killed,
    Left,
    Remains,
    Sent,
    Told,
    Total,
)
from checks.torture.terms import HELD, HOLD_FOR, KEEPA, PLAIN, QUOTAS, SECOND
from keepa_tokens import MemoryStorage, Reading
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Peek, Reconcile, Refund, Reserve, Settle

NOW = 1_780_000_000 * SECOND
TENTH = SECOND // 10
PLAIN_QUOTA, HELD_QUOTA, KEEPA_QUOTA = (QUOTAS[bucket] for bucket in (PLAIN, HELD, KEEPA))
LIFETIME = round(HOLD_FOR[HELD] * SECOND)


class Log:
    """A log made by hand: each line is a command, and what its caller was told."""

    def __init__(self, bucket: str = PLAIN) -> None:
        self.bucket = bucket
        self.entries: list[Entry] = []
        self.steps = 0

    def sent(self, at: int, command: Command) -> int:
        """Send a command that nobody is told of, yet."""
        self.steps += 1
        self.entries.append(story.sent("w", at, self.steps, self.bucket, command))
        return self.steps

    def told(self, at: int, command: Command, **outcome: Any) -> Log:
        """Send a command whose outcome is known."""
        told = Told("w", at, self.sent(at, command), granted=isinstance(command, Acquire | Reserve))
        self.entries.append(replace(told, **outcome))
        return self

    def lost(self, at: int, command: Command) -> Log:
        """Send a command of which nobody knows whether it counted."""
        self.entries.append(Failed("w", at + TENTH, self.sent(at, command), "StorageUnavailable"))
        return self

    def add(self, *entries: Entry) -> Log:
        """Add other lines."""
        self.entries += entries
        return self

    def copy(self) -> Log:
        """Return another log that begins alike."""
        other = Log(self.bucket)
        other.entries, other.steps = list(self.entries), self.steps
        return other

    def spending(self) -> list[str]:
        """Return the rules that the spending broke."""
        told = story_of(self.entries)
        found = spending.count(self.bucket, QUOTAS[self.bucket], told).findings
        found += spending.lost_holds(self.bucket, told) + spending.counted_twice(self.bucket, told)
        return rules(found)

    def liveness(self) -> list[str]:
        """Return the bounds that were not kept."""
        found = liveness.watch(self.bucket, QUOTAS[self.bucket], story_of(self.entries))
        return rules(found.findings)


def rules(findings: Sequence[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def wiped(at: int, *buckets: str) -> Fault:
    return Fault("director", at, plan.FLUSH, "", at, buckets)


# --- spending


@pytest.mark.parametrize("early, found", [(0, []), (1, ["over-grant"])])
def test_a_grant_a_microsecond_too_early_is_found(early: int, found: list[str]) -> None:
    """A full bucket and then a token each tenth of a second are right; the same a microsecond earlier is not."""
    log = Log().told(NOW, Acquire(PLAIN_QUOTA.capacity))
    log.told(NOW + TENTH, Acquire(1)).told(NOW + 2 * TENTH - early, Acquire(1))
    assert log.spending() == found


@pytest.mark.parametrize("early, found", [(0, []), (1, ["over-grant"])])
def test_a_place_a_microsecond_too_early_is_found(early: int, found: list[str]) -> None:
    """A place in the queue counts at its own instant."""
    log = Log().told(NOW, Acquire(PLAIN_QUOTA.capacity)).told(NOW, Acquire(3, wait_us=SECOND), place=3 * TENTH)
    assert log.told(NOW, Acquire(2, wait_us=SECOND), place=5 * TENTH - early).spending() == found


@pytest.mark.parametrize("tokens, found", [(4, []), (5, ["over-grant"])])
def test_the_overdraft_is_allowed_and_no_more(tokens: int, found: list[str]) -> None:
    """One grant may overdraw by the quota's overdraft, not by a token more."""
    assert HELD_QUOTA.overdraft == 4
    log = Log(HELD).told(NOW, Reserve("a", HELD_QUOTA.capacity - 1, LIFETIME))
    assert log.told(NOW, Reserve("b", 1 + tokens, LIFETIME)).spending() == found


def test_what_a_bucket_does_not_know_it_does_not_grant() -> None:
    """A synced bucket grants nothing before a reading, after a loss or a reading of 0; but after one above 0."""
    call = Reserve("a", 1, LIFETIME)
    assert Log(KEEPA).told(NOW, call).spending() == ["over-grant"]
    known = Log(KEEPA).told(NOW, Reconcile(Reading(1)), taken=True).told(NOW + 1, call)
    assert known.spending() == []
    assert known.told(NOW + 2, replace(call, id="b")).spending() == ["over-grant"]
    at_0 = Log(KEEPA).told(NOW, Reconcile(Reading(0)), taken=True).told(NOW + 1, call)
    assert at_0.spending() == ["over-grant"]
    lost = Log(KEEPA).told(NOW, Reconcile(Reading(9)), taken=True).add(wiped(NOW + SECOND, KEEPA))
    assert lost.told(NOW + 2 * SECOND, call).spending() == ["over-grant"]


def test_an_unlimited_overdraft_allows_one_grant_on_a_positive_balance() -> None:
    """A balance of 1 allows a grant of any size, and none after it."""
    log = Log(KEEPA).told(NOW, Reconcile(Reading(1)), taken=True).told(NOW + 1, Reserve("a", 99, LIFETIME))
    assert log.spending() == []
    assert log.told(NOW + 2, Reserve("b", 1, LIFETIME)).spending() == ["over-grant"]


def test_a_stepped_refill_counts_when_its_step_comes() -> None:
    """The refill comes at the instant that the reading named, not before."""
    reading = Reconcile(Reading(0, next_refill_in=0.4))
    for at, found in ((4 * TENTH, []), (4 * TENTH - 1, ["over-grant"])):
        log = Log(KEEPA).told(NOW, reading, taken=True).told(NOW + at, Reserve("a", 1, LIFETIME))
        assert log.spending() == found


def test_a_step_is_one_step() -> None:
    """At each step one refill comes: a debt of one refill is paid by the first, and only the second may be spent."""
    log = Log(KEEPA).told(NOW, Reconcile(Reading(-KEEPA_QUOTA.refill, next_refill_in=0.4)), taken=True)
    call = Reserve("a", 1, LIFETIME)
    assert log.copy().told(NOW + 4 * TENTH, call).spending() == ["over-grant"]
    assert log.told(NOW + 14 * TENTH, call).spending() == []


def test_what_is_kept_for_others_is_not_there() -> None:
    """A grant must leave as much as it was told to keep."""
    everything = PLAIN_QUOTA.capacity
    assert Log().told(NOW, Acquire(everything - 1, keep=1)).spending() == []
    assert Log().told(NOW, Acquire(everything, keep=1)).spending() == ["over-grant"]


def test_a_charge_that_a_reading_has_replaced_is_not_given_back() -> None:
    """A hold ran out, then a reading came: a late settle gives nothing back, for no charge is in the reading."""
    log = Log(KEEPA).told(NOW, Reconcile(Reading(9)), taken=True).told(NOW + 1, Reserve("a", 9, TENTH))
    log.told(NOW + 2 * TENTH, Reconcile(Reading(0)), taken=True).told(NOW + 3 * TENTH, Settle("a", 0))
    assert log.told(NOW + 3 * TENTH, Reserve("b", 1, LIFETIME)).spending() == ["over-grant"]


def test_a_reading_in_the_moment_of_a_loss_may_have_come_after_it() -> None:
    """When a loss lies between two instants, what was read in between may be known still."""
    loss = Fault("director", NOW, plan.EVICT, "", NOW + TENTH, (KEEPA,))
    for at, found in ((NOW + TENTH // 2, []), (NOW - TENTH, ["over-grant"])):
        log = Log(KEEPA).add(loss).told(at, Reconcile(Reading(9)), taken=True)
        assert log.told(NOW + 2 * TENTH, Reserve("a", 1, LIFETIME)).spending() == found


def test_a_state_that_is_lost_is_a_new_one() -> None:
    """After a FLUSHALL a full bucket may be spent again; without one it is an over-grant."""
    log = Log().told(NOW, Acquire(PLAIN_QUOTA.capacity)).told(NOW + TENTH, Acquire(PLAIN_QUOTA.capacity))
    assert log.spending() == ["over-grant"]
    assert log.add(wiped(NOW + TENTH // 2, PLAIN)).spending() == []
    assert log.told(NOW + 2 * TENTH, Acquire(2)).spending() == ["over-grant"]


def test_a_refund_counts_once_in_each_life() -> None:
    """Twice in one life is a finding; what forgot the bucket forgot the refund too."""
    twice = Log().told(NOW, Refund("r", 1, NOW)).told(NOW + TENTH, Refund("r", 1, NOW))
    assert twice.spending() == ["counted twice"]
    assert twice.add(wiped(NOW + TENTH // 2, PLAIN)).spending() == []
    assert twice.told(NOW + 2 * TENTH, Refund("r", 1, NOW)).spending() == ["counted twice"]


ALL = HELD_QUOTA.capacity + HELD_QUOTA.overdraft
FULL = Reserve("a", ALL, LIFETIME)


@pytest.mark.parametrize(
    "end, most",
    [(Cancel("a"), ALL), (Settle("a", 0), ALL), (Settle("a", 10), 6), (Settle("a", 11), 5)],
    ids=str,
)
def test_what_is_given_back_may_be_spent_and_no_more(end: Settle | Cancel, most: int) -> None:
    """What a hold did not cost may be granted again when it has ended, not before, and not a token more."""
    log = Log(HELD).told(NOW, FULL)
    ended = log.copy().told(NOW + TENTH, end)
    assert ended.copy().told(NOW + TENTH, Reserve("b", most, LIFETIME)).spending() == []
    assert ended.told(NOW + TENTH, Reserve("b", most + 1, LIFETIME)).spending() == ["over-grant"]
    assert log.told(NOW + TENTH, Reserve("b", 1, LIFETIME)).told(NOW + 2 * TENTH, end).spending() == ["over-grant"]


@pytest.mark.parametrize("end", [Settle("a", ALL), Settle("a"), Settle("a", 99)], ids=str)
def test_what_was_spent_is_gone(end: Settle) -> None:
    """A hold that cost all that there was, or more, leaves nothing."""
    log = Log(HELD).told(NOW, FULL).told(NOW + TENTH, end)
    assert log.told(NOW + TENTH, Reserve("b", 1, LIFETIME)).spending() == ["over-grant"]


@pytest.mark.parametrize("tokens, found", [(6, []), (7, ["over-grant"])])
def test_a_late_settle_corrects_by_the_difference(tokens: int, found: list[str]) -> None:
    """A hold that ran out was charged in full then; what is given back later comes on top of what refilled since."""
    late = NOW + LIFETIME + TENTH
    log = Log(HELD).told(NOW, FULL).told(late, Settle("a", 10))  # -4, and 0.8, and 6
    assert log.told(late, Reserve("b", tokens, LIFETIME)).spending() == found


def test_a_settle_whose_answer_was_lost_may_have_counted() -> None:
    """Its tokens are allowed for once, from when it was sent on."""
    log = Log(HELD).told(NOW, FULL).lost(NOW + TENTH, Settle("a", 0))
    for name in "bc":
        log.told(NOW + 2 * TENTH, Reserve(name, 8, LIFETIME))
        assert log.spending() == []
    assert log.told(NOW + 2 * TENTH, Reserve("d", 1, LIFETIME)).spending() == ["over-grant"]


def test_a_refund_counts_once_whatever_was_lost() -> None:
    """A refund that was sent twice, its first answer lost, gives its tokens back once."""
    refund = Refund("r", 2, NOW)
    log = Log().told(NOW, Acquire(12)).lost(NOW, refund).told(NOW + TENTH, refund, found=False)
    assert log.copy().told(NOW + TENTH, Acquire(3)).spending() == []
    assert log.told(NOW + TENTH, Acquire(4)).spending() == ["over-grant"]


def test_a_reserve_that_was_sent_twice_is_one_grant() -> None:
    """Of a hold whose first answer was lost one is counted, taken between the first sending and the answer."""
    twice = Log(HELD).lost(NOW, FULL).told(NOW + TENTH, FULL)
    assert twice.spending() == []
    assert twice.told(NOW + TENTH + 1, Reserve("b", 1, LIFETIME)).spending() == ["over-grant"]


def test_a_grant_that_nobody_was_told_of_is_none() -> None:
    """What was taken without anybody's knowledge leaves less for others, and breaks nothing."""
    assert Log().lost(NOW, Acquire(12)).told(NOW + TENTH, Acquire(12)).spending() == []


def test_a_reading_may_have_been_taken_though_its_answer_was_lost() -> None:
    """A reading whose answer was lost is allowed for; one that is known to be stale is not."""
    log = Log(KEEPA).told(NOW, Reconcile(Reading(0)), taken=True)
    more, call = Reconcile(Reading(7)), Reserve("a", 3, LIFETIME)
    assert log.copy().lost(NOW + 1, more).told(NOW + TENTH, call).spending() == []
    assert log.told(NOW + 1, more).told(NOW + TENTH, call).spending() == ["over-grant"]


def test_a_hold_that_is_gone_is_found() -> None:
    """A hold that nothing ended is there in its lifetime and as long after it; later, or after a loss, it need not."""
    log = Log(HELD).told(NOW, FULL)
    for late in (TENTH, 2 * LIFETIME - 1):
        assert log.copy().told(NOW + late, Settle("a", 1), found=False).spending() == ["lost hold"]
    assert log.copy().told(NOW + 2 * LIFETIME, Settle("a", 1), found=False).spending() == []
    assert log.copy().told(NOW + TENTH, Settle("a", 1)).spending() == []
    assert log.copy().lost(NOW, Cancel("a")).told(NOW + TENTH, Cancel("a"), found=False).spending() == []
    assert log.add(wiped(NOW + 1, HELD)).told(NOW + TENTH, Settle("a", 1), found=False).spending() == []


@pytest.mark.parametrize("end", [Settle("a", 16), Refund("a", 0, NOW)], ids=str)
def test_what_counts_twice_is_found(end: Settle | Refund) -> None:
    """A second settle, or a second refund, under one id must not count."""
    log = Log(HELD).told(NOW, FULL).told(NOW + TENTH, end)
    assert log.copy().told(NOW + 2 * TENTH, end, found=False).spending() == []
    assert log.told(NOW + 2 * TENTH, end).spending() == ["counted twice"]


@pytest.mark.parametrize("after, found", [(0, []), (SECOND, ["granted by nobody"]), (2 * SECOND, [])])
def test_a_frozen_server_grants_nothing(after: int, found: list[str]) -> None:
    """A grant in the middle of a freeze was none of the server's."""
    log = Log().add(Fault("director", NOW, FREEZE, "", NOW + 2 * SECOND)).told(NOW + after, Acquire(1))
    assert rules(spending.granted_by_nobody(PLAIN, story_of(log.entries))) == found


# --- the ledger beside the library


class Workers:
    """Workers on memory storage; as in `torture.worker`, a command whose answer was lost is sent again, or given up."""

    def __init__(self, bucket: str, chance: random.Random) -> None:
        self.log = Log(bucket)
        self.chance = chance
        self.storage = MemoryStorage()
        self.again: list[Command] = []
        self.held: list[str] = []

    def command(self, now: int) -> Command:
        chance, name = self.chance, str(self.log.steps)
        if self.again and chance.random() < 0.5:
            return self.again.pop(chance.randrange(len(self.again)))
        tokens = chance.randint(1, 8)
        if self.log.bucket == PLAIN:
            spends: list[Command] = [Acquire(tokens), Acquire(tokens, wait_us=SECOND), Refund(name, tokens, now)]
            return chance.choice(spends)
        reading = Reading(chance.randint(-3, 9), next_refill_in=chance.random(), server_time=now / SECOND)
        if self.log.bucket == KEEPA and chance.random() < 0.1:
            return Reconcile(reading)
        if not self.held or chance.random() < 0.4:
            return Reserve(name, tokens, chance.choice([TENTH, SECOND]))
        name = chance.choice(self.held)
        if self.log.bucket == KEEPA and chance.random() < 0.7:
            return Settle(name, chance.randint(0, 8), reading)
        ends: list[Command] = [Settle(name, chance.choice([None, 0, 1, 3])), Cancel(name)]
        return chance.choice(ends)

    def step(self, now: int) -> None:
        command = self.command(now)
        outcome = self.storage.apply(self.log.bucket, QUOTAS[self.log.bucket], command, now_us=now)
        step = self.log.sent(now, command)
        if self.chance.random() < 0.15:
            self.log.add(Failed("w", now + self.chance.randrange(1, TENTH), step, "StorageUnavailable"))
            self.again.append(command)
        else:
            self.log.add(story.told("w", step, outcome))
            if isinstance(command, Reserve) and outcome.granted and command.id not in self.held:
                self.held.append(command.id)


def carried_out(bucket: str, seed: int) -> Story:
    chance = random.Random(seed)
    workers, now = Workers(bucket, chance), NOW
    for _ in range(100):
        now += chance.choice([1, 1000, TENTH, chance.randrange(2 * SECOND)])
        workers.step(now)
    return story_of(workers.log.entries)


@pytest.mark.parametrize("bucket", QUOTAS)
@given(seed=st.integers(0, 2**32))
def test_the_library_stays_within_the_ledger(bucket: str, seed: int) -> None:
    """Whatever workers send and whichever answers are lost, nothing is found in what the library grants."""
    told = carried_out(bucket, seed)
    assert spending.count(bucket, QUOTAS[bucket], told).findings == []
    assert spending.lost_holds(bucket, told) == []


# --- liveness


def test_a_stand_still_is_found() -> None:
    """A look states a bound; the first request for one token after it is granted, or it is a stand-still."""
    log = Log().told(NOW, Peek(), bound=TENTH).told(NOW + TENTH - 1, Acquire(1), granted=False)
    assert log.liveness() == []
    assert log.copy().told(NOW + TENTH, Acquire(1)).liveness() == []
    assert log.copy().told(NOW + TENTH, Acquire(1), granted=False, probe=True).liveness() == []
    assert log.copy().told(NOW + TENTH, Acquire(2), granted=False).liveness() == []
    assert log.copy().told(NOW + TENTH, Acquire(1, keep=1), granted=False).liveness() == []
    assert log.told(NOW + TENTH, Acquire(1), granted=False).liveness() == ["stand-still"]


def test_a_look_beside_a_command_that_nobody_was_told_of_promises_nothing() -> None:
    """What was sent before a look, and lost, may count after it: it takes the token, or the probe."""
    lost = Log(KEEPA).lost(NOW, Reserve("a", 1, LIFETIME)).told(NOW + 1, Peek(), bound=0)
    assert lost.told(NOW + 2, Reserve("b", 1, LIFETIME), granted=False).liveness() == []
    later = Log(KEEPA).lost(NOW, Reserve("a", 1, LIFETIME)).told(NOW + 3 * SECOND, Peek(), bound=0)
    assert later.told(NOW + 3 * SECOND + 1, Reserve("b", 1, LIFETIME), granted=False).liveness() == ["stand-still"]


@pytest.mark.parametrize("bucket, found", [(HELD, []), (PLAIN, ["stand-still"])])
def test_a_recharge_that_a_bigger_request_began_is_no_stand_still(bucket: str, found: list[str]) -> None:
    """A look finds the bucket open; then a request for more is refused: where that begins a recharge, all wait."""
    log = Log(bucket).told(NOW, Peek(), bound=0).told(NOW + 1, Reserve("a", 8, LIFETIME), granted=False)
    assert log.told(NOW + 2, Reserve("b", 1, LIFETIME), granted=False).liveness() == found


def test_a_recharge_under_way_must_end_when_a_look_said() -> None:
    """Who looks at a bucket that is recharging is told the end, and no refusal in between moves it."""
    log = Log(HELD).told(NOW, Peek(), bound=SECOND).told(NOW + 1, Reserve("a", 8, LIFETIME), granted=False)
    assert log.copy().told(NOW + SECOND - 1, Reserve("b", 1, LIFETIME), granted=False).liveness() == []
    assert log.told(NOW + SECOND, Reserve("b", 1, LIFETIME), granted=False).liveness() == ["stand-still"]


def test_a_bound_ends_with_a_grant_or_a_loss() -> None:
    """Another's grant keeps the bound; a command that may have been granted, or a loss, makes it void."""
    log = Log().told(NOW, Peek(), bound=TENTH)
    for between in (
        log.copy().told(NOW + 1, Acquire(5)),
        log.copy().lost(NOW + 1, Acquire(5)),
        log.copy().add(wiped(NOW + 1, PLAIN)),
    ):
        assert between.told(NOW + 2 * TENTH, Acquire(1), granted=False).liveness() == []


def test_a_recovery_is_measured_from_the_end_of_the_fault() -> None:
    """The time runs from the end of the fault to the next grant; the bound is that of the first look after it."""
    fault = Fault("director", NOW, plan.DELETE, PLAIN, NOW + TENTH, (PLAIN,))
    log = Log().add(fault).told(NOW + 2 * TENTH, Peek(), bound=5 * TENTH).told(NOW + 4 * TENTH, Acquire(1))
    (recovery,) = liveness.watch(PLAIN, PLAIN_QUOTA, story_of(log.entries)).recoveries
    assert (recovery.kind, recovery.took, recovery.bound) == (plan.DELETE, 3 * TENTH, 6 * TENTH)


def test_a_command_lies_in_the_socket_of_a_frozen_server() -> None:
    """It may count until a second after its caller gave up, or after the server goes on."""
    frozen = Fault("director", NOW, FREEZE, "", NOW + 3 * SECOND)
    assert lurks_until(NOW, NOW + TENTH, []) == NOW + TENTH + SECOND
    assert lurks_until(NOW, NOW + TENTH, [frozen]) == NOW + 4 * SECOND
    assert lurks_until(NOW + 4 * SECOND, NOW + 5 * SECOND, [frozen]) == NOW + 6 * SECOND


@pytest.mark.parametrize(
    "error, found", [("StorageUnavailable", []), ("CancelledError", []), ("RuntimeError", ["error"])]
)
def test_a_command_may_fail_for_a_documented_reason_or_be_cancelled(error: str, found: list[str]) -> None:
    """Of both nobody knows whether they counted; any other error of a storage is a finding."""
    assert rules(liveness.only_documented_errors(story_of([Failed("w", NOW, 1, error)]))) == found


# --- a whole run


def sound() -> list[Entry]:
    """Return the log of a run in which nothing broke."""
    entries: list[Entry] = []
    for number, bucket in enumerate(QUOTAS):
        log = Log(bucket)
        log.steps = 100 * number
        if bucket == KEEPA:
            log.told(NOW, Reconcile(Reading(9)), taken=True)
        log.told(NOW + SECOND, Acquire(1) if bucket == PLAIN else Reserve(bucket, 1, LIFETIME))
        entries += [*log.entries, Remains("director", NOW + 9 * SECOND, bucket, 0, 0, QUOTAS[bucket].capacity)]
    return [
        *entries,
        Fault("director", NOW, plan.CUT, "0", NOW),
        Calm("director", NOW + TENTH, last=True),
        Asked("w", NOW + SECOND + 1, KEEPA, 1),
        Charged("api", NOW + SECOND + 2, KEEPA, refused=False, cost=1),
        Answered("w", NOW + SECOND + 3, KEEPA, 200, 1),
        Left("w", NOW + 2 * SECOND),
        Total("director", NOW + 9 * SECOND, 1),
    ]


def without(kind: type[Entry]) -> list[Entry]:
    return [entry for entry in sound() if not isinstance(entry, kind)]


LATE = NOW + 3600 * SECOND
ODD = Sent("w", NOW, 999, PLAIN, "peek")

BROKEN: dict[str, tuple[list[Entry], str]] = {
    "a worker hangs": ([*sound(), ODD], "hung"),
    "a worker does not end": (without(Left), "hung"),
    "nothing is granted at last": ([*without(Calm), Calm("director", LATE, last=True)], "no progress"),
    "the run has no end": (without(Calm), "no end"),
    "nobody looks at what remains": (without(Remains), "no end"),
    "a hold of nothing remains": ([*sound(), Remains("director", LATE, KEEPA, 0, 1, 8)], "leak"),
    "a hold remains": ([*sound(), Remains("director", LATE, KEEPA, 1, 1, 8)], "leak"),
    "a bucket does not refill": ([*sound(), Remains("director", LATE, PLAIN, 0, 0, 11)], "leak"),
    "an error that is none of the storage's": ([*sound(), ODD, Failed("w", NOW, 999, "TypeError")], "error"),
    "an error that nothing documents": ([*sound(), Broke("w", NOW, "KeyError: 1")], "error"),
    "a repair": ([*sound(), ODD, Told("w", NOW, 999, repaired="carry")], "damage"),
    "a call without a grant": ([*sound(), Asked("w", NOW, "x", 1)], "ledger"),
    "a call that nobody made": ([*sound(), Charged("api", NOW, "x", refused=False, cost=0)], "ledger"),
    "a call served twice": (
        [*without(Total), Charged("api", LATE, KEEPA, refused=False, cost=1), Total("director", LATE, 2)],
        "ledger",
    ),
    "an answer that nobody gave": ([*sound(), Answered("w", LATE, "x", 200, 0)], "ledger"),
    "a cost that was told wrong": ([*without(Answered), Answered("w", LATE, KEEPA, 200, 2)], "ledger"),
    "books that don't add up": ([*without(Total), Total("director", LATE, 2)], "ledger"),
}


def test_a_sound_run_is_found_sound() -> None:
    """In a log in which nothing broke nothing is found, and its table says so."""
    result = report.check(story_of(sound()))
    assert result.findings == []
    assert report.table(result).endswith("nothing broke")


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_break_is_found(name: str) -> None:
    """One line too many, missing or changed in a sound log is found, under its own rule."""
    entries, rule = BROKEN[name]
    result = report.check(story_of(entries))
    assert set(rules(result.findings)) == {rule}
    assert f"x {rule}" in report.table(result)


def test_a_refusal_by_the_api_needs_an_explanation() -> None:
    """A refused call is explained by what was wrong shortly before it, and by nothing else."""
    late = NOW + 60 * SECOND

    def found(*others: Entry) -> list[str]:
        call = Charged("api", late, "x", refused=True, cost=0)
        log = Log(KEEPA).told(NOW, Reserve("x", 1, LIFETIME)).told(NOW, Reserve("y", 1, LIFETIME))
        log.add(Asked("w", late, "x", 1), call, Answered("w", late, "x", 429, 0), *others)
        return rules(server.audit(story_of(log.entries)).findings)

    def dear(at: int) -> list[Entry]:
        call = Charged("api", at, "y", refused=False, cost=2)
        return [Asked("v", NOW + 1, "y", 1), call, Answered("v", at, "y", 200, 2)]

    assert found() == ["refused"]
    assert found(wiped(NOW, KEEPA)) == ["refused"]
    assert found(wiped(late - SECOND, KEEPA)) == []
    assert found(Killed("director", late - SECOND, "v")) == []
    assert found(*dear(late - 1)) == []
    assert found(*dear(NOW + 1)) == ["refused"]


# --- the plan and the log


def test_a_seed_is_a_schedule() -> None:
    """One seed is one schedule, another seed another one; nothing is left to the moment."""
    assert plan.schedule(7, 60, 4) == plan.schedule(7, 60, 4)
    assert plan.schedule(7, 60, 4) != plan.schedule(8, 60, 4)


@given(seed=st.integers(0, 10**6), seconds=st.sampled_from([1, 9, 60, 600]))
def test_storms_end_and_calms_are_calm(seed: int, seconds: int) -> None:
    """No fault reaches into a calm, and of those that hit one worker none begins before the last has ended."""
    drawn = plan.schedule(seed, seconds, 3)
    assert drawn.calms[-1] + plan.CALM == pytest.approx(drawn.end)
    for calm in drawn.calms:
        assert not any(fault.at < calm + plan.CALM - 1e-6 and fault.until > calm for fault in drawn.faults)
    on_one = [fault for fault in drawn.faults if fault.kind in {plan.PAUSE, plan.KILL} and fault.target == "1"]
    assert all(one.until <= other.at for one, other in pairwise(on_one))


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every kind of line comes back; a last line that was cut short is none."""
    entries = [*sound(), *Log().lost(NOW, Acquire(1)).entries, Killed("d", 1, "w"), Broke("w", 1, "é"), wiped(1, "a")]
    journal = Journal(tmp_path, "w")
    for entry in entries:
        journal.write(entry)
    journal.close()
    with (tmp_path / "w.log").open("a") as log:
        log.write('["Left", {"who')
    assert list(story.read(tmp_path)) == entries
    assert {type(entry) for entry in entries} == set(story._KINDS.values())
