"""The network devices of a node, and which of them it boots from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from bootd.model import Mac, NetDev, Node, Origin

PRIMARY: Final = "boot"
"""The device that `mac` and `ip` of a node make where none fits."""


def device(
    name: str, scalars: Mapping[str, Any], lists: Mapping[str, Any], options: Mapping[str, Any]
) -> NetDev:
    """One device from its merged values."""
    known = {**scalars, **lists}
    if options:
        known["options"] = MappingProxyType(dict(options))
    # A card is found by its MAC address; one that has none must have a name to be found at all.
    written = known.pop("device", "" if "mac" in known else name)
    return NetDev(name=name, device=written, **known)


def primary(devices: Mapping[str, NetDev]) -> NetDev | None:
    """The device that a node boots from: ``boot``, or the first with a MAC, or the first."""
    if PRIMARY in devices:
        return devices[PRIMARY]
    with_mac = (found for found in devices.values() if found.mac is not None)
    return next(with_mac, next(iter(devices.values()), None))


def fitting(devices: Mapping[str, NetDev], values: Mapping[str, Any]) -> str:
    """The device that a node's short `mac` and `ip` belong to: ``boot``, or the first Ethernet
    device that does not say otherwise; where there is none, one is made, named ``boot``."""
    if PRIMARY in devices:
        return PRIMARY
    for name, found in devices.items():
        if found.type == "ethernet" and all(
            getattr(found, key) in (None, value) for key, value in values.items()
        ):
            return name
    return PRIMARY


def changed(
    devices: Mapping[str, NetDev], name: str, values: Mapping[str, Any]
) -> dict[str, NetDev]:
    """`devices` with `values` set in device `name`, which is made where it is not there."""
    if name in devices:
        return {**devices, name: replace(devices[name], **values)}
    return {name: NetDev(name=name, device="", **values), **devices}


def claimed(node: Node, mac: Mac, origin: Origin) -> Node:
    """`node`, which has no MAC address of its own, with one that was claimed for it."""
    name = fitting(node.network, {"mac": mac})
    network = changed(node.network, name, {"mac": mac})
    return replace(
        node,
        mac=mac,
        ip=network[name].ip,
        network=MappingProxyType(network),
        origins=MappingProxyType({**node.origins, "mac": origin}),
    )
