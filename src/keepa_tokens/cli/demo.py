"""The demo's scenario: several workers on one key of a fake Keepa server, and the fault half-way. Pure.

The rules, `KeepaSync` and the answers are the real ones. Time jumps from event to event, so a run is the same for the
same seed, and the display may take as long as it likes. The bucket lives in this process, or in a given Redis.

At every moment the projection is compared with the server's own balance. While calls are in flight the two may differ
by their tokens, since the server may have charged calls whose answers haven't come; and the projection may count a
refill step late, never early. With the timestamp the phase of the steps is lost: until the next reading the projection
may be two steps late.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ..bucket import TokenBucket
from ..errors import NotEnoughTokens
from ..events import Event, EventKind
from ..keepa.costs import estimate
from ..keepa.quota import keepa_quota
from ..keepa.sync import Call, KeepaSync
from ..rules.commands import Cancel
from ..rules.decision import Reason
from ..storage.memory import MemoryStorage
from ..testing.clock import ManualClock
from ..testing.fake_keepa import FakeKeepa
from ..units import MICROSECONDS
from . import old_rule
from .simulate import Kind, Turns
from .words import count, duration

if TYPE_CHECKING:
    from .redis_place import RedisPlace

BUCKET: Final = "demo"
REFILL_RATE: Final = 20
INITIAL: Final = 200
SECONDS: Final = 1440.0
"""How long a run is, by the server's clock."""

TICK: Final = 4.0
LATENCY: Final = (3.0, 12.0)
LONGEST_WAIT: Final = 60.0  # then a worker asks again, as a task that runs every minute does
REST: Final = (5.0, 25.0)  # the time that a worker takes to store its answer
PROBE_INTERVAL: Final = 120.0  # short, so that a run of some minutes shows a probe or two
CALM: Final = 40.0  # before the next refill, so that none comes in the middle of the fault
WORK: Final = {
    "prices": ("product", (1, 8), 0),
    "offers": ("offers", (1, 2), 0),
    "search": ("search", (1, 1), 0),
    "backfill": ("product", (12, 24), 10),
}
"""By a worker's name: the kind of its calls, the least and the most items of a call, the tokens to leave for others."""

DEBT: Final = -79
"""The balance at which the old system lost its timestamp."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call to Keepa. keep: tokens that it leaves to the others."""

    path: str
    params: dict[str, str]
    text: str
    tokens: int
    keep: int = 0


@dataclass(slots=True)
class Worker:
    """A worker that does one call after the other. wait: while it waits, the reason, since when, and until when."""

    name: str
    chance: random.Random
    job: Job | None = None
    wait: tuple[str, int, int] | None = None
    calling: bool = False
    calls: int = 0
    spent: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Both balances at one moment. projection: None while unknown. in_flight: tokens. steps: how many may be late."""

    at_us: int
    projection: int | None
    truth: int
    in_flight: int = 0
    steps: int = 1

    @property
    def ahead(self) -> int:
        """By how many tokens the projection is above the truth; negative: below it."""
        return 0 if self.projection is None else self.projection - self.truth

    @property
    def allowed(self) -> int:
        """By how many tokens the two may differ."""
        return self.in_flight + self.steps * REFILL_RATE


@dataclass(slots=True)
class Meter:
    """Judges samples. judged: how many. quiet: those with nothing in flight. worst: that with the most difference."""

    judged: int = 0
    quiet: int = 0
    worst: Sample = field(default_factory=lambda: Sample(0, 0, 0))
    broken: dict[str, str] = field(default_factory=dict[str, str])

    def judge(self, sample: Sample) -> None:
        """Judge a sample; remember, in words, the first that breaks a bound."""
        if sample.projection is None:
            return
        self.judged += 1
        self.quiet += not sample.in_flight
        self.worst = max(self.worst, sample, key=lambda each: abs(each.ahead))
        both = f"projection {sample.projection}, truth {sample.truth}"
        if abs(sample.ahead) > sample.allowed:
            self.broken.setdefault("apart", f"{both}: {abs(sample.ahead)} apart, {sample.allowed} allowed")
        if sample.ahead > 0 and not sample.in_flight:
            self.broken.setdefault("above", f"{both}: above it with nothing in flight")


@dataclass(slots=True)
class Fault:
    """The fault half-way, and how each rule took it.

    promised: seconds to the next grant, as `peek()` said. repaired: the fields that it mended. asked_after,
    recovered_after: seconds until the server was asked, and until the next grant. old: what the old rule stores.
    verdicts: its answers to the same requests.
    """

    at_us: int
    promised: float
    repaired: str
    old: old_rule.OldState
    asked_after: float | None = None
    recovered_after: float | None = None
    verdicts: Counter[old_rule.Verdict] = field(default_factory=Counter[old_rule.Verdict])

    def follow(self, event: Event, now_us: int) -> None:
        """See whether the new rule has recovered, and put the same request to the old one."""
        since = (now_us - self.at_us) / MICROSECONDS
        if event.kind is EventKind.PROBE_CLAIMED and self.asked_after is None:
            self.asked_after = since
        if event.kind not in {EventKind.GRANTED, EventKind.REFUSED}:
            return
        if event.kind is EventKind.GRANTED and self.recovered_after is None:
            self.recovered_after = since
        self.old, verdict = old_rule.attempt(self.old, event.tokens, REFILL_RATE, now_us)
        self.verdicts[verdict] += 1


class Scenario:
    """The server, the workers, and what the demo shows of them."""

    def __init__(self, workers: int, seed: int, place: RedisPlace | None = None) -> None:
        self._clock, self._storage = ManualClock(), place or MemoryStorage()
        self.fake = FakeKeepa(refill_rate=REFILL_RATE, initial=INITIAL, seed=seed, clock=self._clock)
        self.fake.cost = self._price
        self._batch_cost: int | None = None
        self.bucket = TokenBucket(
            keepa_quota(REFILL_RATE), key=BUCKET, storage=self._storage, clock=self._clock, listener=self._hear
        )
        self._sync = KeepaSync(self.bucket, probe=self.fake.probe, probe_interval=PROBE_INTERVAL)
        self.workers = [
            Worker(_name(number), random.Random(f"{seed}/{number}"))  # noqa: S311 - a load, repeatable by its seed
            for number in range(workers)
        ]
        self._large = Worker("demo", random.Random(seed))  # noqa: S311 - it draws nothing
        self._asking = self._large
        self._turns = Turns()
        self._work = {worker.name: self._calls(worker) for worker in (*self.workers, self._large)}
        self._parked: list[Worker] = []
        self._gate_open = True
        self.meter = Meter()
        self.fault: Fault | None = None
        self.latest = Sample(0, None, INITIAL)
        self.history: list[tuple[float, int, int | None, int | None]] = []
        self.counts: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.news: list[str] = []
        self.story = "Workers ingest; each answer brings the server's balance."

    def play(self) -> Iterator[float]:
        """Run to the end; yield the seconds of the server's clock at every tick."""
        self._tell("demo", self.story)
        ticks = itertools.repeat(TICK)
        self._turns.begin(0.0, ticks)
        for number, beginner in enumerate(self.workers):
            self._turns.begin(float(number), self._work[beginner.name])
        for now, who in self._turns.until(SECONDS):
            self._clock.set(now)
            self.latest = self._sample()
            self.meter.judge(self.latest)
            if who is ticks:
                self.history.append((now / SECONDS, self.latest.truth, self.latest.projection, self.old_balance))
                yield now
            self._turns.take(now, who)
            if now >= SECONDS / 2 and self.fault is None:
                self._towards_the_fault()
        self._tell("demo", "The workers have ended.")

    @property
    def now_us(self) -> int:
        """The time by the server's clock."""
        return self._clock.now_us()

    @property
    def old_balance(self) -> int | None:
        """What the old rule takes for the balance now; None before the fault."""
        return None if self.fault is None else old_rule.balance_seen(self.fault.old, REFILL_RATE, self.now_us)

    # --- what workers do

    def _calls(self, worker: Worker) -> Iterator[float]:
        """Do one call after the other."""
        while True:
            job = worker.job = worker.job or next_job(worker.name, worker.chance)
            call = yield from self._granted(worker, job)
            ticket, worker.calling = self.fake.begin(job.path, job.params), True
            self._tell(worker.name, f"granted {job.tokens} for {job.text}; balance {call.decision.balance}")
            yield worker.chance.uniform(*LATENCY)
            answer, worker.calling = self.fake.finish(ticket), False
            self._asking = worker
            call.settle(answer.content, status=answer.status)
            if call.refused:
                self._tell(worker.name, f"refused by the server; balance {self.fake.balance}")
                yield REST[0]
                continue
            worker.calls += 1
            worker.spent += ticket.cost
            self.counts["answers"] += 1
            self._tell(worker.name, f"answered, cost {ticket.cost}; balance {self.fake.balance}")
            worker.job = None
            if worker is self._large:
                self._lose_timestamp()
                return
            yield worker.chance.uniform(*REST)

    def _granted(self, worker: Worker, job: Job) -> Generator[float, None, Call]:
        """Ask until the bucket lets a call go."""
        while True:
            if not self._gate_open and worker is not self._large:
                self._parked.append(worker)
                yield math.inf  # until the gate opens
            self._asking = worker
            try:
                call = self._sync.try_request(job.tokens, keep=job.keep, place=worker.name)
            except NotEnoughTokens as refused:
                self._note_wait(worker, job, refused)
                yield max(0.001, min(LONGEST_WAIT, refused.retry_after))
            else:
                worker.wait = None
                return call

    def _note_wait(self, worker: Worker, job: Job, refused: NotEnoughTokens) -> None:
        since, reason = self.now_us, refused.reason
        if worker.wait is not None and worker.wait[0] == reason:
            since = worker.wait[1]
        else:
            self.waits[reason] += 1
            go = "until the server says" if reason == Reason.UNKNOWN else f"{duration(refused.retry_after)} to go"
            self._tell(worker.name, f"waits for {job.tokens}: {reason}, {go}")
        worker.wait = reason, since, self.now_us + round(refused.retry_after * MICROSECONDS)

    # --- the fault

    def _towards_the_fault(self) -> None:
        """Let all workers pause, and one large call take the balance to exactly -79, which Keepa allows."""
        if self._gate_open:
            self._gate_open = False
            self._turn_story("All pause, for one call that costs more than there is.")
            for worker in self.workers:  # who pauses leaves the line
                self._storage.apply(BUCKET, self.bucket.quota, Cancel(worker.name), now_us=self.now_us)
        seen = self.bucket.peek()
        quiet = self._large.job is None and seen.holds == 0 and min(self.fake.balance, seen.balance or 0) > 0
        if quiet and self.fake.refill_in > CALM:
            tokens = self._batch_cost = self.fake.balance - DEBT
            self._large.job = Job("/product", {"code": "4006381333931"}, "one large batch", tokens)
            self._turns.take(self.now_us / MICROSECONDS, self._work[self._large.name])

    def _price(self, _: str, params: Mapping[str, str]) -> int | None:
        """Price the large batch, and nothing else."""
        return self._batch_cost if "code" in params else None

    def _lose_timestamp(self) -> None:
        """Lose the timestamp, as the old system did. Nothing is in flight and nothing can be granted meanwhile."""
        balance = self.bucket.peek().balance
        if not isinstance(self._storage, MemoryStorage):
            self._storage.drop(BUCKET, "refilled_at")
        elif state := self._storage.dump(BUCKET):
            self._storage.load(BUCKET, replace(state, refilled_at=None))
        before = len(self.news)
        seen = self.bucket.peek()
        old = old_rule.OldState(DEBT, refilled_at=None)
        self.fault = Fault(self.now_us, seen.retry_after, ", ".join(seen.repaired), old)
        promised = duration(seen.retry_after)
        self._turn_story(f"The timestamp is lost at {balance}. peek() promises a grant in {promised}.")
        self.news.insert(before, self.news.pop())  # tell of the loss before the repair
        self._gate_open = True
        for worker in self._parked:
            self._turns.begin(self.now_us / MICROSECONDS, self._work[worker.name])

    # --- what is told

    def _sample(self) -> Sample:
        seen, fault = self.bucket.peek(), self.fault
        if seen.balance is None or seen.reading_age is None:
            return Sample(self.now_us, None, self.fake.balance)
        read_at = self.now_us - round(seen.reading_age * MICROSECONDS)
        steps = 2 if fault is not None and read_at <= fault.at_us else 1
        return Sample(self.now_us, seen.balance, self.fake.balance, seen.held, steps)

    def _hear(self, event: Event) -> None:
        fault = self.fault
        self.counts["grants"] += event.kind is EventKind.GRANTED
        if event.kind is EventKind.PROBE_CLAIMED:
            self._tell(self._asking.name, "asks the server for the balance, for all")
        elif event.kind is EventKind.REPAIRED:
            self._tell(self._asking.name, f"mended {event.why}; balance {event.balance}")
        if fault is None:
            return
        recovered = fault.recovered_after
        fault.follow(event, self.now_us)
        if recovered is None and fault.recovered_after is not None:
            self._turn_story(
                f"Recovered: a grant after {duration(fault.recovered_after)}, {duration(fault.promised)} promised."
                f" The old rule stands at {self.old_balance}."
            )

    def _turn_story(self, words: str) -> None:
        self.story = words
        self._tell("demo", words)

    def _tell(self, who: str, words: str) -> None:
        self.news.append(f"{duration(self.now_us / MICROSECONDS):>8}  {who:<10}  {words}")


def _name(worker: int) -> str:
    """Return a worker's name: the kinds of work in turn, from the second round on with a number."""
    again, work = divmod(worker, len(WORK))
    return list(WORK)[work] + (f" {again + 1}" if again else "")


def next_job(name: str, chance: random.Random) -> Job:
    """Return the next call of a worker; its size depends on the kind of work."""
    work = name.partition(" ")[0]
    call, items, keep = WORK[work]
    kind = Kind(call, chance.randint(*items), 1.0)
    params = kind.params(chance)
    text = work if work == "search" else count(kind.items, "product") + ", offers" * (work == "offers")
    return Job(kind.path, params, text, estimate(kind.path, params), keep)
