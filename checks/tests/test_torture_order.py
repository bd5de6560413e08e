"""What `make torture` says of those who stand in line."""

from __future__ import annotations

from typing import Any

import pytest

from checks.tests.torture_log import LIFETIME, NOW, TENTH, Log, rules, wiped
from checks.torture import order
from checks.torture.steps import story_of
from checks.torture.terms import HELD, KEEPA, PLAIN, QUOTAS, SECOND
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Reserve

REFUSED: dict[str, Any] = {"granted": False, "reason": "EMPTY", "retry_after": SECOND}
PASSED = ["passed in line"]


def found(log: Log) -> list[str]:
    return rules(order.kept(log.bucket, QUOTAS[log.bucket], story_of(log.entries)))


def waiting(bucket: str = PLAIN, keep: int = 0, **outcome: Any) -> Log:
    """Return a log in which somebody waits for 5 tokens, from NOW on."""
    return Log(bucket).told(NOW, Acquire(5, keep=keep, ticket="a"), **{**REFUSED, **outcome})


@pytest.mark.parametrize("left, expected", [(4, PASSED), (5, [])])
@pytest.mark.parametrize("bucket, held", [(PLAIN, 0), (KEEPA, 3)])
def test_a_grant_leaves_enough_for_those_before_it(bucket: str, held: int, left: int, expected: list[str]) -> None:
    """What it left is the balance after it, less what calls in flight hold beside it."""
    log = waiting(bucket).told(NOW + TENTH, Reserve("b", 1, LIFETIME), balance=left + held, held=held)
    assert found(log) == expected


@pytest.mark.parametrize("at, expected", [(NOW + 2 * SECOND, PASSED), (NOW + 2 * SECOND + 1, [])])
def test_whoever_is_late_may_be_passed(at: int, expected: list[str]) -> None:
    """Late is a second after the instant that was told."""
    assert found(waiting().told(at, Acquire(1), balance=0)) == expected


@pytest.mark.parametrize(
    "between",
    [
        lambda log: log.told(NOW + 1, Cancel("a")),
        lambda log: log.lost(NOW + 1, Cancel("a")),
        lambda log: log.lost(NOW + 1, Acquire(5, ticket="a")),
        lambda log: log.add(wiped(NOW + 1, PLAIN)),
    ],
)
def test_who_may_have_left_is_before_nobody(between: Any) -> None:
    """A cancel, known or lost, a lost attempt, and a state that was lost end a place in line."""
    assert found(waiting().told(NOW + TENTH, Acquire(1), balance=0)) == PASSED
    assert found(between(waiting()).told(NOW + TENTH, Acquire(1), balance=0)) == []


@pytest.mark.parametrize(
    "command, expected",
    [
        (Acquire(1, keep=3), PASSED),
        (Acquire(1, keep=2), PASSED),
        (Acquire(1, keep=1), []),
        (Acquire(5, keep=2, ticket="a"), []),
    ],
)
def test_the_line_is_in_order_of_what_is_left_for_others(command: Command, expected: list[str]) -> None:
    """Who leaves less for others goes first, and nobody is before himself."""
    assert found(waiting(keep=2).told(NOW + TENTH, command, balance=0)) == expected


@pytest.mark.parametrize("first, expected", [(NOW - 1, []), (NOW + 1, PASSED)])
def test_among_equals_who_was_sent_first_may_be_first(first: int, expected: list[str]) -> None:
    """A ticket whose first answer was lost may have stood in line since it was sent."""
    log = waiting().lost(first, Acquire(1, ticket="b"))
    assert found(log.told(NOW + TENTH, Acquire(1, ticket="b"), balance=0)) == expected


def test_a_hold_that_was_granted_before_the_others_came_passes_nobody() -> None:
    """Its answer was lost, and it is sent again."""
    hold = Reserve("b", 1, LIFETIME)
    log = Log(HELD).lost(NOW - TENTH, hold).told(NOW, Reserve("c", 5, LIFETIME, ticket="a"), **REFUSED)
    assert found(log.told(NOW + TENTH, hold, balance=0)) == []


@pytest.mark.parametrize("outcome", [{"reason": "UNKNOWN"}, {"reason": "TOO_LARGE"}])
def test_not_every_refusal_gives_a_place(outcome: dict[str, Any]) -> None:
    """Nobody stands in line for what is not known, or can't come."""
    assert found(waiting(**outcome).told(NOW + TENTH, Acquire(1), balance=0)) == []
