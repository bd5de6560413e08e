"""What only Redis can hold, beside what `checks.models.programs` draws: texts and names that are no text."""

from __future__ import annotations

from typing import Final

from checks.models.programs import GARBAGE, HOLDS, damages_of, programs

RAW: Final = ("\udcff\udc80", "\udc80", "5\udcff", "5\0", "5\0005")
"""Bytes that are no UTF-8 (as lone surrogates), and NUL."""

raw_programs = programs(damages_of((*HOLDS, "hold:\udcff"), GARBAGE + RAW))
