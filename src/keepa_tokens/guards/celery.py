"""A Celery task that comes back when there are tokens, instead of waiting for them in a worker.

    sync = KeepaSync.from_key(key, storage=RedisStorage.from_url(url))
    # it never sleeps, but raises:
    transport = KeepaTransport(sync, api_key=key, timeout=0, retry_refused=True)
    client = httpx.Client(base_url="https://api.keepa.com", transport=transport)

    @app.task(base=KeepaTask)
    def look_up(asin):
        return client.get("/product", params={"domain": 1, "asin": asin}).json()

Anything that raises NotEnoughTokens in the task will do: such a transport, a `KeepaAdapter` made the same way, the
keepa client with `wait=False`, `bucket.try_reserve`. The worker is free until the task comes back.

A task runs again from its beginning, so let it make one request. A task that makes several through a guard, and has
paid for one, waits for the others in the worker: if it were sent back, it would pay for the first again, and might
never end. If the storage is away when an answer comes, a guard still returns the answer; a task that calls `settle`
itself has to see to that.
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

A Redis broker delivers a message again that nobody acknowledged within its visibility timeout, by default an hour: a
task with a longer countdown runs twice.
"""

SHORT_COUNTDOWN: Final = 2.0
"""Seconds, if the wait isn't known: somebody is asking the server just now, or the storage is away."""

LONGEST_REFUSED: Final = 60.0
"""Up to so many seconds the countdown grows while the server refuses although there are tokens."""

TIMES: Final = "keepa_tokens_times"
"""The header of the message that says how often the task was sent back."""

BROKER_AWAY: Final = {"max_retries": 120, "interval_start": 0.5, "interval_step": 0.5, "interval_max": 5.0}
"""How long Celery tries to send a task back if the broker is away, often together with the storage: some ten minutes.
By default Celery tries for less than a second, and then the task is lost."""


class TokenTask(_Task):
    """The base of tasks that spend tokens: `@app.task(base=TokenTask)`. A task is sent back until it is done.

    NotEnoughTokens sends the task back to the broker, with a countdown of its `retry_after`, LONGEST_COUNTDOWN at most;
    StorageUnavailable, and an unknown balance, with SHORT_COUNTDOWN. That is no failure: it doesn't count towards
    `max_retries`, and `autoretry_for` leaves it alone. most_times: how often a task may be sent back, after which it
    fails with the last such error (None: as often as it takes); Celery's own `expires` bounds the time.

    If waiting can't help, the task fails at once: a cost that the quota could never admit, no refill (`retry_after` is
    inf), a mistake in the configuration. A task that was called directly or eagerly can't be sent back, so it raises;
    if another task called it, that one is sent back for both. A task that has paid through a guard would pay again, so
    it fails once the storage was away for ten minutes. A `dont_autoretry_for` of your own must include TokenTask's.
    """

    dont_autoretry_for: tuple[type[Exception], ...] = (NotEnoughTokens, StorageUnavailable, CostTooLarge, ConfigError)
    most_times: int | None = None

    def __init_subclass__(cls, **options: object) -> None:
        """Check a task's options now, not when a task is sent back for the first time."""
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
        # A task that comes back keeps its place in line by its id. A task that doesn't counts as part of its caller,
        # which stands in line and pays for both.
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
    """Return the seconds after which a task asks again; times: how often it was sent back; inf: no refill will help."""
    if isinstance(missing, StorageUnavailable):
        return SHORT_COUNTDOWN
    if missing.reason == Reason.UNKNOWN:
        return min(missing.retry_after, SHORT_COUNTDOWN)
    wait = missing.retry_after
    if missing.reason == SERVER_REFUSES:  # this hits all tasks, so they come back ever later
        wait = max(wait, min(2.0 ** min(times, 10), LONGEST_REFUSED))
    return wait if math.isinf(wait) else min(wait, LONGEST_COUNTDOWN)
