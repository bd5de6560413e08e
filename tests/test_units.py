"""What the checks of arguments let through, to the last number, and what their messages show of what they don't."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from keepa_tokens import ConfigError
from keepa_tokens._arguments import instance, microseconds, shown, whole
from keepa_tokens.units import LIMIT, MICROSECONDS, NEVER, one_line, seconds

LINE: Final = 60
"""As much of a value as a message shows."""


@pytest.mark.parametrize("edge", [LIMIT, -LIMIT])
def test_the_first_duration_out_of_range_is_an_error_and_the_one_before_it_is_none(edge: int) -> None:
    """2**52 microseconds either way are refused, a microsecond less is taken as it is."""
    inside = edge - math.copysign(1, edge)
    assert microseconds("timeout", inside / MICROSECONDS) == inside
    with pytest.raises(ConfigError, match=re.escape(f"timeout={edge / MICROSECONDS!r} is out of range: give a finite")):
        microseconds("timeout", edge / MICROSECONDS)


@pytest.mark.parametrize("us, s", [(0, 0.0), (1, 1e-6), (NEVER - 1, (NEVER - 1) / 1e6), (NEVER, math.inf)])
def test_never_is_infinite_and_the_microsecond_before_it_is_not(us: int, s: float) -> None:
    """`NEVER` shows as inf, everything below it in seconds."""
    assert seconds(us) == s


@pytest.mark.parametrize(
    "bounds, least, most",
    [({}, 0, LIMIT - 1), ({"least": 0, "most": LIMIT - 1}, 0, LIMIT - 1), ({"least": 3, "most": 7}, 3, 7)],
)
def test_the_edges_of_a_range_are_in_it(bounds: dict[str, int], least: int, most: int) -> None:
    """The least and the most are taken, without bounds 0 and 2**52 - 1; an error shows one beyond and the range."""
    assert [whole("tokens", value, **bounds) for value in (least, most)] == [least, most]
    for beyond in (least - 1, most + 1):
        with pytest.raises(ConfigError, match=rf"^tokens={beyond} is out of range: it must be from {least} to {most}$"):
            whole("tokens", beyond, **bounds)


def test_an_int_of_a_subclass_becomes_a_plain_one() -> None:
    """A whole number of another make, numpy's or an enum's, goes on as int."""

    class Count(int):
        pass

    assert type(whole("tokens", Count(3))) is int


NO_COUNT: Final = (("1", "'1'"), (1.0, "1.0"), (True, "True"), (None, "None"))
NO_DURATION: Final = (("1", "'1'"), (None, "None"), (True, "True"), ([1], "[1]"))


@pytest.mark.parametrize(
    "check, value, says",
    [
        *((whole, value, f"whole number (int), not {text}") for value, text in NO_COUNT),
        *((microseconds, value, f"number of seconds, not {text}") for value, text in NO_DURATION),
        (partial(instance, kind=str), 5, "str, not 5"),
    ],
)
def test_what_is_of_another_kind_is_shown(check: Callable[[str, Any], object], value: object, says: str) -> None:
    """The message has the argument's name, the kind that is wanted and what was given."""
    assert instance("given", "x", str) == "x"
    with pytest.raises(TypeError, match=f"^given must be a {re.escape(says)}$"):
        check("given", value)


@pytest.mark.parametrize(
    "value, text",
    [
        ("x " * (LINE // 2 - 1), repr("x " * (LINE // 2 - 1))),
        ("x " * (LINE // 2), repr("x " * LINE)[: LINE - 3] + "..."),
        (2**192 - 1, str(2**192 - 1)),
        (2**192, "a whole number of 193 bits"),
        (-(10**5000), "a whole number of 16610 bits"),
    ],
    ids=["a line", "a letter more", "the longest number", "a bit more", "more than Python prints"],
)
def test_a_value_is_shown_on_one_line(value: Any, text: str) -> None:
    """A value of up to 60 letters stands whole, a longer one cut to 60, a huge number by its size."""
    assert shown(value) == text


@pytest.mark.parametrize(
    "text, told",
    [
        ("a é", "a é"),
        ("a\n\u200bé", r"a\n\u200bé"),
        ("x" * LINE, "x" * LINE),
        ("x" * (LINE + 1), "x" * (LINE - 3) + "..."),
    ],
)
def test_what_was_stored_or_answered_is_shown_on_one_line(text: str, told: str) -> None:
    """Letters that would write lines of their own are spelled out, a longer text is cut."""
    assert one_line(text, LINE) == told
