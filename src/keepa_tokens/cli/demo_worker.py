"""A worker of the demo: it ingests through `KeepaSync` over real HTTP, and tells what happens to it.

`main` runs in a thread or in a process of its own. Either way it shares nothing with the demo but a pipe and the place
of the bucket, so that no worker can take a lock along when it dies; when the demo dies the pipe ends, and the worker.
"""

from __future__ import annotations

import random
import ssl
import threading
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Final, TypeAlias

import httpx

from ..bucket import TokenBucket
from ..errors import StorageUnavailable
from ..events import Event, EventKind
from ..keepa.costs import estimate
from ..keepa.probe import http_probe
from ..keepa.quota import keepa_quota
from ..keepa.sync import KeepaSync
from ..storage.base import Storage
from ..testing.clock import ScaledClock
from .place import Place

API_KEY: Final = "the-demo-has-no-key"
BUCKET: Final = "demo"
REFILL_RATE: Final = 20

PROBE_INTERVAL: Final = 120.0
"""Seconds of server time. Short, so that a run of some minutes shows a polite probe or two."""

HOLD_FOR: Final = 3600.0
"""Seconds of server time. In accelerated time a stalled machine must not let a hold run out under a call."""

ANSWER_WITHIN: Final = 20.0
REST: Final = (5.0, 25.0)  # seconds of server time that a worker takes to store what it got
NAMES: Final = ("prices", "offers", "search", "backfill")
PRODUCTS: Final = {"prices": (1, 8), "offers": (1, 2), "backfill": (12, 24)}
KEPT_BY_BACKFILL: Final = 10


READY: Final = "ready"
OPEN: Final = "open the gate"
CLOSE: Final = "close the gate"
STOP: Final = "stop"


class GaveUpError(Exception):
    """Something that should have come did not, or somebody left who should have stayed."""


class Stopped(Exception):
    """The demo is over; raised out of whatever a worker waits for."""


class Did(StrEnum):
    """What a worker tells beside the bucket's own events."""

    WANTS = "wants"
    ANSWERED = "answered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Note:
    """What happened to a worker, at `at_us` of the server's clock.

    tokens: asked for, or what an answer cost. seconds: until the next grant. text: the call, the reason of a refusal,
    the status of an answer, repaired fields.
    """

    worker: int
    at_us: int
    kind: EventKind | Did
    tokens: int = 0
    balance: int | None = None
    seconds: float = 0.0
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


class WorkerClock:
    """The server's clock, for one worker: its sleeps end with the demo, and not before the gate is open."""

    def __init__(self, clock: ScaledClock) -> None:
        self._clock = clock
        self.stop, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def now_us(self) -> int:
        """Return the server's time in microseconds."""
        return self._clock.now_us()

    def sleep(self, seconds: float, /) -> None:
        """Block for `seconds` of server time; raise Stopped if the demo ends."""
        self.stop.wait(max(0.0, seconds) / self._clock.speed)
        self.pass_gate()

    async def asleep(self, seconds: float, /) -> None:
        """Suspend the coroutine for `seconds` of server time."""
        await self._clock.asleep(seconds)

    def pass_gate(self) -> None:
        """Wait until the gate is open; raise Stopped if the demo ends."""
        self.gate.wait()
        if self.stop.is_set():
            raise Stopped


class Desk:
    """One worker's own bucket door, adapter and HTTP client, on the storage that all share."""

    def __init__(self, worker: int, url: str, storage: Storage, clock: WorkerClock, tell: Tell) -> None:
        self._worker, self.clock, self._tell = worker, clock, tell
        # All is plain HTTP on the loopback. To load certificates for it takes seconds of accelerated time.
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.Client(base_url=url, timeout=ANSWER_WITHIN, trust_env=False, verify=bare)
        self._transport = httpx.HTTPTransport(trust_env=False, verify=bare)
        self.bucket = TokenBucket(
            keepa_quota(REFILL_RATE), key=BUCKET, storage=storage, clock=clock, listener=self._hear
        )
        probe = http_probe(API_KEY, base_url=url, transport=self._transport)
        self._sync = KeepaSync(self.bucket, probe=probe, probe_interval=PROBE_INTERVAL, hold_for=HOLD_FOR)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()
        self._transport.close()

    def call(self, job: Job) -> None:
        """Make one call: wait for its tokens, send it, settle it by its answer; again if the server refuses."""
        self._note(Did.WANTS, job.tokens, text=job.text)
        for call in self._sync.attempts(job.tokens, keep=job.keep):
            with call:
                try:
                    answer = self._client.get(job.path, params=job.params | {"key": API_KEY})
                except httpx.HTTPError as error:  # charged or not, nobody knows: the hold is left to run out
                    self._note(Did.FAILED, text=type(error).__name__)
                    return
                call.settle(answer.content, status=answer.status_code)
            body = answer.json()
            self._note(Did.ANSWERED, body["tokensConsumed"], body["tokensLeft"], text=str(answer.status_code))

    def _hear(self, event: Event) -> None:
        self._note(event.kind, event.tokens, event.balance, event.seconds, event.why)

    def _note(
        self, kind: EventKind | Did, tokens: int = 0, balance: int | None = None, seconds: float = 0.0, text: str = ""
    ) -> None:
        self._tell(Note(self._worker, self.clock.now_us(), kind, tokens, balance, seconds, text))


def main(worker: int, seed: int, open_place: Callable[[], Place], pipe: Connection) -> None:
    """Say that all is loaded, then ingest until told to stop, or until the demo is gone, and clear the bucket away.

    The last word is None, or the error that the worker died of.
    """
    with suppress(OSError, EOFError):  # the demo is gone
        pipe.send(READY)
        if (order := pipe.recv()) == STOP:
            pipe.send(None)
        else:
            url, clock = order
            _ingest(worker, seed, url, clock, open_place, pipe)


def _ingest(
    worker: int, seed: int, url: str, clock: ScaledClock, open_place: Callable[[], Place], pipe: Connection
) -> None:
    own, alone = WorkerClock(clock), threading.Event()
    follower = threading.Thread(target=_follow, args=(pipe, own, alone), daemon=True)
    follower.start()
    last: Exception | None = None
    try:
        _work(worker, random.Random(f"{seed}/{worker}"), url, own, open_place, pipe)  # noqa: S311 - a load
    except StorageUnavailable as error:
        last = StorageUnavailable(str(error))  # without its cause, which may not travel
    except Exception:  # noqa: BLE001 - whatever it was, the demo is to know
        last = GaveUpError(f"{worker_name(worker)} failed: {traceback.format_exc()}")
    with suppress(OSError):
        pipe.send(last)
    follower.join()
    if alone.is_set():
        # Each worker does it, so the last one does it for good: on the demo's clock the key would never expire.
        with suppress(StorageUnavailable):
            open_place().delete(BUCKET)


def _work(
    worker: int,
    chance: random.Random,
    url: str,
    clock: WorkerClock,
    open_place: Callable[[], Place],
    pipe: Connection,
) -> None:
    def tell(note: Note) -> None:
        with suppress(OSError):  # the demo is gone; the follower has noticed
            pipe.send(note)

    with (
        closing(open_place()) as place,
        closing(Desk(worker, url, place.storage, clock, tell)) as desk,
        suppress(Stopped),
    ):
        while True:
            clock.pass_gate()
            desk.call(next_job(worker, chance))
            clock.sleep(chance.uniform(*REST))


def _follow(pipe: Connection, clock: WorkerClock, alone: threading.Event) -> None:
    """Do as the demo says: open the gate, close it, stop; if it is gone, say so and stop."""
    try:
        while (order := pipe.recv()) != STOP:
            (clock.gate.set if order == OPEN else clock.gate.clear)()
    except (EOFError, OSError):
        alone.set()
    clock.stop.set()
    clock.gate.set()


def worker_name(worker: int) -> str:
    """Return what a worker is called; each kind of work comes round again after the last."""
    again = worker // len(NAMES)
    return NAMES[worker % len(NAMES)] + (f" {again + 1}" if again else "")


def next_job(worker: int, chance: random.Random) -> Job:
    """Return the next call of a worker: each kind of work has calls of its own size."""
    kind = NAMES[worker % len(NAMES)]
    if kind == "search":
        params = {"type": "product", "term": f"term{chance.randrange(1000)}", "page": "0"}
        return Job("/search", params, "search", estimate("/search", params))
    count = chance.randint(*PRODUCTS[kind])
    params = {"asin": ",".join(f"B0{number:08d}" for number in chance.sample(range(10**8), count))}
    if kind == "offers":
        params["offers"] = "20"
    text = f"{count} product{'s' * (count > 1)}" + ", offers" * (kind == "offers")
    return Job("/product", params, text, estimate("/product", params), KEPT_BY_BACKFILL * (kind == "backfill"))
