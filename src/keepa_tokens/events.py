"""What happened and why: events as data, one small listener interface, and the listener that logs.

An event names a bucket's key, never an API key: `KeepaSync` uses a digest of it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

from ._arguments import shown, suspends
from .quota import told
from .rules.commands import Acquire, Command, Outcome, Reserve, Settle, Verdict
from .rules.decision import Reason
from .units import one_line, seconds

MOST_KEYS: Final = 1000
"""The most buckets that the logging listener remembers."""

AWAY: Final = "the storage is away"


class EventKind(StrEnum):
    """What kind of thing happened."""

    GRANTED = "granted"
    REFUSED = "refused"
    WAITING = "waiting"
    WAITED = "waited"
    SETTLED = "settled"
    READING_TAKEN = "reading taken"
    READING_STALE = "reading stale"
    READING_BAD = "reading bad"
    REPAIRED = "repaired"
    PROBE_CLAIMED = "probe claimed"
    PROBE_FAILED = "probe failed"
    NOT_GIVEN_BACK = "not given back"
    LEFT_UNSETTLED = "left unsettled"
    HOLD_RAN_OUT = "hold ran out"
    TERMS_CHANGED = "terms changed"
    STORAGE_AWAY = "storage away"


LONGEST_TEXT: Final = 1000
"""The most characters of a text in an event; changed terms take some 300."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to the bucket `key`.

    tokens: asked for; of a settle, what the call was charged. balance: after it; None: unknown.
    seconds: a wait, as `kind` says. drift: reported minus projected balance. why: the reason of a grant, a refusal or a
    wait; what a probe is for; the fault of a reading or a probe; the names of repaired fields; what an
    interrupted call left behind. kept_back: tokens of the balance that are left to somebody else who was seen to spend.
    label: whose call it is, as whoever opened it said; a guard says the request's path.
    """

    kind: EventKind
    key: str
    tokens: int = 0
    balance: int | None = None
    seconds: float = 0.0
    drift: int | None = None
    why: str = ""
    kept_back: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        """Keep to one line what comes from a server or from what was stored."""
        for name in ("why", "label"):
            text: str = getattr(self, name)
            if not text.isprintable() or len(text) > LONGEST_TEXT:
                object.__setattr__(self, name, one_line(text, LONGEST_TEXT))


@runtime_checkable
class Listener(Protocol):
    """Is told of every event, in the thread or coroutine in which it happened: be quick.

    What it raises is logged, once, and harms nobody.
    """

    def __call__(self, event: Event, /) -> None:
        """Take notice of `event`."""
        ...


def checked_listener(listener: Listener, name: str = "listener") -> Listener:
    """Return `listener` if it can be told of events; else a TypeError says what to give as `name`."""
    given: object = listener  # nobody may have checked
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"{name} must be callable with an Event, not {shown(listener)}")
    if suspends(listener):
        raise TypeError(f"{name} is called, never awaited: give a plain function, not {shown(listener)}")
    return listener


def events_of(key: str, command: Command, outcome: Outcome) -> list[Event]:
    """Return the events of a command that was carried out."""
    events: list[Event] = []

    def note(kind: EventKind, *, tokens: int = 0, wait: float = 0.0, why: str = "", label: str = "") -> None:
        events.append(Event(kind, key, tokens, outcome.balance, wait, outcome.drift, why, outcome.kept_back, label))

    if outcome.repaired:
        note(EventKind.REPAIRED, why=", ".join(outcome.repaired))
    if outcome.terms is not None:
        before, after = outcome.terms
        changed = f"from {told(before, vars(after))} to {told(after, vars(before))}"
        note(EventKind.TERMS_CHANGED, why=f"terms changed {changed}")
    for hold in outcome.ran_out:
        whose = f" of {hold.label}" if hold.label else ""
        why = f"a hold{whose} ran out unsettled: settle or cancel each"
        note(EventKind.HOLD_RAN_OUT, tokens=hold.tokens, why=why, label=hold.label)
    if isinstance(command, Acquire | Reserve):
        kind = EventKind.GRANTED if outcome.granted else EventKind.REFUSED
        label = command.label if isinstance(command, Reserve) else ""
        note(kind, tokens=command.tokens, wait=seconds(outcome.retry_after_us), why=str(outcome.reason), label=label)
    if isinstance(command, Settle) and outcome.found:
        note(EventKind.SETTLED, tokens=command.actual or 0, label=command.label)
    if outcome.reading is Verdict.TAKEN:
        note(EventKind.READING_TAKEN)
    if outcome.reading is Verdict.STALE:
        note(EventKind.READING_STALE, why="a newer reading was taken already, or nothing tells which is newer")
    if outcome.probe:
        note(EventKind.PROBE_CLAIMED, why=_why_probed(outcome))
    return events


def _why_probed(outcome: Outcome) -> str:
    if outcome.scout:
        return "a request goes ahead as the scout"
    if outcome.reason is Reason.GRANTED:
        return "asked for"
    return "the balance is unknown" if outcome.balance is None else "a refusal on an old reading"


class LoggingListener:
    """Logs to the standard `logging`: a line for each change of state, none for a poll; damage and bad readings warn.

    Of the last `MOST_KEYS` buckets that refused it remembers why, to say when that changes.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logging.getLogger("keepa_tokens") if logger is None else logger
        if not callable(getattr(self._logger, "log", None)):
            raise TypeError(
                f"logger must be a logging.Logger, not {shown(logger)}: logging.getLogger(name) returns one"
            )
        self.refused: dict[str, str] = {}

    def has_news(self, key: str, outcome: Outcome) -> bool:
        """Whether an event of `outcome` may be worth a line; if not, nobody need make one."""
        news = outcome.repaired or outcome.drift or outcome.ran_out or outcome.terms
        return bool(news) or outcome.reason is not Reason.GRANTED or (outcome.granted and key in self.refused)

    def __call__(self, event: Event, /) -> None:
        """Log `event` if it says something new."""
        kind, before = event.kind, self.refused.get(event.key)
        warning = _WARNINGS.get(kind)
        if kind is EventKind.REFUSED and before != event.why:
            self._remember(event.key, event.why)
            kept = f", {event.kept_back} of it kept back for whoever else spends" if event.kept_back else ""
            self._log(
                logging.INFO,
                f"refused %(tokens)d tokens (%(why)s), balance %(balance)s{kept}; ask again in %(seconds).6g s",
                event,
            )
        elif kind is EventKind.GRANTED and before is not None:
            self.refused.pop(event.key, None)
            self._log(logging.INFO, "granting again; balance %(balance)s", event)
        elif kind is EventKind.READING_TAKEN and event.drift:
            self._log(logging.DEBUG, "balance %(balance)s, %(drift)+d against the projection", event)
        elif kind is EventKind.STORAGE_AWAY and before != AWAY:
            self._remember(event.key, AWAY)
            self._log(logging.WARNING, "the storage did not answer: %(why)s", event)
        elif warning is not None:
            self._log(logging.WARNING, warning, event)

    def _log(self, level: int, text: str, event: Event) -> None:
        said = {name: getattr(event, name) for name in ("key", "tokens", "why", "seconds", "drift")}
        said["balance"] = "unknown" if event.balance is None else event.balance
        line = "bucket %(key)s: " + text
        self._logger.log(level, line, said)

    def _remember(self, key: str, why: str) -> None:
        self.refused[key] = why
        while len(self.refused) > MOST_KEYS:
            # Another thread may drop the same key at this moment.
            self.refused.pop(next(iter(self.refused.copy())), None)


_WARNINGS: Final = {
    EventKind.REPAIRED: "repaired %(why)s; balance now %(balance)s",
    EventKind.READING_BAD: "ignored a reading: %(why)s",
    EventKind.PROBE_FAILED: "the probe failed: %(why)s",
    EventKind.HOLD_RAN_OUT: "%(tokens)d tokens: %(why)s",
    **dict.fromkeys((EventKind.NOT_GIVEN_BACK, EventKind.LEFT_UNSETTLED, EventKind.TERMS_CHANGED), "%(why)s"),
}
"""What is always worth a warning."""


def log_failed(event: Event, error: Exception) -> None:
    """Log that a listener raised."""
    with suppress(Exception):  # it may be the log itself that raises
        logging.getLogger("keepa_tokens").error(
            "the listener of bucket %s raised; its further errors are not logged", event.key, exc_info=error
        )
