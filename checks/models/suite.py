"""The machines as tests to inherit, for each storage of this project; the kit says what a storage brings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from checks.models.machine import Bench, PlainMachine, ReadingMachine
from checks.models.synced_machine import SyncedMachine
from keepa_tokens.storage.base import Storage
from keepa_tokens.testing.conformance import StorageUnderTest, new_key


@pytest.mark.drawn
class MachinesOnAStorage(StorageUnderTest):
    """Three machines drive a bucket. With `forget` they lose whole buckets, with `elsewhere` they open anew."""

    own_storage = False
    """Whether each run gets a storage of its own: what is dropped of one bucket must not hang on others."""

    def test_any_history_is_as_the_reference_has_it(self) -> None:
        """Workers with skewed clocks, lost fields: a plain bucket is as one in exact fractions that shares no code."""
        self.drive(PlainMachine)

    def test_any_history_with_readings_is_as_the_reference_has_it(self) -> None:
        """The same with a server that tells the balance, late, twice or never: a synced bucket is as its reference."""
        self.drive(ReadingMachine)

    def test_a_synced_bucket_stays_within_what_its_server_has(self) -> None:
        """Calls in flight, answers late, lost, reordered; somebody else spends, plans change, fields are lost."""
        self.drive(SyncedMachine)

    def drive(self, kind: Callable[[Bench], RuleBasedStateMachine]) -> None:
        """Let Hypothesis look for a history in which the storage fails beside what a machine has."""
        wanted = settings(
            max_examples=max(1, round(settings().max_examples * self.effort * 0.15)),
            stateful_step_count=20,
            deadline=None,  # of a storage no more is promised than its timeouts
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        with self.opened() as storage, ExitStack() as reopened:

            def made() -> RuleBasedStateMachine:
                reopened.close()
                own = reopened.enter_context(self.opened()) if self.own_storage else storage
                return kind(self.bench(own, reopened))

            # Hypothesis takes any factory, though it says a class.
            run_state_machine_as_test(cast("Any", made), settings=wanted)

    def bench(self, storage: Storage, reopened: ExitStack) -> Bench:
        """Return a new bucket of a storage; what opens the storage anew is closed with `reopened`."""
        bench = Bench(storage, new_key(), reads_all=self.reads_all)
        if self.can("read_fields") and self.can("write_fields"):
            bench.fields = partial(self.read, storage, bench.key)
            bench.store = partial(self.write, storage, bench.key)
        if (forget := getattr(self, "forget", None)) is not None:
            bench.forget = partial(forget, bench.key)
        if hasattr(self, "elsewhere"):

            def anew() -> Storage:
                reopened.close()
                return reopened.enter_context(self.opened())

            bench.anew, bench.end = anew, reopened.close
        return bench
