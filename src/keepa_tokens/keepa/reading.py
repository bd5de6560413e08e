"""From Keepa's envelope to a `Reading`. Pure, and never raises on a body, whatever it is.

Every JSON answer carries the envelope, refusals and errors included: tokensLeft (the balance after the call),
refillIn (ms to the next step), refillRate (tokens a minute), tokenFlowReduction (tokens a minute lost to
tracking), tokensConsumed (the cost), timestamp (ms, the server's clock).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from ..errors import BadReading
from ..rules.reading import Reading
from ..units import LIMIT
from .quota import CAPACITY_MINUTES

__all__ = ["Body", "Envelope", "envelope"]

Body: TypeAlias = Mapping[str, object] | bytes | str | None
"""An answer's body: parsed, or as it came; None: there was none."""

REFUSED: Final = 429
"""The status of a refusal: no tokens. It costs nothing and carries the true balance."""

_MILLISECONDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer says of the bucket.

    reading: None where there is none to be had, and `why` says why not. consumed: tokens that the call cost;
    None: not said.
    """

    reading: Reading | None
    consumed: int | None = None
    why: str = ""


def envelope(body: Body) -> Envelope:
    """Return what `body` says. Whatever it is, this never raises: a bad body is an Envelope that says what is wrong."""
    if body is None:
        return Envelope(None, why="there is no JSON object")
    try:
        parsed: object = json.loads(body) if isinstance(body, (str, bytes, bytearray)) else body
    except (ValueError, RecursionError):
        return Envelope(None, why=f"the body is no JSON ({len(body)} long)")
    if not isinstance(parsed, Mapping):
        return Envelope(None, why=f"the body is no JSON object but {type(parsed).__name__}")
    fields = {str(name): value for name, value in cast("Mapping[object, object]", parsed).items()}
    consumed = _consumed(fields.get("tokensConsumed"))
    try:
        return Envelope(_reading(fields), consumed)
    except BadReading as bad:
        return Envelope(None, consumed, str(bad))


def _reading(fields: Mapping[str, object]) -> Reading:
    if fields.get("tokensLeft") is None:
        msg = "there is no tokensLeft"
        raise BadReading(msg)
    rate = _number(fields, "refillRate")
    if rate is not None and rate <= 0 and (fields.get("error") is not None or not fields.get("tokensLeft")):
        # A bad key's answer has all token fields 0: it knows nothing of the bucket.
        msg = f"refillRate is {rate:g} beside an error or an empty envelope: no reading"
        raise BadReading(msg)
    refill_in, timestamp = _number(fields, "refillIn"), _number(fields, "timestamp")
    return Reading(
        _whole("tokensLeft", fields.get("tokensLeft")),
        next_refill_in=None if refill_in is None else refill_in / _MILLISECONDS,
        refill=None if rate is None else max(0.0, rate - (_number(fields, "tokenFlowReduction") or 0.0)),
        # At refill 0 the plan is gone, not its capacity: keep what was known.
        capacity=None if not rate else CAPACITY_MINUTES * _whole("refillRate", rate),
        server_time=None if timestamp is None else timestamp / _MILLISECONDS,
    )


def _number(fields: Mapping[str, object], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < LIMIT:
        msg = f"{name} is no number from 0 to 2**52"
        raise BadReading(msg)
    return float(value)


def _whole(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} is no whole number"
        raise BadReading(msg)
    return value


def _consumed(value: object) -> int | None:
    try:
        tokens = _whole("tokensConsumed", value)
    except BadReading:
        return None
    return tokens if 0 <= tokens < LIMIT else None
