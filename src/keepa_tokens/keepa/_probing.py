"""How a probe is checked and called, for threads and coroutines alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from inspect import isawaitable, iscoroutine, signature
from typing import Final, TypeAlias, TypeVar, cast

from .._arguments import index, redacted, shown, suspends
from .._interrupts import interrupt_in
from .._plans import Steps
from ..errors import ConfigError
from ..events import EventKind
from ..rules.commands import Reconcile, Unclaim
from ..units import MICROSECONDS
from .reading import envelope_of

P = TypeVar("P")
Answer: TypeAlias = tuple[int, Mapping[str, object] | None]

LONGEST_WHY = 200

WITHHELD: Final = frozenset({400, 401, 402, 403, 404, 405})
"""Statuses by which a working server refuses the probe itself: a wrong key, or `/token` can't be reached."""

LONGEST_PROBE_S: Final = 10.0
"""How long a probe may take: shorter than its claim (20 s), so that no second worker probes meanwhile."""

LONGEST_PROBE_US: Final = round(LONGEST_PROBE_S * MICROSECONDS)


class Probed(Enum):
    """How a probe ended: it brought a reading, it failed, or the server refused it."""

    TOLD = auto()
    FAILED = auto()
    WITHHELD = auto()


def checked_probe(probe: P, *, blocks: bool) -> P:
    """Return `probe` if it can be called; a coroutine function where it `blocks` is a ConfigError."""
    if probe is None:
        return probe
    if not callable(probe) or isinstance(probe, type):
        raise TypeError(f"probe must be callable, as http_probe(api_key) is, not {shown(probe)}")
    if blocks and suspends(probe):
        raise ConfigError(
            "this probe is a coroutine function: KeepaSync needs one that blocks, AsyncKeepaSync takes it"
        )
    try:
        signature(probe).bind(**({"timeout": 1.0} if _takes_timeout(probe) else {}))
    except TypeError as error:
        raise TypeError(
            f"probe is called with nothing, or with timeout= alone: {shown(probe)} can't be called so ({error})"
        ) from None
    except ValueError:  # Python doesn't know its arguments
        pass
    return probe


async def probed(steps: Steps[object], probe: Callable[..., object], left_us: int) -> Probed:
    """Ask the server and return how that ended. A failure needs no note in the bucket: the claim runs out."""
    limit_us, begun = min(left_us, LONGEST_PROBE_US), steps.door.elapsed_us()
    answer = await _asked(probe, limit_us, blocks=steps.blocks)
    # The probe was made, so the claim is used up, and clean-up must not give it back.
    claimed, steps.claimed = steps.claimed, None
    if isinstance(answer, str):
        steps.door.say(EventKind.PROBE_FAILED, answer)
        if claimed is not None and limit_us < LONGEST_PROBE_US and steps.door.elapsed_us() - begun >= limit_us:
            # It failed because its caller had too little time, so it doesn't count as a failed probe.
            await steps.apply(Unclaim(claimed))
        return Probed.FAILED
    status, body = answer
    said = await envelope_of(body, steps.turn)
    if said.reading is None:
        refused = status in WITHHELD
        why = "the server refuses to tell: is the API key good, and the address right?" if refused else said.why
        steps.door.say(EventKind.PROBE_FAILED, f"status {status}: {why}")
        return Probed.WITHHELD if refused else Probed.FAILED
    await steps.finish(Reconcile(said.reading))
    return Probed.TOLD


async def _asked(probe: Callable[..., object], limit_us: int, *, blocks: bool) -> Answer | str:
    """Ask the server for its balance; return why it failed. blocks: for threads, so nothing is awaited."""
    try:
        result = probe(timeout=limit_us / MICROSECONDS) if _takes_timeout(probe) else probe()
        awaited = not blocks and isawaitable(result)
        if awaited:
            result = await cast("Awaitable[object]", result)
    except Exception as error:  # noqa: BLE001 - whatever a probe raises, it brought no reading
        interrupt = interrupt_in(error)
        if interrupt is not None:
            raise interrupt from None
        text = redacted(str(error))[:LONGEST_WHY]
        return f"the probe raised {type(error).__name__}{': ' if text else ''}{text}"
    if not blocks and not awaited:
        raise ConfigError(
            f"a probe for AsyncKeepaSync must be awaitable, this one returned {type(result).__name__}: one that"
            " blocks goes with KeepaSync"
        )
    return _answered(result)


def _answered(result: object) -> Answer:
    """Return the status and body that a probe returned; ConfigError if it returned anything else."""
    given = type(result).__name__
    if iscoroutine(result):
        result.close()
    if isinstance(result, tuple):
        parts = cast("tuple[object, ...]", result)
        given = f"tuple ({', '.join(type(part).__name__ for part in parts)})"
        if len(parts) == 2:  # noqa: PLR2004 - a pair
            status, body = index(parts[0]), parts[1]
            if status is not None and (body is None or isinstance(body, Mapping)):
                return status, cast("Mapping[str, object] | None", body)
    raise ConfigError(f"a probe must return (status, parsed body or None), not {given}")


def _takes_timeout(probe: object) -> bool:
    try:
        return "timeout" in signature(cast("type", probe)).parameters
    except ValueError:  # Python doesn't know its arguments
        return False
