"""What `bucket.lua` does to a hash, in Python: which step it takes by itself, what it hands over, what is stored then.

The numbers are `fast_path.py`'s, the rest `transition`'s; only what the script may serve is told once more here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

from keepa_tokens.quota import Quota
from keepa_tokens.rules.commands import Acquire, Cancel, Command, Outcome, Peek, Reconcile, Refund, Reserve, Settle
from keepa_tokens.rules.decision import Reason
from keepa_tokens.rules.fast_path import take
from keepa_tokens.rules.flow import Flow, has_places
from keepa_tokens.rules.state import (
    FIELDS,
    FREE,
    HOLD,
    LINE,
    NUMBERS,
    QUOTA,
    BucketState,
    FastTerms,
    SoundState,
    quota_text,
)
from keepa_tokens.rules.transition import transition
from keepa_tokens.storage._memory_bucket import Bucket, bucket_of, new_bucket, step
from keepa_tokens.units import DAY_US, LIMIT, MINUTE_US, NEVER, TOLERANCE_US

ZERO: Final = ("carry", "sequence", "held", "open", "last_place", "firm_place", "largest_place")
"""Numbers that may be left out where they are 0."""

WRITTEN: Final = {"quota", "version", "balance", "refilled_at", "due_at", *ZERO}
"""What the fast path writes beside the hold that the command names."""

ALL, SOME, BY_ITSELF = "all", "some", "by itself"
_TERMS: Final = re.compile(r"[0-9]+ [0-9]+ [0-9]+( [01] [0-9]+ \S+ \S+ ([01]))?", re.ASCII)


def normal(texts: dict[str, str]) -> dict[str, str]:
    """Return the texts without a carry that says nothing: the script leaves it where it is."""
    return {name: text for name, text in texts.items() if (name, text) != ("carry", "0")}


@dataclass
class Mirror:
    """A hash, and what commands make of it. took: how often the script took the step by itself. way: the last one."""

    texts: dict[str, str] = field(default_factory=dict)
    took: int = 0
    way: str = ""

    def apply(self, quota: Quota, command: Command, now: int) -> Outcome:
        served = attempt(self.texts, quota, command, now)
        self.way = served if isinstance(served, str) else BY_ITSELF
        if isinstance(served, Outcome):
            self.took += 1
            return served
        if isinstance(served, Bucket):
            self.took += 1
            outcome = step(served, command, now)
            assert outcome is not None
            self._write(self.texts, served.state(), command)
            return outcome
        seen = self.texts if served == ALL else some_of(self.texts, command)
        if BucketState.from_fields(seen).unreadable:
            served, seen = ALL, self.texts
        stored = replace(BucketState.from_fields(dict(sorted(seen.items()))), partial=served == SOME) if seen else None
        after, outcome = transition(quota, stored, now, command)
        if after is not None and after is not stored:
            self._write(seen, after, None)
        return outcome

    def _write(self, seen: dict[str, str], after: BucketState, command: Command | None) -> None:
        texts = after.to_fields()
        if command is not None:
            # The fast path leaves every other hold alone, and what it does not know or does not change.
            name = HOLD + command.id if isinstance(command, Reserve | Settle | Cancel | Refund) else ""
            seen = {key: "" for key in (name, *ZERO) if seen.get(key, "0") != "0"}
            texts = {key: text for key, text in texts.items() if key == name or key in WRITTEN}
        gone = {key for key in seen if key not in texts and (key.startswith(HOLD) or key in FIELDS)}
        self.texts = {key: text for key, text in self.texts.items() if key not in gone} | texts


def some_of(texts: dict[str, str], command: Command) -> dict[str, str]:
    """Return the numbers, and the hold that the command names."""
    names = {*FIELDS, HOLD + getattr(command, "id", "")}
    return {name: text for name, text in texts.items() if name in names}


def attempt(texts: dict[str, str], quota: Quota, command: Command, now: int) -> Bucket | Outcome | str:
    """Return the bucket that the fast path serves, or its refusal, or what is handed over."""
    served = _attempt(texts, quota, command, now)
    # Where nothing else is there, the script hands over what it has read: that is all.
    return ALL if served == SOME and len(texts) <= 4 + ("carry" in texts) else served


def _attempt(texts: dict[str, str], quota: Quota, command: Command, now: int) -> Bucket | Outcome | str:
    if isinstance(command, Peek | Reconcile):
        return ALL
    if not texts:
        new = new_bucket(quota, now, own=True)
        return ALL if new is None else _served(new, texts, command, now)
    terms = _TERMS.fullmatch(texts.get(QUOTA, ""))
    if "format" in texts or not {"version", "balance", "refilled_at"} <= texts.keys() or terms is None:
        return ALL
    state = BucketState.from_fields(texts)
    are_others = texts[QUOTA] != quota_text(quota)
    if (are_others and state.quota is None) or not _is_sound(texts, state, now, synced=terms[2] == "1"):
        return ALL
    if {"closed_until", "paused_until", "wide_capacity", LINE, FREE} & texts.keys():
        return SOME
    assert state.quota is not None
    terms_at = state.terms_at
    recent = terms_at is not None and 0 <= terms_at <= now + TOLERANCE_US and now - terms_at < MINUTE_US
    if are_others and not (recent and quota.synced == state.quota.synced):
        return SOME
    working = bucket_of(sound_of(state), now, own=True)
    if not has_places(state.quota):
        if state.fast is None or not _is_fast_sound(state.fast, now):
            return ALL
        fast, working.kept_back = state.fast, state.fast.kept_back
        working.flow = Flow(fast.capacity, fast.refill, fast.period_us, state.quota.stepped)
    if _is_damaged(working, now):
        return ALL
    return _served(working, texts, command, now)


def _served(working: Bucket, texts: dict[str, str], command: Command, now: int) -> Bucket | Outcome | str:
    hold_id = getattr(command, "id", "")
    is_there = HOLD + hold_id in texts
    back = 0
    if isinstance(command, Reserve | Refund) and is_there:
        return SOME
    if isinstance(command, Refund):
        back = command.tokens
    if isinstance(command, Settle | Cancel):
        hold = working.holds.get(hold_id)
        if hold is None or hold.tokens > working.held or working.open == 0 or hold.opened > working.sequence:
            return SOME
        if hold.hold_for < 1 or hold.hold_for > DAY_US or hold.expires_at > now + hold.hold_for + TOLERANCE_US:
            return SOME
        if hold.tokens < 0:
            return SOME
        cost = 0 if isinstance(command, Cancel) else command.actual
        back = 0 if cost is None else hold.tokens - cost
    if back > 0 and not working.quota.synced and working.last_place > now:
        return SOME
    tried = replace(working, holds=dict(working.holds))
    outcome = step(tried, command, now)
    at = now if outcome is None else now + outcome.place_us
    behind = at > now and (working.firm_place > now or working.last_place == at)
    if outcome is None and texts and isinstance(command, Acquire):
        return _refused(working, command, now) or SOME
    return SOME if outcome is None or behind else working


def _refused(working: Bucket, command: Acquire, now: int) -> Outcome | None:
    """Return the refusal of somebody who asks for nothing but tokens now; None: the rules must decide."""
    asks_more = command.keep or command.ticket is not None or (command.wait_us or 0) > 0
    if asks_more or command.tokens == 0 or working.held + command.tokens >= LIMIT:
        return None
    refusal = take(working, now, command.tokens, 0)
    if refusal is None or refusal[1] >= NEVER:
        return None
    balance, wait = working.flowed(now)[0], refusal[1]
    return Outcome(now, balance, reason=Reason.EMPTY, retry_after_us=wait, held=working.held, open=working.open)


def sound_of(state: BucketState) -> SoundState:
    """Return a sound stored state as the one that is worked on."""
    assert state.quota is not None
    assert state.refilled_at is not None
    sound = SoundState(state.quota, state.refilled_at, holds=dict(state.holds))
    for name in NUMBERS:
        if name != "format" and getattr(state, name) is not None:
            setattr(sound, name, getattr(state, name))
    return sound


def _is_sound(texts: dict[str, str], state: BucketState, now: int, *, synced: bool) -> bool:
    if synced and not {"held", "open", "sequence"} <= texts.keys():
        return False
    checked = ("version", "carry", "due_at", "balance", "refilled_at", *ZERO)
    if any(name in state.unreadable for name in checked):
        return False
    most = {"version": LIMIT - 2, "open": LIMIT - 2, "sequence": LIMIT // 2 - 1, "carry": LIMIT}
    for name in ("version", *ZERO):
        if not 0 <= (getattr(state, name) or 0) <= most.get(name, LIMIT - 1):
            return False
    assert state.balance is not None
    assert state.refilled_at is not None
    if (state.due_at is None and state.open) or (state.held and not state.open):
        return False
    due_at = now + 1 if state.due_at is None else state.due_at
    return (
        1 - LIMIT <= state.balance < LIMIT
        and 0 <= state.refilled_at <= now + TOLERANCE_US
        and now - state.refilled_at <= 365 * DAY_US
        and now < due_at <= now + 2 * DAY_US + TOLERANCE_US
    )


def _is_fast_sound(fast: FastTerms, now: int) -> bool:
    return (
        now < fast.until <= now + MINUTE_US
        and 1 <= fast.capacity < LIMIT
        and 0 <= fast.refill < LIMIT
        and 1 <= fast.period_us < LIMIT
        and 0 <= fast.kept_back < LIMIT
        and fast.refill * (fast.period_us + 1) < LIMIT
    )


def _is_damaged(working: Bucket, now: int) -> bool:
    flow = working.flow
    if working.carry >= flow.period_us:
        return True
    latest = working.last_place
    furthest = flow.instant(flow.capacity - min(0, working.balance), now, 0)
    return latest > now and furthest < NEVER and latest > furthest + flow.period_us + TOLERANCE_US
