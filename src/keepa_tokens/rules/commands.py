"""What can be asked of a bucket, as data: a storage applies one command to the state in one atomic step.

Times are whole microseconds, tokens whole numbers. Ids make a repeated command count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from ..quota import Quota
from ..units import NEVER, PROBE_AFTER_US, seconds
from .decision import Decision, Reason, Snapshot
from .reading import Reading
from .state import Hold


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take tokens, now or (on a plain bucket) in a place up to `wait_us` ahead.

    keep: tokens to leave for others. wait_us: the longest wait for a place; None: now or not at all. ticket: stand in
    line by this id if there is no place and there are not enough tokens; None: don't.
    probe_after_us: a refusal that rests on a reading older than this claims the probe; None: never claim.
    """

    tokens: int
    keep: int = 0
    wait_us: int | None = None
    probe_after_us: int | None = PROBE_AFTER_US
    ticket: str | None = None


@dataclass(frozen=True, slots=True)
class Reserve:
    """Set tokens aside under `id` for `hold_for_us`, until they are settled or cancelled; never in a place ahead.

    On a plain bucket they are taken at once, and the hold remembers how much. scout: if this is refused but gets the
    claim on the probe, let it through: its answer will carry the truth. label: whose hold it is, for people. arrived:
    the number in line that its caller had before the server refused its call; None: it is a new one. The rest as in
    `Acquire`.
    """

    id: str
    tokens: int
    hold_for_us: int
    keep: int = 0
    probe_after_us: int | None = PROBE_AFTER_US
    scout: bool = False
    label: str = ""
    ticket: str | None = None
    arrived: int | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """End the hold `id`: its call cost `actual` tokens (None: what was set aside). reading: of its answer, if any.

    refused: the server refused the call for want of tokens, so its balance was not above 0. label: whose hold it is,
    for the event.
    """

    id: str
    actual: int | None = None
    reading: Reading | None = None
    refused: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the hold `id` of a call that was never sent: its tokens are free again. A ticket `id` leaves the line."""

    id: str


@dataclass(frozen=True, slots=True)
class Refund:
    """Give back tokens that were taken and not used, once by `id`, up to capacity.

    own_us: the instant of the place for which they were taken; None: it is past. With places ahead a plain bucket gives
    back less (rule 6).
    """

    id: str
    tokens: int
    own_us: int | None = None


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Take a `reading` that the server reported outside any hold: to a probe, or to somebody else."""

    reading: Reading


@dataclass(frozen=True, slots=True)
class ClaimProbe:
    """Claim the right to ask the server now. Given to one at a time; a claim always expires."""


@dataclass(frozen=True, slots=True)
class Unclaim:
    """Give a claim on the probe back unused. until_us: which one, by `Outcome.claimed_until_us`.

    The first time after a reading the claim is free at once; after that it counts as a failed probe.
    """

    until_us: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Refuse every request for `for_us`, a day at most; 0 ends a pause. Settling, cancelling and readings go on."""

    for_us: int


@dataclass(frozen=True, slots=True)
class Peek:
    """Look at the bucket as a request for `tokens` that leaves `keep` would find it. Takes nothing.

    What is due anyway is stored: repairs, the end of holds and tickets, the caller's terms. arrived: the number in line
    of the request; None: it is a new one.
    """

    tokens: int = 1
    keep: int = 0
    probe_after_us: int | None = PROBE_AFTER_US
    arrived: int | None = None


Command: TypeAlias = Acquire | Reserve | Settle | Cancel | Refund | Reconcile | ClaimProbe | Unclaim | Pause | Peek


class Verdict(StrEnum):
    """What became of a reading."""

    NONE = "NONE"
    TAKEN = "TAKEN"
    STALE = "STALE"


@dataclass(slots=True)
class Outcome:
    """The outcome of a command."""

    now_us: int = 0
    """The bucket's time of the step."""
    balance: int | None = None
    """Tokens after the step; None: unknown."""
    granted: bool = False
    """Tokens were taken or set aside; of a Peek: they would have been."""
    reason: Reason = Reason.GRANTED
    """Why it was refused; GRANTED where it wasn't."""
    retry_after_us: int = 0
    """How long until the caller should ask again; NEVER: no refill will bring the tokens."""
    place_us: int = 0
    """How long the caller must wait for the place that it was given."""
    held: int = 0
    """Tokens of calls in flight."""
    open: int = 0
    """How many calls are in flight."""
    closed: bool = False
    """A recharge is under way."""
    kept_back: int = 0
    """Tokens left to somebody else who spends."""
    arrived: int | None = None
    """The number in line that the caller has, or that its grant gave up; of a call that the server refused, its own."""
    claimed_until_us: int | None = None
    """The caller was given the claim on the probe, until then."""
    scout: bool = False
    """The request was let through as the probe."""
    found: bool = True
    """Whether the hold was there, the refund counted, or the claim was the caller's."""
    reading: Verdict = Verdict.NONE
    """What became of the reading."""
    drift: int | None = None
    """Reported minus projected balance, of a reading taken."""
    repaired: tuple[str, ...] = ()
    """Names of stored fields that were mended."""
    ran_out: tuple[Hold, ...] = ()
    """Holds that nobody settled in time and that ran out in this step."""
    terms: tuple[Quota, Quota] | None = None
    """The terms before and after, where the caller's replaced those stored."""
    snapshot: Snapshot | None = None
    """Only of Peek and Reconcile."""

    @property
    def probe(self) -> bool:
        """Whether the caller was given the claim on the probe."""
        return self.claimed_until_us is not None

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
