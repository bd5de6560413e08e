"""An exact token bucket for APIs whose server owns the real bucket, kept in step with Keepa.

Most callers want `KeepaSync.from_key(api_key)` and its `request`, which waits; task queues want `try_request`, which
raises with the wait. Coroutines: `AsyncKeepaSync`. For any other API: `TokenBucket`, with `try_acquire` or `acquire`.
Workers in several processes share one balance through `SQLiteStorage`, on several machines through `RedisStorage`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .async_bucket import AsyncReservation, AsyncTokenBucket
from .bucket import Reservation, TokenBucket
from .clock import Clock, SystemClock
from .errors import (
    AcquireTimeout,
    BadReading,
    ConfigError,
    CostTooLarge,
    KeepaTokensError,
    NotEnoughTokens,
    StorageUnavailable,
)
from .events import Event, EventKind, Listener, LoggingListener
from .keepa.async_sync import AsyncCall, AsyncKeepaSync
from .keepa.quota import keepa_quota
from .keepa.sync import Call, KeepaSync
from .quota import Quota
from .rules.commands import Outcome
from .rules.decision import Decision, Reason, Snapshot
from .rules.reading import Reading
from .rules.state import BucketState, Hold
from .storage.base import AsyncStorage, Storage
from .storage.memory import MemoryStorage
from .units import UNLIMITED

if TYPE_CHECKING:
    from .keepa.probe import async_http_probe as async_http_probe
    from .keepa.probe import http_probe as http_probe
    from .storage.redis import AsyncRedisStorage as AsyncRedisStorage
    from .storage.redis import RedisStorage as RedisStorage
    from .storage.sqlite import AsyncSQLiteStorage as AsyncSQLiteStorage
    from .storage.sqlite import SQLiteStorage as SQLiteStorage
    from .storage.urls import async_storage_from_url as async_storage_from_url
    from .storage.urls import storage_from_url as storage_from_url

    __version__: str

__all__ = [
    "UNLIMITED",
    "AcquireTimeout",
    "AsyncCall",
    "AsyncKeepaSync",
    "AsyncReservation",
    "AsyncStorage",
    "AsyncTokenBucket",
    "BadReading",
    "BucketState",
    "Call",
    "Clock",
    "ConfigError",
    "CostTooLarge",
    "Decision",
    "Event",
    "EventKind",
    "Hold",
    "KeepaSync",
    "KeepaTokensError",
    "Listener",
    "LoggingListener",
    "MemoryStorage",
    "NotEnoughTokens",
    "Outcome",
    "Quota",
    "Reading",
    "Reason",
    "Reservation",
    "Snapshot",
    "Storage",
    "StorageUnavailable",
    "SystemClock",
    "TokenBucket",
    "keepa_quota",
]

# What needs an extra is imported when it is asked for, and is not in __all__: a star import must not need it.
_EXTRAS = {
    "AsyncRedisStorage": "storage.redis",
    "AsyncSQLiteStorage": "storage.sqlite",
    "RedisStorage": "storage.redis",
    "SQLiteStorage": "storage.sqlite",
    "async_http_probe": "keepa.probe",
    "async_storage_from_url": "storage.urls",
    "http_probe": "keepa.probe",
    "storage_from_url": "storage.urls",
}


def __dir__() -> list[str]:
    return sorted({*__all__, *_EXTRAS, "__version__"})


def __getattr__(name: str) -> object:
    if name == "__version__":
        # Seldom asked for, slow to import, and not there for a program that was packed without its metadata.
        from importlib.metadata import version  # noqa: PLC0415

        return version("keepa-tokens")
    if name not in _EXTRAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXTRAS[name]}", __name__), name)
