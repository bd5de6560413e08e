"""The buckets under torture. Their refills are fast and their holds short, so that a minute is long."""

from __future__ import annotations

from typing import Final

from keepa_tokens import UNLIMITED, Quota

SECOND: Final = 1_000_000
"""Microseconds in a second."""

RATE: Final = 5
"""Tokens that the API refills per second."""

PLAIN: Final = "plain"
HELD: Final = "held"
KEEPA: Final = "keepa"

QUOTAS: Final = {
    PLAIN: Quota(12, 10, 1.0),
    HELD: Quota(12, 8, 1.0, overdraft=4, recharge_to=8),
    KEEPA: Quota(60 * RATE, RATE, 1.0, stepped=True, overdraft=UNLIMITED, synced=True),
}
"""plain: taken at once, or queued for. held: reserved and settled. keepa: follows the API's readings."""

HOLD_FOR: Final = {HELD: 1.5, KEEPA: 2.5}
"""Seconds that a hold lives. A worker is paused for longer at times."""

PROBE_INTERVAL: Final = 3.0
"""Seconds that a reading may be old before a refusal probes."""

ANSWER_WITHIN: Final = 0.5
"""Seconds that a client waits for Redis, to connect and to answer."""

CALL_WITHIN: Final = 1.0
"""Seconds that a worker waits for the API's answer. Shorter than a call's hold."""

LATENCY: Final = (0.02, 0.2)
"""Seconds that the API takes for a call."""

LONGEST_FREEZE: Final = 3.0
"""Seconds that the server is frozen at most."""
