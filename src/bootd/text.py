"""Text for people: what others wrote made harmless, numbers, node names folded. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final


def escape(text: str) -> str:
    """`text` with everything that a terminal or a log reader would act on written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


_NO_ATTRIBUTE: Final = re.compile(r"'(?:bootd\.model\.)?(\w+) object' has no attribute '(\w+)'")
_WORDS: Final = {
    "NetDev": "network device",
    "ServerAddress": "server",
    "mappingproxy": "map",
    "dict": "map",
    "str": "text",
}


def undefined(message: str) -> str:
    """Jinja2's words for a name that is not there, in the words of who wrote the template."""
    return _NO_ATTRIBUTE.sub(
        lambda found: f"a {_WORDS.get(found[1], found[1].lower())} has no {found[2]!r}", message
    )


def size(number: float | None) -> str:
    """Bytes for people: ``1.4 MB`` (powers of ten, as disks and networks are sold)."""
    if number is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return (
                f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
            )
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds for people: ``4.2 s``, ``3 min``, ``2 h``, ``5 d``."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for limit, divisor, unit in ((3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def fold(names: Iterable[str]) -> str:
    """``n[001-128]``: names as cluster tools write them; else joined with commas."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException  # slow; few commands need it

    listed = list(names)
    try:
        return str(NodeSet.fromlist(listed))
    except NodeSetException:
        return ",".join(listed)


def unfold(names: str) -> list[str]:
    """The names of a node set, in its order. Raises `ValueError` with a sentence."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    try:
        return list(NodeSet(names))
    except NodeSetException as error:
        raise ValueError(f"{escape(names)} is no node set: {error}") from error
