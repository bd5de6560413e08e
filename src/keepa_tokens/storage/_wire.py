"""What goes to `bucket.lua` and what comes back, as plain texts; pure. '' stands for None."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property, lru_cache
from typing import Final, TypeAlias, cast
from urllib.parse import quote, unquote_to_bytes

from .._arguments import checked_key, whole
from ..quota import Quota
from ..rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Pause,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Unclaim,
)
from ..rules.decision import Reason
from ..rules.state import FIELDS, HOLD, BucketState, quota_text
from ..rules.transition import lifetime_us
from ..units import LIMIT

Argument: TypeAlias = bytes | str | int

TURN: Final = "turn"
"""A field beside the bucket's state. It gives a caller that lost to other writers the next moment alone, and shows that
a `store` was sent before.
"""


@dataclass(frozen=True)
class Handed:
    """A bucket that the script handed over: its texts as they stand; partial: only the numbers and one hold."""

    now_us: int
    texts: dict[str, str]
    partial: bool

    @cached_property
    def state(self) -> BucketState | None:
        """What is stored; None: there is nothing."""
        if not self.texts.keys() - {TURN}:
            return None
        # Sorted by name, so that repairs are named in the same order each time: a hash has none.
        return replace(BucketState.from_fields(dict(sorted(self.texts.items()))), partial=self.partial)

    @property
    def needs_all(self) -> bool:
        """Whether the rules must see all of the bucket: there is something to mend, or a hold that is due."""
        state = self.state
        if state is None or not self.partial:
            return False
        is_due = bool(state.open) if state.due_at is None else state.due_at <= self.now_us
        return is_due or bool(state.unreadable) or bool(state.held and not state.open)


def is_for_the_rules(command: Command) -> bool:
    """Whether the script can never carry out a command by itself, so that it takes two calls at least."""
    if isinstance(command, Settle):
        return command.reading is not None or command.refused
    return isinstance(command, _FOR_THE_RULES)


_FOR_THE_RULES: Final = (Reconcile, ClaimProbe, Unclaim, Pause)


def attempt(quota: Quota, command: Command, now_us: int | None, turn: str = "") -> list[Argument]:
    """Return the script's arguments for one step, which it carries out or hands over; the '' is for a nonce.

    turn: the token of a caller that wants the next moment alone, to decide. Raises TypeError or ConfigError for numbers
    that the script could not compute exactly.
    """
    if isinstance(command, Acquire):
        return acquires(quota, (command,), now_us)
    numbers: Sequence[Argument]
    match command:
        case Reserve():
            verb, life = "reserve", whole("hold_for_us", command.hold_for_us)
            label = f" {quote(command.label)}" if command.label else ""
            numbers = [whole("tokens", command.tokens), whole("keep", command.keep), life, label]
        case Settle(_, actual, None, False):
            verb, numbers = "settle", ["" if actual is None else whole("actual", actual)]
        case Cancel():
            verb, numbers = "settle", [0]
        case Refund(_, tokens, own_us):
            if own_us is not None:
                whole("own_us", own_us)  # checked only: where it counts, the script hands the refund over
            verb, numbers = "refund", [whole("tokens", tokens)]
        case Peek() | Reconcile():
            # What is shown of holds needs all of them.
            verb, numbers = "look", []
        case _:
            verb, numbers = "read", [turn]
    return [verb, "", _clock(now_us), _terms(quota), _id_of(command), *numbers]


def acquires(quota: Quota, commands: Sequence[Acquire], now_us: int | None) -> list[Argument]:
    """Return the script's arguments for acquires of one bucket, one after the other; as `attempt`."""
    head: list[Argument] = ["acquire", "", _clock(now_us), _terms(quota)]
    first = commands[0]
    if len(commands) == 1 and first.keep == 0 and first.ticket is None and (first.wait_us or 0) <= 0:
        return [*head, whole("tokens", first.tokens)]
    return [*head, *(number for each in commands for number in numbers_of(each))]


def look(now_us: int | None) -> list[Argument]:
    """Return the script's arguments for all fields as they stand."""
    return ["look", "", _clock(now_us), "", b""]


def _clock(now_us: int | None) -> Argument:
    return "" if now_us is None else whole("now_us", now_us)


@lru_cache(maxsize=1000)
def _terms(quota: Quota) -> str:
    return quota_text(quota)


@lru_cache(maxsize=1000)
def name_of(prefix: str, key: str) -> bytes:
    """Return a bucket's key in Redis; raises as `checked_key`."""
    return as_bytes(prefix + checked_key(key))


def numbers_of(command: Acquire) -> tuple[int, int, int]:
    """Return the script's three arguments for an acquire."""
    # A wait beyond LIMIT has no end anyway, and the rest of a timeout may be below 0.
    wait = -1 if command.wait_us is None else max(-1, min(LIMIT, command.wait_us))
    return whole("tokens", command.tokens), whole("keep", command.keep), wait


def _id_of(command: Command) -> bytes:
    """Return the id of the hold that a command names, or nothing."""
    return as_bytes(command.id) if isinstance(command, Reserve | Settle | Cancel | Refund) else b""


def store(
    before: Handed, after: BucketState, command: Command, now_us: int | None, token: str, *, sent_once: bool
) -> list[Argument]:
    """Return the script's arguments that turn the bucket `before` into `after`, if nobody wrote in between.

    token: tells this writer from others if it gets a turn. sent_once: the client never sends this again by itself.
    """
    texts = after.to_fields() if sent_once else after.to_fields() | {TURN: f"0 {token}"}
    changes = [(name, text) for name, text in texts.items() if before.texts.get(name) != text]
    changes += [(name, "") for name in before.texts if name not in texts and _is_ours(name)]
    lifetime = lifetime_us(after, before.now_us) if now_us is None else None
    return [
        *("store", "", _clock(now_us), as_bytes(before.texts.get("version", ""))),
        *(_id_of(command), token, as_bytes(before.texts.get("refilled_at", ""))),
        *("" if lifetime is None else min(LIMIT, -(-lifetime // 1000)), "some" if before.partial else "all"),
        *(as_bytes(part) for change in changes for part in change),
    ]


class Sign(Enum):
    """What the script says beside outcomes and buckets."""

    STORED = auto()
    BUSY = auto()


Answer: TypeAlias = Outcome | list[Outcome] | Handed | Sign


def understood(reply: object, command: Command | None, nonce: str) -> Answer | None:
    """Return what the script's reply says; None: it is no answer to this call.

    command: None for many acquires; then the answer has the outcomes of the first of them, one at least.
    """
    if isinstance(reply, (bytes, str)):
        return _told(reply, command, nonce)
    if not isinstance(reply, list | tuple):
        return None
    items = [as_text(item) for item in cast("Sequence[object]", reply)]
    if len(items) % 2 == 0 or len(items) < _HEAD or items[0] != nonce:
        return None
    now, what = int(items[1]), items[2]
    if what == "busy":
        return Sign.BUSY
    fields = {_unescaped(items[at]): _unescaped(items[at + 1]) for at in range(_HEAD, len(items), 2)}
    return Handed(now, fields, partial=what == "some")


def _told(reply: bytes | str, command: Command | None, nonce: str) -> Answer | None:
    parts = as_text(reply).split()
    if not parts or parts[0] != nonce:
        return None
    if len(parts) == _STORED:
        return Sign.STORED
    if len(parts) == _HEAD:
        return Outcome(int(parts[1]), int(parts[2]), _is_granted(command))
    if len(parts) == _REFUSED:
        now, balance, wait, held, number = map(int, parts[1:])
        return Outcome(now, balance, reason=Reason.EMPTY, retry_after_us=wait, held=held, open=number)
    now, balance, place, held, number, kept_back, *others = map(int, parts[1:])
    pairs = [balance, place] if command else others
    outcomes = [
        Outcome(now, each, _is_granted(command), place_us=at, held=held, open=number, kept_back=kept_back)
        for each, at in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return outcomes[0] if command else outcomes


def _is_granted(command: Command | None) -> bool:
    return command is None or isinstance(command, Acquire | Reserve)


_STORED: Final = 2
"""Texts in the answer to `store`."""

_REFUSED: Final = 6
"""Texts in the answer to an acquire that is refused for want of tokens."""

_HEAD: Final = 3
"""Texts before the fields of a bucket that is handed over, and in the shortest answer to a step."""


def as_bytes(text: str) -> bytes:
    """Return `text` as it stands in Redis, whatever the client's own encoding."""
    return text.encode("utf-8", "surrogateescape")


def as_text(text: object) -> str:
    """Return what a client answered, bytes or str, as text; bytes that are no text survive a round trip."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "surrogateescape")
    return str(text)


def _is_ours(name: str) -> bool:
    return name.startswith(HOLD) or name in _OURS


_OURS: Final = (*FIELDS, TURN)


def named_fields(script: bytes) -> bytes:
    """Return the script with the names of the stored fields put into it."""
    return script.replace(b"FIELDS", as_bytes(", ".join(f"'{name}'" for name in _OURS)))


def _unescaped(text: str) -> str:
    return as_text(unquote_to_bytes(text)) if "%" in text else text
