"""Celery tasks that spend Keepa tokens: a task that finds too few goes back to the broker, and the worker goes on.

pip install 'keepa-tokens[http,redis,celery]'
KEEPA_API_KEY=... REDIS_URL=redis://localhost celery --app celery_tasks worker      (in the folder of this file)
KEEPA_API_KEY=... REDIS_URL=redis://localhost python examples/celery_tasks.py B0088PUEPK 0439064872
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import httpx
from celery import Celery

from keepa_tokens import KeepaSync, RedisStorage
from keepa_tokens.guards.celery import KeepaTask
from keepa_tokens.guards.httpx import KeepaTransport

KEY = os.environ["KEEPA_API_KEY"]
REDIS = os.environ.get("REDIS_URL", "redis://localhost")

app = Celery("celery_tasks", broker=REDIS, backend=REDIS)

# All workers share the bucket by its storage. timeout=0 and retry_refused: whether the
# bucket has too little or the server says so, the request raises NotEnoughTokens.
sync = KeepaSync.from_key(KEY, storage=RedisStorage.from_url(REDIS))
client = httpx.Client(
    base_url="https://api.keepa.com",
    transport=KeepaTransport(sync, api_key=KEY, timeout=0, retry_refused=True),
    timeout=60,
)


@app.task(
    base=KeepaTask,
    name="title_of",
    autoretry_for=(httpx.HTTPError,),
    retry_backoff=True,
)
def title_of(asin: str) -> str:
    """Look a product's title up."""
    answer = client.get("/product", params={"domain": 1, "asin": asin, "history": 0})
    return str(answer.raise_for_status().json()["products"][0]["title"])


def main(asins: Sequence[str]) -> None:
    """Send a task for each product, and print what comes of them."""
    results = [(asin, title_of.delay(asin)) for asin in asins]
    for asin, result in results:
        print(asin, result.get())


if __name__ == "__main__":
    main(sys.argv[1:] or ["B0088PUEPK"])
