"""Others: what is kept back for somebody else who was seen to spend halves, has a bound, and stops nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keepa_tokens.rules.arithmetic import KEPT_SHARE, halved, set_aside
from keepa_tokens.rules.commands import Settle
from keepa_tokens.rules.reading import Reading
from keepa_tokens.rules.readings import HALF_LIFE_US
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.units import LIMIT, MICROSECONDS

from .terms import CAPACITY, DEBT, LATEST, SYNCED

MOST: Final = CAPACITY // KEPT_SHARE


def halving_never_mints(tokens: int, since: int, now: int) -> bool:
    """What is left is no less than 0 and no more than there was, and none of it is dated ahead of the clock.

    pre: 0 <= tokens < LIMIT
    post: _
    """
    left, moved = halved(tokens, since, now, HALF_LIFE_US)
    if now < since + HALF_LIFE_US:
        return (left, moved) == (tokens, since)
    return 0 <= left <= tokens // 2 and now - HALF_LIFE_US < moved <= now


def halving_is_monotone(tokens: int, more: int, since: int, now: int, later: int) -> bool:
    """Of more tokens no fewer are left, and a little later no more; a long time is many little ones.

    pre: 0 <= tokens <= more < LIMIT and now <= later <= now + HALF_LIFE_US
    post: _
    """
    left, _ = halved(tokens, since, now, HALF_LIFE_US)
    return halved(tokens, since, later, HALF_LIFE_US)[0] <= left <= halved(more, since, now, HALF_LIFE_US)[0]


def halving_path_does_not_matter(tokens: int, since: int, between: int, now: int) -> bool:
    """Halving once more, up to a half-life later, gives the digits of halving once; a long time is many such steps.

    pre: 0 <= tokens < LIMIT and between <= now <= between + HALF_LIFE_US
    post: _
    """
    two = halved(*halved(tokens, since, between, HALF_LIFE_US), now, HALF_LIFE_US)
    return two == halved(tokens, since, now, HALF_LIFE_US)


def halving_ends(tokens: int, since: int) -> bool:
    """After 52 half-lives nothing is left, however much there was.

    pre: 0 <= tokens < LIMIT
    post: _
    """
    return halved(tokens, since, since + 52 * HALF_LIFE_US, HALF_LIFE_US)[0] == 0


def a_third_is_kept_back_at_most(balance: int, kept: int | None, told: int, now: int) -> bool:
    """Whatever was kept back and however far below the projection a reading lies, it comes to a third of the capacity.

    pre: -DEBT < balance <= CAPACITY and -DEBT < told <= CAPACITY and 0 <= now <= LATEST
    post: _
    """
    stored = BucketState(balance=balance, refilled_at=now, quota=SYNCED, sequence=1, kept_back=kept)
    stored = replace(stored, reading_at=now, reading_sequence=1, server_time=MICROSECONDS, server_time_at=now)
    state, outcome = transition(SYNCED, stored, now, Settle("nobody's", reading=Reading(told, server_time=2.0)))
    if state is None or state.balance != told:
        return False
    return 0 <= (state.kept_back or 0) == outcome.kept_back <= MOST


def kept_back_stops_nobody(keep: int, kept: int, capacity: int, need: int) -> bool:
    """Whatever is kept back, a request leaves no more than its `keep` or a third, and what a full bucket can admit.

    pre: keep >= 0 and kept >= 0 and need >= 1 and keep + need <= capacity
    post: _
    """
    aside = set_aside(keep, kept, capacity, need)
    return keep <= aside <= max(keep, capacity // KEPT_SHARE) and aside + need <= capacity
