"""What must hold of `KeepaSync` on every simulated day, as named checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from checks.benchmarks.daysim.rows import Row
from checks.benchmarks.daysim.world import Result

CLAIM: Final = 20.0
"""Seconds until a probe that never answers counts as failed."""

HOLD_FOR: Final = 120.0
"""Seconds until the hold of a crashed worker runs out."""

STEP_AS_PROJECTED: Final = 60.5
SLACK: Final = 6.0
"""An answered probe, the jitter of who waits, and the call itself."""

CROWD: Final = 64

Results = Mapping[str, tuple[Row, Result]]


@dataclass(frozen=True, slots=True)
class Check:
    """A demand on some rows. measured and bound: of one row; it holds if the first isn't above the second."""

    name: str
    concerns: Callable[[Row], bool]
    measured: Callable[[Row, Result], float]
    bound: Callable[[Row, Result], float]
    unit: str = ""

    def failures(self, results: Results) -> list[str]:
        """Return the rows on which it does not hold, with the figures."""
        return [
            f"{row.name}: {self._text(self.measured(row, result))}, allowed {self._text(self.bound(row, result))}"
            for row, result in results.values()
            if self.concerns(row) and self.measured(row, result) > self.bound(row, result)
        ]

    def worst(self, results: Results) -> str:
        """Return the largest figure that was measured."""
        concerned = [self.measured(row, result) for row, result in results.values() if self.concerns(row)]
        return self._text(max(concerned)) if concerned else "-"

    def _text(self, value: float) -> str:
        if self.unit == "times":
            return f"{value:.2f} times"
        return f"{100 * value:.2f}%" if self.unit == "%" else f"{value:.0f}{self.unit and ' ' + self.unit}"


def _everywhere(_: Row) -> bool:
    return True


def _at_most(bound: float) -> Callable[[Row, Result], float]:
    return lambda _, __: bound


def _refusals(name: str, concerns: Callable[[Row], bool]) -> Check:
    return Check(name, concerns, lambda _, result: result.share_refused, lambda row, _: row.refused_at_most or 0.0, "%")


def _recovery(name: str, events: set[str]) -> Check:
    return Check(
        name,
        lambda row: row.event in events,
        lambda _, result: float("inf") if result.recovery is None else result.recovery,
        _recovered_by,
        "s",
    )


def _recovered_by(row: Row, result: Result) -> float:
    step = STEP_AS_PROJECTED + SLACK
    match row.event:
        case "crash":
            # What the crashed call cost nobody knows: its estimate stays set aside until the hold runs out.
            return max(result.ideal + step, HOLD_FOR + step)
        case "token down, flush":
            return max(result.ideal, CLAIM + STEP_AS_PROJECTED) + step
        case "no refill":
            return result.ideal + step + 600
        case _:
            return result.ideal + step


CHECKS: Final[Sequence[Check]] = (
    Check(
        "at most 1% of what was minted is left unspent",
        _everywhere,
        lambda _, result: 1 - result.share_used,
        _at_most(0.01),
        "%",
    ),
    Check("nothing is wasted at the cap", _everywhere, lambda _, result: result.wasted, _at_most(0), "tokens"),
    _refusals("no call is refused with good estimates and nobody else spending", lambda row: row.refused_at_most == 0),
    _refusals("at most 1% of the calls are refused beside an outside spender", lambda row: row.outside > 0),
    _refusals(
        "at most 3% of the calls are refused with estimates off by up to 5x, answers lost or the plan changed",
        lambda row: bool(row.refused_at_most) and not row.outside,
    ),
    Check(
        "while answers flow nobody probes but for the first balance",
        lambda row: row.steady,
        lambda _, result: result.probes,
        _at_most(1),
    ),
    Check(
        "at most 6 probes in any hour, however many workers starve",
        _everywhere,
        lambda _, result: result.busiest_hour,
        _at_most(6),
    ),
    _recovery(
        "back after the refill from the true balance, at most one step and an answered probe later",
        {"timestamp lost", "flush", "crash"},
    ),
    _recovery("with /token down and the state lost: back within the refill from 0", {"token down, flush"}),
    _recovery(
        "every other event is over when the refill is there", {"downgrade", "token down", "server clock", "no refill"}
    ),
    Check(
        "of 64 workers none waits longer than twice the time that the tokens asked for before it take",
        lambda row: row.workers == CROWD,
        lambda _, result: result.longest_wait / max(STEP_AS_PROJECTED, result.its_turn),
        _at_most(2),
        "times",
    ),
)


def failures(results: Results) -> list[str]:
    """Return what does not hold, a line each."""
    return [f"{check.name}: {failure}" for check in CHECKS for failure in check.failures(results)]
