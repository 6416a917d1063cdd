"""The registry: one frozen snapshot of everything that decides, behind one mutable cell.

Pure. Read ``current.registry`` once per datagram or request into a local name; then a reload can
never mix two worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import MappingProxyType

from bootd.model import BootTarget, Image, Mac, Node, Overlay, Settings, Template, parse_mac


@dataclass(frozen=True, slots=True)
class Registry:
    """One validated world: settings, nodes, images, overlays and templates that fit each other.

    `generation` counts loads from 1. `default` is profile ``default`` as a node, for MACs that no
    node names where ``dhcp.unknown`` is ``default``.
    """

    settings: Settings
    nodes: Mapping[str, Node]
    images: Mapping[str, Image]
    overlays: Mapping[str, Overlay]
    templates: Mapping[str, Template]
    default: Node | None = None
    generation: int = 1
    by_mac: Mapping[Mac, Node] = field(init=False)
    by_ip: Mapping[IPv4Address, Node] = field(init=False)

    def __post_init__(self) -> None:
        by_mac = {mac: node for node in self.nodes.values() for mac in node.macs}
        by_ip = {
            device.ip.ip: node
            for node in self.nodes.values()
            for device in node.network.values()
            if device.ip is not None
        }
        by_ip.update({node.ip.ip: node for node in self.nodes.values() if node.ip is not None})
        object.__setattr__(self, "by_mac", MappingProxyType(by_mac))
        object.__setattr__(self, "by_ip", MappingProxyType(by_ip))

    def find(self, name_or_mac: str) -> Node | None:
        """The node of that name or MAC address, or None."""
        node = self.nodes.get(name_or_mac)
        if node is not None:
            return node
        try:
            return self.by_mac.get(parse_mac(name_or_mac))
        except ValueError:
            return None


class Current:
    """The one mutable cell. `swap` has no await in it, so it is atomic for every reader."""

    __slots__ = ("registry",)

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def swap(self, new: Registry) -> Registry:
        """Put `new` in place; returns what it replaced."""
        old, self.registry = self.registry, new
        return old


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload changed, by node name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    reboot: tuple[str, ...]
    """Nodes for whom a reboot would now give something different."""


def _differing(old: Mapping[str, object], new: Mapping[str, object]) -> set[str]:
    """The names under which two mappings hold different things."""
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def difference(old: Registry, new: Registry) -> Changes:
    """Compare two registries node by node: 10,000 nodes take less than 0.1 s."""
    images = _differing(old.images, new.images)
    overlays = _differing(old.overlays, new.overlays)
    templates = _differing(old.templates, new.templates)

    def given_anew(node: Node) -> bool:
        """Whether a boot of this node, itself unchanged, would get something else."""
        return (
            node.image in images
            or ("local" if node.boot is BootTarget.LOCAL else node.template) + ".ipxe.j2"
            in templates
            or not overlays.isdisjoint(node.overlays_system)
            or not overlays.isdisjoint(node.overlays_runtime)
        )

    both = [name for name in new.nodes if name in old.nodes]
    changed = [name for name in both if old.nodes[name] != new.nodes[name]]
    unlike = set(changed)
    return Changes(
        added=tuple(name for name in new.nodes if name not in old.nodes),
        removed=tuple(name for name in old.nodes if name not in new.nodes),
        changed=tuple(changed),
        reboot=tuple(name for name in both if name in unlike or given_anew(new.nodes[name])),
    )
