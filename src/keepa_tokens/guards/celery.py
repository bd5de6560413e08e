"""A Celery task that comes back when there are tokens, instead of waiting for them in a worker.

    sync = KeepaSync.from_key(key, storage=RedisStorage.from_url(url))

    @app.task(base=KeepaTask)
    def look_up(asin):
        for call in sync.attempts(1, timeout=0):   # never sleeps: raises where there is nothing to be had
            with call:
                answer = requests.get(...)
                call.settle(answer.content, status=answer.status_code)
        ...

Whatever raises NotEnoughTokens in the task will do: `sync.try_request`, `sync.attempts(..., timeout=0)`, or a client
whose transport or adapter is made with `timeout=0, retry_refused=True`. The worker is free meanwhile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

try:
    from celery import Task
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guard for Celery needs it: pip install 'keepa-tokens[celery]'"
    raise ImportError(msg) from missing

from ..errors import NotEnoughTokens
from ..rules.decision import Reason

if TYPE_CHECKING:
    _Task = Task[..., object]
else:
    _Task = Task

__all__ = ["LONGEST_COUNTDOWN", "KeepaTask"]

LONGEST_COUNTDOWN: Final = 900.0
"""Seconds after which a task asks again, however long the wait: the balance may be better by then.

Redis brokers deliver a message again that nobody acknowledged within their visibility timeout, an hour as they come: a
countdown beyond it is run twice.
"""


UNKNOWN_COUNTDOWN: Final = 2.0
"""The same while the balance is unknown: somebody is asking the server, and the truth is a moment off."""


class KeepaTask(_Task):
    """The base of tasks that spend tokens: `@app.task(base=KeepaTask)`.

    NotEnoughTokens sends the task back to the broker, with a countdown of its `retry_after`, LONGEST_COUNTDOWN at most,
    UNKNOWN_COUNTDOWN while the balance is unknown. That is no failure: it counts for no `max_retries`, and
    `autoretry_for` leaves it alone. Where no refill would ever bring the tokens (`retry_after` is inf) the task fails
    with it; and so it does when it was called directly or eagerly, where there is nothing that it could be sent back
    to.
    """

    dont_autoretry_for = (NotEnoughTokens,)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the task; sent back to the broker if there are not enough tokens."""
        try:
            return self.run(*args, **kwargs)
        except NotEnoughTokens as refused:
            request, countdown = self.request, _countdown(refused)
            if request.called_directly or request.is_eager or math.isinf(countdown):
                raise
            request.retries -= 1  # `retry` adds one
            try:
                raise self.retry(exc=refused, countdown=countdown)
            finally:
                request.retries += 1


def _countdown(refused: NotEnoughTokens) -> float:
    """Return the seconds after which a refused task asks again; inf: no refill will bring its tokens."""
    if refused.reason == Reason.UNKNOWN:
        return min(refused.retry_after, UNKNOWN_COUNTDOWN)
    return math.inf if math.isinf(refused.retry_after) else min(refused.retry_after, LONGEST_COUNTDOWN)
