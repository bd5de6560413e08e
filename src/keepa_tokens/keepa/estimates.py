"""Estimates that learn from settled calls what the table of costs can't know.

The rule, per kind of call (the path, and the parameters that drive its price):

1. Until a call of the kind was settled, the estimate is the table's number (`costs.estimate`).
2. Afterwards each of the last `window` settled calls of the kind is scaled to the size of the new call. A larger call
   is scaled down in proportion. A smaller call keeps its cost, plus the kind's average for each item (ASIN, code,
   seller) that it lacks. The highest result is the estimate. So no estimate is below the dearest call of its size or
   less in the window; and among cheap codes one that cost 1500 doesn't bring a hundred codes to 150,000.
3. The estimate rises at once and falls late: below the table's number only when the window is full of calls.

So an estimate never exceeds the table's number where that is the highest cost: calls that cost no more than their own
number can't lift another call above its number. Where the table only guesses, or prices have changed, calls correct it.

Too low an estimate costs a refused call if several are in flight, too high a one makes others wait; the answer ends
both. Simpler rules are worse: an average is too low for every second call, and the dearest item times a hundred is far
too high where few items are dear. The window is short so that a rare price is soon forgotten.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from .._arguments import NotCopied, whole
from .._interrupts import Lock
from ..units import LIMIT
from .costs import estimate as table_estimate
from .costs import is_on

__all__ = ["Estimator"]

ITEMS: Final = ("asin", "code", "seller")
"""The parameters that list items, each of which has a price."""

SWITCHES: Final = ("buybox", "historical-variations", "rating", "stats", "stock", "storefront")
"""Parameters that change the price by being switched on; their values don't matter otherwise."""

VALUES: Final = ("code-limit", "offers", "type", "update")
"""Parameters whose value changes the price."""

Kind: TypeAlias = tuple[str, ...]
Sample: TypeAlias = tuple[int, int]
"""A settled call: the tokens that it cost, and the number of its items."""


class Estimator(NotCopied):
    """Says what a call may cost, from the table and from what such calls have cost lately. Safe to share by threads.

        estimator.estimate("product", params)   # before
        estimator.learn("product", params, call.consumed)   # after `call.settle(...)`

    The HTTP guards do both if they are given an estimator (`estimator=`). An estimator learns in its own process; a
    forked child keeps what was learned before. window: how many settled calls of a kind count. kinds: how many kinds
    are remembered, the last ones used. table: the estimates to start from.
    """

    _instead = "it learns in its process; make one in each"

    def __init__(
        self, *, window: int = 16, kinds: int = 256, table: Callable[[str, Mapping[str, object]], int] = table_estimate
    ) -> None:
        self._window = whole("window", window, least=1)
        self._most_kinds = whole("kinds", kinds, least=1)
        self._table = table
        self._kinds: OrderedDict[Kind, deque[Sample]] = OrderedDict()
        self._lock = Lock()
        self._process = os.getpid()

    def estimate(self, path: str, params: Mapping[str, object]) -> int:
        """Return the tokens to set aside for a call of `path` with `params`; 0 only for calls that are always free."""
        table = self._table(path, params)
        kind, items = self._kind(path, params, table)
        with self._own_lock():
            known = self._kinds.get(kind)
            if known is None:
                return table
            self._kinds.move_to_end(kind)
            samples = tuple(known)
        return max(_dearest(samples, items), table if len(samples) < self._window else 1)

    def learn(self, path: str, params: Mapping[str, object], consumed: int | None) -> None:
        """Take note of what a call cost: `Call.consumed`. None and 0 (an error, a refusal) are ignored."""
        table = self._table(path, params)
        if consumed is None or not 0 < consumed < LIMIT or table <= 0:
            return
        kind, items = self._kind(path, params, table)
        with self._own_lock():
            known = self._kinds.setdefault(kind, deque(maxlen=self._window))
            known.append((consumed, items))
            if len(self._kinds) > self._most_kinds:
                self._kinds.popitem(last=False)

    def _own_lock(self) -> Lock:
        """Return the lock of this process: a forked child gets a new one, as the holder of the old one isn't there."""
        if self._process != os.getpid():
            self._lock, self._process = Lock(), os.getpid()
        return self._lock

    def _kind(self, path: str, params: Mapping[str, object], table: int) -> tuple[Kind, int]:
        """Return the kind of a call, and the number of its items: by how much its price exceeds that of one item."""
        listed = [name for name in ITEMS if params.get(name)]
        each = max(1, self._table(path, {**params, **dict.fromkeys(listed, "1")}))
        switched = [name for name in SWITCHES if is_on(params, name)]
        valued = [f"{name}={_text(params[name])}" for name in VALUES if params.get(name) is not None]
        return (path.strip("/?").lower(), str(each), *listed, *switched, *valued), max(1, table // each)

    def __repr__(self) -> str:
        return f"Estimator(window={self._window}, kinds={len(self._kinds)})"


def _dearest(samples: tuple[Sample, ...], items: int) -> int:
    """Return the highest cost of the settled calls, each scaled to so many items (rule 2), rounded up."""
    spent, counted = (sum(column) for column in zip(*samples, strict=True))
    return max(
        -(-cost * items // size) if items <= size else cost - (-spent * (items - size) // counted)
        for cost, size in samples
    )


def _text(value: object) -> str:
    return str(value).strip().lower()[:20]
