"""A command's way through the script (`bucket.lua`), for both storages in Redis.

A command takes one call of the script if its fast path serves it, or if there is nothing to store. Else it takes two:
the rules decide here, and the script stores what they decided if nobody has written meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import random
import re
import secrets
import threading
import time
from importlib import resources
from typing import Any, Final, Generic, Self, TypeVar
from weakref import WeakValueDictionary

from .._arguments import LONGEST_NAME, NotCopied, printable
from ..errors import ConfigError, StorageUnavailable
from ..quota import Quota
from ..rules.commands import Command, Outcome, Peek, Refund
from ..rules.decision import Snapshot
from ..rules.state import BucketState
from ..rules.transition import inspected, transition
from . import _wire
from ._clients import checked, client_from_url, is_of_a_replica, is_script_lost, meaning, resends

DEFAULT_PREFIX: Final = "keepa_tokens:"

PATIENCE_S: Final = 2.0
"""How long a command that loses to other writers tries again."""

_CROWDED_S: Final = 1.0
"""How long after a lost try commands that the rules decide ask for a turn beforehand."""

_PAUSE_S: Final = 0.001
"""The longest pause while another has its turn: random, so that processes meet less often."""

_NONCE: Final = 5
"""Where the nonce stands in a call."""

_log = logging.getLogger("keepa_tokens")

LockT = TypeVar("LockT", bound="threading.Lock | asyncio.Lock")


class Keyspace(NotCopied, Generic[LockT]):
    """What both storages do alike: names of keys, the script, and a command's way through it."""

    _instead = "make one in each process, of the same URL"
    _library = ""
    """Where the client's library has its clients of this kind."""

    def __init__(self, client: Any, *, prefix: str = DEFAULT_PREFIX) -> None:  # noqa: ANN401 - of either kind
        checked(client, asynchronous=bool(self._library))
        self.prefix = printable("prefix", prefix, 0, LONGEST_NAME)
        self._client = client
        self._opened = False
        self._process: int | None = None
        self._script = _wire.named_fields(resources.files("keepa_tokens.storage").joinpath("bucket.lua").read_bytes())
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()
        self._salt = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._locks = WeakValueDictionary[tuple[int, str], LockT]()
        self._crowded_until = 0.0
        to_change = resends(client)
        self._sent_once = to_change is None
        if to_change:
            _log.warning(
                "%s sends commands again by itself when a connection is lost: a plain acquire may be charged each time."
                " Give it %s, or use %s.from_url",
                type(client).__name__,
                to_change,
                type(self).__name__,
            )

    @classmethod
    def from_url(cls, url: str, *, prefix: str = DEFAULT_PREFIX) -> Self:
        """Return a storage with a client of its own, which closing it closes, and which never re-sends a command.

        url: redis://, rediss:// (TLS), valkey://, valkeys:// or unix://, as redis-py and valkey-py read it. Raises
        ConfigError for one that can't be used.
        """
        storage = cls(client_from_url(url, cls._library), prefix=prefix)
        storage._opened = True
        return storage

    # what differs: a blocking client, and one that is awaited

    async def _send(self, arguments: list[_wire.Argument]) -> object:
        raise NotImplementedError

    async def _drop_idle(self) -> None:
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        raise NotImplementedError

    def _new_lock(self) -> LockT:
        raise NotImplementedError

    async def _entered(self, lock: LockT) -> bool:
        """Wait for the lock, and return whether the caller has it."""
        raise NotImplementedError

    # a command's way

    async def _apply(self, key: str, quota: Quota, command: Command, now_us: int | None) -> Outcome:
        """Let the script carry the command out, or decide what it hands over."""
        answer: _wire.Answer | None = None
        # Places come back one after the other in the order in which they were given up, the last one first (rule 6).
        is_place = isinstance(command, Refund) and command.own_us is not None
        if not (is_place or self._is_deciding(key) or _wire.is_for_the_rules(command)):
            answer = await self._attempt(key, quota, command, now_us)
            found = decided(quota, command, answer)
            if isinstance(found, Outcome):
                return found
        # One lock for each key, while somebody needs it; by process, as in a forked child nobody would let it go.
        lock = self._locks.setdefault((os.getpid(), key), self._new_lock())
        had_to_wait = lock.locked()
        # A caller that can't get it goes on without: it only saves tries, and nothing is wrong without it.
        has_it = await self._entered(lock)
        try:
            return await self._decide(key, quota, command, now_us, None if had_to_wait else answer)
        finally:
            if has_it:
                lock.release()

    def _is_deciding(self, key: str) -> bool:
        """Whether a caller in this process decides for this bucket now: another would be in its way."""
        lock = self._locks.get((os.getpid(), key))
        return lock is not None and lock.locked()

    async def _decide(
        self, key: str, quota: Quota, command: Command, now_us: int | None, answer: _wire.Answer | None
    ) -> Outcome:
        """Decide what was handed over, and store it; again if somebody else has written meanwhile."""
        began, token = time.monotonic(), secrets.token_hex(8)  # random: forked children count alike
        while True:
            if answer is None or answer is _wire.Sign.BUSY:
                # Where many write, ask for a turn before deciding.
                turn = token if began < self._crowded_until else ""
                answer = await self._attempt(key, quota, command, now_us, turn)
            found = decided(quota, command, answer)
            if isinstance(found, Outcome):
                return found
            if found is not None:
                before, after, outcome = found
                storing = _wire.store(before, after, command, now_us, token, sent_once=self._sent_once)
                # Refused, it hands the bucket over anew. A hold may be due by now: others' clocks may be behind.
                answer = await self._complete(key, storing, command, now_us)
                if answer is _wire.Sign.STORED:
                    return outcome
                self._crowded_until = time.monotonic() + _CROWDED_S
            if time.monotonic() > began + PATIENCE_S:
                raise StorageUnavailable(
                    f"others wrote to the bucket {key!r} without a pause for {PATIENCE_S:g} s."
                    " The command was certainly not carried out."
                )
            if answer is _wire.Sign.BUSY:
                await self._pause(random.uniform(0, _PAUSE_S))  # noqa: S311 - no secret

    async def _attempt(
        self, key: str, quota: Quota, command: Command, now_us: int | None, turn: str = ""
    ) -> _wire.Answer:
        return await self._complete(key, _wire.attempt(quota, command, now_us, turn), command, now_us)

    async def _complete(
        self, key: str, arguments: list[_wire.Argument], command: Command, now_us: int | None
    ) -> _wire.Answer:
        """Run the script; where it hands over less than the rules need, look at all of the bucket."""
        answer = await self._ask(key, arguments, command)
        if isinstance(answer, _wire.Handed) and answer.needs_all:
            return await self._ask(key, _wire.look(now_us), command)
        return answer

    async def _ask(self, key: str, arguments: list[_wire.Argument], command: Command | None) -> _wire.Answer:
        """Run the script and return its answer to this very call, which is for `command`; None: for many acquires."""
        call = self._call(key, arguments)
        try:
            try:
                reply = await self._send(call)
            except Exception as error:
                if not is_script_lost(error):
                    raise
                call = self._call(key, arguments, by_text=True)
                reply = await self._send(call)
        except Exception as error:
            if is_of_a_replica(error):
                await self._drop_idle()
            raise self._meant(error, key) from error
        answer = _wire.understood(reply, command, str(call[_NONCE]))
        if answer is not None:
            return answer
        await self._drop_idle()
        raise _confused(reply)

    def _call(self, key: str, arguments: list[_wire.Argument], *, by_text: bool = False) -> list[_wire.Argument]:
        """Return the words of one call of the script, each with a nonce of its own."""
        name = _wire.name_of(self.prefix, key)
        script: tuple[_wire.Argument, ...] = ("EVAL", self._script) if by_text else ("EVALSHA", self._digest)
        return [*script, 1, name, arguments[0], self._nonce(), *arguments[2:]]

    def _nonce(self) -> str:
        return f"{self._salt}{next(self._numbers)}"

    def _meant(self, error: Exception, key: str = "") -> Exception:
        """Return what a client's error means; raise any other one as it is."""
        meant = meaning(error, key, sent_once=self._sent_once)
        if meant is None:
            raise error
        return meant

    async def _inspect(self, key: str, now_us: int | None) -> Snapshot | None:
        answer = await self._ask(key, _wire.look(now_us), Peek())
        return inspected(answer.state, answer.now_us) if isinstance(answer, _wire.Handed) else None

    async def _delete(self, key: str) -> None:
        name = _wire.name_of(self.prefix, key)
        try:
            await self._send(["DEL", name])
        except Exception as error:
            raise self._meant(error, key) from error

    def _check_process(self, told: str) -> None:
        """Raise ConfigError in a forked child: clients don't notice, and would read each other's answers."""
        if self._is_forked():
            raise ConfigError(f"{told} Nothing was sent.")
        self._process = os.getpid()

    def _is_forked(self) -> bool:
        return self._process not in {None, os.getpid()}

    # keys

    def _pattern(self) -> bytes:
        """Return the SCAN pattern of this prefix, with the prefix's own special characters escaped."""
        return _wire.as_bytes(re.sub(r"([*?\[\]\\])", r"\\\1", self.prefix) + "*")

    def _key_of(self, name: object) -> str:
        return _wire.as_text(name).removeprefix(self.prefix)

    def __repr__(self) -> str:
        # Not the client: its repr may show a password.
        return f"{type(self).__name__}(prefix={self.prefix!r})"


_Decided = tuple[_wire.Handed, BucketState, Outcome]


def decided(quota: Quota, command: Command, answer: _wire.Answer) -> Outcome | _Decided | None:
    """Return the outcome; if something must be stored first, that and the outcome; None: the answer decides nothing."""
    if isinstance(answer, Outcome):
        return answer
    if not isinstance(answer, _wire.Handed):
        return None
    stored = answer.state
    after, outcome = transition(quota, stored, answer.now_us, command)
    return outcome if after is None or after is stored else (answer, after, outcome)


def _confused(reply: object) -> Exception:
    if reply is not None and not isinstance(reply, bytes | str | int | float | list | tuple | dict | set):
        return ConfigError(
            f"the client answered the script with {str(reply)[:60]!r}: give the storage a plain client, not a pipeline"
        )
    return StorageUnavailable(
        "the connection held the answer to an earlier command, which was interrupted before it was read: idle"
        " connections were closed. Nobody knows whether this command was carried out."
    )
