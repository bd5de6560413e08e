"""A worker of the demo: it ingests through `KeepaSync` over real HTTP, and tells what happens to it.

`work` takes nothing that belongs to one process but the flags, so that processes can run it as well as threads.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, TypeAlias

import httpx

from ..bucket import TokenBucket
from ..events import Event, EventKind
from ..keepa.costs import estimate
from ..keepa.probe import http_probe
from ..keepa.quota import keepa_quota
from ..keepa.sync import KeepaSync
from ..storage.base import Storage
from ..testing.clock import ScaledClock

API_KEY: Final = "the-demo-has-no-key"
BUCKET: Final = "demo"
REFILL_RATE: Final = 20

PROBE_INTERVAL: Final = 120.0
"""Seconds of server time. Short, so that a run of some minutes shows a polite probe or two."""

HOLD_FOR: Final = 3600.0
"""Seconds of server time. In accelerated time a stalled machine must not let a hold run out under a call."""

ANSWER_WITHIN: Final = 20.0
REST: Final = (5.0, 25.0)
"""Seconds of server time that a worker takes to store what it got."""


class Stopped(Exception):
    """The demo is over; raised out of whatever a worker waits for."""


class Flag(Protocol):
    """What a worker needs of an event, of threads or of processes."""

    def is_set(self) -> bool:
        """Return whether the flag is up."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is up, `timeout` real seconds at most; return whether it is."""
        ...


@dataclass(frozen=True, slots=True)
class Signals:
    """What the demo tells its workers: the time, when to stop, and whether the gate is open."""

    clock: ScaledClock
    stop: Flag
    gate: Flag


class NoteKind(StrEnum):
    """What a worker tells."""

    WANTS = "wants"
    GRANTED = "granted"
    REFUSED = "refused"
    ANSWERED = "answered"
    FAILED = "failed"
    PROBED = "probed"
    PROBE_FAILED = "probe failed"
    REPAIRED = "repaired"


@dataclass(frozen=True, slots=True)
class Note:
    """What happened to a worker, at `at_us` of the server's clock.

    tokens: asked for, or what an answer cost. seconds: until the next grant. text: the call, the reason of a refusal,
    the status of an answer, repaired fields.
    """

    worker: int
    at_us: int
    kind: NoteKind
    tokens: int = 0
    seconds: float = 0.0
    balance: int | None = None
    text: str = ""


Tell: TypeAlias = Callable[[Note], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One call to Keepa. keep: tokens that it leaves to the others."""

    path: str
    params: dict[str, str]
    text: str
    tokens: int
    keep: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What all workers share: where the server is, and where the bucket lives."""

    url: str
    make_storage: Callable[[], Storage]


class WorkerClock:
    """The server's clock, for one worker: its sleeps end with the demo, and not before the gate is open."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def now_us(self) -> int:
        """Return the server's time in microseconds."""
        return self._signals.clock.now_us()

    def sleep(self, seconds: float, /) -> None:
        """Block for `seconds` of server time; raise Stopped if the demo ends."""
        if self._signals.stop.wait(max(0.0, seconds) / self._signals.clock.speed):
            raise Stopped
        self.pass_gate()

    async def asleep(self, seconds: float, /) -> None:
        """Suspend the coroutine for `seconds` of server time."""
        await self._signals.clock.asleep(seconds)

    def pass_gate(self) -> None:
        """Wait until the gate is open; raise Stopped if the demo ends."""
        self._signals.gate.wait()
        if self._signals.stop.is_set():
            raise Stopped


class Desk:
    """One worker's own bucket door, adapter and HTTP client, on the storage that all share."""

    def __init__(self, worker: int, terms: Terms, signals: Signals, tell: Tell) -> None:
        self.worker = worker
        self.clock = WorkerClock(signals)
        self._tell = tell
        # All is plain HTTP on the loopback. To load certificates for it takes seconds of accelerated time.
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.Client(base_url=terms.url, timeout=ANSWER_WITHIN, trust_env=False, verify=bare)
        self._transport = httpx.HTTPTransport(trust_env=False, verify=bare)
        self.bucket = TokenBucket(
            keepa_quota(REFILL_RATE), key=BUCKET, storage=terms.make_storage(), clock=self.clock, listener=self._hear
        )
        probe = http_probe(API_KEY, base_url=terms.url, transport=self._transport)
        self._sync = KeepaSync(self.bucket, probe=probe, probe_interval=PROBE_INTERVAL, hold_for=HOLD_FOR)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()
        self._transport.close()

    def call(self, job: Job) -> None:
        """Make one call: wait for its tokens, send it, settle it by its answer; again if the server refuses."""
        self._note(NoteKind.WANTS, tokens=job.tokens, text=job.text)
        for call in self._sync.attempts(job.tokens, keep=job.keep):
            with call:
                try:
                    answer = self._client.get(job.path, params=job.params | {"key": API_KEY})
                except httpx.HTTPError as error:  # charged or not, nobody knows: the hold is left to run out
                    self._note(NoteKind.FAILED, text=type(error).__name__)
                    return
                call.settle(answer.content, status=answer.status_code)
            body = answer.json()
            self._note(
                NoteKind.ANSWERED,
                tokens=int(body["tokensConsumed"]),
                balance=int(body["tokensLeft"]),
                text=str(answer.status_code),
            )

    def _hear(self, event: Event) -> None:
        match event.kind:
            case EventKind.GRANTED:
                self._note(NoteKind.GRANTED, tokens=event.tokens, balance=event.balance)
            case EventKind.REFUSED:
                self._note(
                    NoteKind.REFUSED, tokens=event.tokens, seconds=event.seconds, balance=event.balance, text=event.why
                )
            case EventKind.PROBE_CLAIMED:
                self._note(NoteKind.PROBED)
            case EventKind.PROBE_FAILED:
                self._note(NoteKind.PROBE_FAILED, text=event.why)
            case EventKind.REPAIRED:
                self._note(NoteKind.REPAIRED, balance=event.balance, text=event.why)
            case _:
                pass

    def _note(
        self, kind: NoteKind, *, tokens: int = 0, seconds: float = 0.0, balance: int | None = None, text: str = ""
    ) -> None:
        self._tell(Note(self.worker, self.clock.now_us(), kind, tokens, seconds, balance, text))


@contextmanager
def desk(worker: int, terms: Terms, signals: Signals, tell: Tell) -> Generator[Desk]:
    """Open a desk, and close its connections afterwards."""
    opened = Desk(worker, terms, signals, tell)
    try:
        yield opened
    finally:
        opened.close()


def work(worker: int, seed: int, terms: Terms, signals: Signals, tell: Tell) -> None:
    """Ingest until the demo is over."""
    chance = random.Random(f"{seed}/{worker}")  # noqa: S311 - a load, repeatable by its seed
    with desk(worker, terms, signals, tell) as own:
        try:
            while True:
                own.clock.pass_gate()
                own.call(next_job(worker, chance))
                own.clock.sleep(chance.uniform(*REST))
        except Stopped:
            return


def single_call(worker: int, job: Job, terms: Terms, signals: Signals, tell: Tell) -> None:
    """Make one call, as a worker of its own."""
    with desk(worker, terms, signals, tell) as own:
        try:
            own.call(job)
        except Stopped:
            return


NAMES: Final = ("prices", "offers", "search", "backfill")


def worker_name(worker: int) -> str:
    """Return what a worker is called; each kind of work comes round again after the last."""
    again = worker // len(NAMES)
    return NAMES[worker % len(NAMES)] + (f" {again + 1}" if again else "")


def next_job(worker: int, chance: random.Random) -> Job:
    """Return the next call of a worker: each kind of work has calls of its own size."""
    match NAMES[worker % len(NAMES)]:
        case "prices":
            return _products(chance, 1, 8)
        case "offers":
            return _products(chance, 1, 2, offers="20")
        case "search":
            params = {"type": "product", "term": f"term{chance.randrange(1000)}", "page": "0"}
            return Job("/search", params, "search", estimate("/search", params))
        case _:
            return _products(chance, 12, 24, keep=10)


def _products(chance: random.Random, least: int, most: int, *, keep: int = 0, **params: str) -> Job:
    count = chance.randint(least, most)
    asins = ",".join(f"B0{number:08d}" for number in chance.sample(range(10**8), count))
    params["asin"] = asins
    text = f"{count} product{'s' * (count > 1)}" + (", offers" if "offers" in params else "")
    return Job("/product", params, text, estimate("/product", params), keep)
