"""What can be asked of a bucket, as data: a storage carries one command to the state in one atomic step.

Times are whole microseconds, tokens whole numbers. Ids make a repeated command count once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from ..units import NEVER, PROBE_AFTER_US, seconds
from .decision import Decision, Reason, Snapshot
from .reading import Reading

__all__ = [
    "Acquire",
    "Cancel",
    "ClaimProbe",
    "Command",
    "Outcome",
    "Peek",
    "Reconcile",
    "Refund",
    "Reserve",
    "Settle",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take tokens, now or (on a plain bucket) in a place up to `wait_us` ahead.

    keep: tokens to leave for others. wait_us: the longest wait for a place; None: now or not at all.
    probe_after_us: a refusal that rests on a reading older than this claims the probe; None: never claim.
    """

    tokens: int
    keep: int = 0
    wait_us: int | None = None
    probe_after_us: int | None = PROBE_AFTER_US


@dataclass(frozen=True, slots=True)
class Reserve:
    """Set tokens aside under `id` for `hold_for_us`, until they are settled or cancelled; the rest as in `Acquire`.

    scout: if this is refused but gets the claim on the probe, let it through: its answer will carry the truth.
    """

    id: str
    tokens: int
    hold_for_us: int
    keep: int = 0
    wait_us: int | None = None
    probe_after_us: int | None = PROBE_AFTER_US
    scout: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """End the hold `id`: it cost `actual` tokens (None: what was set aside), and the answer carried `reading` or not.

    refused: the server refused the call for want of tokens, so its balance was not above 0.
    """

    id: str
    actual: int | None = None
    reading: Reading | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the hold `id`: it was certainly never sent. Its tokens are free again."""

    id: str


@dataclass(frozen=True, slots=True)
class Refund:
    """Give tokens back, up to capacity, once by `id`. issued_us: the bucket's time when it was first sent."""

    id: str
    tokens: int
    issued_us: int


@dataclass(frozen=True, slots=True)
class Reconcile:
    """The server reported `reading` outside any hold: a probe's, or one seen elsewhere."""

    reading: Reading


@dataclass(frozen=True, slots=True)
class ClaimProbe:
    """Claim the right to ask the server now. Given to one at a time; a claim always expires."""


@dataclass(frozen=True, slots=True)
class Peek:
    """Look, as a request for `tokens` beside `keep` would see it. Writes nothing but repairs."""

    tokens: int = 1
    keep: int = 0
    probe_after_us: int | None = PROBE_AFTER_US


Command: TypeAlias = Acquire | Reserve | Settle | Cancel | Refund | Reconcile | ClaimProbe | Peek


class Verdict(StrEnum):
    """What became of a reading."""

    NONE = "NONE"
    TAKEN = "TAKEN"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to.

    now_us: the bucket's time of the step. granted: tokens were taken or set aside. balance: after the step;
    None: unknown. retry_after_us: NEVER: no refill will bring it. place_us: how long the caller must wait for
    its place. kept_back: tokens left to somebody else who spends. probe: the caller has been given the claim on the
    probe. scout: it was let through as the probe. found: the hold was there, or the refund counted. reading: what
    became of it. drift: reported minus projected balance. snapshot: of Peek and Reconcile.
    """

    now_us: int
    balance: int | None
    granted: bool = False
    reason: Reason = Reason.GRANTED
    retry_after_us: int = 0
    place_us: int = 0
    closed: bool = False
    kept_back: int = 0
    probe: bool = False
    scout: bool = False
    found: bool = True
    reading: Verdict = Verdict.NONE
    drift: int | None = None
    repaired: tuple[str, ...] = ()
    snapshot: Snapshot | None = field(default=None)

    def decision(self, waited_us: int = 0) -> Decision:
        """Return what the caller is told."""
        return Decision(
            granted=self.granted,
            reason=self.reason,
            balance=self.balance,
            retry_after=seconds(min(self.retry_after_us, NEVER)),
            waited=seconds(waited_us),
            repaired=self.repaired,
            probe=self.probe,
        )
