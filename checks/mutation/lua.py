"""Every way to break `bucket.lua` by one small slip: another comparison, another sign, another number, a line less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SLIPS: Final = (
    (r"(?<![<>=~])<(?!=)", "<="),
    (r"<=", "<"),
    (r"(?<![<>=~])>(?!=)", ">="),
    (r">=", ">"),
    (r"==", "~="),
    (r"~=", "=="),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \* ", " + "),
    (r" and ", " or "),
    (r" or ", " and "),
    (r"\bnot ", ""),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"'all'", "'some'"),
    (r"'some'", "'all'"),
    (r"(?<![\w'.\[%])([0-9]+)(?![\w'.])", "number"),
)
"""What stands in a line, and what a slip makes of it. A number becomes the next one."""


@dataclass(frozen=True, slots=True)
class Slip:
    """One way to break the script: what its line becomes."""

    number: int
    was: str
    becomes: str

    @property
    def name(self) -> str:
        """What tells it from others, for as long as the line stays as it is."""
        return f"{self.was.strip()}  ->  {self.becomes.strip()}"

    def of(self, script: str) -> str:
        """Return the broken script."""
        lines = script.splitlines()
        lines[self.number] = self.becomes
        return "\n".join(lines) + "\n"


def slips(script: str) -> Iterator[Slip]:
    """Yield every slip, and for every call that writes the line without it."""
    for number, line in enumerate(script.splitlines()):
        if not line.strip() or line.strip().startswith("--"):
            continue
        for what, becomes in SLIPS:
            for found in re.finditer(what, line):
                text = str(int(found[0]) + 1) if becomes == "number" else becomes
                yield Slip(number, line, line[: found.start()] + text + line[found.end() :])
        if re.match(r" *call\(|^ *(keep|take_turn)\(", line):
            yield Slip(number, line, "")
