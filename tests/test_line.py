"""Rule 11: those who wait without a place stand in line, so that small calls can't starve a big one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.models.strategies import EPOCH, SECOND
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Reserve, Settle
from keepa_tokens.rules.line import LAPSES_US, LONGEST_LINE, Ticket, standing, wanted_by
from keepa_tokens.rules.state import BucketState
from keepa_tokens.units import LIMIT, UNLIMITED
from tests.stories import Story, begun, command, each_story
from tests.strategies import Direct, Make, either_way

KEEPA: Final = Quota(300, 5, 60.0, stepped=True, overdraft=UNLIMITED, synced=True)
SMOOTH: Final = replace(KEEPA, stepped=False)
PLAIN: Final = Quota(100, 1, 1.0)

STORIES: Final = """
a call of 50 that waits is served before later calls of 5, which are told to come after it: PLAIN balance=0
    0 stand big 50 -> EMPTY in=50s; 10s stand small 5 -> EMPTY in=45s
    50s stand small 5 -> EMPTY, stand big 50 -> GRANTED; 55s stand small 5 -> GRANTED !waiting
who only tries gets no ticket and does not pass, and leaves nothing behind: PLAIN balance=10
    0 stand big 50 -> EMPTY, hold try 5 -> EMPTY in=45s waiting=1 wanted=50
whoever is a second late is passed, and after a minute out of the line: PLAIN balance=0
    0 stand dead 50; 51s hold small 5 -> EMPTY; 51s+1 hold small 5 -> GRANTED waiting=1
    110s-1 peek -> waiting=1; 110s peek -> !waiting !line
when a clock went back an hour nobody waits an hour for a ticket whose holder is gone: PLAIN balance=0
    0 stand dead 50; -3600s peek 5 -> mended=refilled_at+line bound=56s; -3550s hold small 5 -> EMPTY
    -3549s+1 hold small 5 -> GRANTED
whoever comes late is told anew, before those who arrived after it: PLAIN balance=0
    0 stand first 50, stand second 10; 55s stand first 60 -> EMPTY in=5s
    55s stand second 10 -> EMPTY waiting=2 wanted=70
a request that leaves less for others goes before one that leaves more, whoever came first: PLAIN balance=0
    0 stand modest 5 keep=50 -> EMPTY in=55s, stand urgent 20 -> EMPTY in=20s; 20s stand urgent 20 -> GRANTED
a call that overdraws waits for the calls in flight, and no small one slips in meanwhile: KEEPA balance=20
    0 stand flying 15 -> GRANTED, stand big 50 -> IN_FLIGHT, stand small 1 -> !granted, settle flying 15
    0 stand small 1 -> !granted, stand big 50 -> GRANTED
by the bound behind somebody the calls in flight have run out, too: KEEPA balance=100
    0 hold flying 15 life=90s, stand big 88 -> IN_FLIGHT, peek 200 -> bound=92s
    92s take 88 ticket=ticket-big -> GRANTED
behind others a settle frees only what they leave; a sixth token takes 3 steps: KEEPA overdraft=0 balance=20
    0 stand flying 10 -> GRANTED, stand first 15 -> !granted, stand second (5|6) -> (IN_FLIGHT in=1.5s|EMPTY in=180s)
# By a clock that is ahead the last refill is yet to come.
who may overdraw and finds its one token behind others asks again soon, no refill is waited for: SMOOTH balance=20
    0 stand flying 15 -> GRANTED, stand first (10|10|19|19) -> !granted, settle flying 0
    0 put refilled_at=@(0|2s|0|2s), stand second 50 -> EMPTY in=2.5s+1, stand first (10|10|19|19) -> GRANTED
who could overdraw, but for one before it, waits until that one is late or there is enough for both: SMOOTH balance=-20
    0 stand first 10 -> in=252s; 1s read 20 -> TAKEN, stand second (50|12|12) keep=(0|0|2) -> EMPTY in=(252s+1|24s|48s)
who was let go, and refused by the server, may stand again where it stood: SMOOTH overdraft=0 balance=0
    0 stand first 5 -> in=60s, stand second 5 -> in=120s
    60s stand first 5 -> GRANTED arrived=2, settle first 0 refused=1
    60s stand other 7 -> in=144s, hold bare 5 arrived=2 -> EMPTY in=204s
    60s stand first 5 arrived=(2|99) -> EMPTY in=(60s|204s) waiting=3
    60s stand first 5 arrived=2 -> EMPTY in=(60s|204s)
so may a scout, and who never stood by when it was let go: SMOOTH overdraft=0 balance=(0|5) reading_at=@(-601s|0)
    0 hold first 5 ticket=t scout=(1|0) -> GRANTED arrived=(2|-), settle first 0 refused=1 -> arrived=(3|2)
    0 hold again 5 ticket=t arrived=(3|2) -> EMPTY arrived=(3|2)
who is refused for good, or because nothing is known, stands nowhere by its number either: KEEPA balance=0
    0 stand a 5, put balance=(-|0), stand b 5 keep=(0|300) arrived=0 -> (UNKNOWN|TOO_LARGE) arrived=- waiting=1
a task that asks early, the one before it in flight, is told its turn again, and has it: SMOOTH overdraft=0 balance=0
    0 stand first 5 -> in=60s, stand task 5 -> in=120s
    60s stand first 5 -> GRANTED, stand task 5 -> IN_FLIGHT in=60s, stand newcomer 1 -> EMPTY
    120s stand task 5 -> GRANTED
# At its turn; early, but nothing flows in; early, with all that it needs of its own.
beside calls in flight all others look again soon: SMOOTH balance=15 (overdraft=0|refill=0 overdraft=0|refill=5)
    0 stand flying 10 -> GRANTED, put line=ticket-task:10:0:1:@(0|1|1), stand task 10 -> IN_FLIGHT in=1.5s
a cancel by the ticket's id leaves the line, and the next one is granted at once: PLAIN balance=10
    0 stand big 50, stand small 5 -> !granted, cancel ticket-big -> found, stand small 5 -> GRANTED
who finds a recharge is told when the refill has brought its tokens too, not its end: PLAIN recharge_to=20 balance=0
    0 stand a 15 -> in=20s, stand b 15 -> in=30s, stand c 15 -> in=45s
a lost sequence number goes on from the last ticket, and nobody passes: PLAIN balance=0
    0 stand first 50, stand second 10, put sequence=-, stand second 10 -> in=60s, stand first 50 -> in=50s
# In an hour 300 - 280 are left, and after the big one -330; 331 more take 67 steps.
the bound counts what is lost while a call is in flight; what is there now is granted now: KEEPA balance=300
    0 stand flying 280 life=3600s -> GRANTED, peek 1 probe=- -> bound=0
    0 stand big 350 -> !granted, peek 1 probe=- -> bound=7621s
an acquire that may wait stands in line too, behind whoever stands there already: PLAIN balance=0
    0 stand first 50, take 5 wait=1000s ticket=a -> EMPTY in=55s
who leaves nothing gets a place before those in line who do: PLAIN balance=0
    0 stand modest 5 keep=1 -> !granted, take 5 wait=1000s -> GRANTED place=5s
who acquires by a ticket is not behind it: PLAIN balance=0
    0 take 5 ticket=a -> in=5s arrived=2, take 50 ticket=b -> in=55s arrived=3
    5s take 5 wait=1000s ticket=a -> GRANTED !place waiting=1
the bound counts that a bucket which is paused runs over, and all in line come after: PLAIN balance=0
    0 stand a 100, stand b 100, pause 1000s, peek 100 -> bound=1201s, stand c 100 -> PAUSED in=1000s
    100s stand a 100 -> PAUSED in=900s; 200s stand b 100 -> PAUSED in=800s; 1000s stand a 100 -> GRANTED
    1000s stand b 100 -> EMPTY in=100s, stand c 100 -> EMPTY in=200s
    1100s stand b 100 -> GRANTED; 1200s stand c 100 -> GRANTED
the bound counts that a step runs over which brings more than fits: PLAIN refill=1000 period=60 stepped balance=0
    0 stand a 60 -> in=60s, stand b 60 -> in=60s, peek (62|63) -> bound=(181s|241s), stand c 60 -> in=60s
    60s stand a 60 -> GRANTED, stand b 60 -> EMPTY in=60s, stand c 60 -> EMPTY in=60s
    120s stand b 60 -> GRANTED, stand c 60 -> EMPTY in=60s; 180s stand c 60 -> GRANTED
where no step brings more than fits the bound counts none: PLAIN refill=10 period=60 stepped balance=0
    0 stand a 10 -> in=60s, peek 10 -> bound=121s
who may overdraw and finds that who is before it has not come asks when that one is late: PLAIN overdraft=1 balance=0
    0 stand dead 1 -> in=1s; 0 peek 2 -> bound=3s+1, stand task 2 -> in=2s
    2s stand task 2 -> EMPTY in=0s+1; 2s+1 stand task 2 -> GRANTED
# As after damage, or other terms.
for a ticket of as much as can be admitted all wait: PLAIN balance=10
    0 put line=large:(100|60):(0|40):0:@90s, stand behind 30 keep=(0|40) -> in=120s
one told too far ahead, by damage, keeps its place: PLAIN balance=0
    0 put line=far:50:0:1:@200000s, peek 5 -> mended=line waiting=1 bound=86402s+1
for a ticket of more than can be admitted nobody waits: PLAIN balance=10
    0 put line=odd:(101|61|4503599627370495):(0|40|0):0:@86400s, peek 30 -> bound=20s, peek 10 -> bound=0
    0 take 10 wait=1000s -> GRANTED !place; 0 stand behind 30 -> in=30s
whatever those before it ask for, nobody is told to come in more than a day: PLAIN overdraft=4503599627370496 balance=50
    0 put line=odd:4503599627370495:0:0:@9s, hold small 5 -> EMPTY in=86400s; 10s+1 hold small 5 -> GRANTED
alone, who may wait gets a place after all: PLAIN balance=0
    0 take 5 ticket=a -> in=5s, take 5 wait=1000s ticket=a -> GRANTED place=5s !waiting
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_the_line_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


def test_a_ticket_stands_until_the_instant_at_which_it_lapses() -> None:
    """A microsecond before it is in line, then it isn't; what all before ask for is no more than can be counted."""
    ticket = Ticket("a", LIMIT - 1, 0, 1, EPOCH)
    assert standing([ticket], EPOCH + LAPSES_US - 1) == [ticket]
    assert standing([ticket], EPOCH + LAPSES_US) == []
    assert wanted_by([ticket, ticket]) == LIMIT - 1


def test_a_full_line_gives_the_plain_refusal() -> None:
    """The two hundred and fifty-seventh gets no ticket, and is refused all the same."""
    bucket = Direct(PLAIN, begun(PLAIN, EPOCH, {"balance": 0}))
    for number in range(LONGEST_LINE + 1):
        assert not bucket.apply(command(f"stand {number} 1"), EPOCH).granted
    assert bucket.apply(command("stand again 1 arrived=1"), EPOCH).arrived is None
    assert len(bucket.stored.line) == bucket.look(EPOCH).waiting == LONGEST_LINE


def test_a_garbled_ticket_is_dropped_and_named() -> None:
    """What can't be read leaves the line; the others stay, and the repair is said."""
    whole = Ticket("b", 1, 0, 2, EPOCH).text()
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
    bucket, now = Direct(quota, begun(quota, EPOCH, {"balance": balance})), EPOCH
    due = {name: (EPOCH, tokens, keep) for name, (tokens, keep) in enumerate(wants)}
    spent, looks = 0, 0
    while due:
        name = min(due, key=lambda each: (due[each][0], each))
        at, tokens, keep = due.pop(name)
        now = max(now, at)
        looks += 1
        assert looks < 40 * len(wants)
        outcome = bucket.apply(Reserve(str(name), tokens, 120 * SECOND, keep, ticket=f"ticket {name}"), now)
        if outcome.granted:
            spent += tokens
            bucket.apply(Settle(str(name), tokens), now)
            assert spent <= balance + (now - EPOCH) // SECOND
        else:
            due[name] = (now + outcome.retry_after_us, tokens, keep)
    assert now <= EPOCH + (sum(tokens for tokens, _ in wants) + 5) * SECOND


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
