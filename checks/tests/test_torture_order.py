"""What `make torture` says of those who stand in line."""

from __future__ import annotations

from typing import Final

from checks.tests.torture_log import Log, each_log, rules
from checks.torture import order
from checks.torture.steps import story_of
from checks.torture.terms import QUOTAS

WAITS: Final = "-> !granted reason=EMPTY retry_after=1s"
"""Somebody stands in line from then on."""

LOGS: Final = f"""
what a grant leaves, less what calls in flight hold, is for those before it: plain (nothing|passed in line)
    0 take 5 ticket=a {WAITS}; 0.1s hold b 1 -> balance=(5|4)
so it is beside a server: keepa (nothing|passed in line)
    0 take 5 ticket=a {WAITS}; 0.1s hold b 1 -> balance=(8|7) held=3
whoever is late by a second after the instant that was told may be passed: plain (passed in line|nothing)
    0 take 5 ticket=a {WAITS}; (2s|2s+1) take 1 -> balance=0
# A cancel, known or lost, a lost attempt, and a state that was lost end a place in line.
who may have left is before nobody: plain (passed in line|nothing|nothing|nothing|nothing)
    0 take 5 ticket=a {WAITS}; 1 (peek|cancel a|cancel a -> lost|take 5 ticket=a -> lost|wiped)
    0.1s take 1 -> balance=0
who leaves less goes first, and nobody is before himself: plain (passed in line|passed in line|nothing|nothing)
    0 take 5 keep=2 ticket=a {WAITS}
    0.1s take (1 keep=3|1 keep=2|1 keep=1|5 keep=2 ticket=a) -> balance=0
a ticket whose first answer was lost may have stood in line since it was sent: plain (nothing|passed in line)
    0 take 5 ticket=a {WAITS}; (-1|1) take 1 ticket=b -> lost; 0.1s take 1 ticket=b -> balance=0
a hold whose lost answer was a grant before the others came passes nobody when it is sent again: held nothing
    -0.1s hold b 1 -> lost; 0 hold c 5 ticket=a {WAITS}; 0.1s hold b 1 -> balance=0
nobody stands in line for what is not known, or can't come: plain nothing
    0 take 5 ticket=a -> !granted reason=(UNKNOWN|TOO_LARGE) retry_after=1s; 0.1s take 1 -> balance=0
"""


@each_log(LOGS)
def test_who_is_passed_in_line_is_found(log: Log, found: list[str]) -> None:
    """Each title says who may be passed, or may not."""
    assert rules(order.kept(log.bucket, QUOTAS[log.bucket], story_of(log.entries))) == found
