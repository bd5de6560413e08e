"""Whether a plan is enough for a load: runs the rules and the model of the server through days in a second. Pure.

Workers ask, wait as they are told, call, settle. Only the rules are real: time jumps from event to event.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..bucket import TokenBucket
from ..errors import ConfigError, NotEnoughTokens
from ..keepa.costs import estimate
from ..keepa.quota import keepa_quota
from ..keepa.sync import Call, KeepaSync
from ..testing.clock import ManualClock
from ..testing.fake_keepa import FakeKeepa

EPOCH: Final = 1_780_000_000.0
DAY: Final = 86_400.0
HOUR: Final = 3600.0
LATENCY: Final = (1.0, 6.0)
REST: Final = 1.0
OTHERS_EVERY: Final = 300.0
LONGEST_POLL: Final = 3600.0
POINTS: Final = 400

KINDS: Final = ("product", "offers", "search", "query", "bestsellers", "deal", "seller", "category")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of call. items: products or sellers in it. weight: how often, beside the others."""

    name: str
    items: int
    weight: float

    @property
    def path(self) -> str:
        """The path that it asks for."""
        return "/product" if self.name == "offers" else f"/{self.name}"

    def params(self, chance: random.Random) -> dict[str, str]:
        """Return the parameters of one call."""
        codes = ",".join(f"B0{chance.randrange(10**8):08d}" for _ in range(self.items))
        by_name = {
            "product": {"asin": codes},
            "offers": {"asin": codes, "offers": "20"},
            "search": {"type": "product", "term": codes[:10], "page": "0"},
            "query": {"selection": '{"perPage": 100}'},
            "bestsellers": {"domain": "1", "category": "1"},
            "deal": {"selection": '{"domainId": 1, "page": 0}'},
            "seller": {"domain": "1", "seller": codes},
            "category": {"domain": "1", "category": "1"},
        }
        return by_name[self.name]


def parse_mix(said: str) -> list[Kind]:
    """Return the kinds of `product:10=70,search=30`: a name, how many items are in a call, and how often it comes."""
    kinds: list[Kind] = []
    for part in said.split(","):
        name_items, _, weight = part.strip().partition("=")
        name, _, items = name_items.partition(":")
        try:
            kind = Kind(name, int(items or 1), float(weight or 1))
        except ValueError:
            raise ConfigError(f"{part!r} is no kind of call: write product:10=70 or search=30") from None
        if name not in KINDS:
            raise ConfigError(f"{name!r} is no kind of call: there are {', '.join(KINDS)}")
        if not 1 <= kind.items <= 100 or not 0 < kind.weight < 1e9:  # noqa: PLR2004 - as many as Keepa takes
            raise ConfigError(f"{part!r}: a call has 1 to 100 items, and a weight above 0")
        kinds.append(kind)
    return kinds


@dataclass(frozen=True, slots=True)
class Load:
    """The work to be done.

    backlog: calls at the start. per_hour: calls an hour besides. outside: tokens an hour that others spend. faults:
    the share of calls that get no answer. days: when to give up.
    """

    mix: Sequence[Kind]
    backlog: int
    per_hour: float = 0.0
    workers: int = 4
    outside: float = 0.0
    faults: float = 0.0
    days: float = 7.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """How a load went at one rate. Times and waits are seconds.

    enough: the work is done within the days, and further calls need less than the refill. done_after: when no call was
    left; None: not within the days. used: the share of all tokens that was spent. curve: the calls that were left, over
    time.
    """

    rate: int
    enough: bool
    done_after: float | None
    calls: int
    left: int
    tokens: int
    used: float
    median_wait: float
    longest_wait: float
    refused: int
    failed: int
    probes: int
    curve: list[tuple[float, int]]


class Turns:
    """Actors by their next turn. An actor is an iterator: each turn does its next thing and yields the seconds to wait.

    The loop that plays them sets the clock and lets each take its turn. One actor at least goes on for ever.
    """

    def __init__(self) -> None:
        self._order = itertools.count()
        self._due: list[tuple[float, int, Iterator[float]]] = []

    def begin(self, at: float, who: Iterator[float]) -> None:
        """Give an actor its next turn at a time."""
        heapq.heappush(self._due, (at, next(self._order), who))

    def until(self, end: float) -> Iterator[tuple[float, Iterator[float]]]:
        """Yield the times up to `end`, and whose turn it is then."""
        while self._due[0][0] <= end:
            now, _, who = heapq.heappop(self._due)
            yield now, who

    def take(self, now: float, who: Iterator[float]) -> None:
        """Let an actor do its next thing, and give it the next turn when it says."""
        wait = next(who, None)
        if wait is not None:
            self.begin(now + wait, who)


class Run:
    """One load at one rate."""

    def __init__(self, load: Load, rate: int) -> None:
        self._load, self._rate = load, rate
        self._clock = ManualClock(EPOCH)
        self._fake = FakeKeepa(refill_rate=rate, clock=self._clock, seed=load.seed, epoch=EPOCH)
        bucket = TokenBucket(keepa_quota(rate), clock=self._clock, listener=lambda _: None)
        self._sync = KeepaSync(bucket, probe=self._fake.probe)
        self._chance = random.Random(f"{load.seed}")  # noqa: S311 - a load, repeatable by its seed
        self._begun, self._failed, self._now = 0, 0, 0.0
        self._waits: list[float] = []
        self._done_after = None if load.backlog or load.per_hour else 0.0

    def play(self, progress: Callable[[float], None]) -> Result:
        """Run until no call is left, or the days are over. progress: gets the share of the days that has passed."""
        load, end, turns = self._load, self._load.days * DAY, Turns()
        curve = list[tuple[float, int]]()
        for number in range(load.workers):
            turns.begin(number * REST / load.workers, self._work())
        turns.begin(0.0, self._others())
        for self._now, who in turns.until(end):
            self._clock.set(EPOCH + self._now)
            if not curve or self._now >= curve[-1][0] + end / POINTS:
                curve.append((self._now, self._left))
                progress(self._now / end)
            turns.take(self._now, who)
            if self._done_after is not None and not load.per_hour:
                break
        progress(1.0)
        fake = self._fake
        return Result(
            self._rate,
            enough=self._done_after is not None and demand(load) < self._rate * HOUR / 60,
            done_after=self._done_after,
            calls=len(self._waits),
            left=self._left,
            tokens=fake.spent,
            used=fake.spent / (fake.minted + fake.wasted + fake.capacity),
            median_wait=statistics.median(self._waits or [0.0]),
            longest_wait=max(self._waits, default=0.0),
            refused=fake.refused,
            failed=self._failed,
            probes=fake.token_calls,
            curve=[*curve, (self._now, self._left)],
        )

    @property
    def _left(self) -> int:
        """The calls that have come and that no worker has begun."""
        return self._load.backlog + int(self._load.per_hour * self._now / HOUR) - self._begun

    def _others(self) -> Iterator[float]:
        while True:
            self._fake.spend_outside(int(self._load.outside * self._now / HOUR) - self._fake.spent_outside)
            yield OTHERS_EVERY

    def _work(self) -> Iterator[float]:
        """Do one call after the other."""
        weights = [kind.weight for kind in self._load.mix]
        while True:
            while self._left <= 0:
                yield 60 * REST if self._load.per_hour else LONGEST_POLL
            self._begun += 1
            (kind,) = self._chance.choices(self._load.mix, weights)
            params, since = kind.params(self._chance), self._now
            while not (yield from self._call(kind.path, params)):
                yield REST
            self._waits.append(max(0.0, self._now - since))
            if self._done_after is None and len(self._waits) == self._begun + self._left:
                self._done_after = self._now
            yield REST

    def _call(self, path: str, params: dict[str, str]) -> Generator[float, None, bool]:
        """Make a call once the bucket lets it go; return whether it was answered."""
        call = yield from self._granted(estimate(path, params))
        if self._chance.random() < self._load.faults:
            charged = self._chance.random() < 0.5  # noqa: PLR2004 - nobody knows
            self._fake.fail_next(1, "timeout_charged" if charged else "timeout_uncharged", path=path)
        ticket = self._fake.begin(path, params)
        yield self._chance.uniform(*LATENCY)
        try:
            answer = self._fake.finish(ticket)
        except TimeoutError:
            call.settle(None)
            self._failed += 1
            return False
        call.settle(answer.content, status=answer.status)
        return not call.refused

    def _granted(self, tokens: int) -> Generator[float, None, Call]:
        while True:
            try:
                return self._sync.try_request(tokens)
            except NotEnoughTokens as refused:
                yield min(LONGEST_POLL, max(REST, refused.retry_after))


def simulate(load: Load, rate: int, progress: Callable[[float], None] = lambda _: None) -> Result:
    """Return how a load goes at a rate of tokens a minute."""
    return Run(load, rate).play(progress)


def demand(load: Load) -> float:
    """Return the tokens an hour that further calls and others need, by the estimates of the cost table."""
    chance = random.Random(f"{load.seed}")  # noqa: S311 - repeatable by its seed
    weight = sum(kind.weight for kind in load.mix)
    mean = sum(kind.weight * estimate(kind.path, kind.params(chance)) for kind in load.mix) / weight
    return mean * load.per_hour + load.outside
