"""The testing kit: time that moves by hand, and a model of Keepa's server. Nothing here waits for real time by itself.

Each name is imported when it is first asked for, so that a test which needs only a clock pays for nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepa_tokens.testing.clock import ManualClock, ScaledClock, VirtualLoop, virtual_loop
    from keepa_tokens.testing.fake_keepa import FakeKeepa
    from keepa_tokens.testing.fake_server import FakeKeepaServer

__all__ = ["FakeKeepa", "FakeKeepaServer", "ManualClock", "ScaledClock", "VirtualLoop", "virtual_loop"]


def _home(name: str) -> str | None:
    """Return the module that defines a public name of the kit."""
    match name:
        case "ManualClock" | "ScaledClock" | "VirtualLoop" | "virtual_loop":
            return "clock"
        case "FakeKeepa":
            return "fake_keepa"
        case "FakeKeepaServer":
            return "fake_server"
        case _:
            return None


if not TYPE_CHECKING:  # a checker that saw this would take any name for one of the kit's

    def __getattr__(name: str) -> object:
        home = _home(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
