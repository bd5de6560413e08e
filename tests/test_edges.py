"""Each rule at its very edge, a token or a microsecond to either side; numbered as in `transition.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from checks.models.strategies import EPOCH, SECOND
from keepa_tokens import Quota, Reading
from keepa_tokens.rules.commands import Peek, Reconcile, Refund, Verdict
from keepa_tokens.rules.flow import Flow, flow_in_effect
from keepa_tokens.rules.repair import new_state
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, NEVER, UNLIMITED
from tests.stories import Story, begun, each_story
from tests.strategies import Direct, Make, either_way

SYNCED: Final = Quota(300, 5, 60.0, stepped=True, synced=True)
RECHARGING: Final = Quota(10, 1, 1.0, recharge_to=4)
TEN: Final = Quota(10, 1, 1.0)
FAST: Final = Quota(10, 1, 1.0, synced=True)
CREDIT: Final = Quota(300, 5, 60.0, synced=True, overdraft=UNLIMITED)
ETERNAL: Final = Quota(10, 1, 4e9, recharge_to=8)
MINUTELY: Final = Quota(10, 1, 60.0)
NINE, NO_FEWER, ELEVEN = (Quota(capacity, 1, 59.0) for capacity in (9, 10, 11))
QUICKER: Final = Quota(10, 10, 1.0)
STEPPED: Final = Quota(10, 1, 1.0, stepped=True)
STILL, ONE, TWO = (Quota(1000, refill, 1.0) for refill in (0, 1, 2))
HOURLY: Final = Quota(1000, 1, 3600.0, stepped=True)
NEVER_MORE: Final = replace(HOURLY, refill=0)
LARGE, SMALL = (Quota(capacity, 1, 60.0) for capacity in (100, 50))
SMALL_TOLD: Final = replace(SMALL, synced=True)
LARGE_FAST, SMALL_FAST = (Quota(capacity, 1, 1.0) for capacity in (100, 50))
LARGE_SLOW, SMALL_SLOW = (Quota(capacity, 1, 2.0, recharge_to=90) for capacity in (100, 50))
MOST_US: Final = LIMIT // 2 - 2

STORIES: Final = f"""
# A hold, a ticket, a refund, a reading, one that is only lower, a hold that runs out.
what has an order gets the next number: SYNCED
    0 read 50 7, hold a 1 -> sequence=2
    (0 hold b 1|0 stand b 200|0 back r 1|0 read 70 8|0 read 30 7|1s take 0) -> sequence=3

# 3: ending a hold
the drift of a call that ran out counts back what running out had charged: SYNCED
    0 read 50, hold a 9; 1s take 0 -> balance=41, settle a 2 says=40 -> TAKEN drift=-8
a hold given up brings the end of a recharge nearer: RECHARGING balance=5 (initial=5|synced)
    0 hold a 4 life=99s, take 3 -> RECHARGING closed_until=@3s, cancel a -> closed_until=-
    0 hold a 4 life=99s, hold b 1 life=99s, put balance=(-2|3), take 3 -> RECHARGING closed_until=@6s
    0 cancel a -> closed_until=@2s

# 4: admission
what is held and what is asked for must stay below 2**52 together: TEN overdraft={UNLIMITED} balance=5
    0 hold a {LIMIT - 2} life=9s, put balance=5, take 1 -> GRANTED, take 2 -> IN_FLIGHT in=1.5s; 9s take 2 -> GRANTED
# It is swept a second after its end at the latest.
and the bound counts on the end of what is held: TEN overdraft={UNLIMITED}
    0 hold a {LIMIT - 2} life=9s, put balance=(5|-29), peek 2 -> bound=(10s|30s)
beside calls in flight as much is left for others: SYNCED balance=20
    0 hold a 5 life=90s, peek 5 keep=10 -> GRANTED, peek 5 keep=11 -> IN_FLIGHT
what is there can be had above the capacity too, and not a token more: TEN balance=11
    0 peek 12 -> TOO_LARGE, take 11 -> GRANTED
a full bucket would admit it, though nothing will ever fill it: TEN refill=0 balance=9
    0 take 10 -> EMPTY in={NEVER}
beside nothing held the wait is for one token, not for all that is asked: CREDIT balance=-3
    0 hold free 0 life=3600s, peek 50 -> in=48s; 48s-1 take 50 -> EMPTY; 48s take 50 -> GRANTED

# 5: recharge
# The first just fits in beside its keep.
who finds too little of what a refill could admit begins a recharge: RECHARGING balance=(0|3|0)
    0 take (5 keep=5|8|1) -> RECHARGING, peek 0 -> closed_until
so it is by a clock behind, which stands still: RECHARGING refilled_at=@1s balance=(0|3|0)
    0 take (5 keep=5|8|1) -> RECHARGING, peek 0 -> closed_until
who asks for what no refill brings, for nothing, or where it would be over already begins none: \
RECHARGING balance=(0|0|4)
    0 take (5 keep=6|0|8) -> (TOO_LARGE|GRANTED|EMPTY), peek 0 -> !closed_until
nor by a clock behind: RECHARGING refilled_at=@1s balance=(0|0|4)
    0 take (5 keep=6|0|8) -> (TOO_LARGE|GRANTED|EMPTY), peek 0 -> !closed_until
a recharge that no refill ends is over once the server says so: RECHARGING synced balance=0 closed_until=@4s
    0 read 0 -> TAKEN closed_until=@4s, read 0 refill=0 -> TAKEN closed_until=-
a recharge that somebody began binds everybody, also who asks for what is there: RECHARGING balance=3
    0 peek 3 -> GRANTED, take 8 -> RECHARGING closed, take 3 -> RECHARGING
an unknown balance ends a recharge: SYNCED recharge_to=40 balance=- reading_at=- closed_until=@1s
    0 (take 0|cancel nobody) -> !closed, back r 0 -> !closed closed_until=-
a recharge beyond the end of time binds nobody, and the bound is that of the request itself: ETERNAL start=0 balance=0
    0 peek -> in=4000000000s bound=4000000000s

# 7: readings
without a server's time a call is later than a reading if it was opened after it: SYNCED balance=60
    0 (hold a 1|read 50|hold a 1), (read 50|hold a 1|put reading_sequence=2), settle a 1 says=7 -> (STALE|TAKEN|STALE)
so it is with a refusal that brings no reading: SYNCED balance=60
    0 (hold a 1|read 50|hold a 1), (read 50|hold a 1|put reading_sequence=2), settle a 0 refused=1 -> balance=(50|0|60)
where the last reading is lost any answer is taken, its number alone shuts nobody out: SYNCED balance=60
    0 hold a 1, read 50, put reading_at=-, settle a 1 says=7 -> TAKEN
a plain bucket takes no answer for its balance: the hold ends at its cost, and no more: MINUTELY balance=9
    0 hold a 5 -> balance=4, settle a 2 says=1 -> STALE balance=7
a reading that tells no order is shut out for two minutes, at the beginning of time too: SYNCED start=0 balance=5
    0 put server_time=9s; (120s|120s+1) read 3 -> (STALE|TAKEN)
a reading that says nothing of the next step leaves it where it was: SYNCED balance=50 refilled_at=@-40s
    0 read 20; 20s-1 take 0 -> balance=20; 20s take 0 -> balance=25
# Tokens times the quota's period and a microsecond stay below 2**52; else the last rate goes on.
a rate is adopted if it can be computed: SYNCED refill=1 period=({MOST_US / SECOND}|{(MOST_US + 1) / SECOND})
    0 read 5, read 7 refill=2 -> TAKEN balance=7 reported_refill=(2|-) reported_period_us=({MOST_US}|-)
# 0 left and the next step in 90 s: ask again in 90 s; after ten minutes no word of the server's is waited for.
a refill told further off than the period is the period until the next reading: SYNCED period=60.5
    0 read 0 next_refill_in=(60|60.5|60.500001|90|600|600.000001)
    0 take 1 -> in=(60s|60.5s|60.500001s|90s|600s|600s)
    0 take 6 -> in=(120.5s|121s|121.000002s|180s|1200s|1200s) stretched_us=(-|-|60500001|90s|600s|600s)
    1 read 0 next_refill_in=60, take 6 -> in=120.5s
it counts if it can be computed; else the period goes on: SYNCED capacity={2**24} refill={2**23}
    0 read 0 next_refill_in=({(2**29 - 2) / SECOND}|{(2**29 - 1) / SECOND}) -> stretched_us=({2**29 - 2}|-)
# Taken because it is newer, or because it is lower: a whole token comes after its whole time.
a reading leaves no fraction under way: MINUTELY synced balance=0 carry=7 server_time=(-|7s)
    0 read (-1|-1 7) -> TAKEN balance=-1, take 1 -> in=120s

# 8: the probe
once the back-off of a failed probe is over the bound is 0, however long ago that was: SYNCED balance=-5
    0 put reading_at=@-7200s probe_until=@-7000s, peek -> bound=0
so it is of an unknown balance at the beginning of time: SYNCED start=0 balance=- reading_at=-
    0 peek -> bound=0
a full bucket is full now, by a clock behind too: TEN balance=10 refilled_at=@1s
    0 peek -> full_in=0
# Nothing known: a claim's length from now, or its end; then 0, and refilling.
the bound counts a claim that may fail: SYNCED balance=- reading_at=- probe_until=(-|@5s)
    0 peek probe=- -> bound=(80s|65s)
# 5 run out at 3 s and 2 at 4 s, each seen a second later: 9 - 5, 5 - 2, and 3 more. A sweep that was put off to 4.5 s:
# 10 - 5, and at 5 s 5.5 - 2.
the bound counts calls in flight that run out: FAST balance=10
    0 hold b 2 life=4s, hold a 5 life=3s, put balance=(5|5|9) due_at=@(3s|3s|4.5s)
    0 peek (6|4 keep=2|9) probe=- -> bound=(8s|8s|10.5s)
the bound counts a full bucket that is full until then: FAST balance=9
    0 hold b 2 life=4s, peek 10 probe=- -> bound=7s
# Whoever stands in line comes a second late at most, and so does whoever asks.
the bound counts who stands in line: FAST balance=0
    0 put line=t:(5|1|1):0:1:@(2s|8s|2s), peek (3|3|10) probe=- -> bound=(9s|10s+1|12s)
the bound counts a recharge, and a pause: FAST balance=0 (recharge_to=7|recharge_to=2|refill=1|refill=1)
    0 put paused_until=(-|-|@4s|@2s), peek 3 probe=- -> bound=(7s|3s|4s|3s)
when an unknown balance will be full is not known, the server may say anything: SYNCED balance=- reading_at=-
    0 peek -> balance=- available=- full_in=inf
# Whoever is cancelled leaves the claim to the next one; who gives it back again and again must not hammer.
a claim given back is free at once, and the second time a failed probe: SYNCED balance=(5|-) reading_at=-
    0 take 999 -> probe claimed_until_us=@20s, unclaim 20s-1 -> !found, unclaim 20s -> found probe_returned=1
    0 unclaim 20s -> !found, take 999 -> probe, unclaim 20s; 600s-1 take 999 -> !probe; 1200s take 999 -> probe
    1200s read 5; 1800s take 999 -> probe, unclaim 1820s, take 999 -> probe
where one has failed before it is so at once: SYNCED balance=- reading_at=- probe_failures=1
    0 take 999 -> probe, unclaim 20s -> found, take 999 -> !probe
a claim that is over can't be given back: SYNCED balance=5 reading_at=-
    0 take 999 -> probe; 20s unclaim 20s -> !found

# 9: lifetime
a look at an empty bucket never used lets it begin to fill, so that who waits as told is granted: TEN initial=0
    0 peek 3 -> in=3s; 3s-1 peek 3 -> EMPTY in=1; 3s peek 3 -> GRANTED

# 10: others
# Never so much that the request can't be admitted; all; beside what is kept; a third, rounded down; with what the
# request itself leaves; which is more at times.
what is kept back is a third at most: SYNCED capacity=(300|300|300|301|301|301) kept_back=(100|40|40|150|150|150)
    0 put kept_back_at=@0 balance=(299|40|70|100|100|200), take (250|1|1 keep=30|1|1 keep=50|1 keep=200) -> EMPTY
    0 put balance=(300|41|71|101|101|201), take (250|1|1 keep=30|1|1 keep=50|1 keep=200) -> GRANTED
# As many steps as fit in the tolerance of clocks, and one more, explain a gap; a token more is somebody else.
a gap is more than what may be under way: SYNCED balance=200 refill=(5|5|2|2|5) period=(1|1|2|2|60)
    0 read (170|169|194|193|194) -> kept_back=(0|31|0|7|6)

# 12: a pause
a pause refuses every request until its end, and nothing else: TEN balance=7 (refill=1|recharge_to=4|synced)
    0 hold a 2 life=99s, pause 5s, take 0 -> GRANTED; 5s-1 take 1 -> PAUSED in=1 !granted !probe !closed
    5s-1 take 1 wait=999s -> PAUSED in=1 !granted !probe !closed, peek -> PAUSED in=1 !granted !probe !closed
    5s-1 hold b 1 scout=1 -> PAUSED in=1 !granted !probe !closed, settle a 1 -> found
    5s take 1 -> GRANTED, take 1 wait=999s -> GRANTED, hold b 1 scout=1 -> GRANTED, peek -> GRANTED
a pause can be ended: TEN
    0 pause 5s, pause 0 -> paused_until=-, take 1 -> GRANTED
who would wait for longer than the pause is told so: TEN balance=0
    0 pause 2s, take 1 -> in=2s, take 2 -> in=2s, take 3 -> in=3s
a pause is a day at most, when it is set and when it is read: RECHARGING
    0 pause 86400s+1 -> paused_until=@86400s, put paused_until={LIMIT - 1}
    0 take 0 -> mended=paused_until paused_until=@86400s

# 13: terms (see also test_terms.py)
half a token of the old rate is half a second, and so many tokens at the new one: TEN
    0 take 10; 1.5s on QUICKER, take 0 -> balance=6
and half a second to the next step: TEN
    0 take 10; 0.5s on STEPPED, take 1 -> EMPTY in=0.5s
the time at refill 0 was not counted, so it may not all count at the next rate: STILL
    0 take 1000; (1s|3600s) on ONE, take 0 -> balance=0
# Once terms changed, they stand for a minute at least.
of the time at a refill of 0 that came later a minute goes over: ONE start=(0|0|0|1|1|1)
    0 take 1000, on STILL, take 0; (60s|61s|3600s|60s|61s|3600s) on ONE, take 0 -> balance=60
at the very beginning none does: (STILL|ONE) start=0
    0 take 1000, on TWO, take 0 -> refilled_at=@0
nor of an hour's steps: HOURLY start=0
    0 take 1000, on NEVER_MORE, take 0; 60s on HOURLY, take 0 -> refilled_at=@0
# A capacity that isn't larger bounds nothing; a place ten tokens in debt is where it was.
other terms leave a larger capacity and the places that were told: MINUTELY
    0 take 10, take 10 wait=9999s, take 10 wait=9999s, on (NINE|NO_FEWER|ELEVEN)
    0 take 0 -> wide_capacity=(10|-|-) last_place=@1200s
for a minute the larger capacity bounds, and then the smaller clips, and refill fills up to it: LARGE
    0 take 20, on SMALL, take 0 -> balance=80 terms; 60s-1 take 81 -> TOO_LARGE, peek 80 -> GRANTED
    60s take 1 -> GRANTED balance=49 wide_capacity=-; 540s take 0 -> balance=50
what a server said is there is there: LARGE synced balance=80
    0 on SMALL_TOLD, take 0; 60s take 0 -> balance=81
# 10 tokens at one a second: the 70th would come as only 50 are held any more.
what the smaller capacity will clip is never there: LARGE_FAST
    0 take 90, on SMALL_FAST, take 0, take (69|70) -> (EMPTY in=59s|TOO_LARGE in={LIMIT})
    59s-1 take (69|70) -> !granted; 59s take (69|70) -> (GRANTED|TOO_LARGE); 60s take (69|70) -> !granted
a recharge's end is fixed when it begins, so it aims at the capacity that lasts: LARGE_SLOW
    0 take 100, on SMALL_SLOW, take 0, take 1 -> RECHARGING in=100s
"""


@either_way
@each_story(STORIES, globals())
def test_a_story_of_an_edge_comes_out_as_told(make: Make, story: Story) -> None:
    """Each title says what its steps show."""
    story.goes(make)


@pytest.mark.parametrize("probed, told, kept", [(False, 7, 7), (True, 7, 7), (False, 68, 68), (False, 1, 7)])
def test_a_reading_that_is_not_lower_ends_the_probe(probed: bool, told: int, kept: int) -> None:
    """The server did answer: whoever asked it has not failed. A time that jumped is kept; else nothing is written.

    The next probe comes no sooner than after one that failed now: the last reading is no younger by it.
    """
    bucket = Direct(SYNCED, begun(SYNCED, EPOCH, {"balance": 50, "server_time": 7 * SECOND}))
    bucket.apply(Refund("r", 0), EPOCH)
    state = bucket.stored
    bucket.put(replace(state, probe_until=EPOCH + SECOND, probe_failures=2) if probed else state)
    assert bucket.apply(Reconcile(Reading(60, server_time=float(told))), EPOCH).reading is Verdict.STALE
    ended = replace(state, version=(state.version or 0) + (probed or kept != 7), server_time=kept * SECOND)
    assert bucket.state == (replace(ended, probe_until=EPOCH) if probed else ended)


def test_the_terms_flow_in_steps_or_evenly_in_the_smallest_numbers() -> None:
    """Steps come whole and leave no remainder; a smooth rate is reduced. A period is to the microsecond."""
    assert Quota(10, 4, 1 / 3) == Quota(10, 4, 0.333333)
    stepped, smooth = (flow_in_effect(new_state(Quota(10, 4, 2.0, stepped=each), 0), 0) for each in (True, False))
    assert (stepped, smooth) == (Flow(10, 4, 2 * SECOND, True), Flow(10, 1, SECOND // 2, False))
    assert stepped.refilled(1, 0, 5, 3 * SECOND) == (5, 2 * SECOND, 0)


def test_a_look_at_a_full_bucket_never_used_stores_nothing() -> None:
    """It is as a new one will be."""
    assert transition(TEN, None, EPOCH, Peek(3))[0] is None
