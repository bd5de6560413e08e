"""The script and the rules are one: equal outcomes and equal stored texts, to the last digit, whatever comes.

`mirror.py` says which steps the script takes by itself, and takes them by `fast_path.py`; memory storage's tests hold
that to `transition`.
"""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import get_args

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings

from keepa_tokens.errors import ConfigError
from keepa_tokens.rules.commands import Command
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.state import FIELDS, LINE
from keepa_tokens.storage import _wire
from keepa_tokens.storage.redis import RedisStorage
from tests.redis.common import NAME, stored
from tests.redis.mirror import ALL, BY_ITSELF, SOME, Mirror, normal
from tests.redis.stories import STORIES
from tests.redis.strategies import Program, programs

KEY = "k"

# 500 in CI, 12,500 nightly: more than the profiles give, because what two programs must agree on is wide.
PROGRAMS = settings().max_examples * 5 // 2

_SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
)


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Watched(RedisStorage):
    """Notes what the script said first to each command."""

    said: _wire.Answer | None = None
    reply: object = None

    async def _send(self, arguments: list[_wire.Argument]) -> object:
        self.reply = await super()._send(arguments)
        return self.reply

    async def _ask(self, key: str, arguments: list[_wire.Argument], command: Command | None) -> _wire.Answer:
        answer = await super()._ask(key, arguments, command)
        self.said = self.said or answer
        return answer

    def way(self) -> str:
        said, self.said = self.said, None
        if isinstance(said, _wire.Handed):
            return SOME if said.partial else ALL
        return BY_ITSELF


def agree(client: redis.Redis, program: Program) -> int:
    """Run the program on both sides and compare after every act; return how many the script took by itself."""
    storage, mirror = Watched(client), Mirror()
    client.delete(NAME)
    for act in program.acts:
        for name, text in act.damage:
            if text is None:
                client.hdel(NAME, as_bytes(name))
                mirror.texts.pop(name, None)
            else:
                client.hset(NAME, as_bytes(name), as_bytes(text))
                mirror.texts[name] = text
        try:
            expected = mirror.apply(act.quota, act.command, act.now)
        except ConfigError:
            with pytest.raises(ConfigError):
                storage.apply(KEY, act.quota, act.command, now_us=act.now)
        else:
            told = storage.apply(KEY, act.quota, act.command, now_us=act.now)
            assert told == expected, f"{told} is not {expected}"
            if mirror.way == BY_ITSELF:
                # The answer leaves out what is 0.
                says_more = any((told.place_us, told.held, told.open, told.kept_back))
                assert isinstance(storage.reply, bytes | str)
                assert len(storage.reply.split()) == (6 if told.reason is Reason.EMPTY else 7 if says_more else 3)
        assert storage.way() == mirror.way, mirror.way
        texts, others = normal(stored(client)), normal(mirror.texts)
        assert texts == others, f"{texts.items() - others.items()} stored for {others.items() - texts.items()}"
    return mirror.took


@given(program=programs())
@settings(_SETTINGS, max_examples=PROGRAMS)
def test_script_and_rules_agree(shared_client: redis.Redis, program: Program) -> None:
    """On a real server every outcome and every stored text is what the rules say, to the last digit."""
    agree(shared_client, program)


@pytest.mark.deep
def test_programs_draw_every_command_field_and_stored_number() -> None:
    """Programs and stories leave out no argument of a command, no stored field, no way of a step, no long line."""
    seen, names, ways, longest = set[tuple[str, ...]](), set[str](), set[str](), 0

    @settings(_SETTINGS, max_examples=500, derandomize=True, database=None, phases=[Phase.generate])
    @given(program=programs())
    def collect(program: Program) -> None:
        look_at(program)

    def look_at(program: Program) -> None:
        nonlocal longest
        mirror = Mirror()
        for act in program.acts:
            kind = type(act.command).__name__
            seen.add((kind,))
            # Both what says nothing (None, 0, False, no text) and what says something.
            seen.update((kind, each.name, str(bool(getattr(act.command, each.name)))) for each in fields(act.command))
            with contextlib.suppress(ConfigError):
                mirror.apply(act.quota, act.command, act.now)
            ways.add(mirror.way)
            names.update(name.partition(":")[0] for name in mirror.texts)
            longest = max(longest, len(mirror.texts.get(LINE, "").split()))

    collect()
    for told in STORIES.values():
        look_at(told)
    always_said = {"id", "hold_for_us", "until_us", "tokens"}
    for kind in get_args(Command):
        expected: set[tuple[str, ...]] = {(kind.__name__,)}
        for each in fields(kind):
            expected.add((kind.__name__, each.name, "True"))
            if each.name not in always_said and each.type != "Reading":
                expected.add((kind.__name__, each.name, "False"))
        assert expected <= seen, expected - seen
    # The format is stored by a release that writes another one.
    assert {*FIELDS, "hold"} - {"format"} <= names
    assert ways == {ALL, SOME, BY_ITSELF}
    assert longest > 1


@pytest.mark.deep
def test_script_and_rules_agree_at_every_edge(shared_client: redis.Redis) -> None:
    """Where a number is exactly at the edge at which the fast path decides otherwise, or one beside it."""
    for name, program in STORIES.items():
        try:
            agree(shared_client, program)
        except AssertionError as error:
            raise AssertionError(name) from error
