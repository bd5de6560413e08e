"""Takes over the state of a hand-made manager in one step, as a command and as a function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError
from ..keepa.quota import keepa_quota
from ..rules.state import BucketState
from ..units import MICROSECONDS
from .look import Look
from .manager import Manager
from .place import Place

REFILL_RATE: Final = 5
LIFETIME: Final = 86_400.0
"""Seconds for which an adopted bucket waits for its first worker, at least."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What taking over comes to. look: the new bucket. first_call_in: seconds, if the server can't be asked.

    notes: what was left out and why.
    """

    look: Look
    first_call_in: float
    balance: int | None
    notes: tuple[str, ...]


def adopt(place: Place, key: str, manager: Manager, *, refill_rate: int | None = None, write: bool = False) -> Adoption:
    """Make the bucket `key` of what a hand-made manager had, or only say what it would be; the old keys stay.

    refill_rate: tokens a minute (default: the manager's, else 5; the first answer of the server corrects it). The
    balance counts from the manager's own time, or from now where that is lost: nothing is made up. The first worker
    that finds too little asks the server. Raises ConfigError if there is a bucket of that key already, and
    StorageUnavailable.
    """
    plan = plan_adoption(place.now_us(), key, manager, refill_rate)
    if place.fields(key) is not None:
        raise ConfigError(f"there is a bucket {key!r} already: `keepa-tokens reset` it first. Nothing was changed.")
    if write:
        snapshot = plan.look.snapshot()
        full_in = 0.0 if snapshot is None else min(snapshot.full_in, 30 * LIFETIME)
        if not place.put(key, plan.look.fields, full_in + LIFETIME):
            raise ConfigError(f"somebody made a bucket {key!r} in this moment. Nothing was changed.")
    return plan


def plan_adoption(now_us: int, key: str, manager: Manager, refill_rate: int | None = None) -> Adoption:
    """Return what taking over at `now_us` of the storage's time comes to. Pure."""
    notes = list(manager.notes)
    quota = keepa_quota(refill_rate or manager.rate or REFILL_RATE)
    if refill_rate is None and manager.rate is None:
        notes.append(f"no refill rate is known: {REFILL_RATE} a minute until the server's first answer")
    if manager.recharge_to is not None and manager.recharge_to > quota.capacity:
        notes.append(f"it waited to recharge to {manager.recharge_to:,}, but its bucket holds {quota.capacity:,}")
    elif manager.recharge_to is not None:
        notes.append(f"it waited to recharge to {manager.recharge_to:,}: for the same give workers recharge_to=")
    refilled_at = now_us
    if manager.refilled_at is not None:
        refilled_at = min(now_us, round(manager.refilled_at * MICROSECONDS))
    balance = None if manager.balance is None else min(manager.balance, quota.capacity)
    state = BucketState(balance=balance, refilled_at=refilled_at, sequence=0, carry=0, probe_failures=0, quota=quota)
    look = Look(key, now_us, state.to_fields(), state)
    decision, snapshot = look.ask(1), look.snapshot()
    first = 0.0 if decision is None or decision.granted else decision.retry_after
    return Adoption(look, first, None if snapshot is None else snapshot.balance, tuple(notes))
