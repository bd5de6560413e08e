"""The demo in plain lines, one a change of state: for pipes, logs and terminals that can do no more."""

from __future__ import annotations

from typing import Final, TextIO

from ..rules.decision import Reason
from .demo_scene import Chapter, Scene
from .demo_words import duration, story
from .demo_worker import REFILL_RATE, Note, NoteKind

LONGEST_NAME: Final = 10


class SilentShow:
    """Shows nothing."""

    def note(self, scene: Scene, note: Note) -> None:
        """Show nothing."""

    def chapter(self, scene: Scene) -> None:
        """Show nothing."""

    def frame(self, scene: Scene) -> None:
        """Show nothing."""


class PlainShow:
    """Writes a line for each thing that changes; never one for a poll."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def note(self, scene: Scene, note: Note) -> None:
        """Write what happened to a worker."""
        words = _words(scene, note)
        if words:
            row = scene.row(note)
            self._line(note.at_us, row.name if row else "demo", words)

    def chapter(self, scene: Scene) -> None:
        """Write how the story goes on."""
        if scene.chapter is Chapter.INGESTING:
            settings = scene.settings
            self._out.write(
                f"{settings.workers} {'workers' if settings.redis_url is None else 'worker processes'} share one key "
                f"of {REFILL_RATE} tokens a minute; "
                f"a fake Keepa server over HTTP, {settings.speed:g} times as fast\n"
            )
        self._line(scene.now_us, "demo", story(scene))

    def frame(self, scene: Scene) -> None:
        """Write nothing: a moment is no change."""

    def _line(self, at_us: int, who: str, words: str) -> None:
        self._out.write(f"{duration(at_us / 1_000_000):>8}  {who:<{LONGEST_NAME}}  {words}\n")
        self._out.flush()


def _words(scene: Scene, note: Note) -> str:
    match note.kind:
        case NoteKind.REFUSED:
            how_long = "until the server says" if note.text == Reason.UNKNOWN else f"{duration(note.seconds)} to go"
            return f"waits for {note.tokens}: {note.text}, {how_long}"
        case NoteKind.GRANTED:
            row = scene.row(note)
            return f"granted {note.tokens}" + (f" for {row.job}" if row else "") + f"; balance {note.balance}"
        case NoteKind.ANSWERED if note.text == "429":
            return f"refused by the server; balance {note.balance}"
        case NoteKind.ANSWERED:
            return f"answered, cost {note.tokens}; balance {note.balance}"
        case NoteKind.FAILED:
            return f"no answer ({note.text}); its tokens stay set aside"
        case NoteKind.PROBED:
            return "asks the server for the balance, for all"
        case NoteKind.PROBE_FAILED:
            return f"the server did not say: {note.text}"
        case NoteKind.REPAIRED:
            return f"mended {note.text}; balance {note.balance}"
        case _:
            return ""
