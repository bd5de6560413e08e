"""A queue's worker in a process of its own, by a clock that its parent sets: `python -m tests.redis.line_worker URL`.

Each line of its input is an order in JSON, and is answered by a line: what became of a task, or of a call's end.
"""

from __future__ import annotations

import json
import sys
from typing import Final

from keepa_tokens import Call, KeepaSync, NotEnoughTokens, Quota, TokenBucket, keepa_quota
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.testing import ManualClock
from keepa_tokens.units import MICROSECONDS

KEY: Final = "line"
PLAN: Final[Quota] = keepa_quota(5)


def main() -> None:
    """Carry out orders until there are no more."""
    clock = ManualClock()
    storage = RedisStorage.from_url(sys.argv[1])
    sync = KeepaSync(TokenBucket(PLAN, key=KEY, storage=storage, clock=clock))
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        order = json.loads(line)
        clock.advance((order["now_us"] - clock.now_us()) / MICROSECONDS)
        answer: float | None = None
        if "cost" in order:
            try:
                calls[order["task"]] = sync.try_request(order["cost"], place=order["task"])
            except NotEnoughTokens as refused:
                answer = refused.retry_after
        else:
            calls.pop(order["task"]).settle(order["body"], status=order["status"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    storage.close()


if __name__ == "__main__":
    main()
