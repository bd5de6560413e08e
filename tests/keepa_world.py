"""Keepa's fake server and a bucket in step with it, on one clock that a test moves by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keepa_tokens import (
    Call,
    Event,
    EventKind,
    KeepaSync,
    Listener,
    MemoryStorage,
    NotEnoughTokens,
    TokenBucket,
    keepa_quota,
)
from keepa_tokens.testing import FakeKeepa, ManualClock

PRODUCT = "/product"


def asins(count: int, **more: object) -> dict[str, object]:
    """Return the parameters of a call that costs `count`, without `more`."""
    return {"asin": ",".join(f"B{number:09d}" for number in range(count)), **more}


class World:
    """The server, one worker's `sync` and what its listener was told; `worker` makes more on the same storage.

    probe: True; False: none; else the status that `/token` answers with, and nothing else.
    """

    def __init__(
        self,
        initial: int = 20,
        *,
        refill_rate: int = 5,
        probe: int = True,
        recharge_to: int | None = None,
        clock: ManualClock | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.clock = ManualClock() if clock is None else clock
        self.fake = FakeKeepa(refill_rate=refill_rate, initial=initial, clock=self.clock)
        self.storage = MemoryStorage()
        self.events: list[Event] = []
        self._quota, self._probe = keepa_quota(refill_rate, recharge_to=recharge_to), probe
        self._listener: Listener = self.events.append if listener is None else listener
        self.sync = self.worker()
        self.bucket = self.sync.bucket

    def worker(self) -> KeepaSync:
        bucket = TokenBucket(self._quota, key="k", storage=self.storage, clock=self.clock, listener=self._listener)
        asks = self.fake.probe if self._probe is True else lambda: (self._probe, None)
        return KeepaSync(bucket, probe=asks if self._probe else None)

    def call(self, tokens: int, estimate: int | None = None, *, by: KeepaSync | None = None) -> int:
        """Make a call that costs `tokens`; return the status of its answer."""
        with (by or self.sync).request(tokens if estimate is None else estimate) as call:
            return self.answer(call, tokens)

    def answer(self, call: Call, tokens: int) -> int:
        """Let the server answer a call that costs `tokens`, and settle it; return the answer's status."""
        answer = self.fake.request(PRODUCT, asins(tokens))
        call.settle(answer.content, status=answer.status)
        return answer.status

    def refused(self, tokens: int = 1, *, keep: int = 0, by: KeepaSync | None = None) -> NotEnoughTokens:
        """Try a request that must be refused."""
        with pytest.raises(NotEnoughTokens) as refused:
            (by or self.sync).try_request(tokens, keep=keep)
        return refused.value

    def kinds(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def last(self, kind: EventKind) -> Event:
        return self.kinds(kind)[-1]

    def damage(self, **fields: object) -> None:
        state = self.storage.dump("k")
        assert state is not None
        self.storage.load("k", replace(state, **fields))  # type: ignore[arg-type]  # damage is of any type

    def value(self, name: str) -> Any:
        """Return what is measured under a name."""
        raise LookupError(name)
