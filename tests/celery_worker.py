"""A real Celery worker on a real broker, in a thread of this process, so that a test sees what its tasks do."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from keepa_tokens.guards.celery import KeepaTask
from tests.servers import running

PATIENCE: Final = 20.0
"""Seconds after which something is wrong."""

MARKS: Final = [
    # celery 5.7 calls redis-py by names that redis-py 8 calls deprecated.
    pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning"),
    # A worker leaves its connections to the end of its process, which this one is not.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
"""For the tests that run one."""


class Tasks:
    """A worker's two tasks. What they do is `work`, since a worker knows only the tasks that it started with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.app = Celery("tests", broker=url + "/0", backend=url + "/1", set_as_current=False)
        self.app.conf.update(
            broker_connection_retry_on_startup=True, result_serializer="pickle", accept_content=["json", "pickle"]
        )
        self.work: Callable[..., object] = int

        @self.app.task(base=KeepaTask, name="plain", shared=False)
        def plain(*args: object, **kwargs: object) -> object:
            return self.work(*args, **kwargs)

        @self.app.task(
            base=KeepaTask,
            bind=True,
            name="retrying",
            shared=False,
            autoretry_for=(Exception,),
            max_retries=1,
            default_retry_delay=0,
        )
        def retrying(task: Any) -> object:
            return self.work(task)

        self.plain, self.retrying = plain, retrying


@contextmanager
def worker(loglevel: str = "WARNING") -> Iterator[Tasks]:
    """Run a worker on a broker of its own."""
    with running("valkey") as server:
        tasks = Tasks(server.url)
        with embedded(tasks.app, loglevel):
            yield tasks


@contextmanager
def embedded(app: Celery, loglevel: str = "WARNING") -> Iterator[None]:
    """Run a worker of an app in a thread; afterwards nothing is left open, and logging is as it was."""
    app.conf.worker_hijack_root_logger = False
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel=loglevel, shutdown_timeout=PATIENCE):
            yield
        app.close()
        gc.collect()  # a result asks its backend to forget it, which must still be there
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
        root.setLevel(level)
