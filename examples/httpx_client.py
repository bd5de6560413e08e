"""httpx, its requests to Keepa paid from a bucket that follows Keepa's own.

pip install 'keepa-tokens[http]'
KEEPA_API_KEY=... python examples/httpx_client.py B0088PUEPK 0439064872
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import httpx

from keepa_tokens import KeepaSync
from keepa_tokens.guards.httpx import KeepaTransport
from keepa_tokens.keepa.estimates import Estimator


def main(asins: Sequence[str]) -> None:
    """Look products up with their offers, whose cost nobody knows before: the estimator learns it from the answers."""
    key = os.environ["KEEPA_API_KEY"]
    # Several processes share one bucket by sharing its storage: storage=RedisStorage.from_url("redis://localhost")
    sync = KeepaSync.from_key(key)
    transport = KeepaTransport(sync, api_key=key, estimator=Estimator(), retry_refused=True)
    with httpx.Client(base_url="https://api.keepa.com", transport=transport, timeout=60) as client:
        for asin in asins:
            # The transport adds the API key: httpx, which logs every URL, never has it.
            answer = client.get("/product", params={"domain": 1, "asin": asin, "offers": 20}).raise_for_status().json()
            print(asin, answer["products"][0]["title"], answer["tokensConsumed"], "tokens")

    bucket = sync.bucket.peek()
    print(f"{bucket.balance} of {bucket.capacity} tokens left")


if __name__ == "__main__":
    main(sys.argv[1:] or ["B0088PUEPK"])
