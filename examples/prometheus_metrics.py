"""What happens to a Keepa bucket as Prometheus metrics, beside the usual log.

pip install 'keepa-tokens[http,requests,metrics]'
KEEPA_API_KEY=... python examples/prometheus_metrics.py B0088PUEPK
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import prometheus_client
import requests

from keepa_tokens import KeepaSync, LoggingListener
from keepa_tokens.guards.requests import KeepaAdapter
from keepa_tokens.metrics import PrometheusListener

KEEPA = "https://api.keepa.com/"


def main(asins: Sequence[str], registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY) -> None:
    """Look products up, then print the metrics that a scrape would find."""
    key = os.environ["KEEPA_API_KEY"]
    # One listener for a process: it serves every bucket. The label `bucket` is a digest of the API key.
    sync = KeepaSync.from_key(key, listener=PrometheusListener(registry, then=LoggingListener()))
    # A service would call prometheus_client.start_http_server(8000) here.
    with requests.Session() as session:
        session.mount(KEEPA, KeepaAdapter(sync, api_key=key, retry_refused=True))
        for asin in asins:
            session.get(KEEPA + "product", params={"domain": "1", "asin": asin}, timeout=60).raise_for_status()

    for line in prometheus_client.generate_latest(registry).decode().splitlines():
        if line.startswith("keepa_tokens_") and "_created" not in line:
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:] or ["B0088PUEPK"])
