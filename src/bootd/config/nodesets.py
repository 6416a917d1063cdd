"""``n[001-128]`` -> the names of nodes, by ClusterShell's rules and within bounds. Pure."""

from __future__ import annotations

import re
from typing import Final

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

MAX_NODES: Final = 100_000
"""Nodes that one set, and all files together, may name."""

_NODE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", re.ASCII)
_RANGE: Final = re.compile(r"(\d{1,18})(?:-(\d{1,18})(?:/(\d{1,9}))?)?", re.ASCII)


def expand(key: str) -> list[str]:
    """The node names that a key of ``nodes:`` stands for, at least one, at most `MAX_NODES`.

    Raises `ValueError` with a sentence.
    """
    names = _members(key) if any(c in key for c in "[,]") else [key]
    if not names:
        raise ValueError(f"{key[:64]!r} names no node")
    for name in names:
        if not _NODE_NAME.fullmatch(name):
            raise ValueError(
                f"{name[:80]!r} cannot be a node's name: a host name of at most 64 characters"
            )
    return names


def _members(key: str) -> list[str]:
    if _size(key) > MAX_NODES:
        raise ValueError(f"the set {key[:64]!r} has more than {MAX_NODES} nodes")
    try:
        # Without a resolver: no @group here may read files or run commands.
        return list(NodeSet(key, resolver=RESOLVER_NOGROUP))
    except NodeSetException as error:
        raise ValueError(f"{key[:64]!r} is not a set of nodes: {error}") from None


def _size(key: str) -> int:
    """An upper bound of how many names a set has, without making them: ``n[1-999999999]`` would
    fill the memory."""
    total = 0
    for part in re.split(r",(?![^\[]*\])", key):
        names = 1
        for group in re.findall(r"\[([^\]]*)\]", part):
            names *= sum(_range_size(piece) for piece in group.split(","))
        total += names
    return total


def _range_size(piece: str) -> int:
    match = _RANGE.fullmatch(piece)
    if match is None:
        return 1 if len(piece) < 19 else MAX_NODES + 1
    low, high, step = match.groups()
    return max(1, (int(high or low) - int(low)) // max(1, int(step or 1)) + 1)
