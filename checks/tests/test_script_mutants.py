"""What `make mutants-lua` says can be trusted: its table fits the script, and what it calls killed a test killed."""

from __future__ import annotations

import pytest
import redis

from checks.mutation.bucket_lua import checks, difference
from checks.mutation.judgement import SCRIPT, Mutant, by_hand
from checks.mutation.script import shipped
from tests.servers import Server

TABLE = by_hand(script=True)
MUTANTS = {mutant.name: mutant for mutant in TABLE}
FEW = 20
"""Programs drawn; the single faults come on top."""


def test_each_mutant_breaks_one_thing_of_the_script() -> None:
    """Each has a name and a script of its own, which is not the shipped one."""
    script = shipped()
    broken = [mutant.of(script) for mutant in TABLE]
    assert len({script, *broken}) == len(broken) + 1
    assert len(MUTANTS) == len(broken)


def test_every_rule_is_broken_in_several_ways() -> None:
    """No rule of the nine is without mutants, repair has most of them."""
    ways = [sum(mutant.rule == rule for mutant in TABLE) for rule in range(1, 10)]
    assert min(ways) >= 5
    assert max(ways) == ways[0]


@pytest.mark.parametrize("text", ["no such text", "end"])
def test_a_mutant_whose_text_is_gone_or_not_alone_is_an_error(text: str) -> None:
    """A change of the script can't quietly take a mutant out of the run."""
    with pytest.raises(ValueError, match=r"'a name' breaks occurs \d+ times"):
        Mutant(SCRIPT, text, "", "a name").of(shipped())


@pytest.mark.parametrize(
    "name",
    [
        "a missing timestamp counts from 0: the bucket looks full",
        "a lost balance is a full bucket",
        "a plain bucket obeys a reported rate",
    ],
)
def test_a_mutant_is_killed_and_the_script_is_not(
    shared_server: Server, clients: dict[str, redis.Redis], name: str
) -> None:
    """The tests tell a broken script from the core, and the shipped one, after it, they don't."""
    client, parts = clients[shared_server.name], checks(FEW)
    script = shipped()
    assert difference(client, MUTANTS[name].of(script), parts)
    assert not difference(client, script, parts[: FEW + FEW // 5])
