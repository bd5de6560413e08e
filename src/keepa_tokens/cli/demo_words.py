"""What the demo's views say alike."""

from __future__ import annotations

import math

from .demo_scene import DEBT, Chapter, Scene
from .old_rule import THRESHOLD


def duration(seconds: float) -> str:
    """Return seconds as 0:07, 12:34 or 1:02:03, rounded up; `never` for inf."""
    if math.isinf(seconds):
        return "never"
    whole = math.ceil(max(0.0, seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def waits(scene: Scene) -> str:
    """Return how often workers waited, and why."""
    reasons = [f"{times} {reason}" for reason, times in scene.waits.most_common()]
    return ", ".join(reasons) or "none"


def story(scene: Scene) -> str:
    """Return where the story is, in a sentence."""
    fault = scene.fault
    match scene.chapter:
        case Chapter.INGESTING:
            return "Workers ingest; each answer brings the server's balance."
        case Chapter.LARGE_CALL:
            return "All pause, for one call that costs more than there is."
        case Chapter.LOST if fault is not None:
            return f"The timestamp is lost at {fault.balance}. peek() promises a grant in {duration(fault.promised)}."
        case Chapter.RECOVERED if fault is not None and fault.took is not None:
            return (
                f"Recovered: a grant after {duration(fault.took)}, {duration(fault.promised)} promised. "
                f"The old rule stands at {scene.old_balance()}."
            )
        case Chapter.OVER:
            return "The workers have ended."
        case _:
            return ""


def prologue(scene: Scene) -> list[str]:
    """Return what is said of the fault before it."""
    left = max(0, math.ceil(scene.settings.seconds / 2 - scene.real_seconds))
    when = f"In {left} s" if left else "Any moment"
    return [
        f"{when} one large call takes the balance to {DEBT}, and the stored time of",
        "the last refill is lost. The old system took now for it, so nothing refilled;",
        f"and below {THRESHOLD} tokens it didn't ask the server. It stood still for days.",
    ]


def new_rule(scene: Scene) -> str:
    """Return how this library took the fault."""
    fault = scene.fault
    if fault is None:
        return ""
    asked = "" if fault.asked_after is None else f"server asked at {duration(fault.asked_after)}, "
    if fault.took is None:
        left = fault.promised - (scene.now_us - fault.at_us) / 1_000_000
        return f"{asked}a grant in {duration(left)}"
    return f"{asked}granted at {duration(fault.took)} (promised {duration(fault.promised)})"


def old_rule(scene: Scene) -> str:
    """Return how the old rule took it, from the same requests."""
    fault = scene.fault
    if fault is None:
        return ""
    if fault.old_granted or fault.old_asked:
        return f"{fault.old_granted} granted, {fault.old_refused} refused; asked the server {fault.old_asked} times"
    still = duration((scene.now_us - fault.at_us) / 1_000_000)
    return f"unmoved for {still}, refused {count(fault.old_refused, 'time')}, server never asked"
