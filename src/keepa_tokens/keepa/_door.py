"""What `KeepaSync` and `AsyncKeepaSync` have in common: how they use a bucket, and check their arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from importlib import import_module
from typing import Any, Final, Generic, TypeVar

from .._arguments import (
    LONGEST_LABEL,
    LONGEST_NAME,
    NotCopied,
    checked_key,
    hold_for_us,
    microseconds,
    printable,
    timeout_us,
)
from .._door import BucketBase, cost, new_id
from .._held import HeldBase
from .._plans import Plan, Steps, reserve, snapshot_of, try_reserve
from ..errors import ConfigError
from ..events import EventKind
from ..quota import Quota
from ..rules.commands import Cancel, ClaimProbe, Outcome, Peek, Reconcile, Reserve, Settle, Unclaim
from ..rules.decision import Reason, Snapshot
from ..units import LIMIT, MICROSECONDS
from ._probing import Probed, checked_probe, probed
from .backoff import STOOD, Attempts, retry_after_of
from .quota import bucket_key, keepa_quota
from .reading import REFUSED, Body, Envelope, envelope_of, unpacked

B = TypeVar("B", bound=BucketBase[Any])
C = TypeVar("C", bound="CallBase")

SERVER_REFUSED: Final = "the server refused the call (429)"
"""What the event says of a call that was settled at 0 tokens."""

SHORTEST_PROBE_US: Final = MICROSECONDS // 2
"""A caller with less time than this doesn't probe."""

PLACE: Final = ContextVar[str | None]("the place in line of the task under way", default=None)
"""The id of a task that comes back: its calls keep their place in line by it, in any worker. None: each has its own."""


class SyncBase(NotCopied, Generic[B, C]):
    """The terms on which calls are made: how long a hold lives, how old a reading may be before a refusal probes."""

    bucket: B

    def __init__(self, probe: Callable[..., object] | None, probe_interval: float, hold_for: float) -> None:
        if not self.bucket.quota.synced:
            raise ConfigError(
                "KeepaSync needs a bucket that follows the server: make its quota with keepa_quota(), or with"
                " synced=True"
            )
        self._probe = checked_probe(probe, blocks=self._steps().blocks)
        self._probe_after_us = microseconds("probe_interval", probe_interval)
        if self._probe_after_us < 1:
            raise ConfigError(f"probe_interval={probe_interval!r} must be longer than 0 s")
        self._hold_for_us = hold_for_us(hold_for)

    def _steps(self) -> Steps[object]:
        raise NotImplementedError

    def _call(self, command: Reserve, outcome: Outcome, waited_us: int) -> C:
        raise NotImplementedError

    def _wanted(
        self, estimate: int, keep: int, label: str, *, waits: bool = False, place: str | None = None
    ) -> Reserve:
        """Return the command that asks for a call's hold.

        Its ticket in line is `place`, else the id of the task under way, else, if the caller waits, the hold's id.
        """
        estimate, keep = cost(self.bucket.quota, estimate, keep, "estimate")
        hold_id, place = new_id(), PLACE.get() if place is None else printable("place", place, 1, LONGEST_NAME)
        arrived = STOOD.get()
        STOOD.set(None)  # it is for one request: a listener, or a task begun while that waits, may make others
        return Reserve(
            hold_id,
            estimate,
            self._hold_for_us,
            keep,
            self._probe_after_us,
            scout=self._probe is None,
            label=printable("label", label, 0, LONGEST_LABEL),
            ticket=hold_id if waits and place is None else place,
            arrived=arrived,
        )

    def _request(self, estimate: int, keep: int, timeout: float | None, label: str) -> Plan[C]:
        patience_us = timeout_us(timeout)
        wanted = self._wanted(estimate, keep, label, waits=patience_us != 0)
        return lambda steps: reserve(steps, wanted, patience_us, self._call, self._ask)

    def _try_request(self, estimate: int, keep: int, place: str | None, label: str) -> Plan[C]:
        wanted = self._wanted(estimate, keep, label, place=place)
        return lambda steps: try_reserve(steps, wanted, self._call, self._ask)

    def _attempts(self, estimate: int, keep: int, timeout: float | None, label: str) -> Attempts[C]:
        wanted = self._wanted(estimate, keep, label)

        def again(steps: Steps[object], left_us: int | None) -> Awaitable[C]:
            wanted = self._wanted(estimate, keep, label, waits=left_us != 0)
            return reserve(steps, wanted, left_us, self._call, self._ask)

        return Attempts(wanted.tokens, wanted.keep, timeout_us(timeout), again)

    async def _ask(self, steps: Steps[object], command: Reserve, left_us: int) -> Outcome:
        """Ask for the hold; if that brings the claim on the probe, probe and ask once more.

        If the server refuses the probe, the request goes ahead as the scout, as it does without a probe: so the
        server's answer tells the caller at once what is wrong. The call has no hold, because there is no known
        balance to hold tokens of, and the claim keeps everybody else back meanwhile.
        """
        if left_us < SHORTEST_PROBE_US:
            # If no caller ever had time for a probe, nobody would learn the balance.
            command = replace(command, scout=True)
        outcome = await steps.apply(command)
        if outcome.granted or not outcome.probe or self._probe is None:
            return outcome
        match await probed(steps, self._probe, left_us):
            case Probed.TOLD:
                return await steps.apply(command)
            case Probed.WITHHELD:
                if command.ticket is not None:
                    # The call goes, so its ticket leaves the line.
                    await steps.apply(Cancel(command.ticket))
                return replace(outcome, granted=True, reason=Reason.GRANTED, retry_after_us=0)
            case Probed.FAILED:
                return outcome

    async def _observed(self, body: Body, status: int | None) -> None:
        """Take an envelope seen elsewhere, if it is fresh. That of a refusal (429) carries the true balance too."""
        steps, (seen, number) = self._steps(), unpacked(body, status)
        said = await envelope_of(seen, steps.turn)
        if said.reading is None:
            steps.door.say(EventKind.READING_BAD, f"status {number or 200}: {said.why}")
            return
        await steps.finish(Reconcile(said.reading))

    async def _refreshed(self, steps: Steps[object]) -> Snapshot:
        """Probe now, unless somebody is at it, and return the bucket."""
        if self._probe is None:
            raise ConfigError("refresh() needs a probe: give KeepaSync one, e.g. probe=http_probe(api_key)")
        if (await steps.apply(ClaimProbe())).probe:
            await probed(steps, self._probe, LIMIT)
        return snapshot_of(await steps.apply(Peek()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.bucket!r})"


class CallBase(HeldBase[object]):
    """What `Call` and `AsyncCall` have in common."""

    _what = "call"
    _advice = (
        "it is charged in full when its hold runs out. Give it the answer, call.settle(answer.content, status=...), or"
        " call.settle() where none came"
    )

    def __init__(self, steps: Callable[[], Steps[object]], command: Reserve, outcome: Outcome, waited_us: int) -> None:
        super().__init__(steps().door, command, outcome, waited_us)
        self._steps, self._claimed = steps, outcome.claimed_until_us
        self.arrived = outcome.arrived
        self.waited = self.decision.waited
        self.refused = False
        self.consumed: int | None = None
        self.told = False
        self.retry_after: float | None = None

    async def _settled(self, body: Body, status: int | None) -> None:
        answer, number = unpacked(body, status)
        if not self.open:
            # Settled or cancelled before.
            return
        self._unwatch()
        self.refused = number == REFUSED
        self.retry_after = retry_after_of(body)
        if answer is None and not self.refused:
            # Nobody knows whether the call was charged: its hold is left to run out.
            return
        steps, said = self._steps(), Envelope(None)
        if answer is not None:
            said = await envelope_of(answer, steps.turn)
            if said.reading is None:
                self._door.say(EventKind.READING_BAD, said.why)
        consumed = 0 if self.refused else said.consumed
        charged = self.tokens if consumed is None else consumed
        settle = Settle(self.id, charged, said.reading, refused=self.refused, label=self._label)
        outcome = await steps.finish(settle)
        if self.refused:
            # The bucket's own event of a settle doesn't say why, and of a call without a hold there is none.
            self._door.say(EventKind.SETTLED, SERVER_REFUSED)
        self.arrived = outcome.arrived if self.arrived is None else self.arrived
        self.open = False
        self.consumed, self.told = consumed, said.reading is not None

    async def _cancelled(self) -> None:
        """End a call that was never sent; if it was the scout, give back its claim on the probe too."""
        self._unwatch()
        steps = self._steps()
        await steps.finish(Cancel(self.id))
        if self._claimed is not None:
            await steps.finish(Unclaim(self._claimed))
        self.open = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, tokens={self.tokens}, refused={self.refused})"


def steps_of(door: SyncBase[Any, Any]) -> Steps[object]:
    """Return the steps of one call by a door, for the guards."""
    return door._steps()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the library's own


def checked_bucket(bucket: object, kind: type[B], *, twin: str) -> B:
    """Return `bucket` if it is of `kind`. The error names the type of anything else: the value may be an API key."""
    if isinstance(bucket, kind):
        return bucket
    if isinstance(bucket, str):
        raise ConfigError("bucket is a text: for an API key there is from_key(api_key)")
    raise ConfigError(f"bucket must be a {kind.__name__}, not {type(bucket).__name__}; the other kind is for {twin}")


def checked_api_key(api_key: object) -> str:
    """Return `api_key` if it can be one. No error shows it."""
    if not isinstance(api_key, str):
        raise TypeError(
            f"api_key must be the API key, a text, not {type(api_key).__name__}: is the environment variable set?"
        )
    if not api_key or any(not 32 < ord(letter) < 127 for letter in api_key):  # noqa: PLR2004 - printable ASCII
        raise ConfigError("api_key is empty, or has spaces, line breaks or letters in it that no API key has")
    return api_key


def terms(api_key: str, refill_rate: int, recharge_to: int | None, key: str | None) -> tuple[Quota, str]:
    """Return the quota and the name of the bucket of an API key."""
    checked_api_key(api_key)
    quota = keepa_quota(refill_rate, recharge_to=recharge_to)
    return quota, bucket_key(api_key) if key is None else checked_key(key)


def ready_probe(name: str, api_key: str, base_url: str) -> Any:  # noqa: ANN401 - either door's
    """Return the ready probe of that name; None where neither httpx nor httpx2 is installed."""
    try:
        probe = import_module(f"{__package__}.probe")  # it needs an extra
    except ImportError:
        return None
    return getattr(probe, name)(api_key, base_url=base_url)
