"""The state machine of synced buckets is no blind one: of storages that break one rule each it finds out every one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from checks.models.machine import Bench
from checks.models.synced_machine import SyncedMachine
from keepa_tokens import BucketState, MemoryStorage, Quota, Snapshot
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Reconcile, Refund, Reserve, Settle, Verdict


@pytest.fixture(autouse=True)
def hunt() -> Iterator[None]:
    """Look hard, and at the same runs each time, whatever the run's own profile is."""
    before = settings.get_current_profile_name()
    settings.register_profile(
        "synced hunt",
        deadline=None,
        max_examples=1000,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        # On a loaded machine a slow generator is no finding.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    settings.load_profile("synced hunt")
    yield
    settings.load_profile(before)


class Sound(MemoryStorage):
    """Memory storage, in parts that can be broken."""

    def state(self, key: str) -> BucketState:
        """Return what is stored."""
        return self.dump(key) or BucketState()

    def change(self, key: str, **fields: object) -> None:
        """Change what is stored."""
        self.load(key, replace(self.state(key), **fields))  # type: ignore[arg-type] # each a field of its own type


class TakesStaleReadings(Sound):
    """Whatever comes last counts, whenever it was said."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if isinstance(command, Settle | Reconcile) and command.reading is not None:
            self.change(key, server_time=0)
        return super().apply(key, quota, command, now_us=now_us)


class ForgetsCallsAtAReading(Sound):
    """A reading ends what is in flight."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if outcome.reading is Verdict.TAKEN:
            self.change(key, holds={})
        return outcome


class SettlesTwice(Sound):
    """A settle that comes again gives the rest back again."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Settle) and not outcome.found:
            super().apply(key, quota, Refund(uuid.uuid4().hex, 1, outcome.now_us), now_us=now_us)
        return outcome


class GivesBackWhatAReadingReplaced(Sound):
    """A settle gives back what a newer reading has replaced long since."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Settle) and outcome.found and outcome.reading is Verdict.STALE:
            super().apply(key, quota, Refund(uuid.uuid4().hex, 5, outcome.now_us), now_us=now_us)
        return outcome


class GrantsWhatItDoesNotKnow(Sound):
    """A balance that nobody knows is a full bucket."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if isinstance(command, Acquire | Reserve) and self.dump(key) and self.state(key).balance is None:
            self.change(key, balance=quota.capacity)
        return super().apply(key, quota, command, now_us=now_us)


class SendsEverybodyToAsk(Sound):
    """Each refusal of an old balance is sent to the server."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        refused = isinstance(command, Reserve) and not outcome.granted
        return replace(outcome, probe=True) if refused and outcome.balance is None else outcome


class NeverSendsAnybody(Sound):
    """The rule that started it all: a balance that is too low is not asked about, nor one that nobody knows."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Reserve) and outcome.probe and not outcome.granted:
            return replace(outcome, probe=False)
        return outcome


class OverdrawsBesideOthers(Sound):
    """A call that overdraws is let through beside others."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if not isinstance(command, Reserve) or not self.dump(key):
            return super().apply(key, quota, command, now_us=now_us)
        held = self.state(key).holds
        in_flight = sum(hold.tokens for hold in held.values() if hold.in_flight)
        balance = self.state(key).balance
        if balance is None or balance - in_flight < 1:
            return super().apply(key, quota, command, now_us=now_us)
        self.change(key, holds={})
        outcome = super().apply(key, quota, command, now_us=now_us)
        self.change(key, holds={**held, **self.state(key).holds})
        return outcome


class ForgetsWhoElseSpends(Sound):
    """Nothing is kept back for others."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if self.dump(key):
            self.change(key, kept_back=None, kept_back_at=None)
        return outcome


class KeepsItAll(Sound):
    """Everything is kept back for others."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        outcome = super().apply(key, quota, command, now_us=now_us)
        if isinstance(command, Reconcile) and outcome.snapshot is not None:
            return replace(outcome, snapshot=replace(outcome.snapshot, bound=0.0))
        return outcome

    def inspect(self, key: str, *, now_us: int | None = None) -> Snapshot | None:
        shown = super().inspect(key, now_us=now_us)
        return None if shown is None else replace(shown, kept_back=shown.capacity)


class RefillsEarly(Sound):
    """The step comes with the reading, not when the server said."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if isinstance(command, Settle | Reconcile) and command.reading is not None:
            command = replace(command, reading=replace(command.reading, next_refill_in=1.0))
        return super().apply(key, quota, command, now_us=now_us)


class LosesTheTimestamp(Sound):
    """Whoever asks takes now for the last refill, so nothing ever refills."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        if isinstance(command, Reserve) and self.dump(key):
            self.change(key, refilled_at=None)
        return super().apply(key, quota, command, now_us=now_us)


class ChargesNobodyWhoNeverAnswers(Sound):
    """A hold that runs out is given back."""

    def apply(self, key: str, quota: Quota, command: Command, *, now_us: int | None = None) -> Outcome:
        stored = self.dump(key)
        if stored is not None and now_us is not None:
            gone = [name for name, hold in stored.holds.items() if hold.in_flight and hold.expires_at <= now_us]
            for name in gone:
                super().apply(key, quota, Cancel(name), now_us=min(now_us, stored.holds[name].expires_at - 1))
        return super().apply(key, quota, command, now_us=now_us)


BROKEN: list[type[Sound]] = [
    TakesStaleReadings,
    ForgetsCallsAtAReading,
    SettlesTwice,
    GivesBackWhatAReadingReplaced,
    GrantsWhatItDoesNotKnow,
    SendsEverybodyToAsk,
    NeverSendsAnybody,
    OverdrawsBesideOthers,
    ForgetsWhoElseSpends,
    KeepsItAll,
    RefillsEarly,
    LosesTheTimestamp,
    ChargesNobodyWhoNeverAnswers,
]


class Run:
    """Machines on a storage, each on a key of its own."""

    count: ClassVar[int] = 0

    def __init__(self, storage: Sound) -> None:
        self.storage = storage

    def machine(self) -> SyncedMachine:
        """Return one."""
        Run.count += 1
        key = f"k{Run.count}"

        def fields() -> Mapping[str, str]:
            return self.storage.state(key).to_fields() if self.storage.dump(key) else {}

        def store(texts: Mapping[str, str]) -> None:
            self.storage.load(key, BucketState.from_fields(texts))

        return SyncedMachine(Bench(self.storage, key, fields, store))


def drive(storage: Sound, examples: int | None = None) -> None:
    """Drive a storage as hard as the profile says, or less."""
    machine: Any = Run(storage).machine  # Hypothesis takes any factory, though it says a class
    run_state_machine_as_test(machine, settings=settings(max_examples=examples or settings().max_examples))


@pytest.mark.parametrize("broken", BROKEN)
def test_a_rule_that_is_broken_is_found_out(broken: type[Sound]) -> None:
    """Whichever one it is, the machine fails."""
    with pytest.raises(AssertionError):
        drive(broken())


def test_a_sound_storage_is_not_found_out() -> None:
    """On the storage of which the broken ones are made, it passes."""
    drive(Sound(), examples=60)
