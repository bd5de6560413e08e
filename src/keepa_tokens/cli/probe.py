"""Asking the server by hand, with both balances to show. Needs httpx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httpx

from ..keepa.probe import http_probe
from ..keepa.reading import envelope
from ..keepa.sync import KeepaSync
from .look import Look, Place
from .shell import KeyRefusedError

REFUSALS: Final = frozenset({400, 401, 402, 403})


@dataclass(frozen=True, slots=True)
class Answer:
    """The balance that the server said, and the bucket's projection just before; None: unknown.

    held: tokens for calls under way, which the server may have charged already.
    """

    projected: int | None
    said: int | None
    why_not: str = ""
    held: int = 0

    def sentence(self) -> str:
        """Return both balances in words."""
        if self.said is None:
            return f"no balance: {self.why_not}"
        if self.projected is None:
            return f"says {self.said:,}; the bucket knew nothing"
        apart = self.said - self.projected
        both = f"says {self.said:,}; the bucket projected {self.projected:,}"
        under_way = f", with {self.held:,} held for calls under way" if self.held else ""
        return f"{both} ({apart:+,}){under_way}" if apart else both


def ask_server(place: Place, look: Look, api_key: str, base_url: str) -> Answer:
    """Ask the server once, and give the bucket its answer.

    Raises KeyRefusedError if the server refuses the API key.
    """
    snapshot = look.snapshot()
    if snapshot is None or not snapshot.quota.synced:
        return Answer(None, None, look.trouble or "this bucket follows no server")
    try:
        status, body = http_probe(api_key, base_url=base_url)()
    except TimeoutError as error:  # the probe's own words
        return Answer(snapshot.balance, None, f"asking it failed: {error}")
    except httpx.HTTPError as error:  # only its type is shown: its text may have the URL with the key
        return Answer(snapshot.balance, None, f"asking it failed ({type(error).__name__})")
    heard = envelope(body)
    if heard.reading is None:
        if status in REFUSALS:
            raise KeyRefusedError(f"the server refused the API key (HTTP {status}): is it the right one, and paid for?")
        return Answer(snapshot.balance, None, f"HTTP {status}, {heard.why}")
    bucket = look.door(place)
    before = bucket.peek()
    KeepaSync(bucket).observe(body, status=status)
    return Answer(before.balance, heard.reading.balance, held=before.held)
