"""From Keepa's envelope to a `Reading`. Pure, and never raises on a body, whatever it is.

Every JSON answer carries the envelope, refusals and errors included: tokensLeft (the balance after the call),
refillIn (ms to the next step), refillRate (tokens a minute), tokenFlowReduction (tokens a minute lost to
tracking), tokensConsumed (the cost), timestamp (ms, the server's clock).
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeGuard, cast

from .._arguments import whole
from .._blocking import run
from ..errors import BadReading
from ..rules.reading import Reading
from ..units import LIMIT
from .quota import CAPACITY_MINUTES

Body: TypeAlias = Mapping[str, object] | bytes | str | None
"""An answer's body: parsed, or as it came; None: there was none."""

Turn: TypeAlias = Callable[[], Awaitable[None]]

REFUSED: Final = 429
"""The status of a refusal: no tokens. It costs nothing and carries the true balance."""

_BODIES: Final = (Mapping, str, bytes, bytearray, list, int, float)

_MILLISECONDS: Final = 1000

LARGE: Final = 256 * 1024
"""Bytes from which on a body is searched for its envelope instead of being parsed whole."""

PIECE: Final = 128 * 1024
"""Bytes after which other coroutines get their turn."""

_TOKEN: Final = re.compile(rb'[^"\[\]{}]*+("[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}])', re.DOTALL)
"""A string or a bracket: these alone show which fields belong to the outermost object."""

_VALUE: Final = re.compile(rb'\s*:\s*([\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,}\]]+)', re.DOTALL)
"""What follows the name of a field."""

_OPENING: Final = frozenset({b"{", b"["})
_CLOSING: Final = frozenset({b"}", b"]"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer says of the bucket.

    reading: None if the answer has none, and `why` says why. consumed: the tokens that the call cost;
    None: the answer doesn't say.
    """

    reading: Reading | None
    consumed: int | None = None
    why: str = ""


def unpacked(answer: object, status: object) -> tuple[Body, int | None]:
    """Return the body and status of an answer. A response of httpx or requests brings both itself.

    Raises TypeError for a status that is no whole number, and for an answer that can be no body: a coroutine, a
    response that is still to be read, a file. Any JSON value is a body, however odd.
    """
    own = getattr(answer, "status_code", None)
    if isinstance(own, int):
        status = own if status is None else status
        try:
            answer = getattr(answer, "content", None)
        except Exception:  # noqa: BLE001 - the client's own error: the body was never read, so it counts as empty
            answer = b""
    elif isinstance(answer, memoryview):
        answer = bytes(cast("memoryview[int]", answer))
    elif answer is not None and not isinstance(answer, _BODIES):
        raise TypeError(
            f"the answer must be its body, parsed, bytes or text, or a response of httpx or requests, not"
            f" {type(answer).__name__}: read it first, e.g. await response.read()"
        )
    if isinstance(status, str) and status.strip().isdecimal():
        status = int(status)
    number = None if status is None else whole("status", status, most=999)
    return cast("Body", answer), number


def envelope(body: Body) -> Envelope:
    """Return the envelope of `body`. Never raises: for a bad body the Envelope says what is wrong."""
    if _is_large(body):
        return run(lambda: searched(body, _no_turn))
    if body is None:
        return Envelope(None, why="there is no JSON object")
    try:
        parsed: object = json.loads(body) if isinstance(body, (str, bytes, bytearray)) else body
    except (ValueError, RecursionError):
        return Envelope(None, why=f"the body is no JSON ({len(body)} long)")
    if not isinstance(parsed, Mapping):
        return Envelope(None, why=f"the body is no JSON object but {type(parsed).__name__}")
    return _said({str(name): value for name, value in cast("Mapping[object, object]", parsed).items()})


async def envelope_of(body: Body, turn: Turn) -> Envelope:
    """Return the envelope of `body`; a large body is read in pieces of a few ms, and `turn` is awaited in between."""
    return await searched(body, turn) if _is_large(body) else envelope(body)


async def searched(body: str | bytes | bytearray, turn: Turn) -> Envelope:
    """Return the envelope of `body`, parsing only the fields of the outermost object."""
    text = body.encode(errors="replace") if isinstance(body, str) else body
    fields: dict[str, object] = {}
    bad = Envelope(None, why=f"the body is no JSON ({len(body)} long)")
    if not text[:PIECE].lstrip().startswith(b"{"):
        return bad
    depth, at, piece_ends = 0, 0, PIECE
    # By `match`: `search` would begin again at every byte of a long rest without a token.
    while (token := _TOKEN.match(text, at)) is not None:
        at = token.end()
        if at > piece_ends:
            await turn()
            piece_ends = at + PIECE
        if token[1] in _OPENING:
            depth += 1
        elif token[1] in _CLOSING:
            depth -= 1
            if depth == 0:
                return bad if text[at:].strip() else _said(fields)
        elif depth == 1 and (value := _VALUE.match(text, at)) is not None:
            fields[_parsed(token[1])] = {} if value[1] in _OPENING else _parsed(value[1])
    return bad


def _is_large(body: object) -> TypeGuard[str | bytes | bytearray]:
    return isinstance(body, (str, bytes, bytearray)) and len(body) >= LARGE


async def _no_turn() -> None:
    """Give no turn to anybody: a blocking caller has no other coroutines."""


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - whatever JSON says; None where it is no JSON
    try:
        return json.loads(text)
    except ValueError:
        return None


def _said(fields: Mapping[str, object]) -> Envelope:
    consumed = _consumed(fields.get("tokensConsumed"))
    try:
        return Envelope(_reading(fields), consumed)
    except BadReading as bad:
        return Envelope(None, consumed, str(bad))


def _reading(fields: Mapping[str, object]) -> Reading:
    if fields.get("tokensLeft") is None:
        raise BadReading("there is no tokensLeft")
    rate = _number(fields, "refillRate")
    if rate is not None and rate <= 0 and (fields.get("error") is not None or not fields.get("tokensLeft")):
        # In the answer to a bad key all token fields are 0: they say nothing of the bucket.
        raise BadReading(f"refillRate is {rate:g} beside an error or an empty envelope: no reading")
    refill_in, timestamp = _number(fields, "refillIn"), _number(fields, "timestamp")
    return Reading(
        _whole("tokensLeft", fields.get("tokensLeft")),
        next_refill_in=None if refill_in is None else refill_in / _MILLISECONDS,
        refill=None if rate is None else max(0.0, rate - (_number(fields, "tokenFlowReduction") or 0.0)),
        # At refill 0 the plan has ended, but the bucket still holds its tokens: keep the capacity known before.
        capacity=None if not rate else CAPACITY_MINUTES * _whole("refillRate", rate),
        server_time=None if timestamp is None else timestamp / _MILLISECONDS,
    )


def _number(fields: Mapping[str, object], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < LIMIT:
        raise BadReading(f"{name} is no number from 0 to 2**52 - 1")
    return float(value)


def _whole(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadReading(f"{name} is no whole number")
    return value


def _consumed(value: object) -> int | None:
    try:
        tokens = _whole("tokensConsumed", value)
    except BadReading:
        return None
    return tokens if 0 <= tokens < LIMIT else None
