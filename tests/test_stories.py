"""The stories that other tests are told in: what doesn't come out as told is found."""

from __future__ import annotations

import pytest

from keepa_tokens import Quota
from tests.stories import stories
from tests.strategies import Direct

PLAIN = Quota(10, 1, 1.0)
SLOW = Quota(10, 1, 9.0)

TOLD = """
what is so: PLAIN balance=3
    0 take 2 -> GRANTED balance=1 held=0 !probe; 1s-1 take 2 -> EMPTY in=1 !granted waiting=0
    1s hold a 2 life=5s -> found holds=1, on SLOW, put balance=9 refilled_at=@1s, take 0 -> terms balance=9 !line
"""


def go(text: str) -> None:
    for _, story in stories(text, globals()):
        story.goes(Direct)


def test_what_comes_out_as_told_passes() -> None:
    """Of the outcome, of a look, of what is stored."""
    go(TOLD)


@pytest.mark.parametrize(
    "said, wrong",
    [
        *[("balance=1", "balance=2"), ("GRANTED", "EMPTY"), ("GRANTED", "TAKEN"), ("!probe", "probe")],
        *[("in=1 ", "in=2 "), ("waiting=0", "waiting"), ("1s-1 take", "1s take"), ("holds=1", "holds=2")],
        *[("on SLOW", "on PLAIN"), ("put balance=9", "put balance=8"), ("!line", "line"), ("held=0", "h=0")],
        *[("EMPTY", "GRANTED"), ("    0 take", "0 take"), ("take 2 -> GRANTED", "take (1|2) -> GRANTED")],
    ],
)  # fmt: skip
def test_what_comes_out_otherwise_fails(said: str, wrong: str) -> None:
    """Any word that isn't so, one that nothing is called, and a line that belongs to no story."""
    assert said in TOLD
    with pytest.raises(AssertionError):
        go(TOLD.replace(said, wrong, 1))
