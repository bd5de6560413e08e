"""Planted faults: the shipped code with one thing wrong. Each must be refuted, or the proofs prove nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["MUTANTS", "Mutant", "planted"]

SOURCE: Final = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Mutant:
    """One fault: in `module` the text `right`, which must stand there once, is replaced by `wrong`.

    by: the theorem or the small world that must refute it.
    """

    name: str
    module: str
    right: str
    wrong: str
    by: str


@contextmanager
def planted(mutant: Mutant, source: Path = SOURCE) -> Iterator[Path]:
    """Yield a folder to import the package from that has the fault. A fault that no longer applies is a ValueError."""
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        copy = Path(folder)
        shutil.copytree(source / "keepa_tokens", copy / "keepa_tokens", ignore=shutil.ignore_patterns("__pycache__"))
        module = copy / "keepa_tokens" / mutant.module
        text = module.read_text()
        if text.count(mutant.right) != 1:
            raise ValueError(f"{mutant.module} has {mutant.right!r} {text.count(mutant.right)} times, not once")
        module.write_text(text.replace(mutant.right, mutant.wrong))
        yield copy


MUTANTS: Final = (
    Mutant(
        "a refill forgets the remainder",
        "rules/arithmetic.py",
        "earned = rest * rate + carry\n",
        "earned = rest * rate\n",
        "refill.smooth_conserves",
    ),
    Mutant(
        "a refill keeps the remainder and adds the tokens too",
        "rules/arithmetic.py",
        "return balance + gain, now, earned % period",
        "return balance + gain, now, earned",
        "refill.smooth_never_mints",
    ),
    Mutant(
        "a refill rounds up",
        "rules/arithmetic.py",
        "gain = periods * rate + earned // period",
        "gain = periods * rate - -earned // period",
        "refill.smooth_never_mints",
    ),
    Mutant(
        "a refill takes a long pause for a full bucket one period too early",
        "rules/arithmetic.py",
        "if periods >= room // rate + 1:",
        "if periods >= room // rate:",
        "refill.smooth_never_mints",
    ),
    Mutant(
        "a balance above capacity is cut",
        "rules/arithmetic.py",
        "return balance, now, 0\n    room",
        "return min(balance, capacity), now, 0\n    room",
        "refill.smooth_keeps_what_is_there",
    ),
    Mutant(
        "a clock that steps back is followed, so its way forward mints again",
        "rules/arithmetic.py",
        "return balance, refilled_at, carry\n",
        "return balance, now, carry\n",
        "refill.smooth_keeps_what_is_there",
    ),
    Mutant(
        "a stepped refill forgets its phase",
        "rules/arithmetic.py",
        "return min(capacity, balance + periods * refill), moved",
        "return min(capacity, balance + periods * refill), now",
        "refill.stepped_conserves",
    ),
    Mutant(
        "a wait is rounded down",
        "rules/arithmetic.py",
        "periods * period - (carry - rest * period) // rate)",
        "periods * period + (rest * period - carry) // rate)",
        "waiting.smooth_instant_is_the_first",
    ),
    Mutant(
        "a wait forgets what has flowed in already",
        "rules/arithmetic.py",
        "(carry - rest * period) // rate)",
        "(-rest * period) // rate)",
        "waiting.smooth_instant_is_the_first",
    ),
    Mutant(
        "a stepped wait is a step too long",
        "rules/arithmetic.py",
        "steps = (need - 1) // refill + 1",
        "steps = need // refill + 1",
        "waiting.stepped_instant_is_the_first",
    ),
    Mutant(
        "a grant may take its debt from a balance of 0",
        "rules/arithmetic.py",
        "return max(1, tokens - overdraft)",
        "return max(0, tokens - overdraft)",
        "scalars.grant_stays_within_the_overdraft",
    ),
    Mutant(
        "a remainder from another rate is rounded up",
        "rules/arithmetic.py",
        "time = carry // old_rate",
        "time = -(-carry // old_rate)",
        "scalars.carried_over_never_mints",
    ),
    Mutant(
        "a timestamp far ahead is waited for",
        "rules/arithmetic.py",
        "return now if refilled_at > now + tolerance else refilled_at",
        "return refilled_at",
        "waiting.smooth_wait_is_bounded",
    ),
    Mutant(
        "a lost timestamp is the beginning of time",
        "rules/repair.py",
        'self.note("refilled_at")\n            return self.now',
        'self.note("refilled_at")\n            return 0',
        "acquiring.lost_timestamp_mints_nothing",
    ),
    Mutant(
        "a lost timestamp is a far future one",
        "rules/repair.py",
        'self.note("refilled_at")\n            return self.now',
        'self.note("refilled_at")\n            return NEVER // 2',
        "acquiring.lost_timestamp_leaves_the_wait_bounded",
    ),
    Mutant(
        "a claim far ahead is believed",
        "rules/repair.py",
        "return self.now + CLAIM_US\n",
        "return value\n",
        "mending.claim_and_reading_are_never_far_ahead",
    ),
    Mutant(
        "a reading shuts out all others until the server's time passes its own",
        "rules/transition.py",
        "return self.now - (self.reading_at or 0) > REORDER_US",
        "return False",
        "telling.no_field_shuts_out_a_reading",
    ),
    Mutant(
        "a settled hold stays",
        "rules/transition.py",
        "hold = self.holds.pop(command.id, None)\n        if hold is None:\n            verdict",
        "hold = self.holds.get(command.id)\n        if hold is None:\n            verdict",
        "holding.settle_is_idempotent",
    ),
    Mutant(
        "a recharge is as long as it is stored",
        "rules/transition.py",
        "end = min(self.closed_until, self._recharged_at())",
        "end = self.closed_until",
        "acquiring.recharge_ends",
    ),
    Mutant(
        "a grant takes one token too few",
        "rules/transition.py",
        "self.balance = saturated(self.balance - command.tokens)",
        "self.balance = saturated(self.balance - command.tokens + 1)",
        "acquiring.smooth_step_conserves",
    ),
    Mutant(
        "a hold that ran out is charged again and again",
        "rules/transition.py",
        "self.holds[hold_id] = Hold(charged, hold.opened, hold.expires_at, hold.hold_for, self.sequence)",
        "self.holds[hold_id] = Hold(charged, hold.opened, hold.expires_at, hold.hold_for)",
        "holding.hold_runs_out_once",
    ),
    Mutant(
        "a stale answer's cost is charged, which the newer reading had",
        "rules/transition.py",
        "            cost = 0\n",
        "            cost += 0\n",
        "three calls, charged at completion",
    ),
    Mutant(
        "every answer of a call is believed, in whatever order they come",
        "rules/transition.py",
        "return self._nothing_known() or opened > self.reading_sequence or self._is_newer(reading)",
        "return True",
        "three calls, charged at completion",
    ),
    Mutant(
        "what calls in flight have set aside may be spent",
        "rules/transition.py",
        "available = self.balance - self.held\n",
        "available = self.balance\n",
        "plain, smooth",
    ),
    Mutant(
        "a hold that runs out is not charged",
        "rules/transition.py",
        "self.balance = saturated(self.balance - charged)",
        "pass",
        "plain, smooth",
    ),
    Mutant(
        "a hold without end is believed",
        "rules/repair.py",
        "holds[hold_id] = replace(hold, expires_at=latest)",
        "pass",
        "plain, smooth",
    ),
    Mutant(
        "a call that overdraws goes beside others",
        "rules/transition.py",
        "if available < (beside if self.held else alone):",
        "if available < alone:",
        "three calls on 7 tokens, charged at admission",
    ),
    Mutant(
        "a look in the middle of a half-life begins it anew",
        "rules/arithmetic.py",
        "return tokens >> min(halvings, 52), since + halvings * half_life",
        "return tokens >> min(halvings, 52), max(since, now)",
        "others.halving_path_does_not_matter",
    ),
    Mutant(
        "all that others were seen to spend is kept back",
        "rules/transition.py",
        "kept, since = min(kept + gap, self.flow.capacity // KEPT_SHARE), self.now",
        "kept, since = kept + gap, self.now",
        "others.a_third_is_kept_back_at_most",
    ),
    Mutant(
        "what is kept back leaves too little for a request that a full bucket could admit",
        "rules/transition.py",
        "min(keep + kept, self.flow.capacity // KEPT_SHARE, most)",
        "min(keep + kept, self.flow.capacity // KEPT_SHARE)",
        "others.kept_back_stops_nobody",
    ),
)
