"""Tokens set aside, as a door hands them out: what reservations and calls have in common."""

from __future__ import annotations

import warnings
from typing import ClassVar, Generic, TypeVar
from weakref import finalize

from ._arguments import NotCopied, instance, whole
from ._door import Door
from .events import Event, EventKind, LoggingListener
from .rules.commands import Outcome, Reserve, Settle
from .rules.reading import Reading

S_co = TypeVar("S_co", covariant=True)


class HeldBase(NotCopied, Generic[S_co]):
    """What reservations and calls have in common: tokens set aside, to be settled or given back."""

    _what: ClassVar[str]
    _advice: ClassVar[str]

    open = True
    """Whether it is still to be settled or cancelled."""

    def __init__(self, door: Door[S_co], command: Reserve, outcome: Outcome, waited_us: int) -> None:
        self._door = door
        self._label = command.label
        self.id = command.id
        self.tokens = command.tokens
        self.decision = outcome.decision(waited_us)
        # No `__del__`: it would run for settled ones too, and a signal's exception that strikes in it is lost.
        self._watch = finalize(self, _unsettled, door, self._what, self._advice, self.tokens, stacklevel=3)
        self._watch.atexit = False

    def _left(self, kind: type[BaseException] | None) -> None:
        """Warn if the block ends without a settle and without an exception that anybody sees; not again afterwards."""
        # First: where warnings are errors, it raises.
        if self._watch.detach() and kind in {None, GeneratorExit}:
            _unsettled(self._door, self._what, self._advice, self.tokens, stacklevel=4, ends=kind is None)

    def _unwatch(self) -> None:
        """Don't warn any more: it is settled, cancelled or left."""
        self._watch.detach()


def _unsettled(door: Door[object], what: str, advice: str, tokens: int, *, stacklevel: int, ends: bool = False) -> None:
    """Warn of tokens that were set aside and not settled. ends: at the end of a block; else perhaps of garbage."""
    message = f"a {what} of {tokens} tokens was left without settle() or cancel(): {advice}"
    if ends or type(door.listener) is LoggingListener:
        door.say(EventKind.LEFT_UNSETTLED, message, tokens)
    else:
        # The garbage collector may run this in the middle of the listener, which may hold a lock.
        door.untold.append(Event(EventKind.LEFT_UNSETTLED, door.key, tokens, why=message))
    warnings.warn(message, ResourceWarning, stacklevel=stacklevel)


class ReservationBase(HeldBase[S_co]):
    """What `Reservation` and `AsyncReservation` have in common."""

    _what = "reservation"
    _advice = "it stays charged in full. Settle it at what it cost"

    def _settling(self, actual: int, reading: Reading | None) -> Settle:
        if reading is not None:
            instance("reading", reading, Reading)
        return Settle(self.id, whole("actual", actual), reading, label=self._label)

    def _charged(self) -> bool:
        """Whether the estimate is charged where the block ends without a settle.

        On a synced bucket it isn't: the call may still be under way at the server, and the hold must outlive readings
        that don't know its cost. It is charged when it runs out.
        """
        return not self._door.quota.synced

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.id!r}, tokens={self.tokens}, open={self.open})"
