"""The testing kit: time that moves by hand, and a model of Keepa's server. Nothing here waits for real time by itself.

The server is imported on first use, so that a test which needs only a clock doesn't pay for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from .clock import ManualClock, ScaledClock, VirtualLoop, virtual_loop

if TYPE_CHECKING:
    from .fake_keepa import FakeKeepa
    from .fake_server import FakeKeepaServer

__all__ = ["FakeKeepa", "FakeKeepaServer", "ManualClock", "ScaledClock", "VirtualLoop", "virtual_loop"]

_HOMES: Final = {"FakeKeepa": "fake_keepa", "FakeKeepaServer": "fake_server"}

if not TYPE_CHECKING:  # a type checker that saw this would accept any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
