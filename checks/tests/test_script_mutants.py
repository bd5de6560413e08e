"""What `make mutants-lua` says can be trusted: it breaks the script everywhere, and a test notices."""

from __future__ import annotations

from collections import Counter

import pytest
import redis

from checks.mutation.bucket_lua import Slip, difference, explained, fixed_programs, slips
from checks.mutation.script import shipped
from tests.redis.stories import STORIES

SCRIPT = shipped()
SLIPS = {slip.name: slip for slip in slips(SCRIPT)}
FEW = 40
"""Programs drawn."""


def test_each_slip_breaks_one_line_of_the_script() -> None:
    """Each is a script of its own, which differs from the shipped one in one line."""
    broken = [slip.of(SCRIPT) for slip in slips(SCRIPT)]
    assert len({SCRIPT, *broken}) == len(broken) + 1
    for text in broken:
        assert sum(a != b for a, b in zip(text.splitlines(), SCRIPT.splitlines(), strict=True)) == 1


def test_most_lines_of_the_script_are_broken() -> None:
    """Of the lines that compute or decide, most can be broken, in two ways on average."""
    code = [line for line in SCRIPT.splitlines() if line.strip() and not line.strip().startswith("--")]
    assert len({slip.number for slip in slips(SCRIPT)}) > len(code) / 3
    assert len(list(slips(SCRIPT))) > len(code)


def test_a_number_becomes_the_next_one_and_a_text_stays() -> None:
    """Numbers in texts and patterns are left alone."""
    told = [slip.becomes for slip in slips("local a, b = 9, 'x 1'")]
    assert told == ["local a, b = 10, 'x 1'"]
    assert [slip.becomes for slip in slips("-- 1 + 1\n")] == []


def test_what_is_explained_is_a_slip() -> None:
    """A change of the script can't quietly leave an excuse behind."""
    assert explained().keys() <= SLIPS.keys()


@pytest.mark.parametrize(
    "part", ["< need then", "held + tokens, open + 1", "balance - tokens", "raised + 1", "refilled_at <= 365"]
)
def test_a_slip_is_killed_and_the_script_is_not(shared_client: redis.Redis, part: str) -> None:
    """The tests tell a broken script from the rules, and the shipped one, after it, they don't."""
    client, drawn = shared_client, [*STORIES.values(), *fixed_programs(FEW)]
    found: list[Slip] = [slip for slip in slips(SCRIPT) if part in slip.was]
    assert any(difference(client, slip.of(SCRIPT), drawn, Counter()) for slip in found)
    assert not difference(client, SCRIPT, drawn, Counter())
