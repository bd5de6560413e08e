"""Fifty asyncio workers on one key: each request waits for its own tokens, and nobody overspends.

pip install 'keepa-tokens[http]'
KEEPA_API_KEY=... python examples/fifty_workers.py B0088PUEPK 0439064872
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

import httpx

from keepa_tokens import AsyncKeepaSync
from keepa_tokens.guards.httpx import AsyncKeepaTransport

WORKERS = 50


async def work(client: httpx.AsyncClient, asins: asyncio.Queue[str]) -> None:
    """Look one product up after the other, as long as there are any."""
    while True:
        try:
            asin = asins.get_nowait()
        except asyncio.QueueEmpty:
            return
        answer = await client.get("/product", params={"domain": 1, "asin": asin, "history": 0})
        print(asin, answer.raise_for_status().json()["products"][0]["title"])


async def main(asins: Sequence[str]) -> None:
    """Share the work among the workers, and one client, and so one bucket, among them too."""
    key = os.environ["KEEPA_API_KEY"]
    # Several processes share one bucket by sharing its storage: storage=AsyncRedisStorage.from_url("redis://localhost")
    sync = AsyncKeepaSync.from_key(key)
    queue: asyncio.Queue[str] = asyncio.Queue()
    for asin in asins:
        queue.put_nowait(asin)

    transport = AsyncKeepaTransport(sync, api_key=key, retry_refused=True)
    async with (
        httpx.AsyncClient(base_url="https://api.keepa.com", transport=transport, timeout=60) as client,
        asyncio.TaskGroup() as workers,
    ):
        for _ in range(WORKERS):
            workers.create_task(work(client, queue))

    bucket = await sync.bucket.peek()
    print(f"{bucket.balance} of {bucket.capacity} tokens left")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["B0088PUEPK"]))
