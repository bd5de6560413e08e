"""Two ways to run a bucket without a server, and what the property tests draw for them: buckets in any condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from checks.models.strategies import DAY, commands, damaged_states, gaps, instants, quotas, sound_states
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Command, Outcome, Peek
from keepa_tokens.rules.decision import Snapshot
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.units import LIMIT

SPARING: Final = settings(max_examples=max(10, settings.default.max_examples // 3 if settings.default else 10))
"""For tests whose every example is a long story: a third of the profile's examples."""

KEY: Final = "k"


# --- two ways to run a bucket


class Bucket:
    """A bucket that is asked at instants which the test names."""

    state: BucketState | None
    """What is stored."""

    def __init__(self, quota: Quota, state: BucketState | None = None) -> None:
        self.quota = quota
        if state is not None:
            self.put(state)

    @property
    def stored(self) -> BucketState:
        assert self.state is not None
        return self.state

    def apply(self, command: Command, now: int) -> Outcome:
        raise NotImplementedError

    def put(self, state: BucketState) -> None:
        raise NotImplementedError

    def lose(self, **fields: Any) -> None:
        self.put(replace(self.stored, **fields))

    def restart(self) -> None:
        """Forget all but what is stored, which goes through its stored form."""
        if self.state is not None:
            self.put(BucketState.from_fields(self.state.to_fields()))

    def look(self, now: int, tokens: int = 1, keep: int = 0) -> Snapshot:
        snapshot = self.apply(Peek(tokens, keep), now).snapshot
        assert snapshot is not None
        return snapshot

    def gets_through(self, now: int, tokens: int, keep: int = 0) -> bool:
        """Return whether a request is granted, or calls for a probe."""
        outcome = self.apply(Acquire(tokens, keep), now)
        return outcome.granted or outcome.probe

    def balance(self, now: int) -> tuple[int | None, int]:
        seen = self.look(now)
        return seen.balance, seen.held


class Direct(Bucket):
    """One that is nothing but its state and `transition`."""

    state: BucketState | None = None

    def apply(self, command: Command, now: int) -> Outcome:
        self.state, outcome = transition(self.quota, self.state, now, command)
        return outcome

    def put(self, state: BucketState) -> None:
        self.state = state


class InMemory(Bucket):
    def __init__(self, quota: Quota, state: BucketState | None = None) -> None:
        self.storage = MemoryStorage()
        super().__init__(quota, state)

    @property
    def state(self) -> BucketState | None:  # type: ignore[override]  # nobody but the storage writes it
        return self.storage.dump(KEY)

    def apply(self, command: Command, now: int) -> Outcome:
        return self.storage.apply(KEY, self.quota, command, now_us=now)

    def put(self, state: BucketState) -> None:
        self.storage.load(KEY, state)


Make = Callable[..., Bucket]
either_way: Final = pytest.mark.parametrize("make", [Direct, InMemory])
"""The rules by themselves, and as memory storage carries them out."""


# --- buckets in any condition


@dataclass(frozen=True)
class Situation:
    quota: Quota
    now: int
    state: BucketState | None
    path: tuple[tuple[int, Command], ...] = field(default=())


@st.composite
def reached(
    draw: st.DrawFn,
    quota_strategy: st.SearchStrategy[Quota] | None = None,
    *,
    most_steps: int = 8,
    pauses: st.SearchStrategy[int] = gaps,
) -> Situation:
    """Draw a state to which commands have led, with the clock going forwards."""
    quota = draw(quotas() if quota_strategy is None else quota_strategy)
    now = draw(instants)
    bucket = Direct(quota)
    path: list[tuple[int, Command]] = []
    for _ in range(draw(st.integers(0, most_steps))):
        command = draw(commands(now))
        path.append((now, command))
        bucket.apply(command, now)
        now = min(LIMIT // 2 + DAY, now + draw(pauses))
    return Situation(quota, now, bucket.state, tuple(path))


@st.composite
def any_situations(draw: st.DrawFn, quota_strategy: st.SearchStrategy[Quota] | None = None) -> Situation:
    """Draw a bucket in any condition: new, reached, sound or damaged."""
    kind = draw(st.sampled_from(("reached", "sound", "damaged", "damaged")))
    if kind == "reached":
        return draw(reached(quota_strategy))
    quota = draw(quotas() if quota_strategy is None else quota_strategy)
    now = draw(instants)
    state = draw(sound_states(quota, now) if kind == "sound" else damaged_states(quota, now))
    return Situation(quota, now, state)
