"""What the demo promises to measure: how far the projection is from the server's truth.

While calls are in flight the two may differ by their tokens: the server has charged what nobody was told yet. And a
refill step may be believed late, never early. So at any moment

    |projection - truth| <= tokens in flight + one refill step,
    projection <= truth with nothing in flight.

The lost timestamp takes the phase with it: until the next reading it is two steps. An answer that travels longer than
the time between two steps is one more step out of date when it arrives. Keepa's never do; in accelerated time a stalled
machine can make it so, and then the summary says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..bucket import TokenBucket
from ..keepa.quota import STEP_SECONDS
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..testing.fake_keepa import DEFAULT_PERIOD, FakeKeepa
from ..units import MICROSECONDS

TRIES: Final = 50
SHORTEST_STEP_US: Final = round(DEFAULT_PERIOD[0] * MICROSECONDS)
STEP_US: Final = round(STEP_SECONDS * MICROSECONDS)


@dataclass(frozen=True, slots=True)
class Sample:
    """Both balances at one moment. projection: None while unknown. in_flight: tokens. steps: refills allowed for."""

    at_us: int
    projection: int | None
    truth: int
    in_flight: int = 0
    refill: int = 0
    steps: int = 1

    @property
    def ahead(self) -> int:
        """How far the projection is above the truth; below it: negative."""
        return 0 if self.projection is None else self.projection - self.truth

    @property
    def apart(self) -> int:
        """How far the two are apart."""
        return abs(self.ahead)

    @property
    def allowed(self) -> int:
        """How far they may be apart."""
        return self.in_flight + self.steps * self.refill


class Meter:
    """Takes samples and keeps the worst of them.

    bucket: a door to the bucket by the server's clock. stored: its state as it is stored. epoch: the server's Unix time
    at 0 of that clock. judged, quiet, unknown: samples, those with nothing in flight, and those of an unknown balance.
    torn: moments that could not be seen. slow: samples that an answer made late by a step.
    """

    def __init__(
        self, fake: FakeKeepa, bucket: TokenBucket, stored: Callable[[], BucketState | None], epoch: float
    ) -> None:
        self._fake, self._bucket, self._stored = fake, bucket, stored
        self._epoch_us = round(epoch * MICROSECONDS)
        self.judged = self.quiet = self.unknown = self.torn = self.slow = self.slowest_us = 0
        self.worst = Sample(0, 0, 0)
        self.worst_excess: Sample | None = None
        self.highest_quiet: Sample | None = None
        self.fault_at_us: int | None = None

    def sample(self) -> Sample | None:
        """Take and judge a sample; None in the unlikely case that the server moved during every try."""
        sample = next((seen for _ in range(TRIES) if (seen := self._look()) is not None), None)
        if sample is None:
            self.torn += 1
        elif sample.projection is None:
            self.unknown += 1
        else:
            self._judge(sample)
        return sample

    def _judge(self, sample: Sample) -> None:
        self.judged += 1
        self.worst = max(self.worst, sample, key=lambda each: (each.apart, -each.allowed))
        self.worst_excess = max(self.worst_excess or sample, sample, key=lambda each: each.apart - each.allowed)
        if sample.in_flight == 0:
            self.quiet += 1
            self.highest_quiet = max(self.highest_quiet or sample, sample, key=lambda each: each.ahead)

    def broken(self) -> list[str]:
        """Return in words which bounds did not hold."""
        words: list[str] = []
        if (worst := self.worst_excess) is not None and worst.apart > worst.allowed:
            words.append(
                f"projection {worst.projection} and truth {worst.truth}: {worst.apart} apart, {worst.allowed} allowed"
            )
        if (quiet := self.highest_quiet) is not None and quiet.ahead > 0:
            words.append(f"projection {quiet.projection} above truth {quiet.truth} with nothing in flight")
        return words if self.quiet else [*words, "no sample was taken with nothing in flight"]

    def _look(self) -> Sample | None:
        """Look at the server, the bucket and the server again: if the server stood still, this is one moment."""
        counted, before = self._counters(), self._stored()
        snapshot = self._bucket.peek()
        after = self._stored()
        at_us = self._fake.clock.now_us()
        readings = [None if state is None else state.reading_sequence for state in (before, after)]
        if self._counters() != counted or readings[0] != readings[1]:
            return None
        truth = counted[0]
        if snapshot.balance is None or after is None or after.reading_at is None:
            return Sample(at_us, None, truth)
        return Sample(at_us, snapshot.balance, truth, snapshot.held, snapshot.refill, self._steps(after, snapshot))

    def _counters(self) -> tuple[int, int, int, int]:
        return self._fake.balance, self._fake.minted, self._fake.spent, self._fake.spent_outside

    def _steps(self, state: BucketState, snapshot: Snapshot) -> int:
        """Return how many refill steps the projection may be late."""
        read_at = state.reading_at or 0
        travelled_us = max(0, read_at - ((state.server_time or 0) - self._epoch_us))
        self.slowest_us = max(self.slowest_us, travelled_us)
        # Each step is believed a little later than the last, until the next reading.
        late_us = round((snapshot.reading_age or 0.0) * MICROSECONDS) * (STEP_US - SHORTEST_STEP_US) // STEP_US
        more = (travelled_us + late_us) // SHORTEST_STEP_US
        self.slow += more > 0
        lost_phase = self.fault_at_us is not None and read_at <= self.fault_at_us
        return 1 + lost_phase + more
