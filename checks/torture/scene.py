"""A run: a server, a proxy before each worker, the API, the workers, what faults do to them, and its end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, cast

from checks.torture import plan
from checks.torture.api import PATH, LoggedKeepa
from checks.torture.crew import Member
from checks.torture.plan import Planned
from checks.torture.report import Result, check
from checks.torture.steps import FREEZE, story_of
from checks.torture.story import Calm, Fault, Journal, Remains, Total, machine_us, read
from checks.torture.terms import ANSWER_WITHIN, HOLD_FOR, QUOTAS
from checks.torture.worker import Assignment
from keepa_tokens.rules.commands import Peek
from keepa_tokens.storage._keyspace import DEFAULT_PREFIX
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.testing.fake_keepa import Fault as FakeFault
from keepa_tokens.testing.fake_server import FakeKeepaServer
from tests.redis.proxy import Proxy, proxied
from tests.servers import Server, running, wait_until

PERSISTENT: Final = ("--appendonly", "yes", "--appendfsync", "no")
"""The machine isn't killed, only the server: what it has written is there, flushed to the disk or not."""

HANG_S: Final = 3.0
"""Seconds after which the API drops a connection that it never answers."""


WIPE_ALL: Final = frozenset({plan.RESTART_LOST, plan.FLUSH, plan.EVICT})
"""The faults that lose every bucket."""

Act: TypeAlias = Callable[[], object]


@dataclass(slots=True)
class Scene:
    """Everything that a fault can hit."""

    journal: Journal
    server: Server
    links: list[Proxy]
    api: LoggedKeepa
    workers: list[Member]
    watcher: Member
    _began: dict[int, int] = field(default_factory=dict[int, int])

    def begin(self, planned: Planned) -> None:
        """Begin a fault."""
        act, _ = self._acts(planned)
        self._began[id(planned)] = machine_us()
        act()

    def end(self, planned: Planned) -> None:
        """End a fault, and log it."""
        _, act = self._acts(planned)
        act()
        at = self._began.pop(id(planned))
        lost = (planned.target,) if planned.kind == plan.DELETE else tuple(QUOTAS) * (planned.kind in WIPE_ALL)
        self.journal.write(Fault(self.journal.who, at, planned.kind, planned.target, machine_us(), lost))

    def _acts(self, planned: Planned) -> tuple[Act, Act]:
        """Return what begins a fault, and what ends it."""
        number = int(planned.target) if planned.lane in {plan.WORKER, plan.LINK} else 0
        match planned.lane:
            case plan.SERVER:
                acts = self._on_server(planned.target)
            case plan.WORKER:
                worker = self.workers[number]
                acts = {plan.PAUSE: (worker.pause, worker.go_on), plan.KILL: (worker.kill, worker.start)}
            case plan.LINK:
                acts = _on_link(self.links[number], planned.amount)
            case _:
                acts = self._on_api(planned.target, int(planned.amount))
        return acts[planned.kind]

    def _on_server(self, bucket: str) -> Mapping[str, tuple[Act, Act]]:
        return {
            FREEZE: (self.server.freeze, self.server.thaw),
            plan.RESTART_KEPT: (self.server.stop, self.server.start),
            plan.RESTART_LOST: (self.server.stop, self._start_afresh),
            plan.FLUSH: (partial(self._tell, "FLUSHALL"), nothing),
            plan.EVICT: (self._evict, nothing),
            plan.DELETE: (partial(self._tell, "DEL", DEFAULT_PREFIX + bucket), nothing),
            plan.SCRIPTS: (partial(self._tell, "SCRIPT FLUSH"), nothing),
        }

    def _on_api(self, fault: str, amount: int) -> Mapping[str, tuple[Act, Act]]:
        return {
            plan.API_FAILS: (partial(self.api.fail_next, amount, cast("FakeFault", fault), path=PATH), nothing),
            plan.API_DEARER: _switch(self.api, "dearer", amount),
            plan.API_SILENT: _switch(self.api, "token_down", amount > 0),
        }

    def _tell(self, *command: str) -> None:
        with self.server.client() as client:
            client.execute_command(*command)

    def _evict(self) -> None:
        """Let the server run out of memory, so that it drops every bucket."""
        with self.server.client() as client:
            client.config_set("maxmemory-policy", "allkeys-random")
            client.config_set("maxmemory", 1)
            wait_until("every bucket is evicted", lambda: client.dbsize() == 0)
            client.config_set("maxmemory", 0)

    def _start_afresh(self) -> None:
        shutil.rmtree(self.server.folder / "appendonlydir")
        self.server.start()


def nothing() -> None:
    """End a fault that is over when it has begun."""


def _on_link(link: Proxy, amount: float) -> Mapping[str, tuple[Act, Act]]:
    return {
        plan.CUT: (link.drop, nothing),
        plan.LOSE: _switch(link, "cuts", int(amount)),
        plan.SLOW: _switch(link, "delay_s", amount),
        plan.MUTE: _switch(link, "mute", amount > 0),
        plan.DEAF: _switch(link, "deaf", amount > 0),
    }


def _switch(thing: object, name: str, value: float) -> tuple[Act, Act]:
    """Return what sets an attribute to a value, and what sets it back to none, 0 or off."""
    return partial(setattr, thing, name, value), partial(setattr, thing, name, type(value)())


@contextmanager
def opened(folder: Path, seed: int, workers: int, planted: str) -> Iterator[Scene]:
    """Open a scene whose workers are at work, and end at the end whatever still runs."""
    with ExitStack() as stack:
        journal = Journal(folder, "director")
        stack.callback(journal.close)
        server = stack.enter_context(running("valkey", *PERSISTENT))
        links = [stack.enter_context(proxied(server.port)) for _ in range(workers)]
        api = LoggedKeepa(seed, journal)
        http = stack.enter_context(FakeKeepaServer(api, hang=HANG_S))
        patience = f"?socket_timeout={ANSWER_WITHIN}&socket_connect_timeout={ANSWER_WITHIN}"

        def member(who: str, url: str, *, watches: bool = False, aio: bool = False) -> Member:
            seeded = f"{seed}/{who}"
            made = Member(
                Assignment(who, seeded, str(folder), url + patience, http.url, planted, watches, aio), journal
            )
            stack.callback(made.end)
            made.start()
            return made

        # Every other one; the planted faults are for blocking storages.
        crew = [
            member(f"worker-{number}", link.url, aio=number % 2 == 1 and not planted)
            for number, link in enumerate(links)
        ]
        watcher = member("watcher", server.url, watches=True)
        yield Scene(journal, server, links, api, crew, watcher)


def play(scene: Scene, schedule: plan.Schedule) -> None:
    """Carry a schedule out in real time, and log every calm."""

    def calm(at: float) -> None:
        scene.journal.write(Calm("director", machine_us(), at == schedule.calms[-1]))

    cues: list[tuple[float, Callable[[], None]]] = []
    for planned in schedule.faults:
        cues.append((planned.at, partial(scene.begin, planned)))
        cues.append((planned.until, partial(scene.end, planned)))
    cues += [(at, partial(calm, at)) for at in schedule.calms]
    start = time.monotonic()
    for at, act in sorted(cues, key=lambda cue: cue[0]):
        time.sleep(max(0.0, start + at - time.monotonic()))
        act()
    time.sleep(max(0.0, start + schedule.end - time.monotonic()))


STARTED_WITHIN_S: Final = 60.0
"""Seconds that the workers may take to load what they need."""


def run(folder: Path, seed: int, seconds: float, workers: int, planted: str) -> Result:
    """Run for about so long, with a planted fault or without, and check."""
    schedule = plan.schedule(seed, seconds, workers)
    with opened(folder, seed, workers, planted) as there:
        crew = (*there.workers, there.watcher)
        logs = [folder / f"{member.who}.log" for member in crew]
        wait_until(
            "every worker has begun",
            lambda: all(log.exists() and log.stat().st_size > 0 for log in logs),
            within_s=STARTED_WITHIN_S,
        )
        play(there, schedule)
        for member in crew:
            member.tell_the_end()
        for member in crew:
            member.end()
        _look_at_what_remains(there)
    return check(story_of(read(folder)))


def _look_at_what_remains(there: Scene) -> None:
    # A hold lives for its lifetime, and a bucket refills in a second.
    time.sleep(max(HOLD_FOR.values()) + 2.0)
    storage = RedisStorage.from_url(there.server.url)
    for key, quota in QUOTAS.items():
        shown = storage.apply(key, quota, Peek()).snapshot
        if shown is not None:
            there.journal.write(Remains("director", machine_us(), key, shown.held, shown.holds, shown.balance))
    storage.close()
    there.journal.write(Total("director", machine_us(), there.api.spent))
