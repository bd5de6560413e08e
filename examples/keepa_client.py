"""The `keepa` package, its requests paid from a bucket that follows Keepa's own.

pip install 'keepa-tokens[http]' keepa
KEEPA_API_KEY=... python examples/keepa_client.py B0088PUEPK 0439064872
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import keepa

from keepa_tokens import KeepaSync
from keepa_tokens.guards.keepa import guard


def main(asins: Sequence[str]) -> None:
    """Look products up, as many as are wanted: each request of up to 100 waits for its own tokens."""
    key = os.environ["KEEPA_API_KEY"]
    # Several processes share one bucket by sharing its storage: storage=RedisStorage.from_url("redis://localhost")
    sync = KeepaSync.from_key(key)
    api = guard(keepa.Keepa(key), sync)

    products: list[Any] = api.query(asins, history=False, progress_bar=False)
    for product in products:
        print(product["asin"], product["title"])

    bucket = sync.bucket.peek()
    print(f"{bucket.balance} of {bucket.capacity} tokens left")


if __name__ == "__main__":
    main(sys.argv[1:] or ["B0088PUEPK"])
