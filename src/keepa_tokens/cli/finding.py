"""What the doctor says: of a bucket, of the server or the file below it, of a hand-made manager."""

from __future__ import annotations

from dataclasses import dataclass

from .words import plain


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, what that does, and what to do about it.

    fault: False for what is worth knowing and may well be meant. mend: what `--repair` does about it: "fields" or
    "lifetime"; nothing where it is not certain to be safe. about: the server, the file, or a key.
    """

    code: str
    what: str
    effect: str
    cure: str
    fault: bool = True
    mend: str = ""
    about: str = "server"

    def __post_init__(self) -> None:
        """Keep to one line what others have stored; but `about` stays the key, by which `--repair` goes."""
        for name in ("what", "effect", "cure"):
            object.__setattr__(self, name, plain(getattr(self, name)))
