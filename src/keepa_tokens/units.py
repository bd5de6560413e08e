"""Units and bounds: whole tokens, whole microseconds, and the largest number that Lua and Python both hold exactly."""

from __future__ import annotations

import math
from typing import Final

MICROSECONDS: Final = 1_000_000
"""Microseconds in a second."""

LIMIT: Final = 2**52
"""Tokens, balances and instants stay within this, so that Lua's doubles compute them exactly."""

NEVER: Final = LIMIT
"""Means "never", as an instant or as a wait."""

UNLIMITED: Final = LIMIT
"""An overdraft without limit: one grant may take any positive balance as far below zero as it likes."""

TOLERANCE_US: Final = 5 * MICROSECONDS
"""How far two writers' clocks may stand apart before a stored time ahead of now counts as damage."""

MAX_HOLD_US: Final = 86_400 * MICROSECONDS
"""The longest `hold_for`: a day."""

CLAIM_US: Final = 20 * MICROSECONDS
"""How long one worker's claim on the probe lasts. A probe must time out sooner."""

PROBE_AFTER_US: Final = 600 * MICROSECONDS
"""A refusal that rests on a reading older than this calls for a probe, unless the caller says otherwise."""

MAX_BACKOFF_US: Final = 3_600 * MICROSECONDS
"""Failed probes back off up to this (or to the probe interval, if that is longer)."""

REORDER_US: Final = 120 * MICROSECONDS
"""No stored field can shut out an observed reading for longer than this plus the tolerance of clocks."""

REFUND_MEMORY_US: Final = 600 * MICROSECONDS
"""How long a refund's id is remembered, so that a repeated one counts once."""

MINUTE_US: Final = 60 * MICROSECONDS

DAY_US: Final = 86_400 * MICROSECONDS

YEAR_US: Final = 365 * DAY_US
"""A `refilled_at` older than this, and than a refill to full could need, is damage: 0, or seconds for microseconds."""

LOOK_AGAIN_US: Final = 1_500_000
"""When to ask again where a settle or a probe may end the wait any moment."""

SWEEP_US: Final = MICROSECONDS
"""Holds that fall due are swept together, once in this time at most."""

NEAR_US: Final = 5 * MICROSECONDS
"""How far the clocks of a server's front ends may differ: two times of a server this close tell no order."""

LONGEST_STRETCH_US: Final = 600 * MICROSECONDS
"""The longest period that a server's `refillIn` alone can bring about."""


def seconds(duration_us: int) -> float:
    """Return whole microseconds as seconds; `NEVER` and beyond as inf."""
    return math.inf if duration_us >= NEVER else duration_us / MICROSECONDS


def one_line(text: str, most: int) -> str:
    """Return `text` printable and cut to `most` characters: what was stored or answered must not add lines to a log."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
