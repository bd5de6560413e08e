"""requests, its requests to Keepa paid from a bucket that follows Keepa's own.

pip install 'keepa-tokens[http,requests]'
KEEPA_API_KEY=... python examples/requests_client.py B0088PUEPK 0439064872
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import requests

from keepa_tokens import KeepaSync
from keepa_tokens.guards.requests import KeepaAdapter

KEEPA = "https://api.keepa.com/"


def main(asins: Sequence[str]) -> None:
    """Look products up, a hundred at a time: each request waits for its own tokens."""
    key = os.environ["KEEPA_API_KEY"]
    # Several processes share one bucket by sharing its storage: storage=RedisStorage.from_url("redis://localhost")
    sync = KeepaSync.from_key(key)
    with requests.Session() as session:
        # The adapter adds the API key, below all that logs a URL.
        session.mount(KEEPA, KeepaAdapter(sync, api_key=key, retry_refused=True))
        for first in range(0, len(asins), 100):
            params = {"domain": "1", "history": "0", "asin": ",".join(asins[first : first + 100])}
            answer = session.get(KEEPA + "product", params=params, timeout=60)
            answer.raise_for_status()
            for product in answer.json()["products"]:
                print(product["asin"], product["title"])

    bucket = sync.bucket.peek()
    print(f"{bucket.balance} of {bucket.capacity} tokens left")


if __name__ == "__main__":
    main(sys.argv[1:] or ["B0088PUEPK"])
