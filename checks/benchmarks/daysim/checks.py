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


def _good(row: Row) -> bool:
    return row.refused_at_most == 0


def _limit(row: Row, _: Result) -> float:
    return row.refused_at_most or 0.0


def _refused(_: Row, result: Result) -> float:
    return result.share_refused


def _recovery(_: Row, result: Result) -> float:
    return float("inf") if result.recovery is None else result.recovery


def _recovered_by(row: Row, result: Result) -> float:
    bound = result.ideal + STEP_AS_PROJECTED + SLACK
    if row.event == "crash":
        # What the crashed call cost nobody knows: its estimate stays set aside until the hold runs out.
        return max(bound, HOLD_FOR + STEP_AS_PROJECTED + SLACK)
    if row.event == "token down, flush":
        return max(result.ideal, CLAIM + STEP_AS_PROJECTED) + STEP_AS_PROJECTED + SLACK
    return bound


CHECKS: Final[Sequence[Check]] = (
    Check(
        "at most 1% of what was minted is left unspent",
        lambda _: True,
        lambda _, result: 1 - result.share_used,
        lambda _, __: 0.01,
        "%",
    ),
    Check(
        "nothing is wasted at the cap",
        lambda _: True,
        lambda _, result: result.wasted,
        lambda _, __: 0,
        "tokens",
    ),
    Check(
        "no call is refused with good estimates and nobody else spending",
        _good,
        _refused,
        _limit,
        "%",
    ),
    Check(
        "at most 1% of the calls are refused beside an outside spender",
        lambda row: row.outside > 0,
        _refused,
        _limit,
        "%",
    ),
    Check(
        "at most 3% of the calls are refused with estimates off by up to 5x, answers lost or the plan changed",
        lambda row: not _good(row) and not row.outside and row.refused_at_most is not None,
        _refused,
        _limit,
        "%",
    ),
    Check(
        "while answers flow nobody probes but for the first balance",
        lambda row: row.steady,
        lambda _, result: result.probes,
        lambda _, __: 1,
    ),
    Check(
        "at most 6 probes in any hour, however many workers starve",
        lambda _: True,
        lambda _, result: result.busiest_hour,
        lambda _, __: 6,
    ),
    Check(
        "back after the refill from the true balance, at most one step and an answered probe later",
        lambda row: row.event in {"timestamp lost", "flush", "crash"},
        _recovery,
        _recovered_by,
        "s",
    ),
    Check(
        "with /token down and the state lost: back within the refill from 0",
        lambda row: row.event == "token down, flush",
        _recovery,
        _recovered_by,
        "s",
    ),
    Check(
        "every other event is over when the refill is there",
        lambda row: row.event in {"downgrade", "token down", "server clock", "no refill"},
        _recovery,
        lambda row, result: _recovered_by(row, result) + (600 if row.event == "no refill" else 0),
        "s",
    ),
    Check(
        "of 64 workers none waits longer than twice the time that the tokens asked for before it take",
        lambda row: row.workers == CROWD,
        lambda _, result: result.longest_wait / max(STEP_AS_PROJECTED, result.its_turn),
        lambda _, __: 2,
        "times",
    ),
)


def failures(results: Results) -> list[str]:
    """Return what does not hold, a line each."""
    return [f"{check.name}: {failure}" for check in CHECKS for failure in check.failures(results)]
