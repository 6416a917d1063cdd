"""Kernel versions as people mean them: which is newer, which are for debugging. Pure."""

from __future__ import annotations

import re
from typing import Final

_PARTS = re.compile(r"\d+|[a-zA-Z]+", re.ASCII)
_NUMBERS = re.compile(r"\d+(?:[.\-_]\d+)*(?![a-zA-Z0-9])", re.ASCII)
_DEBUG: Final = frozenset(
    ("debug", "dbg", "rescue", "kdump", "crash", "crashdump", "recovery", "kasan", "ubsan")
)

Part = tuple[int, int, str]
Key = tuple[tuple[int, ...], int, tuple[Part, ...]]


def key(version: str) -> Key:
    """What versions are ordered by.

    First the numbers that it begins with: ``6.1.0-31`` in ``6.1.0-31-amd64``, ``5.14.0-427.13.1``
    in ``5.14.0-427.13.1.el9_4.x86_64``; so 6.10 is newer than 6.9. Where those are equal, the one
    that says less after them: ``6.9`` is newer than ``6.9-rc3``, and ``6.1.0-31-amd64`` goes before
    ``6.1.0-31-cloud-amd64``, which lacks the drivers of real machines. Then part by part, numbers
    as numbers.
    """
    found = _NUMBERS.match(version)
    numbers = found[0] if found else ""
    rest = _PARTS.findall(version[len(numbers) :])
    parts = tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in rest)
    return tuple(int(number) for number in re.findall(r"\d+", numbers)), -len(parts), parts


def is_debug(version: str) -> bool:
    """Whether it is a debug, rescue or crash kernel: ``5.14.0-427.el9.x86_64+debug``,
    ``0-rescue-…``."""
    return not _DEBUG.isdisjoint(re.split(r"[^a-z]+", version.lower()))


def best_first(versions: list[str]) -> list[str]:
    """Newest first, those for debugging after all others."""
    return sorted(versions, key=lambda v: (not is_debug(v), key(v), v), reverse=True)
