"""The count of `make torture`, on logs made by hand: what was granted beyond what was there is found."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.tests.torture_log import HELD_QUOTA, KEEPA_QUOTA, LIFETIME, NOW, PLAIN_QUOTA, TENTH, Log, rules, wiped
from checks.torture import plan, spending, story
from checks.torture.steps import FREEZE, Story, story_of
from checks.torture.story import (
    Failed,
    Fault,
    Sent,
)
from checks.torture.terms import HELD, KEEPA, PLAIN, QUOTAS, SECOND
from keepa_tokens import MemoryStorage, Reading
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Peek, Reconcile, Refund, Reserve, Settle


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


@pytest.mark.parametrize("early, found", [(0, []), (2, ["over-grant"])])
def test_a_hold_opened_while_the_state_is_lost_gives_back_what_the_new_bucket_refilled(
    early: int, found: list[str]
) -> None:
    """Full, 4 of it held just after the loss, cancelled a second later: all that and a second's refill may go."""
    full, most = HELD_QUOTA.capacity, 4 + HELD_QUOTA.refill + HELD_QUOTA.overdraft
    log = Log(HELD).told(NOW, Peek()).add(wiped(NOW + SECOND, HELD)).told(NOW + SECOND + 10, Reserve("a", 4, LIFETIME))
    log.told(NOW + SECOND + 3_000, Reserve("b", full - 4, LIFETIME)).told(NOW + 2 * SECOND, Cancel("a"))
    assert log.told(NOW + 2 * SECOND + 10 - early, Reserve("c", most, LIFETIME)).spending() == found


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
    known = Log(KEEPA).told(NOW - 1, Reconcile(Reading(1)), taken=True).told(NOW + 1, call)
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


@pytest.mark.parametrize("early, found", [(0, []), (1, ["over-grant"])])
def test_a_new_server_may_answer_before_its_start_is_logged(early: int, found: list[str]) -> None:
    """A restart that keeps nothing is logged as over when the new server was seen to be up: a command that it answered
    before then has claimed the probe, so that the balance starts at 0 by that claim.
    """
    restart = Fault("director", NOW, plan.RESTART_LOST, "", NOW + SECOND, (KEEPA,))
    log = Log(KEEPA).add(restart).told(NOW + 9 * TENTH, Reserve("a", 1, LIFETIME), granted=False, probe=True)
    starts = NOW + 9 * TENTH + spending.CLAIM_US
    assert log.copy().told(starts + SECOND - early, Reserve("b", 1, LIFETIME)).spending() == found
    # Sent before the beginning, and carried out after it.
    entry = log.entries[1]
    assert isinstance(entry, Sent)
    log.entries[1] = replace(entry, at=NOW - TENTH)
    assert log.told(starts + SECOND - early, Reserve("b", 1, LIFETIME)).spending() == found


def test_a_refund_counts_once_in_each_life() -> None:
    """Twice in one life is a finding; what forgot the bucket forgot the refund too."""
    twice = Log().told(NOW, Refund("r", 1, NOW)).told(NOW + TENTH, Refund("r", 1, NOW))
    assert twice.spending() == ["counted twice"]
    assert twice.add(wiped(NOW + TENTH // 2, PLAIN)).spending() == []
    assert twice.told(NOW + 2 * TENTH, Refund("r", 1, NOW)).spending() == ["counted twice"]


def test_a_refund_that_counts_in_a_second_life_is_given_there() -> None:
    """It is sent again after the bucket was lost: it counts there once more, whether its answer was lost or not."""
    refund = Refund("r", 4, NOW)
    log = Log().told(NOW, refund).add(wiped(NOW + 2 * TENTH, PLAIN)).told(NOW + 3 * TENTH - 1, Acquire(12))
    for again in (log.copy().lost(NOW + 3 * TENTH, refund), log.copy().told(NOW + 3 * TENTH, refund)):
        assert again.copy().told(NOW + 3 * TENTH + 1, Acquire(4)).spending() == []
        assert again.told(NOW + 3 * TENTH + 1, Acquire(5)).spending() == ["over-grant"]
    once = Log().told(NOW, Acquire(12)).lost(NOW, refund).told(NOW + 1, refund)
    assert once.told(NOW + 2, Acquire(5)).spending() == ["over-grant"]


def test_a_scout_takes_what_nobody_knows_to_be_there() -> None:
    """It is let through on the claim, to learn the balance; whoever is granted beside it is a finding."""
    scout = Log(KEEPA).told(NOW, Reserve("s", 4, LIFETIME), probe=True, balance=None)
    assert scout.copy().spending() == []
    assert scout.told(NOW + 1, Reserve("b", 1, LIFETIME)).spending() == ["over-grant"]


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


@pytest.mark.parametrize("tokens, found", [(14, []), (15, ["over-grant"])])
def test_a_late_settle_corrects_by_the_difference(tokens: int, found: list[str]) -> None:
    """What a hold took is gone from its grant on; what is given back late comes on top of what refilled since."""
    late = NOW + LIFETIME + TENTH
    log = Log(HELD).told(NOW, FULL).told(late, Settle("a", 14))  # -4, and 12.8, and 2
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
    """A hold that nothing ended is there in its lifetime, a synced one as long after it; after a loss it need not."""
    log = Log(HELD).told(NOW, FULL)
    known = Log(KEEPA).told(NOW - 1, Reconcile(Reading(16)), taken=True).told(NOW, FULL)
    for each, remembered in ((log, LIFETIME), (known, 2 * LIFETIME)):
        for late in (TENTH, remembered - 1):
            assert each.copy().told(NOW + late, Settle("a", 1), found=False).spending() == ["lost hold"]
        assert each.copy().told(NOW + remembered, Settle("a", 1), found=False).spending() == []
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
            self.log.add(story.told("w", step, outcome, now))
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
