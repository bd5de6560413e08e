"""The script and the core are one: equal outcomes and equal stored texts, to the last digit, whatever comes.

Two at a time: each server, and the fake, beside memory storage, and so all beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, given, settings

from keepa_tokens.commands import Acquire, Command, Outcome, Refund
from keepa_tokens.errors import ConfigError
from keepa_tokens.state import BucketState
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.testing.programs import Act, Program, Rules, is_ours
from keepa_tokens.testing.strategies import EPOCH
from keepa_tokens.transition import lifetime_us
from keepa_tokens.units import MICROSECONDS
from tests.redis.strategies import raw_programs
from tests.servers import Server

KEY = "k"
NAME = "keepa_tokens:k"

# 500 in CI, 12,500 nightly: more than the profiles give, because what two programs must agree on is wide.
PROGRAMS = settings().max_examples * 5 // 2

_SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
)


class Model(Rules):
    """What memory storage makes of the same hash: texts in, one command, texts out."""

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
    """The same hash in a server."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.storage = RedisStorage(client)
        client.delete(NAME)

    @property
    def texts(self) -> dict[str, str]:
        """All fields, as they stand."""
        return {as_text(name): as_text(text) for name, text in self.client.hgetall(NAME).items()}

    def damage(self, name: str, text: str | None) -> None:
        """Set a field, or delete it."""
        if text is None:
            self.client.hdel(NAME, as_bytes(name))
        else:
            self.client.hset(NAME, as_bytes(name), as_bytes(text))

    def apply(self, act: Act) -> Outcome:
        """Carry out the command."""
        return self.storage.apply(KEY, act.quota, act.command, now_us=act.now)


def as_text(raw: bytes | str) -> str:
    """Return a stored text; bytes that are none survive."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")


def as_bytes(text: str) -> bytes:
    """Return it as stored."""
    return text.encode("utf-8", "surrogateescape")


def run(client: redis.Redis, program: Program) -> Iterator[Outcome | None]:
    """Run the program on both sides and compare after every act; yield the outcomes, None where both refused."""
    model, stored = Model(), Stored(client)
    for act in program.acts:
        for name, text in act.damage:
            model.damage(name, text)
            stored.damage(name, text)
        try:
            expected = model.apply(act)
        except ConfigError:
            with pytest.raises(ConfigError, match="newer release"):
                stored.apply(act)
            expected = None
        else:
            assert stored.apply(act) == expected
        assert stored.texts == model.texts
        yield expected


@given(program=raw_programs)
@settings(_SETTINGS, max_examples=PROGRAMS)
def test_script_and_core_agree(shared_server: Server, clients: dict[str, redis.Redis], program: Program) -> None:
    """On a real server every outcome and every stored text is the core's, to the last digit."""
    for _ in run(clients[shared_server.name], program):
        pass


@given(program=raw_programs)
@settings(_SETTINGS, max_examples=PROGRAMS)
def test_script_and_core_agree_on_the_fake(program: Program) -> None:
    """On fakeredis too, so that it can stand in for a server in a quick inner loop."""
    with fakeredis.FakeRedis() as client:
        for _ in run(client, program):
            pass


@given(program=raw_programs)
@settings(_SETTINGS, max_examples=PROGRAMS // 5)
def test_lifetimes_agree(shared_server: Server, clients: dict[str, redis.Redis], program: Program) -> None:
    """On a real server's own time a key is kept for as long as `lifetime_us` says, in milliseconds rounded up."""
    client = clients[shared_server.name]
    model, stored = Model(), Stored(client)
    for act in program.acts:
        model.apply(replace(act, now=EPOCH, command=issued_at(act.command, EPOCH)))
    state = BucketState.from_fields(model.texts)
    # What was reached at EPOCH, moved to the server's time.
    later = now_of(client) - EPOCH
    for name, text in moved(state, later).to_fields().items():
        stored.damage(name, text)

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
