"""A Celery task that comes back when there are tokens, instead of waiting for them in a worker.

    sync = KeepaSync.from_key(key, storage=RedisStorage.from_url(url))
    transport = KeepaTransport(sync, api_key=key, timeout=0, retry_refused=True)   # never sleeps: raises instead
    client = httpx.Client(base_url="https://api.keepa.com", transport=transport)

    @app.task(base=KeepaTask)
    def look_up(asin):
        return client.get("/product", params={"domain": 1, "asin": asin}).json()

Whatever raises NotEnoughTokens in the task will do: such a transport, a `KeepaAdapter` made the same way, the keepa
client with `wait=False`, `bucket.try_reserve`. The worker is free meanwhile.

A task runs again from its beginning, so let it make one request. Where it makes several behind a guard, and has paid
for one, it waits for the others in the worker: sent back, it would pay again for what it had, and might never end. An
answer is never lost for a storage that is away, as the guards hand it out; who settles by hand sees to that himself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

try:
    from celery import Task
except ImportError as missing:  # pragma: no cover - the message is all there is to it
    msg = "the guard for Celery needs it: pip install 'keepa-tokens[celery]'"
    raise ImportError(msg) from missing

from .._arguments import whole
from ..errors import ConfigError, CostTooLarge, NotEnoughTokens, StorageUnavailable
from ..keepa._door import PLACE
from ..keepa.backoff import SERVER_REFUSES
from ..rules.decision import Reason
from ._flow import RUN, Run

if TYPE_CHECKING:
    _Task = Task[..., object]
else:
    _Task = Task

__all__ = ["LONGEST_COUNTDOWN", "KeepaTask", "TokenTask"]

LONGEST_COUNTDOWN: Final = 900.0
"""Seconds after which a task asks again, however long the wait: the balance may be better by then.

Redis brokers deliver a message again that nobody acknowledged within their visibility timeout, an hour as they come: a
countdown beyond it is run twice.
"""

SHORT_COUNTDOWN: Final = 2.0
"""The same where the wait isn't known: somebody is asking the server just now, or the storage is away."""

LONGEST_REFUSED: Final = 60.0
"""What it grows to while the server refuses though there are tokens, unless the server asks for more."""

TIMES: Final = "keepa_tokens_times"
"""The header of the message that says how often the task was sent back."""

BROKER_AWAY: Final = {"max_retries": 120, "interval_start": 0.5, "interval_step": 0.5, "interval_max": 5.0}
"""How long a task is kept that can't be sent back as the broker is away, often for the same reason as the storage: some
ten minutes. As Celery comes it is under a second, and then the task is lost."""


class TokenTask(_Task):
    """The base of tasks that spend tokens: `@app.task(base=TokenTask)`. It keeps a task until it is done.

    NotEnoughTokens sends the task back to the broker, with a countdown of its `retry_after`, LONGEST_COUNTDOWN at most;
    StorageUnavailable, and a balance that is unknown, with SHORT_COUNTDOWN. That is no failure: it counts for no
    `max_retries`, and `autoretry_for` leaves it alone. most_times: how often a task may be sent back so, after which it
    fails with what sent it back (None: as often as it takes); Celery's own `expires` bounds the time.

    What waiting can't help fails at once: a cost that the quota could never admit, no refill (`retry_after` is inf), a
    mistake in the configuration. So does what was called directly or eagerly, where there is nothing that it could be
    sent back to; a task that called it is sent back for both. And a task that has paid by a guard, once the storage was
    away for ten minutes: it would pay again. A `dont_autoretry_for` of your own names TokenTask's kinds, too.
    """

    dont_autoretry_for: tuple[type[Exception], ...] = (NotEnoughTokens, StorageUnavailable, CostTooLarge, ConfigError)
    most_times: int | None = None

    def __init_subclass__(cls, **options: object) -> None:
        """Check what a task is declared with: else it would show when a task is sent back for the first time."""
        super().__init_subclass__(**options)
        if cls.most_times is not None:
            whole("most_times", cls.most_times)
        # A task's own list replaces the base's: `autoretry_for` would then count refusals as failures.
        if not all(issubclass(kind, cls.dont_autoretry_for) for kind in TokenTask.dont_autoretry_for):
            raise ConfigError("dont_autoretry_for must name what the base's does: (*TokenTask.dont_autoretry_for, ...)")

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the task; sent back to the broker if there are not enough tokens, or the storage is away."""
        request = self.request
        comes_back = not (request.called_directly or request.is_eager)
        # One that comes back keeps its place in the bucket's line by its id. Of any other the task that called it comes
        # back, which stands there and pays for both.
        this_run = Run() if comes_back else RUN.get() or Run()
        place = str(request.id) if comes_back else PLACE.get()
        under_way, stands = RUN.set(this_run), PLACE.set(place)
        try:
            return self.run(*args, **kwargs)
        except (NotEnoughTokens, StorageUnavailable) as missing:
            times = int((request.headers or {}).get(TIMES, 0))
            countdown = _countdown(missing, times)
            has_had_enough = self.most_times is not None and times >= self.most_times
            would_pay_again = this_run.paid and isinstance(missing, StorageUnavailable)
            if not comes_back or math.isinf(countdown) or has_had_enough or would_pay_again:
                raise
            headers = {**(request.headers or {}), TIMES: str(times + 1)}
            request.retries -= 1  # `retry` adds one
            try:
                raise self.retry(exc=missing, countdown=countdown, headers=headers, retry_policy=BROKER_AWAY)
            finally:
                request.retries += 1
        finally:
            RUN.reset(under_way)
            PLACE.reset(stands)


KeepaTask = TokenTask


def _countdown(missing: NotEnoughTokens | StorageUnavailable, times: int) -> float:
    """Return the seconds after which a task asks again, sent back so often before; inf: no refill will help."""
    if isinstance(missing, StorageUnavailable):
        return SHORT_COUNTDOWN
    if missing.reason == Reason.UNKNOWN:
        return min(missing.retry_after, SHORT_COUNTDOWN)
    wait = missing.retry_after
    if missing.reason == SERVER_REFUSES:  # all tasks meet it, so they come back ever later
        wait = max(wait, min(2.0 ** min(times, 10), LONGEST_REFUSED))
    return wait if math.isinf(wait) else min(wait, LONGEST_COUNTDOWN)
