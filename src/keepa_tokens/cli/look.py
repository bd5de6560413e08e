"""One bucket at one moment: its stored fields, and what the rules say of them. A look writes nothing.

A place is a storage that also shows and changes stored fields past the rules: for the doctor, `adopt` and the demo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from .._plans import snapshot_of
from ..bucket import TokenBucket
from ..errors import ConfigError
from ..quota import Quota
from ..rules.commands import Acquire, Command, Outcome, Peek
from ..rules.decision import Decision, Snapshot
from ..rules.flow import flow_in_effect
from ..rules.line import Ticket, standing
from ..rules.state import BucketState
from ..rules.transition import carry_out, read_as, transition
from ..testing.clock import ManualClock
from ..units import MICROSECONDS, YEAR_US

if TYPE_CHECKING:  # each needs what not everybody has: a client for Redis, sqlite3
    from .redis_place import RedisPlace
    from .sqlite_place import SqlitePlace

Place: TypeAlias = "RedisPlace | SqlitePlace"


@dataclass(frozen=True, slots=True)
class Step:
    """The next refill. gain: tokens. left: seconds until then. length: seconds between two such steps."""

    gain: int
    left: float
    length: float


@dataclass(frozen=True, slots=True)
class Look:
    """A bucket at `now_us` of its storage's time.

    endless: whether the storage keeps it for ever.
    own_clock: its workers bring a clock of their own; `now_us` is then the time of their last step.
    """

    key: str
    now_us: int
    fields: Mapping[str, str]
    state: BucketState
    endless: bool = False
    own_clock: bool = False

    @property
    def quota(self) -> Quota | None:
        """The terms last used; None where they are lost."""
        return self.state.quota

    @property
    def trouble(self) -> str:
        """Why the rules can't read it: the bucket or its terms are gone, or a newer release's; empty if they can."""
        if self.quota is None:
            return "terms lost" if self.fields else "gone"
        try:
            self.ask(1)
        except ConfigError:
            return "newer release"
        return ""

    def snapshot(self) -> Snapshot | None:
        """Return what `peek` would; None if there is `trouble`, where what follows can't be asked."""
        return None if self.trouble else snapshot_of(self._outcome(Peek()))

    def ask(self, tokens: int) -> Decision:
        """Return the decision on a request for `tokens`."""
        return self._outcome(Acquire(tokens)).decision()

    def latest(self, tokens: int) -> float:
        """Return the seconds until a request for `tokens` goes at the latest, if nobody else asks; inf: perhaps never.

        A decision's `retry_after` may be earlier: it assumes that calls in flight cost nothing.
        """
        return snapshot_of(self._outcome(Peek(tokens, probe_after_us=None))).bound  # the server may never answer

    def _outcome(self, command: Command) -> Outcome:
        return transition(cast("Quota", self.quota), self.state, self.now_us, command)[1]

    def next_step(self, snapshot: Snapshot) -> Step | None:
        """Return the next refill step, or the next token of a smooth refill; None if none comes, or it is unknown."""
        if not snapshot.refill or snapshot.balance is None or snapshot.balance >= snapshot.capacity:
            return None
        read = read_as(snapshot.quota, self.state, self.now_us)
        carry_out(snapshot.quota, read, self.now_us, Peek())
        flow = flow_in_effect(read.sound, self.now_us)
        at_us = flow.instant(1, read.sound.refilled_at, read.sound.carry)
        gain, length = (flow.refill, snapshot.period) if flow.stepped else (1, snapshot.period / snapshot.refill)
        return Step(min(gain, snapshot.capacity - snapshot.balance), (at_us - self.now_us) / MICROSECONDS, length)

    def line(self) -> list[Ticket]:
        """Return who stands in line, the first one first."""
        return standing(self.state.line, self.now_us)

    def door(self, place: Place) -> TokenBucket:
        """Return the bucket as a worker would use it; one on a clock of its own stands at its workers' last step."""
        clock = ManualClock(self.now_us / MICROSECONDS) if self.own_clock else None
        return TokenBucket(cast("Quota", self.quota), key=self.key, storage=place, clock=clock, listener=lambda _: None)


def look(place: Place, key: str) -> Look | None:
    """Look at a bucket; None: there is none. Raises StorageUnavailable."""
    fields = place.fields(key)
    if fields is None:
        return None
    state, now, endless = BucketState.from_fields(fields), place.now_us(), place.is_endless(key)
    # Only a bucket whose workers bring a clock of their own has no lifetime and times far from the storage's.
    own_clock = endless and state.refilled_at is not None and abs(now - state.refilled_at) > YEAR_US
    if own_clock:
        opened = [hold.expires_at - hold.hold_for for hold in state.holds.values()]
        now = max(state.refilled_at or 0, state.reading_at or 0, *opened)
    return Look(key, now, fields, state, endless, own_clock)


def keys_of(place: Place) -> list[str]:
    """Return the keys of all buckets, sorted."""
    return sorted(place.keys())


def all_buckets(place: Place) -> Iterator[Look]:
    """Look at every bucket, in the order of their keys."""
    return filter(None, (look(place, key) for key in keys_of(place)))
