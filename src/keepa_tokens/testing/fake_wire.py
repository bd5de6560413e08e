"""What goes over the wire between a client and the fake server: calls, answers, and all that can go wrong with one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from .fake_answers import JsonObject

Fault = Literal[
    "429",
    "429_bare",
    "500",
    "503",
    "html",
    "empty",
    "timeout_charged",
    "timeout_uncharged",
    "disconnect_charged",
    "disconnect_uncharged",
    "error200",
    "zero_envelope",
    "no_envelope",
]
"""What goes wrong with one call: see docs/reference/api/testing.md. A call that isn't admitted costs nothing."""

Verdict = Literal["run", "refused", "bad_key", "malformed", "unknown_path"]

_REJECTED: Final = {
    "refused": (429, "notEnoughTokens"),
    "bad_key": (400, "invalidParameter"),
    "malformed": (400, "invalidParameter"),
    "unknown_path": (404, "notFound"),
}

_PAGES: Final = {
    "html": (502, "Bad Gateway"),
    "429_bare": (429, "Too Many Requests"),
    "down": (503, "Service Unavailable"),
}


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: `body` is the parsed JSON object, None where there is none; `content` is what goes over the wire."""

    status: int
    body: JsonObject | None
    content: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A call that has arrived and not been answered: `cost` in tokens, and `due`, the part not charged yet."""

    number: int
    path: str
    params: Mapping[str, str] = field(repr=False)  # the API key is among them
    verdict: Verdict
    message: str
    fault: Fault | Literal["down"] | None
    cost: int
    due: int
    began_us: int
    headers: Mapping[str, str]


def rejection(ticket: Ticket, envelope: JsonObject) -> Response:
    """Return the answer to a call that was not admitted."""
    status, kind = _REJECTED[ticket.verdict]
    known = _zeroed(envelope) if ticket.verdict == "bad_key" else envelope
    return json_answer(status, known | _error(kind, ticket.message))


def faulty(ticket: Ticket, fault: Fault | Literal["down"], envelope: JsonObject, body: JsonObject | None) -> Response:
    """Return the answer to a call with a fault. body: the answer without its envelope.

    Raises TimeoutError or ConnectionError if the fault leaves no answer.
    """
    match fault:
        case "timeout_charged" | "timeout_uncharged":
            raise TimeoutError(f"no answer from {ticket.path}")
        case "disconnect_charged" | "disconnect_uncharged":
            raise ConnectionError(f"connection lost during {ticket.path}")
        case "html" | "429_bare" | "down":
            return _html(*_PAGES[fault])
        case "empty":
            return Response(200, None, b"", {"Content-Type": "application/json"})
        case "no_envelope":
            return json_answer(400, {}) if body is None else json_answer(200, body)
        case "zero_envelope":
            return json_answer(400, _zeroed(envelope) | _error("invalidParameter", "request rejected"))
        case "error200":
            return json_answer(200, envelope | _error("invalidParameter", "request rejected"))
        case "429" | "500" | "503":
            kind = "tooManyRequests" if fault == "429" else "internalServerError"
            return json_answer(int(fault), envelope | _error(kind, "try again later"))


def _zeroed(envelope: JsonObject) -> JsonObject:
    """Return the envelope of an answer that says nothing of the bucket."""
    return dict.fromkeys(envelope, 0) | {"timestamp": envelope["timestamp"], "tokenFlowReduction": 0.0}


def _error(kind: str, message: str) -> JsonObject:
    return {"error": {"type": kind, "message": message, "details": ""}}


def json_answer(status: int, body: JsonObject) -> Response:
    """Return an answer with a JSON body."""
    content = json.dumps(body, separators=(",", ":")).encode()
    return Response(status, body, content, {"Content-Type": "application/json;charset=UTF-8"})


def _html(status: int, title: str) -> Response:
    content = f"<html><head><title>{status} {title}</title></head><body><h1>{title}</h1></body></html>".encode()
    return Response(status, None, content, {"Content-Type": "text/html"})
