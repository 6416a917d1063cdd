"""The snapshot: its indexes, how it is swapped, and what a reload changed."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface
from types import MappingProxyType
from typing import Any

import pytest

from bootd.model import (
    BootTarget,
    Image,
    NetDev,
    Node,
    Origin,
    Overlay,
    Settings,
    Template,
    parse_mac,
)
from bootd.registry import Current, Registry, difference


def image(generation: str = "1") -> Image:
    return Image(name="debian", generation=generation, artefacts={})


def registry(*nodes: Node, **parts: Any) -> Registry:
    known: dict[str, Any] = {
        "images": {"debian": image()},
        "overlays": {"base": Overlay("base", (), "1"), "hosts": Overlay("hosts", (), "1")},
        "templates": {"default.ipxe.j2": Template("default.ipxe.j2", "x", "x")},
    }
    return Registry(
        settings=Settings(), nodes={node.name: node for node in nodes}, **{**known, **parts}
    )


def node(name: str = "n1", number: int = 1, **values: Any) -> Node:
    mac, ip = parse_mac(f"52540000{number:04x}"), IPv4Interface(f"10.0.0.{number}/24")
    device = NetDev(name="boot", device="", mac=mac, ip=ip)
    return Node(name=name, mac=mac, ip=ip, network=MappingProxyType({"boot": device}), **values)


def test_nodes_are_found_by_name_and_by_any_spelling_of_a_mac() -> None:
    one = node()
    found = registry(one)

    assert found.find("n1") is one
    assert found.find("52-54-00-00-00-01") is one
    assert found.find("5254.0000.0001") is one
    assert found.find("52:54:00:00:00:02") is None
    assert found.find("n2") is None


def test_every_device_finds_its_node() -> None:
    second = NetDev(
        name="b", device="", mac=parse_mac("525400000009"), ip=IPv4Interface("10.1.0.9/16")
    )
    one = node()
    one = replace(one, network=MappingProxyType({**one.network, "b": second}))
    found = registry(one)

    assert found.by_mac == {one.mac: one, second.mac: one}
    assert {str(ip): n for ip, n in found.by_ip.items()} == {"10.0.0.1": one, "10.1.0.9": one}


def test_swapping_gives_back_what_was_there() -> None:
    old, new = registry(), registry(node())
    current = Current(old)

    assert current.swap(new) is old
    assert current.registry is new


def test_an_equal_registry_is_no_difference() -> None:
    changes = difference(registry(node()), registry(node()))

    assert (changes.added, changes.removed, changes.changed, changes.reboot) == ((), (), (), ())


def test_moving_a_line_is_no_change() -> None:
    origins = MappingProxyType({"mac": Origin("nodes.yaml", 7, 1)})

    assert difference(registry(node()), registry(node(origins=origins))).changed == ()


def test_nodes_that_come_go_and_change_are_named() -> None:
    old = registry(node("a", 1), node("b", 2), node("c", 3))
    new = registry(node("b", 2, kernel_args=("quiet",)), node("c", 3), node("d", 4))

    changes = difference(old, new)

    assert (changes.added, changes.removed) == (("d",), ("a",))
    assert changes.changed == changes.reboot == ("b",)


@pytest.mark.parametrize(
    ("parts", "reboot"),
    [
        ({"images": {"debian": image("2")}}, ("image",)),
        ({"images": {}}, ("image",)),
        ({"overlays": {"base": Overlay("base", (), "2")}}, ("runtime", "system")),
        ({"templates": {}}, ("image", "plain", "runtime", "system")),
        (
            {"templates": {"local.ipxe.j2": Template("local.ipxe.j2", "y", "y")}},
            ("image", "local", "plain", "runtime", "system"),
        ),
    ],
)
def test_what_a_boot_gets_may_change_though_the_node_does_not(
    parts: dict[str, Any], reboot: tuple[str, ...]
) -> None:
    nodes = (
        node("image", 1, image="debian"),
        node("local", 2, boot=BootTarget.LOCAL),
        node("plain", 3),
        node("runtime", 4, overlays_runtime=("hosts",)),
        node("system", 5, overlays_system=("base",)),
    )

    changes = difference(registry(*nodes), registry(*nodes, **parts))

    assert changes.changed == ()
    assert changes.reboot == reboot
