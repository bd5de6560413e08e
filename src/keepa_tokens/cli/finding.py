"""A finding of the doctor: about a bucket, the server or file below it, or a hand-made manager."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, what that does, and what to do about it.

    fault: False if it is worth knowing but may be intended. mend: what `--repair` mends, "fields" or "lifetime"; empty
    if that is not certain to be safe. about: the server, the file, or a key.
    """

    code: str
    what: str
    effect: str
    cure: str
    fault: bool = True
    mend: str = ""
    about: str = "server"
