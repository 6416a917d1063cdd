"""Warewulf's rules for secrets, for nodes that are switched to them (``security: warewulf``).

Pure. Images made for Warewulf know no tokens: they say the node's asset key and UUID in the query,
and ask for their runtime overlay from a source port below 1024, which only root can bind on a
machine that keeps its ports so. That is weaker than bootd's own rules (SECURITY.md A1): root of a
node, or of a container with that right, passes. So the kernel's neighbour table is asked as well:
whoever has another node's card gets nothing, and nor does a card that no node has, unless it says
the asset key.

Each function returns an empty string or a reason, one word; `SENTENCES` says it to people.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Final

from bootd.boots.window import Link, Owner, wrong_key, wrong_uuid
from bootd.model import Node

PRIVILEGED: Final = 1024
"""Source ports below it are for root only (``net.ipv4.ip_unprivileged_port_start``)."""

SENTENCES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unprivileged-port": "this is only given to a source port below 1024",
        "not-switched": "this node's overlays come with its boot token or its own key: only a node "
        "with security: warewulf gets them by its MAC address",
    }
)


def identity(node: Node, *, asset_key: str, uuid: str, required: bool) -> str:
    """Whether the query names the node's asset key, and its UUID where the node names one.

    Warewulf's clients say no serial number, so none is asked for.
    """
    return wrong_key(node, asset_key, required=required) or wrong_uuid(node, uuid)


def admit(node: Node, port: int, peer: IPv4Address, link: Link) -> str:
    """Whether a machine that has said who it is may have secrets at any time."""
    if port >= PRIVILEGED:
        return "unprivileged-port"
    on_link = link()
    if on_link is Owner.OTHER:
        return "wrong-address"
    if on_link is Owner.STRANGER and not node.asset_key and peer not in _addresses(node):
        return "wrong-address"
    return ""


def _addresses(node: Node) -> set[IPv4Address]:
    own = [node.ip, *(device.ip for device in node.network.values())]
    return {interface.ip for interface in own if interface is not None}
