"""Estimates that learn from settled calls what the table of costs can't know.

The rule, per kind of call (the path, and the parameters that drive its price):

1. Until calls of the kind were settled, the table's number (`costs.estimate`) stands.
2. Of the last `window` settled calls of the kind each is brought to the size of the one asked about: in proportion
   where it was larger; where it was smaller, what it cost, and the kind's average for each item (ASIN, code, seller)
   more. The dearest one counts. So no estimate is below the dearest call of its size or less in the window, and among
   cheaper ones a code that cost 1500 is not taken for a hundred such codes.
3. Up at once, down late: below the table's number only when the window is full of calls.

So the table's number stays the ceiling where it is one, and does no harm where it was a guess or the prices have moved:
calls that cost no more than their own can't lift another above its own.

Too low an estimate costs a refused call where several are in flight, too high a one makes others wait; both end with
the answer. Why not less: an average is too low for every second call, and the maximum for each item, times a hundred
items, is far too high where the prices have a long tail. Why not more: after `window` calls an oddity is forgotten.
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

__all__ = ["Estimator"]

ITEMS: Final = ("asin", "code", "seller")
"""The parameters that list what is asked about, each item at a price."""

SWITCHES: Final = ("buybox", "historical-variations", "page", "rating", "stats", "stock", "storefront")
"""Parameters that change the price by being there; of `stats` and `page` the value does not."""

VALUES: Final = ("code-limit", "offers", "type", "update")
"""Parameters whose value changes the price."""

Kind: TypeAlias = tuple[str, ...]
Sample: TypeAlias = tuple[int, int]
"""A settled call: the tokens that it cost, and for how many items."""


class Estimator(NotCopied):
    """Says what a call may cost, from the table and from what such calls have cost lately. Safe to share by threads.

        estimator.estimate("product", params)   # before
        estimator.learn("product", params, call.consumed)   # after `call.settle(...)`

    The HTTP guards do both where they are given one (`estimator=`). It lives in its process, goes on in a forked child,
    and starts from the table. window: how many settled calls of a kind count. kinds: how many kinds are remembered, the
    last ones used. table: what to start from.
    """

    _instead = "it learns in its process; make one in each"

    def __init__(
        self,
        *,
        window: int = 16,
        kinds: int = 256,
        table: Callable[[str, Mapping[str, object]], int] = table_estimate,
    ) -> None:
        self._window = whole("window", window, least=1)
        self._most_kinds = whole("kinds", kinds, least=1)
        self._table = table
        self._kinds: OrderedDict[Kind, deque[Sample]] = OrderedDict()
        self._lock = Lock()
        self._process = os.getpid()

    def estimate(self, path: str, params: Mapping[str, object]) -> int:
        """Return the tokens to set aside for a call of `path` with `params`; 0 only for what is always free."""
        table = self._table(path, params)
        if table <= 0:
            return 0
        kind, items = self._kind(path, params, table)
        with self._own_lock():
            known = self._kinds.get(kind)
            if known is None:
                return table
            self._kinds.move_to_end(kind)
            samples = tuple(known)
        return max(_dearest(samples, items), table if len(samples) < self._window else 1)

    def learn(self, path: str, params: Mapping[str, object], consumed: int | None) -> None:
        """Take note of what a call cost: `Call.consumed`. None and 0 say nothing of a price: an error, a refusal."""
        table = self._table(path, params)
        if consumed is None or not 0 < consumed < LIMIT or table <= 0:
            return
        kind, items = self._kind(path, params, table)
        with self._own_lock():
            known = self._kinds.setdefault(kind, deque(maxlen=self._window))
            self._kinds.move_to_end(kind)
            known.append((consumed, items))
            if len(self._kinds) > self._most_kinds:
                self._kinds.popitem(last=False)

    def _own_lock(self) -> Lock:
        """Return the lock of this process: a forked child keeps what was learned, but who held its lock is gone."""
        if self._process != os.getpid():
            self._lock, self._process = Lock(), os.getpid()
        return self._lock

    def _kind(self, path: str, params: Mapping[str, object], table: int) -> tuple[Kind, int]:
        """Return which kind of call this is, and for how many items: what the table counts more than once."""
        listed = [name for name in ITEMS if params.get(name)]
        each = max(1, self._table(path, {**params, **dict.fromkeys(listed, "1")}))
        switched = [name for name in SWITCHES if _on(params, name)]
        valued = [f"{name}={_text(params[name])}" for name in VALUES if params.get(name) is not None]
        return (path.strip("/?").lower(), str(each), *listed, *switched, *valued), max(1, table // each)

    def __repr__(self) -> str:
        return f"Estimator(window={self._window}, kinds={len(self._kinds)})"


def _dearest(samples: tuple[Sample, ...], items: int) -> int:
    """Return the most that one of the settled calls would have cost for so many items (rule 2), rounded up."""
    spent, counted = (sum(column) for column in zip(*samples, strict=True))
    return max(
        -(-cost * items // size) if items <= size else cost - (-spent * (items - size) // counted)
        for cost, size in samples
    )


def _on(params: Mapping[str, object], name: str) -> bool:
    # page=0 is the first page: there, though it looks switched off.
    return params.get(name) is not None and (name == "page" or _text(params[name]) not in {"", "0", "false"})


def _text(value: object) -> str:
    return str(int(value) if isinstance(value, bool) else value).strip().lower()[:20]
