"""The `keepa` package's async client, its requests paid from a bucket that follows Keepa's own.

pip install 'keepa-tokens[http]' keepa
KEEPA_API_KEY=... python examples/keepa_client_async.py B0088PUEPK 0439064872
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import keepa

from keepa_tokens import AsyncKeepaSync
from keepa_tokens.guards.keepa import guard


async def main(asins: Sequence[str]) -> None:
    """Look products up, and the newest deals at the same time; neither waits for tokens in the other's way."""
    key = os.environ["KEEPA_API_KEY"]
    # Several processes share one bucket by sharing its storage: storage=AsyncRedisStorage.from_url("redis://localhost")
    sync = AsyncKeepaSync.from_key(key)
    api = guard(await keepa.AsyncKeepa.create(key), sync)

    products: list[Any]
    deals: Any
    products, deals = await asyncio.gather(
        api.query(asins, history=False, progress_bar=False),
        api.deals({"page": 0, "domainId": 1}),
    )
    for product in products:
        print(product["asin"], product["title"])
    print(len(deals["dr"]), "deals")

    bucket = await sync.bucket.peek()
    print(f"{bucket.balance} of {bucket.capacity} tokens left")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["B0088PUEPK"]))
