"""A Celery app as programs have it, for a worker of its own: all at module level, and JSON on every way.

The worker imports it, and so uses the storage, before it forks its pool.
"""

from __future__ import annotations

import os

import requests
from celery import Celery

from keepa_tokens import Event, EventKind, KeepaSync, NotEnoughTokens, Quota, TokenBucket, http_probe
from keepa_tokens.guards.celery import KeepaTask
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.storage.redis import RedisStorage
from keepa_tokens.units import UNLIMITED

REDIS = os.environ["TEST_REDIS_URL"]
BUCKET = os.environ.get("TEST_BUCKET_URL", REDIS + "/2")
KEEPA = os.environ["TEST_KEEPA_URL"]
STEP = float(os.environ["TEST_STEP"])
"""Seconds between the server's refills."""

app = Celery("celery_app", broker=REDIS + "/0", backend=REDIS + "/1", set_as_current=False)
waits: list[Event] = []


def listen(event: Event) -> None:
    """Note who sleeps."""
    if event.kind is EventKind.WAITING:
        waits.append(event)


bucket = TokenBucket(
    Quota(300, 5, STEP, stepped=True, overdraft=UNLIMITED, synced=True),
    key="celery",
    storage=RedisStorage.from_url(BUCKET),
    listener=listen,
)
bucket.peek()  # the connection is there before the fork
session = requests.Session()
session.mount(
    KEEPA,
    KeepaAdapter(
        KeepaSync(bucket, probe=http_probe("k", base_url=KEEPA)), host="127.0.0.1", timeout=0, retry_refused=True
    ),
)


@app.task(base=KeepaTask, name="look_up", shared=False)
def look_up(count: int) -> dict[str, int]:
    """Look products up; return how many, who did it, and how often its process slept for tokens."""
    asins = ",".join(f"B{place:09d}" for place in range(count))
    answer = session.get(KEEPA + "/product", params={"domain": "1", "asin": asins}, timeout=20)
    return {"products": len(answer.json()["products"]), "process": os.getpid(), "waits": len(waits)}


@app.task(base=KeepaTask, name="never", shared=False)
def never() -> None:
    """Want what no refill will bring."""
    raise NotEnoughTokens(5, retry_after=float("inf"), reason="EMPTY", balance=-3)
