"""One worker: a process that spends, holds, queues and calls until its standard input ends.

`python -m checks.torture.worker ASSIGNMENT`, a JSON object of the fields of `Assignment`.
"""

from __future__ import annotations

import json
import random
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import httpx

from checks.torture.api import KEY, PATH, parameters
from checks.torture.storage import opened
from checks.torture.story import Answered, Asked, Broke, Journal, Left, machine_us
from checks.torture.terms import CALL_WITHIN, HELD, HOLD_FOR, KEEPA, PLAIN, PROBE_INTERVAL, QUOTAS, SECOND
from keepa_tokens import KeepaSync, NotEnoughTokens, StorageUnavailable, TokenBucket
from keepa_tokens.events import Event
from keepa_tokens.rules.commands import Cancel, Command, Outcome, Peek, Refund, Reserve, Settle

TRIES: Final = 8
"""How often a command is sent until somebody says what became of it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is told.

    watches: it looks, asks for one token, and looks again, instead of working. aio: it works in asyncio tasks.
    """

    who: str
    seed: str
    folder: str
    redis: str
    api: str
    planted: str = ""
    watches: bool = False
    aio: bool = False


def applied(bucket: TokenBucket, command: Command) -> Outcome:
    """Carry a command that no door has to a bucket."""
    return bucket.storage.apply(bucket.key, bucket.quota, command)


def silent(_event: Event, /) -> None:
    """Take no notice of an event: the journal has it."""


class Hand:
    """A worker's doors to the buckets and to the API."""

    def __init__(self, assignment: Assignment, stop: threading.Event) -> None:
        self.who = assignment.who
        self.chance = random.Random(assignment.seed)
        self.stop = stop
        # A watcher that insists sees nothing meanwhile; its holds may run out.
        self.tries = 1 if assignment.watches else TRIES
        self.journal = Journal(Path(assignment.folder), assignment.who)
        storage = opened(assignment.redis, self.journal, assignment.planted)
        doors = {key: TokenBucket(quota, key=key, storage=storage, listener=silent) for key, quota in QUOTAS.items()}
        self.plain, self.held, self.keepa = doors[PLAIN], doors[HELD], doors[KEEPA]
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # all is plain HTTP: no certificates to load
        self._http = httpx.Client(base_url=assignment.api, timeout=CALL_WITHIN, trust_env=False, verify=bare)
        self.sync = KeepaSync(self.keepa, probe=self._probe, probe_interval=PROBE_INTERVAL, hold_for=HOLD_FOR[KEEPA])

    def pause(self, shortest: float, longest: float) -> None:
        """Wait for a while, or until the end."""
        self.stop.wait(self.chance.uniform(shortest, longest))

    def some(self, most: int) -> int:
        """Return a number of tokens; one token more often than any other."""
        return self.chance.choice((1, self.chance.randint(1, most)))

    def happens(self, probability: float) -> bool:
        """Draw."""
        return self.chance.random() < probability

    def insist(self, command: Callable[[], object]) -> None:
        """Send a command again until it is known what became of it, as often as is sensible."""
        for _ in range(self.tries):
            try:
                command()
            except StorageUnavailable:
                self.pause(0.02, 0.3)
            else:
                return

    def spend(self, estimate: int, cost: int, *, timeout: float | None, place: str | None = None) -> None:
        """Make one call; timeout: None: only if it may be made now, or else with a place in line."""
        with (
            self.sync.try_request(estimate, place=place)
            if timeout is None
            else self.sync.request(estimate, timeout=timeout) as call
        ):
            self.journal.write(Asked(self.who, machine_us(), call.id, estimate))
            try:
                answer = self._http.get(PATH, params=parameters(call.id, cost))
            except httpx.HTTPError:
                return  # charged or not, nobody knows: the hold is left to run out
            self.journal.write(Answered(self.who, machine_us(), call.id, answer.status_code, consumed(answer)))
            self.insist(lambda: call.settle(answer.content, status=answer.status_code))

    def _probe(self) -> tuple[int, dict[str, object] | None]:
        answer = self._http.get("/token", params={"key": KEY})
        return answer.status_code, body_of(answer)


def body_of(answer: httpx.Response) -> dict[str, object] | None:
    """Return the parsed body of an answer; None if it is no JSON object."""
    with suppress(ValueError):
        body: object = answer.json()
        if isinstance(body, dict):
            return body
    return None


def consumed(answer: httpx.Response) -> int | None:
    """Return what an answer says that the call cost."""
    told = (body_of(answer) or {}).get("tokensConsumed")
    return told if isinstance(told, int) else None


# --- what a worker does


def take(hand: Hand) -> None:
    """Take tokens if they are there, or if they are besides some that are left for others."""
    hand.plain.try_acquire(hand.some(6), keep=hand.chance.choice((0, 0, 3)))


def queue(hand: Hand) -> None:
    """Wait for tokens."""
    hand.plain.acquire(hand.some(6), timeout=hand.chance.uniform(0.1, 1.0))


def give_back(hand: Hand) -> None:
    """Take tokens and give them back, by the door or twice under one id."""
    tokens = hand.some(4)
    if not hand.plain.try_acquire(tokens):
        return
    if hand.happens(0.5):
        hand.plain.refund(tokens)
        return
    refund = Refund(uuid.uuid4().hex, tokens, applied(hand.plain, Peek()).now_us)
    for _ in range(2):
        hand.insist(lambda: applied(hand.plain, refund))


def hold(hand: Hand) -> None:
    """Wait for a hold, work, and end it."""
    timeout = hand.chance.uniform(0.1, 1.0)
    finish(hand, hand.held.reserve(hand.some(8), timeout=timeout, hold_for=HOLD_FOR[HELD]))


def hold_now(hand: Hand) -> None:
    """The same for tokens that are there, in a context that settles what was left open."""
    with hand.held.try_reserve(hand.some(5), hold_for=HOLD_FOR[HELD]) as reservation:
        if hand.happens(0.7):
            finish(hand, reservation)


def hold_by_id(hand: Hand) -> None:
    """Send one reserve until it is answered, and end it under that id."""
    reserve = Reserve(uuid.uuid4().hex, hand.some(5), round(HOLD_FOR[HELD] * SECOND))
    granted: list[bool] = []
    hand.insist(lambda: granted.append(applied(hand.held, reserve).granted))
    if any(granted):
        finish(hand, ById(hand.held, reserve.id, reserve.tokens))


def stand_in_line(hand: Hand) -> None:
    """Ask for a hold by one ticket until it is granted; whoever gives up leaves, twice, or is just gone."""
    reserve = Reserve(uuid.uuid4().hex, hand.some(8), round(HOLD_FOR[HELD] * SECOND), ticket=uuid.uuid4().hex)
    for _ in range(4):
        granted: list[bool] = []
        hand.insist(lambda: granted.append(applied(hand.held, reserve).granted))  # noqa: B023 - carried out at once
        if any(granted):
            finish(hand, ById(hand.held, reserve.id, reserve.tokens))
            return
        hand.pause(0.1, 1.0)
    for _ in range(hand.chance.choice((0, 1, 2))):
        hand.insist(lambda: applied(hand.held, Cancel(reserve.ticket or "")))


class Ends(Protocol):
    """What ends a hold."""

    @property
    def tokens(self) -> int:
        """What was set aside."""
        ...

    def settle(self, actual: int) -> None:
        """End it at what it cost."""
        ...

    def cancel(self) -> None:
        """End it at nothing."""
        ...


@dataclass(slots=True)
class ById:
    """A hold, of which only the id is known."""

    bucket: TokenBucket
    id: str
    tokens: int

    def settle(self, actual: int) -> None:
        """End it at what it cost."""
        applied(self.bucket, Settle(self.id, actual))

    def cancel(self) -> None:
        """End it at nothing."""
        applied(self.bucket, Cancel(self.id))


def finish(hand: Hand, reservation: Ends) -> None:
    """Work, then settle at what was reserved or less; sometimes late, twice or never, sometimes cancel."""
    if hand.happens(0.05):
        hand.pause(HOLD_FOR[HELD], HOLD_FOR[HELD] * 1.8)  # late
    else:
        hand.pause(0.0, 0.15)
    if hand.happens(0.04):
        return
    times = 1 + hand.happens(0.2)
    if hand.happens(0.25):
        for _ in range(times):
            hand.insist(reservation.cancel)
        return
    actual = hand.chance.randint(0, reservation.tokens)
    for _ in range(times):
        hand.insist(lambda: reservation.settle(actual))


def call(hand: Hand) -> None:
    """Call the API; a call costs what was estimated, or less."""
    estimate = hand.some(6)
    cost = hand.chance.randint(0, estimate) if hand.happens(0.1) else estimate
    hand.spend(estimate, cost, timeout=2.0)


def do_task(hand: Hand) -> None:
    """Take up a queue's task, which any worker may have had before: its place is its own. It is tried again, or not."""
    place, estimate = f"task-{hand.chance.randrange(QUEUED)}", hand.some(6)
    for _ in range(3):
        try:
            hand.spend(estimate, estimate, timeout=None, place=place)
        except NotEnoughTokens as refused:
            hand.pause(0.0, min(refused.retry_after, 1.0))
        else:
            return


QUEUED: Final = 6
"""How many tasks there are, for all workers together."""

Job: TypeAlias = Callable[[Hand], object]

JOBS: Final[Mapping[Job, int]] = {
    take: 4,
    queue: 3,
    give_back: 2,
    hold: 4,
    hold_now: 2,
    hold_by_id: 3,
    stand_in_line: 2,
    call: 6,
    do_task: 4,
}
"""What a worker does, and how often."""


def work(hand: Hand) -> None:
    """Do one job after the other."""
    jobs, weights = list(JOBS), list(JOBS.values())
    while not hand.stop.is_set():
        attempt(hand, hand.chance.choices(jobs, weights)[0])
        hand.pause(0.005, 0.04)


# --- what the watcher does


def look(hand: Hand) -> None:
    """Look at each bucket, which states a bound, and ask it for one token."""
    peek = Peek(probe_after_us=round(PROBE_INTERVAL * SECOND))
    attempt(hand, lambda hand: applied(hand.plain, peek))
    attempt(hand, lambda hand: hand.plain.try_acquire())
    attempt(hand, lambda hand: applied(hand.held, peek))
    attempt(hand, lambda hand: hand.held.try_reserve(hold_for=HOLD_FOR[HELD]).settle(1))
    attempt(hand, lambda hand: applied(hand.keepa, peek))
    attempt(hand, lambda hand: hand.spend(1, 1, timeout=None))


def watch(hand: Hand) -> None:
    """Look again and again."""
    while not hand.stop.is_set():
        look(hand)
        hand.pause(0.03, 0.08)


def attempt(hand: Hand, job: Job) -> None:
    """Do a job. A refusal and a storage that is away are part of it; any other error is a finding."""
    try:
        job(hand)
    except (StorageUnavailable, NotEnoughTokens):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the log is to tell
        hand.journal.write(Broke(hand.who, machine_us(), f"{type(error).__name__}: {error}"))


def main(arguments: Sequence[str]) -> int:
    """Work until the standard input ends."""
    assignment = Assignment(**json.loads(arguments[1]))
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    hand = Hand(assignment, stop)
    (watch if assignment.watches else work)(hand)
    hand.journal.write(Left(hand.who, machine_us()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
