"""What is wrong with a file, and where: the form every configuration error is given in.

Pure. Collect faults, never raise at the first: an operator wants to see all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Final

from bootd.model import ConfigError, Origin

MAX_FAULTS: Final = 1000
"""Faults told at once; past that an operator is told that there are more."""
_MAX_SHOWN: Final = 80
_MAX_COMPARED: Final = 500


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to fix: ``nodes.yaml:12:7: nodes.n001.mac: 'zz' is not a MAC address``.

    `where` is the dotted key, empty where the whole file is meant.
    """

    origin: Origin
    where: str
    what: str

    def __str__(self) -> str:
        place = f"{self.origin}: {self.where}: " if self.where else f"{self.origin}: "
        return place + self.what


def config_error(faults: Iterable[Fault]) -> ConfigError:
    """The error that carries `faults`: each once, by file and line in the order files were read."""
    unique = list(dict.fromkeys(faults))
    files = {fault.origin.file: number for number, fault in reversed(list(enumerate(unique)))}
    unique.sort(key=lambda f: (files[f.origin.file], f.origin.line, f.origin.column))
    lines = [str(fault) for fault in unique[:MAX_FAULTS]]
    if len(unique) > MAX_FAULTS:
        lines.append(f"and more: only the first {MAX_FAULTS} faults are told")
    return ConfigError(lines)


def shown(value: object) -> str:
    """`value` as an error message quotes it: on one line, printable, and not endless."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'profiles'?`` where one of `known` looks like `word`, else nothing."""
    close = get_close_matches(word[:_MAX_SHOWN], islice(known, _MAX_COMPARED), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
