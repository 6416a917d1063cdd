"""Text for people: what others wrote made harmless, and node names folded. Pure."""

from __future__ import annotations

from collections.abc import Iterable


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
