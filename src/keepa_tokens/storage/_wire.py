"""What goes to `bucket.lua` and what comes back, as plain texts; pure. '' stands for None."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, assert_never, cast
from urllib.parse import unquote_to_bytes

from .._arguments import whole
from ..errors import ConfigError
from ..quota import Quota
from ..rules.commands import (
    Acquire,
    Cancel,
    ClaimProbe,
    Command,
    Outcome,
    Peek,
    Reconcile,
    Refund,
    Reserve,
    Settle,
    Verdict,
)
from ..rules.decision import Reason, Snapshot
from ..rules.reading import Reading
from ..rules.state import BucketState
from ..units import LIMIT, NEVER, seconds

__all__ = ["as_bytes", "as_text", "decode", "decode_inspection", "encode", "encode_inspection"]

_TOLD: Final = 13
"""Texts about the outcome itself: TOLD in `bucket.lua`."""

_SHOWN: Final = 11
"""Texts about the snapshot: SHOWN in `bucket.lua`. After them come the repaired names."""


def encode(quota: Quota, command: Command, now_us: int | None) -> list[str]:
    """Return the script's arguments.

    Raises TypeError or ConfigError for numbers that the script could not compute exactly.
    """
    now = "" if now_us is None else str(whole("now_us", now_us))
    return [type(command).__name__, now, *_quota(quota), *_arguments(command)]


def decode(reply: object, quota: Quota, command: Command) -> Outcome:
    """Return the outcome that the script's reply tells, bytes or str."""
    texts = _texts(reply)
    if len(texts) < _TOLD + _SHOWN:
        raise _nonsense(reply)
    told, shown, names = texts[:_TOLD], texts[_TOLD : _TOLD + _SHOWN], texts[_TOLD + _SHOWN :]
    now, balance, granted, reason, retry_after, place, closed, kept_back, probe, scout, found, verdict, drift = told
    repaired = tuple(_unescaped(name) for name in names)
    snapshot = None
    if isinstance(command, Peek | Reconcile):
        snapshot = _snapshot(quota, _number(balance), int(kept_back), shown, repaired)
    return Outcome(
        now_us=int(now),
        balance=_number(balance),
        granted=granted == "1",
        reason=Reason(reason),
        retry_after_us=int(retry_after),
        place_us=int(place),
        closed=closed == "1",
        kept_back=int(kept_back),
        probe=probe == "1",
        scout=scout == "1",
        found=found == "1",
        reading=Verdict(verdict),
        drift=_number(drift),
        repaired=repaired,
        snapshot=snapshot,
    )


def encode_inspection(now_us: int | None) -> list[str]:
    """Return the script's arguments for reading the hash as it is."""
    return ["Inspect", "" if now_us is None else str(whole("now_us", now_us))]


def decode_inspection(reply: object) -> tuple[int, BucketState | None]:
    """Return the time of the look, and the stored state; None: there is none."""
    texts = _texts(reply)
    if len(texts) % 2 == 0:
        raise _nonsense(reply)
    fields = {_unescaped(name): _unescaped(text) for name, text in zip(texts[1::2], texts[2::2], strict=True)}
    return int(texts[0]), BucketState.from_fields(fields) if fields else None


def as_bytes(text: str) -> bytes:
    """Return `text` as it stands in Redis, whatever the client's own encoding."""
    return text.encode("utf-8", "surrogateescape")


def as_text(text: object) -> str:
    """Return what a client answered, bytes or str, as text; bytes that are none survive a round trip."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "surrogateescape")
    return str(text)


def _quota(quota: Quota) -> Iterable[str]:
    yield from _numbers(quota.capacity, quota.refill, quota.period_us)
    yield _flag(quota.stepped)
    yield from _numbers(quota.overdraft, quota.recharge_to, quota.initial)
    yield _flag(quota.synced)
    yield from _numbers(quota.rate, quota.rate_period_us)


def _arguments(command: Command) -> Iterable[str]:
    match command:
        case Acquire():
            yield from _request(command)
        case Reserve():
            tokens, *rest = _request(command)
            yield from (command.id, tokens, _whole("hold_for_us", command.hold_for_us), *rest, _flag(command.scout))
        case Settle():
            actual = "" if command.actual is None else _whole("actual", command.actual)
            yield from (command.id, actual, _flag(command.refused))
            yield from _reading(command.reading)
        case Cancel():
            yield command.id
        case Refund():
            yield from (command.id, _whole("tokens", command.tokens), _whole("issued_us", command.issued_us))
        case Reconcile():
            yield from _look(Peek())
            yield from _reading(command.reading)
        case ClaimProbe():
            return
        case Peek():
            yield from _look(command)
        case _:
            assert_never(command)


def _request(command: Acquire | Reserve) -> tuple[str, str, str, str]:
    wait_us = command.wait_us
    return (
        _whole("tokens", command.tokens),
        _whole("keep", command.keep),
        # Beyond LIMIT a wait has no end anyway, and what is left of a timeout may be below 0.
        "" if wait_us is None else str(max(-1, min(LIMIT, wait_us))),
        _probe_after(command.probe_after_us),
    )


def _look(command: Peek) -> tuple[str, str, str]:
    tokens, keep = _whole("tokens", command.tokens), _whole("keep", command.keep)
    return tokens, keep, _probe_after(command.probe_after_us)


def _reading(reading: Reading | None) -> Iterable[str]:
    if reading is None:
        return _numbers(None, None, None, None, None, None, None)
    return _numbers(
        reading.balance,
        reading.next_refill_in_us,
        reading.refill_tokens,
        reading.refill_periods,
        reading.period_us,
        reading.capacity,
        reading.server_time_us,
    )


def _snapshot(
    quota: Quota, balance: int | None, kept_back: int, shown: Sequence[str], repaired: tuple[str, ...]
) -> Snapshot:
    held, holds, retry_after, full_in, closed_for, bound, capacity, refill, period, reading_age, drift = shown
    age = _number(reading_age)
    return Snapshot(
        balance=balance,
        held=int(held),
        holds=int(holds),
        retry_after=seconds(int(retry_after)),
        full_in=seconds(int(full_in)),
        closed_for=seconds(int(closed_for)),
        bound=seconds(int(bound)),
        quota=quota,
        capacity=int(capacity),
        refill=int(refill),
        period=seconds(int(period)),
        reading_age=None if age is None else seconds(age),
        drift=_number(drift),
        kept_back=kept_back,
        repaired=repaired,
    )


def _whole(name: str, value: int) -> str:
    return str(whole(name, value))


def _probe_after(value: int | None) -> str:
    return "" if value is None else str(whole("probe_after_us", value, most=NEVER))


def _numbers(*values: int | None) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _flag(value: bool) -> str:  # noqa: FBT001 - a flag is what it writes
    return "1" if value else "0"


def _number(text: str) -> int | None:
    return int(text) if text else None


def _texts(reply: object) -> list[str]:
    if not isinstance(reply, list | tuple):
        raise _nonsense(reply)
    return [as_text(item) for item in cast("Sequence[object]", reply)]


def _nonsense(reply: object) -> ConfigError:
    return ConfigError(
        f"the client answered the script with {str(reply)[:60]!r}: give the storage a plain client, not a pipeline"
    )


def _unescaped(text: str) -> str:
    return as_text(unquote_to_bytes(text)) if "%" in text else text
