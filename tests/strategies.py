"""Two ways to run a bucket without a server, and what the property tests draw for them: buckets in any condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st

from checks.models.strategies import DAY, commands, damaged_states, gaps, instants, quotas, sound_states
from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Command, Outcome
from keepa_tokens.rules.state import BucketState
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage.memory import MemoryStorage
from keepa_tokens.units import LIMIT

SPARING: Final = settings(max_examples=max(10, settings.default.max_examples // 3 if settings.default else 10))
"""For tests whose every example is a long story: a third of the profile's examples."""

KEY: Final = "k"


# --- two ways to run a bucket


class Direct:
    """A bucket that is nothing but its state and `transition`."""

    def __init__(self, quota: Quota, state: BucketState | None = None) -> None:
        self.quota = quota
        self.state = state

    def apply(self, command: Command, now: int) -> Outcome:
        """Carry out one command."""
        self.state, outcome = transition(self.quota, self.state, now, command)
        return outcome

    def put(self, state: BucketState) -> None:
        """Store `state` as it is."""
        self.state = state

    def restart(self) -> None:
        """Forget all but the state, which goes through its stored form."""
        if self.state is not None:
            self.state = BucketState.from_fields(self.state.to_fields())


class InMemory:
    """The same over memory storage."""

    def __init__(self, quota: Quota, state: BucketState | None = None) -> None:
        self.quota = quota
        self.storage = MemoryStorage()
        if state is not None:
            self.put(state)

    @property
    def state(self) -> BucketState | None:
        """What is stored."""
        return self.storage.dump(KEY)

    def apply(self, command: Command, now: int) -> Outcome:
        """Carry out one command."""
        return self.storage.apply(KEY, self.quota, command, now_us=now)

    def put(self, state: BucketState) -> None:
        """Store `state` as it is."""
        self.storage.load(KEY, state)

    def restart(self) -> None:
        """Begin a new storage with the same state, in its stored form."""
        state = self.state
        self.storage = MemoryStorage()
        if state is not None:
            self.put(BucketState.from_fields(state.to_fields()))


Bucket = Direct | InMemory
BUCKETS: Final = (Direct, InMemory)


# --- buckets in any condition


@dataclass(frozen=True)
class Situation:
    """A bucket at one instant."""

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
