"""The count of `make torture`, on logs made by hand: what was granted beyond what was there is found."""

from __future__ import annotations

import random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.tests.torture_log import NOW, TENTH, Log, each_log, rules, wiped
from checks.torture import spending, story
from checks.torture.steps import FREEZE, MARGIN_US, Story, story_of
from checks.torture.story import Failed, Fault
from checks.torture.terms import KEEPA, PLAIN, QUOTAS, SECOND
from keepa_tokens import MemoryStorage, Reading
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Reconcile, Refund, Reserve, Settle

LOGS: Final = """
# --- what is there
a full bucket and then a token each tenth of a second, none a microsecond earlier: plain (nothing|over-grant)
    0 take 12; 0.1s take 1; 0.2s(|-1) take 1
a place in the queue counts at its own instant: plain (nothing|over-grant)
    0 take 12, take 3 wait=1s -> place=0.3s, take 2 wait=1s -> place=0.5s(|-1)
one grant may overdraw by the overdraft, not by a token more: held (nothing|over-grant)
    0 hold a 11, hold b (5|6)
a grant must leave as much as it was told to keep: plain (nothing|over-grant)
    0 take (11|12) keep=1
a grant that nobody was told of leaves less for others, and breaks nothing: plain nothing
    0 take 12 -> lost; 0.1s take 12

# --- beside a server
a synced bucket grants nothing before a reading: keepa over-grant
    0 hold a 1
nor after a reading of 0: keepa over-grant
    -1 read 0 -> taken; 1 hold a 1
but after one above 0, once: keepa (nothing|over-grant)
    -1 read 1 -> taken; 1 hold a 1(|, hold b 1)
nor after a loss: keepa over-grant
    0 read 9 -> taken; 1s wiped; 2s hold a 1
an unlimited overdraft allows a grant of any size on a balance of 1, and none after it: keepa (nothing|over-grant)
    0 read 1 -> taken; 1 hold a 99(|; 2 hold b 1)
a stepped refill counts at the instant that the reading named, not before: keepa (nothing|over-grant)
    0 read 0 next_refill_in=0.4 -> taken; 0.4s(|-1) hold a 1
a debt of one refill is paid by the first step, only the second may be spent: keepa (nothing|over-grant)
    0 read -5 next_refill_in=0.4 -> taken; (1.4s|0.4s) hold a 1
a reading that is no newer than the last leaves its phase: keepa (nothing|over-grant)
    0 read 3 9 next_refill_in=0.4 -> taken; 1 read 0 8 next_refill_in=0.9 -> taken; 0.4s(|-1) hold a 1
a late settle gives nothing back of a charge that a reading has replaced: keepa over-grant
    0 read 9 -> taken; 1 hold a 9 life=0.1s; 0.2s read 0 -> taken; 0.3s settle a 0, hold b 1
a reading may have been taken though its answer was lost, one that was stale not: keepa (nothing|over-grant)
    0 read 0 -> taken; 1 read 7(-> lost|); 0.1s hold a 3
a scout takes what nobody knows to be there, whoever is granted beside it is a finding: keepa (nothing|over-grant)
    0 hold s 4 -> probe balance=-(|; 1 hold b 1)

# --- losses
a state that is lost is a new one, and no more: plain (nothing|over-grant)
    0 take 12; 0.1s take 12; 0.05s wiped(|; 0.2s take 2)
without a loss it is none: plain over-grant
    0 take 12; 0.1s take 12
what was read in the moment of a loss may be known still: keepa (nothing|over-grant)
    0 wiped 0.1s; (0.05s|-0.1s) read 9 -> taken; 0.2s hold a 1
# Full, 4 of it held just after the loss, cancelled a second later: all that and a second's refill may go.
a hold opened while the state is lost gives back what the new bucket refilled: held (nothing|over-grant)
    0 peek; 1s wiped; 1s+10 hold a 4 life=1.5s; 1.003s hold b 8 life=1.5s; 2s cancel a; 2s+(10|8) hold c 16
# A restart is logged as over when the new server was seen to be up. A command that it answered before then, perhaps
# sent before the beginning, has claimed the probe, so that the balance starts at 0 by that claim.
a new server may answer before its start is logged: keepa (nothing|over-grant)
    0 wiped 1s; 0.9s hold a 1 -> !granted probe sent=@0.9s; 21.9s(|-1) hold b 1
what was sent before the beginning likewise: keepa (nothing|over-grant)
    0 wiped 1s; 0.9s hold a 1 -> !granted probe sent=@-0.1s; 21.9s(|-1) hold b 1

# --- what comes back
what a hold did not cost may be granted again when it has ended: held nothing
    0 hold a 16; 0.1s (cancel a|settle a 0|settle a 10|settle a 11), hold b (16|16|6|5)
and not a token more: held over-grant
    0 hold a 16; 0.1s (cancel a|settle a 0|settle a 10|settle a 11), hold b (17|17|7|6)
and not before: held over-grant
    0 hold a 16; 0.1s hold b 1; 0.2s (cancel a|settle a 0|settle a 10|settle a 11)
a hold that cost all that there was, or more, leaves nothing: held over-grant
    0 hold a 16; 0.1s (settle a 16|settle a|settle a 99), hold b 1
# -4, and 12.8, and 2.
what is given back late comes on top of what refilled since: held (nothing|over-grant)
    0 hold a 16 life=1.5s; 1.6s settle a 14, hold b (14|15)
a settle whose answer was lost may have counted: held nothing
    0 hold a 16; 0.1s settle a 0 -> lost; 0.2s hold b 8(|, hold c 8)
but once: held over-grant
    0 hold a 16; 0.1s settle a 0 -> lost; 0.2s hold b 8, hold c 8, hold d 1
a refund that was sent twice, its first answer lost, gives its tokens back once: plain (nothing|over-grant)
    0 take 12, back r 2 0 -> lost; 0.1s back r 2 0 -> !found, take (3|4)
a hold whose first answer was lost is one grant: held (nothing|over-grant)
    0 hold a 16 -> lost; 0.1s hold a 16(|; 0.1s+1 hold b 1)
a hold whose first answer was lost before a loss was opened after it: held (nothing|over-grant)
    0 hold a 4 -> lost; 0.1s wiped; 0.2s hold a 4; 0.7s hold b 8; 0.7s+1 cancel a, hold c (12|13)
and gives back what others gave past the brim since: held (nothing|over-grant)
    0 hold a 4 -> lost; 0.1s wiped; 0.11s hold a 4; 0.11s+1 hold b 8; 0.9s settle b 0; 0.9s+1 hold c 12; 0.9s+2 cancel a
    0.9s+3 hold d (8|9)
a refund that counts in a second life is given there: plain (nothing|over-grant)
    0 back r 4 0; 0.2s wiped; 0.3s-1 take 12; 0.3s back r 4 0; 0.3s+1 take (4|5)
so it is though its answer was lost: plain (nothing|over-grant)
    0 back r 4 0; 0.2s wiped; 0.3s-1 take 12; 0.3s back r 4 0 -> lost; 0.3s+1 take (4|5)
but once in one: plain over-grant
    0 take 12, back r 4 0 -> lost; 1 back r 4 0; 2 take 5

# --- ids
a refund counts once: plain counted twice
    0 back r 1 0; 0.1s back r 1 0
in each life: plain (nothing|counted twice)
    0 back r 1 0; 0.1s back r 1 0; 0.05s wiped(|; 0.2s back r 1 0)
a second settle, or a second refund, under one id must not count: held counted twice
    0 hold a 16; 0.1s (settle a 16|back a 0 0); 0.2s (settle a 16|back a 0 0)
it is told so: held nothing
    0 hold a 16; 0.1s (settle a 16|back a 0 0); 0.2s (settle a 16|back a 0 0) -> !found
a hold that nothing ended is there in its lifetime: held (lost hold|lost hold|nothing)
    0 hold a 16 life=1.5s; (0.1s|1.5s-1|1.5s) settle a 1 -> !found
a synced one as long after it: keepa (lost hold|lost hold|nothing)
    -1 read 16 -> taken; 0 hold a 16 life=1.5s; (0.1s|3s-1|3s) settle a 1 -> !found
but if it was ended, or may have been: held nothing
    0 hold a 16; (0.1s settle a 1|0 cancel a -> lost; 0.1s cancel a -> !found)
or after a loss: held nothing
    0 hold a 16; 1 wiped; 0.1s settle a 1 -> !found
"""


@each_log(LOGS)
def test_what_is_granted_beyond_what_was_there_is_found(log: Log, found: list[str]) -> None:
    """Each title says what is right, and what is a finding."""
    assert log.spending() == found


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
        late = chance.choice([0, 0, SECOND])
        reading = Reading(chance.randint(-3, 9), next_refill_in=chance.random(), server_time=(now - late) / SECOND)
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
        if chance.random() < 0.05:
            workers.storage.delete(bucket)
            workers.log.add(wiped(now + 2 * MARGIN_US, bucket))
            now += 4 * MARGIN_US
        workers.step(now)
    return story_of(workers.log.entries)


@pytest.mark.parametrize("bucket", QUOTAS)
@given(seed=st.integers(0, 2**32))
def test_the_library_stays_within_the_ledger(bucket: str, seed: int) -> None:
    """Whatever workers send and whichever answers are lost, nothing is found in what the library grants."""
    told = carried_out(bucket, seed)
    assert spending.count(bucket, QUOTAS[bucket], told).findings == []
    assert list(spending.lost_holds(bucket, told)) == []
