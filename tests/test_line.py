"""Rule 11: those who wait without a place stand in line, so that small calls can't starve a big one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reserve, Settle
from keepa_tokens.rules.decision import Reason, Snapshot
from keepa_tokens.rules.line import LAPSES_US, LONGEST_LINE, Ticket, ahead_of, standing
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import DAY_US, LIMIT, LOOK_AGAIN_US, MICROSECONDS, UNLIMITED
from tests.strategies import Direct

SECOND: Final = MICROSECONDS
NOW: Final = 1_780_000_000 * SECOND
KEEPA: Final = Quota(300, 5, 60.0, stepped=True, overdraft=UNLIMITED, synced=True)
PLAIN: Final = Quota(100, 1, 1.0)


class Bench(Direct):
    """A bucket, its time, and the commands that the tests give."""

    now = NOW

    def __init__(self, quota: Quota, balance: int) -> None:
        told: dict[str, Any] = {"reading_at": NOW, "open": 0, "reading_sequence": 1} if quota.synced else {}
        super().__init__(quota, BucketState(balance=balance, refilled_at=NOW, quota=quota, sequence=1, held=0, **told))

    def run(self, command: Command) -> Outcome:
        return self.apply(command, self.now)

    def reserve(self, name: str, tokens: int, *, keep: int = 0, stands: bool = True, hold_for: int = 120) -> Outcome:
        """Ask for a hold; stand in line if need be."""
        ticket = f"ticket {name}" if stands else None
        return self.run(Reserve(name, tokens, hold_for * SECOND, keep, ticket=ticket))

    def peek(self, tokens: int = 1, *, probes: bool = True) -> Snapshot:
        if probes:
            return self.look(self.now, tokens)
        snapshot = self.run(Peek(tokens, probe_after_us=None)).snapshot
        assert snapshot is not None
        return snapshot


def test_small_calls_do_not_pass_a_big_one() -> None:
    """A call of 50 that waits is served before later calls of 5, which are told to come after it."""
    bench = Bench(PLAIN, 0)
    big = bench.reserve("big", 50)
    assert (big.reason, big.retry_after_us) == (Reason.EMPTY, 50 * SECOND)
    bench.now += 10 * SECOND
    small = bench.reserve("small", 5)
    assert (small.granted, small.retry_after_us) == (False, 45 * SECOND)
    bench.now += 40 * SECOND
    assert not bench.reserve("small", 5).granted
    assert bench.reserve("big", 50).granted
    bench.now += 5 * SECOND
    assert bench.reserve("small", 5).granted
    assert bench.peek().waiting == 0


def test_who_only_tries_gets_no_ticket_and_does_not_pass() -> None:
    """A request that names no ticket is refused while others are before it, and leaves nothing behind."""
    bench = Bench(PLAIN, 10)
    assert not bench.reserve("big", 50).granted
    tried = bench.reserve("try", 5, stands=False)
    assert (tried.granted, tried.retry_after_us) == (False, 45 * SECOND)
    assert bench.peek().waiting == 1
    assert bench.peek().wanted == 50


def test_late_tickets_let_others_pass_and_lapse_after_a_minute() -> None:
    """Whoever does not come within a second of the told instant is passed, and after a minute is out of the line."""
    bench = Bench(PLAIN, 0)
    bench.reserve("dead", 50)
    bench.now += 51 * SECOND
    assert not bench.reserve("small", 5, stands=False).granted
    bench.now += 1
    assert bench.reserve("small", 5, stands=False).granted
    assert bench.peek().waiting == 1
    bench.now += 59 * SECOND
    assert bench.peek().waiting == 0
    assert bench.stored.line == ()


def test_a_ticket_stands_until_the_instant_at_which_it_lapses() -> None:
    """A microsecond before it is in line, then it isn't; what all before ask for is no more than can be counted."""
    ticket = Ticket("a", LIMIT - 1, 0, 1, NOW)
    assert standing([ticket], NOW + LAPSES_US - 1) == [ticket]
    assert standing([ticket], NOW + LAPSES_US) == []
    assert ahead_of([ticket, ticket], (0, 2), NOW) == LIMIT - 1


def test_what_was_told_moves_back_with_the_clock() -> None:
    """After a clock went back an hour nobody waits an hour for a ticket whose holder is gone, and the bound says so."""
    bench = Bench(PLAIN, 0)
    bench.reserve("dead", 50)
    bench.now -= 3600 * SECOND
    shown = bench.peek(5)
    assert shown.repaired == ("refilled_at", "line")
    assert shown.bound <= 60
    bench.now += 50 * SECOND
    assert not bench.reserve("small", 5, stands=False).granted
    bench.now += SECOND + 1
    assert bench.reserve("small", 5, stands=False).granted


def test_a_ticket_for_more_than_there_can_be_stops_nobody_for_good() -> None:
    """A garbled number before them: the others are told to come again in a day, and the bound is when it is late."""
    bench = Bench(PLAIN, 50)
    bench.put(replace(bench.stored, line=(Ticket("garbled", LIMIT - 1, 0, 1, NOW + 9 * SECOND),)))
    refused = bench.reserve("small", 5, stands=False)
    assert (refused.reason, refused.retry_after_us) == (Reason.EMPTY, DAY_US)
    assert bench.peek(5).bound < 12
    bench.now += round(bench.peek(5).bound * SECOND)
    assert bench.reserve("small", 5).granted


def test_whoever_comes_late_keeps_the_order_of_arrival() -> None:
    """A ticket that was late is told anew by its next look, before those who arrived after it."""
    bench = Bench(PLAIN, 0)
    bench.reserve("first", 50)
    bench.reserve("second", 10)
    bench.now += 55 * SECOND
    assert bench.reserve("first", 60).retry_after_us == 5 * SECOND
    assert not bench.reserve("second", 10).granted
    assert (bench.peek().waiting, bench.peek().wanted) == (2, 70)


def test_the_line_is_ordered_by_keep_then_by_arrival() -> None:
    """A request that leaves less for others goes before one that leaves more, whoever came first."""
    bench = Bench(PLAIN, 0)
    assert bench.reserve("modest", 5, keep=50).retry_after_us == 55 * SECOND
    assert bench.reserve("urgent", 20).retry_after_us == 20 * SECOND
    bench.now += 20 * SECOND
    assert bench.reserve("urgent", 20).granted


def test_a_call_that_overdraws_gets_its_turn_when_those_in_flight_have_settled() -> None:
    """On a bucket with overdraft, a call of 50 waits for the calls in flight, and no small one slips in meanwhile."""
    bench = Bench(KEEPA, 20)
    assert bench.reserve("flying", 15).granted
    big = bench.reserve("big", 50)
    assert (big.granted, big.reason) == (False, Reason.IN_FLIGHT)
    assert not bench.reserve("small", 1).granted
    bench.run(Settle("flying", 15))
    assert not bench.reserve("small", 1).granted
    assert bench.reserve("big", 50).granted


@pytest.mark.parametrize(
    "tokens, reason, wait_us", [(5, Reason.IN_FLIGHT, LOOK_AGAIN_US), (6, Reason.EMPTY, 180 * SECOND)]
)
def test_behind_others_a_settle_frees_only_what_they_leave(tokens: int, reason: Reason, wait_us: int) -> None:
    """Of 20, 10 are in flight and 15 wanted before: 5 more could go once those are settled; a sixth takes 3 steps."""
    bench = Bench(replace(KEEPA, overdraft=0), 20)
    assert bench.reserve("flying", 10).granted
    assert not bench.reserve("first", 15).granted
    outcome = bench.reserve("second", tokens)
    assert (outcome.reason, outcome.retry_after_us) == (reason, wait_us)


@pytest.mark.parametrize("first", [10, 19])
@pytest.mark.parametrize("ahead", [0, SECOND])
def test_who_finds_enough_for_itself_behind_others_asks_again_soon(first: int, ahead: int) -> None:
    """Whoever may overdraw needs one token, which is there beside those of the first: no refill is waited for.

    Nor is a clock that is ahead, by which the last refill is yet to come.
    """
    bench = Bench(replace(KEEPA, stepped=False), 20)
    assert bench.reserve("flying", 15).granted
    assert not bench.reserve("first", first).granted
    bench.run(Settle("flying", 0))
    bench.put(replace(bench.stored, refilled_at=NOW + ahead))
    outcome = bench.reserve("second", 50)
    assert (outcome.reason, outcome.retry_after_us) == (Reason.EMPTY, LOOK_AGAIN_US)
    assert bench.reserve("first", first).granted


def test_who_comes_before_its_turn_is_not_told_to_look_at_each_settle() -> None:
    """A task that asks a minute early finds the one before it in flight: it is told its turn again, and has it then."""
    bench = Bench(replace(KEEPA, stepped=False, overdraft=0), 0)
    assert bench.reserve("first", 5).retry_after_us == 60 * SECOND
    assert bench.reserve("task", 5).retry_after_us == 120 * SECOND
    bench.now += 60 * SECOND
    assert bench.reserve("first", 5).granted
    early = bench.reserve("task", 5)
    assert (early.reason, early.retry_after_us) == (Reason.IN_FLIGHT, 60 * SECOND)
    assert bench.reserve("newcomer", 1).reason is Reason.EMPTY
    bench.now += early.retry_after_us
    assert bench.reserve("task", 5).granted


@pytest.mark.parametrize(
    "told_in, refill, overdraft",
    [(0, 5, 0), (1, 0, 0), (1, 5, UNLIMITED)],
    ids=["at its turn", "early, but nothing flows in", "early, with all that it needs of its own"],
)
def test_beside_calls_in_flight_all_others_look_again_soon(told_in: int, refill: int, overdraft: int) -> None:
    """The task has 10 of 15 tokens, were the call in flight over; how early it is matters where refill brings them."""
    bench = Bench(Quota(300, refill, 60.0, overdraft=overdraft, synced=True), 15)
    assert bench.reserve("flying", 10).granted
    bench.put(replace(bench.stored, line=(Ticket("ticket task", 10, 0, 1, NOW + told_in),)))
    outcome = bench.reserve("task", 10)
    assert (outcome.reason, outcome.retry_after_us) == (Reason.IN_FLIGHT, LOOK_AGAIN_US)


def test_leaving_the_line_frees_what_stood_behind() -> None:
    """A cancel by the ticket's id leaves the line; the next one is granted at once."""
    bench = Bench(PLAIN, 10)
    bench.reserve("big", 50)
    assert not bench.reserve("small", 5).granted
    assert bench.run(Cancel("ticket big")).found
    assert bench.reserve("small", 5).granted


def test_those_who_find_a_recharge_are_told_to_come_one_after_the_other() -> None:
    """Each is told when the refill has brought its tokens too, not all of them the end of the recharge."""
    bench = Bench(replace(PLAIN, recharge_to=20), 0)
    assert [bench.reserve(name, 15).retry_after_us for name in "abc"] == [20 * SECOND, 30 * SECOND, 45 * SECOND]


def test_a_lost_sequence_number_keeps_the_order_of_the_line() -> None:
    """Where the bucket's own count is lost, it goes on from the last ticket, and nobody passes."""
    bench = Bench(PLAIN, 0)
    bench.reserve("first", 50)
    bench.reserve("second", 10)
    bench.lose(sequence=None)
    assert bench.reserve("second", 10).retry_after_us == 60 * SECOND
    assert bench.reserve("first", 50).retry_after_us == 50 * SECOND


def test_the_bound_counts_what_is_lost_while_a_call_is_in_flight() -> None:
    """A call that overdraws, behind one in flight for an hour at a full bucket, goes first; the bound is after that."""
    bench = Bench(KEEPA, 300)
    assert bench.reserve("flying", 280, hold_for=3600).granted
    # What is there now is granted now, whatever runs out later.
    assert bench.peek(probes=False).bound == 0
    assert not bench.reserve("big", 350).granted
    # In an hour 300 - 280 are left, and after the big one -330; 331 more take 67 steps.
    assert bench.peek(probes=False).bound >= 3600 + 67 * 60 - 60


def test_an_acquire_gets_no_place_while_somebody_stands_in_line() -> None:
    """A plain acquire that may wait stands in line too, behind whoever stands there already."""
    bench = Bench(PLAIN, 0)
    bench.reserve("first", 50)
    waits = bench.run(Acquire(5, wait_us=10**9, ticket="a"))
    assert (waits.granted, waits.retry_after_us) == (False, 55 * SECOND)


def test_who_leaves_nothing_gets_a_place_before_those_who_do() -> None:
    """Whoever stands in line with a `keep` comes after all who have none."""
    bench = Bench(PLAIN, 0)
    assert not bench.reserve("modest", 5, keep=1).granted
    outcome = bench.run(Acquire(5, wait_us=10**9))
    assert (outcome.granted, outcome.place_us) == (True, 5 * SECOND)


def test_who_acquires_by_a_ticket_is_not_behind_it() -> None:
    """Told anew as before, granted when due whoever stands behind; alone, who may wait gets a place after all."""
    for behind in (True, False):
        bench = Bench(PLAIN, 0)
        assert bench.run(Acquire(5, ticket="a")).retry_after_us == 5 * SECOND
        if behind:
            assert bench.run(Acquire(50, ticket="b")).retry_after_us == 55 * SECOND
            bench.now += 5 * SECOND
        outcome = bench.run(Acquire(5, wait_us=10**9, ticket="a"))
        assert (outcome.granted, outcome.place_us) == (True, 0 if behind else 5 * SECOND)
        assert bench.peek().waiting == behind


def test_a_full_line_gives_the_plain_refusal() -> None:
    """The two hundred and fifty-seventh gets no ticket, and is refused all the same."""
    bench = Bench(PLAIN, 0)
    for number in range(LONGEST_LINE + 1):
        assert not bench.reserve(f"{number}", 1).granted
    assert len(bench.stored.line) == bench.peek().waiting == LONGEST_LINE


def test_a_garbled_ticket_is_dropped_and_named() -> None:
    """What can't be read leaves the line; the others stay, and the repair is said."""
    whole = Ticket("b", 1, 0, 2, NOW).text()
    state = BucketState.from_fields({"balance": "0", "line": f"{whole} ::::"})
    assert [ticket.id for ticket in state.line] == ["b"]
    assert state.unreadable == ("line",)


@given(st.text(min_size=1, max_size=20), *[st.integers(0, 2**52 - 1)] * 4)
def test_a_ticket_comes_back_from_its_text(name: str, tokens: int, keep: int, arrived: int, told_at: int) -> None:
    """Whatever a ticket is called, its stored text reads as the same ticket."""
    ticket = Ticket(name, tokens, keep, arrived, told_at)
    assert Ticket.from_text(ticket.text()) == ticket


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0, 0, 5])), min_size=1, max_size=8),
    st.integers(0, 30),
    st.booleans(),
)
def test_nobody_waits_for_ever_and_each_comes_in_turn(wants: list[tuple[int, int]], balance: int, synced: bool) -> None:
    """Everybody who comes when told is granted, within the time of all that was before, and nothing is minted."""
    quota = replace(PLAIN, synced=True) if synced else PLAIN
    bench = Bench(quota, balance)
    due = {name: (NOW, tokens, keep) for name, (tokens, keep) in enumerate(wants)}
    spent, looks = 0, 0
    while due:
        name = min(due, key=lambda each: (due[each][0], each))
        at, tokens, keep = due.pop(name)
        bench.now = max(bench.now, at)
        looks += 1
        assert looks < 40 * len(wants)
        outcome = bench.reserve(str(name), tokens, keep=keep)
        if outcome.granted:
            spent += tokens
            bench.run(Settle(str(name), tokens))
            assert spent <= balance + (bench.now - NOW) // SECOND
        else:
            due[name] = (bench.now + outcome.retry_after_us, tokens, keep)
    assert bench.now <= NOW + (sum(tokens for tokens, _ in wants) + 5) * SECOND


@pytest.mark.parametrize(
    "text",
    [
        *("", "::::", "a", "a:1:0:1", "a:1:0:1:2:3", ":1:0:1:2", "a:x:0:1:2", "a:1:0:1:"),
        *("a:1:0:1:-2", "a:1:0:1:2.5", "a:1:0:1:\u0662", "a:1:0:1:" + "0" * 17),
        *(f"a:1:0:1:{LIMIT}", f"a:1:0:{LIMIT}:2", f"a:1:{LIMIT}:1:2", f"a:{LIMIT}:0:1:2"),
    ],
)
def test_what_is_no_ticket_is_read_as_none(text: str) -> None:
    """Too few numbers or too many, no name, letters, a sign, a fraction, foreign digits, more than can be counted."""
    assert Ticket.from_text(text) is None
