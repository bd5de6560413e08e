"""The script and the core are one: equal outcomes and equal stored texts, to the last digit, whatever comes.

Two at a time: each server, and the fake, beside memory storage, and so all beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, given, settings

from checks.models.programs import STORIES, Act, Program, is_ours
from checks.models.strategies import EPOCH, TERMS
from keepa_tokens.errors import ConfigError
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Refund
from keepa_tokens.rules.state import NUMBERS, BucketState
from keepa_tokens.rules.transition import lifetime_us
from keepa_tokens.storage import _wire
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.units import MICROSECONDS
from tests.redis.single_faults import BUCKETS, programs_of
from tests.redis.strategies import raw_programs
from tests.servers import Server

KEY = "k"
NAME = "keepa_tokens:k"

# 500 in CI, 12,500 nightly: more than the profiles give, because what two programs must agree on is wide.
PROGRAMS = settings().max_examples * 5 // 2

_SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
)


class Model:
    """What memory storage makes of the same hash: texts in, one command, texts out."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def damage(self, name: str, text: str | None) -> None:
        """Set a field, or delete it."""
        self.texts.pop(name, None)
        if text is not None:
            self.texts[name] = text

    def apply(self, act: Act) -> Outcome:
        """Carry out the command."""
        # Sorted: a hash has no order, and repairs of holds are named in the order in which they come.
        stored = BucketState.from_fields(dict(sorted(self.texts.items()))) if self.texts else None
        memory = MemoryStorage()  # a new one each time: it forgets buckets by rule 9, which a caller's clock keeps
        if stored is not None:
            memory.load(KEY, stored)
        outcome = memory.apply(KEY, act.quota, act.command, now_us=act.now)
        state = memory.dump(KEY)
        if state is not None and state is not stored:
            unknown = {name: text for name, text in self.texts.items() if not is_ours(name)}
            self.texts = unknown | state.to_fields()
        return outcome


class Stored:
    """The same hash in a server, and a whole program in one round trip."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.storage = RedisStorage(client)
        client.delete(NAME)

    @property
    def texts(self) -> dict[str, str]:
        """All fields, as they stand."""
        return as_texts(self.client.hgetall(NAME))

    def put(self, texts: Mapping[str, str]) -> None:
        """Set fields."""
        for name, text in texts.items():
            self.client.hset(NAME, as_bytes(name), as_bytes(text))

    def run(self, program: Program) -> Iterator[tuple[object, dict[str, str]]]:
        """Carry the program out; yield the script's answer to each act, or its error, and the texts after it."""
        pipeline = self.client.pipeline(transaction=False)
        pipeline.script_load(self.storage._script)
        ends: list[int] = []
        for act in program.acts:
            for name, text in act.damage:
                if text is None:
                    pipeline.hdel(NAME, as_bytes(name))
                else:
                    pipeline.hset(NAME, as_bytes(name), as_bytes(text))
            arguments = _wire.encode(act.quota, act.command, act.now)
            call = self.storage._by_digest(KEY, arguments)
            pipeline.execute_command(*call)  # type: ignore[no-untyped-call] # a pipeline of redis-py has no types
            pipeline.hgetall(NAME)
            ends.append(len(pipeline))
        answers = pipeline.execute(raise_on_error=False)
        for end in ends:
            yield answers[end - 2], as_texts(answers[end - 1])


def as_text(raw: bytes | str) -> str:
    """Return a stored text; bytes that are none survive."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def as_texts(fields: Mapping[bytes | str, bytes | str]) -> dict[str, str]:
    """Return a hash as texts."""
    return {as_text(name): as_text(text) for name, text in fields.items()}


def as_bytes(text: str) -> bytes:
    """Return it as stored."""
    return text.encode("utf-8", "surrogateescape")


def expectations(program: Program) -> Iterator[tuple[Outcome | None, dict[str, str]]]:
    """Yield what the core makes of each act, None for a newer release's state, and the texts after it."""
    model = Model()
    for act in program.acts:
        for name, text in act.damage:
            model.damage(name, text)
        try:
            outcome = model.apply(act)
        except ConfigError:
            outcome = None
        yield outcome, dict(model.texts)


def agree(
    client: redis.Redis, program: Program, core: Iterable[tuple[Outcome | None, dict[str, str]]] | None = None
) -> None:
    """Run the program on both sides, or only the script beside what the core said before; compare after every act."""
    told = zip(program.acts, core or expectations(program), Stored(client).run(program), strict=True)
    for act, (outcome, expected), (answer, texts) in told:
        if outcome is None:
            assert "KEEPATOKENS format" in str(answer)
        else:
            assert not isinstance(answer, Exception), answer
            assert _wire.decode(answer, act.quota, act.command) == outcome
        assert texts == expected


@given(program=raw_programs)
@settings(_SETTINGS, max_examples=PROGRAMS)
def test_script_and_core_agree(shared_server: Server, clients: dict[str, redis.Redis], program: Program) -> None:
    """On a real server every outcome and every stored text is the core's, to the last digit."""
    agree(clients[shared_server.name], program)


@pytest.mark.deep
@pytest.mark.parametrize("name", BUCKETS)
def test_script_and_core_agree_on_each_single_fault(
    shared_server: Server, clients: dict[str, redis.Redis], name: str
) -> None:
    """Whichever one field of a bucket that has come to something is damaged, both mend it alike, and go on alike."""
    for program in programs_of(BUCKETS[name]):
        agree(clients[shared_server.name], program)


@pytest.mark.parametrize("name", STORIES)
def test_script_and_core_agree_on_each_story(shared_server: Server, clients: dict[str, redis.Redis], name: str) -> None:
    """In stories told by hand, in which each stored field matters at some point, both come to the same."""
    agree(clients[shared_server.name], STORIES[name])


def test_each_field_is_damaged() -> None:
    """The buckets whose fields are damaged have, between them, every field that there is, and a hold that ran out."""
    stored = [story.texts() for story in BUCKETS.values()]
    assert {name for texts in stored for name in texts} == {*NUMBERS, *TERMS, "hold:a", "hold:b"}
    assert any(texts["hold:b"].split(" ")[-1] != "0" for texts in stored if "hold:b" in texts)


@pytest.mark.deep
@given(program=raw_programs)
@settings(_SETTINGS, max_examples=PROGRAMS)
def test_script_and_core_agree_on_the_fake(program: Program) -> None:
    """On fakeredis too, so that it can stand in for a server in a quick inner loop."""
    with fakeredis.FakeRedis() as client:
        agree(client, program)


@given(program=raw_programs)
@settings(_SETTINGS, max_examples=PROGRAMS // 5)
def test_lifetimes_agree(shared_server: Server, clients: dict[str, redis.Redis], program: Program) -> None:
    """On a real server's own time a key is kept for as long as `lifetime_us` says, in milliseconds rounded up."""
    compare_lifetimes(clients[shared_server.name], program)


def compare_lifetimes(client: redis.Redis, program: Program) -> None:
    """Run the program on the core alone, put what came of it into the server, and compare how long it is kept there."""
    model, stored = Model(), Stored(client)
    for act in program.acts:
        model.apply(replace(act, now=EPOCH, command=issued_at(act.command, EPOCH)))
    state = BucketState.from_fields(model.texts)
    # What was reached at EPOCH, moved to the server's time.
    later = now_of(client) - EPOCH
    stored.put(moved(state, later).to_fields())

    quota = program.acts[-1].quota
    told = stored.storage.apply(KEY, quota, Acquire(0))
    left_ms = client.pttl(NAME)
    passed_ms = (now_of(client) - told.now_us) // 1000 + 1

    lifetime = lifetime_us(quota, BucketState.from_fields(stored.texts), told.now_us)
    if lifetime is None:
        assert left_ms == -1
    else:
        assert -(-lifetime // 1000) - passed_ms <= left_ms <= -(-lifetime // 1000)


def issued_at(command: Command, now: int) -> Command:
    """Return the command as if it had been sent first at `now`."""
    return replace(command, issued_us=now) if isinstance(command, Refund) else command


def now_of(client: redis.Redis) -> int:
    """Return the server's time."""
    seconds, microseconds = client.time()
    return seconds * MICROSECONDS + microseconds


def moved(state: BucketState, by: int) -> BucketState:
    """Return the state as it would be, had everything happened later."""

    def at(instant: int | None) -> int | None:
        return None if instant is None else instant + by

    return replace(
        state,
        refilled_at=at(state.refilled_at),
        closed_until=at(state.closed_until),
        reading_at=at(state.reading_at),
        kept_back_at=at(state.kept_back_at),
        probe_until=at(state.probe_until),
        holds={name: replace(hold, expires_at=hold.expires_at + by) for name, hold in state.holds.items()},
    )
