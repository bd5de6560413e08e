"""An exact token bucket for APIs whose server owns the real bucket, kept in step with Keepa."""

from importlib.metadata import version as _version

from .aio import AsyncReservation, AsyncTokenBucket
from .bucket import Reservation, TokenBucket
from .clock import Clock, SystemClock
from .commands import Outcome
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
from .quota import Quota
from .state import BucketState, Decision, Hold, Reading, Reason, Snapshot
from .storage.base import AsyncStorage, Storage
from .storage.memory import MemoryStorage
from .units import UNLIMITED

__version__ = _version("keepa-tokens")

__all__ = [
    "UNLIMITED",
    "AcquireTimeout",
    "AsyncReservation",
    "AsyncStorage",
    "AsyncTokenBucket",
    "BadReading",
    "BucketState",
    "Clock",
    "ConfigError",
    "CostTooLarge",
    "Decision",
    "Event",
    "EventKind",
    "Hold",
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
]
