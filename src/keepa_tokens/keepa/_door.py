"""What `KeepaSync` and `AsyncKeepaSync` have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Final, TypeVar

from .._arguments import NotCopied, checked_key, checked_label, checked_name, hold_for_us, microseconds, timeout_us
from .._door import CALL_ADVICE, cost, new_id, watched
from .._plans import Grant
from ..errors import ConfigError
from ..quota import Quota
from ..rules.commands import Reserve
from ._plans import Attempts, KeepaSteps, cancel, request, settle
from .backoff import asked_by
from .quota import bucket_key, keepa_quota
from .reading import REFUSED, Body, unpacked

B = TypeVar("B")
C = TypeVar("C", bound="KeepaCall")

PLACE: Final = ContextVar[str | None]("the place in line of the task under way", default=None)
"""The id of a task that comes back: by it its calls keep their place, in whatever worker. None: by ids of their own."""


class KeepaDoor(NotCopied):
    """The terms on which calls are made: how long a hold lives, how old a reading may be before a refusal probes."""

    def __init__(self, quota: Quota, probe: object, probe_interval: float, hold_for: float) -> None:
        if not quota.synced:
            raise ConfigError(
                "KeepaSync needs a bucket that follows the server: make its quota with keepa_quota(), or with"
                " synced=True"
            )
        self._quota = quota
        self._scouts = probe is None
        self._probe_after_us = microseconds("probe_interval", probe_interval)
        if self._probe_after_us < 1:
            raise ConfigError(f"probe_interval={probe_interval!r} must be longer than 0 s")
        self._hold_for_us = hold_for_us(hold_for)

    def _steps(self) -> KeepaSteps:
        raise NotImplementedError

    def _wanted(self, estimate: int, keep: int, label: str, place: str | None = None) -> Reserve:
        """Return the command that asks for a call's hold; in line by `place`, or as the task that comes back."""
        estimate, keep = cost(self._quota, estimate, keep, "estimate")
        return Reserve(
            new_id(),
            estimate,
            self._hold_for_us,
            keep,
            self._probe_after_us,
            self._scouts,
            checked_label(label),
            PLACE.get() if place is None else checked_name("place", place),
        )

    def _attempts(
        self, estimate: int, keep: int, timeout: float | None, label: str, call: Callable[[Grant], C]
    ) -> Attempts[C]:
        wanted = self._wanted(estimate, keep, label)

        def ask(steps: KeepaSteps, left_us: int | None) -> Awaitable[C]:
            return request(steps, replace(wanted, id=new_id()), left_us, call)

        return Attempts(wanted.tokens, wanted.keep, timeout_us(timeout), ask)


class KeepaCall(NotCopied):
    """What `Call` and `AsyncCall` have in common."""

    def __init__(self, steps: Callable[[], KeepaSteps], grant: Grant) -> None:
        self._steps, self._grant, self._door = steps, grant, steps().door
        self.id = grant.id
        self.tokens = grant.tokens
        self.decision = grant.decision
        self.waited = grant.decision.waited
        self.refused = False
        self.consumed: int | None = None
        self.told = False
        self.retry_after: float | None = None
        self._watch: object = watched(self, self._door, "call", CALL_ADVICE, self.tokens)

    async def _settled(self, body: Body, status: int | None) -> None:
        answer, number = unpacked(body, status)
        self._watch = None
        self.refused = number == REFUSED
        self.retry_after = asked_by(body)
        said = await settle(self._steps(), self._grant, answer, number)
        self.consumed, self.told = said.consumed, said.reading is not None

    async def _cancelled(self) -> None:
        self._watch = None
        await cancel(self._steps(), self._grant)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, tokens={self.tokens}, refused={self.refused})"


def steps_of(door: KeepaDoor) -> KeepaSteps:
    """Return the steps of one call by a door, for the guards."""
    return door._steps()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the library's own


def checked_bucket(bucket: object, kind: type[B], *, twin: str) -> B:
    """Return `bucket` if it is of `kind`. What it is instead is named, not shown: it may be an API key."""
    if isinstance(bucket, kind):
        return bucket
    if isinstance(bucket, str):
        raise ConfigError("bucket is a text: for an API key there is from_key(api_key)")
    raise ConfigError(f"bucket must be a {kind.__name__}, not {type(bucket).__name__}; its twin goes with {twin}")


def checked_api_key(api_key: object) -> str:
    """Return `api_key` if it can be one. It is never shown."""
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
