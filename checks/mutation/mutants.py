"""Mutants of the package's functions: mutmut breaks them, and a process puts one in the place of what was imported.

No file of the package is touched. A broken function comes from a module that mutmut wrote and that lives in memory
only; its code takes the place of the shipped function's code, which whoever imported that earlier goes on using.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import _lru_cache_wrapper
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

from checks.mutation.judgement import Mutant

PACKAGE: Final = "keepa_tokens"


@dataclass(frozen=True, slots=True)
class Broken:
    """A module as mutmut wrote it: its mutants, and the functions of each by mutmut's names."""

    mutants: Sequence[Mutant]
    functions: Mapping[str, FunctionType]


def broken(module: str) -> Broken:
    """Return the mutants of a module of the package."""
    imported = importlib.import_module(f"{PACKAGE}.{module}")
    path = Path(inspect.getfile(imported))
    written = mutate_file_contents(str(path), path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": imported.__name__, "__package__": imported.__package__}
    exec(compile(written.code, f"mutants of {path}", "exec"), namespace)  # noqa: S102 - that is what a mutant is for
    return Broken(list(_numbered(_mutants(module, written))), dict(_functions(namespace)))


def put_in(mutant: Mutant, functions: Mapping[str, FunctionType]) -> None:
    """Let the function that was imported do what the mutant does, from now on, in this process."""
    target = shipped(mutant)
    worse, original = functions[mutant.name], functions[original_of(mutant.name)]
    target.__code__ = worse.__code__
    # The others stay as they are: a constant of that module is not the one that everybody else imported.
    if worse.__defaults__ != original.__defaults__:
        target.__defaults__ = worse.__defaults__
    if worse.__kwdefaults__ != original.__kwdefaults__:
        target.__kwdefaults__ = worse.__kwdefaults__


def forget() -> None:
    """Empty the package's caches: what was computed before is not what a mutant computes."""
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == PACKAGE:
            for each in vars(module).values():
                if isinstance(each, _lru_cache_wrapper):
                    each.cache_clear()


def original_of(name: str) -> str:
    """Return mutmut's name of the function that a mutant was made of."""
    return f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"


def shipped(mutant: Mutant) -> FunctionType:
    """Return the function that a mutant breaks."""
    name, owner = orig_function_and_class_names_from_key(f"{mutant.module}.{mutant.name}")
    holder = importlib.import_module(f"{PACKAGE}.{mutant.module}")
    found = vars(holder if owner is None else getattr(holder, owner))[name.rpartition(".")[2]]
    function = getattr(found, "__func__", found)
    if not isinstance(function, FunctionType):
        raise TypeError(f"{mutant.place} is {function!r}, no function: its code can't be replaced")
    return function


def _mutants(module: str, written: MutatedFile) -> Iterator[Mutant]:
    lines = written.code.splitlines()
    for name in written.mutant_names:
        function, owner = orig_function_and_class_names_from_key(f"{module}.{name}")
        function = function.rpartition(".")[2]
        texts = []
        for generated in (original_of(name), name):
            span = written.line_span_by_function_name[generated]
            texts.append([line.replace(generated, function) for line in lines[span.start - 1 : span.end]])
        was, becomes = _difference(*texts)
        yield Mutant(".".join(filter(None, (module, owner, function))), was, becomes, name)


def _difference(original: Sequence[str], worse: Sequence[str]) -> tuple[str, str]:
    changed = [
        code for code in SequenceMatcher(None, original, worse, autojunk=False).get_opcodes() if code[0] != "equal"
    ]
    begin, end, worse_begin, worse_end = changed[0][1], changed[-1][2], changed[0][3], changed[-1][4]
    return _joined(original[begin:end]), _joined(worse[worse_begin:worse_end])


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(line.strip() for line in lines)


def _numbered(mutants: Iterator[Mutant]) -> Iterator[Mutant]:
    seen: Counter[tuple[str, str, str, int]] = Counter()
    for mutant in mutants:
        seen[mutant.key] += 1
        yield replace(mutant, nth=seen[mutant.key])


def _functions(namespace: Mapping[str, Any]) -> Iterator[tuple[str, FunctionType]]:
    for name, value in namespace.items():
        if isinstance(value, type) and value.__module__ == namespace["__name__"]:
            yield from _functions({**vars(value), "__name__": None})
        function = getattr(value, "__func__", value)
        if isinstance(function, FunctionType) and "__mutmut_" in name:
            yield name, function
