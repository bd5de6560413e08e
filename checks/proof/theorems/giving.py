"""What comes back of tokens that were taken and not used (rule 6). At every rate unless the name says otherwise."""

from __future__ import annotations

from keepa_tokens.rules.arithmetic import flowed_between, given_back, moved_back
from keepa_tokens.rules.fast_path import give_back
from keepa_tokens.units import LIMIT

from .terms import CAPACITY, DEBT, LATEST, PERIOD_US, RATE, RATE_PERIOD_US, REFILL, SMOOTH, STEPPED, numbers


def no_more_comes_back_than_was_taken(
    tokens: int, own: int, last_place: int, now: int, refill: int, period: int
) -> bool:
    """All of it with no place ahead, or by the last place; else a part; never less than nothing.

    pre: tokens >= 0 and refill >= 0 and period >= 1
    post: _
    """
    for stepped in (False, True):
        back = given_back(tokens, own, last_place, now, refill, period, stepped=stepped)
        if not 0 <= back <= tokens or (back < tokens and last_place <= max(own, now)):
            return False
    return True


def what_comes_back_exceeds_the_refill_at_plans(tokens: int, own: int, last_place: int, now: int) -> bool:
    """With the refill up to the last place, what comes back is no more than was taken: the places between keep theirs.

    pre: tokens >= 0 and 0 <= now <= own < last_place <= LATEST
    post: _
    """
    back = given_back(tokens, own, last_place, now, RATE, RATE_PERIOD_US, stepped=False)
    return back == 0 or back * RATE_PERIOD_US + (last_place - own) * RATE <= tokens * RATE_PERIOD_US


def smooth_flow_is_rounded_up(start: int, end: int, refill: int, period: int) -> bool:
    """What flows in between two instants is what the time brings, rounded up to whole tokens; nothing backwards.

    pre: 0 <= refill < LIMIT and period >= 1
    post: _
    """
    flowed = flowed_between(start, end, refill, period, stepped=False)
    brought = max(0, end - start) * refill
    if flowed == LIMIT:
        return brought > (LIMIT - refill) * period
    return (flowed - 1) * period < brought <= flowed * period


def stepped_flow_counts_every_step_begun(start: int, end: int, refill: int, period: int) -> bool:
    """However the steps are phased, no more of them fall between two instants than are counted.

    pre: refill >= 0 and period >= 1
    post: _
    """
    flowed = flowed_between(start, end, refill, period, stepped=True)
    return flowed * period >= max(0, end - start) * refill or flowed == LIMIT


def moved_back_is_the_time_of_the_tokens_at_plans(own: int, tokens: int) -> bool:
    """The place before one is earlier by the time in which its tokens flow in, rounded down; it is never below 0.

    pre: 0 <= own <= LATEST and tokens >= 0
    post: _
    """
    before = moved_back(own, tokens, RATE, RATE_PERIOD_US, stepped=False)
    time, brought = own - before, tokens * RATE_PERIOD_US
    if not 0 <= before <= own:
        return False
    return time * RATE <= brought and (before == 0 or brought < (time + 1) * RATE)


def moved_back_by_whole_steps_at_plans(own: int, tokens: int) -> bool:
    """On a stepped bucket it is earlier by the steps that the tokens are worth, rounded down.

    pre: 0 <= own <= LATEST and tokens >= 0
    post: _
    """
    before = moved_back(own, tokens, REFILL, PERIOD_US, stepped=True)
    return before == max(0, own - tokens // REFILL * PERIOD_US)


def give_back_never_mints(
    balance: int, carry: int, now: int, tokens: int, own: int, last: int, firm: int, largest: int, *, stepped: bool
) -> bool:
    """Whoever waits and for how much: the balance rises by what was taken at most, and to the capacity; full, no more.

    Only the last place gives its instant free, never past one that is firm; who gives back moves nobody on.

    pre: -DEBT < balance <= CAPACITY + DEBT and 0 <= now <= LATEST and 0 <= carry < (1 if stepped else RATE_PERIOD_US)
    pre: 0 <= tokens <= DEBT and 0 <= own <= LATEST and 0 <= last <= LATEST and 0 <= firm <= last and largest >= 0
    post: _
    """
    n = numbers(STEPPED, balance, now) if stepped else numbers(SMOOTH, balance, now, carry)
    n.last_place, n.firm_place, n.largest_place = last, firm, largest
    give_back(n, now, tokens, own)
    if n.balance >= CAPACITY and n.balance > balance and n.carry:
        return False
    if own < last and n.last_place < last:
        return False
    if own <= last and not (firm <= n.last_place <= last and firm <= n.firm_place <= last):
        return False
    return balance <= n.balance <= max(balance, min(CAPACITY, balance + tokens)) and (not n.carry or n.carry == carry)
