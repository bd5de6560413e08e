"""`keepa-tokens demo`: several workers on one key, a fake Keepa server over real HTTP, and the fault half-way.

The run is a script of chapters. At each tick of it the workers' notes are taken, both balances measured, and the scene
shown. Everything happens in this thread, in the server's and in the workers', which are processes of their own where
the bucket is in Redis; all of them end with the run.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, cast

from ..testing.clock import ScaledClock
from ..testing.fake_keepa import FakeKeepa
from ..testing.fake_server import FakeKeepaServer
from .demo_crew import Crew
from .demo_measure import Meter
from .demo_scene import DEBT, Chapter, Fault, Scene, Settings, line
from .demo_show import Outcome
from .demo_worker import BUCKET, CLOSE, OPEN, REFILL_RATE, Desk, GaveUpError, Job, Note, WorkerClock
from .old_rule import OldState

EPOCH: Final = 1_780_000_000.0
INITIAL: Final = 200
LATENCY: Final = (3.0, 12.0)  # seconds of server time that a call takes
TICK: Final = 0.01  # real seconds between two samples
FRAME: Final = 0.1  # real seconds between two pictures
EPILOGUE: Final = 0.15  # the part of the run that is left for work as usual when the recovery came late
PATIENCE: Final = 30.0  # real seconds beyond what a chapter should take. Then the demo gives up, and says on what
LONGEST_TO_DEBT: Final = 900.0  # seconds of server time until the large call should be through, with a try or two
CALM: Final = 40.0  # seconds of server time before the next refill, so that none comes in the middle of the fault
TRIES: Final = 3
ITSELF: Final = -1  # the demo's own number among the workers


def run(settings: Settings, say: Callable[[str], None], show: Callable[[Scene], None]) -> Outcome:
    """Run the demo; say what happens in lines, and show the scene some ten times a second.

    Whatever it started has ended when this returns or raises. Raises StorageUnavailable or ConfigError if the Redis of
    the settings can't be used, ImportError if a client for it is missing.
    """
    fake = FakeKeepa(refill_rate=REFILL_RATE, initial=INITIAL, seed=settings.seed, latency=LATENCY, epoch=EPOCH)
    with (
        Crew(settings.workers, settings.seed, settings.redis_url) as workers,
        FakeKeepaServer(fake, speed=settings.speed) as server,
    ):
        return Stage(settings, fake, server.url, workers, say, show).play()


class Stage:
    """The server, the workers, and the script that they play."""

    def __init__(
        self,
        settings: Settings,
        fake: FakeKeepa,
        url: str,
        workers: Crew,
        say: Callable[[str], None],
        show: Callable[[Scene], None],
    ) -> None:
        self._settings, self._fake, self._url, self._crew = settings, fake, url, workers
        self._say, self._show = say, show
        # While it serves, the server runs the fake by a clock of this kind; all others go by the same one.
        self._clock = cast("ScaledClock", fake.clock)
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(1, "demo-large-call")
        self._started = time.monotonic()
        self._framed = 0.0
        self._batch_cost: int | None = None
        fake.cost = self._price

    def play(self) -> Outcome:
        """Play the script to its end."""
        clock, tell = WorkerClock(self._clock), self._notes.put
        own = Desk(ITSELF, self._url, self._crew.place.storage, clock, tell)
        meter = Meter(self._fake, own.bucket, self._crew.stored, EPOCH)
        scene = Scene.at_start(self._settings, meter)
        failed: tuple[str, ...] = ()
        self._say(scene.heading())
        self._turn(scene, Chapter.INGESTING)
        try:
            self._crew.start(self._url, self._clock, tell)
            shared = self._crew.shared()
            for _ in self._script(scene, own):
                self._crew.check()
                self._tick(scene)
                time.sleep(TICK)
        except GaveUpError as gave_up:
            failed = (str(gave_up),)
            shared = None
        finally:
            clock.stop.set()
            self._crew.stop()
            self._pool.shutdown()
            own.close()
        self._tick(scene)
        self._turn(scene, Chapter.OVER)
        self._show(scene)
        return Outcome(scene, (*meter.broken(), *failed), shared)

    # --- the script

    def _script(self, scene: Scene, own: Desk) -> Iterator[None]:
        """Yield at each tick."""
        # On a busy machine that may be more than half of a short run; and who never began has no balance to overdraw.
        yield from self._await("the first answer", lambda: scene.counts.answers > 0, LONGEST_TO_DEBT)
        while self._real() < self._settings.seconds / 2:
            yield
        self._turn(scene, Chapter.LARGE_CALL)
        yield from self._run_into_debt(own)
        fault = self._lose_timestamp(scene, own)
        self._turn(scene, Chapter.LOST)
        self._crew.order(OPEN)
        yield from self._await("a grant after the fault", lambda: fault.recovered_after is not None, fault.promised)
        self._turn(scene, Chapter.RECOVERED)
        end = max(self._settings.seconds, self._real() + EPILOGUE * self._settings.seconds)
        while self._real() < end:
            yield

    def _run_into_debt(self, own: Desk) -> Iterator[None]:
        """Let everybody pause, and one large call take the balance to exactly -79, as Keepa lets it."""
        for _ in range(TRIES):
            self._crew.order(CLOSE)
            yield from self._await("a quiet moment for the large call", lambda: self._is_quiet(own), LONGEST_TO_DEBT)
            tokens = self._batch_cost = self._fake.balance - DEBT
            job = Job("/product", {"code": "4006381333931"}, "one large batch", tokens)
            done = self._pool.submit(own.call, job)
            yield from self._await("the large call", done.done, LONGEST_TO_DEBT)
            done.result()
            if self._fake.balance == DEBT == own.bucket.peek().balance:
                return
        # A refill step came in between every time.
        raise GaveUpError(f"the large call did not take the balance to {DEBT}: the machine is too slow for this speed")

    def _is_quiet(self, own: Desk) -> bool:
        """Return whether nothing is in flight, both balances are above 0, and no refill is near."""
        seen = own.bucket.peek()
        positive = self._fake.balance > 0 and (seen.balance or 0) > 0
        return positive and seen.holds == 0 and self._fake.refill_in > CALM

    def _lose_timestamp(self, scene: Scene, own: Desk) -> Fault:
        """Do what broke the old system. Nothing is in flight and nothing can be granted, so nothing else is lost."""
        state = self._crew.stored()
        if state is None:
            raise GaveUpError("the bucket is gone from its storage")
        self._take_notes(scene)
        at_us = scene.meter.fault_at_us = self._clock.now_us()
        self._crew.place.drop(BUCKET, "refilled_at")
        truth = self._fake.balance
        seen = own.bucket.peek()
        old = OldState(DEBT, refilled_at=None)
        scene.fault = Fault(at_us, truth, state.balance or 0, seen.retry_after, ", ".join(seen.repaired), old)
        return scene.fault

    def _await(self, what: str, come: Callable[[], bool], server_seconds: float) -> Iterator[None]:
        """Yield until `come()`; give up when it should long have come."""
        deadline = self._real() + min(server_seconds, LONGEST_TO_DEBT) / self._clock.speed + PATIENCE
        while not come():
            if self._real() > deadline:
                raise GaveUpError(f"{what} did not come")
            yield

    def _price(self, _: str, params: Mapping[str, str]) -> int | None:
        """Price the large batch, and nothing else."""
        return self._batch_cost if "code" in params else None

    # --- what happens at each tick

    def _real(self) -> float:
        return time.monotonic() - self._started

    def _tick(self, scene: Scene) -> None:
        scene.latest = scene.meter.sample() or scene.latest
        scene.now_us = self._clock.now_us()
        scene.real_seconds = self._real()
        scene.next_refill = self._fake.refill_in
        scene.counts.probes = self._fake.token_calls
        self._take_notes(scene)
        if scene.real_seconds - self._framed >= FRAME:
            self._framed = scene.real_seconds
            scene.remember()
            self._show(scene)

    def _take_notes(self, scene: Scene) -> None:
        while not self._notes.empty():
            news = scene.take(self._notes.get())
            if news:
                self._say(news)

    def _turn(self, scene: Scene, chapter: Chapter) -> None:
        scene.chapter = chapter
        scene.now_us = self._clock.now_us()
        self._say(line(scene.now_us, "demo", scene.story()))
