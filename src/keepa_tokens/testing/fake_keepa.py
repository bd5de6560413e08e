"""A deterministic model of Keepa's server: the bucket, the envelope, the endpoints, and everything that goes wrong.

The rules, in the order of the code:

1. The server has a time of its own: it moves forward with the clock, and ignores a step back.
2. Tokens come in steps: the whole rate at once, about once a minute. The period varies, and the first step may come at
   any moment. Tokens that find the bucket full are lost. At a net refill of 0 or less nothing comes.
3. A paid call is admitted while the balance is above 0, whatever it costs. A refusal is HTTP 429 and costs nothing.
4. The cost is charged when the call completes (or when it is admitted, by `charge`), and may take the balance below 0.
5. The envelope tells the truth at the moment the answer is made.

`FakeKeepaServer` serves the same model by HTTP: `python -m keepa_tokens.testing.fake_keepa --port 0 --speed 60`.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, Literal, get_args

from ..clock import Clock
from .clock import ManualClock
from .fake_answers import ENDPOINTS, GREY_PIXEL, KEEPA_EPOCH_MINUTES, JsonObject, World, adds_tracking
from .fake_wire import Fault, Response, Ticket, Verdict, faulty, json_answer, rejection

__all__ = ["FakeKeepa", "Fault", "Response", "Ticket"]

Charge = Literal["completion", "admission"]
CostHook = Callable[[str, Mapping[str, str]], int | None]

HOURS_OF_CAPACITY_IN_MINUTES: Final = 60
IMAGE_CACHE_US: Final = 90 * 60 * 1_000_000
STEP_BY_STEP: Final = 1000  # steps; more are made in one go: after so many the bucket is full anyway
CHARGED_FAULTS: Final = frozenset({"empty", "timeout_charged", "disconnect_charged", "no_envelope"})
DEFAULT_PERIOD: Final = (60.19, 60.45)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A fault that waits for its call."""

    kind: Fault | Literal["down"] | None
    path: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class FakeKeepa:
    """Keepa's server for one key. All counters are in tokens or calls since the start; thread-safe.

    refill_rate: tokens a minute; capacity is 60 times that. initial: the first balance (default: full).
    period: seconds between refills, a number or a range to draw it from. charge: when a call's cost leaves the balance.
    key: the only valid API key; None takes any. cost: a hook `(path, params) -> tokens` that overrides a price, unless
    it returns None. latency: seconds a call takes, a number or a range. products_per_code, query_matches: how many
    products a code or a query finds, on which its cost depends. epoch: the server's Unix time when it starts.
    """

    def __init__(
        self,
        *,
        refill_rate: int = 5,
        initial: int | None = None,
        clock: Clock | None = None,
        seed: int = 0,
        period: float | tuple[float, float] = DEFAULT_PERIOD,
        charge: Charge = "completion",
        key: str | None = None,
        cost: CostHook | None = None,
        latency: float | tuple[float, float] = 0.0,
        products_per_code: tuple[int, int] = (1, 3),
        query_matches: int = 1000,
        epoch: float = 1_780_000_000.0,
    ) -> None:
        self.key = key
        self.charge: Charge = charge
        self.cost = cost
        self.latency = latency
        self.products_per_code = products_per_code
        self.query_matches = query_matches
        self.server_clock_offset = 0.0
        self.token_down = False
        self.minted = 0
        self.wasted = 0
        self.spent = 0
        self.spent_outside = 0
        self.admitted = 0
        self.refused = 0
        self.token_calls = 0
        self._lock = threading.RLock()
        self._clock: Clock = clock if clock is not None else ManualClock()
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 - a simulation, repeatable by its seed
        self._period_us = _range_us(period)
        self._epoch_us = round(epoch * 1_000_000)
        self._rate = _rate(refill_rate)
        self._reduction = Fraction(0)
        self._carry = Fraction(0)
        self._balance = self.capacity if initial is None else initial
        self._seen_us = self._clock.now_us()
        self._time_us = 0
        # The first step may come at any moment after the start.
        self._next_refill_us = self._random.randint(1, self._draw_period_us())
        self._numbers = itertools.count(1)
        self._open: dict[int, Ticket] = {}
        self._faults: deque[_Planned] = deque()
        self._images: dict[tuple[tuple[str, str], ...], int] = {}

    # --- the truth

    @property
    def balance(self) -> int:
        """The tokens there are now."""
        with self._lock:
            self._catch_up()
            return self._balance

    @property
    def capacity(self) -> int:
        """The tokens a full bucket holds: an hour's refill."""
        return HOURS_OF_CAPACITY_IN_MINUTES * self._rate

    @property
    def refill_rate(self) -> int:
        """Tokens a minute by the plan, before any flow reduction."""
        return self._rate

    @property
    def refill_in(self) -> float:
        """Seconds to the next refill, exactly."""
        with self._lock:
            self._catch_up()
            return (self._next_refill_us - self._time_us) / 1_000_000

    @property
    def in_flight(self) -> int:
        """The calls that have begun and not finished."""
        with self._lock:
            return len(self._open)

    @property
    def clock(self) -> Clock:
        """The clock that the server's time follows."""
        return self._clock

    # --- switches

    def follow(self, clock: Clock) -> None:
        """Take the passing of time from another clock from now on; the server's own time goes on without a jump."""
        with self._lock:
            self._catch_up()
            self._clock = clock
            self._seen_us = clock.now_us()

    def set_plan(self, refill_rate: int) -> None:
        """Change the plan to `refill_rate` tokens a minute; the balance stays, even above the new capacity."""
        with self._lock:
            self._catch_up()
            self._rate = _rate(refill_rate)

    def set_flow_reduction(self, tokens_per_min: float) -> None:
        """Let product tracking take `tokens_per_min` off every refill."""
        with self._lock:
            self._catch_up()
            self._reduction = Fraction(str(tokens_per_min))

    def spend_outside(self, tokens: int) -> None:
        """Let another program that uses the same key spend `tokens`, below 0 if it must."""
        with self._lock:
            self._catch_up()
            self._balance -= tokens
            self.spent_outside += tokens

    def fail_next(
        self, n: int = 1, kind: Fault = "500", *, path: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Queue a fault for the next `n` calls, of one path only if given; /token counts as a call like any other.

        headers: what its answer carries besides, such as a `Retry-After`.
        """
        if kind not in get_args(Fault):
            raise ValueError(f"unknown fault {kind!r}; known: {', '.join(get_args(Fault))}")
        given: object = n  # nobody may have checked
        if isinstance(given, str):
            raise TypeError(f"n is the number of calls, the fault is the other one: kind={n!r}")
        with self._lock:
            only = None if path is None else _normal(path)
            self._faults.extend(_Planned(kind, only, headers or {}) for _ in range(n))

    # --- time and refill

    def _catch_up(self) -> None:
        now_us = self._clock.now_us()
        self._time_us += max(0, now_us - self._seen_us)
        self._seen_us = now_us
        longest_us = self._period_us[1]
        behind = (self._time_us - self._next_refill_us) // longest_us
        if behind > STEP_BY_STEP:
            self._mint(behind)
            self._next_refill_us += behind * longest_us
        while self._next_refill_us <= self._time_us:
            self._mint(1)
            self._next_refill_us += self._draw_period_us()

    def _mint(self, steps: int) -> None:
        """Add the tokens of some steps; a part of a token, from the flow reduction, is carried to the next step."""
        fresh = self._carry + max(Fraction(0), self._rate - self._reduction) * steps
        tokens = int(fresh)
        self._carry = fresh - tokens
        kept = min(tokens, max(0, self.capacity - self._balance))
        self._balance += kept
        self.minted += tokens
        self.wasted += tokens - kept

    def _draw_period_us(self) -> int:
        return self._random.randint(*self._period_us)

    # --- a call arrives

    def begin(self, path: str, params: Mapping[str, object] | None = None) -> Ticket:
        """Let a call arrive, and decide now whether it is admitted. The answer comes with `finish`."""
        path = _normal(path)
        asked = {name: _text(value) for name, value in (params or {}).items()}
        with self._lock:
            self._catch_up()
            self.token_calls += path == "/token"
            planned = self._fault_for(path)
            fault = planned.kind
            verdict, message = self._judge(path, asked)
            charged = verdict == "run" and (fault is None or fault in CHARGED_FAULTS)
            cost = self._price(path, asked) if charged else 0
            self.admitted += charged and not _is_free(path, asked)
            self.refused += verdict == "refused" and fault is None
            due = 0 if self.charge == "admission" else cost
            self._take(cost - due)
            number = next(self._numbers)
            ticket = Ticket(number, path, asked, verdict, message, fault, cost, due, self._time_us, planned.headers)
            self._open[ticket.number] = ticket
            return ticket

    def _fault_for(self, path: str) -> _Planned:
        if path == "/token" and self.token_down:
            return _Planned("down")
        for place, planned in enumerate(self._faults):
            if planned.path in (None, path):
                del self._faults[place]
                return planned
        return _Planned(None)

    def _judge(self, path: str, params: Mapping[str, str]) -> tuple[Verdict, str]:
        if self.key is not None and params.get("key") != self.key:
            return "bad_key", "the API key is not valid"
        endpoint = ENDPOINTS.get(path)
        if endpoint is None:
            return "unknown_path", f"no such path: {path}"
        if (wrong := endpoint.fault(params)) is not None:
            return "malformed", wrong
        if self._balance <= 0 and not _is_free(path, params):
            return "refused", "not enough tokens"
        return "run", ""

    def _price(self, path: str, params: Mapping[str, str]) -> int:
        asked = self.cost(path, params) if self.cost is not None else None
        if asked is not None:
            return asked
        if path == "/graphimage" and self._is_cached(params):
            return 0
        return ENDPOINTS[path].cost(params, self._world())

    def _is_cached(self, params: Mapping[str, str]) -> bool:
        """Return whether the same image was paid for within 90 minutes; if not, remember that it is paid for now."""
        image = tuple(sorted(params.items()))
        paid_us = self._images.get(image)
        if paid_us is not None and self._time_us - paid_us < IMAGE_CACHE_US:
            return True
        self._images[image] = self._time_us
        return False

    def _take(self, tokens: int) -> None:
        self._balance -= tokens
        self.spent += tokens

    def _world(self) -> World:
        minute = self._unix_ms() // 60_000 - KEEPA_EPOCH_MINUTES
        return World(self._seed, self.products_per_code, self.query_matches, minute)

    # --- a call completes

    def finish(self, ticket: Ticket) -> Response:
        """Complete a call: charge what is due and answer with the balance of this moment.

        Raises TimeoutError or ConnectionError where a fault loses the answer, ValueError for a ticket already finished.
        """
        with self._lock:
            if self._open.pop(ticket.number, None) is None:
                raise ValueError(f"call {ticket.number} is not in flight")
            self._catch_up()
            self._take(ticket.due)
            envelope = self._envelope(ticket)
            if ticket.fault is not None:
                body = ENDPOINTS[ticket.path].body(ticket.params, self._world()) if ticket.verdict == "run" else None
                answer = faulty(ticket, ticket.fault, envelope, body)
                return replace(answer, headers={**answer.headers, **ticket.headers})
            if ticket.verdict != "run":
                return rejection(ticket, envelope)
            if ticket.path == "/graphimage":
                return Response(200, None, GREY_PIXEL, {"Content-Type": "image/png"})
            return json_answer(200, envelope | ENDPOINTS[ticket.path].body(ticket.params, self._world()))

    def _envelope(self, ticket: Ticket) -> JsonObject:
        return {
            "timestamp": self._unix_ms(),
            "tokensLeft": self._balance,
            "refillIn": -(-(self._next_refill_us - self._time_us) // 1000),  # rounded up: never earlier than the truth
            "refillRate": self._rate,
            "tokenFlowReduction": float(self._reduction),
            "tokensConsumed": ticket.cost,
            "processingTimeInMs": (self._time_us - ticket.began_us) // 1000,
        }

    def _unix_ms(self) -> int:
        return (self._epoch_us + self._time_us + round(self.server_clock_offset * 1_000_000)) // 1000

    # --- whole calls

    def request(self, path: str, params: Mapping[str, object] | None = None) -> Response:
        """Make a whole call: begin, sleep the latency on the clock, finish."""
        ticket = self.begin(path, params)
        if (seconds := self.draw_latency()) > 0:
            self._clock.sleep(seconds)
        return self.finish(ticket)

    async def arequest(self, path: str, params: Mapping[str, object] | None = None) -> Response:
        """Make a whole call without blocking the event loop; a cancelled caller's call is still charged."""
        ticket = self.begin(path, params)
        try:
            if (seconds := self.draw_latency()) > 0:
                await self._clock.asleep(seconds)
        except BaseException:
            with self._lock:
                self._catch_up()
                del self._open[ticket.number]
                self._take(ticket.due)
            raise
        return self.finish(ticket)

    def draw_latency(self) -> float:
        """Return the seconds that the next call takes."""
        latency = self.latency
        if isinstance(latency, int | float):
            return latency
        with self._lock:
            return self._random.uniform(*latency)

    def probe(self) -> tuple[int, JsonObject | None]:
        """Ask GET /token: the status and the parsed body, None where there is none."""
        response = self.request("/token", {"key": self.key})
        return response.status, response.body

    async def aprobe(self) -> tuple[int, JsonObject | None]:
        """Ask GET /token without blocking the event loop."""
        response = await self.arequest("/token", {"key": self.key})
        return response.status, response.body

    def __repr__(self) -> str:
        return f"FakeKeepa(refill_rate={self._rate}, balance={self.balance}, in_flight={self.in_flight})"


def _range_us(seconds: float | tuple[float, float]) -> tuple[int, int]:
    low, high = (seconds, seconds) if isinstance(seconds, int | float) else seconds
    if not 0 < low <= high:
        raise ValueError(f"period={seconds!r} must be above 0, with the lower end first")
    return max(1, round(low * 1_000_000)), max(1, round(high * 1_000_000))


def _rate(refill_rate: int) -> int:
    if refill_rate < 0:
        raise ValueError(f"refill_rate={refill_rate!r} must be at least 0")
    return refill_rate


def _normal(path: str) -> str:
    return "/" + path.strip("/")


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _is_free(path: str, params: Mapping[str, str]) -> bool:
    return path == "/token" or (path == "/tracking" and not adds_tracking(params))


if __name__ == "__main__":
    from .fake_server import main

    raise SystemExit(main())
